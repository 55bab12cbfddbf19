"""Qwen + TTS, stage 2 of the curriculum: 16,384 positions, from where stage 1 ended."""

from __future__ import annotations

from experiments.curriculum.stages import later_stage
from experiments.harness.study import Scale
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.stage1 import first_stage


def qwen_tts_stage2(*, scale: Scale, seed: int) -> QwenExperiment:
    first = first_stage(recipe="qwen-tts-stage1", scale=scale, seed=seed)
    return later_stage(first, stage=2, recipe="qwen-tts-stage2")
