"""How a mini-batch-leak experiment is done."""

from __future__ import annotations

from experiments.harness.study import RunOptions, Study
from experiments.mini_batch_leak.arm import run_mini_batch_leak_arm
from experiments.mini_batch_leak.configuration import MiniBatchLeakExperiment
from experiments.mini_batch_leak.corpus import TextCorpus, build_corpus
from experiments.mini_batch_leak.report import report_mini_batch_leak


def prepare_text(experiment: MiniBatchLeakExperiment, options: RunOptions) -> TextCorpus:
    """Drawn once, in seconds; nothing is cached on disk."""
    return build_corpus(experiment.text)


MINI_BATCH_LEAK = Study(
    prepare=prepare_text,
    run_arm=run_mini_batch_leak_arm,
    report=report_mini_batch_leak,
    preloads=("experiments.mini_batch_leak.arm",),
)
