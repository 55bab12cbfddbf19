"""Moshi in a conversation without an end, through the package's own generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from moshi.models.lm import LMGen, LMModel
from torch import Tensor

from backbones.moshi import describe, generate_step
from backbones.moshi.stream_tensors import nbytes_of, streaming_states
from experiments.data.dataset import ConversationSet
from experiments.data.framing import UNITS_PER_FRAME
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.model import able_to_stream
from experiments.spoken.moshi.sample import AUDIO_TEMPERATURE, AUDIO_TOP_K, TEXT_TEMPERATURE, TEXT_TOP_K
from experiments.spoken.speaking import FrameSpeaker, StepFrame


class MoshiSpeaker(FrameSpeaker):
    """Hears and says a frame at a time, drawn as the package draws.

    Attention without a window has a ring as long as the stream, made before its first frame; of it, only what is
    filled counts as held.
    """

    def __init__(self, config: MoshiExperiment, model: LMModel, dataset: ConversationSet) -> None:
        heard = model.num_codebooks - model.audio_offset - model.dep_q
        super().__init__(dataset, model.text_padding_token_id, heard, model.zero_token_id)
        self._model = model
        self._bytes_per_frame = describe(model).bytes_per_position
        self._generator: LMGen | None = None
        self._rows, self._frames, self._most_frames = 0, 0, 0

    def held_bytes(self) -> int:
        if self._generator is None:
            return 0
        allocated = sum(nbytes_of(state) for state in streaming_states(self._generator).values())
        return allocated - self._rows * self._bytes_per_frame * (self._most_frames - self._frames)

    @contextmanager
    def stepping(self, rows: int, seed: int, frames: int) -> Iterator[StepFrame]:
        model = self._model
        generator = LMGen(
            model, temp=AUDIO_TEMPERATURE, temp_text=TEXT_TEMPERATURE, top_k=AUDIO_TOP_K, top_k_text=TEXT_TOP_K
        )
        delay = max(model.delays)
        self._generator = generator
        self._rows, self._frames, self._most_frames = rows, 0, frames + delay + 1
        no_frame = (torch.full((rows,), self.no_text_id), torch.full((rows, UNITS_PER_FRAME), self.silence))

        def step(heard: Tensor) -> tuple[Tensor, Tensor]:
            made = generate_step(generator, heard.to(model.device)[:, :, None])
            self._frames += 1
            if made is None:  # the first frames of delayed codebooks are not whole yet
                return no_frame
            return made[:, 0, 0].clone(), made[:, 1 : 1 + UNITS_PER_FRAME, 0].clone()

        # The package draws from torch's own generator.
        with torch.random.fork_rng(), torch.no_grad(), able_to_stream(model, self._most_frames, 1):
            torch.manual_seed(seed)
            with generator.streaming(rows):
                yield step
