"""What an experiment on spoken conversations has for Moshi beyond what every backbone has."""

from __future__ import annotations

from dataclasses import dataclass

from backbones.moshi import MoshiConfig
from experiments.data.framing import UNITS_PER_FRAME
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.frame_training import FrameTraining


class MoshiTraining(FrameTraining):
    """Of frames; the depth transformer is what says their codes."""


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
