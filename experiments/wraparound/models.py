"""From a row to a model: what is trained, and the same weights under another window."""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import build_lm, mount, set_context
from experiments.fact_streams.models import moshi_config
from experiments.wraparound.configuration import Training, WraparoundExperiment


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
        torch.manual_seed(2 * experiment.seed)
        lm = build_lm(moshi_config(experiment.model, experiment.stream, window))
        torch.manual_seed(2 * experiment.seed + 1)  # TTT's own weights do not depend on how many the model drew
        top = experiment.model.num_layers - 1
        if training.ttt is not None:
            mount(
                lm, [top], training.ttt, training.mode, window=window if sinks else None, sinks=sinks if window else 0
            )
        elif sinks and window is not None:
            mount(lm, [], window=window, sinks=sinks)
        elif training.top_window is not None:
            set_context(lm, training.top_window, layers=[top])
    return lm
