"""Qwen text models that write without an end, spoken by a TTS engine behind them."""

from backbones.qwen_tts.checkpoint import random_llm, read_llm
from backbones.qwen_tts.config import PUBLISHED_SIZES, QwenConfig, QwenSize, qwen_llm_config
from backbones.qwen_tts.model import QwenTTS
from backbones.qwen_tts.stream import TextStep, TextStream, TokenStream
from backbones.qwen_tts.tokenizer import byte_tokenizer

__all__ = [
    "PUBLISHED_SIZES",
    "QwenConfig",
    "QwenSize",
    "QwenTTS",
    "TextStep",
    "TextStream",
    "TokenStream",
    "byte_tokenizer",
    "qwen_llm_config",
    "random_llm",
    "read_llm",
]
