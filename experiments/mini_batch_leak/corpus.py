"""The text of synthetic conversations, as tokens. No sound is made.

<bos> <user> text ... <assistant> text ... <eos> <user> text ... <assistant> text ... <eos> ... <pad> ...
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from experiments.data.conversations import Measured, Split, draw_conversation
from experiments.data.spec import ConversationSpec
from experiments.data.text import Sentence, SentencePool, sentence_pool
from experiments.data.tokenizer import ConversationTokenizer

Ids = NDArray[numpy.int64]


@dataclass(frozen=True, kw_only=True)
class TextCorpus:
    """training (conversations, T), held_out (validation conversations, T): ids, padded behind a conversation's end.

    sentences: every sentence that a turn can be, whole.
    """

    tokenizer: ConversationTokenizer
    sentences: frozenset[str]
    training: Ids
    held_out: Ids


def build_corpus(spec: ConversationSpec) -> TextCorpus:
    """The same for every seed of an experiment: `spec.seed` alone draws it."""
    pool = sentence_pool(spec)
    texts = [sentence.text for sentence in pool.sentences()]
    tokenizer = ConversationTokenizer.train(texts, spec.text_vocab_size, whole_words=())
    ids_of = {text: tokenizer.encode(text) for text in texts}
    return TextCorpus(
        tokenizer=tokenizer,
        sentences=frozenset(texts),
        training=_rows(spec, pool, ids_of, "train", spec.conversations),
        held_out=_rows(spec, pool, ids_of, "validation", spec.validation_conversations),
    )


def _rows(
    spec: ConversationSpec, pool: SentencePool, ids_of: dict[str, list[int]], split: Split, count: int
) -> Ids:  # fmt: skip
    marks = ConversationTokenizer

    def measured(sentence: Sentence) -> Measured:
        markers = 1 if sentence.speaker == "user" else 2
        return Measured(utterance_id="", positions=len(ids_of[sentence.text]) + markers, duration_s=0.0)

    rows = numpy.full((count, spec.positions), marks.pad_id, dtype=numpy.int64)
    for index in range(count):
        ids = [marks.bos_id]
        for turn in draw_conversation(spec, pool, measured, split, index).turns:
            if turn.speaker == "user":
                ids += [marks.user_id, *ids_of[turn.text]]
            else:
                ids += [marks.assistant_id, *ids_of[turn.text], marks.eos_id]
        rows[index, : len(ids)] = ids
    return rows
