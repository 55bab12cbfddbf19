"""What is known of a model on each question, what is not, how that could be measured, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analysis.cards import Card, Fact
from analysis.cards.adapters import Adapter
from analysis.cards.computed import context_minutes, conversation_positions_hz
from analysis.cards.schema import NONE
from analysis.cards.wording import duration_in_words, in_words
from analysis.decide.evidence import ROOT, Measurement
from analysis.decide.needs import Needs

Standing = Literal["meets", "fails", "unknown", "not needed"]
REAL_TIME_METRIC = "real_time_factor"
"""Seconds of compute per second of speech; below 1 keeps up."""
FIRST_AUDIO_METRIC = "first_audio_ms"
SHOWN_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class Answer:
    """On one question. reason: what the standing rests on. measure: commands that would settle what is unknown."""

    question: str
    standing: Standing
    reason: str
    known: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    measure: tuple[str, ...] = ()


def answers(
    card: Card,
    adapter: Adapter | None,
    rows: tuple[Measurement, ...],
    needs: Needs,
    experiments: Path = ROOT / "experiments",
) -> tuple[Answer, ...]:
    """One answer a question. rows: the measurements that are about this model (`evidence.about`)."""
    return (
        _real_time(card, rows, needs, experiments),
        _latency(card, rows, needs, experiments),
        _speech_to_speech(card, needs),
        _risk(card, adapter, rows, needs, experiments),
    )


def what_follows(found: tuple[Answer, ...], needs: Needs) -> str:
    """Ruled out, open, or standing, and on what that rests. There is no order among those that are left."""
    if failed := [f"{answer.question} ({answer.reason})" for answer in found if answer.standing == "fails"]:
        return f"ruled out by {'; '.join(failed)}"
    open_questions = [answer.question for answer in found if answer.standing == "unknown"]
    if not open_questions:
        return "nothing that was asked speaks against it"
    if needs.risk == "high":
        return f"not ruled out; choosing it rests on what is unknown: {', '.join(open_questions)}"
    return f"open: unknown is {', '.join(open_questions)}; measure before choosing"


def _stated(name: str, fact: Fact) -> str:
    note = f", {fact.note}" if fact.note else ""
    return f"{name}: {in_words(fact.value)}{note} [{fact.source}]"


def _split(names: dict[str, Fact]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    known = tuple(_stated(name, fact) for name, fact in names.items() if fact.is_known)
    return known, tuple(name for name, fact in names.items() if not fact.is_known)


def _real_time(card: Card, rows: tuple[Measurement, ...], needs: Needs, experiments: Path) -> Answer:
    question = "real time"
    streams = {"hears as a stream": card.facts["streams_input"], "says as a stream": card.facts["streams_output"]}
    known, unknown = _split(streams)
    if not needs.real_time:
        return Answer(question=question, standing="not needed", reason="not asked for", known=known, unknown=unknown)
    says = card.facts["streams_output"]
    if says.value in ("no", "text only"):
        reason = "its stream is text" if says.value == "text only" else "it speaks when the whole reply is there"
        return Answer(question=question, standing="fails", reason=reason, known=known)
    measured = _measured(rows, REAL_TIME_METRIC)
    standing, reason = _held(measured, needs, lambda value: value <= 1)
    known += tuple(map(str, measured))
    return _with_gap(question, standing, reason, known, unknown, measured, REAL_TIME_METRIC, experiments)


def _latency(card: Card, rows: tuple[Measurement, ...], needs: Needs, experiments: Path) -> Answer:
    question = f"first sound within {in_words(needs.latency_ms, 'ms')}"
    published = card.facts["first_audio_ms"]
    known, _ = _split({"first sound, published (ms)": published})
    if published.value == NONE:
        return Answer(question=question, standing="fails", reason="it makes no sound", known=known)
    measured = _measured(rows, FIRST_AUDIO_METRIC)
    standing, reason = _held(measured, needs, lambda value: value <= needs.latency_ms)
    if standing == "unknown" and needs.risk != "low" and published.number is not None:
        standing = "meets" if published.number <= needs.latency_ms else "fails"
        reason = f"as published, not measured here: {in_words(published.value, 'ms')}"
    known += tuple(map(str, measured))
    return _with_gap(question, standing, reason, known, (), measured, FIRST_AUDIO_METRIC, experiments)


def _speech_to_speech(card: Card, needs: Needs) -> Answer:
    hears, says = card.facts["hears_speech"], card.facts["says_speech"]
    known, unknown = _split({"hears speech": hears, "says speech": says, "duplex": card.facts["duplex"]})
    if not needs.speech_to_speech:
        standing, reason = "not needed", "not asked for"
    elif False in (hears.value, says.value):
        lacks = [what for what, fact in (("hear", hears), ("say", says)) if fact.value is False]
        standing, reason = "fails", f"it does not {' or '.join(lacks)} speech itself"
    elif not card.is_trained:
        standing, reason = "unknown", "it is planned so; no trained model is published"
    elif hears.value is True and says.value is True:
        standing, reason = "meets", "it hears and says speech"
    else:
        standing, reason = "unknown", "the card does not know"
    return Answer(question="speech to speech", standing=standing, reason=reason, known=known, unknown=unknown)


def _risk(
    card: Card, adapter: Adapter | None, rows: tuple[Measurement, ...], needs: Needs, experiments: Path
) -> Answer:
    is_loadable = adapter is not None and adapter.is_loadable
    where = f"backbones/{adapter.folder}" if adapter else "none"
    lasts = context_minutes(card, conversation_positions_hz(card))
    facts = {
        "context (positions)": card.facts["context_positions"],
        "longest sequence in training (positions)": card.facts["trained_positions"],
        "licence of the weights": card.facts["weights_licence"],
    }
    known, unknown = _split(facts)
    known = (
        f"adapter here: {where}; load_backbone loads it: {in_words(is_loadable)}",
        f"conversation that fits the context: {duration_in_words(lasts)} [computed]",
        *known,
        *map(str, rows[:SHOWN_ROWS]),
        *([f"and {len(rows) - SHOWN_ROWS} more measurements in evidence/"] if len(rows) > SHOWN_ROWS else []),
    )
    at_full = [row for row in rows if row.scale == "full"]
    if needs.risk == "high":
        standing, reason = "meets", "accepted"
    elif at_full or (rows and needs.risk == "medium"):
        standing, reason = "meets", f"tests measured here: {len(rows)}, at scale full: {len(at_full)}"
    else:
        standing, reason = "unknown", f"tests measured here: {len(rows)}, none at scale full"
    gap = () if at_full else ("anything measured at scale full",)
    return Answer(
        question=f"enough measured for risk {needs.risk}", standing=standing, reason=reason, known=known,
        unknown=(*unknown, *gap), measure=() if at_full else _commands(card, is_loadable, experiments),
    )  # fmt: skip


def _measured(rows: tuple[Measurement, ...], metric: str) -> list[Measurement]:
    return [row for row in rows if row.metric.rpartition("/")[2] == metric and not row.against]


def _held(measured: list[Measurement], needs: Needs, holds: Callable[[float], bool]) -> tuple[Standing, str]:
    """By the whole interval of every measurement of the largest scale that may decide."""
    may_decide = [row for row in measured if row.scale == "full" or needs.risk == "high"]
    deciding = [row for row in may_decide if row.scale == may_decide[0].scale]
    if not deciding:
        smaller = sorted({row.scale for row in measured})
        return "unknown", f"measured at scale {', '.join(smaller)} only" if smaller else "not measured"
    ends = [holds(end) for row in deciding for end in (row.low, row.high)]
    reason = f"measured at scale {deciding[0].scale}"
    if all(ends):
        return "meets", reason
    return ("unknown", f"{reason}, and undecided") if any(ends) else ("fails", reason)


def _with_gap(
    question: str, standing: Standing, reason: str, known: tuple[str, ...], unknown: tuple[str, ...],
    measured: list[Measurement], metric: str, experiments: Path,
) -> Answer:  # fmt: skip
    if any(row.scale == "full" for row in measured):
        return Answer(question=question, standing=standing, reason=reason, known=known, unknown=unknown)
    return Answer(
        question=question, standing=standing, reason=reason, known=known,
        unknown=(*unknown, f"{metric}, measured here at scale full"), measure=(_logged_by(metric, experiments),),
    )  # fmt: skip


def _logged_by(metric: str, experiments: Path) -> str:
    files = [path for path in sorted(experiments.rglob("*.py")) if metric in path.read_text(encoding="utf-8")]
    if not files:
        return f"nothing under experiments/ logs {metric} yet"
    names = ", ".join(str(path.relative_to(experiments.parent)) for path in files)
    return f"a recipe of {names}, at SCALE=full"


def _commands(card: Card, is_loadable: bool, experiments: Path) -> tuple[str, ...]:
    if not is_loadable:
        return (f"nothing yet: load_backbone does not load {card.name}",)
    there = [name for name in card.recipes if (experiments / "recipes" / f"{name.replace('-', '_')}.py").is_file()]
    return tuple(f"make exp-{name} SCALE=full" for name in there) or ("no recipe runs it yet",)
