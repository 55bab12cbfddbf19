"""Is a curriculum of 8k to 64k positions needed, or does going straight to 64k do, on as many tokens?"""

from __future__ import annotations

from experiments.curriculum.ablation import straight_against_staged
from experiments.curriculum.chain import ChainExperiment
from experiments.harness.study import Scale
from experiments.spoken.llama_omni.stage1 import first_stage


def curriculum_ablation(*, scale: Scale, seed: int) -> ChainExperiment:
    return straight_against_staged(
        "curriculum-ablation", first_stage(recipe="llama-omni-stage1", scale=scale, seed=seed)
    )
