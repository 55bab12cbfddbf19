"""From a row of an experiment to a Llama-Omni: the same initial weights for every arm, then what the arm mounts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from backbones.llama_omni import LlamaOmni, LlamaOmniConfig
from backbones.llama_omni.speech_encoder import positions_per_window
from backbones.mounting import MemoryDescription, describe, save_ttt, ttt_layers
from experiments.data.dataset import ConversationSet
from experiments.spoken.arms import mount_on_decoder
from experiments.spoken.backbone import DataSizes
from experiments.spoken.configuration import Arm
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment
from experiments.spoken.prepared_data import require_vocabularies
from ttt_core import TTTLayer


def build_model(config: LlamaOmniExperiment, arm: Arm, weights: Path | None) -> LlamaOmni:
    """The model of one arm. All arms of a seed share every weight that is not TTT's own.

    weights: folder of a published checkpoint; None draws random weights from the run's seed.

    Raises:
        ValueError: the checkpoint has other dimensions than the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaOmni(config.model) if weights is None else _loaded(weights, config.model)
        torch.manual_seed(config.seed + 1)  # TTT's own weights do not depend on how many the model drew
        mount_on_decoder(model.llm, arm)
    return model


def memory_of(config: LlamaOmniExperiment, arm: Arm) -> MemoryDescription:
    """What one conversation takes in the language model, keys and values in the dtype that the training computes in.

    Under mixed precision the parameters are FP32 and the keys BF16, so the trained model itself would tell too much.
    """
    with torch.device("meta"):
        model = LlamaOmni(config.model)
        if config.training.precision != "32-true":
            model = model.to(torch.bfloat16)
        mount_on_decoder(model.llm, arm)
    return describe(model.llm)


def ttt_layers_of(model: LlamaOmni) -> Mapping[int, TTTLayer]:
    """{layer: its TTT layer}."""
    return ttt_layers(model.llm)


def save_difference(model: LlamaOmni, path: Path) -> None:
    """What mounting added and training made of it."""
    save_ttt(model.llm, path)


def check_data(config: LlamaOmniExperiment, dataset: ConversationSet) -> None:
    """Raises ValueError where the data has text tokens, units or mel bands that the model does not know."""
    model = config.model
    require_vocabularies(
        {
            "text tokens": (dataset.tokenizer.vocab_size, model.vocab_size, "model.vocab_size"),
            "speech units": (dataset.codebook.size, model.unit_vocab_size, "model.unit_vocab_size"),
        }
    )
    if dataset.codebook.n_mels != model.speech_encoder_mel_bins:
        raise ValueError(
            f"the data has {dataset.codebook.n_mels} mel bands, the model's encoder reads "
            f"{model.speech_encoder_mel_bins}; make n_mels of the data (recordings: --n-mels) and "
            "model.speech_encoder_mel_bins equal"
        )


def fitted(model: LlamaOmniConfig, sizes: DataSizes) -> LlamaOmniConfig:
    """The model with the data's vocabularies and mel bands."""
    return dataclasses.replace(
        model, vocab_size=sizes.text_tokens, unit_vocab_size=sizes.units, speech_encoder_mel_bins=sizes.n_mels
    )


def speech_positions_of(model: LlamaOmniConfig) -> Callable[[int], int]:
    """Positions that so many mel frames take, as `LlamaOmni.speech_positions` counts them."""
    return lambda mel_frames: sum(positions_per_window(mel_frames, model))


def _loaded(weights: Path, wanted: LlamaOmniConfig) -> LlamaOmni:
    model = LlamaOmni.from_checkpoint(weights)
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "speech_encoder_hidden_size", "speech_encoder_ds_rate", "unit_vocab_size",
        "ctc_decoder_config",
    )  # fmt: skip
    found, expected = vars(model.config), vars(wanted)
    differing = [f"{name} {found[name]} instead of {expected[name]}" for name in names if found[name] != expected[name]]
    if differing:
        raise ValueError(f"--weights {weights} does not fit this scale's model: {', '.join(differing)}")
    return model
