"""Qwen + TTS in a conversation without an end: replies are written token by token and said sentence by sentence."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import numpy as np
import torch
from transformers import PreTrainedModel

from backbones.qwen_tts import TokenStream
from backbones.text import StreamedText, TokenChoice
from backbones.tts import SAMPLE_RATE_HZ, load_engine, sentences
from experiments.data.conversations import Turn
from experiments.data.dataset import ConversationSet
from experiments.harness.held_tensors import held_bytes
from experiments.quality.real_streams import TurnFilter, every_turn
from experiments.quality.windows import SymbolBlock
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.sample import LANGUAGE
from experiments.spoken.speaking import (
    MOST_REPLY_TOKENS,
    PAUSE_S,
    TEXT_TEMPERATURE,
    TEXT_TOP_P,
    Reply,
    TurnSpeaker,
    exchanges,
    heard_s,
)

PAUSE = np.zeros(round(PAUSE_S * SAMPLE_RATE_HZ), np.float32)


class QwenSpeaker(TurnSpeaker):
    """Reads the user's words, writes its own, and espeak-ng says them; letters that no voice reads are left out."""

    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, config: QwenExperiment, model: PreTrainedModel, dataset: ConversationSet) -> None:
        super().__init__(dataset)
        self._engine = load_engine("espeak", language=LANGUAGE, unreadable="skip")
        self.sounds_like = self._engine.voice
        self._model = model
        self._end_id = dataset.tokenizer.eos_id
        self._stream = self._new_stream(0)
        self._was_ended = True

    def begin(self, seed: int) -> None:
        self._stream, self._was_ended = self._new_stream(seed), True

    def held_bytes(self) -> int:
        return held_bytes(self._stream.cache)

    def reply(self, turn: Turn, is_first: bool) -> Reply:
        started, first_audio_ms = time.perf_counter(), None
        tokenizer, ids, samples = self.dataset.tokenizer, list[int](), list[np.ndarray]()
        before = [tokenizer.bos_id] if is_first else [] if self._was_ended else [self._end_id]
        prompt = [*before, tokenizer.user_id, *tokenizer.encode(turn.text), tokenizer.assistant_id]
        self._stream.read(torch.tensor(prompt))
        for sentence in sentences(self._pieces(ids), LANGUAGE):
            samples.append(self._engine.say(sentence).samples)
            if first_audio_ms is None:
                first_audio_ms = 1000 * (time.perf_counter() - started)
        self._was_ended = ids[-1] == self._end_id
        return Reply(
            symbols=np.array(ids, np.int64),
            samples=np.concatenate([*samples, PAUSE]),
            text=tokenizer.decode(ids),
            positions=self._stream.positions,
            first_audio_ms=first_audio_ms,
        )

    def _pieces(self, ids: list[int]) -> Iterator[str]:
        """The reply's text as it is written; its ids, the end among them, are left in `ids`."""
        text = StreamedText(self.dataset.tokenizer.backend)
        while len(ids) < MOST_REPLY_TOKENS and (not ids or ids[-1] != self._end_id):
            ids.append(self._stream.write())
            yield text.add(ids[-1])
        yield text.end()

    def _new_stream(self, seed: int) -> TokenStream:
        choice = TokenChoice(
            temperature=TEXT_TEMPERATURE,
            top_p=TEXT_TOP_P,
            end_token_ids=(self._end_id,),
            random=torch.Generator(self._model.device).manual_seed(seed),
        )
        return TokenStream(self._model, choice)


def real_text(dataset: ConversationSet, index: int, wanted: TurnFilter = every_turn) -> SymbolBlock:
    """The assistant's turns as the tokens of their text, each evenly over the time that the engine takes to say it."""
    ids, seconds, end_s = list[int](), [np.zeros(0)], 0.0
    for heard, reply in exchanges(dataset, index, wanted):
        own = [*dataset.tokenizer.encode(reply.text), dataset.tokenizer.eos_id]
        start_s = end_s + heard_s(dataset, heard)
        end_s = start_s + _spoken_s(reply.text) + PAUSE_S
        ids += own
        seconds.append(np.linspace(start_s, end_s, len(own), endpoint=False))
    return SymbolBlock(symbols=np.array(ids, np.int64), seconds=np.concatenate(seconds), end_s=end_s)


@functools.lru_cache(maxsize=8192)
def _spoken_s(text: str) -> float:
    """Seconds that the engine takes for a turn; the data's sentences come back all the time."""
    engine = _engine()
    return sum(engine.say(sentence).duration_s for sentence in sentences([text], LANGUAGE))


_engine = functools.lru_cache(maxsize=1)(lambda: load_engine("espeak", language=LANGUAGE, unreadable="skip"))
