"""Qwen's tokenizers: a published folder's, or one of bytes for random weights."""

from __future__ import annotations

from pathlib import Path

from tokenizers.decoders import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_tokenizers import TokenizersBackend

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
END_OF_TEXT = "<|endoftext|>"
BYTE_VOCABULARY = 257


def byte_tokenizer() -> Qwen2Tokenizer:
    """Qwen's tokenizer without a single merge: ids 0-255 are the bytes, 256 is `<|endoftext|>`.

    It encodes any text and is saved in the published format. For models with random weights.
    """
    characters = bytes_to_unicode()
    vocabulary = {characters[byte]: byte for byte in range(256)} | {END_OF_TEXT: 256}
    return Qwen2Tokenizer(vocab=vocabulary, merges=[])


def read_tokenizer(folder: Path) -> TokenizersBackend:
    """The tokenizer of a folder in the published format. Raises ValueError where there is none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ValueError(
            f"{folder} holds no tokenizer ({' or '.join(TOKENIZER_FILES)}); copy it there from the model's repository"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, KeyError, TypeError) as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}; copy it there anew") from error
    return checked_tokenizer(tokenizer)


def checked_tokenizer(tokenizer: PreTrainedTokenizerBase) -> TokenizersBackend:
    """The same. Raises ValueError unless it is a byte-level BPE of the `tokenizers` library, as all of Qwen's are."""
    if not isinstance(tokenizer, TokenizersBackend) or not isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel):
        raise ValueError(f"a Qwen tokenizer is a byte-level BPE; {type(tokenizer).__name__} is none")
    return tokenizer
