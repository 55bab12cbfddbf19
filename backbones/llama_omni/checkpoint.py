"""The published checkpoint format, key by key: `config.json` and `model.safetensors` (whole or in shards).

| in the file | in the model |
| --- | --- |
| `model.speech_encoder.*`, `model.speech_projector.*` | `speech_encoder.*`, `speech_projector.*` |
| `model.*`, `lm_head.*` | `llm.model.*`, `llm.lm_head.*` |
| `speech_generator.*` | `speech_generator.*` |

A folder may lack the speech encoder, as the release keeps whisper in a file of its own (`large-v3.pt`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from backbones.llama_omni.checkpoint_files import (
    CONFIG_FILE,
    DTYPES,
    ENCODER_PREFIX,
    INDEX_FILE,
    WEIGHTS_FILE,
    named,
    read_json,
    read_weights,
    read_whisper_encoder,
    write_json,
    write_whole,
)
from backbones.llama_omni.config import LlamaOmniConfig

if TYPE_CHECKING:
    from backbones.llama_omni.model import LlamaOmni

GENERATION_FILE = "generation_config.json"
GENERATION_IDS = ("eos_token_id", "pad_token_id")
"""What transformers' `generate` takes from generation_config.json rather than from config.json, and so do we."""


def published_key(key: str) -> str:
    """The published name of a parameter or buffer of `LlamaOmni`."""
    if key.startswith("llm."):
        return key.removeprefix("llm.")
    return key if key.startswith("speech_generator.") else f"model.{key}"


def load_llama_omni(
    model_class: type[LlamaOmni],
    folder: str | Path,
    dtype: torch.dtype | None = None,
    *,
    speech_encoder_path: str | Path | None = None,
    speech_encoder_heads: int | None = None,
    attn_implementation: str = "sdpa",
) -> LlamaOmni:
    """A model from a folder in the published format, in `dtype` (default: that of the stored embeddings).

    `speech_encoder_path`: a whisper `.pt` file whose encoder is used instead of the folder's; needed where the folder
    holds none. `speech_encoder_heads`: attention heads of the folder's encoder, which its weights do not tell; needed
    where config.json is silent and the encoder is no published whisper's. A generation_config.json beside config.json
    decides on end and padding ids. `ttt.safetensors`, where the folder holds it, belongs to `backbones.mounting` and is
    not read here. Raises ValueError that names missing, unknown or wrongly shaped tensors.
    """
    folder = Path(folder)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
    published = read_json(folder / CONFIG_FILE)
    tensors = read_weights(folder)
    if speech_encoder_path is not None:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(ENCODER_PREFIX)}
        encoder, heads = read_whisper_encoder(Path(speech_encoder_path))
        tensors |= encoder
        if speech_encoder_heads not in (None, heads):
            raise ValueError(f"{speech_encoder_path} says {heads} heads, speech_encoder_heads {speech_encoder_heads}")
        speech_encoder_heads = heads
    elif not any(key.startswith(ENCODER_PREFIX) for key in tensors):
        raise ValueError(
            f"{folder} holds no speech encoder ({ENCODER_PREFIX}*); give the whisper file it was trained with as "
            f"speech_encoder_path (its config.json says {published.get('speech_encoder')!r})"
        )
    if speech_encoder_heads is not None:
        published = {**published, "speech_encoder_heads": speech_encoder_heads}
    config = _read_config(folder, published, tensors)
    if dtype is None and "model.embed_tokens.weight" in tensors:
        dtype = tensors["model.embed_tokens.weight"].dtype
    with torch.device("meta"):
        model = model_class(config, attn_implementation)
    names = {published_key(key): key for key in model.state_dict()}
    if config.tie_word_embeddings and "model.embed_tokens.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    _check(folder, tensors, {name: model.state_dict()[key].shape for name, key in names.items()})
    model.load_state_dict({names[name]: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    model.llm.tie_weights()
    return _materialise_rotary(model)


def save_llama_omni(model: LlamaOmni, folder: str | Path, max_shard_bytes: int = 5 * 1024**3) -> None:
    """Writes `config.json` and the weights to `folder` in the published format, in shards of at most the given size.

    An interrupted save leaves what the folder held: files are written beside their places and moved when all are there.
    Raises ValueError for a model with parts the format has no names for (a mounted one: save its difference with
    `backbones.mounting.save_ttt`).
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    folder = Path(folder)
    tensors = {published_key(key): tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    with torch.device("meta"):
        plain = type(model)(model.config)
    shapes = {published_key(key): tensor.shape for key, tensor in plain.state_dict().items()}
    try:
        _check(folder, tensors, shapes)
    except ValueError as error:
        raise ValueError(
            "the model has been changed since it was built, so the published format cannot hold it; save a mounted "
            f"model's difference with backbones.mounting.save_ttt ({error})"
        ) from error
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, max_shard_bytes)
    file_names = [WEIGHTS_FILE]
    if len(shards) > 1:
        file_names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    writers: dict[str, Callable[[Path], None]] = {
        name: partial(_write_tensors, {key: tensors[key] for key in keys})
        for name, keys in zip(file_names, shards, strict=True)
    }
    if len(shards) > 1:
        weight_map = {key: name for name, keys in zip(file_names, shards, strict=True) for key in keys}
        total = sum(_nbytes(tensor) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        writers[INDEX_FILE] = partial(write_json, content=index)
    dtype = str(model.llm.get_input_embeddings().weight.dtype).removeprefix("torch.")
    writers[CONFIG_FILE] = partial(write_json, content={**model.config.to_published(), "torch_dtype": dtype})
    if model.config.generation_config is not None:
        writers[GENERATION_FILE] = partial(write_json, content=_generation_config(model.config))
    write_whole(folder, writers)
    # An earlier save in the other layout would leave two sets of weights, or of end ids, to choose from.
    for stale in [*folder.glob("model*.safetensors*"), *folder.glob(GENERATION_FILE)]:
        if stale.name not in writers:
            stale.unlink()


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})


def _generation_config(config: LlamaOmniConfig) -> dict[str, Any]:
    """The generation_config.json that the model came with, its ids as they are now."""
    assert config.generation_config is not None
    now = {"eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    return {key: now.get(key, value) for key, value in config.generation_config.items()}


def _read_config(folder: Path, published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LlamaOmniConfig:
    """The config of the two files, with the sizes that they leave to the weights."""
    try:
        config = LlamaOmniConfig.from_published(published)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
    config = _with_dimensions_of(config, tensors)
    if not (folder / GENERATION_FILE).is_file():
        return config
    generation = read_json(folder / GENERATION_FILE)
    ids = {name: generation[name] for name in GENERATION_IDS if generation.get(name) is not None}
    try:
        return replace(config, generation_config=generation, **ids)
    except ValueError as error:
        raise ValueError(f"{folder / GENERATION_FILE}: {error}") from error


def _with_dimensions_of(config: LlamaOmniConfig, tensors: Mapping[str, Tensor]) -> LlamaOmniConfig:
    """The config with what the published one leaves to the weights: the encoder's and the projector's sizes."""
    sizes: dict[str, int] = {}
    places = {
        "speech_encoder_mel_bins": (ENCODER_PREFIX + "conv1.weight", 1),
        "speech_encoder_context": (ENCODER_PREFIX + "positional_embedding", 0),
        "speech_projector_hidden_size": ("model.speech_projector.linear1.weight", 0),
    }
    for name, (key, axis) in places.items():
        if key not in tensors:
            raise ValueError(f"the checkpoint lacks {key!r}")
        sizes[name] = tensors[key].shape[axis]
    blocks = {int(m[1]) for m in (re.match(re.escape(ENCODER_PREFIX) + r"blocks\.(\d+)\.", k) for k in tensors) if m}
    return replace(config, speech_encoder_layers=max(blocks, default=-1) + 1, **sizes)


def _check(where: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    problems = []
    missing, unknown = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing:
        problems.append(f"missing {named(missing)}")
    if unknown:
        problems.append(f"unknown {named(unknown)}")
    wrong = [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(shapes[key])}"
        for key in sorted(set(shapes) & set(tensors))
        if tensors[key].shape != shapes[key]
    ]
    if wrong:
        problems.append(f"wrong shapes: {named(wrong)}")
    if problems:
        raise ValueError(f"{where} does not fit its {CONFIG_FILE}: " + "; ".join(problems))


def _materialise_rotary(model: LlamaOmni) -> LlamaOmni:
    """Gives the rotary frequencies, which no file stores, their values: everything else is off the meta device."""
    model.llm.model.rotary_emb = type(model.llm.model.rotary_emb)(model.llm.config)
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    assert not left, left
    return model


def _shards(tensors: Mapping[str, Tensor], most_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    size = 0
    for key in sorted(tensors):
        if not shards or size + _nbytes(tensors[key]) > most_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += _nbytes(tensors[key])
    return shards


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
