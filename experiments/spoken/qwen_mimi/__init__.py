"""Qwen + Mimi on spoken conversations: frame by frame it hears the user, writes its own text, and says it in codes."""

from __future__ import annotations

from experiments.spoken import metric_names as spoken_names
from experiments.spoken.backbone import SpokenBackbone
from experiments.spoken.qwen_mimi.loader import QwenMimiLoader
from experiments.spoken.qwen_mimi.model import (
    build_model,
    check_data,
    fitted,
    memory_of,
    save_difference,
    ttt_layers_of,
)
from experiments.spoken.qwen_mimi.module import QwenMimiModule
from experiments.spoken.qwen_mimi.sample import save_sample
from experiments.spoken.qwen_mimi.speaking import QwenMimiSpeaker
from experiments.spoken.speaking import real_frames

BACKBONE = SpokenBackbone(
    check_data=check_data,
    fitted=fitted,
    build_model=build_model,
    memory_of=memory_of,
    loader=QwenMimiLoader,
    module=QwenMimiModule,
    ttt_layers=ttt_layers_of,
    save_difference=save_difference,
    save_sample=save_sample,
    speaker=QwenMimiSpeaker,
    real_speech=real_frames,
    said="units",
    speech_loss=spoken_names.VALIDATION_AUDIO_LOSS,
    speech_loss_title="nats per speech code",
)
