"""Moshi, stage 3 of the curriculum: 32,768 frames, from where stage 2 ended."""

from __future__ import annotations

from experiments.curriculum.stages import later_stage
from experiments.harness.study import Scale
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.stage1 import first_stage


def moshi_stage3(*, scale: Scale, seed: int) -> MoshiExperiment:
    first = first_stage(recipe="moshi-stage1", scale=scale, seed=seed)
    return later_stage(first, stage=3, recipe="moshi-stage3")
