"""Text from token ids as they come, right for characters that several tokens share."""

from __future__ import annotations

import codecs

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}


class StreamedText:
    """Decodes the ids of a byte-level BPE one at a time; at most three bytes wait for the rest of their character.

    The pieces joined are what the tokenizer decodes of all ids at once, U+FFFD for bytes that are no UTF-8 included.
    Special tokens, and ids that the vocabulary does not have, give no text.

    The `tokenizers` library's own `DecodeStream` waits for as long as its text ends in U+FFFD: a model that writes
    bytes which never make a character would have it wait, and grow, for ever.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises ValueError where the tokenizer's tokens are not written in byte-level characters."""
        if not isinstance(tokenizer.decoder, ByteLevel):
            raise ValueError(
                f"text is streamed from a byte-level BPE (Qwen's, Llama 3's); this tokenizer's decoder is "
                f"{type(tokenizer.decoder).__name__}"
            )
        self._tokenizer = tokenizer
        self._special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is in pieces."""
        token = None if token_id in self._special_ids else self._tokenizer.id_to_token(token_id)
        return "" if token is None else self._decoder.decode(_bytes_of(token))

    def end(self) -> str:
        """What is left when no token follows: U+FFFD where a character stayed in pieces, else nothing."""
        return self._decoder.decode(b"", final=True)


def _bytes_of(token: str) -> bytes:
    # An added token may hold characters that stand for no byte (a space): then it is its own text.
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()
