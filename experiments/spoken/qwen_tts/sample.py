"""What a trained Qwen answers to the last fact asked for in a validation conversation, as text and as sound."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from backbones.qwen_tts import TokenStream
from backbones.text import TokenChoice
from experiments.data.dataset import ConversationSet
from experiments.spoken.artifacts import numbers_line, write_sample_text
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.loader import QwenLoader


def save_sample(
    config: QwenExperiment, model: PreTrainedModel, dataset: ConversationSet, loader: QwenLoader, folder: Path
) -> list[Path]:
    """`sample.txt`: the question, the right answer, and what the model writes, greedily, to its own end."""
    index = dataset.split_indices("validation")[0]
    packed = loader.packed(dataset, index)
    asked = [
        turn for turn in packed.spoken_turns for r in packed.recalls if turn.start <= r.value_positions[0] < turn.end
    ]
    turn = (asked or list(packed.spoken_turns))[-1]
    number = packed.spoken_turns.index(turn)
    question, answer = dataset[index].turns[2 * number : 2 * number + 2]
    ids = written(
        model, packed.input_ids[: turn.start], config.evaluation.sample_new_positions, dataset.tokenizer.eos_id
    )
    text = dataset.tokenizer.decode(ids)
    lines = {
        "conversation": f"{packed.name}, answer at positions {turn.start} to {turn.end}",
        "question (read)": question.text,
        "expected text": answer.text,
        "generated text": text,
        "generated token ids": numbers_line(ids),
    }
    return [write_sample_text(folder, lines)]


def written(model: PreTrainedModel, prompt_ids: torch.Tensor, most: int, end_id: int) -> list[int]:
    """At most so many ids that the model writes after a prompt (T,), one at a time, its end not among them."""
    stream = TokenStream(model, TokenChoice(min_new_tokens=1, end_token_ids=(end_id,)))
    stream.read(prompt_ids)
    ids: list[int] = []
    while len(ids) < most and (token_id := stream.write()) != end_id:
        ids.append(token_id)
    return ids
