"""Text tokens without a download: byte-level BPE trained on the sentences of a data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<user>", "<assistant>")
PAD_ID, BOS_ID, EOS_ID, USER_ID, ASSISTANT_ID = range(5)


class ConversationTokenizer:
    """Text to ids and back. Any text can be encoded: what was not seen in training falls back to bytes.

    `eos` ends every turn of the assistant; `user` and `assistant` open turns; `bos` opens a conversation.
    """

    pad_id, bos_id, eos_id, user_id, assistant_id = PAD_ID, BOS_ID, EOS_ID, USER_ID, ASSISTANT_ID

    def __init__(self, tokenizer: Tokenizer) -> None:
        found = tuple(tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
        if found != SPECIAL_TOKENS:
            raise ValueError(f"not a conversation tokenizer: its first tokens are {found}, expected {SPECIAL_TOKENS}")
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, whole_words: Iterable[str]) -> ConversationTokenizer:
        """Deterministic in its arguments. `whole_words` (as they stand after a space) must come out as one token each.

        Raises ValueError where `vocab_size` leaves one of them in pieces.
        """
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=1,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        trained = cls(bpe)
        for word in whole_words:
            count = len(trained.encode(f" {word}"))
            if count != 1:
                raise ValueError(
                    f"text_vocab_size {vocab_size} is too small: {word!r} takes {count} tokens, "
                    "and recall is counted on whole words; give a larger one"
                )
        return trained

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included; may be below what training was allowed."""
        return self._tokenizer.get_vocab_size()

    @property
    def backend(self) -> Tokenizer:
        """The library's tokenizer, for what streams text."""
        return self._tokenizer

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens are left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def tokens_of_span(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Half-open range of the tokens of `text` that touch its characters [start, end)."""
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        touching = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
        assert touching, f"no token of {text!r} touches characters {start} to {end}"
        return touching[0], touching[-1] + 1

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))

    @classmethod
    def load(cls, path: Path) -> ConversationTokenizer:
        return cls(Tokenizer.from_file(str(path)))
