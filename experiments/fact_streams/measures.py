"""What is measured of a model on fact streams: losses and recalls stream by stream, so that arms are compared in pairs.

Legend: N streams, T positions, V text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from experiments.fact_streams.generate import FactStreams
from experiments.fact_streams.spec import SUCCESSOR_SHARES, FactStreamSpec
from experiments.harness import metric_names as names

Floats = NDArray[numpy.float64]


@dataclass(frozen=True, kw_only=True)
class StreamMeasures:
    """Sums over every stream's buckets; each array is (N, buckets).

    word_loss_sums, word_counts: nats of words by position (NaN sums where the text was not given but said).
    excess_sums: the same nats above those that the grammar itself gives each word: 0 for who knows it.
    legal_sums: probability that the model gives to words the grammar allows, at the same places.
    recalled, asked: answers whose value was the likeliest token, and all of them, by distance. answer_loss_sums: nats.
    near_recalled, near_asked, near_loss_sums: the same of facts stated a few positions ago, by the answer's position.
    """

    position_edges: tuple[int, ...]
    distance_edges: tuple[int, ...]
    word_loss_sums: Floats
    legal_sums: Floats
    word_counts: Floats
    excess_sums: Floats
    recalled: Floats
    asked: Floats
    answer_loss_sums: Floats
    near_recalled: Floats
    near_asked: Floats
    near_loss_sums: Floats

    def metrics(self) -> dict[str, float]:
        """Means over all streams, one metric a bucket; buckets without any value are left out."""
        sections = (
            (names.LOSS_BY_POSITION, self.position_edges, self.word_loss_sums, self.word_counts),
            (names.EXCESS_LOSS_BY_POSITION, self.position_edges, self.excess_sums, self.word_counts),
            (names.LEGAL_WORDS_BY_POSITION, self.position_edges, self.legal_sums, self.word_counts),
            (names.NEAR_RECALL_BY_POSITION, self.position_edges, self.near_recalled, self.near_asked),
            (names.RECALL_BY_DISTANCE, self.distance_edges, self.recalled, self.asked),
            (names.VALUE_LOSS_BY_DISTANCE, self.distance_edges, self.answer_loss_sums, self.asked),
        )
        found = {
            names.bucket_name(section, *bucket): total / count
            for section, edges, sums, counts in sections
            for bucket, total, count in zip(
                names.buckets(edges), sums.sum(axis=0).tolist(), counts.sum(axis=0).tolist(), strict=True
            )
            if count and total == total
        }
        for bucket, count in zip(names.buckets(self.distance_edges), self.asked.sum(axis=0).tolist(), strict=True):
            found[names.bucket_name(names.FACTS_BY_DISTANCE, *bucket)] = count
        return found

    def word_loss_between(self, first: int, end: int) -> float:
        """Mean nats per word of the positions first <= t < end, which must be edges."""
        return self._between(self.word_loss_sums, self.word_counts, self.position_edges, first, end)

    def excess_between(self, first: int, end: int) -> float:
        """Mean nats per word above the grammar's own."""
        return self._between(self.excess_sums, self.word_counts, self.position_edges, first, end)

    def legal_between(self, first: int, end: int) -> float:
        return self._between(self.legal_sums, self.word_counts, self.position_edges, first, end)

    def near_recall_between(self, first: int, end: int) -> float:
        """Share recalled of the facts stated a few positions ago, of answers at first <= t < end."""
        return self._between(self.near_recalled, self.near_asked, self.position_edges, first, end)

    def near_loss_between(self, first: int, end: int) -> float:
        """Mean nats per answer that tells a fact stated a few positions ago, of answers at first <= t < end."""
        return self._between(self.near_loss_sums, self.near_asked, self.position_edges, first, end)

    def recall_between(self, first: int, end: int) -> float:
        """Share recalled of the facts stated first <= d < end positions ago."""
        return self._between(self.recalled, self.asked, self.distance_edges, first, end)

    def _between(self, sums: Floats, counts: Floats, edges: tuple[int, ...], first: int, end: int) -> float:
        assert first in edges and end in edges, (first, end, edges)
        inside = slice(edges.index(first), edges.index(end))
        total = counts[:, inside].sum()
        return float(sums[:, inside].sum() / total) if total else float("nan")

    def save(self, path: Path) -> None:
        numpy.savez_compressed(path, **{name: numpy.asarray(value) for name, value in vars(self).items()})

    @staticmethod
    def load(path: Path) -> StreamMeasures:
        with numpy.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        edges = {name: tuple(arrays.pop(name).tolist()) for name in ("position_edges", "distance_edges")}
        return StreamMeasures(**edges, **arrays)


def measure_streams(
    logits: Tensor, said: Tensor | None, streams: FactStreams, spec: FactStreamSpec,
    position_edges: tuple[int, ...], distance_edges: tuple[int, ...], near: int,
) -> StreamMeasures:  # fmt: skip
    """Measures of logits (N, T', V) over the first T' positions of the streams.

    said: (N, T') the text that the model read back, where it was its own; None where it was the streams' text. Of its
    own text a loss would say nothing (there is no right word), so that is NaN; the grammar and the answers still judge.
    near: facts stated less than that many positions ago count as near.
    """
    positions = logits.shape[1]
    is_answer = streams.is_answer[:, :positions]
    text = streams.text[:, :positions]
    read = text if said is None else said
    losses = functional.cross_entropy(logits.float().transpose(1, 2), text, reduction="none")
    before, is_known = words_before(read, is_answer, spec.words)
    is_word = ~is_answer & is_known
    allowed = torch.from_numpy(spec.successors)[before[..., 0], before[..., 1]]  # (N, T, 3)
    legal = logits.float().softmax(dim=2).gather(2, allowed).sum(dim=2)
    # Of a model's own text too it is the likeliest token that counts: what was drawn from it would be right less often.
    right = logits.argmax(dim=2) == text
    excess = losses + torch.log(grammar_chances(text, before, spec))
    places = torch.arange(positions).expand_as(text)
    distances = streams.distances[:, :positions]

    is_near = is_answer & (distances < near)

    def by_position(values: Tensor, is_counted: Tensor = is_word) -> Floats:
        return _bucket_sums(places, values, is_counted, position_edges)

    def by_distance(values: Tensor) -> Floats:
        return _bucket_sums(distances, values, is_answer, distance_edges)

    ones = torch.ones_like(losses)
    return StreamMeasures(
        position_edges=position_edges,
        distance_edges=distance_edges,
        word_loss_sums=by_position(losses if said is None else torch.full_like(losses, torch.nan)),
        legal_sums=by_position(legal),
        word_counts=by_position(ones),
        excess_sums=by_position(excess if said is None else torch.full_like(excess, torch.nan)),
        recalled=by_distance(right.float()),
        asked=by_distance(ones),
        answer_loss_sums=by_distance(losses),
        near_recalled=by_position(right.float(), is_near),
        near_asked=by_position(ones, is_near),
        near_loss_sums=by_position(losses, is_near),
    )


def grammar_chances(text: Tensor, before: Tensor, spec: FactStreamSpec) -> Tensor:
    """(N, T) chance that the grammar gives the word that stands there; 1 where it could not stand (an answer)."""
    allowed = torch.from_numpy(spec.successors)[before[..., 0], before[..., 1]]
    shares = torch.tensor(SUCCESSOR_SHARES).expand(*text.shape, -1)
    chance = torch.where(allowed == text[..., None], shares, 0.0).sum(dim=2)
    return torch.where(chance > 0, chance, 1.0)


def words_before(text: Tensor, is_answer: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """(N, T, 2) the last two words before every position, answers skipped; and (N, T) whether there are two yet.

    A token that is no word where a word belongs (a model may say anything) is skipped as an answer is.
    """
    streams, positions = text.shape
    before = torch.zeros(streams, positions, 2, dtype=torch.int64)
    is_known = torch.zeros(streams, positions, dtype=torch.bool)
    last, count = torch.zeros(streams, 2, dtype=torch.int64), torch.zeros(streams, dtype=torch.int64)
    for t in range(positions):
        before[:, t], is_known[:, t] = last, count >= 2
        is_word = ~is_answer[:, t] & (text[:, t] < words)
        moved = torch.stack([last[:, 1], text[:, t]], dim=1)
        last = torch.where(is_word[:, None], moved, last)
        count = count + is_word
    return before, is_known


def _bucket_sums(places: Tensor, values: Tensor, is_counted: Tensor, edges: tuple[int, ...]) -> Floats:
    """(N, buckets) sums of the counted values of each stream."""
    buckets = torch.bucketize(places.contiguous(), torch.tensor(edges), right=True) - 1
    inside = is_counted & (buckets >= 0) & (buckets < len(edges) - 1)
    kept = torch.where(inside, values.double(), 0.0)
    sums = torch.zeros(places.shape[0], len(edges) - 1, dtype=torch.float64)
    return sums.scatter_add(1, buckets.clamp(0, len(edges) - 2), kept).numpy()
