"""Items out of long streams: where they are cut, which are left out, and what is told of early and late."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import pandas
import pytest
import soundfile
from analysis_stores import Checkout
from listening_fixtures import Clock, answer_all, fast_clock, folder_systems, tone  # noqa: F401

from analysis.listening import database as store_module
from analysis.listening.along import along_streams
from analysis.listening.database import Database, StoredPair
from analysis.listening.excerpts import choose_excerpts, cut_at_pauses, excerpt_wav
from analysis.listening.judging import judged
from analysis.listening.levels import read_clip
from analysis.listening.preparing import TestOptions, parse_excerpt, prepare
from analysis.listening.results_page import write_results
from analysis.listening.streams import LongStream, streams_in
from analysis.listening.systems import labels_of_ttt, systems_of
from analysis.listening.verdict import results_of
from analysis.store import open_store

RATE_HZ = 8000
Sounds = Callable[[float], bool]
"""Whether a stream sounds at a second."""


def sentences(every_s: float = 4.0, pause_s: float = 1.0) -> Sounds:
    return lambda second: second % every_s < every_s - pause_s


def write_stream(folder: Path, seconds: float, sounds: Sounds, heard: Sequence[float] | None = None) -> LongStream:
    """A stream in an arm's folder: a tone with another pitch in each second of a minute, or nothing. heard: when
    replies to the turns t0, t1, ... are due."""
    stream = folder / "streams" / "00"
    stream.mkdir(parents=True)
    tenths = [
        tone(200 + 10 * (tenth // 10 % 60), 0.1, RATE_HZ) * sounds(tenth / 10) for tenth in range(round(10 * seconds))
    ]
    soundfile.write(stream / "speech.wav", numpy.concatenate(tenths), RATE_HZ)
    if heard is not None:
        with (stream / "heard.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("utterance_id", "start_s", "reply_due_s"))
            rows.writerows((f"t{number}", max(0.0, due - 1.0), due) for number, due in enumerate(heard))
    [found] = streams_in(folder).values()
    return found


def pitches(content: bytes) -> set[int]:
    """Which whole seconds of the first minute an excerpt holds, by their pitch; tenths at the edges may be cut."""
    clip = read_clip(content, "excerpt")
    frames = clip.samples[: len(clip.samples) // 800 * 800].reshape(-1, 800)
    loud = frames[numpy.abs(frames).max(axis=1) > 0.1]
    spectrum = numpy.abs(numpy.fft.rfft(loud * numpy.hanning(800), 8000))
    return {round((peak - 200) / 10) for peak in spectrum.argmax(axis=1).tolist()}


def test_an_excerpt_begins_and_ends_in_pauses_and_is_the_stream_of_that_time(tmp_path: Path) -> None:
    stream = write_stream(tmp_path, 60.0, sentences())
    cut = cut_at_pauses(stream, 30.0)
    assert cut is not None and 7 <= cut.end_s - cut.start_s <= 13 and abs(cut.start_s - 30) <= 3
    for edge_s in (cut.start_s, cut.end_s):
        assert edge_s % 4 >= 2.99 or edge_s % 4 < 0.01, edge_s  # sentences of 3 s, pauses of 1 s
    seconds = pitches(excerpt_wav(stream, cut, "x"))
    assert seconds == {s for s in range(60) if s % 4 < 3 and cut.start_s - 0.05 <= s < cut.end_s}
    assert cut.sounding_s == pytest.approx(len(seconds), abs=0.1)


def test_without_a_pause_it_is_cut_anyway_and_faded(tmp_path: Path) -> None:
    stream = write_stream(tmp_path, 40.0, lambda second: True)
    cut = cut_at_pauses(stream, 12.0)
    assert cut is not None and 7 <= cut.end_s - cut.start_s <= 13 and 9 <= cut.start_s <= 15
    clip = read_clip(excerpt_wav(stream, cut, "x"), "x")
    assert abs(clip.samples[[0, -1]]).max() < 0.01 < 0.19 < abs(clip.samples).max()


def test_seconds_of_silence_do_not_begin_an_excerpt_and_silence_alone_is_none(tmp_path: Path) -> None:
    late = write_stream(tmp_path / "late", 60.0, lambda second: 26 <= second < 34)
    cut = cut_at_pauses(late, 20.0)
    assert cut is not None and cut.start_s == pytest.approx(25.8, abs=0.05) and cut.sounding_s > 6
    silent = cut_at_pauses(late, 45.0)
    assert silent is not None and silent.is_silent and silent.sounding_s == 0
    assert cut_at_pauses(late, 55.0) is not None and cut_at_pauses(late, 57.0) is None  # six seconds are none


def test_items_lie_from_the_first_minute_to_the_last_in_the_same_minute_of_all(tmp_path: Path) -> None:
    streams = {
        label: write_stream(tmp_path / label, 400.0 + extra, sentences(4.0 + extra / 50, 1.0))
        for label, extra in (("a", 0.0), ("b", 30.0))
    }
    chosen = choose_excerpts({"s": streams}, 13)
    assert len(chosen.items) == 13 and [chosen.items[n].along for n in (0, -1)] == [7.5 / 400, 367.5 / 400]
    assert {int(item.name[-6:-3]) for item in chosen.items} == set(range(7))
    ended = dict.fromkeys(streams, 0.0)
    for item in chosen.items:
        minute = int(item.name[-6:-3])
        assert {cut.start_s // 60 for cut in item.cuts.values()} == {minute}
        for label, cut in item.cuts.items():
            assert cut.start_s >= ended[label]  # nothing is heard twice
            ended[label] = cut.end_s
    assert len(choose_excerpts({"s": streams}, 1000).items) > 20


def test_silent_places_are_left_out_and_counted_and_others_looked_for(tmp_path: Path) -> None:
    streams = {
        "half": write_stream(tmp_path / "half", 240.0, lambda second: second < 120 and sentences()(second)),
        "whole": write_stream(tmp_path / "whole", 240.0, sentences()),
    }
    chosen = choose_excerpts({"s": streams}, 16)
    assert chosen.items and all(item.along < 0.5 for item in chosen.items)
    assert chosen.silent["half"] == 8 and not chosen.silent["whole"] and chosen.looked_at["whole"] == 16
    assert any("8 of 16 excerpts of half" in line for line in chosen.lines())
    # Two parts, four places each and more: the second has none where both speak, the first needs one look.
    few = choose_excerpts({"s": streams}, 2)
    assert len(few.items) == 1 and few.looked_at["half"] == 9
    mute = {label: write_stream(tmp_path / f"mute-{label}", 60.0, lambda second: False) for label in ("a", "b")}
    with pytest.raises(ValueError, match=r"no place at which two .* a: 4 of 4, b: 4 of 4"):
        choose_excerpts({"s": mute}, 4)


def test_of_one_conversation_the_reply_to_the_same_turn_is_heard(tmp_path: Path) -> None:
    due = [7.0 * n + 2 for n in range(16)]
    slower = [each * 1.03 for each in due]
    streams = {
        label: write_stream(tmp_path / label, 115.0, sentences(), times)
        for label, times in (("fast", due), ("slow", slower))
    }
    chosen = choose_excerpts({"s": streams}, 8)
    same = [item for item in chosen.items if item.same_turn]
    assert len(same) >= 5
    for item in same:
        fast, slow = (item.cuts[label].start_s for label in streams)
        turns = [n for n in range(16) if abs(due[n] - fast) <= 3.05 and abs(slower[n] - slow) <= 3.05]
        assert turns, (item.name, fast, slow)
    other = write_stream(tmp_path / "other", 115.0, sentences(), due)
    (tmp_path / "other/streams/00/heard.csv").write_text("utterance_id,start_s,reply_due_s\nelse,0,2\n")
    [other] = streams_in(tmp_path / "other").values()
    assert not any(item.same_turn for item in choose_excerpts({"s": streams | {"slow": other}}, 8).items)


# Whole tests


def two_folders(root: Path, seconds: float = 330.0) -> list[str]:
    for label, pause_s in (("ttt", 1.0), ("window", 2.0)):
        write_stream(root / label, seconds, sentences(5.0, pause_s))
    return [f"{label}={root / label}" for label in ("ttt", "window")]


def test_a_rater_learns_no_minute_and_the_test_keeps_it(tmp_path: Path) -> None:
    told: list[str] = []
    systems = folder_systems(two_folders(tmp_path))
    database = prepare(tmp_path / "test", systems, TestOptions(most_pairs=12, is_simulated=True), told.append)
    pairs = [each for each in database.pairs() if each.kind == "pair"]
    assert len(pairs) == 12 == len(database.test.places)
    assert [database.test.places[each.pair.item] for each in pairs] == sorted(database.test.places.values())
    assert any(re.match("12 items of long streams, cut at pauses, from 2 % to 9", line) for line in told)
    assert database.test.notes and database.test.notes == told[:3]
    clips = list((tmp_path / "test" / "clips").iterdir())
    assert all(re.fullmatch(r"[0-9a-f]{32}\.wav", clip.name) and clip.stat().st_mtime == 0 for clip in clips)
    again = prepare(tmp_path / "test", systems, TestOptions(most_pairs=12, is_simulated=True))
    assert again.test == database.test
    with pytest.raises(ValueError, match="leave out --excerpts"):
        prepare(tmp_path / "x", systems, TestOptions(excerpts=(parse_excerpt("0:5"),), is_simulated=True))


def test_preferences_early_and_late_are_told_with_intervals_where_items_allow(
    tmp_path: Path, fast_clock: Clock, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(store_module, "time", Clock(step_s=30))  # as long as two excerpts
    systems = folder_systems(two_folders(tmp_path, 660.0))
    database = prepare(tmp_path / "test", systems, TestOptions(most_pairs=44, is_simulated=True))

    def early_ttt_late_window(rater: str, pair: StoredPair) -> str:
        return "first" if database.test.places[pair.pair.item] < 0.5 else "second"

    for rater in ("one-1", "two-2"):
        answer_all(database, rater, early_ttt_late_window)
    assert not results_of(Database(database.path)).along  # fewer raters than planned: nothing is told
    answer_all(database, "three-3", early_ttt_late_window)
    results = results_of(Database(database.path))
    assert results.refusals and "simulated" in results.refusals[0]
    whole, pair = results.along
    assert (whole.early.first, pair.early.second) == ("TTT", "window")
    assert whole.early.share.value == 1 and whole.late.share.value == 0 and whole.change.value == -1
    assert whole.early.items == whole.late.items == 11
    assert whole.early.share.low == pytest.approx(0.025 ** (1 / 11)) and whole.change.is_known
    [page, table, values, *_] = write_results(results, tmp_path / "results")
    assert "From the first quarter of the streams to the last" in page.read_text()
    assert "late less early -1.00" in table.read_text() and "0 of 44 excerpts of window" in table.read_text()
    assert json.loads(values.read_text())["along_streams"][0]["share_last_quarter"]["value"] == 0


def test_a_quarter_of_few_items_has_a_share_and_no_interval() -> None:
    rows = [("r", f"i{n:02d}", n, "a", "b", "first" if n % 3 else "second") for n in range(20)]
    judgements = pandas.DataFrame(rows, columns=["rater", "item", "pair", "first", "second", "outcome"])
    [found] = along_streams(judgements, set(), {f"i{n:02d}": n / 20 for n in range(20)})
    assert (found.early.items, found.late.items) == (5, 5)
    assert found.early.share.value == pytest.approx(3 / 5) and found.late.share.value == pytest.approx(3 / 5)
    assert math.isnan(found.early.share.low) and not found.change.is_known
    assert not along_streams(judgements, set(), {}) and judged(judgements, ["a"]).of_ttt is not None


def test_runs_name_their_folders_and_what_is_gone_or_anothers_is_refused(tmp_path: Path, checkout: Checkout) -> None:
    arms = {("moshi-ttt-mlp", 0): {"stream/seconds": 90.0}, ("moshi-control", 0): {"stream/seconds": 45.0}}
    # The training of an arm's model stands beside the arms; it left no stream.
    parent = checkout.run("long-generation", arms={**arms, ("moshi-ttt-mlp-training", 0): {}})
    store = open_store(checkout.uri)

    def systems() -> tuple[list[str], tuple[str, ...]]:
        found = systems_of([parent], lambda: store)
        assert [list(system.streams) for system in found] == [["seed0/stream 00"]] * 2
        return [system.label for system in found], labels_of_ttt(found, [])

    with pytest.raises(ValueError, match="has no tag run_folder: it is older than that tag; name the folder"):
        systems()
    for run in store.runs("long-generation"):
        if run.parent_run_id == parent and "stream/seconds" in run.metrics:
            folder = tmp_path / "arms" / run.arm
            write_stream(folder, 45.0, sentences())
            (folder / "run.json").write_text(json.dumps({"run_id": run.run_id}))
            checkout.client.set_tag(run.run_id, "run_folder", str(folder))
            checkout.client.log_param(run.run_id, "arm.mixer", run.arm.removeprefix("moshi-"))
    assert systems() == (["moshi-ttt-mlp", "moshi-control"], ("moshi-ttt-mlp",))
    sound = tmp_path / "arms/moshi-control/streams/00/speech.wav"
    sound.rename(sound.with_name("elsewhere.wav"))
    with pytest.raises(ValueError, match="the sound is gone"):
        systems()
    (tmp_path / "arms/moshi-control/run.json").write_text(json.dumps({"run_id": "another"}))
    with pytest.raises(
        ValueError, match=r"streams of run \w+ \(long-generation, moshi-control\) are not in .* copy the"
    ):
        systems()
