"""Qwen + Mimi: a Qwen2 decoder that hears codes, writes its own text and says codes, a frame of 80 ms at a position.

Shape letters: B conversations, T frames, Q codebooks, S codes of a codebook, V text ids, C width, N frames chosen.

    frame t - 1:  own text + Q codes said + Q codes heard, embedded and summed
       └─ decoder (TTT, windows: `mount(model.decoder, ...)`) ─┬─ text of frame t
                                                               └─ depth decoder, given that text ─ Q codes of frame t
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2Model
from transformers.cache_utils import Cache
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from backbones.exact_rotary import restore_rotary_frequencies
from backbones.qwen_mimi.config import QwenMimiConfig
from backbones.qwen_mimi.depth import DepthDecoder
from backbones.qwen_mimi.streaming import GREEDY, FrameChoice, FrameStream, SaidFrame
from backbones.speech.mimi import MimiTokenizer


@dataclass(frozen=True)
class QwenMimiOutput:
    """Of frames that were all given. Losses are means over real frames, FP32 nats.

    loss: text_loss + the mean of code_losses. code_losses: (Q,), one a codebook said.
    text_logits: (B, T, V - 1), no text last. code_logits: (B, T, Q, S), given the frame's true text and codes.
    """

    loss: Tensor
    text_loss: Tensor
    code_losses: Tensor
    text_logits: Tensor
    code_logits: Tensor


class QwenMimi(nn.Module):
    """Random weights of the sizes that `config` has.

    mimi: what its codes are made by, for sound in and out; None until `attach_mimi`. It is not trained, moved or saved
    with the model.
    """

    def __init__(self, config: QwenMimiConfig) -> None:
        super().__init__()
        self.config = config
        self.mimi: MimiTokenizer | None = None
        self.decoder = Qwen2Model(config.decoder_config())
        rows = 2 * config.codebooks * (config.codebook_size + 1)  # one more a codebook for the start of a stream
        self.code_embedding = nn.Embedding(rows, config.hidden_size)
        self.text_head = nn.Linear(config.hidden_size, config.text_vocab_size, bias=False)
        self.depth = DepthDecoder(config)
        for module in (self.code_embedding, self.text_head):
            nn.init.normal_(module.weight, std=config.initializer_range)

    @property
    def device(self) -> torch.device:
        return self.code_embedding.weight.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as any module does, but keeps the rotary frequencies exact."""
        super()._apply(fn, recurse)
        restore_rotary_frequencies(self, Qwen2RotaryEmbedding)
        return self

    def attach_mimi(self, mimi: MimiTokenizer) -> None:
        """Makes `mimi` the one that its codes are of; ValueError where those are of another number or size."""
        found = (mimi.codebooks, mimi.model.config.codebook_size)
        if found != (self.config.codebooks, self.config.codebook_size):
            raise ValueError(
                f"this Mimi gives {found[0]} codebooks of {found[1]} codes, the model knows {self.config.codebooks} of "
                f"{self.config.codebook_size}; load Mimi with codebooks={self.config.codebooks}, or give another one"
            )
        self.mimi = mimi

    # Training

    def forward(self, text: Tensor, said: Tensor, heard: Tensor, lengths: Tensor | None = None) -> QwenMimiOutput:
        """What the model makes of every frame from those before it, and what that costs.

        text (B, T), said and heard (B, Q, T), int64. lengths (B,): real frames of each conversation, right-padded (with
        any valid ids); None: all of T. Raises ValueError on other shapes, ids out of range, and no frames.
        """
        is_real = self._real_frames(text, lengths)
        hidden, _ = self.read(*self.frames_before(text, said, heard))
        text_logits = self.text_logits(hidden)
        codes = said.transpose(1, 2)
        code_logits = self.code_logits(hidden.flatten(0, 1), text.flatten(), codes.flatten(0, 1))
        code_logits = code_logits.unflatten(0, text.shape)
        text_loss = functional.cross_entropy(text_logits[is_real].float(), text[is_real])
        nats = functional.cross_entropy(
            code_logits[is_real].float().flatten(0, 1), codes[is_real].flatten(), reduction="none"
        )
        code_losses = nats.view(-1, self.config.codebooks).mean(dim=0)
        return QwenMimiOutput(text_loss + code_losses.mean(), text_loss, code_losses, text_logits, code_logits)

    def frames_before(self, text: Tensor, said: Tensor, heard: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each frame the one before it, of the same shapes: the start of the stream, then all but the last."""
        self.check_frames(text, said, heard)
        start_text, start_codes = self.start_frame(text.shape[0])
        return (
            torch.cat([start_text, text[:, :-1]], dim=1),
            torch.cat([start_codes, said[:, :, :-1]], dim=2),
            torch.cat([start_codes, heard[:, :, :-1]], dim=2),
        )

    def start_frame(self, rows: int) -> tuple[Tensor, Tensor]:
        """Text (rows, 1) and codes (rows, Q, 1), said as heard, of what comes before the first frame."""
        text = torch.full((rows, 1), self.config.start_text_id, device=self.device)
        return text, torch.full((rows, self.config.codebooks, 1), self.config.start_code, device=self.device)

    def read(
        self, text: Tensor, said: Tensor, heard: Tensor, past_key_values: Cache | None = None, use_cache: bool = False,
        ttt_base_lr: float | None = None,
    ) -> tuple[Tensor, Cache | None]:  # fmt: skip
        """(B, T, C): from each frame that is read, what the next one is said from; and the cache to go on with.

        past_key_values: of the frames before, None at the start. ttt_base_lr: inner step size of this call where TTT is
        mounted; None is its own. Raises ValueError on other shapes, and ids out of range.
        """
        embedded = self._embedded(text, said, heard)
        options: dict[str, Any] = {} if ttt_base_lr is None else {"ttt_base_lr": ttt_base_lr}
        out = self.decoder(inputs_embeds=embedded, past_key_values=past_key_values, use_cache=use_cache, **options)
        return out.last_hidden_state, out.past_key_values if use_cache else None

    def text_logits(self, hidden: Tensor) -> Tensor:
        """(..., V - 1): every text token and, last, no text. The start of a stream cannot be said."""
        return self.text_head(hidden)[..., : self.config.start_text_id]

    def code_logits(self, hidden: Tensor, text: Tensor, said: Tensor) -> Tensor:
        """(N, Q, S) of N frames: hidden (N, C) that they are said from, their text (N,), the codes (N, Q) they have."""
        return self.depth(hidden, self.decoder.embed_tokens(text), said)

    # Streaming

    def stream(self, rows: int = 1, keeps_cache: bool = True) -> FrameStream:
        """Conversations at their beginning, to be read and continued frame by frame.

        keeps_cache: False reads everything anew for each frame, which is slow and gives the same.
        """
        return FrameStream(self, rows, keeps_cache)

    def generate_stream(
        self, heard: Iterable[Tensor], choice: FrameChoice = GREEDY, rows: int = 1
    ) -> Iterator[SaidFrame]:
        """Frames as they are said, while frames are heard: each is given before the one that sounds beside it is asked
        for, so that there is one more than was heard.

        heard: codes (rows, Q) of one frame after the other, as they come in. Raises ValueError where nothing comes.
        """
        stream = self.stream(rows)
        heard_any = False
        yield stream.say(choice)
        for frame in heard:
            heard_any = True
            stream.hear(frame)
            yield stream.say(choice)
        if not heard_any:
            raise ValueError("the stream ended before any frame was heard: give at least one frame of codes")

    def generate(self, heard: Tensor, choice: FrameChoice = GREEDY, keeps_cache: bool = True) -> SaidFrame:
        """What is said while `heard` (B, Q, T) is, all at once: text (B, T + 1), codes (B, Q, T + 1)."""
        if heard.dim() != 3 or not heard.shape[2]:
            raise ValueError(
                f"heard must be codes (rows, {self.config.codebooks}, frames) of at least one frame, got "
                f"{tuple(heard.shape)}"
            )
        stream = self.stream(heard.shape[0], keeps_cache)
        frames = [stream.say(choice)]
        for frame in heard.unbind(dim=2):
            stream.hear(frame)
            frames.append(stream.say(choice))
        return SaidFrame(
            text=torch.stack([frame.text for frame in frames], dim=1),
            codes=torch.stack([frame.codes for frame in frames], dim=2),
        )

    # What is given, checked

    def _embedded(self, text: Tensor, said: Tensor, heard: Tensor) -> Tensor:
        """(B, T, C): the sum of all streams' embeddings."""
        self.check_frames(text, said, heard, with_start=True)
        codes = torch.cat([said, heard], dim=1)
        offsets = torch.arange(codes.shape[1], device=codes.device) * (self.config.codebook_size + 1)
        return self.decoder.embed_tokens(text) + self.code_embedding(codes + offsets[:, None]).sum(dim=1)

    def check_frames(self, text: Tensor, said: Tensor, heard: Tensor, with_start: bool = False) -> None:
        """Raises ValueError unless text is (B, T), codes are (B, Q, T), T is 1 or more, and all ids are in range.

        with_start: the ids of the start of a stream may be among them.
        """
        if text.dim() != 2 or not text.shape[1]:
            raise ValueError(
                f"text must be ids (batch, frames) of at least one frame, got shape {tuple(text.shape)}: an empty "
                "stream has nothing to read"
            )
        expected = (text.shape[0], self.config.codebooks, text.shape[1])
        for name, codes in (("said", said), ("heard", heard)):
            if tuple(codes.shape) != expected:
                raise ValueError(
                    f"the codes {name} must be (batch, codebooks, frames) = {expected}, as the text and the model have "
                    f"it; got {tuple(codes.shape)}"
                )
            _check_ids(f"the codes {name}", codes, self.config.start_code - (not with_start))
        _check_ids("text ids", text, self.config.start_text_id - (not with_start))

    def _real_frames(self, text: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T) bool."""
        frames = text.shape[-1]
        if lengths is None:
            return torch.ones_like(text, dtype=torch.bool)
        if lengths.shape != text.shape[:1] or int(lengths.min()) < 1 or int(lengths.max()) > frames:
            raise ValueError(f"lengths must be {text.shape[0]} numbers of 1 to {frames} frames, got {lengths.tolist()}")
        return torch.arange(frames, device=text.device) < lengths.to(text.device)[:, None]


def _check_ids(what: str, ids: Tensor, highest: int) -> None:
    """Raises ValueError unless all are whole numbers from 0 to `highest`."""
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"{what} must be whole numbers, got {ids.dtype}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > highest:
        raise ValueError(f"{what} must be 0 to {highest}, got {low} to {high}")
