"""Mounting TTT and windowed attention on transformers decoders."""

from backbones.mounting.cache import MountedCache
from backbones.mounting.describe import LayerMemory, MemoryDescription, describe
from backbones.mounting.difference import load_ttt, save_ttt, ttt_state_dict
from backbones.mounting.host import (
    TransformersHost,
    gates,
    load_mounted,
    model_cache,
    mount,
    mounted_decoder,
    ttt_layers,
)
from backbones.mounting.saved_cache import cache_tensors, filled_cache, load_cache, save_cache

__all__ = [
    "LayerMemory",
    "MemoryDescription",
    "MountedCache",
    "TransformersHost",
    "cache_tensors",
    "describe",
    "filled_cache",
    "gates",
    "load_cache",
    "load_mounted",
    "load_ttt",
    "model_cache",
    "mount",
    "mounted_decoder",
    "save_cache",
    "save_ttt",
    "ttt_layers",
    "ttt_state_dict",
]
