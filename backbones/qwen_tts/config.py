"""Dimensions of Qwen text models under their published names, and the published sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from transformers import Qwen2Config, Qwen3Config

QwenFamily = Literal["qwen2", "qwen3"]
QwenSize = Literal["1.5B", "7B", "qwen3-1.7B"]
FAMILIES: tuple[QwenFamily, ...] = get_args(QwenFamily)
PUBLISHED_SIZES: tuple[QwenSize, ...] = get_args(QwenSize)

_ABOVE_ZERO = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "rope_theta", "rms_norm_eps", "initializer_range",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QwenConfig:
    """A Qwen language model. The defaults are Qwen2.5-1.5B's.

    model_type: "qwen2" (Qwen2 and Qwen2.5: biases on queries, keys and values) or "qwen3" (norms on queries and keys).
    head_dim: None is hidden_size / num_attention_heads; Qwen3's published sizes have 128 whatever their width.
    Raises ValueError for sizes that make no model.
    """

    model_type: QwenFamily = "qwen2"
    vocab_size: int = 151_936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    head_dim: int | None = None
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 131_072
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    bos_token_id: int | None = 151_643
    eos_token_id: int | None = 151_643

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise ValueError(f"no Qwen of model_type {self.model_type!r} here; there are {', '.join(FAMILIES)}")
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise ValueError(f"QwenConfig.{name} must be above 0, got {getattr(self, name)!r}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}; "
                "give head_dim"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is no multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"QwenConfig.{name} must be 0 to {self.vocab_size - 1}, or none; got {token}")

    @property
    def resolved_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def key_values_per_position(self) -> int:
        """Numbers that one layer's attention keeps of one position."""
        return 2 * self.num_key_value_heads * self.resolved_head_dim

    @property
    def projection_bias(self) -> bool:
        """Whether queries, keys and values have biases, which a TTT layer in their place must then have too."""
        return self.model_type == "qwen2"

    def llm_config(self) -> Qwen2Config | Qwen3Config:
        """The configuration that transformers builds it from, every layer with full attention."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del given["model_type"], given["rope_theta"]
        # The published files give rope_theta on its own; transformers 5 keeps it with the other rotary settings.
        given["rope_parameters"] = {"rope_type": "default", "rope_theta": self.rope_theta}
        given |= {"hidden_act": "silu", "use_sliding_window": False, "attention_dropout": 0.0}
        if self.model_type == "qwen3":
            return Qwen3Config(**given | {"head_dim": self.resolved_head_dim})  # left out, it would be 128
        if self.head_dim is None:
            del given["head_dim"]  # Qwen2's attention divides where the field is missing, and fails where it is none
        return Qwen2Config(**given)

    @classmethod
    def published(cls, size: QwenSize) -> Self:
        """Qwen/Qwen2.5-1.5B, Qwen/Qwen2.5-7B or Qwen/Qwen3-1.7B. Raises ValueError for a size that is not here."""
        if size == "1.5B":
            return cls()
        if size == "7B":
            return cls(
                vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_attention_heads=28,
                num_key_value_heads=4, tie_word_embeddings=False,
            )  # fmt: skip
        if size == "qwen3-1.7B":
            return cls(
                model_type="qwen3", hidden_size=2048, intermediate_size=6144, num_attention_heads=16,
                num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, eos_token_id=151_645,
            )  # fmt: skip
        raise ValueError(f"no Qwen of size {size!r} here; there are {', '.join(PUBLISHED_SIZES)}")

    @classmethod
    def tiny(cls, **overrides: Any) -> Self:
        """A model of the same make that runs on a CPU in seconds, for a vocabulary of bytes and one end token.

        Raises ValueError for a name that is no field.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(overrides) - names):
            raise ValueError(f"QwenConfig has no field {unknown}; it has {sorted(names)}")
        tiny = cls(
            vocab_size=320, hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, bos_token_id=256, eos_token_id=256,
        )  # fmt: skip
        return dataclasses.replace(tiny, **overrides)

    @classmethod
    def at_scale(cls, scale: Literal["smoke", "cpu", "gpu", "full"]) -> Self:
        """The model's size at a scale: `full` is the published 1.5B."""
        if scale == "smoke":
            return cls.tiny()
        if scale == "cpu":
            return cls.tiny(hidden_size=128, intermediate_size=320)
        if scale == "gpu":
            return cls.tiny(
                vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                num_attention_heads=12, num_key_value_heads=4,
            )  # fmt: skip
        if scale == "full":
            return cls.published("1.5B")
        raise ValueError(f"no scale {scale!r}; there are 'smoke', 'cpu', 'gpu', 'full'")


def qwen_llm_config(size: QwenSize) -> Qwen2Config | Qwen3Config:
    """The published language model of a size, as transformers builds it. Raises ValueError for one that is not here."""
    return QwenConfig.published(size).llm_config()
