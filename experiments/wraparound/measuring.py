"""Measures one view: on many short streams around the first wrap, and on fewer long ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from experiments.fact_streams import reading
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.measures import StreamMeasures, measure_streams
from experiments.fact_streams.module import stage_spec
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness import metric_names as names
from experiments.wraparound import viewing
from experiments.wraparound.configuration import View, WraparoundExperiment

LONG_DRAW, ONSET_DRAW = 2_000_003, 3_000_017
"""Second numbers of the seeds of the streams that views are measured on: no training step draws them."""

AGREEMENT_STREAMS = 4


@dataclass(frozen=True, kw_only=True)
class ViewStreams:
    """What all views of a seed are measured on, whatever was trained."""

    onset: FactStreams
    long: FactStreams


@dataclass(frozen=True, kw_only=True)
class ViewFindings:
    """onset: around the first wrap. long: None for a view that ends there. agreement: of streaming with the batched
    model, where the view streams: largest difference over the largest output."""

    onset: StreamMeasures
    long: StreamMeasures | None
    agreement: float | None

    def metrics(self) -> dict[str, float]:
        found = {f"onset_{name}": value for name, value in self.onset.metrics().items()}
        if self.long is not None:
            found |= self.long.metrics()
        return found if self.agreement is None else found | {names.STREAMED_AGAINST_BATCHED: self.agreement}


def view_streams(experiment: WraparoundExperiment) -> ViewStreams:
    """The onset streams ask as the training inside the context does; the long ones over all their length."""
    plan, context = experiment.view_plan, experiment.model.context
    shortest = FactStreamSpec.shortest_distance
    near = dataclasses.replace(experiment.stream, shortest_distance=shortest, longest_distance=context - 2)
    far = stage_spec(experiment.stream, plan.positions, shortest)
    return ViewStreams(
        onset=draw_streams(near, plan.onset_streams, 2 * context, (experiment.seed, ONSET_DRAW)),
        long=draw_streams(far, plan.streams, plan.positions, (experiment.seed, LONG_DRAW)),
    )


def measure_view(experiment: WraparoundExperiment, view: View, lm: LMModel, streams: ViewStreams) -> ViewFindings:
    """Runs the view over both kinds of streams; `lm` is its model, trained weights in it, on its device."""
    plan = experiment.view_plan
    onset_logits, onset_said = _run(view, lm, streams.onset, experiment.seed)
    onset = measure_streams(
        onset_logits, onset_said, streams.onset, experiment.stream, plan.onset_edges, plan.distance_edges, plan.near
    )
    if view.kind == "first_positions_hidden":
        return ViewFindings(onset=onset, long=None, agreement=None)
    rows = streams.long.rows(0, plan.recomputed_streams) if view.kind == "recomputed" else streams.long
    logits, said = _run(view, lm, rows, experiment.seed)
    long = measure_streams(logits, said, rows, experiment.stream, plan.position_edges, plan.distance_edges, plan.near)
    return ViewFindings(
        onset=onset, long=long, agreement=_agreement(lm, rows, logits) if view.kind == "streamed" else None
    )


def _run(view: View, lm: LMModel, streams: FactStreams, seed: int) -> tuple[Tensor, Tensor | None]:
    """Logits (N, T, V) and, of a free-running view, the text (N, T) that the model said; both on the CPU."""
    codes, said = streams.codes.to(lm.device), None
    if view.kind == "batched":
        logits = reading.batched_logits(lm, codes)
    elif view.kind == "streamed":
        logits = reading.streamed_logits(lm, codes)
    elif view.kind == "recomputed":
        assert view.window is not None
        logits = viewing.recomputed_logits(lm, codes, view.window, view.has_start_token)
    elif view.kind == "first_positions_hidden":
        assert view.window is not None
        inside = codes[:, :, : view.window]
        logits = viewing.first_positions_hidden_logits(lm, inside, view.hidden, view.window // 2)
    elif view.kind == "ttt_state_reset":
        assert view.reset_every is not None
        logits = viewing.ttt_state_reset_logits(lm, codes, view.reset_every)
    else:
        logits, said = reading.free_running(lm, codes[:, 1:], seed)
    return logits.cpu(), None if said is None else said.cpu()


@torch.no_grad()
def _agreement(lm: LMModel, streams: FactStreams, streamed: Tensor) -> float:
    """Of a few streams with the batched model, relative to the largest output."""
    few = streams.rows(0, AGREEMENT_STREAMS)
    expected = reading.batched_logits(lm, few.codes.to(lm.device)).cpu()
    return float((streamed[: len(few)] - expected).abs().max() / expected.abs().max())
