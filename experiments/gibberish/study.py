"""How a gibberish experiment is done."""

from __future__ import annotations

from experiments.fact_streams.data_source import fact_streams_read
from experiments.gibberish.arm import run_gibberish_arm
from experiments.gibberish.report import report_gibberish
from experiments.harness.study import Study

GIBBERISH = Study(
    run_arm=run_gibberish_arm,
    report=report_gibberish,
    data_sources=fact_streams_read,
    preloads=("experiments.gibberish.arm",),
)
