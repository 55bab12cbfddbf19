"""How a mini-batch-leak experiment is done."""

from __future__ import annotations

import json

from experiments.harness.data_source import DataSource, digest_of
from experiments.harness.study import RunOptions, Study
from experiments.mini_batch_leak.arm import run_mini_batch_leak_arm
from experiments.mini_batch_leak.configuration import MiniBatchLeakExperiment
from experiments.mini_batch_leak.corpus import TextCorpus, build_corpus
from experiments.mini_batch_leak.report import report_mini_batch_leak


def prepare_text(experiment: MiniBatchLeakExperiment, options: RunOptions) -> TextCorpus:
    """Drawn once, in seconds; nothing is cached on disk."""
    return build_corpus(experiment.text)


def text_read(experiment: MiniBatchLeakExperiment, corpus: TextCorpus) -> tuple[DataSource, ...]:
    """Every token, of training and held out."""
    tokens = digest_of(ids.tobytes() for ids in (corpus.training, corpus.held_out))
    return (DataSource(name="conversation-text", digest=tokens, made_from=json.dumps(experiment.text.as_dict())),)


MINI_BATCH_LEAK = Study(
    prepare=prepare_text,
    run_arm=run_mini_batch_leak_arm,
    report=report_mini_batch_leak,
    data_sources=text_read,
    preloads=("experiments.mini_batch_leak.arm",),
)
