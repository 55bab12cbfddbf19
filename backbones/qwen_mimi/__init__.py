"""Qwen2 over Mimi's codes, speech in and speech out, with TTT in the decoder over frames. See README.md."""

from backbones.qwen_mimi.config import FRAME_RATE_HZ, RESERVED_TEXT_IDS, QwenMimiConfig
from backbones.qwen_mimi.folder import load, save
from backbones.qwen_mimi.model import QwenMimi, QwenMimiOutput
from backbones.qwen_mimi.sound import answer, converse, heard_frames
from backbones.qwen_mimi.streaming import GREEDY, SAMPLED, FrameChoice, FrameStream, SaidFrame

__all__ = [
    "FRAME_RATE_HZ",
    "GREEDY",
    "RESERVED_TEXT_IDS",
    "SAMPLED",
    "FrameChoice",
    "FrameStream",
    "QwenMimi",
    "QwenMimiConfig",
    "QwenMimiOutput",
    "SaidFrame",
    "answer",
    "converse",
    "heard_frames",
    "load",
    "save",
]
