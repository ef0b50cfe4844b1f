"""Draw docs/figures/architecture_{image,study}: ``python docs/draw_architecture.py``."""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use('agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyBboxPatch, Patch  # noqa: E402

FIGURES = Path(__file__).parent / 'figures'
OURS, THEIRS, FILES = '#cfe3f5', '#e9e9e9', '#fdf0cf'
LEGEND = {OURS: 'this package', THEIRS: 'MMDetection, MMEngine, mmcv', FILES: 'input and output'}


@dataclass
class Box:
    """A part, drawn as a box.

    Attributes:
        x: Its middle, in inches.
        y: Likewise.
        title: What it is.
        detail: Where it is, and what it does; lines.
        color: Whose it is.
        width: In inches. Defaults to 1.6.
        height: In inches. Defaults to 0.72.
    """

    x: float
    y: float
    title: str
    detail: str
    color: str
    width: float = 1.6
    height: float = 0.72

    def draw(self, axes: Axes) -> None:
        """Draw the box and its text."""
        corner = self.x - self.width / 2, self.y - self.height / 2
        axes.add_patch(
            FancyBboxPatch(
                corner,
                self.width,
                self.height,
                boxstyle='round,pad=0,rounding_size=0.06',
                facecolor=self.color,
                edgecolor='0.35',
                linewidth=0.8,
            )
        )
        top = self.y + self.height / 2 - 0.07
        axes.text(self.x, top, self.title, ha='center', va='top', fontsize=8.5, weight='bold')
        axes.text(self.x, top - 0.19, self.detail, ha='center', va='top', fontsize=7.5)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow between two places."""
    style = dict(arrowstyle='-|>', color='0.25', linewidth=1.1, shrinkA=0, shrinkB=0)
    axes.annotate('', end, start, arrowprops=style)


def join(axes: Axes, first: Box, second: Box, label: str = '') -> None:
    """Draw an arrow to the box beside another, or above or below it, with a label at its right."""
    if first.y == second.y:
        side = 0.5 if second.x > first.x else -0.5
        start, end = first.x + side * first.width, second.x - side * second.width
        draw_arrow(axes, (start, first.y), (end, first.y))
    else:
        side = 0.5 if second.y > first.y else -0.5
        start, end = first.y + side * first.height, second.y - side * second.height
        draw_arrow(axes, (first.x, start), (second.x, end))
        place = (first.x + second.x) / 2 + 0.06, (start + end) / 2
        axes.text(*place, label, ha='left', va='center', fontsize=7, style='italic')


def frame(axes: Axes, title: str, left: float, bottom: float, right: float, top: float) -> None:
    """Draw a dashed frame around what belongs together."""
    axes.add_patch(
        plt.Rectangle(
            (left, bottom), right - left, top - bottom, fill=False, linestyle='--', edgecolor='0.5'
        )
    )
    axes.text(left + 0.08, top - 0.07, title, ha='left', va='top', fontsize=8, color='0.3')


def canvas(height: float) -> Axes:
    """Axes in inches, 9.4 wide, with a legend of whose the boxes are below."""
    figure = plt.figure(figsize=(9.4, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 9.4), ylim=(0, height))
    axes.set_axis_off()
    patches = [
        Patch(facecolor=color, edgecolor='0.35', label=name) for color, name in LEGEND.items()
    ]
    axes.legend(handles=patches, loc='lower center', ncols=3, fontsize=8, frameon=False)
    return axes


def draw_image_flow() -> Axes:
    """From an image to boxes, with a decoder layer and its attention in detail."""
    axes = canvas(5.3)
    image = Box(0.85, 4.85, 'Image', 'JPEG, PNG', FILES, 1.3)
    pipeline = Box(2.75, 4.85, 'Pipeline', 'load, resize, flip,\npack', THEIRS)
    preprocessor = Box(4.75, 4.85, 'DetDataPreprocessor', 'normalise, pad to the\nlargest', THEIRS)
    backbone = Box(6.65, 4.85, 'ResNet', 'stages 3 to 5', THEIRS, 1.3)
    neck = Box(8.45, 4.85, 'ChannelMapper', '256 channels, one map\nper level', THEIRS)
    flatten = Box(
        8.45, 3.7, 'SMCADETR', 'detectors/: flattens levels,\npadding, positions', OURS, 1.7
    )
    encoder = Box(6.15, 3.7, 'Encoder', 'layers/: SMCA, convolutional,\nDeformable', OURS, 1.9)
    decoder = Box(3.85, 3.7, 'SMCADecoder', 'layers/decoder.py:\nsix layers', OURS)
    head = Box(1.95, 3.7, 'SMCAHead', 'dense_heads/', OURS, 1.3)
    found = Box(0.65, 3.7, 'Boxes', 'or losses', FILES, 0.8)
    first = (image, pipeline, preprocessor, backbone, neck)
    for left, right in zip(first, first[1:], strict=False):
        join(axes, left, right)
    join(axes, neck, flatten, 'maps')
    for right, left in ((flatten, encoder), (encoder, decoder), (decoder, head), (head, found)):
        join(axes, right, left)

    frame(axes, 'A decoder layer', 0.25, 1.8, 9.15, 3.1)
    prior = Box(1.4, 2.35, 'SpatialPrior', 'spatial_prior.py: offsets\nand scales', OURS, 1.8)
    own = Box(3.75, 2.35, 'SelfAttention', 'self_attention.py:\namong the queries', OURS, 1.7)
    co = Box(6.1, 2.35, 'CoAttention', 'attention.py: to the\ncells of every level', OURS, 1.8)
    ffn = Box(8.2, 2.35, 'FFN', 'mmcv', THEIRS, 1.2)
    for left, right in ((prior, own), (own, co), (co, ffn)):
        join(axes, left, right)
    axes.plot((3.4, 2.4), (3.34, 3.1), color='0.5', linestyle='--', linewidth=0.9)
    axes.plot((4.3, 6.2), (3.34, 3.1), color='0.5', linestyle='--', linewidth=0.9)

    folded = Box(4.6, 1.0, 'folded_attention', 'attention.py:\nprior as channels', OURS, 1.8)
    explicit = Box(7.6, 1.0, 'explicit_attention', 'attention.py:\nprior as bias', OURS, 1.8)
    fused = Box(1.5, 1.0, 'Fused kernel', "PyTorch's plain\nattention", THEIRS, 1.8)
    for start, end in ((co, explicit), (co, folded), (folded, fused)):
        join(axes, start, end)
    draw_arrow(axes, (own.x - 0.4, own.y - 0.36), (fused.x + 0.5, fused.y + 0.36))
    boxes = [*first, flatten, encoder, decoder, head, found, prior, own, co, ffn]
    for box in [*boxes, folded, explicit, fused]:
        box.draw(axes)
    return axes


def draw_study_flow() -> Axes:
    """From configs to a report; a single training is the part in the middle."""
    axes = canvas(5.3)
    bases = Box(1.2, 4.75, 'Config', 'configs/: inherits\nmmdet::, _base_/', FILES)
    study = Box(1.2, 3.45, 'Study', 'configs/studies/:\nexperiments, seeds', FILES, 1.7)
    sweep = Box(
        1.2,
        2.0,
        'Sweep',
        'tools/sweep.py, studies/:\none process per run,\nlocal or on Slurm',
        OURS,
        1.8,
        0.86,
    )
    train = Box(3.7, 4.75, 'tools/train.py', 'or mim train', OURS)
    check = Box(3.7, 3.45, 'Preflight', 'checks/: does it fit?', OURS, 1.8)
    runner = Box(3.7, 2.0, 'Runner', "MMEngine's; our hooks\nfrom engine/", THEIRS, 1.7)
    work = Box(6.1, 2.0, 'work_dirs/', 'checkpoints, logs,\nrun.json, result.json', FILES, 1.7)
    read = Box(6.1, 3.45, 'Read', 'studies/report/: runs\nand their logs', OURS, 1.7)
    numbers = Box(8.3, 3.45, 'Numbers', 'statistics: means,\ndifferences, paired', OURS, 1.6)
    report = Box(8.3, 2.0, 'Report', 'report.md, .csv, .tex,\n.json and curves', FILES, 1.6)
    single = Box(
        6.1, 0.95, 'Draw, convert, export', 'visualization/, checkpoints/,\ndeployment/', OURS, 2.0
    )
    join(axes, bases, train)
    join(axes, bases, study)
    join(axes, study, sweep)
    join(axes, train, check)
    join(axes, check, runner, 'or an error in one line')
    join(axes, runner, work)
    join(axes, work, single)
    join(axes, work, read)
    join(axes, read, numbers)
    join(axes, numbers, report)
    draw_arrow(axes, (sweep.x + 0.9, 2.2), (train.x - 0.8, 4.5))
    for box in (
        bases,
        study,
        sweep,
        train,
        check,
        runner,
        work,
        read,
        numbers,
        report,
        single,
    ):
        box.draw(axes)
    return axes


def main() -> None:
    """Draw and save both."""
    plt.rcParams.update({'svg.hashsalt': 'mmsmca'})
    for name, draw in (('image', draw_image_flow), ('study', draw_study_flow)):
        figure = draw().figure
        for suffix, metadata in (('png', None), ('svg', {'Date': None})):
            path = FIGURES / f'architecture_{name}.{suffix}'
            figure.savefig(path, dpi=100, metadata=metadata)


if __name__ == '__main__':
    main()
