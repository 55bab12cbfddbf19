"""Mounting TTT and windowed attention on transformers decoders."""

from backbones.mounting.cache import MountedCache
from backbones.mounting.host import (
    TransformersHost,
    gates,
    load_mounted,
    model_cache,
    mount,
    mounted_decoder,
    ttt_layers,
)

__all__ = [
    "MountedCache",
    "TransformersHost",
    "gates",
    "load_mounted",
    "model_cache",
    "mount",
    "mounted_decoder",
    "ttt_layers",
]
