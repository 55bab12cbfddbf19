"""How the detector experiment is done."""

from __future__ import annotations

from experiments.data.dataset import ConversationSet
from experiments.data.synthetic import build_conversations
from experiments.harness.study import RunOptions, Study
from experiments.quality.arm import run_detector_arm
from experiments.quality.configuration import DetectorExperiment
from experiments.quality.report import report_detector


def prepare_conversations(experiment: DetectorExperiment, options: RunOptions) -> dict[int, ConversationSet]:
    """{seed: its conversations}, over one pool of sentences that is spoken once."""
    return {
        seed: build_conversations(experiment.spec_of(seed), options.data_dir, skip_bad_audio=options.skips_bad_audio)
        for seed in experiment.seeds
    }


DETECTOR = Study(
    prepare=prepare_conversations,
    run_arm=run_detector_arm,
    report=report_detector,
    preloads=("experiments.quality.arm",),
)
