"""How a backbone is trained that reads a frame at a time: what its text stream and the codes of its frames weigh."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.spoken.configuration import TrainingPlan, require_positive


@dataclass(frozen=True, kw_only=True)
class FrameTraining(TrainingPlan):
    """Everything is trained, or the mixers of the upper layers and what says the codes of a frame.

    text_padding_weight: weight in the training loss of a frame without text, 1 for a text token. They are four frames
        in five; Moshi's own training halves their weight too (Defossez et al. 2024, section 4.4).
    audio_frames_per_step: frames whose codes are trained on in one step, drawn by the step's own seed from all real
        ones, silent ones too. What says them runs once for every codebook of a frame.
    segment_positions: truncated backpropagation: a conversation is read in segments of that many frames, with the
        state carried and the gradient cut between them. None: one graph for the whole conversation.
    """

    text_padding_weight: float = 0.5
    audio_frames_per_step: int = 256
    segment_positions: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "text_padding_weight")
        if self.audio_frames_per_step < 0:
            raise ValueError(f"audio_frames_per_step must be at least 0, got {self.audio_frames_per_step}")
        if self.segment_positions is not None and self.segment_positions < 1:
            raise ValueError(f"segment_positions must be at least 1, or none; got {self.segment_positions}")
