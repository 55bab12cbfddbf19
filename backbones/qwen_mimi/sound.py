"""From sound to sound: what is heard as Mimi's codes, the answer as codes, and these as sound again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike
from torch import Tensor

from backbones.qwen_mimi.model import QwenMimi
from backbones.qwen_mimi.streaming import SAMPLED, FrameChoice, SaidFrame
from backbones.speech.mimi import MimiTokenizer, Samples

if TYPE_CHECKING:
    from backbones.moshi.mimi import MimiDecodingStream


def heard_frames(mimi: MimiTokenizer, blocks: Iterable[ArrayLike], sample_rate_hz: int) -> Iterator[Tensor]:
    """Codes (1, Q) of frame after frame of a mono sound that comes in blocks of any size, as soon as each is whole.

    The last frame is filled up with silence. Raises ValueError where the blocks hold no sound.
    """
    stream = mimi.stream(sample_rate_hz)
    frames = 0
    for block in blocks:
        for frame in stream.push(block).unbind(dim=1):
            frames += 1
            yield frame[None]
    for frame in stream.finish().unbind(dim=1):
        frames += 1
        yield frame[None]
    if not frames:
        raise ValueError("no sound was heard: give at least one sample")


def answer(
    model: QwenMimi, samples: ArrayLike, sample_rate_hz: int, choice: FrameChoice = SAMPLED
) -> tuple[SaidFrame, Samples]:
    """What the model says while it hears a whole recording (time,), and its sound at Mimi's rate, decoded offline.

    Text (1, T + 1) and codes (1, Q, T + 1) for T frames heard. Raises ValueError where the model has no Mimi.
    """
    mimi = _mimi_of(model)
    said = model.generate(mimi.encode(samples, sample_rate_hz)[None].to(model.device), choice)
    return said, mimi.decode(said.codes[0].cpu())


def converse(
    model: QwenMimi, decoding: MimiDecodingStream, blocks: Iterable[ArrayLike], sample_rate_hz: int,
    choice: FrameChoice = SAMPLED,
) -> Iterator[tuple[SaidFrame, Samples]]:  # fmt: skip
    """Each frame as it is said, with its 80 ms of sound, while sound comes in: full duplex, a frame at a time.

    decoding: an open stream of `backbones.moshi.mimi.StreamingMimiDecoder`, whose sound is exact frame by frame, with
    the model's codebooks. Raises ValueError where the model has no Mimi to hear through.
    """
    for said in model.generate_stream(heard_frames(_mimi_of(model), blocks, sample_rate_hz), choice):
        yield said, decoding.push(said.codes.T.cpu())


def _mimi_of(model: QwenMimi) -> MimiTokenizer:
    if model.mimi is None:
        raise ValueError(
            "the model has no Mimi to hear through: model.attach_mimi(MimiTokenizer.from_folder(folder, codebooks)), "
            "with a Mimi in transformers' format"
        )
    return model.mimi
