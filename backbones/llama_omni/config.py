"""Every dimension of a Llama-Omni model, read from and written to the published `config.json`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, Self

from transformers import LlamaConfig

from backbones.llama_omni.config_checks import check_values, check_whole_number

logger = logging.getLogger(__name__)

MODEL_TYPE = "omni_speech2s_llama"
MEL_FRAMES_PER_ENCODER_FRAME = 2
"""The encoder's second convolution has stride 2: 100 Hz mel frames become 50 Hz encoder frames."""

LLAMA_3_1_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}

# Not in the published file: the encoder's dimensions are inferred from its weights, the window is ours.
OWN_KEYS = (
    "speech_encoder_mel_bins",
    "speech_encoder_context",
    "speech_encoder_heads",
    "speech_encoder_layers",
    "speech_projector_hidden_size",
    "speech_generator_window",
)
NOT_IN_THE_FILE = ("other_published_keys", "generation_config")
REQUIRED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "speech_encoder_type",
    "speech_encoder_hidden_size",
    "speech_encoder_ds_rate",
    "speech_projector_type",
    "speech_generator_type",
    "ctc_decoder_config",
    "ctc_upsample_factor",
    "unit_vocab_size",
)


WHISPER_HEADS = {384: 6, 512: 8, 768: 12, 1024: 16, 1280: 20}
"""Attention heads of each published whisper encoder by its width; the shapes of its weights do not tell them."""


def assumed_heads(encoder_width: int) -> int:
    """Heads of a speech encoder that nothing states: the published whisper's of this width, else 64 channels a head."""
    if encoder_width in WHISPER_HEADS:
        return WHISPER_HEADS[encoder_width]
    heads = max(2, encoder_width // 64)
    logger.warning(
        "config.json does not say how many attention heads the speech encoder has, and no published whisper is %d "
        "wide: assuming %d. Give speech_encoder_heads to from_checkpoint, or in config.json, to be sure.",
        encoder_width,
        heads,
    )
    return heads


@dataclass(frozen=True, kw_only=True)
class LlamaOmniConfig:
    """Llama-Omni's dimensions under their published names. The defaults are Llama-3.1-8B-Omni's.

    `ctc_decoder_config` is the published string "(layers, width, heads, mlp width)" of the speech generator.
    `speech_generator_window` is ours: the number of most recent generator positions a position sees (None: all).
    """

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: dict[str, Any] | None = field(default_factory=lambda: dict(LLAMA_3_1_ROPE))
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = field(default_factory=lambda: [128001, 128008, 128009])
    pad_token_id: int | None = None

    speech_encoder: str = "models/speech_encoder/large-v3.pt"
    speech_encoder_type: str = "whisper"
    speech_encoder_hidden_size: int = 1280
    speech_encoder_ds_rate: int = 5
    speech_projector_type: str = "linear"
    speech_generator_type: str = "ctc"
    ctc_decoder_config: str = "(2,4096,32,11008)"
    ctc_upsample_factor: int = 25
    ctc_loss_weight: float = 1.0
    unit_vocab_size: int = 1000

    speech_encoder_mel_bins: int = 128
    speech_encoder_context: int = 1500
    speech_encoder_heads: int = 20
    speech_encoder_layers: int = 32
    speech_projector_hidden_size: int = 2048
    speech_generator_window: int | None = None

    other_published_keys: dict[str, Any] = field(default_factory=dict)
    """Keys of a `config.json` that no code here reads; kept so that saving writes them back."""
    generation_config: dict[str, Any] | None = None
    """Content of a `generation_config.json`, kept for saving; its end and padding ids are this config's own."""

    def __post_init__(self) -> None:
        check_values(vars(self))
        supported = {
            "speech_encoder_type": "whisper",
            "speech_projector_type": "linear",
            "speech_generator_type": "ctc",
        }
        for name, only in supported.items():
            given = field_value(self, name)
            if only not in given.lower():
                raise ValueError(f"{name} {given!r} is not supported; only {only!r} is")
        self.speech_generator_dimensions  # noqa: B018  (raises on a malformed string)

    @property
    def rope_type(self) -> str:
        return "default" if self.rope_scaling is None else str(self.rope_scaling["rope_type"])

    @property
    def speech_generator_dimensions(self) -> tuple[int, int, int, int]:
        """(layers, width, heads, mlp width) of the speech generator."""
        try:
            layers, width, heads, mlp_width = (int(n) for n in self.ctc_decoder_config.strip("() ").split(","))
        except ValueError as error:
            raise ValueError(
                f'ctc_decoder_config must read "(layers,width,heads,mlp width)", got {self.ctc_decoder_config!r}'
            ) from error
        if min(layers, width, heads, mlp_width) < 1:
            raise ValueError(f"ctc_decoder_config {self.ctc_decoder_config!r}: every number must be at least 1")
        if width % heads or (width // heads) % 2:
            raise ValueError(f"ctc_decoder_config {self.ctc_decoder_config!r}: width / heads must be even and whole")
        return layers, width, heads, mlp_width

    @property
    def mel_frames_per_window(self) -> int:
        """Mel frames the encoder reads at once (3000 = 30 s for whisper)."""
        return MEL_FRAMES_PER_ENCODER_FRAME * self.speech_encoder_context

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Token ids that end a reply."""
        if self.eos_token_id is None:
            return ()
        return tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else (self.eos_token_id,)

    def rope_parameters(self) -> dict[str, Any]:
        """Rotary settings in the format of transformers 5."""
        return {"rope_theta": self.rope_theta, **(self.rope_scaling or {"rope_type": "default"})}

    def llm_config(self, attn_implementation: str = "sdpa") -> LlamaConfig:
        """The language model's own configuration."""
        config = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            hidden_act=self.hidden_act,
            max_position_embeddings=self.max_position_embeddings,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters=self.rope_parameters(),
            attention_bias=self.attention_bias,
            attention_dropout=self.attention_dropout,
            mlp_bias=self.mlp_bias,
            tie_word_embeddings=self.tie_word_embeddings,
            initializer_range=self.initializer_range,
            bos_token_id=self.bos_token_id,
            eos_token_id=copy.deepcopy(self.eos_token_id),
            pad_token_id=self.pad_token_id,
        )
        config._attn_implementation = attn_implementation
        return config

    def speech_generator_config(self, attn_implementation: str = "sdpa") -> LlamaConfig:
        """The generator's layers as a Llama: multi-head attention, its own `head_dim`, the LLM's rotary scaling."""
        layers, width, heads, mlp_width = self.speech_generator_dimensions
        config = self.llm_config()
        config.hidden_size = width
        config.num_hidden_layers = layers
        config.num_attention_heads = heads
        config.num_key_value_heads = heads
        config.head_dim = width // heads
        config.intermediate_size = mlp_width
        config._attn_implementation = attn_implementation
        return config

    @classmethod
    def from_published(cls, published: Mapping[str, Any]) -> Self:
        """Reads a `config.json`, its rotary settings as transformers 4.43 (`rope_scaling`) or 5 (`rope_parameters`)."""
        missing = [key for key in REQUIRED_KEYS if key not in published]
        if missing:
            raise ValueError(
                f"config.json lacks {missing}; it is not a Llama-Omni speech-to-speech configuration "
                f"(model_type {published.get('model_type')!r}, expected {MODEL_TYPE!r})"
            )
        given = copy.deepcopy(dict(published))
        given.setdefault("rope_scaling", None)
        # Where a published file is silent, Llama's own defaults hold, not the 8B model's.
        given.setdefault("num_key_value_heads", given["num_attention_heads"])
        given.setdefault("rope_theta", 10000.0)
        given.setdefault("eos_token_id", 2)
        given.setdefault("bos_token_id", 1)
        given.setdefault("max_position_embeddings", 2048)
        given.setdefault("rms_norm_eps", 1e-6)
        if given.get("rope_parameters") is not None:
            rope = given.pop("rope_parameters")
            if not isinstance(rope, dict):
                raise ValueError(f"rope_parameters must be a mapping, got {rope!r}")
            given["rope_theta"] = rope.pop("rope_theta", given["rope_theta"])
            given["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
        if isinstance(given["rope_scaling"], dict) and "type" in given["rope_scaling"]:
            given["rope_scaling"].setdefault("rope_type", given["rope_scaling"].pop("type"))
        if given.get("speech_encoder_heads") is None:
            check_whole_number("speech_encoder_hidden_size", given["speech_encoder_hidden_size"])
            given["speech_encoder_heads"] = assumed_heads(given["speech_encoder_hidden_size"])
        names = {f.name for f in fields(cls)} - set(NOT_IN_THE_FILE)
        other = {key: value for key, value in given.items() if key not in names}
        return cls(**{key: value for key, value in given.items() if key in names}, other_published_keys=other)

    def to_published(self) -> dict[str, Any]:
        """The content of a published `config.json`; our own keys only where the weights do not tell them."""
        written: dict[str, Any] = {"architectures": ["OmniSpeech2SLlamaForCausalLM"], "model_type": MODEL_TYPE}
        written |= copy.deepcopy(self.other_published_keys)
        for f in fields(self):
            if f.name in (*OWN_KEYS, *NOT_IN_THE_FILE):
                continue
            value = field_value(self, f.name)
            if value is not None:
                written[f.name] = copy.deepcopy(value)
        if self.speech_encoder_heads != WHISPER_HEADS.get(self.speech_encoder_hidden_size):
            written["speech_encoder_heads"] = self.speech_encoder_heads
        if self.speech_generator_window is not None:
            written["speech_generator_window"] = self.speech_generator_window
        return written

    @classmethod
    def tiny(cls, **overrides: Any) -> Self:
        """A model of the same shape that runs on a CPU in seconds; any field can be overridden by name."""
        names = {f.name for f in fields(cls)}
        unknown = sorted(set(overrides) - names)
        if unknown:
            raise ValueError(f"LlamaOmniConfig has no field {unknown}; it has {sorted(names)}")
        tiny = cls(
            vocab_size=320,
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_scaling=None,
            max_position_embeddings=131072,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            speech_encoder_hidden_size=32,
            speech_encoder_heads=2,
            speech_encoder_layers=2,
            speech_encoder_context=150,
            speech_projector_hidden_size=128,
            ctc_decoder_config="(2,64,4,160)",
            unit_vocab_size=50,
        )
        return replace(tiny, **overrides)

    @classmethod
    def at_scale(cls, scale: Literal["smoke", "cpu", "gpu", "full"]) -> Self:
        """The model's size at a scale: `full` is the published one."""
        if scale == "smoke":
            return cls.tiny()
        if scale == "cpu":
            return cls.tiny(hidden_size=128, intermediate_size=320, num_hidden_layers=4, unit_vocab_size=100)
        if scale == "gpu":
            return cls.tiny(
                vocab_size=8192,
                hidden_size=768,
                intermediate_size=2048,
                num_hidden_layers=12,
                num_attention_heads=12,
                num_key_value_heads=4,
                speech_encoder_hidden_size=384,
                speech_encoder_heads=6,
                speech_encoder_layers=4,
                speech_encoder_context=1500,
                speech_projector_hidden_size=2048,
                ctc_decoder_config="(2,512,8,1536)",
                unit_vocab_size=500,
            )
        if scale == "full":
            return cls()
        raise ValueError(f"no scale {scale!r}; there are 'smoke', 'cpu', 'gpu', 'full'")


def field_value(config: LlamaOmniConfig, name: str) -> Any:
    """The value of the field called `name`."""
    value = vars(config).get(name, MISSING)
    assert value is not MISSING, name
    return value
