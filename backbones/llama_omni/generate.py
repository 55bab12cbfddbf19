"""Text and speech out: one token at a time, each with its 25 frames of speech units.

Shape letters: B batch, N new text tokens, P positions in the language model's cache, C hidden size, V vocabulary.

The states that speak for a token are those that predicted it, so a token's frames are known the moment it is chosen.
Only the last hidden state is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from backbones.llama_omni.ctc import collapse_frames
from backbones.llama_omni.speech_encoder import SpeechInput
from backbones.text import TokenChoice, checked_token_ids, evaluating, padding_token_id, random_source

if TYPE_CHECKING:
    from backbones.llama_omni.generator import GeneratorState
    from backbones.llama_omni.model import LlamaOmni


@dataclass
class _Heard:
    """The one mutable thing of a conversation: the cache transformers advances in place, and what it holds.

    `attention_mask` (B, positions) is None as long as every position is real.
    """

    cache: Cache
    positions: int
    attention_mask: Tensor | None

    def add(self, mask: Tensor) -> None:
        """Notes (B, T) more positions."""
        if self.attention_mask is not None or not bool(mask.all()):
            if self.attention_mask is None:
                self.attention_mask = mask.new_ones(mask.shape[0], self.positions)
            self.attention_mask = torch.cat([self.attention_mask, mask], dim=1)
        self.positions += mask.shape[1]


@dataclass(frozen=True)
class ConversationPast:
    """Where a conversation stands after a reply, for `generate(..., past=...)`.

    The cache is advanced in place when the conversation goes on; `copy.deepcopy` it first to continue twice.
    `pending_ids` (B, 1) is each sample's last token, which the language model has chosen but not yet read.
    """

    heard: _Heard
    positions: int
    pending_ids: Tensor

    @property
    def cache(self) -> Cache:
        return self.heard.cache


@dataclass(frozen=True)
class ReplyStep:
    """One more text token of every sample.

    token_ids (B,), padding where a sample has ended; running (B,) whether the token belongs to the reply;
    ctc_frames (B, 25), blank where it does not (None without speech); new_units: one (U,) tensor a sample, the units
    that these frames add; past: the conversation up to this token.
    """

    token_ids: Tensor
    running: Tensor
    ctc_frames: Tensor | None
    new_units: list[Tensor]
    past: ConversationPast | None


@dataclass(frozen=True)
class SpokenReply:
    """text_ids (B, N), padded after a sample's end; ctc_frames (B, 25 N), blank there; units of each sample."""

    text_ids: Tensor
    ctc_frames: Tensor | None
    units_per_sample: list[Tensor]
    past: ConversationPast | None

    @property
    def units(self) -> Tensor:
        """(U,) units of the only sample; with several, use `units_per_sample`."""
        if len(self.units_per_sample) != 1:
            raise ValueError(f"the reply has {len(self.units_per_sample)} samples; use units_per_sample")
        return self.units_per_sample[0]


class _SpeechStream:
    """Turns one state a step into frames and units, remembering what spans the chunk's border."""

    def __init__(self, model: LlamaOmni, batch: int, window: int | None) -> None:
        self.generator = model.speech_generator
        self.state: GeneratorState = self.generator.initial_state(window)
        self.last_frame: list[int | None] = [None] * batch

    def say(self, states: Tensor, running: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C) states of the running samples' new tokens -> (B, 25) frames, and the units each sample adds."""
        upsampled = states[:, None].expand(-1, self.generator.frames_per_token, -1)
        logits, self.state = self.generator.advance(upsampled, self.state)
        frames = logits.float().argmax(dim=-1)
        frames = frames.masked_fill(~running[:, None], self.generator.blank)
        units = []
        for sample, sample_frames in enumerate(frames):
            units.append(collapse_frames(sample_frames, self.generator.blank, self.last_frame[sample]))
            self.last_frame[sample] = int(sample_frames[-1])
        return frames, units


@torch.no_grad()
def stream_reply(
    model: LlamaOmni,
    input_ids: Tensor,
    speech: SpeechInput | None = None,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 256,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    random: torch.Generator | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    speak: bool = True,
    speech_window: int | None = None,
    prefill_chunk: int | None = None,
    use_cache: bool = True,
    past: ConversationPast | None = None,
) -> Iterator[ReplyStep]:
    """Yields the reply token by token, each with its speech; memory grows with the language model's cache only.

    The model works in eval mode and is back in its own mode whenever the caller has control.

    input_ids (B, N) with -200 where speech stands; attention_mask (B, N) drops padding. eos_token_id None takes the
    config's. `speech_window`: how many recent frames the speech generator sees (default: the config's
    `speech_generator_window`). `prefill_chunk` reads the prompt that many positions at a time. `use_cache=False`
    reads everything anew at every token: slow, the definition the cached way is tested against. `past`: goes on
    from an earlier reply, whose last token is read first.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if past is not None and not use_cache:
        raise ValueError("a conversation continued from `past` needs use_cache=True")
    if not 0 <= min_new_tokens <= max_new_tokens:
        raise ValueError(f"min_new_tokens must be 0 to max_new_tokens ({max_new_tokens}), got {min_new_tokens}")
    vocab_size = model.config.vocab_size
    given_ends = model.config.end_token_ids if eos_token_id is None else eos_token_id
    ends = checked_token_ids("eos_token_id", given_ends, vocab_size)
    choice = TokenChoice(
        temperature=temperature,
        top_p=top_p,
        min_new_tokens=min_new_tokens,
        end_token_ids=ends,
        random=random_source(seed, random, model.device),
    )
    padding_id = padding_token_id(pad_token_id, model.config.pad_token_id, ends)
    checked_token_ids("pad_token_id", padding_id, vocab_size)
    reader = _Reader(model, use_cache, prefill_chunk)
    batch = input_ids.shape[0]
    window = model.speech_generator.window if speech_window is None else speech_window
    voice = _SpeechStream(model, batch, window) if speak else None
    running = torch.ones(batch, dtype=torch.bool, device=model.device)
    tokens = pending = torch.zeros(batch, dtype=torch.long, device=model.device)
    for step in range(max_new_tokens):
        with evaluating(model):
            state = (
                reader.read_token(tokens, running) if step else reader.start(input_ids, speech, attention_mask, past)
            )
            chosen = choice.choose(model.llm.lm_head(state), step)
            tokens = torch.where(running, chosen, padding_id)
            pending = torch.where(running, chosen, pending)
            frames, units = voice.say(state, running) if voice else (None, [])
        spoken = running
        running = running & ~torch.isin(chosen, torch.tensor(ends, device=chosen.device, dtype=chosen.dtype))
        yield ReplyStep(tokens, spoken, frames, units, reader.past(pending))
        if not bool(running.any()):
            return


def generate_reply(
    model: LlamaOmni,
    input_ids: Tensor,
    speech: SpeechInput | None = None,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 256,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    random: torch.Generator | None = None,
    eos_token_id: int | list[int] | None = None,
    pad_token_id: int | None = None,
    speak: bool = True,
    speech_window: int | None = None,
    prefill_chunk: int | None = None,
    use_cache: bool = True,
    past: ConversationPast | None = None,
) -> SpokenReply:
    """The whole reply; arguments as `stream`."""
    steps = list(
        stream_reply(
            model,
            input_ids,
            speech,
            attention_mask=attention_mask,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            random=random,
            eos_token_id=eos_token_id,
            pad_token_id=pad_token_id,
            speak=speak,
            speech_window=speech_window,
            prefill_chunk=prefill_chunk,
            use_cache=use_cache,
            past=past,
        )
    )
    frames = [step.ctc_frames for step in steps if step.ctc_frames is not None]
    units = [torch.cat([step.new_units[b] for step in steps]) for b in range(input_ids.shape[0])] if speak else []
    return SpokenReply(
        text_ids=torch.stack([step.token_ids for step in steps], dim=1),
        ctc_frames=torch.cat(frames, dim=1) if speak else None,
        units_per_sample=units,
        past=steps[-1].past,
    )


class _Reader:
    """Feeds the language model and gives back the last hidden state of every sample."""

    def __init__(self, model: LlamaOmni, use_cache: bool, prefill_chunk: int | None) -> None:
        if prefill_chunk is not None and prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be at least 1 position or None, got {prefill_chunk}")
        self.model = model
        self.use_cache = use_cache
        self.prefill_chunk = prefill_chunk
        self.heard: _Heard | None = None
        self.embeds: Tensor | None = None
        self.mask: Tensor | None = None

    def start(
        self, input_ids: Tensor, speech: SpeechInput | None, mask: Tensor | None, past: ConversationPast | None
    ) -> Tensor:
        """Reads the prompt (after what is pending in `past`); (B, C) states at each sample's last position."""
        if past is not None:
            self._check(past, input_ids.shape[0])
            self.heard = past.heard
            pending = past.pending_ids.to(input_ids.device)
            input_ids = torch.cat([pending, input_ids], dim=1)
            mask = None if mask is None else torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
        spliced = self.model.splice(input_ids, speech, attention_mask=mask, padding_side="left")
        if not bool(spliced.attention_mask.any(dim=1).all()):
            raise ValueError("a sample has no token and no speech to reply to")
        if not self.use_cache:
            self.embeds, self.mask = spliced.inputs_embeds, spliced.attention_mask
            return self.model.read(self.embeds, self.mask)[0][:, -1]
        chunk = self.prefill_chunk or spliced.inputs_embeds.shape[1]
        state = None
        for embeds, chunk_mask in zip(
            spliced.inputs_embeds.split(chunk, dim=1), spliced.attention_mask.split(chunk, dim=1), strict=True
        ):
            state = self._read_cached(embeds, chunk_mask)
        assert state is not None
        return state

    def read_token(self, tokens: Tensor, running: Tensor) -> Tensor:
        """Reads one token (B,) of every running sample; (B, C) states."""
        embeds = self.model.llm.get_input_embeddings()(tokens)[:, None]
        mask = running[:, None]
        if self.use_cache:
            return self._read_cached(embeds, mask)
        assert self.embeds is not None and self.mask is not None
        self.embeds = torch.cat([self.embeds, embeds], dim=1)
        self.mask = torch.cat([self.mask, mask], dim=1)
        return self.model.read(self.embeds, self.mask)[0][:, -1]

    def past(self, pending: Tensor) -> ConversationPast | None:
        if self.heard is None:
            return None
        return ConversationPast(self.heard, self.heard.positions, pending[:, None].clone())

    def _read_cached(self, embeds: Tensor, mask: Tensor) -> Tensor:
        heard = self.heard
        hidden, cache = self.model.read(
            embeds,
            mask,
            past_key_values=None if heard is None else heard.cache,
            past_attention_mask=None if heard is None else heard.attention_mask,
            use_cache=True,
        )
        assert cache is not None
        if self.heard is None:
            self.heard = _Heard(cache, 0, None)
        self.heard.add(mask)
        return hidden[:, -1]

    @staticmethod
    def _check(past: ConversationPast, batch: int) -> None:
        now = past.heard.positions
        if now != past.positions:
            raise ValueError(
                f"this past ends at position {past.positions} but its conversation went on to {now}; continue from "
                f"the latest reply, or copy.deepcopy a past before continuing it twice"
            )
        if past.pending_ids.shape[0] != batch:
            raise ValueError(f"past holds {past.pending_ids.shape[0]} samples, input_ids {batch}")
