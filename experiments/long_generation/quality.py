"""How good a stream is along its way: windows of its symbols and of its sound, and when the alarm is raised."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, stream_audio
from experiments.long_generation.real_speech import RealSpeech
from experiments.long_generation.speaking import StreamOnDisk
from experiments.quality.detector import Alarm, Watched
from experiments.quality.sound_measures import SoundWindow, measure_sound
from experiments.quality.symbol_measures import SymbolWindow
from experiments.quality.windows import Window, finest_differences

WINDOWS_FILE, SOUND_FILE, QUALITY_FILE = "windows.csv", "sound.csv", "quality.json"
SYMBOL_MEASURES = tuple(finest_differences(SymbolWindow))
SOUND_MEASURES = tuple(finest_differences(SoundWindow))
DISTANCE = "distance_from_speech"
READ_SOUND_S = 30.0


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamQuality:
    """Of one stream of `duration_s`. curves: {measure: (seconds (W,), values (W,))} at the end of every window."""

    duration_s: float
    alarms: tuple[Alarm, ...]
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def first_alarm_s(self) -> float:
        """Onset of the first alarm; infinity where none was raised."""
        return self.alarms[0].onset_s if self.alarms else math.inf

    def mean(self, measure: str, first_s: float, end_s: float) -> float:
        """Of the windows that lie between; NaN where none tells."""
        seconds, values = self.curves[measure]
        inside = values[(seconds > first_s + 1e-9) & (seconds <= end_s + 1e-9)]
        return float(np.nanmean(inside)) if np.isfinite(inside).any() else math.nan


def judge_stream(stream: StreamOnDisk, real: RealSpeech, sound_window_s: float) -> StreamQuality:
    """Measures a stream from its files, and leaves what was found beside them."""
    windows = list(real.measure(iter([stream.symbols])))
    watched = list(real.detector.watch(windows))
    sound = list(
        measure_sound(
            stream_audio(stream.audio, READ_SOUND_S), sample_rate_hz=SPEECH_SAMPLE_RATE_HZ, window_s=sound_window_s
        )
    )
    alarms = real.alarms(watched, stream.symbols)
    _write_windows(stream.folder / WINDOWS_FILE, SYMBOL_MEASURES, windows, watched)
    _write_windows(stream.folder / SOUND_FILE, SOUND_MEASURES, sound, None)
    content = {"duration_s": stream.duration_s, "alarms": [dataclasses.asdict(alarm) for alarm in alarms]}
    whole = stream.folder / f"{QUALITY_FILE}.new"  # a kill in the middle leaves none, and the stream is judged again
    whole.write_text(json.dumps(content, indent=1))
    whole.replace(stream.folder / QUALITY_FILE)
    return read_quality(stream.folder)


def read_quality(folder: Path) -> StreamQuality:
    """What `judge_stream` left."""
    content = json.loads((folder / QUALITY_FILE).read_text())
    curves = _read_windows(folder / WINDOWS_FILE) | _read_windows(folder / SOUND_FILE)
    alarms = tuple(Alarm(**alarm) for alarm in content["alarms"])
    return StreamQuality(duration_s=content["duration_s"], alarms=alarms, curves=curves)


def is_judged(folder: Path) -> bool:
    return (folder / QUALITY_FILE).is_file()


def _write_windows(
    path: Path, measures: Sequence[str], windows: Sequence[Window], watched: Sequence[Watched] | None
) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        extra = [] if watched is None else [DISTANCE]
        writer.writerow(["start_s", "end_s", *measures, *extra])
        for number, window in enumerate(windows):
            own = window.measures()
            distance = [] if watched is None else [watched[number].deviation.size]
            writer.writerow([window.start_s, window.end_s, *(own[name] for name in measures), *distance])


def _read_windows(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    columns = np.array(rows, dtype=np.float64).T
    ends = columns[header.index("end_s")]
    return {name: (ends, columns[place]) for place, name in enumerate(header) if place > 1}


def buckets_of(duration_s: float, bucket_s: float) -> Iterator[tuple[float, float]]:
    """(first, end) of the whole buckets of a stream."""
    for number in range(int((duration_s + 1e-9) // bucket_s)):
        yield number * bucket_s, (number + 1) * bucket_s
