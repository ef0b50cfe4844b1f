"""The pages: their commands and code are run, and the site is built.

Every block of shell or Python in docs/*.md and README.md is run, page by page and in order, in a
folder like a checkout, unless a comment in the line before it says otherwise:

    <!-- file: NAME -->        it is the content of that file, which other blocks use
    <!-- run by tests/X.py --> another test runs it
    <!-- not run: REASON -->   it needs what a test does not have

What takes long as written is shortened by arguments added to it, ``SHORTER``.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from scripts import run_python
from utils import ROOT

from mmsmca.checkpoints import files as checkpoint_files
from mmsmca.datasets.shapes import Shapes
from mmsmca.models import SpatialPrior

PAGES = {path.name: path.read_text() for path in [*ROOT.glob('docs/*.md'), ROOT / 'README.md']}
BLOCK = re.compile(r'(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMAND_LANGUAGES = ('shell', 'bash', 'python')
OTHER_LANGUAGES = ('text', 'json', 'math', 'latex')
LOADED = re.compile(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="([^"]*)"')
START = 'index.md'
# Pages whose blocks take seconds.
QUICK = ('configs.md', 'custom_data.md')
NO_WORKERS = [
    f'{phase}_dataloader.{key}'
    for phase in ('train', 'val', 'test')
    for key in ('num_workers=0', 'persistent_workers=False')
]
# Of the quick start, all epochs, so that its last checkpoint has the name that pages mention.
QUICKSTART = 'work_dirs/quickstart'
SHORTER = {
    'tools/make_shapes.py': '--train 8 --val 4 --size 48'.split(),
    'tools/make_digits.py': '--train 8 --val 4 --size 64'.split(),
    'tools/train.py': [
        '--cfg-options',
        *NO_WORKERS,
        'default_hooks.checkpoint.interval=2',
        'train_cfg.val_interval=2',
    ],
    'tools/test.py': ['--cfg-options', *NO_WORKERS],
    'tools/check_data.py': [
        '--cfg-options',
        *NO_WORKERS,
        'model.num_queries=10',
        'train_dataloader.dataset.pipeline.3.scale=(64,64)',
        'val_dataloader.dataset.pipeline.1.scale=(64,64)',
    ],
    'tools/visualize_attention.py': ['--best', '1'],
}


def blocks(page):
    """Language, comment and content of every block."""
    return [(language, comment, code) for comment, language, code in BLOCK.findall(PAGES[page])]


def shorten(words):
    added = SHORTER.get(words[1], [])
    if words[1] != 'tools/train.py' or QUICKSTART in words:
        return words + added
    # Configs of the head-to-head count iterations.
    unit = 'iters' if 'conditional_smca.py' in words else 'epochs'
    return words + added + [f'train_cfg.max_{unit}=1']


class Checkout:
    """A folder with what a checkout has, on generated data."""

    def __init__(self, folder):
        self.folder = folder
        for name in ('configs', 'tools', 'docs'):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__')
            )

    def run_page(self, page):
        """Run the blocks of a page in order; a failure shows its output."""
        said = []
        for number, (language, comment, code) in enumerate(blocks(page)):
            if language not in COMMAND_LANGUAGES or comment.startswith(('not run', 'run by')):
                continue
            if comment.startswith('file: '):
                (self.folder / comment.removeprefix('file: ')).write_text(code)
            elif language == 'python':
                script = f'{Path(page).stem}_{number}.py'
                (self.folder / script).write_text(code)
                said.append(self.run(['python', script]))
            else:
                lines = code.replace('\\\n', ' ').splitlines()
                said += [self.run(shlex.split(line, comments=True)) for line in lines]
        return '\n'.join(said)

    def run(self, words):
        environment = {}
        while '=' in words[0]:
            name, value = words.pop(0).split('=')
            environment[name] = value
        if words[0] == 'cp':
            shutil.copy(self.folder / words[1], self.folder / words[2])
            return ''
        assert words[0] == 'python', f'{words}: not known how to run'
        _, path, *arguments = shorten(words)
        done = run_python(path, *arguments, cwd=self.folder, timeout=600, **environment)
        return done.stdout + done.stderr


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """Where the first page has been followed, with what the others take for granted."""
    checkout = Checkout(tmp_path_factory.mktemp('checkout'))
    checkout.said = checkout.run_page(START)
    write_own_data(checkout.folder / 'data' / 'mine')
    # Of a converted detector, COCO's classifier is enough here.
    weight = torch.zeros(80, 256)
    checkpoint_files.write(
        {'bbox_head.cls_branches.0.weight': weight}, checkout.folder / 'start.pth'
    )
    return checkout


def write_own_data(folder):
    """What custom_data.md starts from: two categories below a parent, and a file to split."""
    Shapes(num_train=4, num_val=2, size=48).write(folder)
    for split in ('train', 'val'):
        path = folder / 'annotations' / f'instances_{split}.json'
        content = json.loads(path.read_text())
        content['categories'] = [
            dict(id=i, name=name) for i, name in enumerate(('hardware', 'bolt', 'nut'))
        ]
        for annotation in content['annotations']:
            annotation['category_id'] = annotation['category_id'] % 2 + 1
        shutil.copytree(folder / split, folder / 'images' / split)
        for image in content['images']:
            image['file_name'] = f'{split}/{image["file_name"]}'
        path.with_name(f'{split}.json').write_text(json.dumps(content))
        path.unlink()
    shutil.copy(folder / 'annotations' / 'train.json', folder / 'result.json')


@pytest.mark.parametrize('page', sorted(PAGES))
def test_every_block_is_run_or_says_why_not(page):
    text = PAGES[page]
    assert len(blocks(page)) == text.count('\n```') / 2, 'a block is indented or has no end'
    outside = BLOCK.sub('', text)
    assert not re.search(r'^(    |\t)(python|mim|make|pip|torchrun) ', outside, re.MULTILINE)
    for language, comment, code in blocks(page):
        assert language in COMMAND_LANGUAGES + OTHER_LANGUAGES
        if language in COMMAND_LANGUAGES and comment:
            kind = re.fullmatch(r'not run: \w.+|file: \S+|run by (tests/[\w/]+\.py)', comment)
            assert kind, f'{comment}: unknown'
            if kind[1]:
                test = (ROOT / kind[1]).read_text()
                tools = re.findall(r'tools/(\w+\.py)', code)
                assert page in test or all(tool in test for tool in tools)


def test_links_of_readme_lead_somewhere():
    # Those of the other pages are MkDocs' to check.
    links = re.findall(r'\]\((?!\w+:)([^)#]+)', PAGES['README.md'])
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_start(checkout):
    assert 'coco/bbox_mAP:' in checkout.said
    assert (checkout.folder / 'detections' / 'vis' / '000000.png').exists()
    # Label, score and box, as the page prints them.
    assert re.search(r'^\d 0\.\d+ \[.*\]$', checkout.said, re.MULTILINE)


def test_quotes():
    template = (ROOT / 'configs/own_data/smca-dino_r50_own-data.py').read_text()
    (lines,) = [code for _, _, code in blocks('custom_data.md') if 'load_from' in code]
    assert lines in template
    with pytest.raises(ValueError) as info:
        SpatialPrior(scale='round')
    assert str(info.value) in PAGES['configs.md']


@pytest.mark.parametrize(
    'page',
    [
        pytest.param(page, marks=[] if page in QUICK else pytest.mark.slow)
        for page in sorted(PAGES.keys() - {START})
    ],
)
def test_page_runs(page, checkout):
    checkout.run_page(page)


@pytest.mark.slow
def test_site_is_built_without_warnings_and_network(tmp_path):
    run_python('-m', 'mkdocs', 'build', '--strict', '--site-dir', tmp_path, cwd=ROOT)
    for path in tmp_path.rglob('*.html'):
        loaded = LOADED.findall(path.read_text())
        assert loaded
        assert not [url for url in loaded if url.startswith(('http:', 'https:', '//'))], path

    api = (tmp_path / 'api.html').read_text()
    documented = set(re.findall(r'id="(mmsmca[\w.]*)"', api))
    for path in (ROOT / 'mmsmca').rglob('*.py'):
        module = '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
        # __main__ is a command, which the page on troubleshooting describes.
        assert module in documented or path.stem in ('__init__', '__main__'), module
    assert 'mmsmca.models.layers.spatial_prior.SpatialPrior' in documented
    # Formulas are pictures, and Sphinx's markup is translated.
    assert r'alt="C = softmax(K^T Q / \sqrt{k} + \log G) V' in api
    assert not re.search(r'\.\. math::|:\w+:<code>|:(class|func|mod|meth|data|math):', api)
