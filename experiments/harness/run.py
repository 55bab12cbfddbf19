"""One experiment from start to end: data, every arm in a process of its own, the table, the figures."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.arm_pool import arms_at_once, prepare_processes, run_arms, threads_per_arm
from experiments.harness.arm_process import ArmTask, Outcome, read_outcome
from experiments.harness.checkpoints import differing_fields
from experiments.harness.configuration import ExperimentConfig, fingerprint, flattened, plain_values
from experiments.harness.figures import draw_experiment
from experiments.harness.prepared_data import prepare_data
from experiments.harness.report import ArmResult, chance_line, result_table

INTERRUPTED = 130
CONFIG_FILE = "config.json"
TOKENS_OF_PRETRAINED_WEIGHTS = (
    "the conversations are tokenised by their own BPE, not by the checkpoint's tokenizer: its text embeddings start as "
    "those of other words. Sizes, memory and speed are the checkpoint's; loss and recall say nothing of its pretraining"
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where and how an experiment runs: nothing here changes its result.

    command: the command line without --resume, for messages. is_adhoc: fields were changed by hand.
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


def run_experiment(config: ExperimentConfig, options: RunOptions) -> int:
    """Runs the chosen arms, as many at once as there are cores, and prints what came out. Gives the exit code."""
    started = time.monotonic()
    folder = _run_folder(config, options)
    arms = options.arms or tuple(arm.name for arm in config.arms)
    uri = tracking.store_uri(options.runs_dir)
    tracking.prepare_store(uri)
    experiment_id = tracking.experiment_id_of(uri, config.recipe, options.runs_dir)
    prepare_processes()
    print(f"{config.recipe} at scale {config.scale}, seed {config.seed}: {len(arms)} arms -> {folder}", flush=True)
    data = prepare_data(config, options.data_dir, skips_bad_audio=options.skips_bad_audio)

    if options.weights is not None:
        print(f"note: {TOKENS_OF_PRETRAINED_WEIGHTS}", flush=True)
    tasks = [
        ArmTask(
            config=config,
            arm=arm,
            folder=folder / arm,
            tracking_uri=uri,
            experiment_id=experiment_id,
            data=data,
            weights=options.weights,
            resumes=options.resumes,
            is_adhoc=options.is_adhoc,
            threads=threads_per_arm(config),
            line=line,
        )
        for line, arm in enumerate(arms)
    ]
    interrupted = run_arms(tasks, arms_at_once(config))
    outcomes = {arm: read_outcome(folder / arm) for arm in arms}
    _report(config, folder, uri, experiment_id, outcomes, data.left_out)
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    if interrupted:
        print(f"interrupted and saved; go on with:\n  {options.command} --resume", flush=True)
        return INTERRUPTED
    all_finished = all(outcome is not None and outcome.status == "FINISHED" for outcome in outcomes.values())
    return 0 if all_finished else 1


def _run_folder(config: ExperimentConfig, options: RunOptions) -> Path:
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


def _report(
    config: ExperimentConfig,
    folder: Path,
    uri: str,
    experiment_id: str,
    outcomes: dict[str, Outcome | None],
    left_out: Sequence[str],
) -> None:
    """Prints the table and where to look; draws the figures and attaches them to every run."""
    results, curves = [], {}
    for arm, outcome in outcomes.items():
        run_id = None if outcome is None else outcome.run_id
        run = None if run_id is None else tracking.read_run(uri, run_id)
        curves[arm] = {} if run_id is None else _curves(uri, run_id)
        losses = curves[arm].get(names.VALIDATION_TEXT_LOSS, [])
        untrained = losses[0][1] if losses and losses[0][0] == 0 else None
        results.append(ArmResult(arm=arm, run=run, untrained_loss=untrained))
    edges = config.evaluation.position_edges, config.evaluation.distance_edges
    metrics = {result.arm: result.run.metrics for result in results if result.run is not None}
    figures = draw_experiment(folder / "figures", metrics, curves, *edges) if metrics else []
    table = "\n".join(filter(None, [result_table(results, *edges), chance_line(results)]))
    (folder / "table.txt").write_text(table + "\n")
    for result in results:
        if result.run is not None:
            tracking.attach_files(uri, result.run.run_id, [*figures, folder / "table.txt"], "experiment")
    print(f"\n{table}\n")
    if left_out:
        print("left out, unreadable audio:", *left_out, sep="\n  ")
    print(f"MLflow: {tracking.how_to_open(uri, experiment_id)}")
    print("figures:", *figures, *sorted(folder.glob("*/figures/*.png")), sep="\n  ")
    print("samples:", *sorted(folder.glob("*/sample*")), sep="\n  ", flush=True)


def _curves(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    wanted = (
        names.VALIDATION_TEXT_LOSS, names.VALIDATION_CTC_LOSS, names.RECALL_ALL, names.RECALL_VALUE_LOSS,
        names.TRAIN_TEXT_LOSS, names.TRAIN_GRADIENT_NORM,
    )  # fmt: skip
    return {name: tracking.read_history(uri, run_id, name) for name in wanted}
