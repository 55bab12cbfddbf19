"""Six published models, built without weights: how many parameters, how many positions a second, how long a context?

Dimensions and facts are those of `backbones/published`. The same at every scale, on any machine and for every seed.
"""

from __future__ import annotations

from experiments.counting.cards import card_digest
from experiments.counting.configuration import ModelCardsExperiment, PublishedModel
from experiments.harness.study import Scale

CARDS = {
    "moshi": "moshi.toml",
    "llama-omni": "llama_omni.toml",
    "mini-omni": "mini_omni.toml",
    "qwen2-audio": "qwen2_audio.toml",
    "spirit-lm": "spirit_lm.toml",
    "vita": "vita.toml",
}


def model_cards(*, scale: Scale, seed: int) -> ModelCardsExperiment:
    return ModelCardsExperiment(
        recipe="model-cards",
        scale=scale,
        seed=seed,
        arms=tuple(PublishedModel(name=name, card=card, card_digest=card_digest(card)) for name, card in CARDS.items()),
    )
