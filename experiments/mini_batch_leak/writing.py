"""How readable a written text is: words, turns and variety, by counting alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.data.tokenizer import ConversationTokenizer

WORD = re.compile(r"[A-Za-z]+")
NGRAM = 4


@dataclass(frozen=True, kw_only=True)
class Readability:
    """known_words: share of the words that occur in the conversations. whole_turns: share of the turns that are, letter
    by letter, something that is said in them. distinct_4grams: distinct runs of four words, as a share of all such runs
    (repetition lowers it). A text without words or turns has shares of 0.
    """

    known_words: float
    whole_turns: float
    distinct_4grams: float


def readability(rows: Sequence[Sequence[int]], tokenizer: ConversationTokenizer, said: Iterable[str]) -> Readability:
    """Of continuations `rows` of ids, against the sentences that are `said`.

    What the prompt began and what a row's end may cut off is left out: first and last turn, first and last word.
    """
    sentences = frozenset(said)
    vocabulary = {word for sentence in sentences for word in words_of(sentence)}
    words, turns, runs = [], [], []
    for row in rows:
        parts = turns_of(row, tokenizer)
        turns += parts[1:-1]
        spoken = [word for part in parts for word in words_of(part)][1:-1]
        words += spoken
        runs += [tuple(spoken[i : i + NGRAM]) for i in range(len(spoken) - NGRAM + 1)]
    return Readability(
        known_words=_share([word in vocabulary for word in words]),
        whole_turns=_share([turn in sentences for turn in turns]),
        distinct_4grams=len(set(runs)) / len(runs) if runs else 0.0,
    )


def words_of(text: str) -> list[str]:
    return WORD.findall(text)


def turns_of(ids: Sequence[int], tokenizer: ConversationTokenizer) -> list[str]:
    """The text between markers, the first part being what continues the prompt's last turn."""
    marks = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.user_id, tokenizer.assistant_id, tokenizer.pad_id}
    parts: list[list[int]] = [[]]
    for token in ids:
        if token not in marks:
            parts[-1].append(token)
        elif token != tokenizer.eos_id:  # what follows an <eos> is a turn's opening, which cuts by itself
            parts.append([])
    return [tokenizer.decode(part) for part in parts]


def _share(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers) if answers else 0.0


def readable(prompt: Sequence[int], continuation: Sequence[int], tokenizer: ConversationTokenizer) -> str:
    """Prompt and continuation for a reader, a line for each turn; `>>>` stands where the model begins to write."""
    names = {tokenizer.user_id: "\nuser: ", tokenizer.assistant_id: "\nassistant: "}

    def shown(ids: Sequence[int]) -> str:
        text, pending = "", list[int]()
        for token in ids:
            if token in names:
                text, pending = text + tokenizer.decode(pending) + names[token], []
            else:
                pending.append(token)
        return text + tokenizer.decode(pending)

    return f"{shown(prompt)} >>>{shown(continuation)}".strip()
