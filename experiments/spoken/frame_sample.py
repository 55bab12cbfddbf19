"""What a trained model that reads frames says where a fact is asked for, as text and as sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, write_audio
from experiments.data.dataset import ConversationSet
from experiments.data.framing import FramedConversation, FramedTurn
from experiments.spoken.artifacts import numbers_line, write_sample_text
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.frame_batches import FrameLoader

Continue = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
"""(codes (1, K, T), first frame, frames): text (frames,) and codes (frames, Q) that the model says there, given all
before, while what is heard goes on as the codes have it. Their own text and codes from there on are not looked at."""

Sounds = Callable[[Tensor], tuple[NDArray, int]]
"""Codes (frames, Q) to samples and their rate in Hz."""


def save_frame_sample(
    config: SpokenExperiment, continued: Continue, sounds: Sounds, device: torch.device, dataset: ConversationSet,
    loader: FrameLoader, unsayable_frames: int, folder: Path,
) -> list[Path]:  # fmt: skip
    """`sample.wav` and `sample.txt`: the model goes on by itself from where the answer's text should begin.

    Drawn by the run's seed. Whatever comes is kept, silence too. `sample_expected.wav` is what the conversation has
    there, through the same way from codes to sound: the best it can get. unsayable_frames: at the end, where a model's
    delayed codebooks would reach beyond it.
    """
    framed = loader.framed(dataset, dataset.split_indices("validation")[0])
    turn = asked_turn(framed)
    codes = loader.codes_of(framed)[None].to(device)
    frames = min(config.evaluation.sample_new_positions, len(framed) - turn.start - unsayable_frames)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        text, own = continued(codes, turn.start, frames)
    said = text[text != loader.layout.no_text_id].tolist()
    expected = framed.own[turn.start : turn.start + frames]
    for name, spoken in (("sample", own), ("sample_expected", expected)):
        samples, sample_rate_hz = sounds(spoken)
        write_audio(folder / f"{name}.wav", samples, sample_rate_hz)
    lines = {
        "conversation": f"{framed.name}, answer at frames {turn.start} to {turn.end}",
        "question (spoken)": turn.question,
        "expected text": turn.text,
        "generated text": dataset.tokenizer.decode(said),
        "generated token ids": numbers_line(said),
        "generated text stream": numbers_line(text.tolist()),
        "generated units": numbers_line(own.flatten().tolist()),
        "sound": f"sample.wav, {frames} frames of 80 ms",
        "expected units": numbers_line(expected.flatten().tolist()),
        "sound of the expected units": "sample_expected.wav",
    }
    return [write_sample_text(folder, lines), folder / "sample.wav", folder / "sample_expected.wav"]


def sound_of_units(dataset: ConversationSet) -> Sounds:
    """Sound of the data's own units; what a model says beyond them sounds as the last."""

    def sounds(units: Tensor) -> tuple[NDArray, int]:
        known = units.clamp(max=dataset.codebook.size - 1).flatten()
        return dataset.codebook.to_waveform(known), SPEECH_SAMPLE_RATE_HZ

    return sounds


def asked_turn(framed: FramedConversation) -> FramedTurn:
    """The turn of the last recall; the last turn where no fact is asked for."""
    if not framed.recalls:
        return framed.turns[-1]
    value = framed.recalls[-1].value_positions[0]
    return next(turn for turn in framed.turns if turn.start <= value < turn.sound)
