"""A Qwen text model that reads what the user says as text, and writes what is spoken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from backbones.mounting import mount
from backbones.qwen_tts.checkpoint import random_llm, read_llm
from backbones.qwen_tts.config import QwenConfig
from backbones.qwen_tts.stream import PREFILL_CHUNK, TextStep, TextStream, open_stream
from backbones.qwen_tts.tokenizer import byte_tokenizer, checked_tokenizer, read_tokenizer
from backbones.text import random_source
from backbones.tts import SpokenSentence, TTSEngine
from ttt_core import TTTConfig
from ttt_core.mounting import MountMode

TOP_LAYERS = 8
WINDOW = 2048
SINKS = 4


class QwenTTS(nn.Module):
    """A Qwen2 or Qwen3 text model and its tokenizer. `llm` is transformers' own: the part that TTT is mounted on."""

    def __init__(self, llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """llm: from `random_llm` or `read_llm`, which give it exact rotary tables.

        Raises ValueError for a tokenizer that is not Qwen's kind, or has more tokens than the model knows."""
        super().__init__()
        self.llm = llm
        self.tokenizer = checked_tokenizer(tokenizer)
        if len(tokenizer) > llm.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the model knows {llm.config.vocab_size}: they do not "
                "belong to each other"
            )

    @classmethod
    def from_config(cls, config: QwenConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> Self:
        """Random weights; the tokenizer is one of bytes where none is given."""
        return cls(random_llm(config), byte_tokenizer() if tokenizer is None else tokenizer)

    @classmethod
    def tiny(cls, *, seed: int = 0, **overrides: Any) -> Self:
        """Random weights, drawn from `seed`, at `QwenConfig.tiny` with the given fields overridden."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.from_config(QwenConfig.tiny(**overrides))

    @classmethod
    def from_checkpoint(cls, folder: str | Path, dtype: torch.dtype | None = None) -> Self:
        """A published Qwen2, Qwen2.5 or Qwen3 text model from a local folder, in `dtype` (None: as it was saved).

        A folder that `save_checkpoint` wrote of a mounted model comes back mounted. Raises ValueError that names the
        file or tensor that is missing or does not fit.
        """
        folder = Path(folder)
        llm = read_llm(folder, dtype)
        return cls(llm, read_tokenizer(folder))

    def save_checkpoint(self, folder: str | Path) -> None:
        """Writes weights, configuration and tokenizer in the published format; of a mounted model, TTT with it."""
        self.llm.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def dtype(self) -> torch.dtype:
        return self.llm.dtype

    def mount(
        self, top_layers: int = TOP_LAYERS, config: TTTConfig | None = None, *, mode: MountMode = "replace",
        window: int | Mapping[int, int] | None = WINDOW, sinks: int = SINKS,
    ) -> Self:  # fmt: skip
        """TTT in the last `top_layers` layers, a window with pinned first positions in all below: bounded memory.

        config: None takes its sizes from the attention it replaces. See `backbones.mounting.mount`.
        """
        layers = self.llm.config.num_hidden_layers
        if not 0 <= top_layers <= layers:
            raise ValueError(f"top_layers must be 0 to {layers}, the model's layers; got {top_layers}")
        mount(self.llm, range(layers - top_layers, layers), config, mode, window, sinks if window else 0)
        return self

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text that the model's own chat template makes of messages, up to where its reply begins.

        messages: {"role": "system", "user" or "assistant", "content": text}; of the user, the transcript.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError("the tokenizer has no chat template: this is a base model, give it plain text")
        return self.tokenizer.apply_chat_template([*messages], tokenize=False, add_generation_prompt=True)

    def stream(
        self, *, stops_at_end: bool = False, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None,
        random: torch.Generator | None = None, prefill_chunk: int = PREFILL_CHUNK, use_cache: bool = True,
    ) -> TextStream:  # fmt: skip
        """A conversation of many turns: `read` and `write` by turns.

        stops_at_end: a reply ends where the model ends it; else end tokens are never chosen. temperature 0 is greedy.
        """
        return open_stream(
            self.llm, self.tokenizer, stops_at_end=stops_at_end, temperature=temperature, top_p=top_p,
            random=random_source(seed, random, self.device), prefill_chunk=prefill_chunk, use_cache=use_cache,
        )  # fmt: skip

    def stream_text(
        self, prompt: str | Tensor, *, max_new_tokens: int | None = None, stops_at_end: bool = False,
        temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None, random: torch.Generator | None = None,
        prefill_chunk: int = PREFILL_CHUNK, use_cache: bool = True,
    ) -> Iterator[TextStep]:  # fmt: skip
        """Reads the prompt (text or (T,) ids), then yields token by token, without an end unless told one.

        Raises ValueError, before the first token, for an empty prompt and for a stream without an end whose memory
        would grow: see `TextStream.write`.
        """
        stream = self.stream(
            stops_at_end=stops_at_end, temperature=temperature, top_p=top_p, seed=seed, random=random,
            prefill_chunk=prefill_chunk, use_cache=use_cache,
        )  # fmt: skip
        steps = stream.write(max_new_tokens)
        stream.read(prompt)
        return steps

    def speak(
        self, prompt: str | Tensor, engine: TTSEngine, *, max_new_tokens: int | None = None, stops_at_end: bool = False,
        temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None,
    ) -> Iterator[SpokenSentence]:  # fmt: skip
        """Says what `stream_text` writes while it writes it: a sentence sounds once the word after it is there.

        With an engine of `backbones.tts.load_engine`. Nothing of what was said is kept, so an hour takes what a minute
        takes; `backbones.tts.write_speech` writes it to disk as it comes. Raises ValueError as `stream_text` does, and
        as the engine does for what its voice cannot read.
        """
        steps = self.stream_text(
            prompt, max_new_tokens=max_new_tokens, stops_at_end=stops_at_end, temperature=temperature, top_p=top_p,
            seed=seed,
        )  # fmt: skip
        return engine.speak(step.text for step in steps)
