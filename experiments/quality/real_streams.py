"""A conversation as one stream of real speech: units, text tokens or sound, of both who talk, as the clock runs.

Turns do not overlap, so one channel holds them all: in two, each would be silence most of the time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, UNIT_RATE_HZ, expand_repeats, read_audio
from experiments.data.conversations import Turn
from experiments.data.dataset import ConversationSet
from experiments.data.framing import silence_unit
from experiments.quality.ngram import Symbols
from experiments.quality.windows import SymbolBlock

TurnFilter = Callable[[Turn], bool]


def every_turn(turn: Turn) -> bool:
    return True


def is_known_sentence(turn: Turn, share: float) -> bool:
    """Whether the turn's sentence belongs to those that a held-out model may know: always the same `share` of all."""
    return int(hashlib.sha256(turn.utterance_id.encode()).hexdigest()[:8], 16) < share * 16**8


def unit_stream(dataset: ConversationSet, index: int, wanted: TurnFilter = every_turn) -> Symbols:
    """Units (N,) at 50 Hz; pauses are the unit of silence. Turns that are not wanted are left out with their time."""
    silence, parts = silence_unit(dataset.codebook), [np.zeros(0, np.int64)]
    given, ended_s, left_out_s = 0, 0.0, 0.0
    for turn in dataset[index].turns:
        if wanted(turn):
            # From the stream's start, not from the turn before: whole units would add up to seconds.
            pause = max(0, round((turn.start_s - left_out_s) * UNIT_RATE_HZ) - given)
            parts.append(np.full(pause, silence, np.int64))
            parts.append(expand_repeats(*dataset.pool.units(turn.utterance_id)).numpy())
            given += len(parts[-2]) + len(parts[-1])
        else:
            left_out_s += turn.end_s - ended_s
        ended_s = turn.end_s
    return np.concatenate(parts)


def text_stream(dataset: ConversationSet, index: int, wanted: TurnFilter = every_turn) -> SymbolBlock:
    """Text tokens, each turn's evenly over the time that it is spoken, its end marked by <eos>."""
    tokens: list[int] = []
    seconds: list[float] = []
    conversation = dataset[index]
    for turn in conversation.turns:
        if wanted(turn):
            ids = [*dataset.tokenizer.encode(turn.text), dataset.tokenizer.eos_id]
            tokens += ids
            seconds += list(np.linspace(turn.start_s, turn.end_s, len(ids), endpoint=False))
    return SymbolBlock(
        symbols=np.array(tokens, np.int64), seconds=np.array(seconds, np.float64), end_s=conversation.duration_s
    )


@functools.lru_cache(maxsize=1024)
def _spoken(path: Path) -> NDArray[np.float32]:
    """Sentences come back within and between conversations; a thousand of them are about 150 MB."""
    return read_audio(path).samples


def sound_stream(dataset: ConversationSet, index: int) -> Iterator[NDArray[np.float32]]:
    """Samples at 16,000 Hz, a turn with the pause before it at a time: both voices in one channel."""
    given = 0
    for turn in dataset[index].turns:
        pause = max(0, round(turn.start_s * SPEECH_SAMPLE_RATE_HZ) - given)
        speech = _spoken(dataset.pool.samples_path(turn.utterance_id))
        given += pause + len(speech)
        yield np.concatenate([np.zeros(pause, np.float32), speech])
