"""Ways of running a trained model over long streams that only this experiment needs.

Legend: N streams, T positions, V text tokens, C window.
"""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel
from moshi.modules.transformer import KVCacheResult, RingKVCache, StreamingMultiheadAttention
from torch import Tensor

from backbones.moshi.mount import ttt_modules
from experiments.fact_streams.reading import model_inputs, streamed_logits

WINDOWS_AT_ONCE = 2048
"""Windows recomputed together: bounds the memory of the recomputed view."""


@torch.no_grad()
def recomputed_logits(lm: LMModel, codes: Tensor, window: int, has_start_token: bool = True) -> Tensor:
    """(N, T, V): every position with a cache that was thrown away and filled again from the last positions alone.

    has_start_token: the `window` inputs are the package's start token, with which its streaming always begins, and the
    last `window - 1`; else the last `window`.
    """
    inputs = model_inputs(lm, codes)
    streams, _, positions = inputs.shape
    first = lm.forward_text(inputs[:, :, :window])[1][:, 0]
    if positions <= window:
        return first
    windows = inputs.unfold(2, window, 1)[:, :, 1:].transpose(1, 2).flatten(0, 1)  # (N (T - C), streams, C)
    if has_start_token:
        start = lm._get_initial_token().expand(windows.shape[0], -1, -1)
        windows = torch.cat([start, windows[:, :, 1:]], dim=2)
    last = [lm.forward_text(part)[1][:, 0, -1] for part in windows.split(WINDOWS_AT_ONCE)]
    return torch.cat([first, torch.cat(last).unflatten(0, (streams, positions - window))], dim=1)


class HidingRing(RingKVCache):
    """The package's ring, in which the first `hidden` positions are masked from position `hides_from` on."""

    hidden: int
    hides_from: int

    @staticmethod
    def take_over(ring: RingKVCache, hidden: int, hides_from: int) -> None:
        """Makes a ring one of these, in place."""
        ring.__class__ = HidingRing
        assert isinstance(ring, HidingRing)
        ring.hidden, ring.hides_from = hidden, hides_from

    def complete(self, k: Tensor, v: Tensor, exec_mask: Tensor) -> KVCacheResult:
        kept = super().complete(k, v, exec_mask)
        is_hidden = (kept.positions < self.hidden) & (self.end_offset.view(-1, 1) > self.hides_from)
        return kept._replace(positions=torch.where(is_hidden, torch.full_like(kept.positions, -1), kept.positions))


def first_positions_hidden_logits(lm: LMModel, codes: Tensor, hidden: int, hides_from: int) -> Tensor:
    """(N, T, V) streamed logits with the first positions masked early, in every attention layer."""

    def hide(position: int) -> None:
        if position:
            return
        for module in lm.transformer.modules():
            if isinstance(module, StreamingMultiheadAttention) and module._streaming_state is not None:
                ring = module._streaming_state.kv_cache
                assert ring is not None
                HidingRing.take_over(ring, hidden, hides_from)

    return streamed_logits(lm, codes, hide)


def ttt_state_reset_logits(lm: LMModel, codes: Tensor, every: int) -> Tensor:
    """(N, T, V) streamed logits with the TTT states, and nothing else, started anew every so many positions."""

    def reset(position: int) -> None:
        if position == 0 or position % every:
            return
        for module in ttt_modules(lm).values():
            state = module._streaming_state
            assert state is not None
            state.reset(torch.ones_like(state.exec_mask))

    return streamed_logits(lm, codes, reset)
