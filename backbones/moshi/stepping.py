"""One generated frame, with its input checked: `LMGen.step` asserts, and its assertions do not say what to do."""

from __future__ import annotations

import torch
from moshi.models.lm import LMGen
from torch import Tensor


def generate_step(generator: LMGen, heard: Tensor) -> Tensor | None:
    """The next frame (rows, 1 + dep_q, 1) of text and own audio, as `LMGen.step` gives it.

    heard: (rows, n_q - dep_q, 1) int64, the heard codebooks of this frame; -1 where nothing is given. What is heard in
        the very first step of a row is not used: the model begins with its initial tokens.

    None for the first `max(delays)` steps, which have no whole frame yet. A reset of *some* rows makes the package
    count from 0 again for *all* rows, so that the same number of steps gives None to rows that were not reset. With
    LMGen(support_out_of_sync=True) every step gives a frame, and tokens of rows that have none yet are -2.

    Raises ValueError for another shape, dtype or batch, and on a CPU for tokens that no codebook has.
    """
    state = generator._streaming_state
    if state is None:
        raise ValueError("the LMGen is not streaming: enter `with generator.streaming(rows):` first")
    lm = generator.lm_model
    expected = (state.batch_size, lm.n_q - lm.dep_q, 1)
    if tuple(heard.shape) != expected:
        raise ValueError(f"heard must have shape (rows, heard codebooks, 1) = {expected}, got {tuple(heard.shape)}")
    if heard.dtype != torch.int64:
        raise ValueError(f"heard must be int64 tokens, got {heard.dtype}")
    # Looking at values would make a GPU wait.
    is_looked_at = heard.device.type == "cpu" and heard.numel() > 0
    if is_looked_at and not lm.zero_token_id <= int(heard.min()) <= int(heard.max()) <= lm.card:
        raise ValueError(
            f"heard tokens must be in {lm.zero_token_id}-{lm.card}, got {int(heard.min())}-{int(heard.max())}"
        )
    return generator.step(heard)
