"""What the harness asks of an experiment: a frozen configuration with rows (arms), and three functions that do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from experiments.harness.data_source import DataSource, no_data
from experiments.harness.outcomes import Outcome
from experiments.harness.stopping import StopRequest
from experiments.harness.tracking import LoggedRun, RunLogger

Scale = Literal["smoke", "cpu", "gpu", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "gpu", "full")


class Experiment(Protocol):
    """A frozen dataclass with every number that changes the result."""

    @property
    def recipe(self) -> str: ...

    @property
    def scale(self) -> Scale: ...

    @property
    def seed(self) -> int: ...

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds, the experiment's own first."""
        ...

    def seeds_of(self, arm: str) -> tuple[int, ...]:
        """Those of `seeds` that the arm is run with: all, or the first alone where nothing in it is drawn."""
        ...

    @property
    def arm_names(self) -> tuple[str, ...]: ...

    def starts_from(self, arm: str) -> str | None:
        """The arm whose end this one begins with, of the same seed; None begins with random weights."""
        ...

    def with_seed(self, seed: int) -> Self:
        """The same experiment with that seed and no other."""
        ...

    def with_weights(self, digest: str) -> Self:
        """The same experiment on a pretrained checkpoint. Raises ValueError where nothing pretrained can be used."""
        ...

    def of_arm(self, name: str) -> dict[str, Any]:
        """Everything one arm's result depends on, as plain values. Raises ValueError for a name that is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how an experiment runs: nothing here changes its result.

    command: the command line without --resume, for messages. is_adhoc: fields were changed by hand, or own data is
    read. own_data: of --data, a prepared set's name or path.
    start_run, start_limits: of --from and --start-limit. start_folder: of the arm that was found, where a study starts
    from an earlier run.
    """

    runs_dir: Path
    data_dir: Path
    run_dir: Path | None
    resumes: bool
    arms: tuple[str, ...]
    weights: Path | None
    skips_bad_audio: bool
    is_adhoc: bool
    command: str
    own_data: str | None = None
    start_run: str | None = None
    start_limits: tuple[str, ...] = ()
    start_folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ArmTask:
    """Everything an arm's process is told. The configuration is what it is; the rest is where and how.

    config: with the seed of this task. folder: this arm's own. start_folder: of the arm that this one starts from.
    start_limits: what that one may have shown at most.
    data: what the study's `prepare` gave. data_sources: what is logged of it. threads: cores it may use. line: of the
    terminal that its progress bar takes.
    """

    study: Study
    config: Any
    arm: str
    folder: Path
    start_folder: Path | None
    tracking_uri: str
    experiment_id: str
    parent_run_id: str
    data: Any
    data_sources: tuple[DataSource, ...]
    weights: Path | None
    resumes: bool
    is_adhoc: bool
    start_limits: tuple[str, ...] = ()
    threads: int
    line: int

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.folder.name


@dataclass(frozen=True, kw_only=True)
class ArmWork:
    """What a study's `run_arm` works with: the task, the arm's open MLflow run, and the wish to stop."""

    task: ArmTask
    logger: RunLogger
    stop: StopRequest


@dataclass(frozen=True, kw_only=True)
class FinishedArm:
    """One arm and seed once its process has ended. outcome and run are None where it never came to that."""

    task: ArmTask
    outcome: Outcome | None
    run: LoggedRun | None

    @property
    def name(self) -> str:
        return self.task.arm

    @property
    def seed(self) -> int:
        return self.task.config.seed


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is made of all arms: a table to print, files for the parent run (figures, tables), and its own metrics.

    notes: lines printed under the table.
    """

    table: str
    figures: Sequence[Path] = ()
    files: Sequence[Path] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    notes: Sequence[str] = ()


def nothing_shared(_config: Any, _options: RunOptions) -> None:
    """For studies whose arms draw what they read."""


def from_nothing(config: Any, options: RunOptions) -> tuple[Any, RunOptions]:
    """For studies that start from no earlier run."""
    if options.start_run is not None:
        raise ValueError(f"{config.recipe} starts from no earlier run; leave out --from {options.start_run}")
    return config, options


@dataclass(frozen=True, kw_only=True)
class Study:
    """How experiments of one kind are done. The functions stand at the top of modules: processes find them by name.

    begin: settles what the configuration takes from the store, the earlier run that it starts from.
    prepare: what all arms share, built once by the parent process. run_arm: all that one arm does, in a process of its
    own. report: what is made of the finished arms, given the folder for its files.
    data_sources: what is read, given the configuration and what `prepare` gave; logged with every run.
    on_recordings: the configuration on a prepared set of recordings in the place of its own data, given that one, the
    set's name or path, and the data cache; None for studies that read no recordings.
    preloads: modules that every arm's process needs, imported once for all of them.
    """

    run_arm: Callable[[ArmWork], None]
    report: Callable[[Any, Path, str, Sequence[FinishedArm]], Report]
    begin: Callable[[Any, RunOptions], tuple[Any, RunOptions]] = from_nothing
    prepare: Callable[[Any, RunOptions], Any] = nothing_shared
    data_sources: Callable[[Any, Any], tuple[DataSource, ...]] = no_data
    on_recordings: Callable[[Any, str, Path], Any] | None = None
    preloads: tuple[str, ...] = ()
