"""The depth decoder: the codes of one frame, one codebook after the other, from what the frame is said from.

Shape letters: N frames, Q codebooks, S codes of a codebook, C width of the decoder over frames, D of this one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Qwen2Model

from backbones.qwen_mimi.config import QwenMimiConfig


class DepthDecoder(nn.Module):
    """A small Qwen2 whose positions are the codebooks of a frame. It remembers nothing from frame to frame.

    Position 0 is the frame (its state and its text), position q the code of codebook q - 1; position q says codebook q.
    """

    def __init__(self, config: QwenMimiConfig) -> None:
        super().__init__()
        self.codebooks, self.codebook_size = config.codebooks, config.codebook_size
        self.frame_in = nn.Linear(2 * config.hidden_size, config.depth_hidden_size, bias=False)
        self.decoder = Qwen2Model(config.depth_config())
        self.heads = nn.Parameter(torch.empty(config.codebooks, config.depth_hidden_size, config.codebook_size))
        nn.init.normal_(self.frame_in.weight, std=config.initializer_range)
        nn.init.normal_(self.heads, std=config.initializer_range)

    def forward(self, hidden: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """(N, Q, S) logits of every codebook, given the true codes before it.

        hidden (N, C): what the frames are said from. text (N, C): embedding of their text. codes (N, Q) int64.
        """
        first = self._first(hidden, text)
        offsets = torch.arange(self.codebooks - 1, device=codes.device) * self.codebook_size
        later = self.decoder.embed_tokens(codes[:, :-1] + offsets)
        states = self.decoder(inputs_embeds=torch.cat([first, later], dim=1), use_cache=False).last_hidden_state
        return torch.einsum("nqd,qds->nqs", states, self.heads)

    def say(self, hidden: Tensor, text: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        """(N, Q) codes, each chosen by `choose` ((N, S) logits -> (N,)) and read before the next."""
        inputs, cache, said = self._first(hidden, text), None, []
        for codebook in range(self.codebooks):
            out = self.decoder(inputs_embeds=inputs, past_key_values=cache, use_cache=True)
            said.append(choose(out.last_hidden_state[:, -1] @ self.heads[codebook]))
            cache = out.past_key_values
            if codebook + 1 < self.codebooks:
                inputs = self.decoder.embed_tokens(said[-1] + codebook * self.codebook_size)[:, None]
        return torch.stack(said, dim=1)

    def _first(self, hidden: Tensor, text: Tensor) -> Tensor:
        """(N, 1, D)."""
        return self.frame_in(torch.cat([hidden, text.to(hidden.dtype)], dim=1))[:, None]
