"""Llama-Omni on spoken conversations: it reads speech and text in turn, writes text, and speaks it by CTC units."""

from __future__ import annotations

from experiments.harness import metric_names as names
from experiments.spoken.backbone import SpokenBackbone
from experiments.spoken.llama_omni.loader import LlamaOmniLoader
from experiments.spoken.llama_omni.model import (
    build_model,
    check_data,
    fitted,
    memory_of,
    save_difference,
    speech_positions_of,
    ttt_layers_of,
)
from experiments.spoken.llama_omni.module import LlamaOmniModule
from experiments.spoken.llama_omni.sample import save_sample
from experiments.spoken.llama_omni.speaking import LlamaOmniSpeaker, real_replies

BACKBONE = SpokenBackbone(
    check_data=check_data,
    fitted=fitted,
    build_model=build_model,
    memory_of=memory_of,
    loader=LlamaOmniLoader,
    module=LlamaOmniModule,
    ttt_layers=ttt_layers_of,
    save_difference=save_difference,
    save_sample=save_sample,
    speaker=LlamaOmniSpeaker,
    real_speech=real_replies,
    said="units",
    speech_loss=names.VALIDATION_CTC_LOSS,
    speech_loss_title="CTC nats per unit",
    speech_positions=speech_positions_of,
)
