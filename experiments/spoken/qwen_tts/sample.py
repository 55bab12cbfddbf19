"""What a trained Qwen answers to the last fact asked for in a validation conversation, as text and as sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from backbones.qwen_tts import TokenStream
from backbones.speech import write_audio
from backbones.text import TokenChoice
from backbones.tts import SAMPLE_RATE_HZ, TTSEngine, load_engine
from backbones.tts.text import cleaned, has_word, without_unreadable
from experiments.data.dataset import ConversationSet
from experiments.spoken.artifacts import numbers_line, write_sample_text
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.loader import QwenLoader

LANGUAGE = "en-us"


def save_sample(
    config: QwenExperiment, model: PreTrainedModel, dataset: ConversationSet, loader: QwenLoader, folder: Path
) -> list[Path]:
    """`sample.wav` and `sample.txt`: what the model writes, greedily, to its own end, and espeak-ng says.

    Where it writes no word there is no `sample.wav`, and the text file says so. `sample_expected.wav` is the right
    answer in the same voice.
    """
    index = dataset.split_indices("validation")[0]
    packed = loader.packed(dataset, index)
    asked = [
        turn for turn in packed.spoken_turns for r in packed.recalls if turn.start <= r.value_positions[0] < turn.end
    ]
    # Who only listens says nothing: of recordings, the last turn with words is asked for.
    worded = [own for own in packed.spoken_turns if own.end - own.start > 1]
    turn = (asked or worded or list(packed.spoken_turns))[-1]
    number = packed.spoken_turns.index(turn)
    question, answer = dataset[index].turns[2 * number : 2 * number + 2]
    prompt_ids, most = packed.input_ids[: turn.start], config.evaluation.sample_new_positions
    ids = written(model, prompt_ids, most, dataset.tokenizer.eos_id)
    text = dataset.tokenizer.decode(ids)
    engine = load_engine("espeak", language=LANGUAGE, unreadable="skip")
    is_said = say(engine, text, folder / "sample.wav")
    is_expected_said = say(engine, answer.text, folder / "sample_expected.wav")
    lines = {
        "conversation": f"{packed.name}, answer at positions {turn.start} to {turn.end}",
        "question (read)": question.text,
        "expected text": answer.text,
        "generated text": text,
        "generated token ids": numbers_line(ids),
        "sound": "sample.wav, by espeak-ng" if is_said else "NONE: the model wrote no word",
        "sound of the expected text": "sample_expected.wav" if is_expected_said else "NONE: no word that a voice reads",
    }
    sounds = [("sample.wav", is_said), ("sample_expected.wav", is_expected_said)]
    return [write_sample_text(folder, lines), *(folder / name for name, is_there in sounds if is_there)]


def written(model: PreTrainedModel, prompt_ids: torch.Tensor, most: int, end_id: int) -> list[int]:
    """At most so many ids that the model writes after a prompt (T,), one at a time, its end not among them."""
    stream = TokenStream(model, TokenChoice(min_new_tokens=1, end_token_ids=(end_id,)))
    stream.read(prompt_ids)
    ids: list[int] = []
    while len(ids) < most and (token_id := stream.write()) != end_id:
        ids.append(token_id)
    return ids


def say(engine: TTSEngine, text: str, path: Path) -> bool:
    """Writes how the engine says a text; False, and no file, where an English voice reads no letter or digit in it.

    A model at its beginning writes bytes at random, and what no voice reads is left out of the sound.
    """
    if not has_word(without_unreadable(cleaned(text), LANGUAGE)):
        return False
    write_audio(path, np.concatenate([sentence.samples for sentence in engine.speak(text)]), SAMPLE_RATE_HZ)
    return True
