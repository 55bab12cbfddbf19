"""What an experiment on spoken conversations has for Llama-Omni beyond what every backbone has."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.llama_omni import LlamaOmniConfig
from experiments.spoken.configuration import DecoderTraining, SpokenExperiment


@dataclass(frozen=True, kw_only=True)
class LlamaOmniTraining(DecoderTraining):
    """The speech encoder is frozen; `upper_mixers_and_speech` trains the speech projector and the speech generator.

    ctc_turns_per_step: assistant turns whose speech is trained on in one step, drawn by the step's own seed. The
        generator runs 25 positions for every text token, so all turns together would cost more than the conversation.
    """

    ctc_turns_per_step: int = 2


@dataclass(frozen=True, kw_only=True)
class LlamaOmniExperiment(SpokenExperiment):
    """Arms that differ in what mixes positions in the upper layers of Llama-Omni's language model."""

    backbone: str = "llama-omni"
    model: LlamaOmniConfig
    training: LlamaOmniTraining

    @property
    def layers(self) -> int:
        return self.model.num_hidden_layers

    @property
    def width(self) -> int:
        return self.model.hidden_size
