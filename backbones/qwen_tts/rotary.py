"""Rotary tables that stay exact however far a stream has come."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

# Their frequencies depend on the longest position of a call: there is no one table for an endless stream.
LENGTH_DEPENDENT = ("dynamic", "longrope")


class ExactRotary(nn.Module):
    """cos and sin of whole positions, their angles made in FP64, as the family's module gives them otherwise.

    transformers multiplies positions and frequencies in FP32, where an angle near 10,000,000 radians has steps of one:
    two positions next to each other are no longer turned against each other by what their distance says. Measured on
    a small Qwen2 with windows (`tests/test_qwen_tts_streaming.py`): the same window's logits are off by 0.2 % of the
    largest one at position 100,000, by 3 % at a million, by 29 % at ten million. In FP64 a frequency times a position
    is exact up to 5e8. The frequencies are no buffer: a buffer would be rounded by `.to(torch.bfloat16)`.
    """

    def __init__(self, rotary: Qwen2RotaryEmbedding | Qwen3RotaryEmbedding) -> None:
        super().__init__()
        # Anew, on the CPU: the given module's own may have been cast, or be on the meta device.
        with torch.device("cpu"):
            exact = type(rotary)(rotary.config)
        self._frequencies: Tensor = exact.inv_freq.double()
        self.attention_scaling: float = exact.attention_scaling

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B or 1, T) -> cos and sin (B or 1, T, d), on the device and in the dtype of `x`."""
        if self._frequencies.device != x.device and x.device.type not in ("mps", "meta"):  # "mps" has no FP64
            self._frequencies = self._frequencies.to(x.device)
        angles = position_ids.to(self._frequencies.device)[..., None].double() * self._frequencies
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.device, x.dtype), sin.to(x.device, x.dtype)


def give_exact_rotary(llm: PreTrainedModel) -> None:
    """Puts an `ExactRotary` in the place of a Qwen's rotary module, in place.

    Raises ValueError where its frequencies depend on the length of a call.
    """
    kind = llm.config.rope_parameters["rope_type"]
    if kind in LENGTH_DEPENDENT:
        raise ValueError(
            f"rotary positions of type {kind!r} change with the longest position of a call, and a stream has no "
            "longest: set rope_parameters in config.json to 'default' or 'yarn'"
        )
    decoder = llm.get_decoder()
    if not isinstance(decoder.rotary_emb, ExactRotary):
        decoder.rotary_emb = ExactRotary(decoder.rotary_emb)
