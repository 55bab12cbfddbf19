"""Pretrained speech models that test-time training is mounted on, one folder each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from backbones.llama_omni import LlamaOmni
    from ttt_core import TTTConfig

__all__ = ["load_backbone"]

BACKBONES = ("llama-omni",)


def load_backbone(
    name: str,
    scale: Literal["smoke", "cpu", "gpu", "full"] = "smoke",
    weights: str | Path | None = None,
    ttt: TTTConfig | Mapping[str, Any] | None = None,
) -> LlamaOmni:
    """A speech model, with test-time training in the top quarter of its layers where `ttt` says so.

    scale: its size with random weights; `full` has the published dimensions. weights: a folder in the model's
    published format, whose own dimensions then hold. ttt: a `TTTConfig`, or a mapping of its fields in which
    what is left open is the model's own. Raises ValueError for an unknown name, and for fields TTTConfig does not have.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone {name!r}; there is {', '.join(BACKBONES)}")
    # Imported here: a backbone's libraries are loaded only by those who use it.
    from backbones.llama_omni import LlamaOmni, LlamaOmniConfig

    if ttt is not None:
        _check_ttt_fields(ttt)  # before the minutes that loading takes
    config = LlamaOmniConfig.at_scale(scale)
    model = LlamaOmni(config) if weights is None else LlamaOmni.from_checkpoint(weights)
    if ttt is not None:
        mount_on_top_quarter(model.llm, ttt)
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

    Heads that `ttt` leaves open are those of the attention that TTT replaces.
    """
    from ttt_core import TTTConfig, mount

    _check_ttt_fields(ttt)
    host = llm.config
    if not isinstance(ttt, TTTConfig):
        fields: dict[str, Any] = {"hidden_size": host.hidden_size, **ttt}
        if "num_heads" not in fields:
            fields |= {"num_heads": host.num_attention_heads, "head_dim": host.head_dim}
        ttt = TTTConfig(**fields)
    layers = host.num_hidden_layers
    mount(llm, layers=range(layers - max(1, layers // 4), layers), config=ttt)
