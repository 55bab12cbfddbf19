"""The LightningModule of Llama-Omni: next-token loss on the assistant's text, CTC loss on its speech.

Shape letters: B conversations, T positions, C hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from backbones.llama_omni import LlamaOmni, SpokenTurn
from experiments.harness import metric_names as names
from experiments.spoken.carried_rows import Left
from experiments.spoken.configuration import Arm, Trained
from experiments.spoken.decoder_module import DecoderModule, train_upper_mixers_alone
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment, LlamaOmniTraining
from experiments.spoken.llama_omni.loader import LlamaOmniBatch

DrawnTurns = list[tuple[int, SpokenTurn]]
"""(conversation, turn) pairs."""


class LlamaOmniModule(DecoderModule):
    """Trains and measures one arm."""

    model: LlamaOmni
    plan: LlamaOmniTraining

    def __init__(self, model: LlamaOmni, config: LlamaOmniExperiment, arm: Arm) -> None:
        super().__init__(model, model.llm, config, config.training, names.VALIDATION_CTC_LOSS)
        choose_trained(model, self.plan.trains, arm.upper_layers)
        self.upper_mixers = [model.llm.model.layers[layer].self_attn for layer in arm.upper_layers]
        self.add_adapters(arm.upper_layers)
        self._turns: DrawnTurns = []  # of the running step

    @property
    def llm(self) -> PreTrainedModel:
        return self.model.llm

    def read(
        self, embeddings: Tensor, mask: Tensor, cache: Cache | None, past_mask: Tensor | None, use_cache: bool
    ) -> tuple[Tensor, Cache | None]:
        return self.model.read(
            embeddings, mask, past_key_values=cache, past_attention_mask=past_mask, use_cache=use_cache
        )

    # Training

    def backward_conversations(
        self, batch: LlamaOmniBatch, left: Left | None, carries: bool
    ) -> tuple[dict[str, float], Left]:
        """Gradients of a batch's text loss and of the speech loss of a few of its turns."""
        spliced = self.model.splice(batch.input_ids, batch.speech, batch.labels, attention_mask=batch.attention_mask)
        assert spliced.labels is not None
        segments = list(self.segments(spliced.labels.shape[1]))
        self._turns = self._drawn_turns(batch.spoken_turns, segments)
        text_loss, ctc_loss, leaves = self.backward_segments(
            spliced.inputs_embeds, spliced.labels, spliced.attention_mask, segments, batch, left, carries
        )
        losses = {
            names.TRAIN_LOSS: text_loss + self.plan.speech_weight * ctc_loss,
            names.TRAIN_TEXT_LOSS: text_loss,
            names.TRAIN_CTC_LOSS: ctc_loss,
        }
        return losses, leaves

    def speech_loss_of(self, hidden: Tensor, start: int, end: int) -> Tensor | None:
        """The CTC loss of the step's turns that lie in the segment, by all of the step's units."""
        inside = [(sample, turn) for sample, turn in self._turns if start < turn.start and turn.end <= end]
        if not inside:
            return None
        return self._ctc_loss_sum(hidden, inside, start) / sum(turn.units.numel() for _, turn in self._turns)

    def _ctc_loss_sum(self, hidden: Tensor, turns: DrawnTurns, start: int) -> Tensor:
        """Summed over units. A token is spoken by the state that predicted it, one position before its own."""
        states = [hidden[sample, turn.start - 1 - start : turn.end - 1 - start] for sample, turn in turns]
        units = [turn.units.to(hidden.device) for _, turn in turns]
        generator = self.model.speech_generator
        return generator.speech_loss(states, units, generator.window).loss * sum(u.numel() for u in units)

    def _drawn_turns(self, spoken: Sequence[Sequence[SpokenTurn]], segments: Sequence[tuple[int, int]]) -> DrawnTurns:
        """The step's turns for the CTC loss, drawn by seed and step from those that lie inside one segment."""
        eligible = [
            (sample, turn)
            for sample, turns in enumerate(spoken)
            for turn in turns
            if any(start < turn.start and turn.end <= end for start, end in segments)
        ]
        generator = torch.Generator().manual_seed(self.draw_seed())
        order = torch.randperm(len(eligible), generator=generator).tolist()
        return [eligible[place] for place in order[: self.plan.ctc_turns_per_step]]

    # Validation

    def validation_step(self, batch: LlamaOmniBatch, batch_index: int) -> None:
        spliced = self.model.splice(batch.input_ids, batch.speech, batch.labels, attention_mask=batch.attention_mask)
        assert spliced.labels is not None
        hidden = self.read_whole(spliced.inputs_embeds, spliced.attention_mask)
        self.score_text(hidden, spliced.labels, batch)
        turns = [
            (sample, turn)
            for sample, spoken in enumerate(batch.spoken_turns)
            for turn in spoken[: self.evaluation.speech_turns]
        ]
        if turns:
            units = sum(turn.units.numel() for _, turn in turns)
            self.scores.add_mean(names.VALIDATION_CTC_LOSS, float(self._ctc_loss_sum(hidden, turns, start=0)), units)


def choose_trained(model: LlamaOmni, trains: Trained, upper_layers: Sequence[int]) -> None:
    """Lets the parameters that `trains` names require gradients, and no others."""
    model.train_only("joint")
    if trains == "upper_mixers_and_speech":
        train_upper_mixers_alone(model.llm, upper_layers)
