"""Llama-Omni, stage 2 of the curriculum: 16,384 positions, from where stage 1 ended."""

from __future__ import annotations

from experiments.curriculum.stages import later_stage
from experiments.harness.study import Scale
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment
from experiments.spoken.llama_omni.stage1 import first_stage


def llama_omni_stage2(*, scale: Scale, seed: int) -> LlamaOmniExperiment:
    first = first_stage(recipe="llama-omni-stage1", scale=scale, seed=seed)
    return later_stage(first, stage=2, recipe="llama-omni-stage2")
