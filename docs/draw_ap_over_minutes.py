"""Draw AP over training minutes, from nothing and from a DINO.

``python docs/draw_ap_over_minutes.py`` reads docs/results and writes
docs/figures/ap_over_minutes.png. Minutes are iterations times the calibrated time per iteration.
"""

import json
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use('agg')
from matplotlib import pyplot as plt  # noqa: E402

from mmsmca.studies.report.figures import COLOURS, STYLE  # noqa: E402

DOCS = Path(__file__).parent
RESULTS = DOCS / 'results'
IMITATION, IMAGES = 2000, 200  # iterations, and images of the fits


def curve(study: str, experiment: str) -> tuple[pd.DataFrame, set[int]]:
    """Mean, lowest and highest AP of an experiment's runs by iteration, and their seeds."""
    report = json.loads((RESULTS / study / 'report.json').read_text())
    (points,) = (row['curve'] for row in report['numbers'] if row['name'] == experiment)
    seeds = {run['seed'] for run in report['runs'] if run['experiment'] == experiment}
    return pd.DataFrame(points)[['iteration', 'AP', 'lowest', 'highest']], seeds


def main() -> None:
    """Draw and save the figure."""
    calibration = json.loads((RESULTS / 'from_dino/calibration.json').read_text())
    seconds = {name: measured['median'] for name, measured in calibration['seconds'].items()}
    converted = pd.read_csv(RESULTS / 'from_dino/conversions.csv').query(
        "data == 'shapes' and attention == 'prior fitted' and refitted "
        'and fit_images == @IMAGES and imitation in (0, @IMITATION)'
    )
    fits = IMAGES * seconds['fits, per image']
    nothing, further = 'smca_dino_shapes/1500-iterations', 'from_dino_shapes'
    lines = (
        ('DINO from nothing', nothing, 'dino-qfl', 'dino', '', 0.0),
        ('SMCA-DINO from nothing', nothing, 'smca-dino', 'smca-dino', '', 0.0),
        ("SMCA-DINO from DINO, DINO's encoder", further, 'smca-dino-deformable-600',
         'smca-dino-deformable', 'dino', fits),
        ('SMCA-DINO from DINO, own encoder', further, 'smca-dino-600', 'smca-dino', 'own',
         fits + IMITATION * seconds['imitation']),
    )  # fmt: skip
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(figsize=(7, 4), layout='constrained')
    for line, colour in zip(lines, COLOURS, strict=False):
        label, study, experiment, detector, encoder, before = line
        points, seeds = curve(study, experiment)
        if encoder:
            aps = converted[(converted.encoder == encoder) & converted.seed.isin(seeds)].AP
            points.loc[-1] = (0, aps.mean(), aps.min(), aps.max())
            points = points.sort_values('iteration')
        minutes = (before + points.iteration * seconds[detector]) / 60
        axes.fill_between(
            minutes, 100 * points.lowest, 100 * points.highest, color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(minutes, 100 * points.AP, 'o-', color=colour, markersize=4, label=label)
    axes.set(xlabel='minutes on one core', ylabel='box AP', xlim=(0, None), ylim=(0, None))
    axes.legend(loc='lower right')
    figure.savefig(DOCS / 'figures/ap_over_minutes.png')


if __name__ == '__main__':
    main()
