"""Moshi's transformer in little with TTT in the place of its top attention, for the experiments on long streams."""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel

from backbones.moshi import build_lm, mount
from experiments.fact_streams.configuration import ModelSizes
from experiments.fact_streams.models import moshi_config
from experiments.fact_streams.spec import FactStreamSpec
from ttt_core import TTTConfig


def build_with_ttt_on_top(sizes: ModelSizes, stream: FactStreamSpec, seed: int, ttt: TTTConfig | None) -> LMModel:
    """The untrained model; all of a seed share every weight that is not TTT's own. None leaves the attention there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lm = build_lm(moshi_config(sizes, stream, sizes.context))
        torch.manual_seed(seed + 1)  # TTT's own weights do not depend on how many the model drew
        window = sizes.context if sizes.pinned else None
        if ttt is not None:
            mount(lm, [sizes.num_layers - 1], ttt, "replace", window=window, sinks=sizes.pinned)
        elif window is not None:
            mount(lm, [], window=window, sinks=sizes.pinned)
    return lm
