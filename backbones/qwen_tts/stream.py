"""Text in, text out, token by token: one conversation that may go on for ever.

What it remembers is the language model's cache alone. With TTT or a window in every layer its bytes never grow; a model
that keeps every position is not let beyond the context it was made for, nor into a stream without an end.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from backbones.mounting import MemoryDescription, describe, model_cache
from backbones.mounting.decoder import MountedCausalLM
from backbones.text import StreamedText, TokenChoice, evaluating

PREFILL_CHUNK = 512
"""Positions of a prompt that are read at once: what a prompt of any length needs beside the cache is bounded too."""


@dataclass(frozen=True)
class TextStep:
    """One more token. text: what it completes, empty while a character is in pieces. position: the token's own."""

    token_id: int
    text: str
    position: int


class TokenStream:
    """One conversation in token ids: `read` what is given, `write` one id at a time.

    cache: everything it remembers, advanced in place; None without a cache, where every id is kept and read anew for
    every token: slow, the definition that the cached way is tested against.
    """

    def __init__(
        self, llm: PreTrainedModel, choice: TokenChoice, *, prefill_chunk: int = PREFILL_CHUNK, use_cache: bool = True
    ) -> None:
        if prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be at least 1 position, got {prefill_chunk}")
        self.llm = llm
        self.cache: Cache | None = _new_cache(llm) if use_cache else None
        self.positions = 0
        self.memory: MemoryDescription = describe(llm)
        self._choice = choice
        self._prefill_chunk = prefill_chunk
        self._all_ids = torch.empty(1, 0, dtype=torch.long)
        self._unread: int | None = None
        self._logits: Tensor | None = None
        self._written = 0

    @torch.no_grad()
    def read(self, ids: Tensor) -> None:
        """Takes in (T,) int64 ids, after the last one it wrote. Raises ValueError for none, or ids it does not know."""
        _check_ids(ids, self.llm.config.vocab_size)
        if self._unread is not None:
            ids = torch.cat([ids.new_tensor([self._unread]), ids])
            self._unread = None
        for chunk in ids.split(self._prefill_chunk):
            self._logits = self._read(chunk[None])

    @torch.no_grad()
    def write(self) -> int:
        """The next id. Raises ValueError before anything was read, and where no id can be chosen."""
        if self._unread is not None:
            self._logits = self._read(torch.tensor([[self._unread]]))
        if self._logits is None:
            raise ValueError("nothing was read yet: give the stream a prompt before it writes")
        self._unread = int(self._choice.choose(self._logits, self._written))
        self._written += 1
        return self._unread

    def _read(self, ids: Tensor) -> Tensor:
        """Logits (1, V) of what follows (1, T) more ids."""
        self._check_room(ids.shape[1])
        ids = ids.to(self.llm.device)
        with evaluating(self.llm):
            if self.cache is None:
                self._all_ids = torch.cat([self._all_ids.to(ids.device), ids], dim=1)
                hidden = self.llm.model(input_ids=self._all_ids, use_cache=False).last_hidden_state
            else:
                hidden = self.llm.model(input_ids=ids, past_key_values=self.cache, use_cache=True).last_hidden_state
            logits = self.llm.lm_head(hidden[:, -1])
        self.positions += ids.shape[1]
        return logits

    def _check_room(self, more: int) -> None:
        context = self.llm.config.max_position_embeddings
        if not self.memory.is_bounded and self.positions + more > context:
            raise ValueError(
                f"position {self.positions + more} lies beyond the {context} that the model's attention was made for, "
                "and it keeps every one of them; mount TTT or a window on every layer, or begin a new stream"
            )


class TextStream:
    """One conversation in text: `read` what the user says, `write` the reply, and again.

    The model hears nothing: what the user says comes as its transcript.
    """

    def __init__(self, tokens: TokenStream, tokenizer: TokenizersBackend, end_token_ids: tuple[int, ...]) -> None:
        self.tokens = tokens
        self._tokenizer = tokenizer
        self._end_token_ids = end_token_ids

    def read(self, prompt: str | Tensor) -> None:
        """Takes in text, or (T,) int64 ids. Raises ValueError for an empty prompt."""
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt, add_special_tokens=False)
            prompt = torch.tensor(ids, dtype=torch.long)
        self.tokens.read(prompt)

    def write(self, max_new_tokens: int | None = None) -> Iterator[TextStep]:
        """Yields the reply token by token, to the model's own end, to `max_new_tokens`, or without an end.

        Where it has an end of neither kind, it goes on for as long as the caller asks for more. The texts joined are
        what the tokenizer decodes of all ids at once.

        Raises:
            ValueError: `max_new_tokens` below 1; no end, and a model whose memory grows with every position.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, or none for no end; got {max_new_tokens}")
        memory = self.tokens.memory
        if max_new_tokens is None and not self._end_token_ids and not memory.is_bounded:
            growing = [layer.layer for layer in memory.layers if layer.bytes_per_position]
            raise ValueError(
                f"a stream without an end needs memory that does not grow, and layers {growing} keep "
                f"{memory.bytes_per_position} bytes of every position; mount TTT or a window on them, or give "
                "max_new_tokens"
            )
        return self._steps(max_new_tokens)

    def _steps(self, max_new_tokens: int | None) -> Iterator[TextStep]:
        text, written = StreamedText(self._tokenizer.backend_tokenizer), 0
        is_last = False
        while not is_last:
            token_id = self.tokens.write()
            written += 1
            is_last = written == max_new_tokens or token_id in self._end_token_ids
            piece = text.add(token_id) + (text.end() if is_last else "")
            yield TextStep(token_id=token_id, text=piece, position=self.tokens.positions)


def open_stream(
    llm: PreTrainedModel, tokenizer: TokenizersBackend, *, stops_at_end: bool, temperature: float, top_p: float,
    random: torch.Generator | None, prefill_chunk: int, use_cache: bool,
) -> TextStream:  # fmt: skip
    """A conversation from its beginning. Where it does not stop at the end, end tokens are never chosen."""
    ends = end_token_ids(llm)
    choice = TokenChoice(
        temperature=temperature,
        top_p=top_p,
        min_new_tokens=0 if stops_at_end else sys.maxsize,
        end_token_ids=ends,
        random=random,
    )
    tokens = TokenStream(llm, choice, prefill_chunk=prefill_chunk, use_cache=use_cache)
    return TextStream(tokens, tokenizer, ends if stops_at_end else ())


def end_token_ids(llm: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a reply: of generation_config.json where it names any, else of config.json."""
    given = llm.generation_config.eos_token_id if llm.generation_config is not None else None
    given = llm.config.eos_token_id if given is None else given
    if given is None:
        return ()
    return tuple(given) if isinstance(given, list) else (given,)


def _new_cache(llm: PreTrainedModel) -> Cache:
    return model_cache(llm) if isinstance(llm, MountedCausalLM) else DynamicCache(config=llm.config)


def _check_ids(ids: Tensor, vocab_size: int) -> None:
    if ids.dim() != 1 or ids.dtype != torch.long:
        raise ValueError(f"a prompt is text or (T,) int64 ids, got {tuple(ids.shape)} of {ids.dtype}")
    if not ids.numel():
        raise ValueError("the prompt is empty: the model needs at least one token to go on from")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"the prompt has ids from {low} to {high}; the model knows 0 to {vocab_size - 1}")
