"""From a row to a model: what is trained, and the same weights under another window."""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import MoshiConfig, build_lm, mount
from experiments.fact_streams.spec import FactStreamSpec
from experiments.wraparound.configuration import ModelSizes, Training, WraparoundExperiment


def moshi_config(sizes: ModelSizes, stream: FactStreamSpec, window: int | None) -> MoshiConfig:
    """Moshi's temporal transformer in small: one text stream that is said and two that are heard."""
    return MoshiConfig(
        dim=sizes.dim,
        num_heads=sizes.num_heads,
        num_layers=sizes.num_layers,
        hidden_scale=sizes.hidden_scale,
        max_period=sizes.max_period,
        norm="rms_norm_f32",
        gating="silu",
        positional_embedding="rope",
        context=window,
        n_q=2,
        dep_q=0,
        delays=(0, 0, 0),
        card=stream.heard_codes,
        text_card=stream.text_tokens,
        existing_text_padding_id=0,
    )


def build_trained(experiment: WraparoundExperiment, training: Training) -> LMModel:
    """The untrained model of a training. All trainings of a seed share every weight that is not TTT's own."""
    return _build(experiment, training, training.window, training.sinks)


def build_viewed(
    experiment: WraparoundExperiment, training: Training, window: int | None, sinks: int, weights: dict[str, Tensor]
) -> LMModel:
    """The trained weights in a model whose attention sees `window` positions, and pinned first ones before them."""
    lm = _build(experiment, training, window, sinks)
    lm.load_state_dict(weights)
    return lm.eval()


def _build(experiment: WraparoundExperiment, training: Training, window: int | None, sinks: int) -> LMModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(experiment.seed)
        lm = build_lm(moshi_config(experiment.model, experiment.stream, window))
        torch.manual_seed(experiment.seed + 1)  # TTT's own weights do not depend on how many the model drew
        top = experiment.model.num_layers - 1
        if training.ttt is not None:
            mount(
                lm, [top], training.ttt, training.mode, window=window if sinks else None, sinks=sinks if window else 0
            )
        elif sinks and window is not None:
            mount(lm, [], window=window, sinks=sinks)
    return lm
