"""Every dimension of a Qwen + Mimi model, from and to the `config.json` of its own folder format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from transformers import Qwen2Config

from backbones.config_file import read_config_file
from backbones.qwen_tts import qwen_llm_config

FRAME_RATE_HZ = 12.5
"""Mimi's: frames, which are positions of the decoder, per second."""

MODEL_TYPE = "qwen_mimi"
RESERVED_TEXT_IDS = 2
PUBLISHED_LAYERS, TTT_LAYERS = 28, 16
"""Of Qwen2.5-7B's layers the top 16 are where TTT goes; a model of another depth has the same share."""

Scale = Literal["smoke", "cpu", "gpu", "full"]

_DEPTH = "depth_"
_WHOLE_NUMBERS = (
    "codebooks", "codebook_size", "text_vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "depth_hidden_size",
    "depth_intermediate_size", "depth_num_hidden_layers", "depth_num_attention_heads",
)  # fmt: skip
_NUMBERS = ("rope_theta", "rms_norm_eps", "initializer_range")


@dataclass(frozen=True, kw_only=True)
class QwenMimiConfig:
    """A Qwen2 decoder over frames, and a small Qwen2 over the codebooks of one frame (`depth_...`).

    codebooks: said in a frame, and as many heard; codes are 0 to codebook_size - 1.
    text_vocab_size: rows of the text embedding. The last two are no tokens: no text, and the start of a stream.
        Qwen2.5's own embedding has such rows to spare (152,064 for 151,665 tokens).
    """

    codebooks: int = 8
    codebook_size: int = 2048
    text_vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    depth_hidden_size: int
    depth_intermediate_size: int
    depth_num_hidden_layers: int
    depth_num_attention_heads: int
    max_position_embeddings: int = 131_072
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in _WHOLE_NUMBERS:
            given = getattr(self, name)
            if type(given) is not int or given < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {given!r}")
        for name in _NUMBERS:
            given = getattr(self, name)
            if type(given) not in (int, float) or not math.isfinite(given) or given <= 0:
                raise ValueError(f"{name} must be a finite number above 0, got {given!r}")
        if self.codebooks < 2:
            raise ValueError(
                f"codebooks must be 2 or more, got {self.codebooks}: the depth decoder reads each to say the next"
            )
        if self.text_vocab_size <= RESERVED_TEXT_IDS:
            raise ValueError(
                f"text_vocab_size must leave tokens beside the {RESERVED_TEXT_IDS} reserved ids, got "
                f"{self.text_vocab_size}"
            )
        _check_heads("", self.hidden_size, self.num_attention_heads)
        _check_heads(_DEPTH, self.depth_hidden_size, self.depth_num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )

    @property
    def no_text_id(self) -> int:
        """What stands in the text stream where no token does. A model may say it."""
        return self.text_vocab_size - RESERVED_TEXT_IDS

    @property
    def start_text_id(self) -> int:
        """The text of what comes before the first frame. It is read once and never said."""
        return self.text_vocab_size - 1

    @property
    def start_code(self) -> int:
        """The code, of every codebook, of what comes before the first frame."""
        return self.codebook_size

    @property
    def token_streams(self) -> int:
        """What is embedded and summed at a position: the text, the codes said, the codes heard."""
        return 1 + 2 * self.codebooks

    @property
    def ttt_layers(self) -> range:
        """The top layers, 16 of 28: where TTT goes."""
        count = max(1, round(self.num_hidden_layers * TTT_LAYERS / PUBLISHED_LAYERS))
        return range(self.num_hidden_layers - count, self.num_hidden_layers)

    def decoder_config(self) -> Qwen2Config:
        """The decoder over frames, as transformers builds it; its embedding is the text's."""
        return self._qwen_config(
            self.text_vocab_size, self.hidden_size, self.intermediate_size, self.num_hidden_layers,
            self.num_attention_heads, self.num_key_value_heads, self.max_position_embeddings,
        )  # fmt: skip

    def depth_config(self) -> Qwen2Config:
        """The decoder over the codebooks of a frame; its embedding is that of all codes but the last codebook's."""
        return self._qwen_config(
            (self.codebooks - 1) * self.codebook_size, self.depth_hidden_size, self.depth_intermediate_size,
            self.depth_num_hidden_layers, self.depth_num_attention_heads, self.depth_num_attention_heads,
            self.codebooks,
        )  # fmt: skip

    def _qwen_config(
        self, vocab_size: int, width: int, mlp_width: int, layers: int, heads: int, kv_heads: int, positions: int
    ) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=vocab_size, hidden_size=width, intermediate_size=mlp_width, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=positions,
            rms_norm_eps=self.rms_norm_eps, initializer_range=self.initializer_range, use_sliding_window=False,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """Content of a `config.json`."""
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], origin: str = "the config") -> Self:
        """The config that `as_dict` gave. Raises ValueError, naming `origin`, for another kind and for other keys."""
        given = dict(content)
        if given.pop("model_type", None) != MODEL_TYPE:
            raise ValueError(f"{origin} is of model_type {content.get('model_type')!r}, expected {MODEL_TYPE!r}")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"{origin} has keys that no Qwen + Mimi has: {', '.join(unknown)}")
        if missing := sorted(known - set(given)):
            raise ValueError(f"{origin} lacks {', '.join(missing)}")
        return cls(**given)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The config in a folder's `config.json`, without what it says of a mounting (`folder.py` reads that)."""
        content = read_config_file(Path(path))
        content.pop("mounting", None)
        return cls.from_dict(content, str(path))

    @classmethod
    def planned(cls) -> Self:
        """Qwen2.5-7B's published dimensions over Mimi's eight codebooks that Moshi uses, and Moshi's depth in little.

        Nobody has trained it; the depth decoder's sizes (those of Moshi's depth transformer) are this project's choice.
        """
        qwen = qwen_llm_config("7B")
        return cls(
            text_vocab_size=qwen.vocab_size, hidden_size=qwen.hidden_size, intermediate_size=qwen.intermediate_size,
            num_hidden_layers=qwen.num_hidden_layers, num_attention_heads=qwen.num_attention_heads,
            num_key_value_heads=qwen.num_key_value_heads, depth_hidden_size=1024, depth_intermediate_size=2816,
            depth_num_hidden_layers=6, depth_num_attention_heads=16,
        )  # fmt: skip

    @classmethod
    def at_scale(cls, scale: Scale) -> Self:
        """The planned model's kind at a size: seconds (smoke), minutes (cpu), one GPU (gpu), as planned (full)."""
        if scale == "full":
            return cls.planned()
        if scale == "smoke":
            return cls(
                codebooks=3, codebook_size=32, text_vocab_size=42, hidden_size=32, intermediate_size=64,
                num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, depth_hidden_size=16,
                depth_intermediate_size=32, depth_num_hidden_layers=1, depth_num_attention_heads=2,
                initializer_range=0.1,
            )  # fmt: skip
        if scale == "cpu":
            # About 1 / sqrt(128): Qwen's 0.02 is meant for a width of 3584 (llama-omni-stage1 has the measurement).
            return cls(
                codebooks=4, codebook_size=256, text_vocab_size=514, hidden_size=128, intermediate_size=320,
                num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, depth_hidden_size=64,
                depth_intermediate_size=160, depth_num_hidden_layers=2, depth_num_attention_heads=2,
                rope_theta=10_000.0, initializer_range=0.08,
            )  # fmt: skip
        if scale == "gpu":
            return cls(
                text_vocab_size=4002, hidden_size=640, intermediate_size=1728, num_hidden_layers=14,
                num_attention_heads=10, num_key_value_heads=2, depth_hidden_size=192, depth_intermediate_size=512,
                depth_num_hidden_layers=4, depth_num_attention_heads=4,
            )  # fmt: skip
        raise ValueError(f"no scale {scale!r}; there are {', '.join(map(repr, get_args(Scale)))}")


def _check_heads(prefix: str, width: int, heads: int) -> None:
    if width % heads or (width // heads) % 2:
        raise ValueError(
            f"{prefix}hidden_size / {prefix}num_attention_heads must be an even whole number (rotary positions turn "
            f"pairs), got {width} / {heads}"
        )
