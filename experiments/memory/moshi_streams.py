"""Moshi: its temporal transformer in streaming, whose rings are allocated before the first frame.

In a module of its own: the package moshi looks for a GPU when it is imported, which a process that arms are forked
from must not do (CUDA cannot be started again in a fork).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from moshi.models.lm import LMModel
from torch import Tensor

from backbones.moshi import MoshiConfig, build_lm, describe, mount, set_context, ttt_layers
from experiments.memory.accounting import ConversationMemory, state_bytes
from experiments.memory.configuration import Arrangement
from experiments.memory.layers import layers_with_ttt
from ttt_core import TTTConfig

MIXER = ".self_attn"


class MoshiSubject:
    """Moshi's language model with an arrangement mounted; see `accounting.Subject`."""

    holds_all_at_once = True

    def __init__(self, arrangement: Arrangement, *, device: str, is_small: bool, mini_batch_size: int) -> None:
        """Random weights in bfloat16: the published dimensions, or the same kind of model that runs in no time."""
        config = MoshiConfig.at_scale("smoke" if is_small else "full")
        assert config.context is not None
        self.lm = build_lm(config, device=device, dtype=torch.bfloat16)
        self.context_positions = config.context
        if arrangement.ring_positions is not None:
            set_context(self.lm, arrangement.ring_positions)
        chosen = layers_with_ttt(arrangement, config.num_layers)
        ttt = None
        if arrangement.inner_model is not None:
            ttt = TTTConfig(
                hidden_size=config.dim, num_heads=config.num_heads, inner_model=arrangement.inner_model,
                mini_batch_size=mini_batch_size,
            )  # fmt: skip
        if chosen or arrangement.window is not None:
            mount(self.lm, chosen, ttt, window=arrangement.window, sinks=arrangement.sinks)
        mounted = ttt_layers(self.lm)
        self.memory = ConversationMemory(
            layers=describe(self.lm), hidden_state_bytes_per_position=0, generator_bytes_per_said_token=0,
            generator_bytes_fixed=0, state=state_bytes(mounted), ttt_layers=len(mounted),
        )  # fmt: skip
        self.weights_bytes = sum(parameter.nbytes for parameter in self.lm.parameters())

    @contextmanager
    def open_stream(self, rows: int) -> Iterator[MoshiStream]:
        with self.lm.streaming(rows):
            yield MoshiStream(self.lm, rows)

    def weights(self) -> Iterator[Tensor]:
        yield from self.lm.parameters()
        yield from self.lm.buffers()


class MoshiStream:
    """B conversations, frame by frame; see `accounting.Stream`."""

    def __init__(self, lm: LMModel, rows: int) -> None:
        self._lm, self._rows = lm, rows

    @property
    def held(self) -> object:
        """The states of the temporal transformer's attention and TTT; those around them are flags of a byte a row."""
        return {name: state for name, state in self._lm.get_streaming_state().items() if name.endswith(MIXER)}

    @torch.no_grad()
    def advance(self, positions: int) -> None:
        lm = self._lm
        for _ in range(positions):  # one frame a call: the published ring has no room for more
            codes = torch.randint(0, lm.card, (self._rows, lm.num_codebooks, 1), device=lm.device)
            lm.forward_text(codes)

    def say(self, tokens: int) -> None:
        """Nothing: the same frames hear and say."""
