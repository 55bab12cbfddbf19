"""One experiment from start to end: what all arms share, every arm in a process of its own, the table, the figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import tracking
from experiments.harness.arm_pool import arms_at_once, prepare_processes, run_arms, threads_per_arm
from experiments.harness.arm_process import CONFIG_FILE, RUN_FILE
from experiments.harness.checkpoints import differing_fields
from experiments.harness.data_source import DataSource
from experiments.harness.identity import fingerprint, flattened, plain_values
from experiments.harness.outcomes import read_outcome
from experiments.harness.study import ArmTask, Experiment, FinishedArm, Report, RunOptions, Study
from experiments.harness.system_metrics import machine_watched
from experiments.harness.tracking import RunIdentity, RunLogger, RunStatus

INTERRUPTED = 130
TABLE_FILE = "table.txt"


def run_experiment(config: Experiment, study: Study, options: RunOptions) -> int:
    """Runs the chosen arms, as many at once as there are cores, and prints what came out. Gives the exit code."""
    started = time.monotonic()
    config, options = study.begin(config, options)
    folder = _run_folder(config, options)
    uri = tracking.store_uri(options.runs_dir)
    tracking.prepare_store(uri)
    experiment_id = tracking.experiment_id_of(uri, config.recipe, options.runs_dir)
    prepare_processes(study)
    arms = with_starts(config, options.arms or config.arm_names)
    count = f"{len(arms)} arms" + (f" x {len(config.seeds)} seeds" if len(config.seeds) > 1 else "")
    print(f"{config.recipe} at scale {config.scale}, seed {config.seed}: {count} -> {folder}", flush=True)
    data = study.prepare(config, options)
    sources = study.data_sources(config, data)
    if config.scale != "smoke" and tracking.code_version()[1] != "false":
        print("note: this checkout has changes, or is none of git: the run will not count as evidence", flush=True)
    parent = _open_parent(config, folder, uri, experiment_id, sources, options)
    every = _tasks(
        config, study, config.arm_names, folder, (uri, experiment_id, parent.run_id), (data, sources), options
    )
    with machine_watched(uri, parent.run_id, config.scale, goes_on=options.resumes):
        interrupted = run_arms([task for task in every if task.arm in arms], arms_at_once(len(every)))
    finished = [_finished(task, uri) for task in every]
    # Arms that were neither asked for now nor run before are no part of the report, and the experiment is not whole.
    begun = [arm for arm in finished if arm.outcome is not None or arm.task.arm in arms]
    all_finished = all(arm.outcome is not None and arm.outcome.status == "FINISHED" for arm in begun)
    is_whole = len(begun) == len(finished)
    status: RunStatus = "KILLED" if interrupted else "FINISHED" if all_finished else "FAILED"
    parent.set_tag("has_every_arm", str(is_whole and all_finished).lower())
    _report(config, study, folder, (uri, experiment_id), parent, begun, status, is_whole and all_finished)
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    if interrupted:
        print(f"interrupted and saved; go on with:\n  {options.command} --resume", flush=True)
        return INTERRUPTED
    return 0 if all_finished else 1


def with_starts(config: Experiment, arms: Sequence[str]) -> tuple[str, ...]:
    """The given arms and all that they start from, in the experiment's order."""
    wanted: set[str] = set()
    for name in arms:
        start: str | None = name
        while start is not None:
            wanted.add(start)
            start = config.starts_from(start)
    return tuple(name for name in config.arm_names if name in wanted)


def _tasks(
    config: Experiment, study: Study, arms: Sequence[str], folder: Path, store: tuple[str, str, str],
    data: tuple[Any, tuple[DataSource, ...]], options: RunOptions,
) -> list[ArmTask]:  # fmt: skip
    """Every arm under every seed; all arms of a seed before those of the next, so that early results are whole."""
    uri, experiment_id, parent_run_id = store
    several = len(config.seeds) > 1
    threads = threads_per_arm(sum(len(config.seeds_of(arm)) for arm in arms))

    def place(arm: str, seed: int) -> Path:
        return folder / (f"{arm}-seed{seed}" if several and len(config.seeds_of(arm)) > 1 else arm)

    rows = [(arm, seed) for seed in config.seeds for arm in arms if seed in config.seeds_of(arm)]
    starts = {arm: config.starts_from(arm) for arm in arms}
    return [
        ArmTask(
            study=study,
            config=config.with_seed(seed),
            arm=arm,
            folder=place(arm, seed),
            start_folder=options.start_folder if (start := starts[arm]) is None else place(start, seed),
            tracking_uri=uri,
            experiment_id=experiment_id,
            parent_run_id=parent_run_id,
            data=data[0],
            data_sources=data[1],
            weights=options.weights,
            resumes=options.resumes,
            is_adhoc=options.is_adhoc,
            start_limits=options.start_limits,
            threads=threads,
            line=line,
        )
        for line, (arm, seed) in enumerate(rows)
    ]


def _open_parent(
    config: Experiment, folder: Path, uri: str, experiment_id: str, sources: tuple[DataSource, ...], options: RunOptions
) -> RunLogger:
    """The experiment's own run, under which its arms' runs are listed."""
    run_file = folder / RUN_FILE
    if options.resumes and run_file.is_file():
        return RunLogger.reopen(uri, json.loads(run_file.read_text())["run_id"])
    plain = plain_values(config)
    identity = RunIdentity(
        experiment=config.recipe, role="experiment", arm="", seed=config.seed, scale=config.scale,
        is_adhoc=options.is_adhoc, config_fingerprint=fingerprint(plain), parent_run_id=None, data_sources=sources,
    )  # fmt: skip
    logger = RunLogger.start(uri, experiment_id, identity, {})
    run_file.write_text(json.dumps({"run_id": logger.run_id}))
    logger.log_artifact(folder / CONFIG_FILE)
    return logger


def _finished(task: ArmTask, uri: str) -> FinishedArm:
    outcome = read_outcome(task.folder)
    run_id = None if outcome is None else outcome.run_id
    return FinishedArm(task=task, outcome=outcome, run=None if run_id is None else tracking.read_run(uri, run_id))


def _report(
    config: Experiment, study: Study, folder: Path, store: tuple[str, str], parent: RunLogger,
    finished: Sequence[FinishedArm], status: RunStatus, is_whole: bool,
) -> None:  # fmt: skip
    """Prints the table and where to look; attaches table, figures and other files to the parent run."""
    report = Report(table="no arm was run")
    try:
        report = study.report(config, folder, store[0], finished)
        (folder / TABLE_FILE).write_text(report.table + "\n")
        if is_whole:  # what was judged of a part of the arms would stand in for the whole
            parent.log_metrics(report.metrics)
        for path in (folder / TABLE_FILE, *report.files):
            parent.log_artifact(path)
        for path in report.figures:
            parent.log_artifact(path, "figures")
    except BaseException:
        parent.close("FAILED")
        raise
    parent.close(status)
    print(f"\n{report.table}\n")
    for note in report.notes:
        print(note)
    print(f"MLflow: {tracking.how_to_open(*store)}")
    print("figures:", *report.figures, *sorted(folder.glob("*/figures/*.png")), sep="\n  ", flush=True)


def _run_folder(config: Experiment, options: RunOptions) -> Path:
    """A new folder for this run, or the one it resumes.

    Raises:
        ValueError: nothing to resume, a folder of another configuration, or one that already holds a run.
    """
    plain = plain_values(config)
    if options.run_dir is not None:
        folder = options.run_dir
        known = folder / CONFIG_FILE
        if options.resumes and not known.is_file():
            raise ValueError(f"--resume: {folder} holds no run; start it without --resume")
        if not options.resumes and known.is_file():
            raise ValueError(f"{folder} already holds a run; add --resume to go on with it, or name another --run-dir")
        if known.is_file():
            _refuse_other_configuration(known, plain)
            return folder
    else:
        family = options.runs_dir / config.recipe / f"{config.scale}-seed{config.seed}"
        if options.resumes:
            return _latest_of(family, plain)
        folder = _unused(family / time.strftime("%Y%m%d-%H%M%S"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(plain, indent=1))
    return folder


def latest_folder(config: Experiment, options: RunOptions, is_ours: Callable[[dict[str, Any]], bool]) -> Path | None:
    """The folder that a resumed run may go on in: the one named, else the newest whose configuration is ours."""
    family = options.runs_dir / config.recipe / f"{config.scale}-seed{config.seed}"
    named = [options.run_dir / CONFIG_FILE] if options.run_dir is not None else sorted(family.glob(f"*/{CONFIG_FILE}"))
    same = [path.parent for path in named if path.is_file() and is_ours(json.loads(path.read_text()))]
    return same[-1] if same else None


def _unused(folder: Path) -> Path:
    number, candidate = 1, folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _latest_of(family: Path, plain: dict[str, object]) -> Path:
    earlier = sorted(path.parent for path in family.glob(f"*/{CONFIG_FILE}"))
    same = [folder for folder in earlier if json.loads((folder / CONFIG_FILE).read_text()) == plain]
    if same:
        return same[-1]
    if earlier:
        _refuse_other_configuration(earlier[-1] / CONFIG_FILE, plain)
    raise ValueError(f"--resume: there is no run under {family}; start one without --resume")


def _refuse_other_configuration(known: Path, plain: dict[str, object]) -> None:
    before = json.loads(known.read_text())
    if before != plain:
        changed = "; ".join(differing_fields(flattened(before), flattened(plain)))
        raise ValueError(
            f"{known.parent} was run with configuration {fingerprint(before)}, not {fingerprint(plain)}: {changed}. "
            "Resume with the same options, or start a new run without --resume"
        )
