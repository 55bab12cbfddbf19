"""What real speech is in a backbone's symbols: the model of perplexity, the calibrated alarm, and how wrong it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from experiments.data.dataset import ConversationSet
from experiments.data.framing import silence_unit
from experiments.long_generation.configuration import LongGenerationExperiment, SymbolWindows
from experiments.quality.detector import SECONDS_PER_HOUR, Alarm, GibberishDetector, Watched, alarms_among
from experiments.quality.ngram import NgramModel
from experiments.quality.real_streams import every_turn, is_known_sentence
from experiments.quality.symbol_measures import SymbolWindow, measure_symbols
from experiments.quality.windows import SymbolBlock
from experiments.spoken.backbone import SpokenBackbone

SUMMARY_FILE = "real_speech.json"
MINUTE_S = 60.0
SILENT = "sounding_symbols_per_minute"


@dataclass(frozen=True, kw_only=True, eq=False)
class RealSpeech:
    """windows: how these symbols are measured. silence: the symbol of it; None where silence has none (text).
    least_sounding: symbols that sound in the most silent minute of all that was calibrated on. control_alarms,
    control_hours: of real speech not calibrated on."""

    windows: SymbolWindows
    model: NgramModel
    detector: GibberishDetector
    silence: int | None
    least_sounding: int
    control_alarms: tuple[Alarm, ...]
    control_hours: float

    def measure(self, blocks: Iterator[SymbolBlock]) -> Iterator[SymbolWindow]:
        """Windows of a stream as it comes."""
        return measure_symbols(
            blocks,
            window_s=self.windows.window_s,
            model=self.model,
            remembered_symbols=self.windows.remembered_symbols,
        )

    def alarms(self, watched: Iterable[Watched], stream: SymbolBlock) -> tuple[Alarm, ...]:
        """Every alarm of a stream by its onset: of gibberish, and of minutes more silent than real speech ever was."""
        silent = _silent_minutes(sounding_by_minute(stream, self.silence), self.least_sounding)
        return tuple(sorted((*alarms_among(watched), *silent), key=lambda alarm: alarm.onset_s))


@dataclass(frozen=True, kw_only=True)
class RealSummary:
    """What an arm keeps of it for the report. usual_surprise: from where to where real windows' cross-entropy lies."""

    control_alarms: int
    control_hours: float
    false_alarms_per_hour: float
    calibrated_hours: float
    usual_surprise: tuple[float, float]

    @classmethod
    def of(cls, real: RealSpeech) -> RealSummary:
        limit = real.detector.limits["cross_entropy_nats"]
        return cls(
            control_alarms=len(real.control_alarms),
            control_hours=real.control_hours,
            false_alarms_per_hour=real.detector.false_alarms_per_hour,
            calibrated_hours=real.detector.calibrated_hours,
            usual_surprise=(limit.low, limit.high),
        )

    def write(self, folder: Path) -> None:
        (folder / SUMMARY_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> RealSummary:
        return cls(**json.loads((folder / SUMMARY_FILE).read_text()))


def learn_real_speech(
    experiment: LongGenerationExperiment, backbone: SpokenBackbone, dataset: ConversationSet
) -> RealSpeech:
    """From the assistant's side of the data: first the n-gram model, then the alarm, then how often real speech that
    neither has seen raises it. Each stretch is so many hours of conversations one behind the other.

    Raises:
        ValueError: the data has fewer hours than that.
    """
    windows = experiment.units if backbone.said == "units" else experiment.text
    stretch = _Stretches(backbone, dataset, experiment.known_sentence_share)
    vocabulary = dataset.codebook.size if backbone.said == "units" else dataset.tokenizer.vocab_size
    known = [block.symbols for block in stretch.take(experiment.model_hours, known_alone=True)]
    model = NgramModel.fit(known, vocabulary, windows.ngram_order)

    def measured(hours: float) -> tuple[list[SymbolWindow], SymbolBlock]:
        joined = joined_blocks(stretch.take(hours, known_alone=False))
        found = measure_symbols(
            [joined], window_s=windows.window_s, model=model, remembered_symbols=windows.remembered_symbols
        )
        return list(found), joined

    calibrated, its_symbols = measured(experiment.calibration_hours)
    detector = GibberishDetector.calibrate(
        [calibrated],
        false_alarms_per_hour=experiment.false_alarms_per_hour,
        windows_to_raise=experiment.windows_to_raise,
    )
    silence = silence_unit(dataset.codebook) if backbone.said == "units" else None
    real = RealSpeech(
        windows=windows,
        model=model,
        detector=detector,
        silence=silence,
        least_sounding=int(sounding_by_minute(its_symbols, silence).min()),
        control_alarms=(),
        control_hours=0.0,
    )
    control, its_symbols = measured(experiment.control_hours)
    hours = len(control) * windows.window_s / SECONDS_PER_HOUR
    return replace(real, control_alarms=real.alarms(detector.watch(control), its_symbols), control_hours=hours)


def sounding_by_minute(stream: SymbolBlock, silence: int | None) -> NDArray[np.int64]:
    """(whole minutes,) how many symbols other than silence stand in each."""
    sounding = stream.seconds if silence is None else stream.seconds[stream.symbols != silence]
    minutes = int((stream.end_s + 1e-9) // MINUTE_S)
    return np.histogram(sounding, bins=np.arange(minutes + 1) * MINUTE_S)[0] if minutes else np.zeros(0, np.int64)


def _silent_minutes(sounding: NDArray[np.int64], least: int) -> Iterator[Alarm]:
    """An alarm for every stretch of minutes in which fewer symbols sound than in any real one."""
    is_silent = np.concatenate([[False], sounding < least])
    for minute in np.flatnonzero(is_silent[1:] & ~is_silent[:-1]):
        yield Alarm(onset_s=minute * MINUTE_S, raised_s=(minute + 1) * MINUTE_S, measure=SILENT)


class _Stretches:
    """Conversations of a set, each used once."""

    def __init__(self, backbone: SpokenBackbone, dataset: ConversationSet, known_share: float) -> None:
        self._real, self._dataset, self._known_share = backbone.real_speech, dataset, known_share
        self._next = 0

    def take(self, hours: float, known_alone: bool) -> Iterator[SymbolBlock]:
        """The next conversations, of so many hours of the assistant's side together or a little more."""
        wanted = partial(is_known_sentence, share=self._known_share) if known_alone else every_turn
        seconds = hours * SECONDS_PER_HOUR
        with tqdm(total=round(seconds), desc="real speech", unit="s", leave=False) as bar:
            taken_s = 0.0
            while taken_s < seconds:
                if self._next == len(self._dataset):
                    raise ValueError(
                        f"the {len(self._dataset)} conversations end {seconds - taken_s:.0f} s before {hours:g} hours "
                        "of real speech are full; raise `conversations`"
                    )
                block = self._real(self._dataset, self._next, wanted)
                self._next += 1
                taken_s += block.end_s
                bar.update(round(block.end_s))
                yield block


def joined_blocks(blocks: Iterator[SymbolBlock]) -> SymbolBlock:
    """Conversations one behind the other as one stream."""
    symbols, seconds, end_s = [np.zeros(0, np.int64)], [np.zeros(0)], 0.0
    for block in blocks:
        symbols.append(block.symbols)
        seconds.append(block.seconds + end_s)
        end_s += block.end_s
    return SymbolBlock(symbols=np.concatenate(symbols), seconds=np.concatenate(seconds), end_s=end_s)
