"""The detector of gibberish: limits, threshold, onset, planted damage, and its recipe at the smallest scale."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command
from scipy import stats
from sklearn.metrics import roc_auc_score

from backbones.speech import expand_repeats
from experiments.data.synthetic import build_conversations
from experiments.harness.identity import fingerprint
from experiments.harness.study import SCALES
from experiments.quality.configuration import DetectorExperiment
from experiments.quality.damage import SOUND_DAMAGES, SYMBOL_DAMAGES, damage_sound, damage_symbols
from experiments.quality.detector import GibberishDetector, _count_alarms, _lowest_threshold
from experiments.quality.evaluation import FALSE_POSITIVE_RATES, Evaluation, WatchedStream, evaluate
from experiments.quality.limits import deviation, fit_limits
from experiments.quality.ngram import NgramModel
from experiments.quality.real_streams import is_known_sentence, sound_stream, text_stream, unit_stream
from experiments.quality.results import findings, parent_metrics, poisson_rate
from experiments.quality.symbol_measures import SymbolWindow, measure_symbols
from experiments.quality.views import draw_onset
from experiments.quality.windows import SymbolBlock, Window, at_rate, measure_field
from experiments.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class OneMeasure(Window):
    level: float = measure_field(0.1)


def windows_of(levels: Sequence[float], window_s: float = 5.0) -> list[OneMeasure]:
    return [
        OneMeasure(start_s=place * window_s, end_s=(place + 1) * window_s, level=float(level))
        for place, level in enumerate(levels)
    ]


def test_limits_are_quantiles_and_no_narrower_than_the_finest_difference() -> None:
    limit = fit_limits(windows_of(np.arange(1001)))["level"]
    assert (limit.low, limit.middle, limit.high) == (5.0, 500.0, 995.0)
    limits = {"level": limit}
    sizes = [deviation({"level": value}, limits).size for value in (500, 995, 5, 1490, math.nan)]
    assert sizes == pytest.approx([0.0, 1.0, 1.0, 2.0, 0.0])
    flat = fit_limits(windows_of([3.0] * 30))["level"]
    assert (flat.low, flat.high) == pytest.approx((2.9, 3.1))


def test_limits_of_too_little_and_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="20 windows or more of one kind, got 19 of"):
        fit_limits(windows_of(range(19)))
    with pytest.raises(ValueError, match="has no level"):
        deviation({"loudness": 1.0}, fit_limits(windows_of(range(30))))


def calibrated(hours: float, per_hour: float, seed: int = 0) -> GibberishDetector:
    levels = np.random.default_rng(seed).standard_normal(round(hours * 720))
    return GibberishDetector.calibrate([windows_of(levels)], false_alarms_per_hour=per_hour)


def test_an_alarm_is_raised_by_two_windows_and_names_the_first() -> None:
    detector = calibrated(4, 0.25)
    levels = np.zeros(40)
    levels[7] = 99.0  # alone: no alarm
    levels[12:20] = 99.0
    levels[15] = 0.0  # one quiet window ends nothing
    levels[30:32] = -99.0
    first, second = detector.alarms(windows_of(levels))
    assert (first.onset_s, first.raised_s, first.measure) == (60.0, 70.0, "level")
    assert (second.onset_s, second.raised_s) == (150.0, 160.0)
    on = [each.alarm is not None for each in detector.watch(windows_of(levels))]
    assert on == [13 <= place < 21 or place in (31, 32) for place in range(40)]


def test_a_stream_watched_as_it_comes_gives_what_the_whole_gives() -> None:
    detector = calibrated(4, 0.25)
    levels = np.concatenate([np.zeros(9), np.full(5, 50.0)])
    told = iter(windows_of(levels))
    watched = detector.watch(told)
    for _ in range(11):
        last = next(watched)
    assert last.alarm is not None and last.alarm.onset_s == 45.0
    assert next(told).start_s == 55.0, "no window was read ahead"


def test_the_count_of_alarms_in_calibration_is_that_of_watching() -> None:
    rng = np.random.default_rng(3)
    detector = dataclasses.replace(calibrated(4, 0.25), threshold=1.0)
    for _ in range(20):
        levels = rng.standard_normal(60) * 4
        sizes = [each.deviation.size for each in detector.watch(windows_of(levels))]
        assert _count_alarms(sizes, 2, 1.0) == len(detector.alarms(windows_of(levels)))


def test_the_false_alarm_rate_on_new_streams_is_the_one_that_was_set() -> None:
    """40 thresholds, each set to one alarm an hour on 6 hours and tried on 10 new ones: 400 alarms expected."""
    alarms = 0
    for seed in range(40):
        calibration, fresh = np.random.default_rng(seed).standard_normal((2, 10 * 720))
        threshold = _lowest_threshold([calibration[: 6 * 720].tolist()], 2, allowed=5)
        alarms += _count_alarms(fresh.tolist(), 2, threshold)
    # A threshold that the sixth of 6 hours sets lets through a rate that is off by one in the root of six.
    spread = 400 * math.sqrt((1 / 6 + 1 / 10) / 40)
    assert abs(alarms - 400) < 3 * spread


def test_a_rate_that_the_hours_cannot_promise_is_refused_and_so_are_other_windows() -> None:
    with pytest.raises(
        ValueError, match=r"2 hours of real speech cannot promise 0\.25 false alarms an hour; give at least 4 hours"
    ):
        calibrated(2, 0.25)
    with pytest.raises(ValueError, match="calibrated on windows of 5 s, this one is 10 s"):
        calibrated(4, 0.25).alarms(windows_of([0.0], window_s=10.0))
    with pytest.raises(ValueError, match="windows must be of one length"):
        GibberishDetector.calibrate([windows_of([0.0] * 20), windows_of([0.0], 10.0)], false_alarms_per_hour=99)


def test_a_saved_detector_is_the_same_and_another_file_is_refused(tmp_path: Path) -> None:
    detector = calibrated(4, 0.25)
    detector.save(tmp_path / "detector.json")
    assert GibberishDetector.load(tmp_path / "detector.json") == detector
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is no saved gibberish detector"):
        GibberishDetector.load(tmp_path / "other.json")


RATE_HZ, VOCABULARY = 50.0, 40
CHAIN = np.random.default_rng(7).dirichlet(np.full(VOCABULARY, 0.05), VOCABULARY).cumsum(axis=1)
"""A speaker that a test can afford: units of a Markov chain, each held for some frames, and pauses of unit 0."""


def spoken(seconds: float, seed: int) -> np.ndarray:
    rng, units, unit, count = np.random.default_rng([7, seed]), list[np.ndarray](), 1, 0
    while count < seconds * RATE_HZ:
        is_pause = rng.random() < 0.02
        unit = unit if is_pause else min(int(np.searchsorted(CHAIN[unit], rng.random())), VOCABULARY - 1)
        units.append(np.full(40, 0) if is_pause else np.full(rng.integers(1, 5), unit))
        count += len(units[-1])
    return np.concatenate(units)[: round(seconds * RATE_HZ)]


@pytest.fixture(scope="module")
def speaker() -> tuple[NgramModel, GibberishDetector]:
    model = NgramModel.fit([spoken(600, 0)], VOCABULARY)
    streams = [list(measured_units(spoken(600, seed), model)) for seed in range(1, 7)]
    return model, GibberishDetector.calibrate(streams, false_alarms_per_hour=1.0)


def measured_units(units: np.ndarray, model: NgramModel) -> list[SymbolWindow]:
    return list(measure_symbols(at_rate([units], RATE_HZ), window_s=5.0, model=model))


@pytest.mark.parametrize("kind", [kind for kind in SYMBOL_DAMAGES if kind != "reversed"])
def test_breakage_planted_at_a_known_second_is_found_there(
    kind: str, speaker: tuple[NgramModel, GibberishDetector]
) -> None:
    model, detector = speaker
    stream = spoken(180, 20)
    block = SymbolBlock(symbols=stream, seconds=np.arange(len(stream)) / RATE_HZ, end_s=180.0)
    broken = damage_symbols(block, kind, 93.0, model.unigram, 0, np.random.default_rng(0))
    assert np.array_equal(broken.symbols[: 93 * 50], stream[: 93 * 50]) and len(broken.symbols) == len(stream)
    assert not np.array_equal(broken.symbols, stream)
    first, *_ = detector.alarms(measure_symbols([broken], window_s=5.0, model=model))
    assert abs(first.onset_s - 93.0) <= 10 and 0 < first.raised_s - 93.0 <= 15


def test_clean_held_out_streams_raise_nothing(speaker: tuple[NgramModel, GibberishDetector]) -> None:
    model, detector = speaker
    assert [detector.alarms(measured_units(spoken(300, seed), model)) for seed in (30, 31)] == [[], []]


@pytest.mark.parametrize("kind", SOUND_DAMAGES)
def test_damage_of_sound_spares_what_was_before(kind: str) -> None:
    samples = (0.2 * np.random.default_rng(0).standard_normal(22 * 16_000)).astype(np.float32)
    broken = damage_sound(samples, kind, 16.3, np.random.default_rng(1))
    first = round(16.3 * 16_000)
    assert np.array_equal(broken[:first], samples[:first]) and broken.shape == samples.shape
    assert broken.dtype == np.float32 and not np.array_equal(broken, samples)
    if kind == "loop-4s":
        assert np.array_equal(broken[first : first + 64_000], samples[first - 64_000 : first])
    if kind == "noise":
        assert broken[first:].std() == pytest.approx(samples[:first].std(), rel=0.02)


def test_a_loop_without_enough_before_it_is_refused() -> None:
    samples = np.ones(5 * 16_000, np.float32)
    with pytest.raises(ValueError, match=r"a loop of 15 s needs as much sound before its onset at 4\.4 s"):
        damage_sound(samples, "loop-15s", 4.4, np.random.default_rng(0))


def test_damage_at_an_impossible_second_is_refused() -> None:
    block = SymbolBlock(symbols=np.arange(10), seconds=np.arange(10.0), end_s=10.0)
    for onset_s in (0.0, 10.5):
        with pytest.raises(ValueError, match="must lie inside the stream's 10 s"):
            damage_symbols(block, "shuffled", onset_s, np.full(10, 0.1), None, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no damage 'loud' of symbols"):
        damage_symbols(block, "loud", 5.0, np.full(10, 0.1), None, np.random.default_rng(0))  # pyright: ignore
    quiet = damage_symbols(block, "silence", 5.0, np.full(10, 0.1), None, np.random.default_rng(0))
    assert quiet.symbols.tolist() == [0, 1, 2, 3, 4] and quiet.end_s == 10.0


def planted_evaluation(shift: float, seed: int) -> Evaluation:
    rng, detector = np.random.default_rng([seed, 2]), calibrated(4, 0.25)

    def watched(kind: str, onset_s: float | None, levels: np.ndarray) -> WatchedStream:
        return WatchedStream(
            conversation="a", kind=kind, onset_s=onset_s, windows=tuple(detector.watch(windows_of(levels)))
        )

    broken = rng.standard_normal(36)
    broken[20:] += shift
    return evaluate(
        [watched("", None, rng.standard_normal(720))],
        [watched("shuffled", 97.0, broken), watched("reversed", 97.0, broken)],
        detector.threshold,
        4.0,
    )


def test_errors_are_counted_on_windows_wholly_behind_the_onset() -> None:
    found = planted_evaluation(50.0, 0)
    own = found.kinds["shuffled"]
    assert own.auc == 1.0 and own.found_within(10.0) == [True] and own.onsets[0].error_s == 3.0
    assert own.onsets[0].delay_s == 13.0 and found.clean_hours == 1.0
    assert own.true_positive_rates == (1.0,) * len(FALSE_POSITIVE_RATES)
    unseen = planted_evaluation(0.0, 0).kinds["shuffled"]
    assert 0.3 < unseen.auc < 0.7 and unseen.found_within(10.0) == [False] and unseen.onsets[0].delay_s == math.inf
    assert unseen.true_positive_rates[-1] == 1.0
    with pytest.raises(ValueError, match="0 clean and 0 damaged streams"):
        evaluate([], [], 1.0, 1.0)


def test_a_rocs_area_is_that_of_its_kept_rates() -> None:
    own = planted_evaluation(1.5, 4).kinds["shuffled"]
    steps = itertools.pairwise(zip(FALSE_POSITIVE_RATES, own.true_positive_rates, strict=True))
    area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in steps)
    assert area == pytest.approx(own.auc, abs=0.03)
    assert roc_auc_score([0, 0, 1, 1], [0, 2, 1, 3]) == 0.75


def test_what_the_ledger_reads_is_the_worst_of_a_group(tmp_path: Path) -> None:
    evaluations = [planted_evaluation(50.0, seed) for seed in range(3)]
    evaluations[0].save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == evaluations[0]
    found = findings(evaluations, 10.0)
    metrics = parent_metrics({"units": found})
    assert metrics["detector_units/lowest_auc_gross"] == 1.0
    assert metrics["detector_units/lowest_share_of_onsets_gross_low"] == pytest.approx(0.025 ** (1 / 3))
    assert metrics["detector_units/false_alarms_per_hour"] == found.false_alarms.events / 3
    worse = findings([planted_evaluation(0.0, seed) for seed in range(3)], 10.0)
    kinds = {"shuffled": found.kinds["shuffled"], "stuck": worse.kinds["shuffled"], "reversed": found.kinds["reversed"]}
    mixed = parent_metrics({"units": dataclasses.replace(found, kinds=kinds)})
    assert mixed["detector_units/lowest_auc_gross"] == worse.kinds["shuffled"].auc.mean
    assert mixed["detector_units/lowest_auc_subtle"] == 1.0


def test_a_rates_interval_is_the_exact_one() -> None:
    rate = poisson_rate(5, 20.0)
    assert stats.poisson.sf(4, 20 * rate.low) == pytest.approx(0.025)
    assert stats.poisson.cdf(5, 20 * rate.high) == pytest.approx(0.025)
    assert poisson_rate(0, 10.0).low == 0.0
    with pytest.raises(ValueError, match="takes hours"):
        poisson_rate(0, 0.0)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_looks_at_units_text_and_sound(scale: str) -> None:
    config = RECIPES["gibberish-detector"].configure(scale=scale, seed=1)
    assert isinstance(config, DetectorExperiment)
    assert config.arm_names == ("units", "text", "sound")
    assert len({fingerprint(config.of_arm(name)) for name in config.arm_names}) == 3
    assert config.with_seed(2).of_arm("units")["data"]["seed"] == 2
    with pytest.raises(ValueError, match="no arm 'smell'; it has units, text, sound"):
        config.view_named("smell")
    with pytest.raises(ValueError, match="must leave some to calibrate"):
        dataclasses.replace(config, model_conversations=config.data.conversations)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    return run_command(tmp_path_factory.mktemp("detector"), "gibberish-detector")


def test_the_smoke_run_says_of_every_view_and_kind_what_it_is_worth(ran: FinishedCommand) -> None:
    assert ran.exit_code == 0, ran.errors
    assert "Traceback" not in ran.errors
    with (ran.run_folder / "kinds.csv").open(newline="") as file:
        rows = {(row["view"], row["kind"]): row for row in csv.DictReader(file)}
    expected = {(view, kind) for view in ("units", "text") for kind in SYMBOL_DAMAGES}
    assert rows.keys() == expected | {("sound", kind) for kind in SOUND_DAMAGES}
    parent = ran.parent()
    for view in ("units", "text", "sound"):
        logged = ran.logged(view)
        assert logged.status == "FINISHED" and logged.metrics["detector/clean_hours"] > 0
        assert logged.metrics["auc_by_kind/silence"] == pytest.approx(float(rows[view, "silence"]["auc"]))
        assert parent.metrics[f"detector_{view}_silence/auc"] == logged.metrics["auc_by_kind/silence"]
        assert f"detector_{view}/lowest_share_of_onsets_subtle" in parent.metrics
        detector = GibberishDetector.load(ran.run_folder / view / "detector.json")
        assert detector.threshold == logged.metrics["detector/threshold"]
    assert (ran.run_folder / "table.txt").read_text().strip() in ran.output
    assert {path.name for path in (ran.run_folder / "figures").iterdir()} == {"roc.png", "example_streams.png"}


def test_real_streams_keep_the_conversations_clock(ran: FinishedCommand) -> None:
    config = RECIPES["gibberish-detector"].configure(scale="smoke", seed=0)
    assert isinstance(config, DetectorExperiment)
    dataset = build_conversations(config.spec_of(0), ran.folder / "data_cache", progress=False)
    turns = dataset[6].turns
    units, text, sound = unit_stream(dataset, 6), text_stream(dataset, 6), np.concatenate([*sound_stream(dataset, 6)])
    assert len(sound) / 16_000 == pytest.approx(turns[-1].end_s, abs=0.01)
    assert len(units) / 50 == pytest.approx(turns[-1].end_s, abs=0.05)
    own = expand_repeats(*dataset.pool.units(turns[-1].utterance_id)).numpy()
    assert np.array_equal(units[-len(own) :], own)
    first = int(np.searchsorted(text.seconds, turns[-1].start_s))
    assert text.symbols[first:].tolist() == [*dataset.tokenizer.encode(turns[-1].text), dataset.tokenizer.eos_id]
    known = [turn for turn in turns if is_known_sentence(turn, 0.5)]
    assert 0 < len(known) < len(turns)
    spoken_units = [expand_repeats(*dataset.pool.units(turn.utterance_id)) for turn in known]
    kept = unit_stream(dataset, 6, lambda turn: is_known_sentence(turn, 0.5))
    pauses = sum(b.start_s - a.end_s for a, b in itertools.pairwise(turns) if b in known)
    expected = sum(map(len, spoken_units)) + 50 * (pauses + (turns[0].start_s if turns[0] in known else 0.0))
    assert len(kept) == pytest.approx(expected, abs=2 + len(known) / 2)
    onsets = [draw_onset(dataset, 6, (16.0, 25.0), np.random.default_rng(seed)) for seed in range(20)]
    assert len(set(onsets)) == 20 and all(16 <= onset_s <= 25 for onset_s in onsets)
    assert all(any(turn.start_s + 1 <= onset_s <= turn.end_s for turn in turns) for onset_s in onsets)


def test_the_page_of_findings_can_draw_it(ran: FinishedCommand) -> None:
    check_pictures(ran.uri, "gibberish-detector")
