"""What a trained Llama-Omni answers to the last fact asked for in a validation conversation, as text and as sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from backbones.llama_omni import LlamaOmni
from backbones.speech import SPEECH_SAMPLE_RATE_HZ, write_audio
from experiments.data.dataset import ConversationSet
from experiments.spoken.artifacts import numbers_line, write_sample_text
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment
from experiments.spoken.llama_omni.loader import LlamaOmniLoader


@dataclass(frozen=True)
class _Prompt:
    """A validation conversation up to where the assistant has to answer, and what it should say there."""

    input_ids: torch.Tensor
    speech_ids: list[str]
    expected: str
    question: str
    where: str
    expected_units: torch.Tensor
    expected_durations: torch.Tensor


def save_sample(
    config: LlamaOmniExperiment, model: LlamaOmni, dataset: ConversationSet, loader: LlamaOmniLoader, folder: Path
) -> list[Path]:
    """`sample.wav` and `sample.txt`. Whatever the model says is kept.

    Where it says no unit at all there is no `sample.wav`, and the text file says so. `sample_expected.wav` is the right
    answer's own units through the same way from units to sound: the best it can get.
    """
    prompt = _sample_prompt(dataset, loader)
    speech = loader.encoded.frames(dataset, prompt.speech_ids).to(model.device)
    reply = model.generate(
        prompt.input_ids[None].to(model.device),
        speech,
        max_new_tokens=config.evaluation.sample_new_positions,
        min_new_tokens=1,
    )
    units = reply.units.cpu()
    written = [folder / "sample_expected.wav"]
    expected = dataset.codebook.to_waveform(prompt.expected_units, prompt.expected_durations)
    write_audio(folder / "sample_expected.wav", expected, SPEECH_SAMPLE_RATE_HZ)
    sound = "NONE: the model said no unit, only blanks"
    if units.numel():
        # CTC tells the order of units and not how long each lasts: each sounds as long as the right answer's mean.
        frames = max(1, round(float(prompt.expected_durations.float().mean())))
        samples = dataset.codebook.to_waveform(units, torch.full_like(units, frames))
        write_audio(folder / "sample.wav", samples, SPEECH_SAMPLE_RATE_HZ)
        written.append(folder / "sample.wav")
        sound = f"sample.wav, {frames} x 20 ms a unit"
    ids = reply.text_ids[0].tolist()
    lines = {
        "conversation": prompt.where,
        "question (spoken)": prompt.question,
        "expected text": prompt.expected,
        "generated text": dataset.tokenizer.decode(ids),
        "generated token ids": numbers_line(ids),
        "generated units": numbers_line(units.tolist()),
        "sound": sound,
        "expected units": numbers_line(prompt.expected_units.tolist()),
        "sound of the expected units": "sample_expected.wav",
    }
    return [write_sample_text(folder, lines), *written]


def _sample_prompt(dataset: ConversationSet, loader: LlamaOmniLoader) -> _Prompt:
    """The last recall of the first validation conversation; its last turn where no fact is asked for in it."""
    index = dataset.split_indices("validation")[0]
    packed = loader.packed(dataset, index)
    asked = [
        turn for turn in packed.spoken_turns for r in packed.recalls if turn.start <= r.value_positions[0] < turn.end
    ]
    turn = (asked or list(packed.spoken_turns))[-1]
    is_before = packed.spliced_positions < turn.start
    is_answer = (packed.spliced_positions >= turn.start) & (packed.spliced_positions < turn.end)
    prompt_ids = packed.input_ids[is_before]
    segments = int((prompt_ids < 0).sum())
    return _Prompt(
        input_ids=prompt_ids,
        speech_ids=list(packed.speech_segments[:segments]),
        expected=dataset.tokenizer.decode(packed.input_ids[is_answer].tolist()),
        question=dataset.pool.text(packed.speech_segments[segments - 1]),
        where=f"{packed.name}, answer at positions {turn.start} to {turn.end}",
        expected_units=turn.units,
        expected_durations=turn.durations,
    )
