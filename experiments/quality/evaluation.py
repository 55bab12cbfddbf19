"""What a calibrated detector is worth on streams it has never seen: ROC, false alarms, onsets and delays."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

from experiments.quality.detector import SECONDS_PER_HOUR, Alarm, Watched

FALSE_POSITIVE_RATES = (0.0, *np.logspace(-3, 0, 61).round(6).tolist())
"""At which a ROC is kept."""


@dataclass(frozen=True, kw_only=True)
class WatchedStream:
    """One held-out stream with what the detector said of its windows. onset_s: where damage begins, None without."""

    conversation: str
    kind: str
    onset_s: float | None
    windows: tuple[Watched, ...]

    @property
    def alarms(self) -> list[Alarm]:
        return list(dict.fromkeys(each.alarm for each in self.windows if each.alarm is not None))


@dataclass(frozen=True, kw_only=True)
class OnsetFound:
    """What became of one planted onset. alarm_s: the onset that the stream's first alarm names, raised_s: when it is
    raised; both infinite where none is. measure: that gave it away."""

    conversation: str
    onset_s: float
    alarm_s: float
    raised_s: float
    measure: str

    @property
    def error_s(self) -> float:
        """Named minus planted."""
        return self.alarm_s - self.onset_s

    @property
    def delay_s(self) -> float:
        """From the damage to the alarm. Negative for an alarm that was false."""
        return self.raised_s - self.onset_s


@dataclass(frozen=True, kw_only=True)
class KindResult:
    """One kind of damage in one seed. auc: of single windows against all clean ones. true_positive_rates: at
    FALSE_POSITIVE_RATES."""

    auc: float
    true_positive_rates: tuple[float, ...]
    onsets: tuple[OnsetFound, ...]

    def found_within(self, tolerated_s: float) -> list[bool]:
        """Of each stream, whether its first alarm names the onset to within so many seconds, to either side."""
        return [abs(each.error_s) <= tolerated_s for each in self.onsets]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One view under one seed. examples: {kind: [(end_s, deviation)]} of the first conversation."""

    threshold: float
    calibrated_hours: float
    clean_hours: float
    false_alarms: int
    kinds: dict[str, KindResult]
    examples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """What `save` wrote."""
        content = json.loads(path.read_text())
        kinds = {
            kind: KindResult(
                auc=own["auc"],
                true_positive_rates=tuple(own["true_positive_rates"]),
                onsets=tuple(OnsetFound(**each) for each in own["onsets"]),
            )
            for kind, own in content.pop("kinds").items()
        }
        examples = {kind: [tuple(row) for row in rows] for kind, rows in content.pop("examples").items()}
        return cls(kinds=kinds, examples=examples, **content)


def evaluate(
    clean: Sequence[WatchedStream], damaged: Sequence[WatchedStream], threshold: float, calibrated_hours: float
) -> Evaluation:
    """Of all streams of one view and seed. ValueError without clean or without damaged streams."""
    if not clean or not damaged:
        raise ValueError(f"{len(clean)} clean and {len(damaged)} damaged streams; errors are measured on both")
    kinds = list(dict.fromkeys(stream.kind for stream in damaged))
    speech = [each.deviation.size for stream in clean for each in stream.windows]
    first = damaged[0].conversation
    seconds = sum(stream.windows[-1].end_s for stream in clean)
    return Evaluation(
        threshold=threshold,
        calibrated_hours=calibrated_hours,
        clean_hours=seconds / SECONDS_PER_HOUR,
        false_alarms=sum(len(stream.alarms) for stream in clean),
        kinds={kind: _of_kind([stream for stream in damaged if stream.kind == kind], speech) for kind in kinds},
        examples={
            stream.kind: [(each.end_s, each.deviation.size) for each in stream.windows]
            for stream in damaged
            if stream.conversation == first
        },
    )


def _of_kind(streams: Sequence[WatchedStream], speech: Sequence[float]) -> KindResult:
    """A window is gibberish where it lies wholly behind the onset; one that holds the onset is neither."""
    gibberish = [
        each.deviation.size
        for stream in streams
        for each in stream.windows
        if stream.onset_s is not None and each.start_s >= stream.onset_s
    ]
    truth = np.repeat([0, 1], [len(speech), len(gibberish)])
    scores = np.concatenate([speech, gibberish])
    false_rates, true_rates, _ = roc_curve(truth, scores, drop_intermediate=False)
    return KindResult(
        auc=float(roc_auc_score(truth, scores)),
        true_positive_rates=tuple(_at_rates(false_rates, true_rates)),
        onsets=tuple(_onset(stream) for stream in streams),
    )


def _at_rates(false_rates: np.ndarray, true_rates: np.ndarray) -> list[float]:
    """The largest true positive rate at no more than each of FALSE_POSITIVE_RATES."""
    places = np.searchsorted(false_rates, np.array(FALSE_POSITIVE_RATES) + 1e-12, side="right") - 1
    return [float(true_rates[place]) for place in places]


def _onset(stream: WatchedStream) -> OnsetFound:
    assert stream.onset_s is not None
    first = next(iter(stream.alarms), Alarm(onset_s=math.inf, raised_s=math.inf, measure=""))
    return OnsetFound(
        conversation=stream.conversation,
        onset_s=stream.onset_s,
        alarm_s=first.onset_s,
        raised_s=first.raised_s,
        measure=first.measure,
    )


def write_onsets(path: Path, evaluation: Evaluation) -> Path:
    """Every planted onset with what was said of it, as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kind", "conversation", "onset_s", "named_onset_s", "raised_s", "measure"])
        for kind, own in evaluation.kinds.items():
            writer.writerows(
                [kind, each.conversation, f"{each.onset_s:.2f}", each.alarm_s, each.raised_s, each.measure]
                for each in own.onsets
            )
    return path
