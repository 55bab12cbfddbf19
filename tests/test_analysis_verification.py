"""FINDINGS.md and README.md follow from claims and evidence alone, and whatever is changed by hand is found."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from analysis_stores import CLAIMS, RISES, THREE_ARMS, Checkout, findings, judged, verify

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
def verified(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A repository whose findings verify."""
    checkout = Checkout.make(tmp_path_factory.mktemp("verified") / "repository", empty_store)
    checkout.run("drift", RISES, THREE_ARMS)
    checkout.run("drift", RISES, THREE_ARMS, adhoc="true")
    arms = {(arm, seed): {"recall/far": float(arm == "ttt")} for arm in ("ttt", "window") for seed in (0, 1, 2)}
    checkout.run("recall", {}, arms)
    assert findings(checkout) == 0 and differences(checkout.places, checkout.digests_at) == []
    return checkout.root


@pytest.mark.parametrize("what", TAMPERED)
def test_whatever_is_changed_by_hand_is_found(verified: Path, tmp_path: Path, what: str) -> None:
    checkout = copied(verified, tmp_path)
    assert verify(checkout) == 0
    TAMPERED[what](checkout)
    assert verify(checkout) == 1


def copied(verified: Path, tmp_path: Path) -> Checkout:
    shutil.copytree(verified, tmp_path / "repository")
    return Checkout(root=tmp_path / "repository")


def test_numbers_made_up_for_a_commit_that_is_none_or_said_otherwise_are_found(
    verified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = copied(verified, tmp_path)
    claimed = checkout.head
    checkout.commit(CLAIMS.replace("The loss grows", "The loss never grows"))
    otherwise = checkout.head
    checkout.commit(CLAIMS)
    for commit, why in (("f" * 40, "this repository has no commit"), (otherwise, "the entry of T01 was")):
        changed(checkout.places.evidence / "tests.csv", claimed, commit)
        assert main(["findings", "--root", str(checkout.root), "--from-evidence"]) == 0
        assert verify(checkout) == 1 and why in capsys.readouterr().out
        changed(checkout.places.evidence / "tests.csv", commit, claimed)


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
    verified: Path, tmp_path: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without this, writing FINDINGS.md anew would hide what was changed."""
    checkout = copied(verified, tmp_path)
    if what == "an end that is none":
        changed(checkout.places.evidence / "tests.csv", "0.07,", "0.081,")
    else:
        TAMPERED[what](checkout)
    assert main(["findings", "--from-evidence", "--root", str(checkout.root)]) == 2
    assert message in capsys.readouterr().err


def test_verdicts_need_no_store(verified: Path, tmp_path: Path) -> None:
    checkout = copied(verified, tmp_path)
    (checkout.root / "runs" / "mlflow.db").unlink()
    written = checkout.places.findings.read_text()
    checkout.places.findings.unlink()
    assert verify(checkout) == 1  # nothing is written yet
    assert main(["findings", "--from-evidence", "--root", str(checkout.root)]) == 0
    assert checkout.places.findings.read_text() == written and verify(checkout) == 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c.places.readme.unlink(), "there is no README.md"),
        (lambda c: c.places.claims.write_text(""), "holds no tables [[claim]]"),
        (lambda c: c.places.claims.write_text("claim = [1]"), "holds no tables [[claim]]"),
        (lambda c: changed(c.places.evidence / "tests.csv", "0.07,", "0.07,9,"), "more cells than there are columns"),
        (lambda c: (c.places.evidence / "tests.csv").write_bytes(b"\xff"), "tests.csv is no UTF-8 text"),
    ],
)
def test_files_that_cannot_be_read_are_named(
    verified: Path, tmp_path: Path, spoil: Callable[[Checkout], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = copied(verified, tmp_path)
    spoil(checkout)
    kept = (checkout.places.evidence / "tests.csv").read_bytes()
    for command in ("verify-findings", "findings"):
        options = ["--store", checkout.uri] if command == "findings" else []
        assert main([command, "--root", str(checkout.root), *options]) == 2
        assert message in capsys.readouterr().err
    assert (checkout.places.evidence / "tests.csv").read_bytes() == kept


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
