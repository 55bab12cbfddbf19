"""The small full-duplex models that fact streams are read by: Moshi's own classes, without a depth transformer."""

from __future__ import annotations

from backbones.moshi import MoshiConfig
from experiments.fact_streams.configuration import ModelSizes
from experiments.fact_streams.spec import FactStreamSpec


def moshi_config(sizes: ModelSizes, stream: FactStreamSpec, window: int | None) -> MoshiConfig:
    """Moshi's temporal transformer in small: one text stream that is said and two that are heard."""
    return MoshiConfig(
        dim=sizes.dim,
        num_heads=sizes.num_heads,
        num_layers=sizes.num_layers,
        hidden_scale=sizes.hidden_scale,
        max_period=sizes.max_period,
        norm="rms_norm_f32",
        gating="silu",
        positional_embedding="rope",
        context=window,
        n_q=2,
        dep_q=0,
        delays=(0, 0, 0),
        card=stream.heard_codes,
        text_card=stream.text_tokens,
        existing_text_padding_id=0,
    )
