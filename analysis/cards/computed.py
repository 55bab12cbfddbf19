"""What follows from a card's published dimensions: parameters, bytes of the cache, minutes of the context."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from analysis.cards.schema import NONE, UNKNOWN, Card, Decoder, Fact, Part

BYTES_PER_VALUE = 2
"""Keys and values in bfloat16, the precision in which these models are published."""
HEARD_SHARE = 0.5
"""A minute of conversation: half of it heard, half of it said, where a position is not both."""


def layer_parameters(
    width: int, heads: int, kv_heads: int, head_dim: int, mlp_width: int, qkv_bias: bool = False, experts: int = 1
) -> int:
    """One decoder layer: attention, gated feed-forward (all experts and their router), two norms without bias."""
    queries, keys = heads * head_dim, kv_heads * head_dim
    attention = 2 * width * queries + 2 * width * keys + (queries + 2 * keys if qkv_bias else 0)
    feed_forward = experts * 3 * width * mlp_width + (width * experts if experts > 1 else 0)
    return attention + feed_forward + 2 * width


def decoder_parameters(decoder: Decoder) -> int:
    """The whole language model: layers, last norm, token embeddings and, where not tied to them, the output."""
    layer = layer_parameters(
        decoder.width, decoder.heads, decoder.kv_heads, decoder.head_dim, decoder.mlp_width, decoder.qkv_bias,
        decoder.experts,
    )  # fmt: skip
    embeddings = decoder.vocabulary * decoder.width * (1 if decoder.is_tied else 2)
    return decoder.layers * layer + decoder.width + embeddings


def _whisper_encoder(layers: int, width: int, mel_bins: int) -> int:
    """Two convolutions of kernel 3, layers with a feed-forward of 4 widths, last norm; positions are not learned."""
    convolutions = 3 * mel_bins * width + width + 3 * width * width + width
    attention = 4 * width * width + 3 * width  # the keys have no bias
    feed_forward = 2 * 4 * width * width + 4 * width + width
    return convolutions + layers * (attention + feed_forward + 2 * 2 * width) + 2 * width


def _linears(widths: list[int]) -> int:
    return sum((into + 1) * out for into, out in pairwise(widths))


def _separate_linears(pairs: list[list[int]]) -> int:
    return sum((into + 1) * out for into, out in pairs)


def _decoder_layers(
    layers: int, width: int, heads: int, kv_heads: int, head_dim: int, mlp_width: int,
    cached_positions_per_text_token: int = 0,
) -> int:  # fmt: skip
    return layers * layer_parameters(width, heads, kv_heads, head_dim, mlp_width)


def _moshi_streams(width: int, codebooks: int, codebook_size: int, text_vocabulary: int) -> int:
    """A row for every token and one for the start of each stream; the text output has no bias."""
    return codebooks * (codebook_size + 1) * width + (text_vocabulary + 1) * width + text_vocabulary * width


def _moshi_depth(
    main_width: int, width: int, layers: int, mlp_width: int, steps: int, codebook_size: int, text_vocabulary: int
) -> int:
    """A step a codebook, each with projections and feed-forward of its own; the norms are shared."""
    per_step = 4 * width * width + 3 * width * mlp_width
    embeddings = (steps - 1) * (codebook_size + 1) * width + (text_vocabulary + 1) * width
    return layers * (steps * per_step + 2 * width) + steps * (main_width * width + width * codebook_size) + embeddings


def _code_embeddings(width: int, codebooks: int, codebook_size: int) -> int:
    """Of codes said and heard: a row for every code and one for the start of each stream."""
    return 2 * codebooks * (codebook_size + 1) * width


def _qwen_depth(
    main_width: int, width: int, heads: int, layers: int, mlp_width: int, codebooks: int, codebook_size: int
) -> int:
    """A Qwen2 over codebooks: reads a frame's state and text, then each code but the last; an output a codebook."""
    layer = layer_parameters(width, heads, heads, width // heads, mlp_width, qkv_bias=True)
    read = 2 * main_width * width + (codebooks - 1) * codebook_size * width
    return layers * layer + width + read + codebooks * codebook_size * width


def _published(parameters: float) -> int:
    return int(parameters)


_KINDS: Mapping[str, Callable[..., int]] = {
    "whisper_encoder": _whisper_encoder,
    "linears": _linears,
    "separate_linears": _separate_linears,
    "decoder_layers": _decoder_layers,
    "moshi_streams": _moshi_streams,
    "moshi_depth": _moshi_depth,
    "code_embeddings": _code_embeddings,
    "qwen_depth": _qwen_depth,
    "published": _published,
}


def part_parameters(part: Part) -> int | None:
    """Parameters of a part; None where they are unknown. Raises ValueError for a kind that nothing here computes."""
    if part.kind == UNKNOWN:
        return None
    if part.kind not in _KINDS:
        raise ValueError(f"part {part.name!r} is of kind {part.kind!r}; there are {', '.join(_KINDS)}, {UNKNOWN}")
    return _KINDS[part.kind](**part.dimensions)


def total_parameters(card: Card) -> tuple[int, bool]:
    """Everything that is known, and whether that is everything."""
    parts = [part_parameters(part) for part in card.parts]
    return decoder_parameters(card.decoder) + sum(p for p in parts if p is not None), None not in parts


def cache_bytes_per_position(card: Card) -> Fact:
    """Keys and values that a position leaves in the language model, of all rows of one conversation."""
    rows = card.facts["rows"].number
    if rows is None:
        return Fact(value=UNKNOWN)
    decoder = card.decoder
    size = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * BYTES_PER_VALUE * int(rows)
    how = f"computed: 2 x {decoder.layers} layers x {decoder.kv_heads} x {decoder.head_dim} x {BYTES_PER_VALUE} bytes"
    return Fact(value=size, source=how if rows == 1 else f"{how} x {int(rows)} rows")


def generator_bytes_per_text_token(card: Card) -> int:
    """Keys and values that a text token leaves in parts that grow with the speech said; 0 where there are none."""
    growing = [part.dimensions for part in card.parts if part.dimensions.get("cached_positions_per_text_token")]
    return sum(_cached(dimensions) for dimensions in growing)


def _cached(dimensions: Mapping[str, Any]) -> int:
    per_position = 2 * dimensions["layers"] * dimensions["kv_heads"] * dimensions["head_dim"] * BYTES_PER_VALUE
    return per_position * dimensions["cached_positions_per_text_token"]


def conversation_positions_hz(card: Card) -> Fact:
    """Positions a second of conversation, half heard and half said; the shared rate where a position is both."""
    heard, said = card.facts["heard_positions_hz"], card.facts["said_positions_hz"]
    if card.facts["shares_positions"].value is True:
        return Fact(value=heard.value, source="computed: a position is heard and said at once")
    if heard.number is None or said.number is None:
        return Fact(
            value=UNKNOWN if UNKNOWN in (heard.value, said.value) else NONE, source="computed: it does not do both"
        )
    rate = HEARD_SHARE * heard.number + (1 - HEARD_SHARE) * said.number
    return Fact(value=rate, source="computed: half heard, half said")


def context_minutes(card: Card, rate_hz: Fact) -> Fact:
    """How long the context lasts at a rate of positions."""
    positions = card.facts["context_positions"].number
    if positions is None or rate_hz.number is None:
        return Fact(value=UNKNOWN if UNKNOWN in (card.facts["context_positions"].value, rate_hz.value) else NONE)
    return Fact(value=positions / rate_hz.number / 60, source="computed: context over positions a second")


def cache_bytes_per_minute(card: Card) -> Fact:
    """What a minute of conversation adds, generator included, until a ring (if the model has one) is full."""
    per_position, rate = cache_bytes_per_position(card), conversation_positions_hz(card)
    if per_position.number is None or rate.number is None:
        return Fact(value=UNKNOWN if UNKNOWN in (per_position.value, rate.value) else NONE, source=rate.source)
    total = 60 * rate.number * per_position.number
    growing = generator_bytes_per_text_token(card)
    if not growing:
        return Fact(value=total, source="computed: bytes a position x positions a minute")
    text_hz = card.facts["text_tokens_hz"].number
    if text_hz is None:
        return Fact(value=UNKNOWN)
    said = 60 * (1 - HEARD_SHARE) * text_hz * growing
    return Fact(
        value=total + said, source="computed: bytes a position x positions a minute, and the speech generator's"
    )


def quantities(card: Card) -> dict[str, Fact]:
    """What a claimed number can be held beside: the facts, and what follows from them."""
    rate = conversation_positions_hz(card)
    minutes = context_minutes(card, rate)
    hours = Fact(value=minutes.number / 60, source=minutes.source) if minutes.number is not None else minutes
    return {
        **card.facts,
        "conversation_positions_hz": rate,
        "context_minutes_of_conversation": minutes,
        "context_hours_of_conversation": hours,
        "context_minutes_heard": context_minutes(card, card.facts["heard_positions_hz"]),
        "context_minutes_said": context_minutes(card, card.facts["said_positions_hz"]),
        "cache_bytes_per_position": cache_bytes_per_position(card),
        "cache_bytes_per_minute": cache_bytes_per_minute(card),
    }
