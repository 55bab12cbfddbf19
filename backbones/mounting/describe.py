"""What a decoder remembers of a conversation, in bytes: what grows with it, and what does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from backbones.mounting.config import native_layer_types, window_of
from backbones.mounting.decoder import MountedCausalLM, MountedDecoder
from backbones.mounting.families import FAMILIES
from backbones.mounting.host import ttt_layers

Kind = Literal["attention", "window", "ttt", "ttt+attention", "ttt+window"]
BESIDE_TTT: dict[Kind, Kind] = {"ttt": "ttt", "attention": "ttt+attention", "window": "ttt+window"}
COUNT_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class LayerMemory:
    """What one layer keeps of one stream. detail: the window and sinks, or the inner model."""

    layer: int
    kind: Kind
    bytes_per_position: int
    bytes_fixed: int
    detail: str


@dataclass(frozen=True, kw_only=True)
class MemoryDescription:
    """Bytes that one stream (one row of a batch) takes, layer by layer. Fixed bytes are those of filled windows."""

    layers: tuple[LayerMemory, ...]

    @property
    def bytes_per_position(self) -> int:
        return sum(layer.bytes_per_position for layer in self.layers)

    @property
    def bytes_fixed(self) -> int:
        return sum(layer.bytes_fixed for layer in self.layers)

    @property
    def is_bounded(self) -> bool:
        """True when a stream takes the same memory however long it gets: every layer is TTT or windowed."""
        return self.bytes_per_position == 0

    def bytes_at(self, positions: int) -> int:
        """Bytes of one stream after that many positions, windows filled."""
        return self.bytes_fixed + positions * self.bytes_per_position

    def __str__(self) -> str:
        header = ("layer", "kind", "bytes/position", "bytes fixed", "detail")
        rows = [
            (str(each.layer), each.kind, f"{each.bytes_per_position:,}", f"{each.bytes_fixed:,}", each.detail)
            for each in self.layers
        ]
        verdict = "bounded" if self.is_bounded else "grows with every position"
        total = ("total", "", f"{self.bytes_per_position:,}", f"{self.bytes_fixed:,}", verdict)
        table = [header, *rows, total]
        widths = [max(len(row[column]) for row in table) for column in range(len(header))]
        is_number = (True, False, True, True, False)
        return "\n".join(
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, is_number, strict=True)
            ).rstrip()
            for row in table
        )


def describe(model: PreTrainedModel) -> MemoryDescription:
    """Memory that one stream takes in a mounted or a plain decoder of the four families.

    Computed from the config, the parameters' dtype and the TTT layers' sizes, so it works on the meta device too.
    """
    plain = tuple(each for family in FAMILIES for each in (family.plain_decoder, family.plain_causal_lm))
    if not isinstance(model, plain):
        raise ValueError(f"cannot describe a {type(model).__name__}: it is of none of the families mounting knows")
    config = model.config
    is_mounted = isinstance(model, (MountedDecoder, MountedCausalLM))
    layer_types = config.layer_types if is_mounted else native_layer_types(config)
    ttt = {index: layer.initial_state(1) for index, layer in ttt_layers(model).items()} if is_mounted else {}
    per_position = _attention_bytes_per_position(model)
    layers = []
    for index, layer_type in enumerate(layer_types):
        growing, fixed, detail = 0, 0, ""
        kind: Kind = "ttt"
        if layer_type == "full_attention":
            growing, kind = per_position, "attention"
        elif layer_type == "sliding_attention":
            # transformers keeps one position less: the newest key joins its window in the call that brings it.
            fixed, kind = (config.sliding_window - 1) * per_position, "window"
            detail = f"{config.sliding_window} positions (the family's own)"
        elif layer_type == "window":
            window, sinks = window_of(config, index), config.attention_sinks
            assert window is not None
            fixed, kind = (window + sinks) * per_position + COUNT_BYTES, "window"
            detail = f"{window} positions" + (f" + {sinks} sinks" if sinks else "")
        if index in ttt:
            state = ttt[index]
            fixed += state.nbytes
            inner = f"{state.config.inner_model}, {state.config.num_heads} heads of {state.config.resolved_head_dim}"
            detail = f"{inner}; {detail}" if detail else inner
            kind = BESIDE_TTT[kind]
        layers.append(LayerMemory(layer=index, kind=kind, bytes_per_position=growing, bytes_fixed=fixed, detail=detail))
    return MemoryDescription(layers=tuple(layers))


def _attention_bytes_per_position(model: PreTrainedModel) -> int:
    """Bytes of one key and one value over all key/value heads."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    if "head_dim" in config and config.head_dim is not None:
        head_dim = config.head_dim
    weight = _embedding(model).weight
    return 2 * config.num_key_value_heads * head_dim * weight.element_size()


def _embedding(model: PreTrainedModel) -> nn.Embedding:
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    return embedding
