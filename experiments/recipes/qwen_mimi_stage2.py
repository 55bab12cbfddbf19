"""Qwen + Mimi, stage 2 of the curriculum: 16,384 frames, from where stage 1 ended."""

from __future__ import annotations

from experiments.curriculum.stages import later_stage
from experiments.harness.study import Scale
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.qwen_mimi.stage1 import first_stage


def qwen_mimi_stage2(*, scale: Scale, seed: int) -> QwenMimiExperiment:
    first = first_stage(recipe="qwen-mimi-stage1", scale=scale, seed=seed)
    return later_stage(first, stage=2, recipe="qwen-mimi-stage2")
