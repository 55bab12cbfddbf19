"""Llama-Omni in a conversation without an end: each reply is written and said in units until the model ends it."""

from __future__ import annotations

import functools
import time

import numpy as np
import torch
from torch import Tensor

from backbones.llama_omni import SPEECH_TOKEN_ID, ConversationPast, LlamaOmni
from backbones.speech import SPEECH_SAMPLE_RATE_HZ
from experiments.data.conversations import Turn
from experiments.data.dataset import ConversationSet
from experiments.harness.held_tensors import held_bytes
from experiments.quality.ngram import Symbols
from experiments.quality.real_streams import TurnFilter, every_turn
from experiments.quality.windows import SymbolBlock
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment
from experiments.spoken.speaking import (
    MOST_REPLY_TOKENS,
    TEXT_TEMPERATURE,
    TEXT_TOP_P,
    Reply,
    TurnSpeaker,
    block_of_units,
    exchanges,
    heard_s,
    silent_units,
)

FIRST_CHUNK_UNITS = 10
"""Sound begins as soon as there are so many units, as in the published demonstration."""


class LlamaOmniSpeaker(TurnSpeaker):
    """Hears the user's sound, writes text and says it in units."""

    sample_rate_hz = SPEECH_SAMPLE_RATE_HZ

    def __init__(self, config: LlamaOmniExperiment, model: LlamaOmni, dataset: ConversationSet) -> None:
        super().__init__(dataset)
        self.sounds_like = f"units {dataset.codebook.fingerprint}"
        self._model = model
        self._random = torch.Generator(model.device)
        self._past: ConversationPast | None = None
        self._was_ended = True

    def begin(self, seed: int) -> None:
        self._random.manual_seed(seed)
        self._past, self._was_ended = None, True

    def held_bytes(self) -> int:
        return held_bytes(self._past)

    def silent_symbols(self, seconds: float) -> Symbols:
        return silent_units(self.dataset.codebook, seconds)

    def reply(self, turn: Turn, is_first: bool) -> Reply:
        started, first_audio_ms = time.perf_counter(), None
        mel = self.dataset.pool.mel(turn.utterance_id)
        ids, units = [], list[Tensor]()
        for step in self._model.stream(
            self._prompt(is_first)[None].to(self._model.device), [mel.to(self._model.device)], past=self._past,
            max_new_tokens=MOST_REPLY_TOKENS, temperature=TEXT_TEMPERATURE, top_p=TEXT_TOP_P, random=self._random,
        ):  # fmt: skip
            ids.append(int(step.token_ids[0]))
            units.append(step.new_units[0].cpu())
            self._past = step.past
            if first_audio_ms is None and sum(map(len, units)) >= FIRST_CHUNK_UNITS:
                self._sound(spread_units(self.dataset, torch.cat(units)))
                first_audio_ms = 1000 * (time.perf_counter() - started)
        assert self._past is not None
        self._was_ended = ids[-1] in self._model.config.end_token_ids
        said = spread_units(self.dataset, torch.cat(units))
        pause = silent_units(self.dataset.codebook)
        silence = np.zeros(len(pause) * SPEECH_SAMPLE_RATE_HZ // 50, np.float32)
        samples = np.concatenate([self._sound(said), silence])
        if first_audio_ms is None and len(said):
            first_audio_ms = 1000 * (time.perf_counter() - started)
        return Reply(
            symbols=np.concatenate([said, pause]),
            samples=samples,
            text=self.dataset.tokenizer.decode(ids),
            positions=self._past.positions,
            first_audio_ms=first_audio_ms,
        )

    def _prompt(self, is_first: bool) -> Tensor:
        """What stands between the reply before and the next: the end that a cut reply lacks, markers, a placeholder."""
        tokenizer = self.dataset.tokenizer
        before = [tokenizer.bos_id] if is_first else [] if self._was_ended else [tokenizer.eos_id]
        return torch.tensor([*before, tokenizer.user_id, SPEECH_TOKEN_ID, tokenizer.assistant_id])

    def _sound(self, units: Symbols) -> np.ndarray:
        if not len(units):
            return np.zeros(0, np.float32)
        return self.dataset.codebook.to_waveform(torch.from_numpy(units))


@functools.lru_cache(maxsize=8)
def _mean_duration(dataset: ConversationSet) -> float:
    """How many 20 ms a unit of the assistant's lasts in the data, its repeats taken together."""
    pool = dataset.pool
    own = [pool.units(each)[1] for each in pool if pool.speaker(each) == "assistant"]
    return sum(int(durations.sum()) for durations in own) / sum(len(durations) for durations in own)


def spread_units(dataset: ConversationSet, units: Tensor) -> Symbols:
    """Units (U,) without repeats at 50 Hz: CTC tells their order and not how long they last, so each lasts the mean."""
    ends = np.round(np.arange(len(units) + 1) * _mean_duration(dataset)).astype(np.int64)
    return np.repeat(units.numpy().astype(np.int64), np.diff(ends))


def real_replies(dataset: ConversationSet, index: int, wanted: TurnFilter = every_turn) -> SymbolBlock:
    """The assistant's turns in their own units, every one as long as the speaker lets it last, its pause behind it and
    its silence while the user speaks before it."""
    codebook, parts = dataset.codebook, [np.zeros(0, np.int64)]
    for heard, reply in exchanges(dataset, index, wanted):
        said = spread_units(dataset, dataset.pool.units(reply.utterance_id)[0])
        parts += [silent_units(codebook, heard_s(dataset, heard)), said, silent_units(codebook)]
    return block_of_units(np.concatenate(parts))
