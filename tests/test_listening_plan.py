"""What is compared, in which order, and at which loudness; what numbers of judgements can show."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy
import pytest
import soundfile
from listening_fixtures import folder_systems, simulated_test, tone, write_sounds
from scipy import stats

from analysis.listening.database import Database
from analysis.listening.levels import Clip, degraded, level_matched, loudness_lufs, read_clip, wav_bytes
from analysis.listening.plan import choose_pairs, judgements_needed, power, session, smallest_share
from analysis.listening.preparing import TestOptions, check_clips, parse_excerpt, prepare
from analysis.listening.systems import shared_items


def test_the_judgements_needed_are_the_exact_binomials() -> None:
    assert [judgements_needed(share) for share in (0.68, 0.65, 0.6)] == [51, 76, 169]
    # Independently: the smallest count of wins whose tail is at most 5 %, and its chance at the true share.
    wins = next(count for count in range(77) if stats.binomtest(count, 76, alternative="greater").pvalue <= 0.05)
    assert power(76, 0.65) == pytest.approx(sum(stats.binom.pmf(range(wins, 77), 76, 0.65)))
    assert smallest_share(4) is None and smallest_share(180) == pytest.approx(0.6)


@pytest.mark.parametrize(("pairs", "catches"), [(1, 1), (2, 1), (7, 1), (60, 6)])
def test_a_session_has_every_pair_once_and_its_repeats_later_with_sides_swapped(pairs: int, catches: int) -> None:
    trials = session(pairs, catches, 3, "amber-7")
    place = {trial.pair: number for number, trial in enumerate(trials) if trial.kind == "pair"}
    repeats = [(number, trial) for number, trial in enumerate(trials) if trial.kind == "repeat"]
    assert sorted(place) == list(range(pairs))
    assert len(repeats) == math.ceil(pairs / 10)
    for number, repeat in repeats:
        assert number > place[repeat.pair] + min(5, pairs - 1)
        assert repeat.is_swapped != trials[place[repeat.pair]].is_swapped
    assert sorted(trial.pair for trial in trials if trial.kind == "catch") == list(range(catches))
    swapped = sum(trial.is_swapped for trial in trials if trial.kind == "pair")
    assert swapped in (pairs // 2, -(-pairs // 2))


def test_the_order_is_the_raters_own_and_always_the_same() -> None:
    first = session(20, 2, 0, "amber-7")
    assert session(20, 2, 0, "amber-7") == first
    assert session(20, 2, 0, "birch-3") != first and session(20, 2, 1, "amber-7") != first


def test_pairs_are_drawn_so_that_all_systems_meet_alike() -> None:
    items = {f"item-{number:02d}": ["a", "b", "c"] for number in range(13)}
    assert len(choose_pairs(items, 100, 0)) == 39
    drawn = choose_pairs(items, 20, 0)
    met = Counter((pair.first, pair.second) for pair in drawn)
    assert len(set(drawn)) == 20 and max(met.values()) - min(met.values()) <= 1
    assert {pair.item for pair in drawn} == set(items)
    with pytest.raises(ValueError, match="0 pairs is none"):
        choose_pairs(items, 0, 0)


def test_a_sine_has_the_loudness_of_the_standard() -> None:
    # ITU-R BS.1770: a 997 Hz sine at full scale in one channel reads -3.01 LUFS.
    clip = Clip(name="sine", samples=tone(997, 2.0, 48000, 1.0), rate_hz=48000)
    assert loudness_lufs(clip) == pytest.approx(-3.01, abs=0.05)


def test_clips_of_an_item_become_equally_loud_below_full_scale() -> None:
    quiet = Clip(name="quiet", samples=tone(300, 1.0, 8000, 0.003), rate_hz=8000)
    clicks = numpy.zeros(8000)
    clicks[::2000] = 0.9  # high peaks, little loudness: it sets how loud both can be
    matched, level = level_matched([quiet, Clip(name="clicks", samples=clicks, rate_hz=8000)])
    assert [loudness_lufs(clip) for clip in matched] == pytest.approx([level, level], abs=0.01)
    assert level < -23 and numpy.abs(matched[1].samples).max() == pytest.approx(10 ** (-1 / 20))
    alone, level = level_matched([quiet])
    assert level == -23 and loudness_lufs(alone[0]) == pytest.approx(-23, abs=0.01)


def test_a_degraded_copy_is_half_noise_and_has_nothing_high_but_that() -> None:
    clip = Clip(name="two tones", samples=tone(400, 1.0, 16000) + tone(3000, 1.0, 16000), rate_hz=16000)
    worse = degraded(clip, 0).samples
    spectrum = numpy.abs(numpy.fft.rfft(worse))
    assert spectrum[400] > 20 * spectrum[3000]
    of_low_tone = numpy.mean(tone(400, 1.0, 16000) ** 2)
    assert numpy.mean(worse**2) == pytest.approx(2 * of_low_tone, rel=0.05)


def test_sounds_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    empty = wav_bytes(Clip(name="x", samples=numpy.zeros(0), rate_hz=8000))
    with pytest.raises(ValueError, match=r"a\.wav has 0\.00 s of sound, and a clip .* takes 0\.4 s"):
        read_clip(empty, "a.wav")
    with pytest.raises(ValueError, match="a text is no sound file"):
        read_clip(b"not a sound", "a text")
    with pytest.raises(ValueError, match="nothing is silence"):
        loudness_lufs(Clip(name="nothing", samples=numpy.zeros(8000), rate_hz=8000))
    systems = write_sounds(tmp_path, 2)
    soundfile.write(tmp_path / "window" / "item-01.wav", numpy.zeros(8000), 8000)
    with pytest.raises(ValueError, match=r"item-01\.wav \(window\) is silence"):
        prepare(tmp_path / "test", folder_systems(systems), TestOptions(is_simulated=True))
    assert not (tmp_path / "test" / "listening.db").exists()


def test_excerpts_are_items_and_must_lie_inside_every_sound(tmp_path: Path) -> None:
    systems = folder_systems(write_sounds(tmp_path, 1))
    two = (parse_excerpt("0:0.4"), parse_excerpt("0.04:0.41"))
    database = prepare(tmp_path / "test", systems, TestOptions(excerpts=two, is_simulated=True))
    assert {each.pair.item for each in database.pairs()} == {
        "item-00 from 0 s for 0.4 s", "item-00 from 0.04 s for 0.41 s",
    }  # fmt: skip
    assert {round(clip.seconds, 2) for clip in database.clips() if "0.41" in clip.item} == {0.41}
    with pytest.raises(ValueError, match=r"ends 0\.5 s after 0 s, and the excerpt takes 9 s"):
        prepare(tmp_path / "other", systems, TestOptions(excerpts=(parse_excerpt("0:9"),), is_simulated=True))
    with pytest.raises(ValueError, match=r"START:SECONDS, e\.g\. 600:30; '30' is not"):
        parse_excerpt("30")


def test_systems_that_share_nothing_and_single_ones_are_refused(tmp_path: Path) -> None:
    systems = write_sounds(tmp_path, 2)
    with pytest.raises(ValueError, match=r"gives only the system ttt"):
        folder_systems(systems[:1])
    for path in (tmp_path / "window").iterdir():
        path.rename(path.with_name(f"other-{path.name}"))
    with pytest.raises(ValueError, match=r"share no item.*ttt has item-00, item-01; window has other-item-00"):
        shared_items(folder_systems(systems))
    (tmp_path / "silent").mkdir()
    with pytest.raises(ValueError, match="silent holds no sound"):
        folder_systems([*systems, f"x={tmp_path / 'silent'}"])


def test_systems_that_were_asked_different_things_are_refused(tmp_path: Path) -> None:
    systems = write_sounds(tmp_path, 1)
    for label, asked in (("ttt", "Where is Anna?"), ("window", "Who called?")):
        (tmp_path / label / "item-00.txt").write_text(f"conversation: of {label}\nquestion (spoken): {asked}\n")
    with pytest.raises(ValueError, match=r"asked different things under the item item-00: .*Anna\?; window: Who"):
        shared_items(folder_systems(systems))


def test_the_same_command_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    first = simulated_test(tmp_path, 3)
    assert simulated_test(tmp_path, 3).test == first.test
    with pytest.raises(ValueError, match=r"holds another test .* with 0 answers; give another NAME"):
        simulated_test(tmp_path, 4)
    systems = folder_systems(write_sounds(tmp_path / "sounds", 3))
    with pytest.raises(ValueError, match="is marked simulated: programs answer it, and a test never changes sides"):
        prepare(tmp_path / "listening" / "test", systems, TestOptions())


def test_a_clip_that_was_changed_since_is_noticed(tmp_path: Path) -> None:
    database = simulated_test(tmp_path, 2)
    check_clips(database)
    clip = next((database.path.parent / "clips").iterdir())
    clip.write_bytes(clip.read_bytes()[:-2])
    with pytest.raises(ValueError, match="was changed since the test was made"):
        check_clips(Database(database.path))
    clip.unlink()
    with pytest.raises(ValueError, match="is missing since"):
        check_clips(database)
