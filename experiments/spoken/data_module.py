"""Batches of conversations: the step's number alone decides what is in a batch, so any step can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset

from experiments.data.conversation_lines import PooledConversations
from experiments.recordings.carried_batches import CarriedOrder
from experiments.recordings.curriculum import PieceSet
from experiments.spoken.backbone import Loader
from experiments.spoken.carried_rows import CarriedRows
from experiments.spoken.configuration import DataPlan, SpokenExperiment
from experiments.spoken.prepared_data import ExperimentData
from experiments.spoken.recorded_plan import RecordedPlan


class _FromStep(IterableDataset[Any]):
    """One batch for every step from `first` to `end`."""

    def __init__(self, make: Callable[[int], Any], first: int, end: int) -> None:
        self.make = make
        self.first, self.end = first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[Any]:
        return (self.make(step) for step in range(self.first, self.end))


class _ByIndex(Dataset[Any]):
    """One validation conversation a batch: no padding, whatever its length."""

    def __init__(self, loader: Loader, dataset: PooledConversations) -> None:
        self.loader = loader
        self.dataset = dataset
        self.indices = dataset.split_indices("validation")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Any:
        return self.loader.batch(self.dataset, [self.indices[item]])


class ConversationDataModule(LightningDataModule):
    """Training from any step to the next validation, and the validation conversations.

    An epoch of Lightning is what lies between two validations: `train_dataloader` is asked for anew for each. The
    loaders have generators of their own, or they would draw from the one that is part of a checkpoint.
    """

    def __init__(
        self, config: SpokenExperiment, data: ExperimentData, loader: Loader, next_step: Callable[[], int]
    ) -> None:
        super().__init__()
        self.config = config
        self.data = data
        self.loader = loader
        self.next_step = next_step

    def train_dataloader(self) -> DataLoader[Any]:
        first = self.next_step()
        every = self.config.evaluation.validate_every_steps
        end = min(first - first % every + every, self.config.data.steps)
        return DataLoader(_FromStep(self.training_batch, first, end), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_ByIndex(self.loader, self.data.validation), batch_size=None, generator=torch.Generator())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    def training_batch(self, step: int) -> Any:
        """The batch of a training step, counted from 0."""
        assert isinstance(self.config.data, DataPlan)
        number, stage, step_in_stage = self.config.data.stage_of(step)
        dataset = self.data.stages[number]
        first = step_in_stage * stage.conversations_per_step
        places = range(first, first + stage.conversations_per_step)
        return self.loader.batch(dataset, [self._conversation(dataset, number, place) for place in places])

    def _conversation(self, dataset: PooledConversations, stage: int, place: int) -> int:
        """The conversation at a place of the stage's endless order: every pass through the set is shuffled anew."""
        available = dataset.split_indices("train")
        round_, within = divmod(place, len(available))
        # A list of numbers seeds without collisions, where sums or products of them would not.
        order = _permutation(len(available), (self.config.seed, stage, round_))
        return available[order[within]]


class RecordedDataModule(ConversationDataModule):
    """Pieces of recordings: every row of a step goes on where its piece of the step before ended."""

    def __init__(
        self, config: SpokenExperiment, data: ExperimentData, loader: Loader, next_step: Callable[[], int]
    ) -> None:
        super().__init__(config, data, loader, next_step)
        plan, [self._pieces] = config.data, data.stages
        assert isinstance(plan, RecordedPlan) and isinstance(self._pieces, PieceSet)
        self._order = CarriedOrder(self._pieces, plan.rows, config.seed, most_pieces=plan.most_carried_pieces)

    def training_batch(self, step: int) -> CarriedRows:
        read = self._order.step(step)
        return CarriedRows(
            rows=tuple(self.loader.batch(self._pieces, [index]) for index in read.indices),
            begins=tuple(read.begins.tolist()),
        )


def _permutation(count: int, seed: tuple[int, ...]) -> list[int]:
    mixed = hash(seed) & 0x7FFF_FFFF_FFFF_FFFF  # a tuple of ints hashes to the same number in every process
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed)).tolist()
