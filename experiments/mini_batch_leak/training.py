"""Training on the text: batches by step number, validation on what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel

from experiments.data.tokenizer import ConversationTokenizer
from experiments.harness import metric_names as names
from experiments.harness.counted_module import CountedModule
from experiments.mini_batch_leak.configuration import TextTraining
from experiments.mini_batch_leak.corpus import TextCorpus
from experiments.mini_batch_leak.text_model import token_losses, whole_logits


class TextModule(CountedModule):
    """Trains one model, in whatever form its TTT layers are in."""

    def __init__(self, model: PreTrainedModel, training: TextTraining) -> None:
        super().__init__(training, training.steps, training.validate_every_steps)
        self.model = model
        self._validation_losses: list[Tensor] = []

    def positions_of(self, batch: Tensor) -> int:
        return int((batch != ConversationTokenizer.pad_id).sum())

    def backward_batch(self, batch: Tensor) -> dict[str, float]:
        loss = token_losses(whole_logits(self.model, batch), batch).mean()
        self.manual_backward(loss)
        return {names.TRAIN_LOSS: float(loss.detach()), names.TRAIN_TEXT_LOSS: float(loss.detach())}

    def on_validation_epoch_start(self) -> None:
        self._validation_losses = []

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        self._validation_losses.append(token_losses(whole_logits(self.model, batch), batch))

    def on_validation_epoch_end(self) -> None:
        loss = float(torch.cat(self._validation_losses).mean())
        self.last_validation = {names.VALIDATION_LOSS: loss, names.VALIDATION_TEXT_LOSS: loss}


class _FromStep(IterableDataset[Tensor]):
    """One batch for every step from `first` to `end`."""

    def __init__(self, make: Callable[[int], Tensor], first: int, end: int) -> None:
        self.make = make
        self.first, self.end = first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[Tensor]:
        return (self.make(step) for step in range(self.first, self.end))


class TextData(LightningDataModule):
    """Rows of the corpus, chosen by seed and step, so that any step can be resumed and all arms read the same."""

    def __init__(self, corpus: TextCorpus, training: TextTraining, seed: int, next_step: Callable[[], int]) -> None:
        super().__init__()
        self.corpus = corpus
        self.training = training
        self.seed = seed
        self.next_step = next_step

    def train_dataloader(self) -> DataLoader[Tensor]:
        first, every = self.next_step(), self.training.validate_every_steps
        end = min(first - first % every + every, self.training.steps)
        return DataLoader(_FromStep(self.training_batch, first, end), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[Tensor]:
        batches = _FromStep(lambda _: torch.from_numpy(self.corpus.held_out), 0, 1)
        return DataLoader(batches, batch_size=None, generator=torch.Generator())

    def training_batch(self, step: int) -> Tensor:
        """(rows, T) ids of a training step, counted from 0."""
        draw = numpy.random.default_rng([self.seed, step])
        rows = draw.integers(len(self.corpus.training), size=self.training.rows_per_step)
        return torch.from_numpy(self.corpus.training[rows])
