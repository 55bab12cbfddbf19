"""Conversations as batches for Moshi: codes of every stream, frame by frame."""

from __future__ import annotations

from moshi.models.lm import LMModel

from experiments.spoken.frame_batches import FrameLoader, StreamLayout
from experiments.spoken.moshi.configuration import MoshiExperiment


class MoshiLoader(FrameLoader):
    """The data's units in the first codebooks, said and heard; -1, which gives the model nothing, in the others."""

    def __init__(self, model: LMModel, config: MoshiExperiment) -> None:
        layout = StreamLayout(
            no_text_id=model.text_padding_token_id,
            nothing_id=model.zero_token_id,
            said_codebooks=model.dep_q,
            heard_codebooks=model.num_codebooks - model.audio_offset - model.dep_q,
        )
        super().__init__(layout, config.evaluation.speech_turns)
