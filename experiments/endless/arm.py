"""One arm: trains its model and streams it in all of its views, each under an MLflow run."""

from __future__ import annotations

import math
from pathlib import Path

from moshi.models.lm import LMModel
from torch import Tensor

from experiments.endless.carried_training import CarriedStateModule, CarriedStreamData
from experiments.endless.configuration import EndlessExperiment, Training, View
from experiments.endless.measures import ViewMeasures, remembered_by_position, topic_curves
from experiments.endless.stream_monitor import log_alarms, stream_monitor
from experiments.endless.streaming import Streamed, probe_positions, stream_logits
from experiments.endless.topics import with_topics
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import measure_streams
from experiments.fact_streams.module import FactStreamData, FactStreamModule, stage_spec
from experiments.fact_streams.mounted_models import build_with_ttt_on_top
from experiments.fact_streams.spec import FactStreamSpec
from experiments.fact_streams.training import cpu_weights, train_on_fact_streams
from experiments.harness.arm_process import is_finished, looked_at
from experiments.harness.finished_views import VIEWS_FOLDER
from experiments.harness.memory import device, start_measuring
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork
from ttt_core import TTTConfig, TTTMonitor

VIEW_DRAW, TOPIC_DRAW, HABIT_DRAW = 2_000_003, 4_000_037, 5_000_011
"""Second numbers of the seeds of what views are measured on: no training step draws them."""

MONITOR_EVERY_STEPS = 50


def run_endless_arm(work: ArmWork) -> None:
    """One training, then its views. A view that is finished already is not repeated."""
    experiment: EndlessExperiment = work.task.config
    training = experiment.training_named(work.task.arm)
    lm = _train(experiment, training, work)
    weights = cpu_weights(lm)
    for view in experiment.views_of(training.name):
        folder = work.task.folder / VIEWS_FOLDER / view.name
        if work.task.resumes and is_finished(folder):
            continue
        if work.stop.is_asked:
            raise InterruptedRunError(f"stopped before view {view.name}; the trained model is saved")
        _run_view(experiment, view, weights, folder, work)


def build_model(experiment: EndlessExperiment, ttt: TTTConfig | None) -> LMModel:
    """The untrained model. All of a seed share every weight that is not TTT's own."""
    return build_with_ttt_on_top(experiment.model, experiment.stream, experiment.seed, ttt)


def long_streams(experiment: EndlessExperiment) -> FactStreams:
    """The streams that all views of a seed are measured on, whatever was trained."""
    plan = experiment.plan
    spec = stage_spec(experiment.stream, plan.longest_distance + 2, FactStreamSpec.shortest_distance)
    return draw_streams(spec, plan.streams, plan.positions, (experiment.seed, VIEW_DRAW))


def topic_streams(experiment: EndlessExperiment) -> FactStreams:
    """Streams whose facts are as old as those of training, and whose topic changes as the plan says."""
    plan, seed = experiment.plan, experiment.seed
    spec = stage_spec(experiment.stream, experiment.trained_positions, FactStreamSpec.shortest_distance)
    drawn = draw_streams(spec, plan.streams, plan.topic_positions, (seed, TOPIC_DRAW))
    return with_topics(drawn, spec, plan.topic_changes, (seed, HABIT_DRAW))


def _train(experiment: EndlessExperiment, training: Training, work: ArmWork) -> LMModel:
    plan, bytes_at_start = experiment.training, start_measuring()
    lm = build_model(experiment, training.ttt)
    if training.carries_state:
        module = CarriedStateModule(lm, experiment.stream, plan, experiment.words_left_out)
        data = CarriedStreamData(
            experiment.stream,
            plan,
            experiment.segments_per_conversation,
            experiment.carries_from_step,
            experiment.seed,
            lambda: module.steps_done,
        )
    else:
        module = FactStreamModule(lm, experiment.stream, plan)
        data = FactStreamData(experiment.stream, plan, experiment.seed, lambda: module.steps_done)
    own = experiment.of_arm(training.name)
    train_on_fact_streams(module, data, own, work, bytes_at_start, monitor_every_steps=MONITOR_EVERY_STEPS)
    return lm.cpu()


def _run_view(
    experiment: EndlessExperiment, view: View, weights: dict[str, Tensor], folder: Path, work: ArmWork
) -> None:
    """Measures one view under a run of its own."""
    with looked_at(work.task, view.name, experiment.of_view(view), folder) as logger:
        monitor = stream_monitor(folder)
        measures = measure(experiment, view, weights, monitor)
        if view.ttt is not None:
            log_alarms(monitor, logger)
        logger.log_metrics(measures.streams.metrics() | summary(experiment, measures))
        for probe in measures.probes:
            values = {f"stream/{name}": value for name, value in vars(probe).items() if name != "position"}
            logger.log_metrics(values, step=probe.position)
        for path in measures.save(folder):
            logger.log_artifact(path)


def measure(
    experiment: EndlessExperiment, view: View, weights: dict[str, Tensor], monitor: TTTMonitor | None = None
) -> ViewMeasures:
    """The view's long streams and, where the plan has them, its changes of topic."""
    lm = build_model(experiment, view.ttt)
    lm.load_state_dict(weights)
    lm.to(device()).eval()
    plan, reach, trained = experiment.plan, experiment.model.reach, experiment.trained_positions
    streams = long_streams(experiment)
    call = plan.tokens_per_call if view.reset_every is None else min(plan.tokens_per_call, view.reset_every)
    streamed = _stream(lm, streams, view, call, (), probe_positions(plan.positions, call, plan.probes), monitor)
    base = measure_streams(
        streamed.logits, None, streams, experiment.stream, plan.position_edges, plan.distance_edges, trained
    )
    remembered, wanted = remembered_by_position(streamed.logits, streams, plan.position_edges, reach, trained)
    topics = None
    if plan.topic_changes and view.ttt is not None:
        heard = topic_streams(experiment)
        kept = _stream(lm, heard, view, call, (), ())
        fresh = _stream(lm, heard, view, call, plan.topic_changes, ())
        topics = topic_curves(kept.logits, fresh.logits, heard, plan.topic_changes, reach, plan.topic_bin)
    return ViewMeasures(streams=base, remembered=remembered, wanted=wanted, probes=streamed.probes, topics=topics)


def _stream(
    lm: LMModel, streams: FactStreams, view: View, tokens_per_call: int, resets: tuple[int, ...],
    probed: tuple[int, ...], monitor: TTTMonitor | None = None,
) -> Streamed:  # fmt: skip
    every = view.reset_every
    own = () if every is None else range(every, streams.text.shape[1], every)
    return stream_logits(lm, streams.codes, tokens_per_call, {*own, *resets}, set(probed), monitor=monitor)


def summary(experiment: EndlessExperiment, measures: ViewMeasures) -> dict[str, float]:
    """The view in few numbers: young (behind T) against old (the last half), and the inner weights at both ages."""
    found = {"endless/norm_growth_exponent": measures.growth_of_norm()}
    for age, (first, end) in ages(experiment).items():
        found[f"endless/recall_{age}"] = measures.recall_between(first, end)
        found[f"endless/word_loss_{age}"] = measures.streams.word_loss_between(first, end)
        probe = measures.probe_near(first)
        if probe is not None:
            found[f"endless/inner_norm_{age}"] = probe.inner_norm
            found[f"endless/effective_step_{age}"] = probe.effective_step
    return {name: value for name, value in found.items() if not math.isnan(value)}


def ages(experiment: EndlessExperiment) -> dict[str, tuple[int, int]]:
    """{name: (first, end)}: positions from T to 4 T, where a state is hardly older than in training; the last half."""
    trained, positions = experiment.trained_positions, experiment.plan.positions
    return {"young": (trained, 4 * trained), "old": (positions // 2, positions)}
