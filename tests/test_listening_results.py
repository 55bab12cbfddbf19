"""From answers to preferences, a verdict and an MLflow run; each number beside an independent one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy
import pandas
import pytest
from analysis_stores import Checkout, findings, judged
from listening_fixtures import Clock, answer_all, answer_one, fast_clock, simulated_test  # noqa: F401
from scipy import optimize, stats

from analysis.__main__ import main
from analysis.evidence import read_evidence
from analysis.listening.database import StoredPair, Test
from analysis.listening.judging import agreement, bradley_terry, preference, rater_reports, share_over_items
from analysis.listening.judging import judged as judge
from analysis.listening.logged import SHARE_WON, log_results
from analysis.listening.results_page import write_results
from analysis.listening.systems import Origin, shared_items, systems_of
from analysis.listening.verdict import Results, results_of
from analysis.statistics import bootstrap_interval
from analysis.store import open_store
from analysis.tables import Table

CLAIM = """
[[claim]]
id = "T05"
statement = "Listeners prefer TTT"
contested = "notes"
scale = "pretrained"
each_test = { recipe = "listening", source = "experiment", unit = "share", needs = "ratings", when = "three raters" }
test = [
  { name = "won", metric = "listening/share_of_pairs_won_by_ttt", confirmed = "above", margin = 0.5, why = "half" },
]
"""
NEVER_MADE_BY_PEOPLE = "planted numbers, in a table that no store of ratings ever held"


def table(rows: Sequence[tuple[str, str, str, str, str]]) -> Table:
    """rater, item, first, second, outcome; a pair's number follows from item and systems."""
    numbers = {key: number for number, key in enumerate(sorted({row[1:4] for row in rows}))}
    return pandas.DataFrame(
        [(rater, item, numbers[item, first, second], first, second, outcome)
         for rater, item, first, second, outcome in rows],
        columns=["rater", "item", "pair", "first", "second", "outcome"],
    )  # fmt: skip


def drawn_table(items: int, raters: int, share: float, item_spread: float, seed: int) -> Table:
    """Judgements whose chance of `first` differs from item to item: normal in log-odds."""
    random = numpy.random.default_rng(seed)
    chances = 1 / (1 + numpy.exp(-(math.log(share / (1 - share)) + item_spread * random.standard_normal(items))))
    return table([
        (f"r{rater}", f"i{item:03d}", "ttt", "window", "first" if random.random() < chances[item] else "second")
        for rater, item in itertools.product(range(raters), range(items))
    ])  # fmt: skip


def test_a_preference_is_the_counted_share_with_a_bootstrap_over_items() -> None:
    judgements = drawn_table(40, 3, 0.65, 0.8, 1)
    found = preference(judgements, "ttt", "window")
    won = (judgements["outcome"] == "first").groupby(judgements["item"]).mean()
    assert found.share.value == pytest.approx(won.mean())
    # The same items, resampled by scipy: other draws of the same distribution.
    expected = bootstrap_interval(won.tolist())
    assert (found.share.low, found.share.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found.one_sided == stats.binomtest(found.won, 120, alternative="greater").pvalue


def test_ties_are_not_won_and_take_no_part_in_the_binomial() -> None:
    outcomes = ["first"] * 5 + ["tie"] * 4 + ["second"] * 3
    found = preference(table([("r", f"i{n:02d}", "a", "b", each) for n, each in enumerate(outcomes)]), "a", "b")
    assert (found.won, found.ties, found.lost) == (5, 4, 3)
    assert found.share.value == pytest.approx(5 / 12) and found.share_ties_halved.value == pytest.approx(7 / 12)
    assert found.two_sided == stats.binomtest(5, 8).pvalue


def test_where_every_item_is_won_the_interval_is_exact_and_no_point() -> None:
    found = share_over_items([3.0] * 12, [3.0] * 12)
    assert found.value == found.high == 1 and found.low == pytest.approx(0.025 ** (1 / 12))
    assert math.isnan(share_over_items([1.0], [3.0]).low)


def test_an_interval_over_items_holds_what_pooled_judgements_do_not() -> None:
    """Items differ, nobody is better: how often TTT is said to be. Asked for: 2.5 % either way."""
    pooled = over_items = 0
    for seed in range(60):
        random = numpy.random.default_rng(seed)
        won = random.binomial(3, 1 / (1 + numpy.exp(-1.2 * random.standard_normal(50))))
        pooled += stats.binomtest(int(won.sum()), 150, alternative="greater").pvalue <= 0.025
        over_items += share_over_items(won, numpy.full(50, 3)).low > 0.5
    assert over_items <= 5  # 1.5 are expected; more than 5 have a chance below 1 %
    assert pooled > over_items


def test_strengths_are_the_maximum_of_bradley_and_terrys_likelihood() -> None:
    random = numpy.random.default_rng(0)
    true = {"a": 0.9, "b": 0.0, "c": -0.9}
    rows = [
        (f"r{rater}", f"i{item:02d}", one, two,
         "first" if random.random() < 1 / (1 + math.exp(true[two] - true[one])) else "second")
        for rater, item in itertools.product(range(3), range(20))
        for one, two in itertools.combinations("abc", 2)
    ]  # fmt: skip
    found = bradley_terry(table(rows))
    won = {(one, two): 0.5 for one, two in itertools.permutations("abc", 2)}  # half a win beforehand, on either side
    for _, _, one, two, outcome in rows:
        won[(one, two) if outcome == "first" else (two, one)] += 1

    def loss(strengths: numpy.ndarray) -> float:
        at = dict(zip("abc", strengths, strict=True))
        return sum(count * math.log1p(math.exp(at[lost] - at[best])) for (best, lost), count in won.items())

    best = optimize.minimize(loss, numpy.zeros(3)).x
    best -= best.mean()
    assert [found[label].value for label in "abc"] == pytest.approx(best, abs=1e-4)
    assert list(found) == ["a", "b", "c"]
    assert all(found[label].low < true[label] < found[label].high for label in "abc")


def test_two_systems_strengths_differ_by_the_log_odds_of_their_share() -> None:
    rows = [("r", f"i{n}", "a", "b", "first" if n < 7 else "tie" if n < 9 else "second") for n in range(12)]
    found = bradley_terry(table(rows))
    assert found["a"].value - found["b"].value == pytest.approx(math.log((7 + 1 + 0.5) / (3 + 1 + 0.5)))


def test_agreement_is_one_minus_observed_over_expected_disagreement() -> None:
    by_rater = {
        "r1": ["first", "first", "tie", "second", "first"],
        "r2": ["first", "tie", "tie", "second", "second"],
    }
    rows = [(rater, f"i{n}", "a", "b", each) for rater, all_of in by_rater.items() for n, each in enumerate(all_of)]
    # Krippendorff's ordinal distance of two ranks: values between them, and half of either, squared.
    order = ["first", "tie", "second"]
    count = {each: sum(outcome == each for *_, outcome in rows) for each in order}

    def distance(one: str, other: str) -> float:
        low, high = sorted((order.index(one), order.index(other)))
        return (sum(count[each] for each in order[low : high + 1]) - (count[order[low]] + count[order[high]]) / 2) ** 2

    observed = numpy.mean([distance(one, other) for one, other in zip(*by_rater.values(), strict=True)])
    every = [outcome for *_, outcome in rows]
    expected = numpy.mean([distance(one, other) for one, other in itertools.permutations(every, 2)])
    assert agreement(table(rows)) == pytest.approx(1 - observed / expected)
    assert agreement(table([row for row in rows if row[0] == "r1"])) is None
    assert agreement(table([(*row[:4], "tie") for row in rows])) is None


def test_sides_and_hidden_trials_are_told_apart_again(tmp_path: Path, fast_clock: Clock) -> None:  # noqa: F811
    database = simulated_test(tmp_path, 12)
    liked = {n: "first" if n < 8 else "tie" if n < 9 else "second" for n in range(12)}
    for rater in ("careful", "tired"):
        answer_all(database, rater, lambda _, pair: liked[pair.number], "first" if rater == "careful" else "second")
    database.begin("begun")
    answer_one(database, "begun", "left")
    careful, tired, begun = rater_reports(database.answers(), database.raters())
    assert careful.is_counted and (careful.catches_failed, careful.catches) == (0, 2)
    assert (careful.repeats_agreed, careful.repeats, careful.ties, careful.pairs) == (2, 2, 1, 12)
    assert tired.why_not == "failed 2 of 2 catch trials" and begun.why_not == "answered 1 of 16"
    answer_all(database, "third", lambda _, pair: liked[pair.number])
    answer_all(database, "fourth", lambda _, pair: liked[pair.number])
    results = results_of(database)
    assert results.counted == ("careful", "third", "fourth")
    assert results.judged is not None and results.judged.of_ttt is not None
    of_ttt = results.judged.of_ttt
    assert (of_ttt.won, of_ttt.ties, of_ttt.lost, of_ttt.items) == (24, 3, 9, 12)
    assert results.judged.alpha == 1.0


def test_no_preference_is_shown_before_all_planned_raters_have_finished(
    tmp_path: Path, fast_clock: Clock  # noqa: F811
) -> None:  # fmt: skip
    database = simulated_test(tmp_path, 10, raters=4)
    for rater in ("one", "two", "three"):
        answer_all(database, rater, lambda rater, pair: "first")
    results = results_of(database)
    assert results.judged is None and "3 of 4 raters count" in results.verdict
    files = write_results(results, tmp_path / "results")
    assert [file.name for file in files] == ["results.html", "table.txt", "results.json"]
    assert "No preference is shown" in files[0].read_text()


def test_simulated_answers_never_reach_mlflow(
    checkout: Checkout, tmp_path: Path, fast_clock: Clock, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    database = simulated_test(tmp_path, 10)
    for rater in ("one", "two", "three"):
        answer_all(database, rater, lambda rater, pair: "first")
    results = results_of(database)
    assert results.counted == ("one", "two", "three") and results.judged is not None
    assert results.verdict.startswith("No verdict: the store is marked simulated")
    assert main(["listening-results", "--root", str(tmp_path), "--store", checkout.uri]) == 0
    out = capsys.readouterr().out
    assert "SIMULATED" in out and "not logged: there is no verdict" in out
    assert "Simulated: programs answered" in (tmp_path / "listening" / "test" / "results" / "results.html").read_text()
    store = open_store(checkout.uri)
    with pytest.raises(ValueError, match=r"not logged\. No verdict: the store is marked simulated"):
        log_results(store, results, [], checkout.root)
    # Nor if the reasons were lost on the way: the mark itself refuses.
    with pytest.raises(ValueError, match="not logged"):
        log_results(store, dataclasses.replace(results, refusals=()), [], checkout.root)
    assert "listening" not in store.recipes()


def planted(share: float, commit: str, *, scale: str = "pretrained", adhoc: str = "false") -> Results:
    """Results as three people's answers would give them; see NEVER_MADE_BY_PEOPLE."""
    origins = {
        label: Origin(place=f"run-{label}", recipe="moshi-stage1", arm=label, seed=0, scale=scale, commit=commit,
                      is_adhoc=adhoc, is_dirty="false", weights_digest="w0")
        for label in ("ttt", "window")
    }  # fmt: skip
    systems = tuple(
        {"label": label, "is_ttt": label == "ttt", "origins": [origin.plain()]} for label, origin in origins.items()
    )
    test = Test(digest="d" * 64, seed=0, raters=3, question="?", is_simulated=False, systems=systems)
    found = judge(drawn_table(40, 3, share, 0.0, 5), ["ttt"])
    return Results(
        test=test, raters=(), judged=found, refusals=(), pairs=40,
        digest=f"{NEVER_MADE_BY_PEOPLE} {share} {scale} {adhoc}",
    )  # fmt: skip


def test_a_judged_test_reaches_the_findings_at_the_smallest_scale_it_heard(checkout: Checkout, tmp_path: Path) -> None:
    commit = checkout.commit(CLAIM)
    checkout.run("memory")
    file = tmp_path / "table.txt"
    file.write_text("a table\n")
    assert judged(checkout)["T05"] == [("", "needs ratings")]
    (checkout.root / ".gitignore").write_text("runs/\n")
    checkout.git("add", "-A")
    checkout.git("commit", "-qm", "findings")
    store = open_store(checkout.uri)
    results = planted(0.75, commit)
    run_id, is_new = log_results(store, results, [file], checkout.root)
    assert is_new and log_results(store, results, [file], checkout.root) == (run_id, False)
    assert judged(checkout)["T05"] == [("pretrained", "confirmed")]
    (row,) = [row for row in read_evidence(checkout.places.evidence).tests if row.claim == "T05"]
    assert results.judged is not None and results.judged.of_ttt is not None
    share = results.judged.of_ttt.share
    assert (row.value, row.low, row.high) == pytest.approx((share.value, share.low, share.high))
    assert row.run_id == run_id
    assert store.runs("listening")[0].metrics[SHARE_WON] == share.value


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"scale": "unknown"}, "its scale is 'unknown'"), ({"adhoc": "true"}, "by hand")],
)  # fmt: skip
def test_sounds_of_runs_that_do_not_count_make_no_evidence(
    change: dict[str, str], reason: str, checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = checkout.commit(CLAIM)
    log_results(open_store(checkout.uri), planted(0.75, commit, **change), [], checkout.root)
    assert findings(checkout) == 0
    assert reason in capsys.readouterr().out
    assert not any(row.claim == "T05" for row in read_evidence(checkout.places.evidence).tests)


def test_runs_arms_become_systems_with_their_seeds_as_items(checkout: Checkout, tmp_path: Path) -> None:
    arms = {(arm, seed): {} for arm in ("ttt-mlp", "window") for seed in (0, 1)}
    parent = checkout.run("moshi-stage1", arms=arms)
    store = open_store(checkout.uri)
    for run in store.runs("moshi-stage1"):
        if run.role == "arm":
            for name in ("sample.wav", "sample_expected.wav"):
                (tmp_path / name).write_bytes(b"RIFF" + run.run_id.encode())
                store.client.log_artifact(run.run_id, str(tmp_path / name))
    systems = systems_of([parent[:8]], lambda: store)
    assert [system.label for system in systems] == ["ttt-mlp", "window"]
    assert shared_items(systems) == ({f"seed{n}/sample": ["ttt-mlp", "window"] for n in (0, 1)}, [])
    assert [(origin.scale, origin.seed) for origin in systems[0].origins] == [("cpu", 0), ("cpu", 1)]
    assert systems[0].sounds["seed0/sample"].read().startswith(b"RIFF")
    labelled = systems_of([f"mine={parent}", parent], lambda: store)
    assert [system.label for system in labelled] == ["mine-ttt-mlp", "mine-window", "ttt-mlp", "window"]
    with pytest.raises(ValueError, match=r"ttt-mlp has seed0/sample twice"):
        systems_of([parent, parent], lambda: store)
    with pytest.raises(ValueError, match=r"'nobody' is neither a folder here nor a run in sqlite"):
        systems_of(["nobody"], lambda: store)
    silent = checkout.run("memory", arms={("ring", 0): {}})
    with pytest.raises(ValueError, match=r"run \w+ \(memory, cpu\) has left no sound"):
        systems_of([silent], lambda: store)
    failed = checkout.run("memory", status="FAILED")
    with pytest.raises(ValueError, match="is failed, not finished"):
        systems_of([failed], lambda: store)


def test_results_page_and_files_hold_the_numbers_and_no_code_of_a_rater(
    tmp_path: Path, fast_clock: Clock  # noqa: F811
) -> None:  # fmt: skip
    database = simulated_test(tmp_path, 4, ("ttt", "window", "full"))

    def opinion(rater: str, pair: StoredPair) -> str:
        return "first" if pair.pair.first == "ttt" or pair.number % 2 else "tie"

    for rater in ("quartz-1", "quartz-2", "quartz-3"):
        answer_all(database, rater, opinion)
    files = write_results(results_of(database), tmp_path / "results")
    assert [file.name for file in files] == [
        "results.html", "table.txt", "results.json", "judgements.csv", "shares.png", "strengths.png",
    ]  # fmt: skip
    assert "12 blind pairs" in files[0].read_text() and "TTT over no TTT" in files[1].read_text()
    assert not any(b"quartz" in file.read_bytes() for file in files)
    assert set(pandas.read_csv(files[3])["rater"]) == {1, 2, 3}
