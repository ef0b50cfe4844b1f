"""The record of a study and its runs: dataclasses that sweeps write as JSON and reports read."""

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from mmengine.config import Config

from mmsmca.errors import UserError
from mmsmca.files import read_json, write_json

STUDY = 'study.json'
RUN = 'run.json'
CALIBRATION = 'calibration.json'
T = TypeVar('T')


class StudyError(UserError):
    """A study that cannot be run or reported on. The message names file, key and remedy."""


@dataclass(frozen=True)
class Budget:
    """How long runs train.

    Attributes:
        iterations: Iterations of every experiment, or of the one that ``time_of`` names.
        time_of: Experiment whose training time all get; None: all train for ``iterations``.
    """

    iterations: int
    time_of: str | None = None

    @property
    def name(self) -> str:
        """Name of the budget, used as a folder name."""
        if self.time_of is None:
            return f'{self.iterations}-iterations'
        return f'time-of-{self.iterations}-iterations-of-{self.time_of}'

    @property
    def title(self) -> str:
        """Description of the budget for readers."""
        if self.time_of is None:
            return f'{self.iterations:,} iterations each'
        return f'the training time of {self.iterations:,} iterations of {self.time_of}'


@dataclass(frozen=True)
class Experiment:
    """One configuration of a study.

    Attributes:
        name: Name, unique in the study and used as a folder name.
        configs: Paths of the config files; each is merged over the previous ones.
        cfg_options: Config overrides: values by dotted key.
        published: Config whose published results are shown beside this experiment's, or None.
    """

    name: str
    configs: list[str]
    cfg_options: dict[str, Any]
    published: str | None = None


@dataclass(frozen=True)
class Run:
    """One experiment with one seed.

    Attributes:
        experiment: Name of the experiment.
        seed: Seed of all random number generators.
        id: Digest of the resolved config, seed included: any change to the experiment, the config
            files or their bases makes a new run. Empty while the run's length is unknown.
        budgets: Names of the budgets that the schedule is fitted to, several if they give the same
            length. Empty: the schedule is the config's.
        cfg: Resolved config; not written to the JSON.
    """

    experiment: str
    seed: int
    id: str
    budgets: list[str]
    cfg: Config | None = field(default=None, repr=False, compare=False)

    @property
    def dir(self) -> str:
        """Folder of the run, relative to the study's."""
        return f'{self.experiment}/seed{self.seed}-{self.id}'

    @property
    def length(self) -> int | None:
        """Number of epochs or iterations to train; None if unknown."""
        train_cfg = self.cfg.get('train_cfg', {}) if self.cfg else {}
        return train_cfg.get('max_epochs', train_cfg.get('max_iters'))


@dataclass(frozen=True)
class Study:
    """Experiments to compare, with their seeds and budgets.

    Attributes:
        name: Name of the study's file without suffix.
        baseline: Name of the experiment that the others are compared with.
        experiments: Experiments in the order of the file.
        seeds: Seeds; every experiment is trained once with each.
        budgets: Budgets; every experiment is trained with each. Empty: the configs' schedules.
        chosen: Statement of what was chosen on which data; may be empty.
        runs: All experiments with the first seed, then with the second, and so on, so that even an
            unfinished study compares all experiments.
    """

    name: str
    baseline: str
    experiments: list[Experiment]
    seeds: list[int]
    budgets: list[Budget]
    chosen: str
    runs: list[Run]

    def write(self, work_dir: Path) -> None:
        """Write ``study.json``, which says which runs belong to the study as currently defined."""
        write_json(work_dir / STUDY, to_json(self))

    @classmethod
    def read(cls, work_dir: Path) -> 'Study | None':
        """Read the study whose runs are in a folder; None if there is no ``study.json``.

        Raises:
            StudyError: If ``study.json`` cannot be read.
        """
        path = work_dir / STUDY
        if not path.exists():
            return None
        try:
            return from_json(cls, read_json(path) or {})
        except (KeyError, TypeError) as error:
            raise StudyError(
                f'{path} cannot be read ({type(error).__name__}: {error}): run the study again '
                'to rewrite it, or move it away to report on the runs without it'
            ) from error


@dataclass
class Attempt:
    """One start of a run's training.

    Attributes:
        started: Start time (ISO 8601, UTC).
        git: Git revision of the config's repository.
        versions: Versions of Python and of the packages that affect what a run computes.
        hardware: Processor, cores and GPUs.
        exit_code: Exit code of the training; None while it runs or if its supervisor was killed.
    """

    started: str | None = None
    git: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


@dataclass
class RunRecord:
    """Description of a run, written to its folder before it starts.

    Attributes:
        study: Name of the study.
        experiment: The experiment.
        seed: Seed of the run.
        id: Digest of the resolved config, see :class:`Run`.
        world_size: Number of processes (GPUs) that train the run.
        attempts: Attempts, each written by its own process.
    """

    study: str
    experiment: Experiment
    seed: int
    id: str
    world_size: int
    attempts: list[Attempt] = field(default_factory=list)

    def write(self, run_dir: Path) -> None:
        """Write the record, and keep other attempts already recorded in the folder."""
        ours = {attempt.started for attempt in self.attempts}
        self.attempts = [a for a in read_attempts(run_dir) if a.started not in ours] + self.attempts
        write_json(run_dir / RUN, to_json(self))


def read_attempts(run_dir: Path) -> list[Attempt]:
    """Read the attempts of a run; empty if its record is missing or broken."""
    try:
        return from_json(list[Attempt], (read_json(run_dir / RUN) or {})['attempts'])
    except (KeyError, TypeError):
        return []


def to_json(record: Any) -> Any:
    """Convert a record for JSON: dataclasses become dicts of their fields, without configs."""
    if is_dataclass(record):
        return {f.name: to_json(getattr(record, f.name)) for f in fields(record) if f.compare}
    if isinstance(record, dict):
        return {key: to_json(value) for key, value in record.items()}
    return [to_json(value) for value in record] if isinstance(record, list) else record


def from_json(kind: type[T], content: Any) -> T:
    """Invert :func:`to_json` for a dataclass, or for a list or dict of dataclasses.

    Raises:
        KeyError: If a field is unknown.
        TypeError: If a field is missing.
    """
    kinds: Any = get_args(kind)
    read: Any = content
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        read = kind(**{name: from_json(hints[name], value) for name, value in content.items()})
    elif get_origin(kind) is list:
        read = [from_json(kinds[0], value) for value in content]
    elif get_origin(kind) is dict:
        read = {key: from_json(kinds[1], value) for key, value in content.items()}
    return read
