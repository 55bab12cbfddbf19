"""Numbers that were claimed, beside what the arms computed. Which verdict follows is not decided here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from experiments.memory import metrics as names

CLAIMED_AT_POSITIONS = 48 * 1024
GIGABYTE = 1e9


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """One claimed number. scale: what the metric is divided by to be in the claim's unit."""

    claim: str
    what: str
    arm: str
    metric: str
    claimed: float
    unit: str
    scale: float = 1.0
    is_upper_bound: bool = False


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """A claimed number and the computed one, in the same unit."""

    claimed: Claimed
    computed: float

    @property
    def computed_over_claimed(self) -> float | None:
        return self.computed / self.claimed.claimed if self.claimed.claimed else None


def claim_rows(logged: Mapping[str, Mapping[str, float]]) -> list[ClaimRow]:
    """The claims whose arms were run. logged: arm -> metric -> value."""
    return [
        ClaimRow(claimed=each, computed=logged[each.arm][each.metric] / each.scale)
        for each in CLAIMED
        if each.metric in logged.get(each.arm, {})
    ]


_AT_48K = names.at_positions(CLAIMED_AT_POSITIONS)
_AT_48K_WITH_WEIGHTS = names.at_positions(CLAIMED_AT_POSITIONS, 4, with_weights=True)


def _bytes(
    claim: str, what: str, arm: str, metric: str, claimed_gigabytes: float, is_upper_bound: bool = False
) -> Claimed:
    return Claimed(
        claim=claim, what=what, arm=arm, metric=metric, claimed=claimed_gigabytes, unit="GB", scale=GIGABYTE,
        is_upper_bound=is_upper_bound,
    )  # fmt: skip


def _under_three_gigabytes(arm: str) -> tuple[Claimed, ...]:
    return (
        _bytes("C10", "a conversation at 48k positions", arm, _AT_48K, 3, is_upper_bound=True),
        _bytes("C10", "4 of them and the weights, on one GPU", arm, _AT_48K_WITH_WEIGHTS, 80, is_upper_bound=True),
    )


CLAIMED: tuple[Claimed, ...] = (
    Claimed(
        claim="C01", what="minutes that Moshi's ring holds", arm="moshi-ring", metric=names.PUBLISHED_CONTEXT_HOURS,
        claimed=4.0, unit="min", scale=1 / 60,
    ),
    _bytes("C04", "Moshi's ring of 48k positions", "moshi-ring-48k", names.BYTES_FIXED, 32),
    Claimed(
        claim="C07", what="hours in Llama 3.1's 128k context", arm="llama-omni-attention",
        metric=names.PUBLISHED_CONTEXT_HOURS, claimed=2.8, unit="h",
    ),
    _bytes("C08", "keys and values of the 8B at 48k", "llama-omni-attention", _AT_48K, 24),
    _bytes("C08", "TTT-linear above, windows below", "llama-omni-ttt-linear-top-window", names.BYTES_FIXED, 2),
    _bytes("C08", "TTT-mlp above, windows below", "llama-omni-ttt-mlp-top-window", names.BYTES_FIXED, 2),
    _bytes("C08", "TTT-linear in every layer", "llama-omni-ttt-linear-every", names.BYTES_FIXED, 2),
    _bytes("C08", "TTT-mlp in every layer", "llama-omni-ttt-mlp-every", names.BYTES_FIXED, 2),
    *(
        Claimed(
            claim="C09", what=f"bytes that a position adds, {below} below", arm=arm, metric=names.BYTES_PER_POSITION,
            claimed=0, unit="B",
        )
        for below, arm in (
            ("attention", "llama-omni-ttt-mlp-top"),
            ("windows", "llama-omni-ttt-mlp-top-window"),
        )
    ),
    *_under_three_gigabytes("llama-omni-ttt-mlp-top"),
    *_under_three_gigabytes("llama-omni-ttt-mlp-top-window"),
    *_under_three_gigabytes("moshi-ttt-mlp-top"),
)  # fmt: skip
