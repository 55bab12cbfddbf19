"""What a stream leaves behind: the inner weights, the open mini-batch's gradient sums, and where each row stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ttt_core.config import TTTConfig
from ttt_core.inner_model import InnerWeights, choose_rows, zeros_like
from ttt_core.precision import POLICIES, PrecisionPolicy
from ttt_core.state_file import read_state_file, write_state_file

Rows = Sequence[int] | Tensor


@dataclass(frozen=True)
class TTTState:
    """State of B independent streams through one layer, whatever the model's dtype.

    weights: inner weights at the start of the open mini-batch, every tensor with a leading B, in the form that the
        config's precision policy stores (FP32 by default). `W1`, `b1`, `W2`, `b2` give them in the working dtype.
    sums: sum of eta_j dl_j/dW over the tokens of the open mini-batch, in the working dtype; zeros when none is open.
    count: (B,) int64 tokens seen since the row's last reset; `count % mini_batch_size` of them are in the open one.
    conv: inputs each causal convolution still needs, name -> (B, channels, kernel - 1).
    initial: the learned starting weights without the batch axis, what `reset` goes back to.
    config: of the layer that made it; what must be the same where it is continued is `state_identity`.
    velocity: last committed step with momentum, stored as the weights are; None without momentum.

    Never changed in place: every method gives a new state, and tensors may be shared between them.
    `state[0]` is W1, then b1, W2, b2.
    """

    weights: InnerWeights
    sums: InnerWeights
    count: Tensor
    conv: dict[str, Tensor]
    initial: InnerWeights
    config: TTTConfig
    velocity: InnerWeights | None = None

    @property
    def policy(self) -> PrecisionPolicy:
        return POLICIES[self.config.precision]

    @property
    def working_dtype(self) -> torch.dtype:
        """What the inner loop that made the state computes in; the open mini-batch's sums are never narrower."""
        return self.sums.W1.dtype

    @property
    def working_weights(self) -> InnerWeights:
        """The stored inner weights in the working dtype: the same numbers."""
        return self._loaded(self.weights)

    @property
    def working_velocity(self) -> InnerWeights | None:
        return None if self.velocity is None else self._loaded(self.velocity)

    @property
    def W1(self) -> Tensor:  # noqa: N802
        return self.working_weights.W1

    @property
    def b1(self) -> Tensor:
        return self.working_weights.b1

    @property
    def W2(self) -> Tensor | None:  # noqa: N802
        return self.working_weights.W2

    @property
    def b2(self) -> Tensor | None:
        return self.working_weights.b2

    def __getitem__(self, index: int) -> Tensor | None:
        return self.working_weights[index]

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter(self.working_weights)

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def batch_size(self) -> int:
        return self.count.shape[0]

    @property
    def open_tokens(self) -> Tensor:
        """(B,) tokens already in each row's open mini-batch."""
        return self.count % self.config.mini_batch_size

    @property
    def nbytes(self) -> int:
        """Bytes the B streams hold (the learned starting weights are parameters, not counted)."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._row_tensors())

    def reset(self, rows: Rows | None = None) -> TTTState:
        """Start the given rows anew from the learned weights: indices, a (B,) bool mask, or None for all rows."""
        mask = self._row_mask(rows)
        started = self.initial.map(lambda tensor: self.policy.store(tensor.to(self.working_dtype)))
        return replace(
            self,
            weights=choose_rows(mask, started.for_rows(self.batch_size), self.weights),
            sums=choose_rows(mask, zeros_like(self.sums), self.sums),
            count=torch.where(mask, 0, self.count),
            conv={name: torch.where(mask[:, None, None], 0.0, history) for name, history in self.conv.items()},
            velocity=None if self.velocity is None else choose_rows(mask, zeros_like(self.velocity), self.velocity),
        )

    def detach(self) -> TTTState:
        """Cut from the autograd graph, for truncated backpropagation through time.

        `initial` stays attached: a later `reset` still trains the learned starting weights.
        """
        return self._map_rows(Tensor.detach)

    def clone(self) -> TTTState:
        return self._map_rows(Tensor.clone)

    def select(self, rows: Rows) -> TTTState:
        """Rows in the given order, repeats allowed (beam search reorders so)."""
        index = self._row_index(rows)
        return self._map_rows(lambda tensor: tensor.index_select(0, index))

    def repeat(self, times: int) -> TTTState:
        """Each row `times` times in a row: (a, b) -> (a, a, b, b) for 2."""
        if times < 1:
            raise ValueError(f"a state can be repeated 1 or more times, got {times}")
        return self._map_rows(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def to(self, device: torch.device | str) -> TTTState:
        moved = self._map_rows(lambda tensor: tensor.to(device))
        return replace(moved, initial=self.initial.map(lambda tensor: tensor.to(device)))

    def save(self, path: str | Path) -> None:
        """Write everything needed to continue the streams in another process (safetensors)."""
        initial = {f"initial.{name}": tensor for name, tensor in _named(self.initial)}
        write_state_file(Path(path), self.row_tensors() | initial, self.config)

    @staticmethod
    def load(path: str | Path, config: TTTConfig) -> TTTState:
        """Read a saved state, on the CPU.

        Raises ValueError when the file is missing, no TTT state, of another version, or made under another config.
        """
        tensors = read_state_file(Path(path), config)
        return TTTState.from_row_tensors(tensors, _collected(tensors, "initial"), config)

    def row_tensors(self) -> dict[str, Tensor]:
        """Everything that the streams hold, by name, each with a leading B: what a host has to keep, move or save."""
        tensors = {f"weights.{name}": tensor for name, tensor in _named(self.weights)}
        tensors |= {f"sums.{name}": tensor for name, tensor in _named(self.sums)}
        if self.velocity is not None:
            tensors |= {f"velocity.{name}": tensor for name, tensor in _named(self.velocity)}
        return tensors | {"count": self.count} | {f"conv.{name}": history for name, history in self.conv.items()}

    @staticmethod
    def from_row_tensors(tensors: Mapping[str, Tensor], initial: InnerWeights, config: TTTConfig) -> TTTState:
        """The state that `row_tensors` came from, of a layer with these learned starting weights and this config."""
        conv = {name.removeprefix("conv."): tensor for name, tensor in tensors.items() if name.startswith("conv.")}
        velocity = _collected(tensors, "velocity") if config.carries_velocity else None
        weights, sums = _collected(tensors, "weights"), _collected(tensors, "sums")
        return TTTState(weights, sums, tensors["count"], conv, initial, config, velocity)

    def _loaded(self, stored: InnerWeights) -> InnerWeights:
        policy, dtype = self.policy, self.working_dtype
        return stored if policy.is_exact else stored.map(lambda tensor: policy.load(tensor, dtype))

    def _row_tensors(self) -> list[Tensor]:
        return list(self.row_tensors().values())

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> TTTState:
        return replace(
            self,
            weights=self.weights.map(change),
            sums=self.sums.map(change),
            count=change(self.count),
            conv={name: change(history) for name, history in self.conv.items()},
            velocity=None if self.velocity is None else self.velocity.map(change),
        )

    def _row_index(self, rows: Rows) -> Tensor:
        index = torch.as_tensor(rows, device=self.count.device)
        if index.dtype == torch.bool:
            if index.shape != (self.batch_size,):
                raise ValueError(f"a row mask must have shape ({self.batch_size},), got {tuple(index.shape)}")
            return index.nonzero().squeeze(1)
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= self.batch_size):
            raise ValueError(f"rows must be in 0-{self.batch_size - 1}, got {index.tolist()}")
        return index.long().reshape(-1)

    def _row_mask(self, rows: Rows | None) -> Tensor:
        if rows is None:
            return torch.ones_like(self.count, dtype=torch.bool)
        if isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.shape == self.count.shape:
            return rows.to(self.count.device)
        return torch.zeros_like(self.count, dtype=torch.bool).index_fill(0, self._row_index(rows), True)


def _named(weights: InnerWeights) -> list[tuple[str, Tensor]]:
    return list(zip(InnerWeights._fields, weights.tensors, strict=False))


def _collected(tensors: Mapping[str, Tensor], prefix: str) -> InnerWeights:
    names = [f"{prefix}.{name}" for name in InnerWeights._fields]
    return InnerWeights.from_tensors([tensors[name] for name in names if name in tensors])
