"""Utterances as frames of a trained Mimi's codes, in the place of the data's own units."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, read_audio
from backbones.speech.mimi import MimiTokenizer
from experiments.data.dataset import ConversationSet

SILENCE_FRAMES = 25


class MimiFrames:
    """Each utterance on its own, encoded once from its sound file: (frames, Q) codes at 12.5 Hz.

    A conversation whose pauses follow its text has no single recording that could be encoded whole, and an utterance is
    used many times. What is lost is what Mimi's encoder would carry over from the sound before.
    """

    def __init__(self, mimi: MimiTokenizer) -> None:
        self._mimi = mimi
        self._frames: dict[tuple[str, str], Tensor] = {}
        # Once Mimi has settled on it: its first frames of silence follow the beginning of the stream.
        silent = mimi.encode(np.zeros(SILENCE_FRAMES * mimi.frame_samples, dtype=np.float32), mimi.sample_rate_hz)
        self.silence = silent[:, -1]

    def of(self, dataset: ConversationSet, utterance_id: str) -> Tensor:
        """(frames, Q) int64."""
        key = str(dataset.pool.folder), utterance_id
        if key not in self._frames:
            audio = read_audio(dataset.pool.samples_path(utterance_id))
            self._frames[key] = self._mimi.encode(audio.samples, SPEECH_SAMPLE_RATE_HZ).T.contiguous()
        return self._frames[key]

    def in_set(self, dataset: ConversationSet) -> MimiFramesOfSet:
        return MimiFramesOfSet(self, dataset)


class MimiFramesOfSet:
    """The codes of one set's utterances, as `framing.FrameCodes` asks for them."""

    def __init__(self, frames: MimiFrames, dataset: ConversationSet) -> None:
        self._frames, self._dataset = frames, dataset

    @property
    def silence(self) -> Tensor:
        return self._frames.silence

    def of(self, utterance_id: str) -> Tensor:
        return self._frames.of(self._dataset, utterance_id)
