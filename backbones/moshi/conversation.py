"""A conversation on disk: everything a stream needs, so that another process continues where this one stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from moshi.models.lm import LMGen, LMModel
from torch import Tensor

from backbones.moshi.attention import MountedAttention, ring_capacity
from backbones.moshi.difference import mounting_identity
from backbones.moshi.mount import attention_layers, ttt_layers
from backbones.moshi.stream_tensors import cpu_offset_of, set_cpu_offset, streaming_states, tensors_of
from backbones.mounting.tensor_file import TensorFile, require_shapes

FILE = TensorFile(format="moshi_conversation", version=1, content="conversation", writer="save_conversation")
VALUES_PER_PARAMETER = 16
RANDOM = "random."


def save_conversation(model: LMGen | LMModel, path: str | Path) -> None:
    """Write the streaming state of all rows (safetensors): copies of rings, TTT states, tokens and offsets.

    Also the state of torch's random numbers, for generation that samples. Raises ValueError when nothing is streaming
    or the path's folder does not exist.
    """
    states = streaming_states(model)
    tensors = {f"{name}.{part}": tensor for name, state in states.items() for part, tensor in tensors_of(state).items()}
    counters = {name: cpu_offset_of(state) for name, state in states.items()}
    facts = {"rows": str(_rows(model)), "cpu_offsets": json.dumps(counters)}
    FILE.write(path, tensors | _random_states(_lm(model).device), _identity(model), facts)


def load_conversation(model: LMGen | LMModel, path: str | Path, *, restores_random_state: bool = False) -> None:
    """Continue a saved conversation in a model that is streaming as many rows; what it was streaming is overwritten.

    restores_random_state: also set torch's global random numbers to where they were, so that sampling goes on the same.

    In place, so that captured CUDA graphs stay right. Raises ValueError, with the model's stream as it was, when the
    file is missing, unreadable or damaged, when it belongs to another model (weights, sizes, mounting, windows, rings,
    dtype) or to other settings of generation, and for another number of rows.
    """
    path, states = Path(path), streaming_states(model)
    metadata, saved = FILE.read(path, _identity(model))
    random = {name: saved.pop(name) for name in list(saved) if name.startswith(RANDOM)}
    if metadata.get("rows") != str(_rows(model)):
        raise ValueError(f"{path} holds {metadata.get('rows')} rows, and the model streams {_rows(model)}")
    own = {f"{name}.{part}": tensor for name, state in states.items() for part, tensor in tensors_of(state).items()}
    require_shapes(path, saved, {name: tuple(tensor.shape) for name, tensor in own.items()})
    counters = _read_counters(path, metadata, {name: cpu_offset_of(state) for name, state in states.items()})
    if restores_random_state:
        _restore_random(path, random, _lm(model).device)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(saved[name])
    for name, offset in counters.items():
        set_cpu_offset(states[name], offset)


def weights_fingerprint(lm: LMModel) -> str:
    """16 hexadecimal digits that a few values of every parameter decide: another training gives others."""
    parts = []
    for parameter in lm.parameters():
        values = parameter.detach().reshape(-1)
        parts.append(values[:: max(1, values.numel() // VALUES_PER_PARAMETER)][:VALUES_PER_PARAMETER].double())
    return hashlib.sha256(torch.cat(parts).cpu().numpy().tobytes()).hexdigest()[:16]


def _identity(model: LMGen | LMModel) -> dict[str, Any]:
    lm = _lm(model)
    identity: dict[str, Any] = {
        "streamed_by": type(model).__name__,
        "codebooks": [lm.n_q, lm.dep_q, lm.card, lm.text_card],
        "delays": list(lm.delays),
        "layers_in_all": len(lm.transformer.layers),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "attention": {str(index): _attention_identity(each) for index, each in attention_layers(lm).items()},
        **mounting_identity(lm),
        "weights": weights_fingerprint(lm),
    }
    for ttt in ttt_layers(lm).values():
        identity |= {"ttt.precision": ttt.config.precision, "ttt.carries_velocity": ttt.config.carries_velocity}
    if isinstance(model, LMGen):
        # Guidance streams every row twice; of the rest, only what shapes or shifts the stream.
        identity |= {"cfg_coef": model.cfg_coef, "cfg_is_no_text": model.cfg_is_no_text}
        identity["cfg_is_masked_until"] = model.cfg_is_masked_until
    return identity


def _attention_identity(attention: Any) -> dict[str, int | None]:
    sinks = attention.sinks if isinstance(attention, MountedAttention) else 0
    return {"context": attention.context, "ring": ring_capacity(attention), "sinks": sinks}


def _lm(model: LMGen | LMModel) -> LMModel:
    return model.lm_model if isinstance(model, LMGen) else model


def _rows(model: LMGen | LMModel) -> int:
    assert model._streaming_state is not None
    return model._streaming_state.batch_size


def _read_counters(path: Path, metadata: dict[str, str], own: dict[str, int | None]) -> dict[str, int]:
    """{state: its Python counter} from the file, for the states that have one."""
    try:
        saved = json.loads(metadata.get("cpu_offsets", ""))
    except json.JSONDecodeError:
        saved = None
    wanted = [name for name, offset in own.items() if offset is not None]
    if not isinstance(saved, dict) or not all(isinstance(saved.get(name), int) for name in wanted):
        raise ValueError(f"{path} is damaged: its counters are {metadata.get('cpu_offsets')!r}; save it again")
    return {name: saved[name] for name in wanted}


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {f"{RANDOM}cpu": torch.get_rng_state()}
    return states | ({f"{RANDOM}cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_random(path: Path, states: dict[str, Tensor], device: torch.device) -> None:
    lacking = [name for name in _random_states(device) if name not in states]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}: it was saved from another kind of device")
    torch.set_rng_state(states[f"{RANDOM}cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[f"{RANDOM}cuda"], device)
