"""Progress of the runs of a sweep, as a table."""

from datetime import timedelta

from rich.table import Table

from .record import Run
from .report.logs import read_log
from .sweep import Sweep

STYLES = {'finished': 'green', 'running': 'bold', 'failed': 'red', 'cut off': 'yellow'}


class SweepProgress:
    """Live view of a sweep; rich renders it at every refresh.

    Args:
        sweep: The sweep.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._finished: dict[str, tuple[str, str, str, str]] = {}  # Their logs do not change.

    def __rich__(self) -> Table:
        table = Table(title=f'{self.sweep.study.name}: {self.summary()}', title_justify='left')
        table.add_column('experiment', overflow='fold')
        for column in ('seed', 'state', 'progress', 'loss', 'AP so far', 'time left'):
            table.add_column(column, justify='left' if column == 'state' else 'right')
        for run in self.sweep.runs:
            state = self.sweep.state_of(run)
            cells = ('', '', '', '') if state in ('new', 'queued') else self._figures(run, state)
            style = STYLES.get(state, 'dim')
            table.add_row(run.experiment, str(run.seed), state, *cells, style=style)
        return table

    def summary(self) -> str:
        """Number of runs in each state, on one line."""
        states = [self.sweep.state_of(run) for run in self.sweep.runs]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        return ', '.join(f'{count} {state}' for state, count in counts.items())

    def _figures(self, run: Run, state: str) -> tuple[str, str, str, str]:
        if run.dir in self._finished:
            return self._finished[run.dir]
        train_cfg = run.cfg.train_cfg if run.cfg else {}
        log = read_log(self.sweep.dir_of(run), train_cfg)
        found = log.evaluations[-1].metrics['AP'] if log.evaluations else None
        progress, loss, ap, eta = '', '', '' if found is None else f'{found:.3f}', ''
        if 'loss' in log.last:
            loss = f'{log.last["loss"]:.2f}'
            step, total = log.last['step'], run.length or 0
            if 'max_epochs' in train_cfg:
                progress = f'epoch {log.last["epoch"]}/{total}'
                left = log.epoch_length and total * log.epoch_length - step
            else:
                progress, left = f'{step}/{total}', total - step
            if state == 'running' and left is not None:
                eta = str(timedelta(seconds=round(left * log.last.get('time', 0))))
        if state == 'finished':
            self._finished[run.dir] = progress, loss, ap, eta
        return progress, loss, ap, eta
