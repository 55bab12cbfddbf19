"""Moshi's language model with random weights, of any size and on any device."""

from __future__ import annotations

import torch
from moshi.models.lm import LMModel

from backbones.moshi.config import MoshiConfig


def build_lm(config: MoshiConfig, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LMModel:
    """The package's `LMModel` of that config, initialised by the package, in eval mode as its own loader gives it.

    On the device "meta" the published 7B takes a fraction of a second and no memory.
    """
    # The package makes some layers on the default device and moves them; so none is ever made elsewhere.
    with torch.device(device):
        return LMModel(device=device, dtype=dtype, **config.lm_arguments()).eval()
