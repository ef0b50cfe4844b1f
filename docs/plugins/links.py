"""Pages of the site may link to any file of the repository, as they do where it is browsed.

What a page links to outside ``docs`` becomes part of the site, in the same place of the tree; a
Markdown file, such as the README of a folder of configs, becomes a page. ``docs/`` is the site's
root, so links across its border are rewritten.
"""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
NAVIGATED = (
    'CHANGELOG.md',
    'CONTRIBUTING.md',
    'configs/smca/README.md',
    'configs/small/README.md',
)
LINK = re.compile(r'(?<=\]\()(?!\w+:)[^)#\s]+')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to, or that the navigation names."""
    pages = [_in_repository(file.src_uri) for file in files.documentation_pages()]
    for uri in NAVIGATED:
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri)))
        pages.append(uri)
    for page in pages:
        for link in LINK.findall((ROOT / page).read_text()):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
            # What does not exist is for MkDocs to warn of.
            outside = not target.startswith(('docs/', '../')) and (ROOT / target).is_file()
            if outside and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
                if target.endswith('.md'):
                    pages.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, from places in the repository to places in the site."""
    uri = page.file.src_uri
    folder = posixpath.dirname(_in_repository(uri))

    def rewrite(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[0])).removeprefix('docs/')
        return posixpath.relpath(target, posixpath.dirname(uri) or '.')

    return LINK.sub(rewrite, markdown)


def _in_repository(uri: str) -> str:
    """Path of a file of the site in the repository."""
    return f'docs/{uri}' if os.path.exists(ROOT / 'docs' / uri) else uri
