"""Qwen + Mimi, stage 3 of the curriculum: 32,768 frames, from where stage 2 ended."""

from __future__ import annotations

from experiments.curriculum.stages import later_stage
from experiments.harness.study import Scale
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.qwen_mimi.stage1 import first_stage


def qwen_mimi_stage3(*, scale: Scale, seed: int) -> QwenMimiExperiment:
    first = first_stage(recipe="qwen-mimi-stage1", scale=scale, seed=seed)
    return later_stage(first, stage=3, recipe="qwen-mimi-stage3")
