"""How an endless-stream experiment is done."""

from __future__ import annotations

from experiments.endless.arm import run_endless_arm
from experiments.endless.report import report_endless
from experiments.fact_streams.data_source import fact_streams_read
from experiments.harness.study import Study

ENDLESS = Study(
    run_arm=run_endless_arm,
    report=report_endless,
    data_sources=fact_streams_read,
    preloads=("experiments.endless.arm",),
)
