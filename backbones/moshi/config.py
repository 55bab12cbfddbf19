"""Everything a plain Moshi language model is built from, read from and written to the published `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from moshi.models import loaders

from backbones.config_file import read_config_file

FRAME_RATE_HZ: float = loaders.FRAME_RATE
"""Frames, which are positions of the temporal transformer, per second."""

Scale = Literal["smoke", "cpu", "gpu", "full"]
StreamKind = Literal["text", "own audio", "heard audio"]

NORMS = ("layer_norm", "layer_norm_f32", "rms_norm", "rms_norm_f32")
POSITIONAL_EMBEDDINGS = ("sin", "rope", "sin_rope", "none", "rope_concat")
DEPTH = "depformer_"

# Keys of a published file that are about its neighbours and its use, not about the language model.
OTHER_KEYS = (
    "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "lora_name", "model_type", "lm_gen_config",
    "tts_config", "stt_config", "model_id", "lora_rank", "lora_scaling", "depformer_causal",
)  # fmt: skip
# Parts that are not of the plain kind: allowed in a file as long as they are off.
NOT_PLAIN = ("conditioners", "fuser", "cross_attention", "quantize", "lora")
# What the package takes from the main transformer where the depth transformer's own is not given.
INHERITED_BY_DEPTH = ("num_heads", "num_layers", "max_period", "gating", "layer_scale", "kv_repeat")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One of the token streams that are summed into one vector per step.

    codebook: its number among the codebooks of its kind, 0 for text. delay_frames: how many steps later than the
    frame it belongs to the model sees it. is_predicted: the model generates it; else it is given (heard).
    """

    name: str
    kind: StreamKind
    codebook: int
    delay_frames: int
    cardinality: int
    is_predicted: bool


@dataclass(frozen=True, kw_only=True)
class MoshiConfig:
    """Arguments of the package's `LMModel`, under its names; what has a default has the package's own.

    dim, num_heads, num_layers, hidden_scale: the temporal transformer; its feed-forward width is hidden_scale * dim.
    context: positions its attention sees, and the capacity of its ring caches; None sees all and cannot stream.
    n_q, dep_q: audio codebooks read, and those of them predicted, one after the other, by the depth transformer.
    card, text_card: tokens of an audio codebook, and of text. delays: frames, of text first and then each codebook.
    depformer_*: the depth transformer. num_heads to kv_repeat of it are the main one's where None, as in the package.

    Raises ValueError on any value that no such model can be built from.
    """

    dim: int
    num_heads: int
    num_layers: int
    hidden_scale: float
    context: int | None
    n_q: int
    dep_q: int
    card: int
    text_card: int
    delays: tuple[int, ...]
    text_card_out: int | None = None
    demux_second_text_stream: bool = False
    existing_text_padding_id: int = 3
    existing_text_end_padding_id: int = 0
    norm: str = "layer_norm"
    norm_emb: bool = False
    bias_proj: bool = False
    gating: str = "none"
    positional_embedding: str = "sin"
    positional_scale: float = 1.0
    max_period: float = 10000
    layer_scale: float | None = None
    kv_repeat: int = 1
    causal: bool = True
    extra_heads_num_heads: int = 0
    extra_heads_dim: int = 6
    gradient_checkpointing: bool = False
    depformer_dim: int = 256
    depformer_num_heads: int | None = None
    depformer_num_layers: int | None = None
    depformer_dim_feedforward: int | tuple[int, ...] | None = None
    depformer_multi_linear: bool = False
    depformer_weights_per_step: bool = False
    depformer_weights_per_step_schedule: tuple[int, ...] | None = None
    depformer_low_rank_embeddings: int | None = None
    depformer_pos_emb: str = "sin"
    depformer_norm: str | None = None
    depformer_max_period: float | None = None
    depformer_gating: str | None = None
    depformer_layer_scale: float | None = None
    depformer_kv_repeat: int | None = None
    depformer_context: int | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_choices(self)
        if len(self.delays) != self.n_q + 1:
            raise ValueError(
                f"delays has {len(self.delays)} entries; n_q={self.n_q} codebooks and the text need {self.n_q + 1}"
            )
        if self.dep_q > self.n_q:
            raise ValueError(f"dep_q={self.dep_q} codebooks cannot be predicted of n_q={self.n_q} that are read")
        if not self.causal:
            raise ValueError("causal=False would let every frame see later ones: a conversation is causal")
        for name in ("existing_text_padding_id", "existing_text_end_padding_id"):
            token = vars(self)[name]
            if token >= self.text_card:
                raise ValueError(f"{name} is {token}, beyond the text vocabulary 0-{self.text_card - 1}")
        _check_heads("", self.dim, self.num_heads, self.kv_repeat, self.positional_embedding)
        if self.dep_q:
            self._check_depth()

    def _check_depth(self) -> None:
        own = self.lm_arguments()
        _check_heads(
            DEPTH, self.depformer_dim, own[f"{DEPTH}num_heads"], own[f"{DEPTH}kv_repeat"], self.depformer_pos_emb
        )
        if self.depformer_weights_per_step and own[f"{DEPTH}gating"] == "none":
            raise ValueError("depformer_weights_per_step needs a depformer_gating other than 'none', such as 'silu'")
        schedule = self.depformer_weights_per_step_schedule
        if schedule is not None and len(schedule) != self.dep_q:
            raise ValueError(
                f"depformer_weights_per_step_schedule has {len(schedule)} entries, expected one for each of dep_q="
                f"{self.dep_q} codebooks"
            )

    @property
    def streams(self) -> tuple[Stream, ...]:
        """Text, the model's own codebooks, then those it hears: in the order of the codes' second axis."""
        own = range(self.dep_q)
        heard = range(self.n_q - self.dep_q)
        listed: list[tuple[StreamKind, int, int]] = [("text", 0, self.text_card)]
        listed += [("own audio", codebook, self.card) for codebook in own]
        listed += [("heard audio", codebook, self.card) for codebook in heard]
        return tuple(
            Stream(
                name=kind if kind == "text" else f"{kind} {codebook}", kind=kind, codebook=codebook,
                delay_frames=delay, cardinality=cardinality, is_predicted=kind != "heard audio",
            )
            for (kind, codebook, cardinality), delay in zip(listed, self.delays, strict=True)
        )  # fmt: skip

    def lm_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `moshi.models.lm.LMModel`."""
        own = dict(vars(self))
        for name in INHERITED_BY_DEPTH:
            # A layer scale of None means that there is none, of main and depth transformer alike.
            if own[DEPTH + name] is None and name != "layer_scale":
                own[DEPTH + name] = own[name]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}

    def to_published(self) -> dict[str, Any]:
        """Content of a published `config.json`, without the names of the files beside it."""
        return self.lm_arguments()

    @classmethod
    def from_published(cls, published: Mapping[str, Any], origin: str = "the config") -> Self:
        """The config of a published file's content; where it is silent, the package's own defaults hold.

        Raises ValueError that names missing keys, keys that no plain model has, and parts that this adapter lacks.
        """
        given = {name: value for name, value in published.items() if name not in OTHER_KEYS}
        if "demux_second_stream" in given:
            given["demux_second_text_stream"] = given.pop("demux_second_stream")
        for name in NOT_PLAIN:
            value = given.pop(name, None)
            # A fuser's other keys are settings of sources that it does not have.
            sources = [value[method] for method in ("sum", "cross", "prepend") if method in value] if (
                name == "fuser" and isinstance(value, Mapping)
            ) else [value]  # fmt: skip
            if any(sources):
                raise ValueError(f"{origin} has {name} {value!r}: conditioned, quantized and LoRA models are not plain")
        known = {field.name: field for field in fields(cls)}
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"{origin} has keys that no plain Moshi has: {', '.join(unknown)}")
        required = [name for name, field in known.items() if field.default is MISSING]
        if missing := [name for name in required if name not in given]:
            raise ValueError(f"{origin} lacks {', '.join(missing)}")
        given.setdefault(f"{DEPTH}layer_scale", given.get("layer_scale"))
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """The config in a published `config.json`; raises ValueError where `from_published` does, and for no JSON."""
        path = Path(path)
        return cls.from_published(read_config_file(path), str(path))

    @classmethod
    def published(cls) -> Self:
        """The 7B model, from the package's own numbers."""
        return cls.from_published(loaders._lm_kwargs, "moshi.models.loaders._lm_kwargs")

    @classmethod
    def at_scale(cls, scale: Scale) -> Self:
        """The published model's kind at a size: seconds (smoke), minutes (cpu), one GPU (gpu), as it is (full)."""
        if scale == "full":
            return cls.published()
        if scale == "smoke":
            return cls._small(dim=32, heads=4, layers=4, context=16, own=2, card=24, text_card=40, depth=(16, 2, 2))
        if scale == "cpu":
            return cls._small(dim=128, heads=4, layers=4, context=250, own=4, card=256, text_card=512, depth=(64, 2, 2))
        if scale == "gpu":
            return cls._small(
                dim=640, heads=10, layers=12, context=1500, own=4, card=2048, text_card=4000, depth=(192, 4, 4)
            )
        raise ValueError(f"no scale {scale!r}; there are 'smoke', 'cpu', 'gpu', 'full'")

    @classmethod
    def _small(
        cls, *, dim: int, heads: int, layers: int, context: int, own: int, card: int, text_card: int,
        depth: tuple[int, int, int],
    ) -> Self:  # fmt: skip
        """As the published model but for sizes; `own` codebooks spoken, as many heard, the first of each undelayed."""
        delays = [0] + 2 * ([0] + [1] * (own - 1))
        width, depth_heads, depth_layers = depth
        hidden_scale = loaders._lm_kwargs["hidden_scale"]
        sizes = {
            "dim": dim, "num_heads": heads, "num_layers": layers, "context": context, "n_q": 2 * own, "dep_q": own,
            "card": card, "text_card": text_card, "delays": delays, "depformer_dim": width,
            "depformer_num_heads": depth_heads, "depformer_num_layers": depth_layers,
            "depformer_dim_feedforward": int(hidden_scale * width), "depformer_context": own,
        }  # fmt: skip
        return cls.from_published({**loaders._lm_kwargs, **sizes})

    @classmethod
    def text_only(
        cls, *, dim: int = 64, num_heads: int = 4, num_layers: int = 4, context: int | None = 64, text_card: int = 256,
        hidden_scale: float = 4.125,
    ) -> Self:  # fmt: skip
        """One text stream and no depth transformer; the layers are the published model's kind."""
        sizes = {
            "dim": dim, "num_heads": num_heads, "num_layers": num_layers, "context": context, "text_card": text_card,
            "hidden_scale": hidden_scale, "n_q": 0, "dep_q": 0, "delays": [0],
        }  # fmt: skip
        # The published depformer_multi_linear with no codebook makes no projection; without it there is an unused one.
        plain = {name: value for name, value in loaders._lm_kwargs.items() if name != f"{DEPTH}dim_feedforward"}
        return cls.from_published({**plain, **sizes})


def _check_numbers(config: MoshiConfig) -> None:
    for name in ("dim", "num_heads", "num_layers", "card", "text_card", "kv_repeat", "depformer_dim"):
        _require_whole(name, vars(config)[name], at_least=1)
    for name in ("n_q", "dep_q", "existing_text_padding_id", "existing_text_end_padding_id", "extra_heads_num_heads"):
        _require_whole(name, vars(config)[name], at_least=0)
    for name in (
        "context", "text_card_out", f"{DEPTH}num_heads", f"{DEPTH}num_layers", f"{DEPTH}low_rank_embeddings",
        f"{DEPTH}kv_repeat",
    ):  # fmt: skip
        if vars(config)[name] is not None:
            _require_whole(name, vars(config)[name], at_least=1)
    for name in ("hidden_scale", "max_period", f"{DEPTH}max_period"):
        value = vars(config)[name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a positive number, got {value!r}")
    if not isinstance(config.delays, tuple):
        raise ValueError(f"delays must be a tuple of frames, text first, got {config.delays!r}")
    for delay in config.delays:
        _require_whole("each of delays", delay, at_least=0)


def _check_choices(config: MoshiConfig) -> None:
    for name, allowed in (
        ("norm", NORMS), ("positional_embedding", POSITIONAL_EMBEDDINGS), (f"{DEPTH}pos_emb", POSITIONAL_EMBEDDINGS),
    ):  # fmt: skip
        if vars(config)[name] not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {vars(config)[name]!r}")


def _check_heads(prefix: str, dim: int, heads: int, kv_repeat: int, positional_embedding: str) -> None:
    if dim % heads:
        raise ValueError(f"{prefix}dim {dim} is not a multiple of {prefix}num_heads {heads}")
    if "rope" in positional_embedding and (dim // heads) % 2:
        raise ValueError(
            f"{prefix}dim / {prefix}num_heads must be even (rotary positions turn pairs), got {dim // heads}"
        )
    if heads % kv_repeat:
        raise ValueError(f"{prefix}num_heads {heads} is not a multiple of {prefix}kv_repeat {kv_repeat}")


def _require_whole(name: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}")
