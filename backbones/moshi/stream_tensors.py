"""What every kind of streaming state holds: its tensors, and the counters that are Python numbers, by name.

The states are the package's own live objects; the tensors given here are theirs, not copies.
"""

from __future__ import annotations

from moshi.models.lm import LMGen, LMModel, _LMGenState
from moshi.modules.streaming import State
from moshi.modules.transformer import _LayerState, _MHAState, _TransformerState
from torch import Tensor

from backbones.moshi.attention import SinkState
from backbones.moshi.streaming_ttt import TTTStreamState, named_tensors

HAVE_CPU_OFFSET = (_LMGenState, _LayerState, _MHAState)


def streaming_states(model: LMGen | LMModel) -> dict[str, State]:
    """{name: state} of the temporal transformer's stream, and of the generation around it for an LMGen.

    The depth transformer streams within one frame only. Raises ValueError where nothing is streaming.
    """
    if not isinstance(model, LMGen | LMModel):
        raise ValueError(f"expected an LMGen or an LMModel, got a {type(model).__name__}")
    if model._streaming_state is None:
        raise ValueError(f"the {type(model).__name__} is not streaming: enter `with model.streaming(rows):` first")
    lm = model.lm_model if isinstance(model, LMGen) else model
    states = {f"lm.{name}" if name else "lm": state for name, state in lm.get_streaming_state().items()}
    return {"lm_gen": model._streaming_state, **states} if isinstance(model, LMGen) else states


def tensors_of(state: State) -> dict[str, Tensor]:
    """Every tensor that a streaming state needs to go on, by name."""
    found = {"exec_mask": state.exec_mask}
    if isinstance(state, TTTStreamState):
        return found | named_tensors(state.held)
    if isinstance(state, _MHAState):
        if state.kv_cache is None:
            raise ValueError("cross-attention's state is not kept: this adapter is for models without conditions")
        found |= {"keys_and_values": state.kv_cache.cache, "ring_end": state.kv_cache.end_offset}
        found["offset"] = state.offset
        if isinstance(state, SinkState):
            assert state.sink_keys is not None and state.sink_values is not None
            found |= {"sink_keys": state.sink_keys, "sink_values": state.sink_values}
        return found
    if isinstance(state, _LMGenState):
        return found | {"token_cache": state.cache, "offsets": state.offsets}
    if isinstance(state, _TransformerState):
        return found | {"offsets": state.offsets}
    assert type(state) in (State, _LayerState), f"{type(state).__name__} is a streaming state of an unknown kind"
    return found


def cpu_offset_of(state: State) -> int | None:
    """The counter that a state keeps as a Python number, None where it has none."""
    return state.offset_cpu if isinstance(state, HAVE_CPU_OFFSET) else None


def set_cpu_offset(state: State, offset: int) -> None:
    assert isinstance(state, HAVE_CPU_OFFSET)
    state.offset_cpu = offset


def nbytes_of(state: State) -> int:
    """Bytes that a streaming state's tensors take, all rows together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(state).values())
