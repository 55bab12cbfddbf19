"""Stores and repositories for the tests of `analysis`: real MLflow SQLite files, and git checkouts with claims."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient

from analysis.__main__ import main
from analysis.eligibility import digests_from_git
from analysis.evidence import read_evidence
from analysis.findings import README_END, README_START, Places, verdicts
from analysis.ledger import load_ledger

CLAIMS = """
planned_recipes = ["not-yet"]

[[claim]]
id = "T01"
statement = "The loss grows"
contested = "notes"
scale = "gpu"
each_test = { recipe = "drift", source = "experiment", confirmed = "above", seeds = 3, why = "five percent" }
test = [{ name = "growth", metric = "drift/rise_nats", unit = "nats", margin = 0.05, when = "always" }]

[[claim]]
id = "T02"
statement = "TTT recalls more than a window"
contested = "papers"
scale = "cpu"
each_test = { recipe = "recall", source = "arms", confirmed = "above", seeds = 3, why = "more is more", when = "far" }
test = [{ name = "recall", arm = "ttt", against = "window", metric = "recall/far", unit = "shares", margin = 0.0 }]

[[claim]]
id = "T03"
statement = "The cache holds 3,000 positions"
contested = "the package"
scale = "cpu"
each_test = { recipe = "memory", source = "arm", arm = "ring", unit = "positions", exact = true, why = "a count" }
test = [
  { name = "short", metric = "ring/short", confirmed = "within", target = 3000, margin = 0.5, when = "it is short" },
  { name = "long", metric = "ring/long", confirmed = "within", target = 3000, margin = 0.5, when = "it is long" },
]

[[claim]]
id = "T04"
statement = "Listeners like it"
contested = "notes"
scale = "pretrained"
each_test = { recipe = "not-yet", source = "experiment", unit = "share", needs = "ratings", why = "half" }
test = [{ name = "wins", metric = "listening/share", confirmed = "above", margin = 0.5, when = "they listen" }]
"""

README = f"# A repository\n\n{README_START}\n{README_END}\n\nThe end.\n"


@dataclass
class Checkout:
    """A git repository with claims and a README, and a store of runs beside it, as the project's own has them."""

    root: Path
    _client: MlflowClient | None = field(default=None, repr=False)

    @classmethod
    def make(cls, root: Path, empty_store: Path | None, claims: str = CLAIMS) -> Checkout:
        checkout = cls(root=root)
        (root / "experiments").mkdir(parents=True)
        (root / "runs").mkdir()
        (root / "README.md").write_text(README)
        if empty_store is not None:
            shutil.copy(empty_store, root / "runs" / "mlflow.db")
        checkout.git("init", "-q")
        checkout.commit(claims)
        return checkout

    @property
    def places(self) -> Places:
        return Places(root=self.root)

    def digests_at(self, commit: str) -> Mapping[str, str] | None:
        return digests_from_git(self.root)(commit)

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.root / 'runs' / 'mlflow.db'}"

    @property
    def client(self) -> MlflowClient:
        self._client = self._client or MlflowClient(self.uri)
        return self._client

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=A Tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, claims: str) -> str:
        """Commits these claims and gives the commit."""
        (self.root / "experiments" / "claims.toml").write_text(claims)
        self.git("add", "experiments/claims.toml")
        self.git("commit", "-q", "--allow-empty", "-m", "claims")
        return self.head

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def run(
        self,
        recipe: str,
        metrics: Mapping[str, float] | None = None,
        arms: Mapping[tuple[str, int], Mapping[str, float]] | None = None,
        *,
        scale: str = "cpu",
        status: str = "FINISHED",
        arm_tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        **tags: str,
    ) -> str:
        """One experiment's own run with the runs of its arms, as the experiments log them. Gives the own run's id.

        arms: (arm, seed) -> metrics. tags: of the own run and the arms', instead of those of a run that counts.
        """
        known = self.client.get_experiment_by_name(recipe)
        experiment_id = self.client.create_experiment(recipe) if known is None else known.experiment_id
        common = {"scale": scale, "adhoc": "false", "git_commit": self.head, "git_dirty": "false", **tags}
        own = {**common, "role": "experiment", "arm": "", "seed": "0"}
        own.setdefault("has_every_arm", "true")
        parent = self._one(experiment_id, own, metrics or {}, {}, status)
        for (arm, seed), found in (arms or {}).items():
            child = {**common, "role": "arm", "arm": arm, "seed": str(seed), "mlflow.parentRunId": parent}
            self._one(
                experiment_id, child | dict(arm_tags or {}), found, {"seed": str(seed), **(params or {})}, "FINISHED"
            )
        return parent

    def _one(
        self, experiment_id: str, tags: dict[str, str], metrics: Mapping[str, float], params: Mapping[str, str],
        status: str,
    ) -> str:  # fmt: skip
        run_id = self.client.create_run(experiment_id, tags=tags).info.run_id
        for name, value in metrics.items():
            self.client.log_metric(run_id, name, value, synchronous=True)
        for name, value in params.items():
            self.client.log_param(run_id, name, value, synchronous=True)
        self.client.set_terminated(run_id, status)
        return run_id


def with_ends(metric: str, value: float, half: float) -> dict[str, float]:
    """A metric and its interval's ends, as estimates are logged."""
    return {metric: value, f"{metric}_low": value - half, f"{metric}_high": value + half}


THREE_ARMS = {("a", seed): {} for seed in (0, 1, 2)}
RISES = with_ends("drift/rise_nats", 0.08, 0.01)
FALLS = with_ends("drift/rise_nats", 0.02, 0.01)
OPEN = with_ends("drift/rise_nats", 0.05, 0.02)


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
