"""Units, text or sound of conversations as windows of measures: as they are, and with damage planted."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, UNIT_RATE_HZ
from experiments.data.dataset import ConversationSet
from experiments.data.framing import silence_unit
from experiments.quality.configuration import DetectorExperiment, View
from experiments.quality.damage import SOUND_DAMAGES, SYMBOL_DAMAGES, damage_sound, damage_symbols
from experiments.quality.ngram import NgramModel
from experiments.quality.real_streams import (
    TurnFilter,
    every_turn,
    is_known_sentence,
    sound_stream,
    text_stream,
    unit_stream,
)
from experiments.quality.sound_measures import measure_sound
from experiments.quality.symbol_measures import measure_symbols
from experiments.quality.windows import SymbolBlock, Window

START_OF_TURN_S = 1.0
"""Damage begins inside a turn, so long after its first sound that every loop has something to repeat."""


class SymbolView:
    """Units or text tokens, under an n-gram model of the sentences it may know."""

    damages: Sequence[str] = SYMBOL_DAMAGES

    def __init__(self, experiment: DetectorExperiment, view: View, dataset: ConversationSet) -> None:
        self._view, self._dataset = view, dataset
        self._silence = silence_unit(dataset.codebook) if view.name == "units" else None
        share = experiment.known_sentence_share
        train = dataset.split_indices("train")[: experiment.model_conversations]
        known = [self._symbols(index, lambda turn: is_known_sentence(turn, share)).symbols for index in train]
        size = dataset.codebook.size if view.name == "units" else dataset.tokenizer.vocab_size
        self.model = NgramModel.fit(known, size, view.ngram_order)

    def clean(self, index: int) -> Iterator[Window]:
        """Windows of a whole conversation."""
        return self._measured(self._symbols(index))

    def excerpt(self, index: int, end_s: float) -> SymbolBlock:
        """A conversation's first seconds."""
        whole = self._symbols(index)
        inside = int(np.searchsorted(whole.seconds, end_s))
        return SymbolBlock(symbols=whole.symbols[:inside], seconds=whole.seconds[:inside], end_s=end_s)

    def damaged(self, excerpt: SymbolBlock, kind: str, onset_s: float, rng: np.random.Generator) -> Iterator[Window]:
        """Windows of an excerpt, damaged from `onset_s` on."""
        shares = self.model.unigram
        return self._measured(damage_symbols(excerpt, kind, onset_s, shares, self._silence, rng))

    def _symbols(self, index: int, wanted: TurnFilter = every_turn) -> SymbolBlock:
        if self._view.name == "text":
            return text_stream(self._dataset, index, wanted)
        units = unit_stream(self._dataset, index, wanted)
        return SymbolBlock(symbols=units, seconds=np.arange(len(units)) / UNIT_RATE_HZ, end_s=len(units) / UNIT_RATE_HZ)

    def _measured(self, block: SymbolBlock) -> Iterator[Window]:
        view = self._view
        return measure_symbols(
            [block], window_s=view.window_s, model=self.model, remembered_symbols=view.remembered_symbols
        )


class SoundView:
    """Sound as it is heard, 16,000 Hz."""

    damages: Sequence[str] = SOUND_DAMAGES

    def __init__(self, view: View, dataset: ConversationSet) -> None:
        self._view, self._dataset = view, dataset

    def clean(self, index: int) -> Iterator[Window]:
        """Windows of a whole conversation, its sound read turn by turn."""
        return self._measured(sound_stream(self._dataset, index))

    def excerpt(self, index: int, end_s: float) -> NDArray[np.float32]:
        """A conversation's first seconds."""
        wanted, parts, count = round(end_s * SPEECH_SAMPLE_RATE_HZ), [], 0
        for part in sound_stream(self._dataset, index):
            parts.append(part)
            count += len(part)
            if count >= wanted:
                break
        return np.concatenate(parts)[:wanted]

    def damaged(
        self, excerpt: NDArray[np.float32], kind: str, onset_s: float, rng: np.random.Generator
    ) -> Iterator[Window]:
        """Windows of an excerpt, damaged from `onset_s` on."""
        return self._measured([damage_sound(excerpt, kind, onset_s, rng)])

    def _measured(self, pieces: Iterable[NDArray[np.float32]]) -> Iterator[Window]:
        return measure_sound(pieces, sample_rate_hz=SPEECH_SAMPLE_RATE_HZ, window_s=self._view.window_s)


def open_view(experiment: DetectorExperiment, name: str, dataset: ConversationSet) -> SymbolView | SoundView:
    """The view of that name, its n-gram model fitted where it has one."""
    view = experiment.view_named(name)
    return SoundView(view, dataset) if name == "sound" else SymbolView(experiment, view, dataset)


def draw_onset(dataset: ConversationSet, index: int, between_s: tuple[float, float], rng: np.random.Generator) -> float:
    """A second inside one of the turns in that stretch, at least a second after the turn's start.

    ValueError where no turn there is long enough.
    """
    early, late = between_s
    spans = [(turn.start_s + START_OF_TURN_S, turn.end_s) for turn in dataset[index].turns]
    inside = [(max(begin, early), min(end, late)) for begin, end in spans]
    inside = [(begin, end) for begin, end in inside if begin < end]
    if not inside:
        raise ValueError(
            f"conversation {index} has no turn longer than {START_OF_TURN_S:g} s between {early:g} and {late:g} s; let "
            "damage begin in a longer stretch"
        )
    lengths = list(itertools.accumulate(end - begin for begin, end in inside))
    place = rng.random() * lengths[-1]
    chosen = int(np.searchsorted(lengths, place, side="right"))
    return inside[chosen][1] - (lengths[chosen] - place)
