"""The items of the checklist: each asks one question and answers it from runs alone, or says what would answer it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from analysis.checklist.runs import ModelRuns
from analysis.runs import LoggedRun

State = Literal["met", "not met", "measured", "missing"]
HEALTHY_W1 = 10.0
LARGEST_RATIO = 1.2
GIB = 1024**3
HOUR_S = 3600.0
LARGEST_SAMPLE_BYTES = 3 * GIB


@dataclass(frozen=True, kw_only=True)
class Item:
    """state: met or not met where a bound is set, measured where none is, missing where nothing was measured.

    found: what was measured, in words with units; where nothing was, what is lacking. bound: what was asked.
    command: what measures it; empty where nothing here can.
    """

    question: str
    state: State
    found: str
    bound: str = ""
    command: str = ""


def items_of(runs: ModelRuns) -> tuple[Item, ...]:
    """Every item, in the order in which they are to be looked at."""
    return tuple(item for group in GROUPS for item in group(runs))


def training(runs: ModelRuns) -> Iterable[Item]:
    """Of the run itself and those before it."""
    run = runs.run
    yield _bounded("Did training end well?", run.status == "FINISHED", f"status {run.status.lower()}", "finished")
    odd = [
        f"{each.experiment} is {'adhoc' if each.tags.get('adhoc') != 'false' else 'of a changed checkout'}"
        for each in runs.whole_line
        if each.tags.get("adhoc") != "false" or each.tags.get("git_dirty") != "false"
    ]
    yield _bounded(
        "Can it be made again from a commit?", not odd,
        "; ".join(dict.fromkeys(odd)) or f"every stage: {_commits(runs)}", "no field changed by hand, clean checkouts",
    )  # fmt: skip
    stages = [
        f"{each.experiment} {each.arm} (run {each.run_id[:8]}, {each.status.lower()})" for each in runs.whole_line
    ]
    yield Item(question="Which stages led to it?", state="measured", found=" -> ".join(stages))
    yield _bounded(
        "Was it run above the scale that only tries the code?", run.scale != "smoke", f"scale {run.scale}", "not smoke"
    )


def stability(runs: ModelRuns) -> Iterable[Item]:
    """What the monitor saw, over all stages."""
    largest = _largest(runs, r"ttt/layer\d+/W1_max")
    if largest is None:
        yield Item(
            question="Did the inner weights stay small?", state="missing",
            found="no stage logged the inner weights: no TTT is mounted, or the monitor never looked",
        )  # fmt: skip
    else:
        yield _bounded(
            "Did the inner weights stay small?", largest <= HEALTHY_W1, f"largest |W1| at any step: {largest:.3g}",
            "10 (a convention: healthy runs have passed it)",
        )  # fmt: skip
    alarms = sorted({name for run in runs.whole_line for name in run.tags if name.startswith("alarm.")})
    yield Item(
        question="Which alarms were raised?", state="measured",
        found=", ".join(name.removeprefix("alarm.") for name in alarms) or "none",
    )  # fmt: skip
    precision = runs.run.params.get("arm.ttt.precision")
    guards = runs.run.params.get("arm.ttt.guards_autocast")
    if precision is None:
        yield Item(question="Is the inner state FP32, guarded from autocast?", state="missing", found="no TTT mounted")
    else:
        yield _bounded(
            "Is the inner state FP32, guarded from autocast?", (precision, guards) == ("fp32", "True"),
            f"precision {precision}, guards_autocast {guards}", "fp32, True",
        )  # fmt: skip


def quality(runs: ModelRuns) -> Iterable[Item]:
    """What the validation measured."""
    measured = _validated(runs)
    perplexities = _by_bucket(measured, "perplexity_by_position")
    command = _command(runs)
    if not perplexities:
        yield _missing("What is the perplexity along tens of thousands of positions?", command)
    else:
        words = ", ".join(f"{bucket}: {value:.3f}" for bucket, value in perplexities.items())
        streams = int(measured.get("validation/streams", 0))
        yield Item(
            question="What is the perplexity along tens of thousands of positions?", state="measured",
            found=f"{words} ({streams} streams)", command=command,
        )  # fmt: skip
    ratio = measured.get("validation/perplexity_last_over_first")
    longest = list(perplexities)[-1] if perplexities else ""
    if ratio is None:
        yield _missing("Is the last perplexity within 20 % of the first?", command)
    else:
        yield _bounded(
            "Is the last perplexity within 20 % of the first?", ratio <= LARGEST_RATIO,
            f"{ratio:.3f} times, positions {longest}", f"at most {LARGEST_RATIO:g} times",
        )  # fmt: skip
    gains = _by_bucket(measured, "loss_against_fresh_memory_by_position")
    if not gains:
        yield _missing("Does its memory help, against a fresh one on the same streams?", command)
    else:
        last, low = list(gains)[-1], _by_bucket(measured, "loss_against_fresh_memory_by_position_low")
        found = f"{gains[last]:+.4f} nats at {last}"
        if last in low:
            yield _bounded(
                "Does its memory help, against a fresh one on the same streams?", low[last] > 0,
                f"{found}, 95 % interval from {low[last]:+.4f}", "the whole interval above 0",
            )  # fmt: skip
        else:
            yield Item(
                question="Does its memory help, against a fresh one on the same streams?", state="missing",
                found=f"{found}, of too few streams for an interval", command=command,
            )  # fmt: skip
    recall = _by_bucket(measured, "recall_by_distance")
    chance = measured.get("recall/chance")
    if not recall or chance is None:
        yield _missing("What is recalled, and from how far back?", command)
    else:
        words = ", ".join(f"{bucket}: {value:.2f}" for bucket, value in recall.items())
        yield Item(
            question="What is recalled, and from how far back?", state="measured",
            found=f"{words}; by guessing {chance:.3f}",
        )  # fmt: skip


def costs(runs: ModelRuns) -> Iterable[Item]:
    """Memory and speed."""
    measured, command = _validated(runs), _command(runs)
    peaks = {samples: measured.get(f"memory/peak_bytes_per_sample_of_{samples}") for samples in (1, 4)}
    if None in peaks.values():
        yield _missing("What memory does a sample take, alone and in a batch of four?", command)
    else:
        words = ", ".join(f"{value / 1e9:.3f} GB of {samples}" for samples, value in peaks.items() if value is not None)
        state = measured.get("memory/state_bytes_per_conversation", math.nan)
        yield _bounded(
            "What memory does a sample take, alone and in a batch of four?",
            max(value or 0 for value in peaks.values()) < LARGEST_SAMPLE_BYTES,
            f"peak while reading, a sample: {words}; its state at the end: {state / 1e6:.3f} MB", "under 3 GiB",
        )  # fmt: skip
    speed = measured.get("speed/read_positions_per_second")
    if speed is None:
        yield _missing("How fast does it read?", command)
    else:
        where = "" if runs.validation is None else runs.validation.tags.get("hardware", "")
        yield Item(
            question="How fast does it read?", state="measured", found=f"{speed:,.0f} positions a second on {where}"
        )


def speech(runs: ModelRuns) -> Iterable[Item]:
    """What the validation heard of its own speech, and what no program can say."""
    yield _own_speech(runs)
    yield _cost_of_speech(runs)
    yield Item(
        question="Do listeners prefer it?", state="missing",
        found="not measured: no ratings by people are in the store, and nothing else counts",
    )  # fmt: skip


def _own_speech(runs: ModelRuns) -> Item:
    question, measured = "Does an hour of its own speech stay speech?", _validated(runs)
    seconds = measured.get("stream/seconds")
    if seconds is None:
        why_not = "" if runs.validation is None else runs.validation.tags.get("skipped.long_generation", "")
        return Item(
            question=question, state="missing", command="" if why_not else _command(runs),
            found=why_not or "not measured: no validation has heard it speak",
        )  # fmt: skip
    alarms = round(measured.get("quality/alarms_per_hour", math.nan) * seconds / HOUR_S)
    said = f"{_duration(seconds)} spoken, "
    if alarms:
        first_s = measured.get("quality/first_alarm_median_s", math.nan)
        said += f"{alarms} {'alarm' if alarms == 1 else 'alarms'}, the first after {_duration(first_s)}"
    else:
        said += "no alarm" + ("" if seconds >= HOUR_S else "; an hour is spoken at scales gpu and full")
    tags = {} if runs.validation is None else runs.validation.tags
    bound = f"no alarm of the gibberish detector in an hour ({tags.get('real_speech', 'real speech was not told of')})"
    state: State = "not met" if alarms else "met" if seconds >= HOUR_S else "measured"
    return Item(question=question, state=state, found=said, bound=bound)


def _cost_of_speech(runs: ModelRuns) -> Item:
    question, measured = "What does it take while it speaks?", _validated(runs)
    factor = measured.get("speed/real_time_factor")
    if factor is None:
        return _missing(question, _command(runs))
    words = [f"{factor:.3f} s of compute a second"]
    first_audio_ms, growth = measured.get("speed/first_audio_ms"), measured.get("memory/held_bytes_per_minute")
    words.append("no sound at all" if first_audio_ms is None else f"first audio after {first_audio_ms:.0f} ms")
    held = measured.get("memory/held_bytes_at_the_end", math.nan)
    grows = "by how much it grows is not told by so few pieces" if growth is None else f"{growth:+,.0f} bytes a minute"
    words.append(f"{held / 1e6:.3f} MB held at the end ({grows})")
    return _bounded(question, factor < 1, ", ".join(words), "under 1 s of compute a second of the conversation")


GROUPS: tuple[Callable[[ModelRuns], Iterable[Item]], ...] = (training, stability, quality, costs, speech)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _bounded(question: str, is_met: bool, found: str, bound: str) -> Item:
    return Item(question=question, state="met" if is_met else "not met", found=found, bound=bound)


def _missing(question: str, command: str) -> Item:
    return Item(question=question, state="missing", found="not measured", command=command)


def _validated(runs: ModelRuns) -> Mapping[str, float]:
    return {} if runs.validation is None else runs.validation.metrics


def _command(runs: ModelRuns) -> str:
    return f"make validate RUN={runs.run.run_id}"


def _by_bucket(metrics: Mapping[str, float], section: str) -> dict[str, float]:
    """{"1,000-5,000": value} in rising order."""
    found = {}
    for name in sorted(metrics):
        match = re.fullmatch(rf"{section}/(\d+)_(\d+)", name)
        if match is not None:
            found[f"{int(match[1]):,}-{int(match[2]):,}"] = metrics[name]
    return found


def _largest(runs: ModelRuns, pattern: str) -> float | None:
    """Over all stages and steps."""
    values = [
        value
        for run in runs.whole_line
        for name in run.metrics
        if re.fullmatch(pattern, name)
        for _, value in runs.store.history(run.run_id, name)
    ]
    return max(values) if values else None


def _commits(runs: ModelRuns) -> str:
    return ", ".join(dict.fromkeys(_commit(run) for run in runs.whole_line))


def _commit(run: LoggedRun) -> str:
    return run.commit[:12]
