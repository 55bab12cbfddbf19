"""Means of what was measured at places (positions, distances), bucket by bucket."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.harness import metric_names as names


@dataclass
class BucketedMean:
    """Means of values that belong to buckets of rising edges; what lies outside all buckets is left out."""

    edges: Sequence[int]
    sums: list[float] = field(init=False)
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = [0.0] * (len(self.edges) - 1)
        self.counts = [0] * (len(self.edges) - 1)

    def add(self, place: int, value: float) -> None:
        self.add_sum(place, value, 1)

    def add_sum(self, place: int, total: float, count: int) -> None:
        """`count` values that add up to `total`, all of the place's bucket."""
        bucket = bisect_right(self.edges, place) - 1
        if 0 <= bucket < len(self.sums):
            self.sums[bucket] += total
            self.counts[bucket] += count

    def add_many(self, places: Tensor, values: Tensor) -> None:
        """(n,) places and (n,) values."""
        buckets = torch.bucketize(places, torch.tensor(self.edges), right=True) - 1
        for bucket in range(len(self.sums)):
            inside = buckets == bucket
            self.sums[bucket] += float(values[inside].double().sum())
            self.counts[bucket] += int(inside.sum())

    def means(self, section: str) -> dict[str, float]:
        """One metric per bucket that has values."""
        return {
            names.bucket_name(section, *bucket): total / count
            for bucket, total, count in zip(names.buckets(self.edges), self.sums, self.counts, strict=True)
            if count
        }

    def numbers(self, section: str) -> dict[str, float]:
        """How many values each bucket has."""
        return {
            names.bucket_name(section, *bucket): float(count)
            for bucket, count in zip(names.buckets(self.edges), self.counts, strict=True)
        }
