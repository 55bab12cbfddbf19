"""Streams a trained model without an end, several tokens a call, and looks at its inner weights on the way.

Legend: N streams, T positions, V text tokens, b mini-batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy
import torch
from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import give_ring_room
from backbones.moshi.mount import ttt_modules
from backbones.moshi.streaming_ttt import StreamingTTT
from experiments.fact_streams.reading import model_inputs
from ttt_core import TTTMonitor, TTTState, commit_sizes
from ttt_core.commit import squared_norms


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The inner weights at a position of the stream: means over streams and heads.

    inner_norm: Frobenius norm over all tensors of a head. effective_step: of the next mini-batch's commit, as a share
    of that norm. largest_weight: largest absolute value in W1 of any stream.
    """

    position: int
    inner_norm: float
    effective_step: float
    largest_weight: float


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """logits: (N, T, V), teacher-forced, on the CPU."""

    logits: Tensor
    probes: tuple[Probe, ...]


def probe_positions(positions: int, tokens_per_call: int, count: int) -> tuple[int, ...]:
    """Up to `count` starts of calls, spread evenly over the logarithm of the position; the first call is one."""
    calls = positions // tokens_per_call
    spread = numpy.unique(numpy.geomspace(1, calls, count).round().astype(int)) - 1
    return tuple((spread * tokens_per_call).tolist())


@torch.no_grad()
def stream_logits(
    lm: LMModel, codes: Tensor, tokens_per_call: int, resets: Collection[int] = (), probed: Collection[int] = (),
    before_call: Callable[[int], None] | None = None, monitor: TTTMonitor | None = None,
) -> Streamed:  # fmt: skip
    """Streams codes (N, streams, T) through the package's streaming, `tokens_per_call` positions a call.

    resets: positions, multiples of `tokens_per_call`, before which the TTT states alone start anew. probed: positions
    of the same kind at which the inner weights are looked at; a call is then cut in two behind its first mini-batch.
    before_call: called with the position before each call, while the model streams. monitor: is shown the inner weights
    wherever they are probed.

    Raises ValueError for a call that is shorter than a mini-batch where weights are probed.
    """
    give_ring_room(lm, tokens_per_call)
    modules = list(ttt_modules(lm).values())
    device = next(lm.parameters()).device
    inputs, logits, probes = model_inputs(lm, codes.to(device)), [], []
    with lm.streaming(codes.shape[0]):
        for start in range(0, codes.shape[2], tokens_per_call):
            if before_call is not None:
                before_call(start)
            if start in resets:
                _reset(modules)
            call = inputs[:, :, start : start + tokens_per_call]
            if modules and start in probed:
                first, rest, probe = _probed_call(lm, call, modules, start, monitor)
                logits += [first.cpu(), rest.cpu()]
                probes.append(probe)
            else:
                logits.append(lm.forward_text(call)[1][:, 0].cpu())
    return Streamed(logits=torch.cat(logits, dim=1), probes=tuple(probes))


def _probed_call(
    lm: LMModel, call: Tensor, modules: Sequence[StreamingTTT], position: int, monitor: TTTMonitor | None
) -> tuple[Tensor, Tensor, Probe]:
    size = modules[0].ttt.config.mini_batch_size
    if call.shape[2] <= size or position % size:
        raise ValueError(
            f"a call of {call.shape[2]} tokens at position {position} can't be cut behind its first mini-batch of "
            f"{size}: tokens_per_call must be a multiple of the mini-batch, and longer"
        )
    before = [_held(module).clone() for module in modules]
    if monitor is not None:
        for layer, state in zip(ttt_modules(lm), before, strict=True):
            weights = state.working_weights
            monitor.log_layer_state(layer, *weights, step=position, initial=state.initial)
    first = lm.forward_text(call[:, :, :size])[1][:, 0]
    steps = [commit_sizes(old, _held(module)).mean() for old, module in zip(before, modules, strict=True)]
    norms = [squared_norms(old.working_weights.tensors).sqrt().mean() for old in before]
    rest = lm.forward_text(call[:, :, size:])[1][:, 0]
    probe = Probe(
        position=position,
        inner_norm=float(torch.stack(norms).mean()),
        effective_step=float(torch.stack(steps).mean()),
        largest_weight=max(float(old.W1.abs().max()) for old in before),
    )
    return first, rest, probe


def _held(module: StreamingTTT) -> TTTState:
    assert module._streaming_state is not None
    return module._streaming_state.held


def _reset(modules: Sequence[StreamingTTT]) -> None:
    for module in modules:
        state = module._streaming_state
        assert state is not None
        state.reset(torch.ones_like(state.exec_mask))
