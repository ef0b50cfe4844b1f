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
        iterations: Of every experiment, or of the one that ``time_of`` names.
        time_of: Name of the experiment whose training time all get; None: all get the iterations.
    """

    iterations: int
    time_of: str | None = None

    @property
    def name(self) -> str:
        """Names a folder."""
        if self.time_of is None:
            return f'{self.iterations}-iterations'
        return f'time-of-{self.iterations}-iterations-of-{self.time_of}'

    @property
    def title(self) -> str:
        """For readers."""
        if self.time_of is None:
            return f'{self.iterations:,} iterations each'
        return f'the training time of {self.iterations:,} iterations of {self.time_of}'


@dataclass(frozen=True)
class Experiment:
    """One configuration of a study.

    Attributes:
        name: Unique in the study; the name of a folder.
        configs: Paths of its config files, each merged over those before it.
        cfg_options: What is changed in the config: dotted keys and their values.
        published: The config whose published figures belong beside this one's, or None.
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
        seed: Seed of everything random.
        id: Digest of the resolved config, seed included: a change of the experiment, the config
            files or their bases makes another run. Empty while the run's length is unknown.
        budgets: Names of the budgets that its schedule is fitted to, several if they come to the
            same; none: the schedule is the config's.
        cfg: The resolved config. It is not part of the JSON.
    """

    experiment: str
    seed: int
    id: str
    budgets: list[str]
    cfg: Config | None = field(default=None, repr=False, compare=False)

    @property
    def dir(self) -> str:
        """Folder of the run below the study's."""
        return f'{self.experiment}/seed{self.seed}-{self.id}'

    @property
    def length(self) -> int | None:
        """Epochs or iterations that it trains; None if that is not known."""
        train_cfg = self.cfg.get('train_cfg', {}) if self.cfg else {}
        return train_cfg.get('max_epochs', train_cfg.get('max_iters'))


@dataclass(frozen=True)
class Study:
    """Experiments that are compared.

    Attributes:
        name: The file's name without its suffix.
        baseline: Name of the experiment that the others are compared with.
        experiments: In the order of the file.
        seeds: Every experiment is trained once with each.
        budgets: And with each of these; none: as its config says.
        chosen: What was chosen on which data; may be empty.
        runs: The experiments with the first seed, then with the second, and so on, so that an
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
        """Say in a folder which runs belong to the study as it is defined now."""
        write_json(work_dir / STUDY, to_json(self))

    @classmethod
    def read(cls, work_dir: Path) -> 'Study | None':
        """The study whose runs lie in a folder; None if it is no study's.

        Raises:
            StudyError: If its file cannot be read.
        """
        path = work_dir / STUDY
        if not path.exists():
            return None
        try:
            return from_json(cls, read_json(path) or {})
        except (KeyError, TypeError) as error:
            raise StudyError(
                f'{path} cannot be read ({type(error).__name__}: {error}): run the study again, '
                'which writes it, or move it away to have the runs reported on without it'
            ) from error


@dataclass
class Attempt:
    """One start of a run's training.

    Attributes:
        started: When.
        git: Revision of the config's repository.
        versions: Of the packages that decide what a run computes.
        hardware: Processor, cores and GPUs.
        exit_code: Of the training; None while it runs, or if its process was killed.
    """

    started: str | None = None
    git: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


@dataclass
class RunRecord:
    """What runs in a folder, written there before it starts.

    Attributes:
        study: Name of the study.
        experiment: The experiment.
        seed: Its seed.
        id: Digest of its config.
        world_size: Processes (GPUs) that train it together.
        attempts: Every start, written by its own process.
    """

    study: str
    experiment: Experiment
    seed: int
    id: str
    world_size: int
    attempts: list[Attempt] = field(default_factory=list)

    def write(self, run_dir: Path) -> None:
        """Write it, with the attempts that the folder knows of besides these."""
        ours = {attempt.started for attempt in self.attempts}
        self.attempts = [a for a in read_attempts(run_dir) if a.started not in ours] + self.attempts
        write_json(run_dir / RUN, to_json(self))


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The attempts of a run; none of a folder that has no record, or a broken one."""
    try:
        return from_json(list[Attempt], (read_json(run_dir / RUN) or {})['attempts'])
    except (KeyError, TypeError):
        return []


def to_json(record: Any) -> Any:
    """What JSON holds of a record: the fields of its dataclasses by name, less their configs."""
    if is_dataclass(record):
        return {f.name: to_json(getattr(record, f.name)) for f in fields(record) if f.compare}
    if isinstance(record, dict):
        return {key: to_json(value) for key, value in record.items()}
    return [to_json(value) for value in record] if isinstance(record, list) else record


def from_json(kind: type[T], content: Any) -> T:
    """What :func:`to_json` was given: a dataclass, a list or a dict of some.

    Raises:
        KeyError: If a field is unknown.
        TypeError: If one is missing.
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
