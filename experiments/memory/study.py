"""How the experiment on memory is done: nothing to prepare, arms that count bytes, and tables of all arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.harness.study import FinishedArm, Report, RunOptions, Study
from experiments.memory.arm import run_memory_arm
from experiments.memory.claimed import claim_rows
from experiments.memory.configuration import MemoryExperiment
from experiments.memory.figures import draw_memory
from experiments.memory.report import ArmRow, claims_table, memory_table, write_arms, write_claims


def prepare_memory(config: MemoryExperiment, options: RunOptions) -> None:
    """Nothing is shared between arms. Raises ValueError where caches are to be filled and there is no GPU: a run that
    left it out would be taken for one of its scale."""
    if config.allocation is not None and not torch.cuda.is_available():
        raise ValueError(
            f"scale {config.scale} fills caches at the published dimensions, which needs a CUDA GPU, and there is none "
            "here; --scale cpu computes the same bytes and checks them at small size"
        )


def report_memory(config: MemoryExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]) -> Report:
    """One table of arms, one of claims, both as CSV too, and the two figures."""
    rows = [
        ArmRow(
            arrangement=config.arm(arm.name),
            status="not run" if arm.outcome is None else arm.outcome.status.lower(),
            metrics={} if arm.run is None else arm.run.metrics,
        )
        for arm in finished
    ]
    claims = claim_rows({row.arrangement.name: row.metrics for row in rows})
    files = [write_arms(folder / "memory.csv", rows)]
    table = memory_table(rows, config)
    if claims:
        files.append(write_claims(folder / "claims.csv", claims))
        table = f"{table}\n\n{claims_table(claims)}"
    metrics = {
        f"claimed/{row.claimed.claim}_{row.claimed.arm}_{row.claimed.metric.rpartition('/')[2]}_over_claimed": ratio
        for row in claims
        if (ratio := row.computed_over_claimed) is not None
    }
    return Report(table=table, figures=draw_memory(folder / "figures", rows, config), files=files, metrics=metrics)


# Importing moshi looks for a GPU, after which no forked process could use it: preloaded where there is none to use.
_MOSHI = () if torch.cuda.is_available() else ("experiments.memory.moshi_streams",)

MEMORY = Study(
    prepare=prepare_memory,
    run_arm=run_memory_arm,
    report=report_memory,
    preloads=("experiments.memory.arm", *_MOSHI),
)
