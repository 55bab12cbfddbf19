"""Llama-Omni on current transformers: speech in, text and speech units out. See README.md."""

from __future__ import annotations

from backbones.llama_omni.config import LlamaOmniConfig
from backbones.llama_omni.ctc import SpokenTurn, collapse_frames
from backbones.llama_omni.generate import ConversationPast, ReplyStep, SpokenReply
from backbones.llama_omni.generator import GeneratorState, SpeechGenerator
from backbones.llama_omni.model import LlamaOmni, LlamaOmniOutput
from backbones.llama_omni.speech_encoder import SpeechFrames
from backbones.llama_omni.splicing import IGNORED_LABEL, SPEECH_TOKEN_ID, SplicedInputs
from backbones.llama_omni.vocoder import UnitVocoder

__all__ = [
    "IGNORED_LABEL",
    "SPEECH_TOKEN_ID",
    "ConversationPast",
    "GeneratorState",
    "LlamaOmni",
    "LlamaOmniConfig",
    "LlamaOmniOutput",
    "ReplyStep",
    "SpeechFrames",
    "SpeechGenerator",
    "SplicedInputs",
    "SpokenReply",
    "SpokenTurn",
    "UnitVocoder",
    "collapse_frames",
]
