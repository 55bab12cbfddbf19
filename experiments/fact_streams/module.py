"""Training of a small full-duplex language model on fact streams: batches by step number, loss on the text stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import LightningDataModule
from moshi.models.lm import LMModel
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from backbones.moshi import attention_layers
from experiments.fact_streams.configuration import StreamTraining
from experiments.fact_streams.generate import FactStreams, draw_streams
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness import metric_names as names
from experiments.harness.counted_module import CountedModule

STEPS_DRAWN_TOGETHER = 32
"""Streams are drawn for that many steps at once: numpy then works on thousands of rows a position."""

VALIDATION_DRAW = 1_000_003
"""Second number of the validation streams' seed, out of reach of the training chunks' numbers."""


def text_logits(lm: LMModel, codes: Tensor) -> Tensor:
    """(N, T, text tokens): what the model predicts for the text at every position, from the positions before it.

    codes: (N, streams, T), text first. Teacher-forced, all positions at once.
    """
    initial = lm._get_initial_token().expand(codes.shape[0], -1, -1)
    return lm.forward_text(torch.cat([initial, codes[:, :, :-1]], dim=2))[1][:, 0]


def text_losses(logits: Tensor, text: Tensor) -> Tensor:
    """(N, T) FP32 nats of the text (N, T)."""
    return functional.cross_entropy(logits.float().transpose(1, 2), text, reduction="none")


class FactStreamModule(CountedModule):
    """Trains one model; validates on streams as long as the longest of training."""

    def __init__(self, lm: LMModel, spec: FactStreamSpec, training: StreamTraining) -> None:
        super().__init__(training, training.steps, training.validate_every_steps)
        self.lm = lm
        self.spec = spec
        self.training_plan = training
        self._word_losses: list[Tensor] = []
        self._answers: list[tuple[Tensor, Tensor]] = []
        self._windows = {layer: attention.context for layer, attention in attention_layers(lm).items()}

    def positions_of(self, batch: FactStreams) -> int:
        return batch.text.numel()

    def backward_batch(self, batch: FactStreams) -> dict[str, float]:
        self._narrow_windows(self.training_plan.stage_of(self.steps_done)[1].narrowed_window)
        losses = text_losses(text_logits(self.lm, batch.codes), batch.text)
        weights = torch.where(batch.is_answer, self.training_plan.answer_weight, 1.0)
        loss = (losses * weights).sum() / weights.sum()
        self.manual_backward(loss)
        text_loss = float(losses.detach().mean())
        return {names.TRAIN_LOSS: float(loss.detach()), names.TRAIN_TEXT_LOSS: text_loss}

    def _narrow_windows(self, positions: int | None) -> None:
        """Lets every windowed attention see at most so many positions, or its own again; full attention stays full."""
        for layer, attention in attention_layers(self.lm).items():
            own = self._windows[layer]
            if own is not None:
                attention.context = own if positions is None else min(positions, own)

    def on_validation_epoch_start(self) -> None:
        self._word_losses, self._answers = [], []
        self._narrow_windows(None)

    def validation_step(self, batch: FactStreams, batch_index: int) -> None:
        logits = text_logits(self.lm, batch.codes)
        losses = text_losses(logits, batch.text)
        self._word_losses.append(losses[~batch.is_answer])
        self._answers.append((losses[batch.is_answer], (logits.argmax(2) == batch.text)[batch.is_answer]))

    def on_validation_epoch_end(self) -> None:
        words = torch.cat(self._word_losses)
        answers, is_right = (torch.cat(parts) for parts in zip(*self._answers, strict=True))
        every = torch.cat([words, answers])
        self.last_validation = {
            names.VALIDATION_LOSS: float(every.mean()),
            names.VALIDATION_TEXT_LOSS: float(every.mean()),
            names.VALIDATION_WORD_LOSS: float(words.mean()),
            names.RECALL_ALL: float(is_right.float().mean()),
            names.RECALL_VALUE_LOSS: float(answers.mean()),
            names.RECALL_CHANCE: self.spec.chance_recall,
        }


def stage_spec(spec: FactStreamSpec, positions: int, shortest_distance: int) -> FactStreamSpec:
    """The spec with distances that fit into streams of so many positions."""
    return dataclasses.replace(spec, shortest_distance=shortest_distance, longest_distance=positions - 2)


class _FromStep(IterableDataset[FactStreams]):
    """One batch for every step from `first` to `end`."""

    def __init__(self, make: Callable[[int], FactStreams], first: int, end: int) -> None:
        self.make = make
        self.first, self.end = first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[FactStreams]:
        return (self.make(step) for step in range(self.first, self.end))


class FactStreamData(LightningDataModule):
    """Streams drawn as they are needed: seed and step decide them, so any step can be resumed."""

    def __init__(self, spec: FactStreamSpec, training: StreamTraining, seed: int, next_step: Callable[[], int]) -> None:
        super().__init__()
        self.spec = spec
        self.training = training
        self.seed = seed
        self.next_step = next_step
        self._chunk: tuple[tuple[int, int], FactStreams] | None = None

    def train_dataloader(self) -> DataLoader[FactStreams]:
        first, every = self.next_step(), self.training.validate_every_steps
        end = min(first - first % every + every, self.training.steps)
        return DataLoader(_FromStep(self.training_batch, first, end), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[FactStreams]:
        return DataLoader(
            _FromStep(lambda _: self.validation_batch(), 0, 1), batch_size=None, generator=torch.Generator()
        )

    def transfer_batch_to_device(self, batch: FactStreams, device: torch.device, dataloader_idx: int) -> FactStreams:
        return FactStreams(codes=batch.codes.to(device), distances=batch.distances.to(device))

    def training_batch(self, step: int) -> FactStreams:
        """The streams of a training step, counted from 0."""
        number, stage, inside = self.training.stage_of(step)
        chunk, place = divmod(inside, STEPS_DRAWN_TOGETHER)
        if self._chunk is None or self._chunk[0] != (number, chunk):
            spec = stage_spec(self.spec, stage.positions, stage.shortest_distance)
            count = STEPS_DRAWN_TOGETHER * stage.streams_per_step
            drawn = draw_streams(spec, count, stage.positions, (self.seed, number, chunk))
            self._chunk = (number, chunk), drawn
        first = place * stage.streams_per_step
        return self._chunk[1].rows(first, first + stage.streams_per_step)

    def validation_batch(self) -> FactStreams:
        positions = self.training.longest_positions
        spec = stage_spec(self.spec, positions, FactStreamSpec.shortest_distance)
        return draw_streams(spec, self.training.validation_streams, positions, (self.seed, VALIDATION_DRAW))
