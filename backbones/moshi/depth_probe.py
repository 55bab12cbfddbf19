"""How often generation starts the depth transformer's streaming state anew: why no TTT is mounted on it.

The depth transformer streams over the codebooks of one frame. Whatever a layer of it learned at test time would be gone
at the next frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from moshi.models.lm import LMGen, LMModel
from moshi.modules.streaming import State, StreamingModule
from moshi.utils.compile import no_cuda_graph

from backbones.moshi.config import FRAME_RATE_HZ
from backbones.moshi.mount import require_lm, require_not_streaming
from backbones.moshi.streaming_ttt import streaming_modules


@dataclass(frozen=True, kw_only=True)
class DepthResets:
    """What so many generated frames did to the depth transformer.

    modules: streaming modules in it, each with a state of its own. state_inits: states made, of all modules.
    transformer_inits: of these, the transformer's own, which is one for every time that it started streaming.
    state_resets: calls of `State.reset` on them. depth_steps: calls of the depth transformer, one per codebook.
    """

    frames: int
    modules: int
    state_inits: int
    transformer_inits: int
    state_resets: int
    depth_steps: int

    @property
    def inits_per_frame(self) -> float:
        """Times per frame that a layer of the depth transformer begins without a past."""
        return self.transformer_inits / self.frames

    @property
    def depth_steps_per_frame(self) -> float:
        return self.depth_steps / self.frames

    @property
    def resets_per_second(self) -> float:
        """Times per second of speech that a TTT layer in the depth transformer would lose its state."""
        return (self.transformer_inits + self.state_resets / self.modules) / self.frames * FRAME_RATE_HZ

    @property
    def depth_steps_per_second(self) -> float:
        return self.depth_steps_per_frame * FRAME_RATE_HZ


@dataclass
class _Counts:
    state_inits: int = 0
    transformer_inits: int = 0
    state_resets: int = 0
    depth_steps: int = 0


def probe_depth_resets(lm: LMModel, frames: int, rows: int = 1) -> DepthResets:
    """Generate so many frames through the real `LMGen.step`, with silence of codebook entry 0 heard, and count.

    The model is left as it was. Raises ValueError for a model without a depth transformer, in training or streaming.
    """
    require_lm(lm)
    require_not_streaming(lm, "probe the depth transformer")
    if lm.depformer is None:
        raise ValueError("the model has no depth transformer (dep_q=0): there is nothing to count")
    if lm.training:
        raise ValueError("generation runs in eval mode: call lm.eval() first")
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    was_detached = lm._streaming_detached
    generator = LMGen(lm, use_sampling=False)
    heard = torch.zeros(rows, lm.n_q - lm.dep_q, 1, dtype=torch.long, device=lm.device)
    # A replayed graph runs no Python, and so would not be counted.
    with _counting(lm.depformer) as counts, no_cuda_graph(), generator.streaming(rows):
        for _ in range(frames):
            generator.step(heard)
    lm.set_streaming_detached(was_detached)
    return DepthResets(
        frames=frames,
        modules=len(streaming_modules(lm.depformer)),
        state_inits=counts.state_inits,
        transformer_inits=counts.transformer_inits,
        state_resets=counts.state_resets,
        depth_steps=counts.depth_steps,
    )


@contextmanager
def _counting(depth: StreamingModule[State]) -> Iterator[_Counts]:
    """Count the states that the depth transformer's modules make, and its calls; everything is taken off at the end."""
    counts = _Counts()

    def counted(module: StreamingModule[State]) -> Callable[[int], State]:
        original = module._init_streaming_state

        def init(batch_size: int) -> State:
            state = original(batch_size)
            counts.state_inits += 1
            counts.transformer_inits += module is depth
            reset = state.reset

            def counted_reset(reset_mask: torch.Tensor) -> None:
                counts.state_resets += 1
                reset(reset_mask)

            vars(state)["reset"] = counted_reset
            return state

        return init

    modules = streaming_modules(depth)
    for module in modules:
        vars(module)["_init_streaming_state"] = counted(module)

    def count_step(*_: object) -> None:
        counts.depth_steps += 1

    hook = depth.register_forward_hook(count_step)
    try:
        yield counts
    finally:
        hook.remove()
        for module in modules:
            del vars(module)["_init_streaming_state"]
