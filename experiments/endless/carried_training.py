"""Training whose TTT state is carried from one step's segments to the next, each a truncated backpropagation.

Legend: N rows of a batch, T positions of a segment, S segments of a conversation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import lm_forward_with_states, ttt_layers
from experiments.fact_streams.configuration import StreamTraining
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.module import FactStreamData, FactStreamModule, stage_spec, text_losses
from experiments.fact_streams.reading import model_inputs
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness import metric_names as names
from ttt_core import TTTState

CONVERSATION_DRAW = 3_000_017
"""Second number of the seed of carried conversations, out of reach of every other draw."""


@dataclass(frozen=True, kw_only=True)
class Segments(FactStreams):
    """T positions out of the middle of N conversations.

    codes_before: (N, 3) of the position before each; of no meaning where a conversation begins. begins: (N,) bool.
    """

    codes_before: Tensor
    begins: Tensor


class CarriedStreamData(FactStreamData):
    """Each row reads conversations of S segments one after the other, a segment a step.

    Row n is n mod S segments ahead, so that every step sees states of every age. Seed and step decide everything.
    Before step `from_step` (counted from 0) every batch is what `FactStreamData` gives, and every row of it begins.
    """

    def __init__(
        self, spec: FactStreamSpec, training: StreamTraining, segments: int, from_step: int, seed: int,
        next_step: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(spec, training, seed, next_step)
        self.segments = segments
        self.from_step = from_step
        self._conversations: dict[int, FactStreams] = {}

    def training_batch(self, step: int) -> Segments:
        """The segments of a training step, counted from 0."""
        [stage] = self.training.stages
        rows = torch.arange(stage.streams_per_step)
        if step < self.from_step:
            batch = super().training_batch(step)
            every = torch.ones_like(rows, dtype=torch.bool)
            return Segments(
                codes=batch.codes, distances=batch.distances, codes_before=batch.codes[..., 0], begins=every
            )
        reached = step - self.from_step + rows % self.segments  # segments that each row has read before
        numbers = sorted(set((reached // self.segments).tolist()))
        self._conversations = {number: self._conversation(number) for number in numbers}
        first = (reached % self.segments) * stage.positions
        places = first[:, None] + torch.arange(stage.positions)
        codes = torch.stack([self._conversations[number].codes for number in numbers])
        distances = torch.stack([self._conversations[number].distances for number in numbers])
        own = reached // self.segments - numbers[0]
        rows_in_time = rows[:, None]
        return Segments(
            codes=codes[own[:, None], rows_in_time, :, places].transpose(1, 2).contiguous(),
            distances=distances[own[:, None], rows_in_time, places],
            codes_before=codes[own, rows, :, (first - 1).clamp_min(0)],
            # Rows that start in the middle of their first conversation have read nothing of it.
            begins=(first == 0) | (step == self.from_step),
        )

    def _conversation(self, number: int) -> FactStreams:
        if number in self._conversations:
            return self._conversations[number]
        [stage] = self.training.stages
        spec = stage_spec(self.spec, stage.positions, stage.shortest_distance)
        length = self.segments * stage.positions
        return draw_streams(spec, stage.streams_per_step, length, (self.seed, CONVERSATION_DRAW, number))

    def transfer_batch_to_device(self, batch: FactStreams, device: torch.device, dataloader_idx: int) -> FactStreams:
        if not isinstance(batch, Segments):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return Segments(**{name: tensor.to(device) for name, tensor in vars(batch).items()})


class CarriedStateModule(FactStreamModule):
    """Trains one model on segments, each from the TTT state that the row's segment before left behind.

    The states are buffers, so that a checkpoint holds them and a resumed run is the uninterrupted one.
    """

    def __init__(self, lm: LMModel, spec: FactStreamSpec, training: StreamTraining, words_left_out: int) -> None:
        super().__init__(lm, spec, training)
        self.words_left_out = words_left_out
        [stage] = training.stages
        for layer, ttt in ttt_layers(lm).items():
            for name, tensor in ttt.initial_state(stage.streams_per_step).row_tensors().items():
                self.register_buffer(_buffer_name(layer, name), tensor.detach().clone())

    def backward_batch(self, batch: FactStreams) -> dict[str, float]:
        assert isinstance(batch, Segments)
        inputs = model_inputs(self.lm, batch.codes)
        inputs[:, :, 0] = torch.where(batch.begins[:, None], inputs[:, :, 0], batch.codes_before)
        _, logits, states = lm_forward_with_states(self.lm, inputs, self.states_before(batch.begins))
        losses = text_losses(logits[:, 0], batch.text)
        loss = (losses * self.loss_weights(batch)).sum() / self.loss_weights(batch).sum()
        self.manual_backward(loss)
        self._keep(states)
        text_loss = float(losses.detach().mean())
        return {names.TRAIN_LOSS: float(loss.detach()), names.TRAIN_TEXT_LOSS: text_loss}

    def loss_weights(self, batch: Segments) -> Tensor:
        """(N, T): of an answer as ever, of a word 1, and 0 where attention can't see the words before it."""
        weights = torch.where(batch.is_answer, self.training_plan.answer_weight, 1.0)
        is_blind = ~batch.begins[:, None] & ~batch.is_answer
        is_blind[:, self.words_left_out :] = False
        return torch.where(is_blind, 0.0, weights)

    def states_before(self, begins: Tensor) -> dict[int, TTTState]:
        """{layer: state} that a step starts from: the learned weights, with gradients, where a conversation begins."""
        states = {}
        for layer, ttt in ttt_layers(self.lm).items():
            initial = ttt.initial_state(len(begins))
            kept = {name: self.get_buffer(_buffer_name(layer, name)).clone() for name in initial.row_tensors()}
            states[layer] = TTTState.from_row_tensors(kept, initial.initial, ttt.config).reset(begins)
        return states

    @torch.no_grad()
    def _keep(self, states: dict[int, TTTState]) -> None:
        for layer, state in states.items():
            for name, tensor in state.row_tensors().items():
                self.get_buffer(_buffer_name(layer, name)).copy_(tensor)


def _buffer_name(layer: int, name: str) -> str:
    return f"carried_{layer}_{name.replace('.', '_')}"
