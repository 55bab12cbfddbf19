"""What an experiment on spoken conversations has for Qwen + Mimi beyond what every backbone has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from backbones.qwen_mimi import QwenMimiConfig
from experiments.data.framing import UNITS_PER_FRAME
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.frame_training import FrameTraining

Codes = Literal["units", "mimi"]


@dataclass(frozen=True, kw_only=True)
class QwenMimiTraining(FrameTraining):
    """Of frames; the depth decoder is what says their codes.

    gradient_checkpointing: transformers' own, in the decoder over frames: less memory, more time.
    """

    gradient_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class QwenMimiExperiment(SpokenExperiment):
    """Arms that differ in what mixes frames in the decoder's upper layers; the depth decoder is left alone.

    codes: what the model hears and says. "units": the data's k-means units, the four of a frame as its four codebooks.
        "mimi": codes of a trained Mimi, whose folder `--weights` names.
    """

    backbone: str = "qwen-mimi"
    codes: Codes = "units"
    model: QwenMimiConfig
    training: QwenMimiTraining

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codes not in get_args(Codes):
            raise ValueError(f"codes must be one of {', '.join(get_args(Codes))}; got {self.codes!r}")
        if self.codes == "units" and self.model.codebooks != UNITS_PER_FRAME:
            raise ValueError(
                f"a frame has {UNITS_PER_FRAME} units, so codes='units' needs model.codebooks={UNITS_PER_FRAME}; got "
                f"{self.model.codebooks}"
            )

    @property
    def layers(self) -> int:
        return self.model.num_hidden_layers

    @property
    def width(self) -> int:
        return self.model.hidden_size
