"""One arm: trains its model and streams it in all of its views, each under an MLflow run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from experiments.endless.measures import ViewMeasures, remembered_by_position
from experiments.endless.stream_monitor import log_alarms, stream_monitor
from experiments.endless.streaming import probe_positions, stream_logits
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import measure_streams
from experiments.fact_streams.module import FactStreamData, FactStreamModule, stage_spec
from experiments.fact_streams.mounted_models import build_with_ttt_on_top
from experiments.fact_streams.spec import FactStreamSpec
from experiments.fact_streams.training import cpu_weights, train_on_fact_streams
from experiments.gibberish.configuration import LEAKY, GibberishExperiment, SuspectView
from experiments.gibberish.models import LeakyStreamModule, lose_pinned_positions
from experiments.harness.arm_process import is_finished, looked_at
from experiments.harness.finished_views import VIEWS_FOLDER
from experiments.harness.memory import device, start_measuring
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import ArmWork
from ttt_core import TTTMonitor

VIEW_DRAW = 6_000_011
"""Second number of the seed of the long streams: no training step draws it."""


def run_gibberish_arm(work: ArmWork) -> None:
    """One training, then its views. A view that is finished already is not repeated."""
    experiment: GibberishExperiment = work.task.config
    weights = _train(experiment, work)
    streams = long_streams(experiment)
    for view in experiment.views_of(work.task.arm):
        folder = work.task.folder / VIEWS_FOLDER / view.name
        if work.task.resumes and is_finished(folder):
            continue
        if work.stop.is_asked:
            raise InterruptedRunError(f"stopped before view {view.name}; the trained model is saved")
        _run_view(experiment, view, weights, streams, folder, work)


def long_streams(experiment: GibberishExperiment) -> FactStreams:
    """The streams that all views of a seed are measured on, whatever was trained: facts as old as training's."""
    spec = stage_spec(experiment.stream, experiment.trained_positions, FactStreamSpec.shortest_distance)
    return draw_streams(spec, experiment.streams, experiment.positions, (experiment.seed, VIEW_DRAW))


def _train(experiment: GibberishExperiment, work: ArmWork) -> dict[str, Tensor]:
    plan, bytes_at_start = experiment.training, start_measuring()
    lm = build_with_ttt_on_top(experiment.model, experiment.stream, experiment.seed, experiment.ttt)
    kind = LeakyStreamModule if work.task.arm == LEAKY else FactStreamModule
    module = kind(lm, experiment.stream, plan)
    data = FactStreamData(experiment.stream, plan, experiment.seed, lambda: module.steps_done)
    train_on_fact_streams(module, data, experiment.of_arm(work.task.arm), work, bytes_at_start)
    return cpu_weights(lm)


def _run_view(
    experiment: GibberishExperiment, view: SuspectView, weights: dict[str, Tensor], streams: FactStreams, folder: Path,
    work: ArmWork,
) -> None:  # fmt: skip
    with looked_at(work.task, view.name, experiment.of_view(view), folder) as logger:
        monitor = stream_monitor(folder)
        measures = measure(experiment, view, weights, streams, monitor)
        logger.log_metrics(measures.streams.metrics())
        log_alarms(monitor, logger)
        for probe in measures.probes:
            values = {f"stream/{name}": value for name, value in vars(probe).items() if name != "position"}
            logger.log_metrics(values, step=probe.position)
        for path in measures.save(folder):
            logger.log_artifact(path)


def measure(
    experiment: GibberishExperiment, view: SuspectView, weights: dict[str, Tensor], streams: FactStreams,
    monitor: TTTMonitor | None = None,
) -> ViewMeasures:  # fmt: skip
    """The view along its streams: words, answers, and the inner weights."""
    assert view.ttt is not None
    lm = build_with_ttt_on_top(experiment.model, experiment.stream, experiment.seed, view.ttt)
    lm.load_state_dict(weights)
    lm.to(device()).eval()

    def wrap(position: int) -> None:
        if view.wraps and position == experiment.ring_positions:
            lose_pinned_positions(lm)

    every, trained = view.reset_every, experiment.trained_positions
    edges = experiment.position_edges
    streamed = stream_logits(
        lm, streams.codes, experiment.tokens_per_call,
        () if every is None else range(every, experiment.positions, every),
        set(probe_positions(experiment.positions, experiment.tokens_per_call, experiment.probes)),
        wrap, monitor,
    )  # fmt: skip
    base = measure_streams(streamed.logits, None, streams, experiment.stream, edges, (0, trained), trained)
    remembered, wanted = remembered_by_position(streamed.logits, streams, edges, experiment.model.reach, trained)
    return ViewMeasures(streams=base, remembered=remembered, wanted=wanted, probes=streamed.probes, topics=None)
