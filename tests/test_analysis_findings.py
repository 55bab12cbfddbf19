"""From a store of runs to FINDINGS.md: which runs count, what follows, and that nothing can be changed unseen."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from analysis_stores import CLAIMS, Checkout, empty_store, with_ends

from analysis.__main__ import main
from analysis.eligibility import digests_from_git
from analysis.evidence import read_evidence
from analysis.findings import differences, verdicts
from analysis.ledger import load_ledger
from analysis.measurements import measure
from analysis.statistics import t_interval
from analysis.store import open_store

__all__ = ["empty_store"]  # a fixture: pytest finds it here by its name

THREE_ARMS = {("a", seed): {} for seed in (0, 1, 2)}
RISES = with_ends("drift/rise_nats", 0.08, 0.01)
FALLS = with_ends("drift/rise_nats", 0.02, 0.01)
OPEN = with_ends("drift/rise_nats", 0.05, 0.02)


@pytest.fixture
def checkout(tmp_path: Path, empty_store: Path) -> Checkout:
    return Checkout.make(tmp_path / "repository", empty_store)


def judged(checkout: Checkout) -> dict[str, list[tuple[str, str]]]:
    """{claim: [(scale, verdict)]} after `findings`."""
    assert findings(checkout) == 0
    ledger = load_ledger(checkout.places.claims)
    found = verdicts(ledger, read_evidence(checkout.places.evidence))
    return {claim: [(each.scale, each.text) for each in of_claim] for claim, of_claim in found.items()}


def findings(checkout: Checkout, *options: str) -> int:
    return main(["findings", "--root", str(checkout.root), "--store", checkout.uri, *options])


def verify(checkout: Checkout) -> int:
    return main(["verify-findings", "--root", str(checkout.root)])


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


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TAMPERED: dict[str, Callable[[Checkout], None]] = {
    "a value": lambda c: changed(c.places.evidence / "tests.csv", "0.08,", "0.085,"),
    "an end": lambda c: changed(c.places.evidence / "tests.csv", "0.07,", "0.01,"),
    "a margin": lambda c: changed(c.places.evidence / "tests.csv", "above,0.05", "above,0.01"),
    "a commit": lambda c: changed(c.places.evidence / "tests.csv", c.head, "f" * 40),
    "a seed": lambda c: changed(c.places.evidence / "seeds.csv", ",2,1.0,", ",2,3.0,"),
    "a seed left out": lambda c: _drop_last_line(c.places.evidence / "seeds.csv"),
    "a reason": lambda c: changed(c.places.evidence / "left_out.csv", "by hand", "by accident"),
    "a row": lambda c: _drop_last_line(c.places.evidence / "tests.csv"),
    "a verdict": lambda c: changed(c.places.findings, "**confirmed**", "**refuted**"),
    "a number": lambda c: changed(c.places.findings, "growth: 0.08", "growth: 0.18"),
    "the README": lambda c: changed(c.places.readme, "| confirmed |", "| refuted |"),
    "a claim": lambda c: changed(c.places.claims, "The loss grows", "The loss never grows"),
}


def _drop_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> dict[str, str]:
    """{path: text} of a repository whose findings verify."""
    checkout = Checkout.make(tmp_path_factory.mktemp("verified") / "repository", empty_store)
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.run("drift", RISES, THREE_ARMS, adhoc="true")
    arms = {(arm, seed): {"recall/far": float(arm == "ttt")} for arm in ("ttt", "window") for seed in (0, 1, 2)}
    checkout.run("recall", {}, arms)
    assert findings(checkout) == 0 and differences(checkout.places) == []
    files = [*checkout.places.evidence.glob("*.csv"), checkout.places.findings, checkout.places.readme]
    return {path.relative_to(checkout.root).as_posix(): path.read_text() for path in [*files, checkout.places.claims]}


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_is_changed_by_hand_is_found(verified: dict[str, str], tmp_path: Path, what: str) -> None:
    checkout = Checkout.make(tmp_path / "repository", None)
    for path, text in verified.items():
        (checkout.root / path).parent.mkdir(exist_ok=True)
        (checkout.root / path).write_text(text)
    if what == "a commit":  # the head of this copy is another one
        commit = read_evidence(checkout.places.evidence).tests[0].commit
        changed(checkout.places.evidence / "tests.csv", commit, "f" * 40)
    else:
        assert verify(checkout) == 0
        TAMPERED[what](checkout)
    assert verify(checkout) == 1


def test_verdicts_need_no_store(verified: dict[str, str], tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "repository", None)
    for path, text in verified.items():
        if path != "FINDINGS.md":
            (checkout.root / path).parent.mkdir(exist_ok=True)
            (checkout.root / path).write_text(text)
    assert verify(checkout) == 1  # nothing is written yet
    assert main(["findings", "--from-evidence", "--root", str(checkout.root)]) == 0
    assert checkout.places.findings.read_text() == verified["FINDINGS.md"] and verify(checkout) == 0


def test_without_any_evidence_all_claims_are_untested_and_that_verifies(tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "repository", None)
    assert main(["findings", "--from-evidence", "--root", str(checkout.root)]) == 0
    assert verify(checkout) == 0
    assert checkout.places.findings.read_text().count("**untested**") == 3
    assert "4 of 4 claims have no run that counts yet" in checkout.places.readme.read_text()


def test_the_readme_gets_the_claims_that_have_a_verdict(checkout: Checkout) -> None:
    checkout.run("drift", RISES, THREE_ARMS)
    assert findings(checkout) == 0
    readme = checkout.places.readme.read_text()
    assert readme.startswith("# A repository\n\n<!-- findings -->\n") and readme.endswith("\n\nThe end.\n")
    assert "| [T01](FINDINGS.md#t01) The loss grows | confirmed | cpu / gpu | growth: 0.08 [0.07, 0.09] nats" in readme
    assert "T02" not in readme and "3 of 4 claims" in readme
    assert findings(checkout) == 0 and checkout.places.readme.read_text() == readme  # twice is once


@pytest.mark.parametrize("readme", ["nothing", "<!-- findings -->", "<!-- /findings --> <!-- findings -->"])
def test_a_readme_without_room_is_told(checkout: Checkout, readme: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.places.readme.write_text(readme)
    assert findings(checkout) == 2
    assert "README.md must hold <!-- findings -->" in capsys.readouterr().err
    assert not checkout.places.findings.exists()


def test_evidence_files_are_tables_that_anything_reads(checkout: Checkout) -> None:
    checkout.run("memory", {}, {("ring", 0): {"ring/short": 3000.0, "ring/long": 3000.0}})
    assert judged(checkout)["T03"] == [("cpu", "confirmed")]
    with (checkout.places.evidence / "tests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["test"], row["value"], row["margin"], row["commit"]) for row in rows] == [
        ("long", "3000.0", "0.5", checkout.head),
        ("short", "3000.0", "0.5", checkout.head),
    ]
    (checkout.places.evidence / "tests.csv").write_text("claim,value\nT03,1\n")
    with pytest.raises(ValueError, match=re.escape("tests.csv has columns ['claim', 'value']")):
        read_evidence(checkout.places.evidence)
