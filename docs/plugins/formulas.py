"""Blocks of ``math`` (LaTeX) become pictures in the page, set by Matplotlib, without a network."""

import base64
import html
import io
import re

from markdown import Markdown
from matplotlib import rc_context
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from mkdocs.config.defaults import MkDocsConfig

# Matplotlib has no array of lines: one picture a line.
LINE_BREAK = re.compile(r'\\\\|\n')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Give blocks of ``math`` to :func:`formula`; mkdocs.yml can name no function of a hook."""
    fences = config.mdx_configs.setdefault('pymdownx.superfences', {})
    fences['custom_fences'] = [dict(name='math', **{'class': 'math'}, format=formula)]
    return config


def formula(source: str, language: str, css_class: str, options: dict, md: Markdown, **_) -> str:
    """Set a block, line by line; arguments as SuperFences gives them."""
    lines = [line.strip(' &') for line in LINE_BREAK.split(source)]
    return ''.join(f'<p class="{css_class}">{_picture(line)}</p>' for line in lines if line)


def _picture(latex: str) -> str:
    svg = io.BytesIO()
    with rc_context({'mathtext.fontset': 'stix', 'svg.hashsalt': 'mmsmca'}):
        math_to_image(f'${latex}$', svg, FontProperties(size=15), dpi=72, format='svg')
    data = base64.b64encode(svg.getvalue()).decode()
    return f'<img alt="{html.escape(latex)}" src="data:image/svg+xml;base64,{data}">'
