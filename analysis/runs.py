"""A finished run as everything here reads it, and the scales it can have been run at."""

from __future__ import annotations

from dataclasses import dataclass, field

PRETRAINED = "pretrained"
SCALES = ("smoke", "cpu", "gpu", "full", PRETRAINED)
"""From the smallest to the largest. `pretrained` is scale `full` on weights that somebody trained before."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """One run as the store has it; metrics by name, each the value of its highest step. start_ms: since 1970."""

    run_id: str
    experiment: str
    status: str
    start_ms: int
    tags: dict[str, str] = field(repr=False)
    params: dict[str, str] = field(repr=False)
    metrics: dict[str, float] = field(repr=False)

    @property
    def role(self) -> str:
        """ "experiment" for the run that holds what is made of all arms, "arm" for one arm and seed."""
        return self.tags.get("role", "")

    @property
    def arm(self) -> str:
        return self.tags.get("arm", "")

    @property
    def seed(self) -> int:
        """-1 for a run that was not logged by the experiments."""
        seed = self.tags.get("seed", "")
        return int(seed) if seed.isdecimal() else -1

    @property
    def scale(self) -> str:
        """One of `SCALES`; empty for a run that was not logged by the experiments."""
        scale = self.tags.get("scale", "")
        has_weights = self.params.get("weights_digest", "None") not in ("", "None")
        return PRETRAINED if scale == "full" and has_weights else scale

    @property
    def commit(self) -> str:
        return self.tags.get("git_commit", "unknown")

    @property
    def parent_run_id(self) -> str:
        return self.tags.get("mlflow.parentRunId", "")
