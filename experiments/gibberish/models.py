"""The model: windowed attention with pinned first positions below, TTT on top; losing the pins, and leaking."""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel

from backbones.moshi import build_lm, mount
from backbones.moshi.attention import MountedAttention
from backbones.moshi.mount import attention_layers
from experiments.fact_streams.generate import FactStreams
from experiments.fact_streams.models import moshi_config
from experiments.fact_streams.module import FactStreamModule
from experiments.gibberish.configuration import GibberishExperiment
from experiments.mini_batch_leak.leaky_form import sees_whole_mini_batches
from ttt_core import TTTConfig


def build_model(experiment: GibberishExperiment, ttt: TTTConfig) -> LMModel:
    """The untrained model. All of a seed share every weight."""
    sizes = experiment.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        lm = build_lm(moshi_config(sizes, experiment.stream, sizes.context))
        mount(lm, [sizes.num_layers - 1], ttt, "replace", window=sizes.context, sinks=experiment.pinned)
    return lm


def lose_pinned_positions(lm: LMModel) -> None:
    """From here on attention sees its window alone, as when a ring overwrites the positions it began with."""
    for attention in attention_layers(lm).values():
        assert isinstance(attention, MountedAttention)
        attention.sinks = 0


class LeakyStreamModule(FactStreamModule):
    """Trains and validates with mini-batches whose every row sees the whole of them."""

    def backward_batch(self, batch: FactStreams) -> dict[str, float]:
        with sees_whole_mini_batches(self.lm):
            return super().backward_batch(batch)

    def validation_step(self, batch: FactStreams, batch_index: int) -> None:
        with sees_whole_mini_batches(self.lm):
            super().validation_step(batch, batch_index)
