"""The gibberish detector: says when a stream leaves what real speech is, at a rate of false alarms set beforehand."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.quality.limits import Deviation, Limit, deviation, fit_limits
from experiments.quality.windows import Window

RELEASE_SHARE = 0.7
"""Of the threshold: an alarm ends when as many windows in a row as raise one stay below it."""
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One stretch of gibberish. onset_s: where the first of the windows that raised it begins; raised_s: where the last
    of them ends, the earliest moment at which it is known. measure: the one furthest from real speech in the first.
    """

    onset_s: float
    raised_s: float
    measure: str


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What the detector says of one window. alarm: the one that is on, None while there is none."""

    start_s: float
    end_s: float
    deviation: Deviation
    alarm: Alarm | None


@dataclass(frozen=True, kw_only=True)
class GibberishDetector:
    """An alarm is raised by `windows_to_raise` windows in a row whose farthest measure is beyond `threshold`.

    threshold: in distances from a measure's median to its limit. calibrated_hours: of real speech it was set on.
    """

    window_s: float
    windows_to_raise: int
    threshold: float
    false_alarms_per_hour: float
    calibrated_hours: float
    limits: dict[str, Limit]

    @classmethod
    def calibrate(
        cls,
        real: Sequence[Sequence[Window]],
        *,
        false_alarms_per_hour: float,
        windows_to_raise: int = 2,
    ) -> GibberishDetector:
        """Limits and threshold from the windows of real streams, each in order.

        The threshold lets k false alarms pass in the H hours given, k + 1 being the whole part of
        `false_alarms_per_hour` x H: a new hour like these passes it with (k + 1) / H in expectation, as of so many
        values drawn alike each is equally likely to be the k + 1st. ValueError where H is too short for any k.
        """
        every = [window for stream in real for window in stream]
        limits = fit_limits(every)
        window_s = _one_length(every)
        if windows_to_raise < 1 or not false_alarms_per_hour > 0:
            raise ValueError(
                f"windows_to_raise is {windows_to_raise} and false_alarms_per_hour {false_alarms_per_hour}; they must "
                "be at least 1 and above 0"
            )
        hours = len(every) * window_s / SECONDS_PER_HOUR
        allowed = math.floor(false_alarms_per_hour * hours + 1e-9) - 1
        if allowed < 0:
            raise ValueError(
                f"{hours:.3g} hours of real speech cannot promise {false_alarms_per_hour:g} false alarms an hour; give "
                f"at least {1 / false_alarms_per_hour:.3g} hours or ask for {1 / hours:.3g} an hour"
            )
        deviations = [[deviation(window.measures(), limits).size for window in stream] for stream in real]
        return cls(
            window_s=window_s,
            windows_to_raise=windows_to_raise,
            threshold=_lowest_threshold(deviations, windows_to_raise, allowed),
            false_alarms_per_hour=false_alarms_per_hour,
            calibrated_hours=hours,
            limits=limits,
        )

    def watch(self, windows: Iterable[Window]) -> Iterator[Watched]:
        """What is said of each window as it comes. ValueError for a window of another length or kind."""
        recent: deque[tuple[float, Deviation]] = deque(maxlen=self.windows_to_raise)
        alarm: Alarm | None = None
        for window in windows:
            if abs(window.end_s - window.start_s - self.window_s) > 1e-6:
                raise ValueError(
                    f"the detector was calibrated on windows of {self.window_s:g} s, this one is "
                    f"{window.end_s - window.start_s:g} s; measure the stream with the same"
                )
            here = deviation(window.measures(), self.limits)
            recent.append((window.start_s, here))
            full = len(recent) == self.windows_to_raise
            if alarm is None and full and all(each.size > self.threshold for _, each in recent):
                onset_s, first = recent[0]
                alarm = Alarm(onset_s=onset_s, raised_s=window.end_s, measure=first.measure)
            elif alarm and full and all(each.size <= RELEASE_SHARE * self.threshold for _, each in recent):
                alarm = None
            yield Watched(start_s=window.start_s, end_s=window.end_s, deviation=here, alarm=alarm)

    def alarms(self, windows: Iterable[Window]) -> list[Alarm]:
        """Every alarm of a stream, in order; empty for one that stays speech."""
        return alarms_among(self.watch(windows))

    def save(self, path: str | Path) -> None:
        """As JSON, every number as it is."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> GibberishDetector:
        """What `save` wrote. ValueError for a file that is none."""
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text())
            limits = {name: Limit(**limit) for name, limit in content.pop("limits").items()}
            return cls(limits=limits, **content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no saved gibberish detector ({error}); calibrate one and save it") from error


def alarms_among(watched: Iterable[Watched]) -> list[Alarm]:
    """Every alarm of what was watched, in order."""
    return list(dict.fromkeys(each.alarm for each in watched if each.alarm is not None))


def _one_length(windows: Sequence[Window]) -> float:
    lengths = {round(window.end_s - window.start_s, 6) for window in windows}
    if len(lengths) != 1:
        raise ValueError(f"windows must be of one length, got {sorted(lengths)} s")
    return lengths.pop()


def _lowest_threshold(deviations: Sequence[Sequence[float]], windows_to_raise: int, allowed: int) -> float:
    """The lowest threshold that raises no more than `allowed` alarms: found from above, over the values at which the
    number of alarms can change."""
    runs = {
        min(own[end - windows_to_raise : end]) for own in deviations for end in range(windows_to_raise, len(own) + 1)
    }
    lowest = max(runs, default=0.0)
    for value in sorted(runs, reverse=True):
        if sum(_count_alarms(own, windows_to_raise, value) for own in deviations) > allowed:
            break
        lowest = value
    return lowest


def _count_alarms(sizes: Sequence[float], windows_to_raise: int, threshold: float) -> int:
    """How often an alarm begins: the rule of `GibberishDetector.watch`, on deviations alone."""
    count, above, below, is_on = 0, 0, 0, False
    for size in sizes:
        above = above + 1 if size > threshold else 0
        below = below + 1 if size <= RELEASE_SHARE * threshold else 0
        if not is_on and above >= windows_to_raise:
            count, is_on = count + 1, True
        elif is_on and below >= windows_to_raise:
            is_on = False
    return count
