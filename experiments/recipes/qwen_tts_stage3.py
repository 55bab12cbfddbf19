"""Qwen + TTS, stage 3 of the curriculum: 32,768 positions, from where stage 2 ended."""

from __future__ import annotations

from experiments.curriculum.stages import later_stage
from experiments.harness.study import Scale
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.stage1 import first_stage


def qwen_tts_stage3(*, scale: Scale, seed: int) -> QwenExperiment:
    first = first_stage(recipe="qwen-tts-stage1", scale=scale, seed=seed)
    return later_stage(first, stage=3, recipe="qwen-tts-stage3")
