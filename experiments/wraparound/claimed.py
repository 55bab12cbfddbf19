"""What was claimed of the ring and of TTT in its place, beside what the mechanics measured. No verdict is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

CONTROL = "sees_the_future"
"""The arm of the causality probe that must be caught: it is left out of the largest change."""


@dataclass(frozen=True, kw_only=True)
class ClaimedNumber:
    """measured: the line for the table, of the mechanics' metrics. metrics: the names that a verdict reads."""

    claim: str
    claimed: str
    measured: Callable[[Mapping[str, float]], str]
    metrics: tuple[str, ...]


def largest_change_of_earlier_outputs(metrics: Mapping[str, float]) -> float:
    """Over every arm, call and side of the wrap, the control left out."""
    return max(
        value
        for name, value in metrics.items()
        if name.startswith("causality/") and name.endswith("earlier_outputs_change") and CONTROL not in name
    )


def cache_ratios(metrics: Mapping[str, float]) -> list[tuple[int, float]]:
    """(position, time of a step without the cache over with it), by position."""
    prefix = "cache_cost/without_over_with_position_"
    return sorted((int(name.removeprefix(prefix)), value) for name, value in metrics.items() if name.startswith(prefix))


CLAIMED = (
    ClaimedNumber(
        claim="C01",
        claimed="3,000 positions, 4.0 min; step 3,001 overwrites the first",
        measured=lambda m: (
            f"{m['ring/capacity_steps']:,.0f} positions, {m['ring/minutes_until_overwriting']:.1f} min; step "
            f"{m['ring/first_overwriting_step']:,.0f} overwrites position {m['ring/first_overwritten_position']:.0f}"
        ),
        metrics=("ring/capacity_steps", "ring/first_overwriting_step", "ring/minutes_until_overwriting"),
    ),
    ClaimedNumber(
        claim="C02",
        claimed="past the wrap attention sees corrupted history",
        measured=lambda m: (
            f"streamed - windowed: {m['streamed/max_difference_after_wrap_1_token_per_call']:.0e} with one token a "
            f"call, {m['streamed/max_difference_after_wrap_3_tokens_per_call']:.2f} with three, "
            f"{m['streamed/max_difference_with_room_3_tokens_per_call']:.0e} with three and room for them"
        ),
        metrics=(
            "streamed/max_difference_after_wrap_1_token_per_call",
            "streamed/max_difference_after_wrap_3_tokens_per_call",
        ),
    ),
    ClaimedNumber(
        claim="C03",
        claimed="a ring together with TTT violates causality",
        measured=lambda m: f"largest change of an earlier output: {largest_change_of_earlier_outputs(m):.0e}",
        metrics=("causality/largest_change_of_earlier_outputs",),
    ),
    ClaimedNumber(
        claim="C05",
        claimed="without the cache inference is about 10 x slower",
        measured=lambda m: ", ".join(f"{ratio:.1f} x at {place:,}" for place, ratio in cache_ratios(m)),
        metrics=("cache_cost/log_time_without_over_log_position_at_the_end",),
    ),
    ClaimedNumber(
        claim="C11",
        claimed="TTT costs O(T) time and O(1) state",
        measured=lambda m: "; ".join(
            f"{memory}: {m[f'state_cost/{memory}_us_per_1000_positions']:+.1f} us a step per 1,000 positions "
            f"[{m[f'state_cost/{memory}_us_per_1000_positions_low']:+.1f}, "
            f"{m[f'state_cost/{memory}_us_per_1000_positions_high']:+.1f}], "
            f"bytes x {m[f'state_cost/{memory}_bytes_last_over_first_position']:.0f}"
            for memory in ("ttt_linear", "ttt_mlp", "cache")
        ),
        metrics=("state_cost/ttt_mlp_us_per_1000_positions", "state_cost/ttt_mlp_bytes_last_over_first_position"),
    ),
    ClaimedNumber(
        claim="C12",
        claimed="mini-batches of 64 cost a stream 5.12 s of buffering",
        measured=lambda m: (
            f"{m['buffering/mlp_calls_an_output_waits']:.0f} calls waited, {m['buffering/mlp_max_difference']:.0e} "
            "from one call for all"
        ),
        metrics=("buffering/mlp_calls_an_output_waits", "buffering/mlp_max_difference"),
    ),
    ClaimedNumber(
        claim="C13",
        claimed="TTT in the depth transformer would be reset about 100 times a second",
        measured=lambda m: (
            f"{m['depth/state_starts_per_second']:.1f} starts a second; {m['depth/steps_per_second']:.0f} depth steps"
        ),
        metrics=("depth/state_starts_per_second", "depth/steps_per_second"),
    ),
    ClaimedNumber(
        claim="C14",
        claimed="Moshi runs 17 parallel streams",
        measured=lambda m: (
            f"{m['streams/all']:.0f}: {m['streams/text']:.0f} text, {m['streams/own_audio']:.0f} own, "
            f"{m['streams/heard_audio']:.0f} heard; {m['streams/predicted']:.0f} predicted, summed into "
            f"{m['streams/vectors_per_position_after_embedding']:.0f} vector a position"
        ),
        metrics=("streams/all",),
    ),
)
