"""What experiments on spoken conversations ask of a backbone: one record for each, in a folder named after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from backbones.mounting import MemoryDescription
from experiments.data.conversation_lines import PooledConversations
from experiments.data.dataset import ConversationSet
from experiments.spoken.module import SpokenModule
from experiments.spoken.speaking import RealSpeech, SaidSymbols, Speaker
from ttt_core import TTTLayer

ROOM = "experiments.spoken"


@dataclass(frozen=True, kw_only=True)
class DataSizes:
    """What a model built for a set of data takes over from it. text_tokens: special tokens included."""

    text_tokens: int
    units: int
    n_mels: int


class Loader(Protocol):
    """Conversations of a set as batches of one backbone."""

    def batch(self, dataset: ConversationSet, indices: Sequence[int]) -> Any:
        """The given conversations, right-padded, on the CPU; with a method `to(device)`."""
        ...

    def longest(self, dataset: ConversationSet) -> int:
        """Positions that the longest validation conversation takes, or may take."""
        ...


@dataclass(frozen=True, kw_only=True)
class SpokenBackbone:
    """Everything that differs between backbones. `config` is the backbone's own kind of `SpokenExperiment`.

    check_data: (config, conversations), raises ValueError where the model has too small a vocabulary for them.
    fitted: (model's configuration, sizes), the same with the vocabularies and mel bands of a set of data.
    speech_positions: (model's configuration), how many positions so many mel frames take; None where none is heard so.
    build_model: (config, arm, folder of weights or None), the same shared weights for every arm of a seed, mounted.
    memory_of: (config, arm), what one conversation takes, in the dtype that the training computes in.
    loader: (model, config). module: (model, config, arm), trains and measures.
    ttt_layers: {layer: its TTT layer} of a model. save_difference: (model, path), the trained difference.
    save_sample: (config, model, validation conversations, loader, folder), writes `sample.txt` and the sounds that go
        with it, and gives their paths.
    speaker: (config, trained model, conversations), says what the user's turns of the conversations lead to.
    real_speech: the assistant's side of a conversation of the data in the symbols that the speaker says.
    said: what these symbols are.
    speech_loss, speech_loss_title: name of the validation's metric of the speech that is said, and what a figure
        calls it; None where what is said is text.
    """

    check_data: Callable[[Any, PooledConversations], None]
    fitted: Callable[[Any, DataSizes], Any]
    build_model: Callable[[Any, Any, Path | None], Any]
    memory_of: Callable[[Any, Any], MemoryDescription]
    loader: Callable[[Any, Any], Loader]
    module: Callable[[Any, Any, Any], SpokenModule]
    ttt_layers: Callable[[Any], Mapping[int, TTTLayer]]
    save_difference: Callable[[Any, Path], None]
    save_sample: Callable[[Any, Any, ConversationSet, Any, Path], list[Path]]
    speaker: Callable[[Any, Any, ConversationSet], Speaker]
    real_speech: RealSpeech
    said: SaidSymbols
    speech_loss: str | None
    speech_loss_title: str = ""
    speech_positions: Callable[[Any], Callable[[int], int]] | None = None


def folder_of(backbone: str) -> str:
    """The package that holds a backbone's side: `experiments.spoken.llama_omni` for "llama-omni"."""
    return f"{ROOM}.{backbone.replace('-', '_')}"


def spoken_backbone(backbone: str) -> SpokenBackbone:
    """The record of a backbone.

    Imported by name when it is asked for: a backbone's libraries (moshi is an optional one) are needed by no other.
    """
    record = import_module(folder_of(backbone)).BACKBONE
    assert isinstance(record, SpokenBackbone)
    return record
