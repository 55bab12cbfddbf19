"""The speech generator: one language-model state per text token in, 25 frames of unit logits per token out.

Shape letters: B batch, T frames (25 a text token), C hidden size of the language model, W width of the generator,
H heads, d head_dim.

A frame depends on earlier frames only (prefix property), so frames already made never change when text goes on: they
are cached. With a window each frame sees itself and the window - 1 frames before it, and the cache stays that small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from backbones.llama_omni.config import LlamaOmniConfig
from backbones.llama_omni.ctc import (
    SpeechLoss,
    check_units,
    frames_needed,
    groups_by_length,
    spread,
    summed_ctc,
    upsampled_length,
)

FRAMES_PER_LOSS_GROUP = 32768
"""Turns are padded together up to this many frames: bounds what padding wastes."""

LEAST_WINDOWED_CHUNK = 256
"""Frames computed at once under a window; a longer window uses chunks as long as itself."""


@dataclass(frozen=True)
class GeneratorState:
    """What the generator remembers of the frames before: rotated keys and values (B, H, kept, d) of each layer.

    `frames` counts all frames since the start; `window` is the window in force (None: all frames are kept).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    frames: int
    window: int | None

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.keys + self.values)


class _LayerKeys:
    """Stands in for transformers' cache during one call: joins kept and new keys, and notes what to keep next."""

    def __init__(self, state: GeneratorState) -> None:
        self.state = state
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        if self.state.keys:
            keys = torch.cat([self.state.keys[layer_idx], keys], dim=2)
            values = torch.cat([self.state.values[layer_idx], values], dim=2)
        self.keys.append(self._kept(keys))
        self.values.append(self._kept(values))
        return keys, values

    def _kept(self, tensor: Tensor) -> Tensor:
        window = self.state.window
        if window is None or tensor.shape[2] < window:
            return tensor
        # Cloned: a view would hold on to every frame of the call.
        return tensor[:, :, tensor.shape[2] - (window - 1) :].clone()


class SpeechGenerator(nn.Module):
    """Causal Llama layers over upsampled text states; published names `input_proj`, `layers`, `output_proj`."""

    def __init__(self, config: LlamaOmniConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        # Flash and flex attention take no explicit mask; the two below are given one, or the causal flag, always.
        self.attn_implementation = "eager" if attn_implementation == "eager" else "sdpa"
        self.layer_config = config.speech_generator_config(self.attn_implementation)
        width = self.layer_config.hidden_size
        self.frames_per_token = config.ctc_upsample_factor
        self.unit_vocab_size = config.unit_vocab_size
        self.window = config.speech_generator_window
        self.input_proj = nn.Linear(config.hidden_size, width)
        self.layers = nn.ModuleList(
            [LlamaDecoderLayer(self.layer_config, index) for index in range(self.layer_config.num_hidden_layers)]
        )
        self.output_proj = nn.Linear(width, config.unit_vocab_size + 1)
        self._inverse_frequencies: tuple[Tensor, float] | None = None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
        for projection in (self.input_proj, self.output_proj):
            nn.init.zeros_(projection.bias)

    @property
    def blank(self) -> int:
        return self.unit_vocab_size

    def initial_state(self, window: int | None = None) -> GeneratorState:
        """Before the first frame. `window` in frames; None keeps every frame."""
        if window is not None and window < 1:
            raise ValueError(f"window must be at least 1 frame or None, got {window}")
        return GeneratorState(keys=(), values=(), frames=0, window=window)

    def forward(self, frames: Tensor, window: int | None = None) -> Tensor:
        """Unit logits (B, T, units + 1) of upsampled states (B, T, C). Right padding cannot reach real frames."""
        if window is None or frames.shape[1] <= window:
            return self.advance(frames, self.initial_state())[0]
        return torch.cat([logits for logits, _ in self._windowed(frames, self.initial_state(window))], dim=1)

    def _windowed(self, frames: Tensor, state: GeneratorState) -> Iterator[tuple[Tensor, GeneratorState]]:
        assert state.window is not None
        for chunk in frames.split(max(state.window, LEAST_WINDOWED_CHUNK), dim=1):
            logits, state = self.advance(chunk, state)
            yield logits, state

    def advance(self, frames: Tensor, state: GeneratorState) -> tuple[Tensor, GeneratorState]:
        """Unit logits (B, T, units + 1) of the next T frames (B, T, C), and the state after them."""
        hidden = self.input_proj(frames)
        kept = state.keys[0].shape[2] if state.keys else 0
        mask = self._mask(hidden, kept, state.window)
        position_embeddings = self._rotations(hidden, state.frames)
        layer_keys = _LayerKeys(state)
        for layer in self.layers:
            hidden = layer(
                hidden, attention_mask=mask, position_embeddings=position_embeddings, past_key_values=layer_keys
            )
        following = GeneratorState(
            keys=tuple(layer_keys.keys),
            values=tuple(layer_keys.values),
            frames=state.frames + frames.shape[1],
            window=state.window,
        )
        return self.output_proj(hidden), following

    def predict(self, states: Tensor, window: int | None = None) -> Tensor:
        """The most likely class of every frame, (tokens, C) -> (tokens * frames_per_token,)."""
        frames = states.repeat_interleave(self.frames_per_token, dim=0)[None]
        return self(frames, window)[0].float().argmax(dim=-1)

    def speech_loss(self, states: Sequence[Tensor], units: Sequence[Tensor], window: int | None = None) -> SpeechLoss:
        """CTC loss of turns: `states` (tokens, C) and `units` (U,) of each."""
        lengths, infeasible = [], 0
        for turn, (turn_states, turn_units) in enumerate(zip(states, units, strict=True)):
            check_units(turn_units, self.unit_vocab_size, f"turn {turn}")
            if turn_states.shape[0] == 0:
                raise ValueError(f"turn {turn} has units but no labelled token; labels must cover what is spoken")
            lengths.append(upsampled_length(turn_states.shape[0], turn_units.numel(), self.frames_per_token))
            infeasible += frames_needed(turn_units) > lengths[-1]
        if not lengths:
            raise ValueError("speech_loss needs at least one turn")
        total: Tensor | None = None
        for group in groups_by_length(lengths, FRAMES_PER_LOSS_GROUP):
            frames = nn.utils.rnn.pad_sequence([spread(states[i], lengths[i]) for i in group], batch_first=True)
            logits = self(frames, window)
            part = summed_ctc(logits, [lengths[i] for i in group], [units[i] for i in group], self.blank)
            total = part if total is None else total + part
        assert total is not None
        return SpeechLoss(total / sum(u.numel() for u in units), infeasible=int(infeasible), turns=len(lengths))

    def _mask(self, hidden: Tensor, kept: int, window: int | None) -> Tensor | None:
        """Additive (1, 1, T, kept + T) mask, causal and within the window; None where sdpa's causal flag says the same.

        transformers' eager attention given no mask looks into the future, so eager always gets one.
        """
        new = hidden.shape[1]
        window_binds = window is not None and kept + new > window
        if self.attn_implementation == "sdpa" and not window_binds and (kept == 0 or new == 1):
            return None
        query = torch.arange(kept, kept + new, device=hidden.device)[:, None]
        key = torch.arange(kept + new, device=hidden.device)[None, :]
        hidden_from_query = key > query
        if window is not None:
            hidden_from_query |= key <= query - window
        mask = hidden.new_zeros(new, kept + new)
        return mask.masked_fill_(hidden_from_query, torch.finfo(hidden.dtype).min)[None, None]

    def _rotations(self, hidden: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """cos and sin (1, T, d) of positions start, start + 1, ...

        Angles in FP64: an hour of speech is 290,000 frames, where FP32 angles are off by hundredths of a radian.
        The frequencies are no buffer, so that no `.to(bfloat16)` can round them.
        """
        if self._inverse_frequencies is None:
            with torch.device("cpu"):
                rotary = LlamaRotaryEmbedding(self.layer_config)
            self._inverse_frequencies = (rotary.inv_freq.double(), rotary.attention_scaling)
        frequencies, scale = self._inverse_frequencies
        positions = torch.arange(start, start + hidden.shape[1], dtype=torch.float64)
        angles = torch.outer(positions, frequencies).repeat(1, 2)[None]
        return (
            (angles.cos() * scale).to(hidden.device, hidden.dtype),
            (angles.sin() * scale).to(hidden.device, hidden.dtype),
        )
