"""What a TTT layer is: every choice that changes its output or its state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from ttt_core.precision import POLICIES, PrecisionName

InnerModelName = Literal["linear", "mlp"]
RopePositions = Literal["mini_batch", "global"]
Backend = Literal["auto", "sequential", "chunked"]
DecayTarget = Literal["initial", "zero"]

DEFAULT_BASE_LR = {"linear": 1.0, "mlp": 0.1}
INNER_WIDTH_FACTOR = 4
INNER_NORM_EPS = 1e-6

# What shapes and gives meaning to the learned parameters.
_PARAMETER_FIELDS = (
    "hidden_size", "num_heads", "head_dim", "inner_model", "mini_batch_size", "rope_theta", "rope_positions",
    "share_qk", "pre_conv", "conv_kernel",
)  # fmt: skip
_SWITCHES = (
    "share_qk", "use_gate", "pre_conv", "projection_bias", "guards_autocast", "renormalises_inner_weights",
)  # fmt: skip
# What files written before there were such choices do not say of their state.
_MEANT_BY_OLDER_STATES = {"precision": "fp32", "carries_velocity": False}


@dataclass(frozen=True, kw_only=True)
class TTTConfig:
    """Settings of one TTT layer.

    hidden_size, num_heads: width C of the vectors that flow through, and number H of independent inner models.
    head_dim: width d of one inner model's input; `hidden_size / num_heads` when None. Must be even (rotary pairs).
    inner_model: "linear" f(x) = x W1 + b1, or "mlp" f(x) = gelu(x W1 + b1) W2 + b2 with inner width 4d.
    mini_batch_size: tokens b that share the weights their gradients are taken at.
    base_lr: inner step size before the learned gate and the division by d; None gives 1.0 (linear) or 0.1 (mlp).
    rope_positions: "mini_batch" restarts positions with every mini-batch; "global" is an ablation.
    share_qk: one projection for queries and keys, each followed by its own causal convolution (ttt-lm's option).
    use_gate: multiply the output by gelu(x Wg) before the output projection.
    pre_conv: the layer sees x + conv(RMSNorm(x)) instead of x.
    projection_bias: biases on the query, key and value projections (Qwen2 has them).
    backend: how the layer is computed; "auto" picks by the number of tokens in the call.
    checkpoint_group: mini-batches per gradient-checkpointed group in training; 0 keeps every activation.
    precision: how committed inner weights are kept, a name in `ttt_core.precision.POLICIES`.
    guards_autocast: False lets autocast into the inner loop, to measure what that does.
    inner_decay: share of its distance from the target that every inner weight loses at each commit; 0 for none.
    inner_decay_toward: that target, the learned "initial" weights or "zero".
    inner_clip_norm: largest norm of the step that a head's mini-batch may commit; None for no limit.
    inner_momentum: share of the last committed step that is added to the next; 0 for none.
    renormalises_inner_weights: every commit scales each head's maps (W, b) back to their learned initial norm.

    Raises ValueError on any value that no layer can be built from.
    """

    hidden_size: int
    num_heads: int
    head_dim: int | None = None
    inner_model: InnerModelName = "mlp"
    mini_batch_size: int = 64
    base_lr: float | None = None
    rope_theta: float = 10000.0
    rope_positions: RopePositions = "mini_batch"
    share_qk: bool = False
    use_gate: bool = False
    pre_conv: bool = False
    conv_kernel: int = 4
    projection_bias: bool = False
    backend: Backend = "auto"
    checkpoint_group: int = 0
    precision: PrecisionName = "fp32"
    guards_autocast: bool = True
    inner_decay: float = 0.0
    inner_decay_toward: DecayTarget = "initial"
    inner_clip_norm: float | None = None
    inner_momentum: float = 0.0
    renormalises_inner_weights: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_heads", "mini_batch_size", "conv_kernel"):
            _require_whole_number(name, getattr(self, name), at_least=1)
        _require_whole_number("checkpoint_group", self.checkpoint_group, at_least=0)
        _require_one_of("inner_model", self.inner_model, ("linear", "mlp"))
        _require_one_of("rope_positions", self.rope_positions, ("mini_batch", "global"))
        _require_one_of("backend", self.backend, ("auto", "sequential", "chunked"))
        if self.head_dim is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: "
                "give head_dim, or another number of heads"
            )
        if self.head_dim is not None:
            _require_whole_number("head_dim", self.head_dim, at_least=2)
        if self.resolved_head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary positions turn pairs), got {self.resolved_head_dim}")
        if self.base_lr is not None:
            _require_finite("base_lr", self.base_lr)
            if self.base_lr < 0:
                raise ValueError(f"base_lr must be 0 or more, got {self.base_lr}")
        _require_finite("rope_theta", self.rope_theta)
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta must be positive, got {self.rope_theta}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        _require_one_of("precision", self.precision, tuple(POLICIES))
        self._check_inner_optimiser()

    def _check_inner_optimiser(self) -> None:
        _require_one_of("inner_decay_toward", self.inner_decay_toward, ("initial", "zero"))
        _require_finite("inner_decay", self.inner_decay)
        if not 0 <= self.inner_decay <= 1:
            raise ValueError(f"inner_decay must be from 0 (none) to 1 (all that was learned), got {self.inner_decay}")
        _require_finite("inner_momentum", self.inner_momentum)
        if not 0 <= self.inner_momentum < 1:
            raise ValueError(f"inner_momentum must be at least 0 and below 1, got {self.inner_momentum}")
        if self.inner_clip_norm is not None:
            _require_finite("inner_clip_norm", self.inner_clip_norm)
            if not self.inner_clip_norm > 0:
                raise ValueError(f"inner_clip_norm must be positive, or None for no limit; got {self.inner_clip_norm}")

    @property
    def resolved_head_dim(self) -> int:
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def resolved_base_lr(self) -> float:
        return DEFAULT_BASE_LR[self.inner_model] if self.base_lr is None else self.base_lr

    @property
    def inner_widths(self) -> tuple[int, ...]:
        """Widths of the inner model from its input to its output: (d, d) for linear, (d, 4d, d) for mlp."""
        d = self.resolved_head_dim
        return (d, d) if self.inner_model == "linear" else (d, INNER_WIDTH_FACTOR * d, d)

    @property
    def carries_velocity(self) -> bool:
        """True when the state holds a velocity beside the inner weights."""
        return self.inner_momentum > 0

    @property
    def takes_plain_inner_steps(self) -> bool:
        """True when a commit is W - c_{b-1} G and nothing else: every option of the inner optimiser is off."""
        return (
            self.inner_decay == 0
            and self.inner_clip_norm is None
            and self.inner_momentum == 0
            and not self.renormalises_inner_weights
        )

    @property
    def conv_channels(self) -> dict[str, int]:
        """Channels of every causal convolution of the layer, by the name its history has in the state."""
        width = self.num_heads * self.resolved_head_dim
        channels = {"conv_q": width, "conv_k": width} if self.share_qk else {}
        return channels | ({"pre_conv": self.hidden_size} if self.pre_conv else {})

    def parameter_identity(self) -> dict[str, object]:
        """The fields that give learned parameters their shapes and meaning, with derived values filled in."""
        identity = {name: value for name, value in asdict(self).items() if name in _PARAMETER_FIELDS}
        identity["head_dim"] = self.resolved_head_dim
        if not (self.share_qk or self.pre_conv):
            identity["conv_kernel"] = None  # there is no convolution
        return identity

    def state_identity(self) -> dict[str, object]:
        """What must stay the same in mid-stream. Decay, clipping, re-normalisation and step sizes may change."""
        return self.parameter_identity() | {"precision": self.precision, "carries_velocity": self.carries_velocity}

    def state_difference(self, other: Mapping[str, object]) -> list[str]:
        """What keeps a state of another `state_identity` from being continued here, field by field."""
        own, other = self.state_identity(), completed_state_identity(other)
        return [
            f"{name} is {other.get(name)!r} there and {own[name]!r} here"
            for name in own
            if other.get(name) != own[name]
        ]


def completed_state_identity(identity: Mapping[str, object]) -> dict[str, object]:
    """A `state_identity` read from a file, with what older files did not need to say."""
    return _MEANT_BY_OLDER_STATES | dict(identity)


def _require_whole_number(name: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")


def _require_finite(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
