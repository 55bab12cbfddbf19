"""From a store of runs to FINDINGS.md: which runs count, what follows, and that nothing can be changed unseen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from analysis_stores import CLAIMS, FALLS, OPEN, RISES, THREE_ARMS, Checkout, findings, judged, verify, with_ends

from analysis.__main__ import main
from analysis.eligibility import digests_from_git
from analysis.evidence import read_evidence
from analysis.ledger import load_ledger
from analysis.measurements import measure
from analysis.statistics import t_interval
from analysis.store import open_store


def reasons(checkout: Checkout) -> list[str]:
    measured, left_out = measure(
        load_ledger(checkout.places.claims), open_store(checkout.uri), digests_from_git(checkout.root)
    )
    assert not measured
    return [each.reason for each in left_out]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [(RISES, "confirmed"), (FALLS, "refuted"), (OPEN, "undecided (1 undecided of 1 test)")],
    ids=["above", "below", "astride"],
)
def test_an_interval_of_the_experiments_own_run_settles_a_claim(
    checkout: Checkout, metrics: dict[str, float], expected: str
) -> None:
    run = checkout.run("drift", metrics, THREE_ARMS)
    found = judged(checkout)
    assert found["T01"] == [("cpu", expected)]
    assert found["T02"] == [("", "untested")] and found["T04"] == [("", "needs ratings")]
    page = checkout.places.findings.read_text()
    assert f"**{expected}**" in page and "cpu / gpu" in page and run[:8] in page
    assert "make exp-drift SCALE=cpu" in page and "`not-yet` (not written yet)" in page
    assert verify(checkout) == 0


def test_arms_are_compared_seed_by_seed(checkout: Checkout) -> None:
    ttt, window = {0: 0.5, 1: 0.9, 2: 0.4}, {0: 0.4, 1: 0.7, 2: 0.4}
    arms = {("ttt", seed): {"recall/far": value} for seed, value in ttt.items()}
    arms |= {("window", seed): {"recall/far": value} for seed, value in window.items()}
    checkout.run("recall", {}, arms)
    assert judged(checkout)["T02"] == [("cpu", "undecided (1 undecided of 1 test)")]
    # Seed 1 is there already, with another value: the newest run of a seed speaks for it. The others are new.
    more = {("ttt", seed): {"recall/far": 0.8} for seed in (1, 3, 4, 5, 6)}
    checkout.run("recall", {}, more | {("window", seed): {"recall/far": 0.6} for _, seed in more})
    assert judged(checkout)["T02"] == [("cpu", "confirmed")]
    row = next(row for row in read_evidence(checkout.places.evidence).tests if row.claim == "T02")
    expected = t_interval([0.5 - 0.4, 0.8 - 0.6, 0.4 - 0.4, *[0.8 - 0.6] * 4])
    assert (row.value, row.low, row.high, row.seeds) == (expected.value, expected.low, expected.high, 7)
    seeds = read_evidence(checkout.places.evidence).seeds
    assert [(each.seed, each.own, each.against) for each in seeds][1] == (1, 0.8, 0.6)
    assert verify(checkout) == 0


def test_too_few_seeds_settle_nothing(checkout: Checkout) -> None:
    arms = {(arm, seed): {"recall/far": float(arm == "ttt")} for arm in ("ttt", "window") for seed in (0, 1)}
    checkout.run("recall", {}, arms)
    assert reasons(checkout) == ["recall takes 3 seeds, the runs that count have 2"]


def test_seeds_of_another_configuration_are_not_mixed_in(checkout: Checkout) -> None:
    def run(seeds: range, width: str) -> None:
        arms = {(arm, seed): {"recall/far": float(arm == "ttt")} for arm in ("ttt", "window") for seed in seeds}
        checkout.run("recall", {}, arms, params={"width": width})

    run(range(0, 2), "64")
    run(range(2, 4), "128")
    found = reasons(checkout)
    assert any("is configured otherwise than in the newest run" in reason for reason in found)
    run(range(4, 5), "128")
    assert judged(checkout)["T02"] == [("cpu", "confirmed")]
    rows = read_evidence(checkout.places.evidence).seeds
    assert [row.seed for row in rows] == [2, 3, 4]


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda c: c.run("drift", RISES, THREE_ARMS, git_dirty="true"), "differ from its commit"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, arm_tags={"git_dirty": "true"}), "arm a (seed 0) was run from"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, adhoc="true"), "changed by hand (adhoc)"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, own_data="mine"), "it reads own recordings (mine)"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, status="FAILED"), "it is failed, not finished"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, status="RUNNING"), "it is running, not finished"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, scale="smoke"), "scale smoke tries the code"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, scale="huge"), "its scale is 'huge'"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, has_every_arm="false"), "not every arm was run"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, git_commit="0" * 40), "is not in this repository"),
        (lambda c: c.run("drift", RISES, THREE_ARMS, git_commit="unknown"), "is not in this repository"),
        (lambda c: c.run("drift", RISES, {("a", 0): {}}), "it has 1 seeds, growth takes 3"),
        (lambda c: c.run("drift", {"drift/rise_nats": 1.0}, THREE_ARMS), "has no interval"),
        (lambda c: c.run("drift", {}, THREE_ARMS), "it has no metric drift/rise_nats"),
        (lambda c: c.run("memory", {}, {("other", 0): {}}), "its arm ring is not finished"),
    ],
)  # fmt: skip
def test_a_run_that_does_not_count_says_why(
    checkout: Checkout, run: Callable[[Checkout], str], reason: str
) -> None:  # fmt: skip
    run(checkout)
    found = reasons(checkout)
    assert found and all(reason in each for each in found)
    assert judged(checkout)["T01"] == [("", "untested")]
    is_listed = "scale smoke" not in reason
    assert (reason in checkout.places.findings.read_text()) == is_listed


def test_a_claim_edited_after_its_runs_is_untested(checkout: Checkout, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.run("memory", {}, {("ring", 0): {"ring/short": 3000.0, "ring/long": 2999.0}})
    assert judged(checkout)["T01"] == [("cpu", "confirmed")]
    checkout.commit(CLAIMS.replace("margin = 0.05", "margin = 0.01", 1))
    assert verify(checkout) == 1
    assert "a claim that was edited after its runs is untested" in capsys.readouterr().out
    found = judged(checkout)
    assert found["T01"] == [("", "untested")]
    assert found["T03"] == [("cpu", "holds only when it is short")]  # its own entry is what it was
    assert "the claim was edited after its commit" in checkout.places.findings.read_text()
    checkout.run("drift", RISES, THREE_ARMS)
    assert judged(checkout)["T01"] == [("cpu", "confirmed")]


def test_an_arm_that_ran_from_older_code_is_judged_by_the_claim_of_its_own_commit(checkout: Checkout) -> None:
    before = checkout.head
    checkout.commit(CLAIMS.replace("margin = 0.05", "margin = 0.01", 1))
    checkout.run("drift", RISES, THREE_ARMS, arm_tags={"git_commit": before})
    assert reasons(checkout) == [f"T01 was edited after its commit {before[:12]}"]


def test_claims_edited_where_there_is_no_store_lose_their_evidence(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.run("memory", {}, {("ring", 0): {"ring/short": 3000.0, "ring/long": 3000.0}})
    assert findings(checkout) == 0
    checkout.commit(CLAIMS.replace("five percent", "a twentieth"))
    assert main(["findings", "--from-evidence", "--root", str(checkout.root)]) == 0
    assert "T01: edited after their runs" in capsys.readouterr().out
    assert {row.claim for row in read_evidence(checkout.places.evidence).tests} == {"T03"}
    assert verify(checkout) == 0


def test_a_metric_can_be_taken_off_another_of_the_same_run(tmp_path: Path, empty_store: Path) -> None:
    claims = CLAIMS.replace('metric = "recall/far"', 'metric = "recall/far", minus = "recall/near"')
    checkout = Checkout.make(tmp_path / "repository", empty_store, claims)
    ttt, window = {"recall/far": 0.5, "recall/near": 0.75}, {"recall/far": 0.25, "recall/near": 1.0}
    arms = {(arm, seed): own for arm, own in (("ttt", ttt), ("window", window)) for seed in (0, 1, 2)}
    checkout.run("recall", {}, arms | {("ttt", 3): {"recall/far": 0.5}, ("window", 3): window})
    assert judged(checkout)["T02"] == [("cpu", "confirmed")]
    row = read_evidence(checkout.places.evidence).tests[0]
    assert (row.value, row.seeds, row.minus) == (0.5, 3, "recall/near")  # seed 3 lacks one of the four numbers
    assert "seed 3 lacks recall/far and recall/near of ttt and window" in checkout.places.findings.read_text()


@pytest.mark.parametrize(("found", "expected"), [(2800.0, "confirmed"), (4000.0, "refuted")])
def test_a_declared_error_stands_for_an_interval(
    tmp_path: Path, empty_store: Path, found: float, expected: str
) -> None:
    claims = CLAIMS.replace("exact = true", "relative_error = 0.1").replace("3000, margin = 0.5", "3000, margin = 500")
    checkout = Checkout.make(tmp_path / "repository", empty_store, claims)
    checkout.run("memory", {}, {("ring", 0): {"ring/short": found, "ring/long": found}})
    assert judged(checkout)["T03"] == [("cpu", expected)]
    row = read_evidence(checkout.places.evidence).tests[0]
    assert (row.low, row.high) == (pytest.approx(0.9 * found), pytest.approx(1.1 * found))


def test_a_claim_written_after_the_run_is_untested(tmp_path: Path, empty_store: Path) -> None:
    checkout = Checkout.make(tmp_path / "repository", empty_store, "claim = []")
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.commit(CLAIMS)
    assert all("T01 was not yet a claim" in reason for reason in reasons(checkout))


def test_a_smaller_scale_is_shown_as_such_and_never_upgraded(checkout: Checkout) -> None:
    checkout.run("drift", RISES, THREE_ARMS, scale="cpu")
    assert judged(checkout)["T01"] == [("cpu", "confirmed")]
    assert "| cpu / gpu |" in checkout.places.findings.read_text()
    checkout.run("drift", FALLS, THREE_ARMS, scale="gpu")
    checkout.run("drift", RISES, THREE_ARMS, scale="cpu")  # the newest run, and still the smaller scale
    assert judged(checkout)["T01"] == [("gpu", "refuted"), ("cpu", "confirmed")]
    assert "**refuted**; cpu: confirmed | gpu / gpu" in checkout.places.findings.read_text()


def test_pretrained_weights_are_a_scale_of_their_own(checkout: Checkout) -> None:
    checkout.run("drift", RISES, THREE_ARMS, scale="full", params={"weights_digest": "None"})
    checkout.run("drift", FALLS, THREE_ARMS, scale="full", params={"weights_digest": "a1b2"})
    assert judged(checkout)["T01"] == [("pretrained", "refuted"), ("full", "confirmed")]
    assert "make exp-drift SCALE=full WEIGHTS=path" in checkout.places.findings.read_text()


def test_a_share_that_all_seeds_agree_on_still_has_an_interval(tmp_path: Path, empty_store: Path) -> None:
    """Student's would be a point: three of three would settle what six of six are needed for."""
    claims = CLAIMS.replace('unit = "nats", margin = 0.05', 'unit = "share", margin = 0.5')
    checkout = Checkout.make(tmp_path / "repository", empty_store, claims)
    all_agree = with_ends("drift/rise_nats", 1.0, 0.0)
    checkout.run("drift", all_agree, THREE_ARMS)
    assert judged(checkout)["T01"] == [("cpu", "undecided (1 undecided of 1 test)")]
    row = read_evidence(checkout.places.evidence).tests[0]
    assert (row.low, row.high) == (pytest.approx(0.025 ** (1 / 3)), 1.0)
    checkout.run("drift", all_agree, {("a", seed): {} for seed in range(6)})
    assert judged(checkout)["T01"] == [("cpu", "confirmed")]


def test_the_newest_run_of_a_scale_speaks_for_it(checkout: Checkout) -> None:
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.run("drift", FALLS, THREE_ARMS)
    assert judged(checkout)["T01"] == [("cpu", "refuted")]


def test_evidence_of_another_store_is_kept(checkout: Checkout, tmp_path: Path, empty_store: Path) -> None:
    checkout.run("drift", RISES, THREE_ARMS, scale="gpu")
    assert judged(checkout)["T01"] == [("gpu", "confirmed")]
    elsewhere = Checkout(root=tmp_path / "elsewhere")
    (elsewhere.root / "runs").mkdir(parents=True)
    (elsewhere.root / "runs" / "mlflow.db").write_bytes(empty_store.read_bytes())
    commit = checkout.head
    elsewhere.git("init", "-q")
    elsewhere.git("commit", "-q", "--allow-empty", "-m", "another checkout")
    elsewhere.run("drift", FALLS, THREE_ARMS, git_commit=commit)
    assert main(["findings", "--root", str(checkout.root), "--store", elsewhere.uri]) == 0
    page = checkout.places.findings.read_text()
    assert "**confirmed**; cpu: refuted | gpu / gpu" in page and verify(checkout) == 0
    assert main(["findings", "--root", str(checkout.root), "--store", elsewhere.uri, "--drop-other-stores"]) == 0
    assert "**refuted** | cpu / gpu" in checkout.places.findings.read_text()


def test_a_run_that_no_longer_counts_takes_its_evidence_with_it(checkout: Checkout) -> None:
    run_id = checkout.run("drift", RISES, THREE_ARMS)
    assert judged(checkout)["T01"] == [("cpu", "confirmed")]
    checkout.client.set_tag(run_id, "git_dirty", "true")
    assert judged(checkout)["T01"] == [("", "untested")]


def test_an_older_run_that_counts_is_named_with_the_one_that_speaks(checkout: Checkout) -> None:
    older = checkout.run("drift", RISES, THREE_ARMS)
    newer = checkout.run("drift", FALLS, THREE_ARMS)
    assert judged(checkout)["T01"] == [("cpu", "refuted")]
    [row] = [row for row in read_evidence(checkout.places.evidence).left_out if "T01" in row.claims]
    assert row.run_id == older and f"run {newer[:8]} of the same scale is newer" in row.reason


def test_a_store_of_smoke_runs_alone_changes_nothing(checkout: Checkout, tmp_path: Path, empty_store: Path) -> None:
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.run("drift", RISES, THREE_ARMS, adhoc="true")
    assert findings(checkout) == 0
    before = {path.name: path.read_text() for path in checkout.places.evidence.glob("*.csv")}
    other = Checkout.make(tmp_path / "other", empty_store)
    other.run("drift", FALLS, THREE_ARMS, scale="smoke")
    assert main(["findings", "--root", str(checkout.root), "--store", other.uri]) == 0
    assert {path.name: path.read_text() for path in checkout.places.evidence.glob("*.csv")} == before
    assert "adhoc" in before["left_out.csv"] or "by hand" in before["left_out.csv"]
