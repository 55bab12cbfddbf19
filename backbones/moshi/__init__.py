# ruff: noqa: E402  (what is checked here must be known before any module that imports moshi)
"""Moshi, and TTT mounted on its temporal transformer. See README.md."""

from __future__ import annotations

from importlib import metadata

SUPPORTED_VERSION = "0.2.13"

try:
    import moshi  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"backbones.moshi needs the package moshi {SUPPORTED_VERSION}, and {error.name} is not installed: run "
        "`make setup`, which installs the project's extra `moshi` (plain pip refuses its bounds: docs/environment.md)"
    ) from error
if metadata.version("moshi") != SUPPORTED_VERSION:
    raise ImportError(
        f"backbones.moshi is written for moshi {SUPPORTED_VERSION}, and {metadata.version('moshi')} is installed: its "
        "streaming states are not part of moshi's interface and differ between versions; run `make setup`"
    )

from backbones.moshi.attention import MountedAttention
from backbones.moshi.build import build_lm
from backbones.moshi.carried import CarriedStates, carried_states, delayed_sequence, lm_forward_with_states
from backbones.moshi.checkpoint import load_lm, write_checkpoint
from backbones.moshi.config import FRAME_RATE_HZ, MoshiConfig, Stream
from backbones.moshi.conversation import load_conversation, save_conversation
from backbones.moshi.depth_probe import DepthResets, probe_depth_resets
from backbones.moshi.describe import describe, token_cache_bytes
from backbones.moshi.difference import load_ttt, save_ttt, ttt_state_dict
from backbones.moshi.mount import attention_layers, gates, is_mounted, mount, set_inner_step_size, ttt_layers
from backbones.moshi.rings import give_ring_room, set_context
from backbones.moshi.stepping import generate_step
from backbones.moshi.streaming_ttt import StreamingTTT

__all__ = [
    "FRAME_RATE_HZ",
    "CarriedStates",
    "DepthResets",
    "MoshiConfig",
    "MountedAttention",
    "Stream",
    "StreamingTTT",
    "attention_layers",
    "build_lm",
    "carried_states",
    "delayed_sequence",
    "describe",
    "gates",
    "generate_step",
    "give_ring_room",
    "is_mounted",
    "lm_forward_with_states",
    "load_conversation",
    "load_lm",
    "load_ttt",
    "mount",
    "probe_depth_resets",
    "save_conversation",
    "save_ttt",
    "set_context",
    "set_inner_step_size",
    "token_cache_bytes",
    "ttt_layers",
    "ttt_state_dict",
    "write_checkpoint",
]
