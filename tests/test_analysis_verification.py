"""FINDINGS.md and README.md follow from claims and evidence alone, and whatever is changed by hand is found."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from analysis_stores import RISES, THREE_ARMS, Checkout, findings, judged, verify

from analysis.__main__ import main
from analysis.evidence import read_evidence
from analysis.findings import differences


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


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a seed", "value is 1.0, its seeds give"),
        ("a seed left out", "made of 3 seeds, seeds.csv has 2"),
        ("a margin", "margin is 0.01, the claims file says 0.05"),
        ("an end that is none", "does not lie in its interval"),
    ],
)
def test_evidence_that_contradicts_itself_or_the_claims_cannot_be_written_up(
    verified: dict[str, str], tmp_path: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without this, writing FINDINGS.md anew would hide what was changed."""
    checkout = Checkout.make(tmp_path / "repository", None)
    for path, text in verified.items():
        (checkout.root / path).parent.mkdir(exist_ok=True)
        (checkout.root / path).write_text(text)
    if what == "an end that is none":
        changed(checkout.places.evidence / "tests.csv", "0.07,", "0.081,")
    else:
        TAMPERED[what](checkout)
    assert main(["findings", "--from-evidence", "--root", str(checkout.root)]) == 2
    assert message in capsys.readouterr().err


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
    assert "Of 4 contested claims, at scale `cpu` 1 confirmed.\n" in readme
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
