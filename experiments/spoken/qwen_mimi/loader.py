"""Conversations as batches for Qwen + Mimi: codes of every stream, frame by frame."""

from __future__ import annotations

from backbones.qwen_mimi import QwenMimi
from experiments.recordings.carried_batches import RecordedCodes
from experiments.spoken.frame_batches import FrameLoader, StreamLayout
from experiments.spoken.qwen_mimi.codes import MimiFrames
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.recorded_plan import RecordedPlan

PADDING_ID = 0
"""Of any stream: what stands in padding is read by nothing that is real."""


class QwenMimiLoader(FrameLoader):
    """The data's units, or the codes that the model's own Mimi makes of the data's sound files."""

    def __init__(self, model: QwenMimi, config: QwenMimiExperiment) -> None:
        layout = StreamLayout(
            no_text_id=model.config.no_text_id,
            nothing_id=PADDING_ID,
            said_codebooks=model.config.codebooks,
            heard_codebooks=model.config.codebooks,
        )
        if config.codes == "units":
            super().__init__(layout, config.evaluation.speech_turns)
        else:
            assert model.mimi is not None, "build_model refuses a model without Mimi"
            recorded = isinstance(config.data, RecordedPlan)  # their codes were kept when they were prepared
            codes_of = RecordedCodes if recorded else MimiFrames(model.mimi).in_set
            super().__init__(layout, config.evaluation.speech_turns, codes_of)
