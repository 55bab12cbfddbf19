"""Moshi, stage 4 of the curriculum: 65,536 frames, from where stage 3 ended."""

from __future__ import annotations

from experiments.curriculum.stages import later_stage
from experiments.harness.study import Scale
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.stage1 import first_stage


def moshi_stage4(*, scale: Scale, seed: int) -> MoshiExperiment:
    first = first_stage(recipe="moshi-stage1", scale=scale, seed=seed)
    return later_stage(first, stage=4, recipe="moshi-stage4")
