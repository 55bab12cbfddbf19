"""Qwen + TTS on spoken conversations: it reads what the user says as text, and writes text for an engine to say."""

from __future__ import annotations

from backbones.mounting import save_ttt, ttt_layers
from experiments.spoken.backbone import SpokenBackbone
from experiments.spoken.qwen_tts.loader import QwenLoader
from experiments.spoken.qwen_tts.model import build_model, check_data, fitted, memory_of
from experiments.spoken.qwen_tts.module import QwenModule
from experiments.spoken.qwen_tts.sample import save_sample
from experiments.spoken.qwen_tts.speaking import QwenSpeaker, real_text

BACKBONE = SpokenBackbone(
    check_data=check_data,
    fitted=fitted,
    build_model=build_model,
    memory_of=memory_of,
    loader=QwenLoader,
    module=QwenModule,
    ttt_layers=ttt_layers,
    save_difference=save_ttt,
    save_sample=save_sample,
    speaker=QwenSpeaker,
    real_speech=real_text,
    said="text",
    speech_loss=None,
)
