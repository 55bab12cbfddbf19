"""Numbers of one arm's streams: speed and memory of the one that spoke alone, quality of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.harness.estimates import Estimate, ShareOfSeeds, estimate, share_of_seeds
from experiments.long_generation import metric_names as names
from experiments.long_generation.configuration import SpeakingArm
from experiments.long_generation.quality import SOUND_MEASURES, SYMBOL_MEASURES, StreamQuality, buckets_of
from experiments.long_generation.speaking import Piece

SECONDS_PER_MINUTE, SECONDS_PER_HOUR = 60.0, 3600.0
EARLY_SHARE, LATE_SHARE = 0.25, 0.25
"""Of a stream: what its end is compared with, and its end."""
MEASURES = (*SYMBOL_MEASURES, *SOUND_MEASURES)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stream that spoke alone took. The two slopes are over its second half, in bytes a minute."""

    real_time_factor: float
    last_over_first_quarter: float
    first_audio_ms: float
    held_bytes: float
    held_bytes_per_minute: float
    resident_bytes_per_minute: float
    positions_per_second: float

    def metrics(self) -> dict[str, float]:
        """As logged; what cannot be told is left out."""
        found = {
            names.REAL_TIME_FACTOR: self.real_time_factor,
            names.SLOWDOWN: self.last_over_first_quarter,
            names.FIRST_AUDIO_MS: self.first_audio_ms,
            names.STATE_BYTES_AT_THE_END: self.held_bytes,
            names.STATE_BYTES_PER_MINUTE: self.held_bytes_per_minute,
            names.RESIDENT_BYTES_PER_MINUTE: self.resident_bytes_per_minute,
            names.POSITIONS_PER_SECOND: self.positions_per_second,
        }
        return {name: value for name, value in found.items() if math.isfinite(value)}


def cost_of(pieces: Sequence[Piece]) -> Cost:
    """Of a stream's pieces in order. Latency is the median over the pieces that have a sound."""
    whole_s = pieces[-1].end_s
    warm = pieces[1:] if len(pieces) > 2 else pieces  # the first call of everything takes several times its time
    latencies = [piece.first_audio_ms for piece in pieces if piece.first_audio_ms is not None]
    late = [piece for piece in pieces if piece.end_s >= whole_s / 2]
    minutes = np.array([piece.end_s for piece in late]) / SECONDS_PER_MINUTE
    first = _factor(warm, 0, whole_s * EARLY_SHARE)
    return Cost(
        real_time_factor=_factor(warm, 0, whole_s),
        last_over_first_quarter=_factor(pieces, whole_s * (1 - LATE_SHARE), whole_s) / first,
        first_audio_ms=float(np.median(latencies)) if latencies else math.nan,
        held_bytes=float(pieces[-1].held_bytes),
        held_bytes_per_minute=_slope(minutes, [piece.held_bytes for piece in late]),
        resident_bytes_per_minute=_slope(minutes, [piece.resident_bytes for piece in late]),
        positions_per_second=pieces[-1].positions / whole_s,
    )


def _factor(pieces: Sequence[Piece], first_s: float, end_s: float) -> float:
    """Seconds of compute a second of sound, of the pieces that end there; NaN where none does."""
    inside = [piece for piece in pieces if first_s < piece.end_s <= end_s]
    said = sum(piece.duration_s for piece in inside)
    return sum(piece.compute_s for piece in inside) / said if said else math.nan


def _slope(minutes: np.ndarray, values: Sequence[int]) -> float:
    if len(minutes) < 3 or np.ptp(minutes) == 0:
        return math.nan
    return float(stats.linregress(minutes, np.asarray(values, np.float64)).slope)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Of all streams of an arm. late_minus_early: {measure: mean over streams, with its interval}."""

    with_alarm: ShareOfSeeds
    alarms_per_hour: float
    first_alarm_median_s: float
    late_minus_early: Mapping[str, Estimate]

    def metrics(self) -> dict[str, float]:
        """As logged; what cannot be told is left out."""
        found = {
            names.SHARE_WITH_ALARM: self.with_alarm.count / self.with_alarm.seeds,
            names.ALARMS_PER_HOUR: self.alarms_per_hour,
            names.FIRST_ALARM_S: self.first_alarm_median_s,
        } | {f"{names.LATE_MINUS_EARLY}/{name}": each.mean for name, each in self.late_minus_early.items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}


def judged(streams: Sequence[StreamQuality]) -> Judged:
    """What the streams of an arm have come to."""
    hours = sum(stream.duration_s for stream in streams) / SECONDS_PER_HOUR
    changes = {
        measure: estimate([change for stream in streams if math.isfinite(change := _late_minus_early(stream, measure))])
        for measure in MEASURES
    }
    return Judged(
        with_alarm=share_of_seeds([bool(stream.alarms) for stream in streams]),
        alarms_per_hour=sum(len(stream.alarms) for stream in streams) / hours,
        first_alarm_median_s=median_until_alarm(streams),
        late_minus_early=changes,
    )


def _late_minus_early(stream: StreamQuality, measure: str) -> float:
    """NaN where a quarter is too silent to be told of; the estimate then says of how many streams it is."""
    late = stream.mean(measure, stream.duration_s * (1 - LATE_SHARE), stream.duration_s)
    return late - stream.mean(measure, 0, stream.duration_s * EARLY_SHARE)


def alarm_within(streams: Sequence[StreamQuality], within_s: float) -> ShareOfSeeds:
    """Of the streams that are so long, how many have an alarm that begins before."""
    return share_of_seeds([stream.first_alarm_s < within_s for stream in streams if stream.duration_s >= within_s])


def median_until_alarm(streams: Sequence[StreamQuality]) -> float:
    """Seconds until half of all streams have had an alarm, by Kaplan and Meier: a stream that ends without one says
    only that it would have come later. Infinity where half never come to it."""
    raised = [stream.first_alarm_s for stream in streams if stream.alarms]
    if not raised:
        return math.inf
    ended = [stream.duration_s for stream in streams if not stream.alarms]
    survival = stats.ecdf(stats.CensoredData(uncensored=raised, right=ended)).sf
    reached = survival.quantiles[survival.probabilities <= 0.5 + 1e-12]
    return float(reached[0]) if len(reached) else math.inf


def curves_along(
    arm: SpeakingArm, pieces: Sequence[Piece], streams: Sequence[StreamQuality]
) -> dict[int, dict[str, float]]:
    """{second at which a bucket ends: {name: value}}: means over the streams, costs of the one that spoke alone."""
    shortest = min(stream.duration_s for stream in streams)
    along: dict[int, dict[str, float]] = {}
    for first_s, end_s in buckets_of(min(shortest, arm.stream_s), arm.bucket_s):
        found = {measure: _mean([stream.mean(measure, first_s, end_s) for stream in streams]) for measure in MEASURES}
        found["share_of_streams_after_first_alarm"] = _mean([stream.first_alarm_s < end_s for stream in streams])
        inside = [piece for piece in pieces if first_s < piece.end_s <= end_s]
        if inside:
            found["real_time_factor"] = _factor(pieces, first_s, end_s)
            found["held_bytes"] = float(inside[-1].held_bytes)
            found["resident_bytes"] = float(inside[-1].resident_bytes)
        along[round(end_s)] = {
            f"{names.ALONG}/{name}": value for name, value in found.items() if math.isfinite(value)
        }  # fmt: skip
    return along


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
