"""What is mounted where, as fields of the model's own config, so that it is saved and loaded with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from ttt_core import TTTConfig

NATIVE_LAYER_TYPES = ("full_attention", "sliding_attention")
MOUNTED_LAYER_TYPES = ("ttt", "window")


@dataclass(kw_only=True)
class MountedConfigFields:
    """Fields that a mounted model's config adds to its family's.

    layer_types: one per layer: "full_attention" or "sliding_attention" as the family has it, "window" for
        attention with a window and pinned sinks, "ttt" where TTT replaced the attention.
    ttt_layers: layers with TTT. ttt_mode: "replace" or "gated". ttt_config: TTTConfig's fields, None without TTT.
    attention_windows: {layer as a string (JSON keys are): positions its attention sees}.
    attention_sinks: first positions pinned in front of every window.
    """

    layer_types: list[str] | None = None
    ttt_layers: list[int] = field(default_factory=list)
    ttt_mode: str = "replace"
    ttt_config: dict[str, Any] | None = None
    attention_windows: dict[str, int] = field(default_factory=dict)
    attention_sinks: int = 0

    def validate_layer_type(self) -> None:
        """Stands in for transformers' check, which knows none of our layer types."""
        allowed = NATIVE_LAYER_TYPES + MOUNTED_LAYER_TYPES
        if self.layer_types is None:
            return
        unknown = sorted(set(self.layer_types) - set(allowed))
        if unknown:
            raise ValueError(f"layer_types must be among {', '.join(allowed)}; got {', '.join(unknown)}")
        if len(self.layer_types) != self.num_hidden_layers:  # type: ignore[attr-defined]
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers"  # type: ignore[attr-defined]
            )


def read_ttt_config(config: PreTrainedConfig) -> TTTConfig:
    """The TTTConfig that a mounted config holds."""
    if config.ttt_config is None:
        raise ValueError("the model has no TTT layers, only windows: there is no TTT config")
    return TTTConfig(**config.ttt_config)


def window_of(config: PreTrainedConfig, layer: int) -> int | None:
    """Positions that a mounted model's layer sees through a window with sinks; None where it has no such window."""
    return config.attention_windows.get(str(layer))


def mounted_config_fields(
    config: PreTrainedConfig, ttt_layers: list[int], mode: str, ttt_config: TTTConfig | None, windows: dict[int, int],
    sinks: int,
) -> dict[str, Any]:  # fmt: skip
    """The fields to add to an unmounted model's config."""
    layer_types = native_layer_types(config)
    for layer in windows:
        layer_types[layer] = "window"
    if mode == "replace":
        for layer in ttt_layers:
            layer_types[layer] = "ttt"
    return {
        "layer_types": layer_types,
        "ttt_layers": ttt_layers,
        "ttt_mode": mode,
        "ttt_config": None if ttt_config is None else asdict(ttt_config),
        "attention_windows": {str(layer): positions for layer, positions in sorted(windows.items())},
        "attention_sinks": sinks,
    }


def native_layer_types(config: PreTrainedConfig) -> list[str]:
    """Attention type of each layer of a config of the four families."""
    if "layer_types" in config and config.layer_types is not None:
        return list(config.layer_types)
    is_sliding = "sliding_window" in config and config.sliding_window is not None
    return ["sliding_attention" if is_sliding else "full_attention"] * config.num_hidden_layers
