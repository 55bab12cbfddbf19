"""What a trained Moshi says where a fact is asked for in a validation conversation, as text and as sound."""

from __future__ import annotations

from pathlib import Path

import torch
from moshi.models.lm import LMModel
from moshi.utils.sampling import sample_token
from torch import Tensor

from backbones.moshi import delayed_sequence
from backbones.speech import SPEECH_SAMPLE_RATE_HZ, write_audio
from experiments.data.dataset import ConversationSet
from experiments.data.framing import UNITS_PER_FRAME, FramedConversation, FramedTurn
from experiments.spoken.artifacts import numbers_line, write_sample_text
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.loader import MoshiLoader
from experiments.spoken.moshi.model import able_to_stream

# As the package's own generation draws.
TEXT_TEMPERATURE, TEXT_TOP_K = 0.7, 25
AUDIO_TEMPERATURE, AUDIO_TOP_K = 0.8, 250


def save_sample(
    config: MoshiExperiment, model: LMModel, dataset: ConversationSet, loader: MoshiLoader, folder: Path
) -> list[Path]:
    """`sample.wav` and `sample.txt`: the model goes on by itself from where the answer's text should begin.

    Drawn as the package draws, by the run's seed. Whatever comes is kept, silence too. `sample_expected.wav` is what
    the conversation has there, through the same way from units to sound: the best it can get.
    """
    framed = loader.framed(dataset, dataset.split_indices("validation")[0])
    turn = _asked_turn(framed)
    codes = loader.codes_of(framed)[None].to(model.device)
    frames = min(config.evaluation.sample_new_positions, len(framed) - turn.start - max(model.delays))
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        text, own = continued(model, codes, turn.start, frames)
    said = text[text != model.text_padding_token_id].tolist()
    expected = framed.own[turn.start : turn.start + frames]
    for name, units in (("sample", own), ("sample_expected", expected)):
        samples = dataset.codebook.to_waveform(units.clamp(max=dataset.codebook.size - 1).flatten())
        write_audio(folder / f"{name}.wav", samples, SPEECH_SAMPLE_RATE_HZ)
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


@torch.no_grad()
def continued(lm: LMModel, codes: Tensor, first: int, frames: int) -> tuple[Tensor, Tensor]:
    """Text (frames,) and units (frames, 4) that the model makes from frame `first` on, given all before it.

    codes (1, 1 + n_q, T): what is heard goes on as they have it, and their own text and units from `first` on are not
    looked at. Units whose delay reaches beyond the last step are left as the codes have them. On the CPU.
    """
    sequence = delayed_sequence(lm, codes).clone()
    own = range(lm.audio_offset, lm.audio_offset + UNITS_PER_FRAME)
    with able_to_stream(lm, first + 1 + frames, first + 1), lm.streaming(1):
        states, text_logits = lm.forward_text(sequence[:, :, : first + 1])
        for step in range(first, first + frames):
            frame = sequence[:, :, step + 1 : step + 2]  # a view: what is drawn is read by the steps to come
            frame[:, 0] = sample_token(text_logits[:, 0, -1:].float(), True, TEXT_TEMPERATURE, TEXT_TOP_K)
            for codebook, stream in enumerate(own):
                if step - lm.delays[stream] < first:
                    continue  # still a unit of a frame that is given
                logits = lm.forward_depformer_training(frame, states[:, -1:])[:, codebook]
                frame[:, stream] = sample_token(logits.float(), True, AUDIO_TEMPERATURE, AUDIO_TOP_K)
            states, text_logits = lm.forward_text(frame)
    ends = [first + 1 + lm.delays[stream] for stream in own]
    units = torch.stack([sequence[0, stream, end : end + frames] for stream, end in zip(own, ends, strict=True)], dim=1)
    return sequence[0, 0, first + 1 : first + 1 + frames].cpu(), units.cpu()


def _asked_turn(framed: FramedConversation) -> FramedTurn:
    """The turn of the last recall; the last turn where no fact is asked for."""
    if not framed.recalls:
        return framed.turns[-1]
    value = framed.recalls[-1].value_positions[0]
    return next(turn for turn in framed.turns if turn.start <= value < turn.sound)
