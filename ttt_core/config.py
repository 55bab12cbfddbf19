"""What a TTT layer is: every choice that changes its output or its state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

InnerModelName = Literal["linear", "mlp"]
RopePositions = Literal["mini_batch", "global"]
Backend = Literal["auto", "sequential", "chunked"]

DEFAULT_BASE_LR = {"linear": 1.0, "mlp": 0.1}
INNER_WIDTH_FACTOR = 4
INNER_NORM_EPS = 1e-6

# What shapes and gives meaning to a state: a state made under other values must not be continued.
_STATE_FIELDS = (
    "hidden_size", "num_heads", "head_dim", "inner_model", "mini_batch_size", "rope_theta", "rope_positions",
    "share_qk", "pre_conv", "conv_kernel",
)  # fmt: skip


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
        for name in ("share_qk", "use_gate", "pre_conv", "projection_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

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

    def state_identity(self) -> dict[str, object]:
        """The fields that a saved state depends on, with derived values filled in."""
        identity = {name: value for name, value in asdict(self).items() if name in _STATE_FIELDS}
        identity["head_dim"] = self.resolved_head_dim
        if not (self.share_qk or self.pre_conv):
            identity["conv_kernel"] = None  # there is no convolution
        return identity

    def state_difference(self, other: dict[str, object]) -> list[str]:
        """What keeps a state of another `state_identity` from being continued here, field by field."""
        own = self.state_identity()
        return [
            f"{name} is {other.get(name)!r} there and {own[name]!r} here"
            for name in own
            if other.get(name) != own[name]
        ]


def _require_whole_number(name: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")


def _require_finite(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _require_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
