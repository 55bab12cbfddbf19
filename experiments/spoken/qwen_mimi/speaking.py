"""Qwen + Mimi in a conversation without an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from backbones.qwen_mimi import SAMPLED, FrameStream, QwenMimi
from experiments.data.dataset import ConversationSet
from experiments.data.framing import UNITS_PER_FRAME
from experiments.harness.held_tensors import held_bytes
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.qwen_mimi.loader import PADDING_ID
from experiments.spoken.speaking import FrameSpeaker, StepFrame


class QwenMimiSpeaker(FrameSpeaker):
    """Hears and says a frame at a time, drawn as moshi's own generation draws."""

    def __init__(self, config: QwenMimiExperiment, model: QwenMimi, dataset: ConversationSet) -> None:
        """ValueError for a model of Mimi's codes: what is measured along a stream are the data's units."""
        if config.codes != "units":
            raise ValueError(f"long streams are measured in the data's units; this model says {config.codes!r} codes")
        super().__init__(dataset, model.config.no_text_id, model.config.codebooks, PADDING_ID)
        self._model = model
        self._stream: FrameStream | None = None

    def held_bytes(self) -> int:
        return held_bytes(self._stream)

    @contextmanager
    def stepping(self, rows: int, seed: int, frames: int) -> Iterator[StepFrame]:
        choice = replace(SAMPLED, random=torch.Generator(self._model.device).manual_seed(seed))
        stream = self._stream = self._model.stream(rows)

        def step(heard: Tensor) -> tuple[Tensor, Tensor]:
            said = stream.say(choice)
            stream.hear(heard)
            return said.text, said.codes[:, :UNITS_PER_FRAME]

        yield step
