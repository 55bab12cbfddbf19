"""Runs one random layer over streams under one treatment, and keeps what comparing needs at every checkpoint.

Legend: R rows (streams of every kind under every step size), P probe tokens, C hidden size, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.drift.configuration import Treatment
from ttt_core import InnerWeights, TTTConfig, TTTLayer, TTTState


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What flows through a layer: vectors (R, T, C), and the step size base_lr of every row, (R,)."""

    vectors: Tensor
    base_lr: Tensor

    def part(self, first: int, end: int) -> Tensor:
        """Tokens first <= t < end, where the step sizes are: a stream of a million tokens stays in main memory."""
        return self.vectors[:, first:end].to(self.base_lr.device)

    @property
    def step_sizes(self) -> Tensor:
        """(R, 1, 1), as a layer's gate (R, T, H) takes it."""
        return self.base_lr[:, None, None]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One treatment after so many updates.

    weights: (R, numbers) float64, all inner weights. outputs: (R, P, C) float64 of the probe, the next P tokens, and
    inner_loss: (R,) its mean. lost_share: (R,) of the weights that the next update should move, those it leaves as they
    are. step_error: (R,) how far that update is from the one in FP64 from the same weights, relative to it.
    """

    weights: Tensor
    outputs: Tensor
    inner_loss: Tensor
    lost_share: Tensor
    step_error: Tensor


@dataclass(frozen=True, kw_only=True)
class TreatedLayer:
    """A layer under a treatment, and the same weights kept and updated in FP64."""

    layer: TTTLayer
    exact: TTTLayer
    treatment: Treatment

    @staticmethod
    def build(config: TTTConfig, treatment: Treatment, seed: int, device: str = "cpu") -> TreatedLayer:
        """All treatments of a seed share every learned parameter."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = TTTLayer(treatment.applied_to(config)).eval()
        exact = TTTLayer(replace(config, precision="fp64")).eval()
        exact.load_state_dict(layer.state_dict())
        return TreatedLayer(layer=layer.to(device), exact=exact.to(device), treatment=treatment)

    def surroundings(self) -> AbstractContextManager[object]:
        device = self.layer.wq.weight.device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.treatment.under_autocast else nullcontext()


@torch.no_grad()
def snapshots(
    treated: TreatedLayer, rows: Rows, checkpoints: tuple[int, ...], probe_tokens: int, tokens_per_call: int
) -> Iterator[Snapshot]:
    """One snapshot after each number of updates, rising. The rows must go on for a probe and an update after the last.

    Every checkpoint stands at a mini-batch's end, so the probe starts with the weights that were just committed.
    """
    size = treated.layer.config.mini_batch_size
    state, done = treated.layer.initial_state(len(rows.vectors)), 0
    with treated.surroundings():
        for updates in checkpoints:
            while done < updates * size:
                end = min(done + tokens_per_call, updates * size)
                state = treated.layer(rows.part(done, end), state, base_lr=rows.step_sizes)[2]
                done = end
            yield _snapshot(treated, rows, state, done, probe_tokens)


def _snapshot(treated: TreatedLayer, rows: Rows, state: TTTState, done: int, probe_tokens: int) -> Snapshot:
    layer, size = treated.layer, treated.layer.config.mini_batch_size
    probe, lr = rows.part(done, done + probe_tokens), rows.step_sizes
    next_batch = rows.part(done, done + size)
    before = flat(state.working_weights)
    after = flat(layer(next_batch, state, base_lr=lr)[2].working_weights)
    exactly = flat(treated.exact(next_batch, in_fp64(state, treated.exact), base_lr=lr)[2].working_weights)
    wanted, moved = exactly - before, after - before
    should_move = wanted != 0
    return Snapshot(
        weights=before.cpu(),
        outputs=layer(probe, state, base_lr=lr)[0].double().cpu(),
        inner_loss=layer.inner_loss(probe, state, base_lr=lr).double().mean(dim=(1, 2)).cpu(),
        lost_share=share_lost(should_move, moved).cpu(),
        step_error=((moved - wanted).norm(dim=1) / wanted.norm(dim=1)).cpu(),
    )


def share_lost(should_move: Tensor, moved: Tensor) -> Tensor:
    """(R,) of the numbers (R, n) that should move, the share that did not; NaN where none should."""
    lost = should_move & (moved == 0)
    return lost.sum(dim=1).double() / should_move.sum(dim=1).double()


def in_fp64(state: TTTState, layer: TTTLayer) -> TTTState:
    """The same inner weights, at a mini-batch's start, as a state of the FP64 `layer`."""
    assert not bool(state.open_tokens.any()), "the open mini-batch's sums are not carried over"
    weights = state.working_weights.map(Tensor.double)
    sums = weights.map(torch.zeros_like)
    return TTTState(weights, sums, state.count, {}, layer.inner.weights, layer.config)


def flat(weights: InnerWeights) -> Tensor:
    """(R, numbers) float64: every inner weight of a row."""
    return torch.cat([tensor.double().flatten(1) for tensor in weights.tensors], dim=1)
