"""What a trained Qwen + Mimi says where a fact is asked for in a validation conversation, as text and as sound."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.qwen_mimi import SAMPLED, FrameChoice, QwenMimi
from backbones.speech.mimi import MimiTokenizer
from experiments.data.dataset import ConversationSet
from experiments.spoken.frame_sample import save_frame_sample, sound_of_units
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.qwen_mimi.loader import QwenMimiLoader
from experiments.spoken.qwen_mimi.module import streams_of


def save_sample(
    config: QwenMimiExperiment, model: QwenMimi, dataset: ConversationSet, loader: QwenMimiLoader, folder: Path
) -> list[Path]:
    """See `save_frame_sample`."""
    sounds = sound_of_units(dataset)
    if config.codes == "mimi":
        assert model.mimi is not None, "build_model refuses a model without Mimi"
        sounds = partial(_sound_of_codes, model.mimi)
    return save_frame_sample(
        config, partial(continued, model), sounds, model.device, dataset, loader, unsayable_frames=0, folder=folder
    )


def continued(
    model: QwenMimi, codes: Tensor, first: int, frames: int, choice: FrameChoice = SAMPLED
) -> tuple[Tensor, Tensor]:
    """Text (frames,) and codes (frames, Q) that the model makes from frame `first` on, given all before it.

    codes (1, 1 + 2Q, T): what is heard goes on as they have it, and their own text and codes from `first` on are not
    looked at. On the CPU.
    """
    text, said, heard = streams_of(codes, model.config.codebooks)
    stream = model.stream()
    if first:
        stream.read(text[:, :first], said[:, :, :first], heard[:, :, :first])
    made = [stream.say(choice)]
    for frame in range(first, first + frames - 1):
        stream.hear(heard[:, :, frame])
        made.append(stream.say(choice))
    return torch.cat([frame.text for frame in made]).cpu(), torch.cat([frame.codes for frame in made]).cpu()


def _sound_of_codes(mimi: MimiTokenizer, codes: Tensor) -> tuple[NDArray, int]:
    return mimi.decode(codes.T.contiguous()), mimi.sample_rate_hz
