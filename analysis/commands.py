"""The commands `findings` and `verify-findings`, for the command line of this package."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from analysis.eligibility import digests_from_git, has_whole_history
from analysis.evidence import Evidence, evidence_of, faults_in, joined, read_evidence, write_evidence
from analysis.findings import FINDINGS_FILE, Places, differences, verdicts, write_findings
from analysis.ledger import load_ledger

ROOT = Path(__file__).resolve().parents[1]
Command = Callable[[argparse.Namespace], int]


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both; each sets `command`, a function from the parsed arguments to the exit code."""
    findings = subparsers.add_parser("findings", help="judge every claim by the runs that count, write FINDINGS.md")
    findings.add_argument("--store", help="where the runs are (default: MLFLOW_TRACKING_URI, else runs/mlflow.db)")
    findings.add_argument("--from-evidence", action="store_true", help="write from evidence/*.csv alone, no store")
    findings.add_argument("--drop-other-stores", action="store_true", help="keep no evidence that this store lacks")
    findings.set_defaults(command=write)
    check = subparsers.add_parser("verify-findings", help="do FINDINGS.md and README.md follow from evidence/*.csv?")
    check.set_defaults(command=verify)
    for each in (findings, check):
        each.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)


def write(arguments: argparse.Namespace) -> int:
    """`findings`. Raises ValueError for a store or a file that cannot be read."""
    places = Places(root=arguments.root)
    ledger, old = load_ledger(places.claims), read_evidence(places.evidence)
    if arguments.from_evidence:
        evidence = joined(Evidence(), old, ledger)
        edited = sorted({row.claim for row in old.tests} - {row.claim for row in evidence.tests})
        if edited:
            print(f"{', '.join(edited)}: edited after their runs, so untested again; their evidence is dropped")
        faults = faults_in(evidence, ledger)
        if faults:
            raise ValueError("\n  ".join(["the evidence does not fit the claims; run make findings:", *faults]))
    else:
        # MLflow takes seconds to import, and only this needs it.
        from analysis.measurements import measure
        from analysis.store import default_uri, open_store

        store = open_store(arguments.store or default_uri(places.root))
        store.require_runs()
        measured, left_out = measure(ledger, store, digests_from_git(places.root), tell=print)
        evidence = evidence_of(measured, left_out)
        if not arguments.drop_other_stores:
            evidence = joined(evidence, old, ledger, {run.run_id for run in store.runs()})
        for row in evidence.left_out:
            print(f"does not count: {row.recipe} {row.scale} {row.run_id[:8]} for {row.claims}: {row.reason}")
    write_findings(places, ledger, evidence)  # first: it refuses a README.md without a place for it
    write_evidence(evidence, places.evidence)
    for claim, found in verdicts(ledger, evidence).items():
        print(f"{claim}  {'; '.join(f'{each.text} ({each.scale})' if each.scale else each.text for each in found)}")
    print(f"wrote {FINDINGS_FILE}, {places.evidence.name}/ and the findings in README.md; commit them together")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """`verify-findings`: 0 where everything follows from the evidence, 1 where it does not."""
    digests_at = digests_from_git(arguments.root) if has_whole_history(arguments.root) else None
    if digests_at is None:
        print("not checked: the claims at the commits of the runs, which this checkout does not have")
    faults = differences(Places(root=arguments.root), digests_at)
    for fault in faults:
        print(fault)
    if faults:
        print("not verified; `make findings` writes them anew from the runs")
        return 1
    print(f"verified: {FINDINGS_FILE} and README.md follow from the claims and the evidence")
    return 0
