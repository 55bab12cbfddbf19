"""Streams whose topic changes: what a key usually means is another thing from one position on.

The words' grammar is learned by the outer weights in training and can't be adapted to at test time, so a change of
grammar would show nothing about TTT. What TTT's inner weights do learn while a stream goes by is which value belongs to
which key. A *topic* therefore is a habit: for as long as it lasts, every statement of a key gives it the same value.
Old associations, heard a hundred times, then stand against new ones.

Legend: N streams, T positions, K keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

from experiments.fact_streams.generate import FactStreams
from experiments.fact_streams.spec import FIRST_HEARD_VALUE, FactStreamSpec


def with_topics(streams: FactStreams, spec: FactStreamSpec, changes: Sequence[int], seed: Sequence[int]) -> FactStreams:
    """The same streams, keys and questions, with values from a habit that changes at the given positions.

    No key keeps its value over a change. A question asks for what was stated last, before a change or behind it.
    """
    count, _, positions = streams.codes.shape
    generator = numpy.random.default_rng(list(seed))
    habit = generator.integers(spec.values, size=(1, count, spec.keys))
    for _ in changes:
        shift = generator.integers(1, spec.values, size=(1, count, spec.keys))
        habit = numpy.concatenate([habit, (habit[-1:] + shift) % spec.values])
    topics = torch.from_numpy(numpy.searchsorted(list(changes), numpy.arange(positions), side="right"))
    codes = streams.codes.clone()
    rows, places = (codes[:, 2] >= FIRST_HEARD_VALUE).nonzero(as_tuple=True)
    key = codes[rows, 1, places] - 1
    codes[rows, 2, places] = torch.from_numpy(habit)[topics[places], rows, key] + FIRST_HEARD_VALUE
    rows, places = streams.is_answer.nonzero(as_tuple=True)
    stated = codes[rows, 2, places - streams.distances[rows, places]]
    codes[rows, 0, places] = stated - FIRST_HEARD_VALUE + spec.first_value
    return FactStreams(codes=codes, distances=streams.distances)
