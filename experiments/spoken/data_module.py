"""Batches of packed conversations: the step's number alone decides what is in a batch, so any step can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset

from backbones.llama_omni import IGNORED_LABEL, LlamaOmni, SpeechFrames, SpokenTurn
from experiments.data.dataset import ConversationSet
from experiments.data.packing import PackedConversation, pack
from experiments.spoken.batches import AskedFact, ConversationBatch
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.prepared_data import ExperimentData


class EncodedUtterances:
    """Encoder frames by utterance. The encoder is frozen, so each utterance goes through it once per process."""

    def __init__(self, model: LlamaOmni) -> None:
        self._model = model
        self._frames: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def frames(self, dataset: ConversationSet, utterance_ids: list[str]) -> SpeechFrames:
        """Frames of the utterances in the given order, on the CPU."""
        missing = [utterance for utterance in dict.fromkeys(utterance_ids) if utterance not in self._frames]
        if missing:
            encoded = self._model.encode_speech([dataset.pool.mel(utterance) for utterance in missing])
            self._frames |= {u: f.cpu() for u, f in zip(missing, encoded.segments, strict=True)}
        return SpeechFrames(tuple(self._frames[utterance] for utterance in utterance_ids))


class ConversationLoader:
    """Conversations of a set as batches."""

    def __init__(self, model: LlamaOmni, mini_batch_size: int) -> None:
        """mini_batch_size: the largest of all arms', so that every arm is given exactly the same conversations."""
        self._model = model
        self._mini_batch_size = mini_batch_size
        self.encoded = EncodedUtterances(model)

    def batch(self, dataset: ConversationSet, indices: list[int]) -> ConversationBatch:
        """The given conversations, right-padded."""
        packed = [self.packed(dataset, index) for index in indices]
        speech_ids = [utterance for one in packed for utterance in one.speech_segments]
        return ConversationBatch(
            input_ids=_padded([one.input_ids for one in packed], dataset.tokenizer.pad_id),
            labels=_padded([one.labels for one in packed], IGNORED_LABEL),
            attention_mask=_padded([_is_real(one) for one in packed], False),
            speech=self.encoded.frames(dataset, speech_ids),
            spoken_turns=[
                [SpokenTurn(start=turn.start, end=turn.end, units=turn.units) for turn in one.spoken_turns]
                for one in packed
            ],
            asked_facts=[
                [
                    AskedFact(torch.tensor(recall.value_positions), recall.distance_to_last_mention)
                    for recall in one.recalls
                ]
                for one in packed
            ],
            lengths=torch.tensor([one.length - one.pad_count for one in packed]),
        )

    def packed(self, dataset: ConversationSet, index: int) -> PackedConversation:
        return pack(dataset[index], dataset, self._model.speech_positions, self._mini_batch_size)


class _FromStep(IterableDataset[ConversationBatch]):
    """One batch for every step from `first` to `end`."""

    def __init__(self, make: Callable[[int], ConversationBatch], first: int, end: int) -> None:
        self.make = make
        self.first, self.end = first, end

    def __len__(self) -> int:
        return self.end - self.first

    def __iter__(self) -> Iterator[ConversationBatch]:
        return (self.make(step) for step in range(self.first, self.end))


class _ByIndex(Dataset[ConversationBatch]):
    """One validation conversation a batch: no padding, whatever its length."""

    def __init__(self, loader: ConversationLoader, dataset: ConversationSet) -> None:
        self.loader = loader
        self.dataset = dataset
        self.indices = dataset.split_indices("validation")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> ConversationBatch:
        return self.loader.batch(self.dataset, [self.indices[item]])


class ConversationDataModule(LightningDataModule):
    """Training from any step to the next validation, and the validation conversations.

    An epoch of Lightning is what lies between two validations: `train_dataloader` is asked for anew for each. The
    loaders have generators of their own, or they would draw from the one that is part of a checkpoint.
    """

    def __init__(
        self, config: SpokenExperiment, data: ExperimentData, loader: ConversationLoader, next_step: Callable[[], int]
    ) -> None:
        super().__init__()
        self.config = config
        self.data = data
        self.loader = loader
        self.next_step = next_step

    def train_dataloader(self) -> DataLoader[ConversationBatch]:
        first = self.next_step()
        every = self.config.evaluation.validate_every_steps
        end = min(first - first % every + every, self.config.data.steps)
        return DataLoader(_FromStep(self.training_batch, first, end), batch_size=None, generator=torch.Generator())

    def val_dataloader(self) -> DataLoader[ConversationBatch]:
        return DataLoader(_ByIndex(self.loader, self.data.validation), batch_size=None, generator=torch.Generator())

    def transfer_batch_to_device(
        self, batch: ConversationBatch, device: torch.device, dataloader_idx: int
    ) -> ConversationBatch:
        return batch.to(device)

    def training_batch(self, step: int) -> ConversationBatch:
        """The batch of a training step, counted from 0."""
        number, stage, step_in_stage = self.config.data.stage_of(step)
        dataset = self.data.stages[number]
        first = step_in_stage * stage.conversations_per_step
        places = range(first, first + stage.conversations_per_step)
        return self.loader.batch(dataset, [self._conversation(dataset, number, place) for place in places])

    def _conversation(self, dataset: ConversationSet, stage: int, place: int) -> int:
        """The conversation at a place of the stage's endless order: every pass through the set is shuffled anew."""
        available = dataset.split_indices("train")
        round_, within = divmod(place, len(available))
        # A list of numbers seeds without collisions, where sums or products of them would not.
        order = _permutation(len(available), (self.config.seed, stage, round_))
        return available[order[within]]


def _permutation(count: int, seed: tuple[int, ...]) -> list[int]:
    mixed = hash(seed) & 0x7FFF_FFFF_FFFF_FFFF  # a tuple of ints hashes to the same number in every process
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed)).tolist()


def _is_real(packed: PackedConversation) -> torch.Tensor:
    """(N,) bool: False where the packer filled up to whole mini-batches, which our layers need not."""
    is_real = torch.ones_like(packed.input_ids, dtype=torch.bool)
    is_real[len(is_real) - packed.pad_count :] = False
    return is_real


def _padded(rows: list[torch.Tensor], value: int | bool) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
