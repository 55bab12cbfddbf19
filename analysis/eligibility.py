"""Which runs count for a claim, and for every other run the reason why it does not."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from analysis.ledger import CLAIMS_FILE, Claim, digests_in
from analysis.runs import SCALES, LoggedRun

NO_EVIDENCE_SCALE = SCALES[0]

DigestsAt = Callable[[str], Mapping[str, str] | None]
"""Commit -> {claim id: digest} of the claims file at that commit; None where the commit is not known here."""


@dataclass(frozen=True, kw_only=True)
class ExperimentRun:
    """One run of a recipe: the run that holds what was made of all arms, and its arms' runs, of every seed."""

    parent: LoggedRun
    arms: tuple[LoggedRun, ...]

    @property
    def scale(self) -> str:
        """The arms know it best: weights that were loaded are among their parameters."""
        found = {run.scale for run in self.arms} | {self.parent.scale}
        return max((scale for scale in found if scale in SCALES), key=SCALES.index, default="")

    @property
    def has_every_arm(self) -> bool:
        return self.parent.tags.get("has_every_arm") == "true"

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the arms that finished."""
        return tuple(sorted({run.seed for run in self.arms if run.status == "FINISHED"}))

    def of_arm(self, arm: str) -> dict[int, LoggedRun]:
        """{seed: run} of an arm's finished runs."""
        return {run.seed: run for run in self.arms if run.arm == arm and run.status == "FINISHED"}


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run of an experiment that does not count for a claim, and why."""

    claim: str
    recipe: str
    scale: str
    run_id: str
    commit: str
    reason: str


def experiment_runs(runs: Sequence[LoggedRun]) -> list[ExperimentRun]:
    """Runs of one recipe, put together: newest first."""
    parents = sorted((run for run in runs if run.role == "experiment"), key=lambda run: (run.start_ms, run.run_id))
    return [
        ExperimentRun(parent=parent, arms=tuple(run for run in runs if run.parent_run_id == parent.run_id))
        for parent in reversed(parents)
    ]


def eligible_runs(
    claim: Claim, recipe: str, runs: Sequence[ExperimentRun], digests_at: DigestsAt
) -> tuple[list[ExperimentRun], list[LeftOut]]:
    """The runs that count for the claim, and the others with their reasons; both in the order given."""
    eligible, left_out = [], []
    for run in runs:
        reason = why_not(claim, run, digests_at)
        if reason is None:
            eligible.append(run)
        else:
            left_out.append(left_out_of(claim, recipe, run, reason))
    return eligible, left_out


def left_out_of(claim: Claim, recipe: str, run: ExperimentRun, reason: str) -> LeftOut:
    parent = run.parent
    return LeftOut(
        claim=claim.id, recipe=recipe, scale=run.scale, run_id=parent.run_id, commit=parent.commit, reason=reason
    )


def why_not(claim: Claim, run: ExperimentRun, digests_at: DigestsAt) -> str | None:
    """The first reason for which a run does not count for a claim; None where it does."""
    parent = run.parent
    if run.scale not in SCALES:
        return f"its scale is {parent.tags.get('scale', 'not logged')!r}"
    if run.scale == NO_EVIDENCE_SCALE:
        return f"scale {NO_EVIDENCE_SCALE} tries the code, its numbers mean nothing"
    if parent.status != "FINISHED":
        return f"it is {parent.status.lower()}, not finished"
    every = (parent, *run.arms)
    if own := {each.tags["own_data"] for each in every if "own_data" in each.tags}:
        return f"it reads own recordings ({', '.join(sorted(own))}), and claims are about synthetic conversations"
    if any(each.tags.get("adhoc") != "false" for each in every):
        return "fields were changed by hand (adhoc)"
    unclean = [each for each in every if each.tags.get("git_dirty") != "false"]
    if unclean:
        return f"{_called(unclean[0])} was run from files that differ from its commit, or from no checkout at all"
    for commit in dict.fromkeys(each.commit for each in every):
        digests = digests_at(commit)
        if digests is None:
            return f"its commit {commit[:12]} is not in this repository"
        if claim.id not in digests:
            return f"{claim.id} was not yet a claim at its commit {commit[:12]}"
        if digests[claim.id] != claim.digest:
            return f"{claim.id} was edited after its commit {commit[:12]}"
    return None


def digests_from_git(root: Path) -> DigestsAt:
    """Reads the claims file of any commit out of the git repository at `root`."""

    @cache
    def digests_at(commit: str) -> Mapping[str, str] | None:
        if not commit or not commit.isalnum() or not _git(root, "cat-file", "-e", f"{commit}^{{commit}}")[0]:
            return None
        found, text = _git(root, "show", f"{commit}:{CLAIMS_FILE}")
        return digests_in(text) if found else {}

    return digests_at


def has_whole_history(root: Path) -> bool:
    """Whether every commit can be looked up at `root`: False in a shallow clone, and where there is no repository."""
    is_repository, shallow = _git(root, "rev-parse", "--is-shallow-repository")
    return is_repository and shallow.strip() == "false"


def _git(root: Path, *arguments: str) -> tuple[bool, str]:
    """Whether git did it, and what it printed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"git cannot be started ({error}); runs are checked against their commits") from error
    return done.returncode == 0, done.stdout


def _called(run: LoggedRun) -> str:
    return f"arm {run.arm} (seed {run.seed})" if run.role == "arm" else "it"
