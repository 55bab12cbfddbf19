"""Qwen + Mimi, the whole curriculum: stages of 8k, 16k, 32k and 64k frames in a row, and one table of them all."""

from __future__ import annotations

from experiments.curriculum.chain import ChainExperiment
from experiments.curriculum.curriculum import stages_in_a_row
from experiments.harness.study import Scale
from experiments.spoken.qwen_mimi.stage1 import first_stage


def qwen_mimi_curriculum(*, scale: Scale, seed: int) -> ChainExperiment:
    return stages_in_a_row("qwen-mimi-curriculum", first_stage(recipe="qwen-mimi-stage1", scale=scale, seed=seed))
