"""Fact streams as the store knows them: they are drawn as they are read, so a digest is of a sample of them."""

from __future__ import annotations

import json
from typing import Any, Protocol

from experiments.fact_streams.generate import draw_streams
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness.data_source import DataSource, digest_of
from experiments.harness.identity import plain_values

SAMPLE_STREAMS, SAMPLE_POSITIONS = 8, 256


class ReadsFactStreams(Protocol):
    @property
    def stream(self) -> FactStreamSpec: ...


def fact_streams_read(experiment: ReadsFactStreams, _prepared: Any) -> tuple[DataSource, ...]:
    """The streams of an experiment; another way of drawing them from the same specification has another digest."""
    return (fact_stream_source(experiment.stream),)


def fact_stream_source(spec: FactStreamSpec) -> DataSource:
    """One specification's streams."""
    made_from = json.dumps(plain_values(spec), sort_keys=True)
    sample = draw_streams(spec, SAMPLE_STREAMS, SAMPLE_POSITIONS, seed=(0,))
    return DataSource(
        name="fact-streams", digest=digest_of((made_from.encode(), sample.codes.numpy().tobytes())), made_from=made_from
    )
