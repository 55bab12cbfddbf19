"""Pretrained speech models that test-time training is mounted on, one folder each."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from moshi.models.lm import LMModel
    from torch import nn
    from transformers import PreTrainedModel

    from backbones.llama_omni import LlamaOmni
    from backbones.qwen_mimi import QwenMimi
    from backbones.qwen_tts import QwenTTS
    from ttt_core import TTTConfig
    from ttt_core.mounting import MountMode

# Moshi reads this when its modules are first imported, by whomever: it would compile rotations and norms, tens of
# seconds on a CPU, and a process that ran what another had compiled has crashed.
if not torch.cuda.is_available():
    os.environ.setdefault("NO_TORCH_COMPILE", "1")

__all__ = ["MoshiHost", "load_backbone"]

BACKBONES = ("llama-omni", "moshi", "qwen-tts", "qwen-mimi")


class MoshiHost:
    """The Moshi side of `ttt_core.mount` (entry-point group `ttt_core.hosts`).

    Here and not in `backbones.moshi`: every host is loaded for every mount, also where moshi is not installed.
    """

    def matches(self, model: nn.Module) -> bool:
        # Whoever holds an LMModel has imported its module.
        moshi_lm = sys.modules.get("moshi.models.lm")
        return moshi_lm is not None and isinstance(model, moshi_lm.LMModel)

    def mount(
        self, model: nn.Module, layers: Iterable[int], config: TTTConfig | None = None, mode: MountMode = "replace",
        window: int | Mapping[int, int] | None = None, sinks: int = 0,
    ) -> nn.Module:  # fmt: skip
        from backbones.moshi import mount

        return mount(model, layers, config, mode, window, sinks)


def load_backbone(
    name: Literal["llama-omni", "moshi", "qwen-tts", "qwen-mimi"],
    scale: Literal["smoke", "cpu", "gpu", "full"] = "smoke",
    weights: str | Path | None = None,
    ttt: TTTConfig | Mapping[str, Any] | None = None,
) -> LlamaOmni | LMModel | QwenTTS | QwenMimi:
    """A speech model, with test-time training in its top layers (a quarter; of qwen-mimi 16 of 28) if `ttt` is given.

    scale: its size with random weights; `full` has the published dimensions. weights: a folder in the model's
    published format, whose own dimensions then hold. ttt: a `TTTConfig`, or a mapping of its fields in which
    what is left open is the model's own. Raises ValueError for an unknown name, and for fields TTTConfig does not have.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone {name!r}; there is {', '.join(BACKBONES)}")
    if ttt is not None:
        _check_ttt_fields(ttt)  # before the minutes that loading takes
    if name == "moshi":
        return _load_moshi(scale, weights, ttt)
    if name == "qwen-tts":
        return _load_qwen_tts(scale, weights, ttt)
    return _load_qwen_mimi(scale, weights, ttt) if name == "qwen-mimi" else _load_llama_omni(scale, weights, ttt)


# A backbone's libraries are imported inside its own function: they are loaded only by those who use it.
def _load_llama_omni(
    scale: Literal["smoke", "cpu", "gpu", "full"],
    weights: str | Path | None,
    ttt: TTTConfig | Mapping[str, Any] | None,
) -> LlamaOmni:
    from backbones.llama_omni import LlamaOmni, LlamaOmniConfig

    config = LlamaOmniConfig.at_scale(scale)
    model = LlamaOmni(config) if weights is None else LlamaOmni.from_checkpoint(weights)
    if ttt is not None:
        mount_on_top_quarter(model.llm, ttt)
    return model


def _load_moshi(
    scale: Literal["smoke", "cpu", "gpu", "full"],
    weights: str | Path | None,
    ttt: TTTConfig | Mapping[str, Any] | None,
) -> LMModel:
    from backbones.moshi import MoshiConfig, build_lm, load_lm, mount

    config = MoshiConfig.at_scale(scale)
    lm = build_lm(config) if weights is None else load_lm(weights)
    if ttt is not None:
        heads = lm.transformer.layers[0].self_attn.num_heads
        mount(lm, _top_quarter(len(lm.transformer.layers)), _resolved(ttt, lm.dim, heads, lm.dim // heads))
    return lm


def _load_qwen_tts(
    scale: Literal["smoke", "cpu", "gpu", "full"],
    weights: str | Path | None,
    ttt: TTTConfig | Mapping[str, Any] | None,
) -> QwenTTS:
    from backbones.qwen_tts import QwenConfig, QwenTTS

    model = QwenTTS.from_config(QwenConfig.at_scale(scale)) if weights is None else QwenTTS.from_checkpoint(weights)
    if ttt is not None:
        mount_on_top_quarter(model.llm, ttt)
    return model


def _load_qwen_mimi(
    scale: Literal["smoke", "cpu", "gpu", "full"],
    weights: str | Path | None,
    ttt: TTTConfig | Mapping[str, Any] | None,
) -> QwenMimi:
    from backbones.mounting import mount
    from backbones.qwen_mimi import QwenMimi, QwenMimiConfig, load

    model = QwenMimi(QwenMimiConfig.at_scale(scale)) if weights is None else load(weights)
    if ttt is not None:
        host = model.config
        heads = host.num_attention_heads
        # Qwen2's attention has biases, and TTT starts from it.
        fields = ttt if not isinstance(ttt, Mapping) else {"projection_bias": True, **ttt}
        config = _resolved(fields, host.hidden_size, heads, host.hidden_size // heads)
        mount(model.decoder, host.ttt_layers, config)
    return model


def _check_ttt_fields(ttt: object) -> None:
    from ttt_core import TTTConfig

    known = [field.name for field in dataclasses.fields(TTTConfig)]
    if isinstance(ttt, TTTConfig):
        return
    if not isinstance(ttt, Mapping):
        raise ValueError(f"ttt must be a TTTConfig or a mapping of its fields ({{}} for the usual ones), got {ttt!r}")
    unknown = [name for name in ttt if name not in known]
    if unknown:
        raise ValueError(f"TTTConfig has no field {unknown}; it has {known}")


def mount_on_top_quarter(llm: PreTrainedModel, ttt: TTTConfig | Mapping[str, Any]) -> None:
    """Mounts TTT on the last quarter of a transformers decoder's layers (24-31 of 32), in place.

    Heads and biases that `ttt` leaves open are those of the attention that TTT replaces.
    """
    from ttt_core import mount

    _check_ttt_fields(ttt)
    attention = llm.get_decoder().layers[0].self_attn
    if isinstance(ttt, Mapping):
        ttt = {"projection_bias": attention.q_proj.bias is not None, **ttt}  # Qwen2's queries, keys and values have one
    config = _resolved(ttt, llm.config.hidden_size, llm.config.num_attention_heads, attention.head_dim)
    mount(llm, layers=_top_quarter(llm.config.num_hidden_layers), config=config)


def _top_quarter(layers: int) -> range:
    return range(layers - max(1, layers // 4), layers)


def _resolved(ttt: TTTConfig | Mapping[str, Any], hidden_size: int, heads: int, head_dim: int) -> TTTConfig:
    """The config, its sizes those of the attention where they are left open."""
    from ttt_core import TTTConfig

    if isinstance(ttt, TTTConfig):
        return ttt
    fields: dict[str, Any] = {"hidden_size": hidden_size, **ttt}
    if "num_heads" not in fields:
        fields |= {"num_heads": heads, "head_dim": head_dim}
    return TTTConfig(**fields)
