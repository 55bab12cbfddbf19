"""Every recipe by its name on the command line: a complete configuration for a scale and a seed, and how it is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from experiments.counting.study import ADAPTER_SIZE, MODEL_CARDS
from experiments.curriculum.study import ablation_study, chain_study, stage_study
from experiments.drift.study import DRIFT
from experiments.endless.study import ENDLESS
from experiments.gibberish.study import GIBBERISH
from experiments.harness.study import Experiment, Scale, Study
from experiments.instability.study import INSTABILITY
from experiments.long_generation.configuration import LongGenerationExperiment
from experiments.long_generation.study import LONG_GENERATION
from experiments.memory.study import MEMORY
from experiments.mini_batch_leak.study import MINI_BATCH_LEAK
from experiments.quality.study import DETECTOR
from experiments.recipes.adapter_size import adapter_size
from experiments.recipes.bf16_drift import bf16_drift
from experiments.recipes.curriculum_ablation import curriculum_ablation
from experiments.recipes.endless_stream import endless_stream
from experiments.recipes.gibberish import gibberish
from experiments.recipes.gibberish_detector import gibberish_detector
from experiments.recipes.instability import instability
from experiments.recipes.kv_wraparound import kv_wraparound
from experiments.recipes.llama_omni_curriculum import llama_omni_curriculum
from experiments.recipes.llama_omni_stage1 import llama_omni_stage1
from experiments.recipes.llama_omni_stage2 import llama_omni_stage2
from experiments.recipes.llama_omni_stage3 import llama_omni_stage3
from experiments.recipes.llama_omni_stage4 import llama_omni_stage4
from experiments.recipes.long_generation import long_generation
from experiments.recipes.memory import memory
from experiments.recipes.mini_batch_leak import mini_batch_leak
from experiments.recipes.model_cards import model_cards
from experiments.recipes.moshi_curriculum import moshi_curriculum
from experiments.recipes.moshi_stage1 import moshi_stage1
from experiments.recipes.moshi_stage2 import moshi_stage2
from experiments.recipes.moshi_stage3 import moshi_stage3
from experiments.recipes.moshi_stage4 import moshi_stage4
from experiments.recipes.qwen_mimi_curriculum import qwen_mimi_curriculum
from experiments.recipes.qwen_mimi_stage1 import qwen_mimi_stage1
from experiments.recipes.qwen_mimi_stage2 import qwen_mimi_stage2
from experiments.recipes.qwen_mimi_stage3 import qwen_mimi_stage3
from experiments.recipes.qwen_mimi_stage4 import qwen_mimi_stage4
from experiments.recipes.qwen_tts_curriculum import qwen_tts_curriculum
from experiments.recipes.qwen_tts_stage1 import qwen_tts_stage1
from experiments.recipes.qwen_tts_stage2 import qwen_tts_stage2
from experiments.recipes.qwen_tts_stage3 import qwen_tts_stage3
from experiments.recipes.qwen_tts_stage4 import qwen_tts_stage4
from experiments.recipes.rope_reset import rope_reset
from experiments.spoken.study import spoken_study
from experiments.wraparound.study import WRAPAROUND


class Configure(Protocol):
    """A complete configuration for a scale and a seed."""

    def __call__(self, *, scale: Scale, seed: int) -> Experiment: ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """configure: what is run. study: how experiments of its kind are run. described_by: a function of the recipe's
    file, where `configure` is not in it."""

    configure: Configure
    study: Study
    described_by: Callable[..., object] | None = None


def configure_long_generation(*, scale: Scale, seed: int) -> LongGenerationExperiment:
    """Long generation of the models that the stage-1 recipes train."""
    stage_1 = (llama_omni_stage1, moshi_stage1, qwen_tts_stage1, qwen_mimi_stage1)
    return long_generation(scale=scale, seed=seed, models=[configure(scale=scale, seed=seed) for configure in stage_1])


RECIPES: dict[str, Recipe] = {
    "adapter-size": Recipe(configure=adapter_size, study=ADAPTER_SIZE),
    "bf16-drift": Recipe(configure=bf16_drift, study=DRIFT),
    "curriculum-ablation": Recipe(configure=curriculum_ablation, study=ablation_study("llama-omni")),
    "endless-stream": Recipe(configure=endless_stream, study=ENDLESS),
    "gibberish": Recipe(configure=gibberish, study=GIBBERISH),
    "gibberish-detector": Recipe(configure=gibberish_detector, study=DETECTOR),
    "instability": Recipe(configure=instability, study=INSTABILITY),
    "kv-wraparound": Recipe(configure=kv_wraparound, study=WRAPAROUND),
    "llama-omni-curriculum": Recipe(configure=llama_omni_curriculum, study=chain_study("llama-omni")),
    "llama-omni-stage1": Recipe(configure=llama_omni_stage1, study=spoken_study("llama-omni")),
    "llama-omni-stage2": Recipe(configure=llama_omni_stage2, study=stage_study("llama-omni")),
    "llama-omni-stage3": Recipe(configure=llama_omni_stage3, study=stage_study("llama-omni")),
    "llama-omni-stage4": Recipe(configure=llama_omni_stage4, study=stage_study("llama-omni")),
    "long-generation": Recipe(configure=configure_long_generation, study=LONG_GENERATION, described_by=long_generation),
    "memory": Recipe(configure=memory, study=MEMORY),
    "mini-batch-leak": Recipe(configure=mini_batch_leak, study=MINI_BATCH_LEAK),
    "model-cards": Recipe(configure=model_cards, study=MODEL_CARDS),
    "moshi-curriculum": Recipe(configure=moshi_curriculum, study=chain_study("moshi")),
    "moshi-stage1": Recipe(configure=moshi_stage1, study=spoken_study("moshi")),
    "moshi-stage2": Recipe(configure=moshi_stage2, study=stage_study("moshi")),
    "moshi-stage3": Recipe(configure=moshi_stage3, study=stage_study("moshi")),
    "moshi-stage4": Recipe(configure=moshi_stage4, study=stage_study("moshi")),
    "qwen-mimi-curriculum": Recipe(configure=qwen_mimi_curriculum, study=chain_study("qwen-mimi")),
    "qwen-mimi-stage1": Recipe(configure=qwen_mimi_stage1, study=spoken_study("qwen-mimi")),
    "qwen-mimi-stage2": Recipe(configure=qwen_mimi_stage2, study=stage_study("qwen-mimi")),
    "qwen-mimi-stage3": Recipe(configure=qwen_mimi_stage3, study=stage_study("qwen-mimi")),
    "qwen-mimi-stage4": Recipe(configure=qwen_mimi_stage4, study=stage_study("qwen-mimi")),
    "qwen-tts-curriculum": Recipe(configure=qwen_tts_curriculum, study=chain_study("qwen-tts")),
    "qwen-tts-stage1": Recipe(configure=qwen_tts_stage1, study=spoken_study("qwen-tts")),
    "qwen-tts-stage2": Recipe(configure=qwen_tts_stage2, study=stage_study("qwen-tts")),
    "qwen-tts-stage3": Recipe(configure=qwen_tts_stage3, study=stage_study("qwen-tts")),
    "qwen-tts-stage4": Recipe(configure=qwen_tts_stage4, study=stage_study("qwen-tts")),
    "rope-reset": Recipe(configure=rope_reset, study=ENDLESS),
}


def help_line(name: str) -> str:
    """First line of the recipe's file: what it asks."""
    recipe = RECIPES[name]
    module = inspect.getmodule(recipe.described_by or recipe.configure)
    assert module is not None and module.__doc__ is not None
    return module.__doc__.splitlines()[0]
