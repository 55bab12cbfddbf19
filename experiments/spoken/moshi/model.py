"""From a row of an experiment to a Moshi: the same initial weights for every arm, then what the arm mounts."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from moshi.models.lm import LMModel

from backbones.moshi import (
    MoshiConfig,
    attention_layers,
    build_lm,
    describe,
    give_ring_room,
    load_lm,
    mount,
    set_context,
)
from backbones.mounting import MemoryDescription
from experiments.data.dataset import ConversationSet
from experiments.spoken.arms import windows_of
from experiments.spoken.backbone import DataSizes
from experiments.spoken.configuration import Arm
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.prepared_data import require_vocabularies


def build_model(config: MoshiExperiment, arm: Arm, weights: Path | None) -> LMModel:
    """The model of one arm. All arms of a seed share every weight that is not TTT's own.

    weights: folder of a published checkpoint; None draws random weights from the run's seed.

    Raises:
        ValueError: the checkpoint has other dimensions than the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        lm = build_lm(config.model) if weights is None else load_lm(weights, config=config.model)
        torch.manual_seed(config.seed + 1)  # TTT's own weights do not depend on how many the model drew
        mount_arm(lm, arm)
    return lm


def mount_arm(lm: LMModel, arm: Arm) -> None:
    """Puts what `arm` says into the temporal transformer, in place.

    Where an arm gives every layer the package's own context and no sinks, the model stays the package's: its ring is
    that window. Attention without a window sees the whole conversation.
    """
    windows = windows_of(arm, len(lm.transformer.layers))
    if arm.ttt is None and not arm.sinks and all(windows.get(i) == a.context for i, a in attention_layers(lm).items()):
        return
    upper = arm.upper_layers if arm.ttt is not None else ()
    if upper or windows:
        mount(lm, layers=upper, config=arm.ttt, mode="replace", window=windows or None, sinks=arm.sinks)
    set_context(lm, None, [layer for layer in attention_layers(lm) if layer not in windows])


def memory_of(config: MoshiExperiment, arm: Arm) -> MemoryDescription:
    """What one conversation takes in the temporal transformer, keys in the dtype that the training computes in."""
    dtype = torch.float32 if config.training.precision == "32-true" else torch.bfloat16
    lm = build_lm(config.model, device="meta", dtype=dtype)
    mount_arm(lm, arm)
    return describe(lm)


def check_data(config: MoshiExperiment, dataset: ConversationSet) -> None:
    """Raises ValueError where the data has text tokens or units that the model does not know."""
    model = config.model
    require_vocabularies(
        {
            "text tokens": (dataset.tokenizer.vocab_size, model.text_card, "model.text_card"),
            "speech units": (dataset.codebook.size, model.card, "model.card"),
        }
    )


def fitted(model: MoshiConfig, sizes: DataSizes) -> MoshiConfig:
    """The model with the data's vocabularies."""
    return dataclasses.replace(model, card=sizes.units, text_card=sizes.text_tokens)


@contextmanager
def able_to_stream(lm: LMModel, frames: int, frames_per_call: int) -> Generator[None]:
    """Within it the model may stream that many frames, so many in one call; afterwards it is as it was.

    Attention that sees everything has no ring until it is told how long everything is.
    """
    unbounded = [layer for layer, attention in attention_layers(lm).items() if attention.context is None]
    set_context(lm, frames, unbounded)
    give_ring_room(lm, frames_per_call)
    try:
        yield
    finally:
        give_ring_room(lm, 1)
        set_context(lm, None, unbounded)
