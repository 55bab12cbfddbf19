"""What a stream leaves behind: the inner weights, the open mini-batch's gradient sums, and where each row stands."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ttt_core.config import TTTConfig
from ttt_core.inner_model import InnerWeights, choose_rows, zeros_like

FORMAT = "ttt_state"
VERSION = 1

Rows = Sequence[int] | Tensor


@dataclass(frozen=True)
class TTTState:
    """State of B independent streams through one layer; FP32 (or FP64) whatever the model's dtype.

    weights: inner weights at the start of the open mini-batch, every tensor with a leading B.
    sums: sum of eta_j dl_j/dW over the tokens of the open mini-batch, same shapes; zeros when none is open.
    count: (B,) int64 tokens seen since the row's last reset; `count % mini_batch_size` of them are in the open one.
    conv: inputs each causal convolution still needs, name -> (B, channels, kernel - 1).
    initial: the learned starting weights without the batch axis, what `reset` goes back to.
    config: of the layer that made it; a state is continued under the same config only.

    Never changed in place: every method gives a new state, and tensors may be shared between them.
    `state[0]` is W1, then b1, W2, b2.
    """

    weights: InnerWeights
    sums: InnerWeights
    count: Tensor
    conv: dict[str, Tensor]
    initial: InnerWeights
    config: TTTConfig

    @property
    def W1(self) -> Tensor:  # noqa: N802
        return self.weights.W1

    @property
    def b1(self) -> Tensor:
        return self.weights.b1

    @property
    def W2(self) -> Tensor | None:  # noqa: N802
        return self.weights.W2

    @property
    def b2(self) -> Tensor | None:
        return self.weights.b2

    def __getitem__(self, index: int) -> Tensor | None:
        return self.weights[index]

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter(self.weights)

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
        started = InnerWeights.from_tensors(
            [tensor.expand(self.batch_size, *tensor.shape) for tensor in self.initial.tensors]
        )
        return replace(
            self,
            weights=choose_rows(mask, started, self.weights),
            sums=choose_rows(mask, zeros_like(self.sums), self.sums),
            count=torch.where(mask, 0, self.count),
            conv={name: torch.where(mask[:, None, None], 0.0, history) for name, history in self.conv.items()},
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
        return replace(moved, initial=_map_weights(self.initial, lambda tensor: tensor.to(device)))

    def save(self, path: str | Path) -> None:
        """Write everything needed to continue the streams in another process (safetensors)."""
        from safetensors.torch import save_file

        tensors = {f"weights.{name}": tensor for name, tensor in _named(self.weights)}
        tensors |= {f"sums.{name}": tensor for name, tensor in _named(self.sums)}
        tensors |= {f"initial.{name}": tensor for name, tensor in _named(self.initial)}
        tensors |= {f"conv.{name}": tensor for name, tensor in self.conv.items()}
        tensors["count"] = self.count
        if not Path(path).parent.is_dir():
            raise ValueError(f"cannot save a state to {path}: its folder does not exist; make it first")
        metadata = {"format": FORMAT, "version": str(VERSION), "config": json.dumps(self.config.state_identity())}
        save_file(
            {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path, metadata
        )

    @staticmethod
    def load(path: str | Path, config: TTTConfig) -> TTTState:
        """Read a saved state, on the CPU.

        Raises ValueError when the file is missing, no TTT state, of another version, or made under another config.
        """
        tensors = _read_checked(Path(path), config)
        size = 2 * (len(config.inner_widths) - 1)

        def weights(prefix: str) -> InnerWeights:
            return InnerWeights.from_tensors([tensors[f"{prefix}.{name}"] for name in InnerWeights._fields[:size]])

        conv = {name.removeprefix("conv."): tensor for name, tensor in tensors.items() if name.startswith("conv.")}
        return TTTState(weights("weights"), weights("sums"), tensors["count"], conv, weights("initial"), config)

    def _row_tensors(self) -> list[Tensor]:
        return [*self.weights.tensors, *self.sums.tensors, self.count, *self.conv.values()]

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> TTTState:
        return replace(
            self,
            weights=_map_weights(self.weights, change),
            sums=_map_weights(self.sums, change),
            count=change(self.count),
            conv={name: change(history) for name, history in self.conv.items()},
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


def _map_weights(weights: InnerWeights, change: Callable[[Tensor], Tensor]) -> InnerWeights:
    return InnerWeights.from_tensors([change(tensor) for tensor in weights.tensors])


def _named(weights: InnerWeights) -> list[tuple[str, Tensor]]:
    return list(zip(InnerWeights._fields, weights.tensors, strict=False))


def conv_channels(config: TTTConfig) -> dict[str, int]:
    """Channels of every causal convolution of a layer, by the name its history has in the state."""
    width = config.num_heads * config.resolved_head_dim
    channels = {"conv_q": width, "conv_k": width} if config.share_qk else {}
    return channels | ({"pre_conv": config.hidden_size} if config.pre_conv else {})


def _expected_shapes(config: TTTConfig, rows: int) -> dict[str, tuple[int, ...]]:
    widths, heads = config.inner_widths, config.num_heads
    inner: dict[str, tuple[int, ...]] = {}
    for index, (wide, narrow) in enumerate(pairwise(widths), start=1):
        inner |= {f"W{index}": (heads, wide, narrow), f"b{index}": (heads, 1, narrow)}
    shapes: dict[str, tuple[int, ...]] = {"count": (rows,)}
    for name, shape in inner.items():
        shapes |= {f"weights.{name}": (rows, *shape), f"sums.{name}": (rows, *shape), f"initial.{name}": shape}
    before = config.conv_kernel - 1
    return shapes | {f"conv.{name}": (rows, size, before) for name, size in conv_channels(config).items()}


def _read_checked(path: Path, config: TTTConfig) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"there is no state file {path}; save one with TTTState.save")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no readable safetensors file ({error}); it may be cut short: save it again"
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} holds no TTT state (its format is {metadata.get('format')!r}, expected {FORMAT!r})")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"{path} has state version {metadata.get('version')}; this code reads version {VERSION}")
    difference = config.state_difference(json.loads(metadata.get("config", "{}")))
    if difference:
        raise ValueError(f"{path} was saved by a layer of another config: {'; '.join(difference)}")
    rows = tensors["count"].numel() if "count" in tensors else 0
    expected = _expected_shapes(config, rows)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        told = "; ".join(
            f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'none')}" for name in wrong
        )
        raise ValueError(f"{path} is damaged: {told}. Save it again")
    return tensors
