"""What an experiment on spoken conversations has for a Qwen text model beyond what every backbone has."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.qwen_tts import QwenConfig
from experiments.spoken.configuration import DecoderTraining, SpokenExperiment


@dataclass(frozen=True, kw_only=True)
class QwenExperiment(SpokenExperiment):
    """Arms that differ in what mixes positions in the upper layers of a Qwen text model.

    It has no speech units, so no loss on speech: `training.speech_weight` and `evaluation.speech_turns` have nothing to
    act on, and `upper_mixers_and_speech` trains the mixers alone.
    """

    backbone: str = "qwen-tts"
    model: QwenConfig
    training: DecoderTraining

    @property
    def layers(self) -> int:
        return self.model.num_hidden_layers

    @property
    def width(self) -> int:
        return self.model.hidden_size
