"""How experiments on spoken conversations are done: the conversations, one arm, and what is made of all arms."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.data.spec import ConversationSpec
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.data_source import DataSource
from experiments.harness.study import ArmWork, FinishedArm, Report, RunOptions, Study
from experiments.recordings.curriculum import PieceSet
from experiments.recordings.named_sets import find_prepared
from experiments.spoken.backbone import folder_of, spoken_backbone
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.figures import draw_experiment, learning_panels
from experiments.spoken.prepared_data import ExperimentData, prepare_data
from experiments.spoken.recorded_plan import RecordedPlan
from experiments.spoken.recorded_stage1 import on_recordings, prepare_recorded
from experiments.spoken.report import SPEECH, ArmResult, chance_line, result_table
from experiments.spoken.training import train_arm

MOST_LINES = 10
TOKENS_OF_PRETRAINED_WEIGHTS = (
    "the conversations are tokenised by their own BPE, not by the checkpoint's tokenizer: its text embeddings start as "
    "those of other words. Sizes, memory and speed are the checkpoint's; loss and recall say nothing of its pretraining"
)


def prepare_conversations(config: SpokenExperiment, options: RunOptions) -> ExperimentData:
    """The conversations every arm is trained and measured on."""
    if isinstance(config.data, RecordedPlan):
        assert options.own_data is not None, "--data gave the plan"
        pieces, held_out = prepare_recorded(config, find_prepared(options.own_data, options.data_dir))
        data = ExperimentData(stages=(pieces,), validation=held_out, left_out=_left_out(pieces))
    else:
        data = prepare_data(config, options.data_dir, skips_bad_audio=options.skips_bad_audio)
    if options.weights is not None:
        print(f"note: {TOKENS_OF_PRETRAINED_WEIGHTS}", flush=True)
    return data


def conversations_read(config: SpokenExperiment, data: ExperimentData) -> tuple[DataSource, ...]:
    """Every set of conversations by the digest that also names it in the cache, where its files are checked."""
    if isinstance(config.data, RecordedPlan):
        plan = config.data
        return (DataSource(name=plan.name, digest=plan.digest, made_from=f"{plan.hours} h of turns", is_recorded=True),)
    sets = {dataset.spec.digest(): dataset.spec for dataset in (data.validation, *data.stages)}
    return tuple(set_source(spec) for spec in sets.values())


def set_source(spec: ConversationSpec) -> DataSource:
    """One set of conversations as it is logged."""
    return DataSource(
        name=f"conversations-{spec.positions}", digest=spec.digest(), made_from=json.dumps(spec.as_dict())
    )


def _left_out(pieces: PieceSet) -> tuple[str, ...]:
    lines = [
        f"left out: {one.exchanges} exchanges ({one.seconds:.0f} s) of {one.conversation}: {one.reason}"
        for one in pieces.left_out
    ]
    more = f"left out: exchanges of {len(lines) - MOST_LINES} more conversations"
    return tuple(lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], more])


def run_spoken_arm(work: ArmWork) -> None:
    """Trains and measures one arm."""
    task = work.task
    config: SpokenExperiment = task.config
    train_arm(
        config, config.arm(task.arm), task.data, work.logger, work.stop, task.folder, task.weights, task.line,
        task.start_folder,
    )  # fmt: skip


def report_spoken(config: SpokenExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]) -> Report:
    """The table of all arms, and the figures drawn from what they logged."""
    panels = learning_panels(spoken_backbone(config.backbone))
    results, curves = [], {}
    for arm in finished:
        logged = {} if arm.run is None else _curves(uri, arm.run.run_id, panels)
        losses = logged.get(names.VALIDATION_TEXT_LOSS) or logged.get(SPEECH.whole, [])
        untrained = losses[0][1] if losses and losses[0][0] == 0 else None
        curves[arm.name] = logged
        results.append(ArmResult(arm=arm.name, run=arm.run, untrained_loss=untrained))
    plan = config.evaluation
    metrics = {result.arm: result.run.metrics for result in results if result.run is not None}
    figures = draw_experiment(folder / "figures", metrics, curves, plan, panels) if metrics else []
    lines = result_table(results, plan.position_edges, plan.distance_edges), chance_line(results)
    table = "\n".join(filter(None, lines))
    data: ExperimentData | None = finished[0].task.data if finished else None
    notes = [*data.left_out] if data else []
    samples = sorted(folder.glob("*/sample*"))
    notes += ["samples:", *(f"  {path}" for path in samples)] if samples else []
    return Report(table=table, figures=figures, notes=notes)


def _curves(uri: str, run_id: str, metrics: Iterable[str]) -> dict[str, list[tuple[int, float]]]:
    return {name: tracking.read_history(uri, run_id, name) for name in metrics}


def spoken_study(backbone: str) -> Study:
    """The study of a backbone's recipes."""
    return Study(
        prepare=prepare_conversations,
        run_arm=run_spoken_arm,
        report=report_spoken,
        data_sources=conversations_read,
        preloads=("experiments.spoken.training", folder_of(backbone)),
        on_recordings=on_recordings,
    )
