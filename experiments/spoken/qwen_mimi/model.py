"""From a row of an experiment to a Qwen + Mimi: the same initial weights for every arm, then what the arm mounts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch

from backbones.config_file import read_config_file
from backbones.mounting import MemoryDescription, describe, mount, save_ttt, ttt_layers
from backbones.mounting.decoder import MountedDecoder
from backbones.qwen_mimi import RESERVED_TEXT_IDS, QwenMimi, QwenMimiConfig, load
from backbones.speech.mimi import MimiTokenizer
from experiments.data.dataset import ConversationSet
from experiments.spoken.arms import windows_of
from experiments.spoken.backbone import DataSizes
from experiments.spoken.configuration import Arm
from experiments.spoken.prepared_data import require_vocabularies
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.recorded_plan import RecordedPlan
from ttt_core import TTTLayer

NEEDS_MIMI = (
    "codes='mimi' reads sound through a trained Mimi: give --weights a folder with transformers' Mimi (config.json, "
    "model.safetensors), or a folder of this model with that in its mimi/"
)


def build_model(config: QwenMimiExperiment, arm: Arm, weights: Path | None) -> QwenMimi:
    """The model of one arm. All arms of a seed share every weight that is not TTT's own.

    weights: folder of a saved model, or of a Mimi alone, whose model then has random weights from the run's seed, as
    without any folder.

    Raises:
        ValueError: the folder's model has other dimensions than the configuration, or it lacks the Mimi that is needed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = QwenMimi(config.model) if weights is None else _from_folder(weights, config)
        torch.manual_seed(config.seed + 1)  # TTT's own weights do not depend on how many the model drew
        mount_arm(model, arm)
    if config.codes == "mimi" and model.mimi is None:
        raise ValueError(NEEDS_MIMI)
    return model


def mount_arm(model: QwenMimi, arm: Arm) -> None:
    """Puts what `arm` says into the decoder over frames, in place."""
    windows = windows_of(arm, model.config.num_hidden_layers) or None
    if arm.ttt is not None:
        mount(model.decoder, layers=arm.upper_layers, config=arm.ttt, window=windows, sinks=arm.sinks)
    elif windows:
        mount(model.decoder, layers=(), window=windows, sinks=arm.sinks)


def memory_of(config: QwenMimiExperiment, arm: Arm) -> MemoryDescription:
    """What one conversation takes in the decoder over frames, keys in the dtype that the training computes in.

    The depth decoder keeps nothing from frame to frame.
    """
    with torch.device("meta"):
        model = QwenMimi(config.model)
        if config.training.precision != "32-true":
            model = model.to(torch.bfloat16)
        mount_arm(model, arm)
    return describe(model.decoder)


def ttt_layers_of(model: QwenMimi) -> Mapping[int, TTTLayer]:
    """{layer: its TTT layer}, of a model without TTT too."""
    return ttt_layers(model.decoder) if isinstance(model.decoder, MountedDecoder) else {}


def save_difference(model: QwenMimi, path: Path) -> None:
    """What mounting added and training made of it."""
    save_ttt(model.decoder, path)


def check_data(config: QwenMimiExperiment, dataset: ConversationSet) -> None:
    """Raises ValueError where the data has text tokens or units that the model does not know, or a Mimi is lacking."""
    model = config.model
    needs = {"text tokens": (dataset.tokenizer.vocab_size, model.no_text_id, "model.text_vocab_size")}
    if config.codes == "units":
        needs["speech units"] = (dataset.codebook.size, model.codebook_size, "model.codebook_size")
    elif config.weights_digest is None:
        raise ValueError(NEEDS_MIMI)
    elif isinstance(config.data, RecordedPlan) and len(dataset.pool.silent_codes()) != model.codebooks:
        raise ValueError(
            f"the recordings have {len(dataset.pool.silent_codes())} codes a frame, the model reads {model.codebooks}: "
            f"prepare them with --codebooks {model.codebooks}"
        )
    require_vocabularies(needs)


def fitted(model: QwenMimiConfig, sizes: DataSizes) -> QwenMimiConfig:
    """The model with the data's vocabularies."""
    return dataclasses.replace(model, codebook_size=sizes.units, text_vocab_size=sizes.text_tokens + RESERVED_TEXT_IDS)


def _from_folder(weights: Path, config: QwenMimiExperiment) -> QwenMimi:
    if read_config_file(weights / "config.json").get("model_type") == "mimi":
        model = QwenMimi(config.model)
        model.attach_mimi(MimiTokenizer.from_folder(weights, config.model.codebooks))
        return model
    model = load(weights)
    if isinstance(model.decoder, MountedDecoder):
        raise ValueError(f"--weights {weights} holds a mounted model: give one that was saved before mounting")
    differing = [
        f"{field.name} {getattr(model.config, field.name)} instead of {getattr(config.model, field.name)}"
        for field in fields(config.model)
        if getattr(model.config, field.name) != getattr(config.model, field.name)
    ]
    if differing:
        raise ValueError(f"--weights {weights} does not fit this scale's model: {', '.join(differing)}")
    return model.train()
