"""Moshi on spoken conversations: frame by frame it hears the user, writes its own text, and says it in units."""

from __future__ import annotations

from backbones.moshi import save_ttt, ttt_layers
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.backbone import SpokenBackbone
from experiments.spoken.moshi.loader import MoshiLoader
from experiments.spoken.moshi.model import build_model, check_data, fitted, memory_of
from experiments.spoken.moshi.module import MoshiModule
from experiments.spoken.moshi.sample import save_sample
from experiments.spoken.moshi.speaking import MoshiSpeaker
from experiments.spoken.speaking import real_frames

BACKBONE = SpokenBackbone(
    check_data=check_data,
    fitted=fitted,
    build_model=build_model,
    memory_of=memory_of,
    loader=MoshiLoader,
    module=MoshiModule,
    ttt_layers=ttt_layers,
    save_difference=save_ttt,
    save_sample=save_sample,
    speaker=MoshiSpeaker,
    real_speech=real_frames,
    said="units",
    speech_loss=spoken_names.VALIDATION_AUDIO_LOSS,
    speech_loss_title="nats per speech unit",
)
