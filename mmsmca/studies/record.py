"""The record of a study and its runs: what a study's file says and what sweeps write as JSON."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from mmengine.config import Config
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from mmsmca.errors import UserError
from mmsmca.files import read_json, write_json

STUDY = 'study.json'
RUN = 'run.json'
RESULT = 'result.json'
FAILED = 'failed.json'
CALIBRATION = 'calibration.json'
# Names become folder names.
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')


class StudyError(UserError):
    """A study that cannot be run or reported on. The message names file, key and remedy."""


class Record(BaseModel):
    """Base class: strict types, no unknown keys."""

    model_config = ConfigDict(extra='forbid', strict=True, arbitrary_types_allowed=True)


class Budget(Record):
    """How long runs train.

    Attributes:
        iterations: Iterations of every experiment, or of the one that ``time_of`` names.
        time_of: Experiment whose training time all get; None: all train for ``iterations``.
    """

    iterations: PositiveInt
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


class Experiment(Record):
    """One configuration of a study.

    Attributes:
        name: Name, unique in the study and used as a folder name.
        configs: Paths of the config files; each is merged over the previous ones. A study's file
            calls it ``config`` and may give a single one.
        cfg_options: Config overrides: values by dotted key.
    """

    name: str
    configs: list[str] = Field(validation_alias=AliasChoices('config', 'configs'), min_length=1)
    cfg_options: dict[str, Any] = {}

    @field_validator('name')
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(
                f'{name!r} must start with a letter or digit and consist of letters, digits, '
                "'.', '_' and '-': it becomes a folder name"
            )
        return name

    @field_validator('configs', mode='before')
    @classmethod
    def _exist(cls, configs: Any, info: ValidationInfo) -> Any:
        configs = [configs] if isinstance(configs, str) else configs
        if info.context is None or not isinstance(configs, list):
            return configs
        return [_config_path(str(config), info.context['file']) for config in configs]


def _config_path(config: str, study: Path) -> str:
    """Path of a config that a study's file names, relative to it or of a package."""
    try:
        path = os.path.normpath(Config._get_cfg_path(config, str(study))[0])
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(f'{config}: {error}') from error
    if not os.path.isfile(path):
        raise ValueError(f'{path} does not exist. The path is relative to the study')
    return path


class Run(Record):
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
    cfg: Config | None = Field(default=None, exclude=True, repr=False)

    @property
    def dir(self) -> str:
        """Folder of the run, relative to the study's."""
        return f'{self.experiment}/seed{self.seed}-{self.id}'

    @property
    def length(self) -> int | None:
        """Number of epochs or iterations to train; None if unknown."""
        train_cfg = self.cfg.get('train_cfg', {}) if self.cfg else {}
        return train_cfg.get('max_epochs', train_cfg.get('max_iters'))


class StudyFile(Record):
    """Content of a study's file.

    Attributes:
        baseline: Name of the experiment that the others are compared with.
        experiments: Experiments in the order of the file.
        seeds: Seeds; every experiment is trained once with each.
        budgets: Budgets; every experiment is trained with each. Empty: the configs' schedules.
        chosen: Statement of what was chosen on which data; may be empty.
    """

    baseline: str
    experiments: list[Experiment] = Field(min_length=1)
    seeds: list[Annotated[NonNegativeInt, Field(strict=True)]] = Field(min_length=1)
    budgets: list[Budget] = []
    chosen: str = ''

    @field_validator('experiments', 'seeds', 'budgets')
    @classmethod
    def _differ(cls, entries: list[Any]) -> list[Any]:
        names = [getattr(entry, 'name', entry) for entry in entries]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'{twice[0]!r} is listed twice. Remove one')
        return entries


class Study(StudyFile):
    """A study with its runs.

    Attributes:
        name: Name of the study's file without suffix.
        runs: All experiments with the first seed, then with the second, and so on, so that even an
            unfinished study compares all experiments.
        uncalibrated: Why the length of some runs is unknown; empty if it is not.
    """

    name: str
    runs: list[Run]
    uncalibrated: str = Field(default='', exclude=True)

    def write(self, work_dir: Path) -> None:
        """Write ``study.json``, which says which runs belong to the study as currently defined."""
        write_json(work_dir / STUDY, self.model_dump())

    @classmethod
    def read(cls, work_dir: Path) -> 'Study | None':
        """Read the study whose runs are in a folder; None if there is no ``study.json``."""
        path = work_dir / STUDY
        if not path.exists():
            return None
        try:
            return cls.model_validate(read_json(path) or {})
        except ValidationError as error:
            raise StudyError(
                f'{path} cannot be read ({first_error(error)}): run the study again to rewrite '
                'it, or move it away to report on the runs without it'
            ) from error


def first_error(error: ValidationError) -> str:
    """The first of a validation's errors on one line: key and what is wrong with it."""
    first = error.errors()[0]
    where = '.'.join(map(str, first['loc']))
    if first['type'] == 'extra_forbidden':
        models: dict[object, type[Record]] = {'experiments': Experiment, 'budgets': Budget}
        model = models.get(first['loc'][0], StudyFile)
        names = ', '.join(sorted(model.model_fields))
        return f'{where}: unknown key. Known: {names.replace("configs", "config")}'
    if first['type'] == 'missing':
        return f'{where}: this key is missing'
    return f'{where}: {first["msg"].removeprefix("Value error, ")}, not {first["input"]!r}'


class Attempt(Record):
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
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}
    exit_code: int | None = None


class RunRecord(Record):
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
    attempts: list[Attempt] = []

    def write(self, run_dir: Path) -> None:
        """Write the record, and keep other attempts already recorded in the folder."""
        ours = {attempt.started for attempt in self.attempts}
        self.attempts = [a for a in read_attempts(run_dir) if a.started not in ours] + self.attempts
        write_json(run_dir / RUN, self.model_dump())


def read_attempts(run_dir: Path) -> list[Attempt]:
    """The attempts of a run; empty if its record is missing or broken."""
    try:
        attempts = (read_json(run_dir / RUN) or {})['attempts']
        return [Attempt.model_validate(attempt) for attempt in attempts]
    except (KeyError, TypeError, ValidationError):
        return []
