"""How the instability experiment is done."""

from __future__ import annotations

from experiments.fact_streams.data_source import fact_streams_read
from experiments.harness.study import Study
from experiments.instability.arm import run_instability_arm
from experiments.instability.report import report_instability

INSTABILITY = Study(
    run_arm=run_instability_arm,
    report=report_instability,
    data_sources=fact_streams_read,
    preloads=("experiments.instability.arm",),
)
