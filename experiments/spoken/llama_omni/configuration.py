"""What an experiment on spoken conversations has for Llama-Omni beyond what every backbone has."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.llama_omni import LlamaOmniConfig
from experiments.spoken.configuration import SpokenExperiment, TrainingPlan


@dataclass(frozen=True, kw_only=True)
class LlamaOmniTraining(TrainingPlan):
    """The speech encoder is frozen; `upper_mixers_and_speech` trains the speech projector and the speech generator.

    ctc_turns_per_step: assistant turns whose speech is trained on in one step, drawn by the step's own seed. The
        generator runs 25 positions for every text token, so all turns together would cost more than the conversation.
    segment_positions: truncated backpropagation: a conversation is read in segments of that many positions, with the
        state carried and the gradient cut between them. None: one graph for the whole conversation.
    """

    ctc_turns_per_step: int = 2
    segment_positions: int | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient_checkpointing and self.segment_positions is not None:
            # transformers drops the cache while it checkpoints, and the carried state with it, without a word.
            raise ValueError("gradient_checkpointing and segment_positions exclude each other; set one of them")
        if self.segment_positions is not None and self.segment_positions < 1:
            raise ValueError(f"segment_positions must be at least 1, or none; got {self.segment_positions}")


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
