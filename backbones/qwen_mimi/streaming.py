"""A conversation that goes on frame by frame: what was said and heard is read, the next frame is said.

Shape letters: B conversations (rows), F frames, Q codebooks, C width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from backbones.mounting import MountedCache

if TYPE_CHECKING:
    from backbones.qwen_mimi.model import QwenMimi


@dataclass(frozen=True)
class SaidFrame:
    """text (B,) int64, an id or the model's `no_text_id`; codes (B, Q) int64. Of several frames: (B, F), (B, Q, F)."""

    text: Tensor
    codes: Tensor


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """How a frame is chosen from its logits: the likeliest at temperature 0, else drawn from the top_k likeliest.

    random: where draws come from; None is torch's own generator.
    """

    text_temperature: float = 0.0
    text_top_k: int = 25
    code_temperature: float = 0.0
    code_top_k: int = 250
    random: torch.Generator | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("text_temperature", "code_temperature"):
            given = getattr(self, name)
            if not (math.isfinite(given) and given >= 0):
                raise ValueError(f"{name} must be 0 (the likeliest) or more and finite, got {given}")
        for name in ("text_top_k", "code_top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def text(self, logits: Tensor) -> Tensor:
        """(B, V) -> (B,)."""
        return self._chosen(logits, self.text_temperature, self.text_top_k)

    def code(self, logits: Tensor) -> Tensor:
        """(B, S) -> (B,)."""
        return self._chosen(logits, self.code_temperature, self.code_top_k)

    def _chosen(self, logits: Tensor, temperature: float, top_k: int) -> Tensor:
        if not bool(logits.isfinite().all()):
            raise ValueError("a frame cannot be chosen from logits with NaN or infinity: the weights are damaged")
        if temperature == 0:
            return logits.argmax(dim=1)
        top, ids = logits.float().topk(min(top_k, logits.shape[1]), dim=1)
        drawn = torch.multinomial(torch.softmax(top / temperature, dim=1), 1, generator=self.random)
        return ids.gather(1, drawn)[:, 0]


GREEDY = FrameChoice()
# As moshi's own generation draws.
SAMPLED = FrameChoice(text_temperature=0.7, code_temperature=0.8)


class FrameStream:
    """Rows of conversations from their beginning on. Say a frame, hear the one that sounded beside it, and so on.

    Memory: what the decoder keeps of the past (a cache), and one state. Where every layer of the decoder is TTT or
    windowed it stays the same however long the stream is. `QwenMimi.stream` makes one.
    """

    def __init__(self, model: QwenMimi, rows: int, keeps_cache: bool = True) -> None:
        if rows < 1:
            raise ValueError(f"a stream needs at least 1 row, got {rows}")
        self.model, self.rows, self.keeps_cache = model, rows, keeps_cache
        self.frames = 0
        self._cache: Cache | None = None
        self._past: list[tuple[Tensor, Tensor, Tensor]] = []
        self._said: SaidFrame | None = None
        start_text, start_codes = model.start_frame(rows)
        self._state = self._states(start_text, start_codes, start_codes)

    @property
    def nbytes(self) -> int | None:
        """Bytes of a mounted decoder's memory; None where it is not mounted or keeps none."""
        return self._cache.nbytes if isinstance(self._cache, MountedCache) else None

    def read(self, text: Tensor, said: Tensor, heard: Tensor) -> None:
        """Takes whole frames as they are: text (B, F), codes said and heard (B, Q, F)."""
        if self._said is not None:
            raise ValueError("a frame was said, and nothing heard beside it yet: call hear before reading others")
        self.model.check_frames(text, said, heard)
        self._state = self._states(text, said, heard)
        self.frames += text.shape[1]

    def say(self, choice: FrameChoice = GREEDY) -> SaidFrame:
        """The next frame of every row. It is read itself once `hear` tells what sounded beside it."""
        if self._said is not None:
            raise ValueError("a frame was said already: call hear with what sounded beside it, then say the next")
        with torch.no_grad():
            text = choice.text(self.model.text_logits(self._state))
            codes = self._codes(text, choice.code)
        self._said = SaidFrame(text=text, codes=codes)
        return self._said

    def hear(self, heard: Tensor) -> None:
        """What was heard while the last frame was said: codes (B, Q)."""
        if self._said is None:
            raise ValueError("nothing was said that this could be heard beside: call say first, or read whole frames")
        expected = (self.rows, self.model.config.codebooks)
        if tuple(heard.shape) != expected:
            raise ValueError(f"a heard frame must be codes (rows, codebooks) = {expected}, got {tuple(heard.shape)}")
        said, heard = self._said, heard.to(self.model.device)
        frame = said.text[:, None], said.codes[:, :, None], heard[:, :, None]
        self.model.check_frames(*frame)
        self._state = self._states(*frame)
        self.frames += 1
        self._said = None

    def _codes(self, text: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
        model = self.model
        return model.depth.say(self._state, model.decoder.embed_tokens(text), choose)

    @torch.no_grad()
    def _states(self, text: Tensor, said: Tensor, heard: Tensor) -> Tensor:
        """(B, C): what the frame after these is said from."""
        if not self.keeps_cache:
            self._past.append((text, said, heard))
            text, said, heard = (torch.cat(parts, dim=-1) for parts in zip(*self._past, strict=True))
            return self.model.read(text, said, heard)[0][:, -1]
        hidden, self._cache = self.model.read(text, said, heard, past_key_values=self._cache, use_cache=True)
        return hidden[:, -1]
