"""How surely, and how soon, do measures without a judge tell speech that turned to gibberish?"""

from __future__ import annotations

from experiments.data.spec import ConversationSpec
from experiments.harness.study import Scale
from experiments.quality.configuration import DetectorExperiment, View


def gibberish_detector(*, scale: Scale, seed: int) -> DetectorExperiment:
    is_smoke = scale == "smoke"
    data, model_conversations, seeds = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "full": _full}[scale]()
    return DetectorExperiment(
        recipe="gibberish-detector",
        scale=scale,
        seed=seed,
        seed_count=seeds,
        views=(
            View(name="units", window_s=5.0, ngram_order=3, remembered_symbols=1500),
            # 5 s of text are a dozen tokens, too few for any of its measures.
            View(name="text", window_s=10.0, ngram_order=3, remembered_symbols=120),
            View(name="sound", window_s=5.0),
        ),
        data=data,
        model_conversations=model_conversations,
        known_sentence_share=0.5,
        false_alarms_per_hour=60.0 if is_smoke else 0.25,
        windows_to_raise=2,
        excerpt_s=50.0 if is_smoke else 80.0,
        onset_between_s=(16.0, 25.0) if is_smoke else (30.0, 45.0),
        tolerated_onset_s=10.0,
    )


Sizes = tuple[ConversationSpec, int, int]
"""Conversations of a seed, how many of them the n-gram model is fitted on, seeds."""


def _smoke() -> Sizes:
    """Seconds. Its numbers mean nothing."""
    spec = ConversationSpec(
        positions=500, conversations=5, validation_conversations=2, subjects=3, values=4, small_talk=12,
        unit_vocab_size=30, unit_fit_utterances=20, text_vocab_size=600,
    )  # fmt: skip
    return spec, 2, 1


def _cpu() -> Sizes:
    """A few minutes on two cores: of each seed two hours for the model, four to calibrate, four to measure errors."""
    spec = ConversationSpec(
        positions=4096, conversations=38, validation_conversations=24, subjects=12, values=20
    )  # fmt: skip
    return spec, 12, 3


def _gpu() -> Sizes:
    """Nothing here needs a GPU: the whole pool of sentences, and 20 hours to calibrate of each seed."""
    return ConversationSpec(positions=8192, conversations=80, validation_conversations=60), 20, 5


def _full() -> Sizes:
    """Four times the conversations of `gpu`."""
    return ConversationSpec(positions=8192, conversations=320, validation_conversations=240), 80, 5
