"""Streams of vectors for layers without a trained model around them: independent, correlated, and of real speech.

Legend: N streams, T tokens, C hidden size, M mel bands, F frames of an utterance.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor

from backbones.speech import log_mel, read_audio
from backbones.speech.espeak import EspeakVoice, SpeechJob, speak_to_files
from experiments.data.spec import ConversationSpec
from experiments.data.text import Fact, sentence_pool
from experiments.drift.configuration import VectorKind

MEL_BANDS = 80
"""Frames of speech come at 100 Hz: 60,000 are ten minutes."""

PROJECTION_SEED = 8201
UTTERANCE_DRAW_SEED = 8202
VOICES = (EspeakVoice(language="en-us", variant="f3"), EspeakVoice(language="en-us", variant="m3"))

Mel = NDArray[numpy.float32]


def speak_utterances(count: int) -> list[Mel]:
    """(F, 80) log-mel frames of `count` different sentences of the synthetic conversations, in two voices by turns."""
    pool = sentence_pool(ConversationSpec(positions=1024))
    facts = [Fact(subject=subject, value=value) for subject in pool.subjects for value in pool.values]
    if not 1 <= count <= len(facts):
        raise ValueError(f"speech_utterances must be from 1 to {len(facts)}, the sentences there are; got {count}")
    drawn = numpy.random.default_rng(UTTERANCE_DRAW_SEED).choice(len(facts), size=count, replace=False)
    with tempfile.TemporaryDirectory(prefix="drift") as folder:
        jobs = [
            SpeechJob(
                text=pool.statement(facts[fact]).text, voice=VOICES[number % 2], path=Path(folder) / f"{number}.wav"
            )
            for number, fact in enumerate(drawn)
        ]
        for _ in speak_to_files(jobs, processes=1):
            pass
        return [log_mel(read_audio(job.path).samples, MEL_BANDS).numpy() for job in jobs]


def draw_vectors(
    kind: VectorKind, streams: int, tokens: int, hidden_size: int, correlation: float, utterances: Sequence[Mel],
    seed: Sequence[int],
) -> Tensor:  # fmt: skip
    """(N, T, C) float32 of variance about 1; the same for the same seed."""
    if kind == "speech":
        return _speech(streams, tokens, hidden_size, utterances, numpy.random.default_rng(list(seed)))
    generator = torch.Generator().manual_seed(int(numpy.random.SeedSequence(list(seed)).generate_state(1)[0]))
    drawn = torch.randn(streams, tokens, hidden_size, generator=generator)
    return drawn if kind == "iid" else _autoregressive(drawn, correlation)


def _autoregressive(innovations: Tensor, correlation: float) -> Tensor:
    """x_t = a x_{t-1} + sqrt(1 - a^2) e_t, of variance 1 from the first token on."""
    scaled = innovations.double() * math.sqrt(1 - correlation**2)
    scaled[:, 0] = innovations[:, 0].double()
    return torch.from_numpy(lfilter([1.0], [1.0, -correlation], scaled.numpy(), axis=1)).float()


def _speech(
    streams: int, tokens: int, hidden_size: int, utterances: Sequence[Mel], generator: numpy.random.Generator
) -> Tensor:
    """Utterances in random order; every mel band standardised over all of them, then one fixed random projection."""
    every = numpy.concatenate(utterances)
    mean, deviation = every.mean(axis=0), every.std(axis=0)
    projection = numpy.random.default_rng(PROJECTION_SEED).normal(size=(MEL_BANDS, hidden_size)) / math.sqrt(MEL_BANDS)
    rows: list[NDArray[numpy.float64]] = []
    for _ in range(streams):
        strung: list[Mel] = []
        while sum(len(part) for part in strung) < tokens:
            strung += [utterances[i] for i in generator.permutation(len(utterances))]
        rows.append((numpy.concatenate(strung)[:tokens] - mean) / deviation @ projection)
    return torch.from_numpy(numpy.stack(rows)).float()
