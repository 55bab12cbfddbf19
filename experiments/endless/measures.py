"""What is measured of one view: losses and recalls stream by stream, the inner weights, and changes of topic.

Legend: N streams, T positions, V text tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.endless.streaming import Probe
from experiments.endless.trends import growth_exponent
from experiments.fact_streams.generate import FactStreams
from experiments.fact_streams.measures import StreamMeasures
from experiments.fact_streams.module import text_losses

Floats = NDArray[numpy.float64]
STREAMS_FILE, OWN_FILE = "measures.npz", "inner_weights_and_topics.npz"


@dataclass(frozen=True, kw_only=True)
class TopicCurves:
    """Sums over every stream's bins behind each change, (N, changes, bins), of answers to facts that were stated behind
    the change, out of the window's reach.

    kept_loss: nats where the state lived on. fresh_loss: where it started anew at the change: what the same questions
    cost a model that never heard the old topic. asked: how many.
    """

    kept_loss: Floats
    fresh_loss: Floats
    asked: Floats

    def excess(self) -> Floats:
        """(changes, bins) nats an answer costs more for having heard the old topic; NaN where nothing was asked."""
        asked = self.asked.sum(axis=0)
        with numpy.errstate(invalid="ignore", divide="ignore"):
            return (self.kept_loss - self.fresh_loss).sum(axis=0) / asked


@dataclass(frozen=True, kw_only=True)
class ViewMeasures:
    """streams: of the long streams; its "near" facts are those younger than T. remembered, wanted: (N, buckets) by
    position, answers to facts out of the window's reach but younger than T. topics: None where none were heard."""

    streams: StreamMeasures
    remembered: Floats
    wanted: Floats
    probes: tuple[Probe, ...]
    topics: TopicCurves | None

    def recall_between(self, first: int, end: int) -> float:
        """Share remembered of the facts out of the window's reach, asked at first <= t < end, which must be edges."""
        inside = self._buckets(first, end)
        wanted = self.wanted[:, inside].sum()
        return float(self.remembered[:, inside].sum() / wanted) if wanted else math.nan

    def recall_per_stream(self, first: int, end: int) -> Floats:
        """(N,) the same of each stream; NaN where nothing was asked."""
        inside = self._buckets(first, end)
        with numpy.errstate(invalid="ignore"):
            return self.remembered[:, inside].sum(axis=1) / self.wanted[:, inside].sum(axis=1)

    def word_loss_per_stream(self, first: int, end: int) -> Floats:
        """(N,) nats per word of each stream at first <= t < end."""
        inside = self._buckets(first, end)
        return self.streams.word_loss_sums[:, inside].sum(axis=1) / self.streams.word_counts[:, inside].sum(axis=1)

    def growth_of_norm(self) -> float:
        """Exponent of the inner norm against the position, over the last decade; NaN without TTT."""
        return growth_exponent([probe.position for probe in self.probes], [probe.inner_norm for probe in self.probes])

    def probe_near(self, position: int) -> Probe | None:
        """The probe nearest in the logarithm; None without TTT."""
        return min(self.probes, key=lambda probe: abs(math.log((probe.position + 1) / (position + 1))), default=None)

    def _buckets(self, first: int, end: int) -> slice:
        edges = self.streams.position_edges
        assert first in edges and end in edges, (first, end, edges)
        return slice(edges.index(first), edges.index(end))

    def save(self, folder: Path) -> list[Path]:
        self.streams.save(folder / STREAMS_FILE)
        arrays: dict[str, NDArray[numpy.floating]] = {"remembered": self.remembered, "wanted": self.wanted}
        arrays["probes"] = numpy.array([list(vars(probe).values()) for probe in self.probes], dtype=numpy.float64)
        if self.topics is not None:
            arrays |= {f"topics_{name}": value for name, value in vars(self.topics).items()}
        numpy.savez_compressed(folder / OWN_FILE, **arrays)  # pyright: ignore[reportArgumentType]
        return [folder / STREAMS_FILE, folder / OWN_FILE]

    @staticmethod
    def load(folder: Path) -> ViewMeasures:
        with numpy.load(folder / OWN_FILE) as stored:
            arrays = {name: stored[name] for name in stored.files}
        topics = {name.removeprefix("topics_"): value for name, value in arrays.items() if name.startswith("topics_")}
        return ViewMeasures(
            streams=StreamMeasures.load(folder / STREAMS_FILE),
            remembered=arrays["remembered"],
            wanted=arrays["wanted"],
            probes=tuple(_probe(row) for row in arrays["probes"].tolist()),
            topics=TopicCurves(**topics) if topics else None,
        )


def _probe(row: Sequence[float]) -> Probe:
    position, norm, step, largest = row
    return Probe(position=int(position), inner_norm=norm, effective_step=step, largest_weight=largest)


def remembered_by_position(
    logits: Tensor, streams: FactStreams, edges: Sequence[int], reach: int, longest: int
) -> tuple[Floats, Floats]:
    """(N, buckets) answers given rightly, and asked, of facts stated reach <= d < longest positions ago."""
    counts = streams.is_answer & (streams.distances >= reach) & (streams.distances < longest)
    right = counts & (logits.argmax(dim=2) == streams.text)
    places = torch.bucketize(torch.arange(streams.text.shape[1]), torch.tensor(edges), right=True) - 1
    index = places.expand_as(counts)
    empty = torch.zeros(len(streams), len(edges) - 1, dtype=torch.float64)
    return empty.scatter_add(1, index, right.double()).numpy(), empty.scatter_add(1, index, counts.double()).numpy()


def topic_curves(
    kept: Tensor, fresh: Tensor, streams: FactStreams, changes: Sequence[int], reach: int, bin_positions: int
) -> TopicCurves:
    """Of logits (N, T, V) with the state kept and started anew at each change; a change ends where the next begins.

    All changes have as many bins as the shortest of them.
    """
    ends = [*changes[1:], streams.text.shape[1]]
    bins = min(end - change for change, end in zip(changes, ends, strict=True)) // bin_positions
    losses = [text_losses(logits, streams.text).double() for logits in (kept, fresh)]
    found: list[list[Tensor]] = [[], [], []]
    for change in changes:
        inside = slice(change, change + bins * bin_positions)
        distances = streams.distances[:, inside]
        since = torch.arange(bins * bin_positions)
        counts = (distances >= reach) & (distances <= since)
        for sums, values in zip(found, (*(each[:, inside] for each in losses), torch.ones_like(losses[0][:, inside])),
                                strict=True):  # fmt: skip
            sums.append(torch.where(counts, values, 0.0).unflatten(1, (bins, bin_positions)).sum(dim=2))
    kept_loss, fresh_loss, asked = (torch.stack(sums, dim=1).numpy() for sums in found)
    return TopicCurves(kept_loss=kept_loss, fresh_loss=fresh_loss, asked=asked)
