"""Qwen2.5 language models as speech backbones: for now their published dimensions. See config.py."""

from backbones.qwen_tts.config import PUBLISHED_SIZES, QwenSize, qwen_llm_config

__all__ = ["PUBLISHED_SIZES", "QwenSize", "qwen_llm_config"]
