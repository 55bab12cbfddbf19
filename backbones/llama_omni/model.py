"""Llama-Omni: a Llama that hears speech embeddings, writes text, and whose text states are turned into speech units.

Shape letters: B batch, N tokens given, T positions after splicing, C hidden size, F mel frames (100 Hz), V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, LlamaForCausalLM
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from backbones.exact_rotary import restore_rotary_frequencies
from backbones.llama_omni.checkpoint import load_llama_omni, save_llama_omni
from backbones.llama_omni.config import LlamaOmniConfig
from backbones.llama_omni.generate import generate_reply, stream_reply
from backbones.llama_omni.generator import SpeechGenerator
from backbones.llama_omni.speech_encoder import (
    SpeechFrames,
    SpeechInput,
    SpeechProjector,
    build_speech_encoder,
    encode_segments,
    mel_segments,
    positions_per_window,
)
from backbones.llama_omni.splicing import (
    PaddingSide,
    SplicedInputs,
    predicted_positions,
    splice_speech,
    whole_attention_mask,
)
from backbones.llama_omni.spoken_turns import CTCAlignment, TargetUnits, spoken_states

logger = logging.getLogger(__name__)

Stage = Literal["text", "speech", "joint"]


@dataclass(frozen=True)
class LlamaOmniOutput:
    """What one forward pass gives.

    loss: text_loss + ctc_loss_weight * ctc_loss, of those that were asked for.
    text_loss: mean over labelled tokens, nats. ctc_loss: see `SpeechLoss`.
    logits: (B, T, V), or (labelled, V) with `logits_only_where_labelled`.
    hidden_states: (B, T, C) after the final norm. labels: (B, T) as spliced.
    token_losses: (labelled,) FP32 nats; token_positions: (labelled, 2) sample and position of each label.
    infeasible_turns: turns whose units do not fit their frames; they add 0 to ctc_loss.
    """

    loss: Tensor | None
    text_loss: Tensor | None
    ctc_loss: Tensor | None
    logits: Tensor
    hidden_states: Tensor
    labels: Tensor | None
    attention_mask: Tensor
    token_losses: Tensor | None
    token_positions: Tensor | None
    infeasible_turns: int
    past_key_values: Cache | None


class LlamaOmni(nn.Module):
    """The whole model. `llm` is a plain `LlamaForCausalLM`: the part that test-time training is mounted on."""

    from_checkpoint = classmethod(load_llama_omni)
    save_checkpoint = save_llama_omni
    stream = stream_reply
    generate = generate_reply

    def __init__(self, config: LlamaOmniConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.llm = LlamaForCausalLM(config.llm_config(attn_implementation))
        self.speech_encoder = build_speech_encoder(config)
        self.speech_projector = SpeechProjector(config)
        self.speech_generator = SpeechGenerator(config, attn_implementation)

    @classmethod
    def tiny(cls, *, seed: int = 0, **overrides: Any) -> Self:
        """Random weights, drawn from `seed`, at `LlamaOmniConfig.tiny` with the given fields overridden."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(LlamaOmniConfig.tiny(**overrides))

    @property
    def device(self) -> torch.device:
        return self.speech_projector.linear1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.speech_projector.linear1.weight.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as any module does, but keeps the rotary frequencies exact."""
        super()._apply(fn, recurse)
        restore_rotary_frequencies(self, LlamaRotaryEmbedding)
        return self

    # Speech in

    def speech_positions(self, mel_frames: int) -> int:
        """Positions of the language model that an utterance of `mel_frames` frames takes (10 a second)."""
        return sum(positions_per_window(mel_frames, self.config))

    def encode_speech(self, mel: Tensor | Sequence[Tensor]) -> SpeechFrames:
        """Encoder frames of each segment, before the projector: (segments, F, mel bins) or a list of (F, mel bins)."""
        segments = mel_segments(mel, self.config.speech_encoder_mel_bins)
        return encode_segments(self.speech_encoder, segments, self.config)

    def speech_features(self, speech: SpeechInput) -> list[Tensor]:
        """What the language model sees of each speech segment: a list of (positions, C)."""
        frames = speech if isinstance(speech, SpeechFrames) else self.encode_speech(speech)
        weight = self.speech_projector.linear1.weight
        return [self.speech_projector(segment.to(weight.device, weight.dtype)) for segment in frames.segments]

    def splice(
        self,
        input_ids: Tensor,
        speech: SpeechInput | None = None,
        labels: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        padding_side: PaddingSide = "right",
    ) -> SplicedInputs:
        """Embeddings with speech in place of token id -200, on the model's device; see `splice_speech`."""
        return splice_speech(
            self.llm.get_input_embeddings(),
            input_ids.to(self.device),
            [] if speech is None else self.speech_features(speech),
            vocab_size=self.config.vocab_size,
            attention_mask=None if attention_mask is None else attention_mask.to(self.device),
            labels=None if labels is None else labels.to(self.device),
            padding_side=padding_side,
        )

    # Forward and losses

    def forward(
        self,
        input_ids: Tensor,
        speech: SpeechInput | None = None,
        labels: Tensor | None = None,
        target_units: TargetUnits | None = None,
        *,
        attention_mask: Tensor | None = None,
        padding_side: PaddingSide = "right",
        past_key_values: Cache | None = None,
        past_attention_mask: Tensor | None = None,
        use_cache: bool = False,
        ctc_alignment: CTCAlignment | None = None,
        on_infeasible: Literal["report", "raise"] = "report",
        logits_only_where_labelled: bool = False,
        ttt_base_lr: float | None = None,
    ) -> LlamaOmniOutput:
        """Logits and the losses that `labels` and `target_units` ask for.

        input_ids (B, N) with -200 where a speech segment stands; speech: mel (segments, F, mel bins), a list of
        (F, mel bins) or `SpeechFrames`, in reading order; labels (B, N), -100 where no loss is wanted, as input_ids
        unshifted; attention_mask (B, N) of the tokens given, and past_attention_mask (B, P) of what the cache holds
        (default: all real).

        target_units: one sequence of units a sample, (B, U) padded with -100 or a list of (U,), spoken by all labelled
        tokens of the sample; or a list of `SpokenTurn` a sample. `ctc_alignment` says which state speaks for a
        token: "predicting", the one that predicted it (the paper's definition, and what generation does), or
        "original", the one at its own position (the release's training code). By default turns are aligned as
        "predicting" and a plain sequence a sample, the release's own interface, as "original".
        on_infeasible: what to do about turns whose units do not fit their frames: count and log them, or raise.
        ttt_base_lr: inner step size of a mounted model, for its warm-up.
        """
        spliced = self.splice(input_ids, speech, labels, attention_mask=attention_mask, padding_side=padding_side)
        return self.forward_spliced(
            spliced,
            target_units,
            past_key_values=past_key_values,
            past_attention_mask=past_attention_mask,
            use_cache=use_cache,
            ctc_alignment=ctc_alignment,
            on_infeasible=on_infeasible,
            logits_only_where_labelled=logits_only_where_labelled,
            ttt_base_lr=ttt_base_lr,
        )

    def forward_spliced(
        self,
        spliced: SplicedInputs,
        target_units: TargetUnits | None = None,
        *,
        past_key_values: Cache | None = None,
        past_attention_mask: Tensor | None = None,
        use_cache: bool = False,
        ctc_alignment: CTCAlignment | None = None,
        on_infeasible: Literal["report", "raise"] = "report",
        logits_only_where_labelled: bool = False,
        ttt_base_lr: float | None = None,
    ) -> LlamaOmniOutput:
        """`forward` from embeddings that are already spliced."""
        if on_infeasible not in ("report", "raise"):
            raise ValueError(f"on_infeasible must be 'report' or 'raise', got {on_infeasible!r}")
        hidden, cache = self.read(
            spliced.inputs_embeds,
            spliced.attention_mask,
            past_key_values=past_key_values,
            past_attention_mask=past_attention_mask,
            use_cache=use_cache,
            ttt_base_lr=ttt_base_lr,
        )
        labels = spliced.labels
        token_losses = token_positions = text_loss = None
        if labels is None:
            if logits_only_where_labelled:
                raise ValueError("logits_only_where_labelled needs labels")
            logits = self.llm.lm_head(hidden)
        else:
            token_positions = predicted_positions(labels, spliced.attention_mask)
            sample, position = token_positions.unbind(dim=1)
            if logits_only_where_labelled:
                logits = labelled_logits = self.llm.lm_head(hidden[sample, position - 1])
            else:
                logits = self.llm.lm_head(hidden)
                labelled_logits = logits[sample, position - 1]
            token_losses = functional.cross_entropy(labelled_logits.float(), labels[sample, position], reduction="none")
            # An all -100 batch has no mean; 0 keeps the graph, as a batch of only context may occur in training.
            text_loss = token_losses.mean() if token_losses.numel() else hidden.sum() * 0.0
        ctc_loss, infeasible = None, 0
        if target_units is not None:
            ctc_loss, infeasible = self._ctc_loss(hidden, spliced, target_units, ctc_alignment, on_infeasible)
        terms = [term for term in (text_loss, self._weighted(ctc_loss)) if term is not None]
        return LlamaOmniOutput(
            loss=sum(terms[1:], terms[0]) if terms else None,
            text_loss=text_loss,
            ctc_loss=ctc_loss,
            logits=logits,
            hidden_states=hidden,
            labels=labels,
            attention_mask=spliced.attention_mask,
            token_losses=token_losses,
            token_positions=token_positions,
            infeasible_turns=infeasible,
            past_key_values=cache,
        )

    def _weighted(self, ctc_loss: Tensor | None) -> Tensor | None:
        return None if ctc_loss is None else ctc_loss * self.config.ctc_loss_weight

    def read(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        *,
        past_key_values: Cache | None = None,
        past_attention_mask: Tensor | None = None,
        use_cache: bool = False,
        ttt_base_lr: float | None = None,
    ) -> tuple[Tensor, Cache | None]:
        """Hidden states (B, T, C) after the final norm, and the cache (the one given is advanced in place).

        ttt_base_lr: the inner step size of this call, for a mounted model only; None for its config's.
        """
        batch, positions = inputs_embeds.shape[:2]
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.llm.config)
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past_attention_mask is not None and past_attention_mask.shape != (batch, seen):
            raise ValueError(
                f"past_attention_mask has shape {tuple(past_attention_mask.shape)}; the cache holds {(batch, seen)}"
            )
        whole_mask = whole_attention_mask(
            attention_mask, past_attention_mask, batch, positions, seen, inputs_embeds.device
        )
        position_ids = None
        if whole_mask is not None:
            position_ids = (whole_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, seen:]
        output = self.llm.model(
            inputs_embeds=inputs_embeds,
            attention_mask=whole_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            **({} if ttt_base_lr is None else {"ttt_base_lr": ttt_base_lr}),
        )
        return output.last_hidden_state, past_key_values

    def _ctc_loss(
        self,
        hidden: Tensor,
        spliced: SplicedInputs,
        target_units: TargetUnits,
        alignment: CTCAlignment | None,
        on_infeasible: Literal["report", "raise"],
    ) -> tuple[Tensor, int]:
        states, units = spoken_states(hidden, spliced, target_units, alignment)
        result = self.speech_generator.speech_loss(states, units, self.speech_generator.window)
        if result.infeasible:
            message = (
                f"{result.infeasible} of {result.turns} spoken turns have more units than "
                f"{self.config.ctc_upsample_factor} frames a token can say; they add nothing to the speech loss"
            )
            if on_infeasible == "raise":
                raise ValueError(message + "; shorten their units or split the turns")
            logger.warning(message)
        return result.loss, result.infeasible

    # Training

    def trainable_parameters(self, stage: Stage) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that a training stage changes; the speech encoder is frozen in all.

        "text" (stage 1): projector and language model. "speech" (stage 2): generator. "joint": all three.
        """
        parts = {
            "text": ("llm.", "speech_projector."),
            "speech": ("speech_generator.",),
            "joint": ("llm.", "speech_projector.", "speech_generator."),
        }
        if stage not in parts:
            raise ValueError(f"no training stage {stage!r}; there are {sorted(parts)}")
        return [(name, parameter) for name, parameter in self.named_parameters() if name.startswith(parts[stage])]

    def train_only(self, stage: Stage) -> Self:
        """Lets exactly `trainable_parameters(stage)` require gradients."""
        self.requires_grad_(False)
        for _, parameter in self.trainable_parameters(stage):
            parameter.requires_grad_(True)
        return self
