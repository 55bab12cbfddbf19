"""From a row of an experiment to a Qwen: the same initial weights for every arm, then what the arm mounts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from transformers import PreTrainedModel

from backbones.mounting import MemoryDescription, describe
from backbones.qwen_tts import QwenConfig, random_llm, read_llm
from experiments.data.dataset import ConversationSet
from experiments.spoken.arms import mount_on_decoder
from experiments.spoken.backbone import DataSizes
from experiments.spoken.configuration import Arm
from experiments.spoken.prepared_data import require_vocabularies
from experiments.spoken.qwen_tts.configuration import QwenExperiment

DIMENSIONS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "tie_word_embeddings",
)  # fmt: skip


def build_model(config: QwenExperiment, arm: Arm, weights: Path | None) -> PreTrainedModel:
    """The model of one arm. All arms of a seed share every weight that is not TTT's own.

    weights: folder of a published checkpoint; None draws random weights from the run's seed.

    Raises:
        ValueError: the checkpoint has other dimensions than the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        llm = random_llm(config.model) if weights is None else _loaded(weights, config)
        torch.manual_seed(config.seed + 1)  # TTT's own weights do not depend on how many the model drew
        mount_on_decoder(llm, arm)
    return llm


def memory_of(config: QwenExperiment, arm: Arm) -> MemoryDescription:
    """What one conversation takes, keys and values in the dtype that the training computes in."""
    with torch.device("meta"):
        llm = random_llm(config.model)
        if config.training.precision != "32-true":
            llm = llm.to(torch.bfloat16)
        mount_on_decoder(llm, arm)
    return describe(llm)


def check_data(config: QwenExperiment, dataset: ConversationSet) -> None:
    """Raises ValueError where the data has text tokens that the model does not know."""
    needed = dataset.tokenizer.vocab_size
    require_vocabularies({"text tokens": (needed, config.model.vocab_size, "model.vocab_size")})


def fitted(model: QwenConfig, sizes: DataSizes) -> QwenConfig:
    """The model with the data's vocabulary."""
    return dataclasses.replace(model, vocab_size=sizes.text_tokens)


def _loaded(weights: Path, config: QwenExperiment) -> PreTrainedModel:
    # Under mixed precision the trained weights stay FP32; what a folder stores is BF16.
    dtype = torch.bfloat16 if config.training.precision == "bf16-true" else torch.float32
    llm = read_llm(weights, dtype)
    found, expected = llm.config.to_dict(), _expected(config.model)
    differing = [
        f"{name} {found[name]} instead of {expected[name]}" for name in DIMENSIONS if found[name] != expected[name]
    ]
    if differing:
        raise ValueError(f"--weights {weights} does not fit this scale's model: {', '.join(differing)}")
    return llm


def _expected(model: QwenConfig) -> dict[str, object]:
    return model.llm_config().to_dict()
