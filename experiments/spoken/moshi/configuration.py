"""What an experiment on spoken conversations has for Moshi beyond what every backbone has."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.moshi import MoshiConfig
from experiments.data.framing import UNITS_PER_FRAME
from experiments.spoken.configuration import SpokenExperiment, TrainingPlan, require_positive


@dataclass(frozen=True, kw_only=True)
class MoshiTraining(TrainingPlan):
    """Everything is trained, or the mixers of the upper layers and the depth transformer.

    text_padding_weight: weight in the training loss of a frame without text, 1 for a text token. They are four frames
        in five; Moshi's own training halves their weight too (Defossez et al. 2024, section 4.4).
    audio_frames_per_step: frames whose units the depth transformer is trained on in one step, drawn by the step's own
        seed from all real ones, silent ones too. It runs once for every codebook of a frame.
    """

    text_padding_weight: float = 0.5
    audio_frames_per_step: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "text_padding_weight")
        if self.audio_frames_per_step < 0:
            raise ValueError(f"audio_frames_per_step must be at least 0, got {self.audio_frames_per_step}")


@dataclass(frozen=True, kw_only=True)
class MoshiExperiment(SpokenExperiment):
    """Arms that differ in what mixes frames in the temporal transformer's upper layers; the depth one is left alone."""

    backbone: str = "moshi"
    model: MoshiConfig
    training: MoshiTraining

    def __post_init__(self) -> None:
        super().__post_init__()
        heard = self.model.n_q - self.model.dep_q
        if min(self.model.dep_q, heard) < UNITS_PER_FRAME:
            raise ValueError(
                f"a frame has {UNITS_PER_FRAME} units said and as many heard; the model has dep_q={self.model.dep_q} "
                f"codebooks for the first and n_q - dep_q = {heard} for the second"
            )
        if self.model.delays[0]:
            raise ValueError(f"the text must not be delayed, its positions are frames; delays is {self.model.delays}")

    @property
    def layers(self) -> int:
        return self.model.num_layers

    @property
    def width(self) -> int:
        return self.model.dim
