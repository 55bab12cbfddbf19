"""How often would TTT in the depth transformer be reset (C13), and which streams does Moshi run (C14)?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from backbones.moshi import MoshiConfig, build_lm, probe_depth_resets


@dataclass(frozen=True, kw_only=True)
class DepthSizes:
    """Frames generated, by the published model's streams and depth layers at a width that a CPU generates quickly.

    width: of the temporal and of the depth transformer. cardinality: of text and codes. temporal_layers: how many.
    """

    frames: int = 5
    width: int = 32
    heads: int = 4
    temporal_layers: int = 1
    cardinality: int = 48


@dataclass(frozen=True, kw_only=True)
class DepthAndStreams:
    """What one frame costs the depth transformer's states, and the published configuration's streams by kind.

    inits_per_frame: times that each layer of the depth transformer begins without a past. steps_per_frame: its calls.
    """

    inits_per_frame: float
    resets_per_second: float
    steps_per_frame: float
    steps_per_second: float
    streams: dict[str, int]
    predicted: int
    summed_into: int

    def metrics(self) -> dict[str, float]:
        return {
            "depth/state_starts_per_frame": self.inits_per_frame,
            "depth/state_starts_per_second": self.resets_per_second,
            "depth/steps_per_frame": self.steps_per_frame,
            "depth/steps_per_second": self.steps_per_second,
            "streams/all": float(sum(self.streams.values())),
            "streams/predicted": float(self.predicted),
            "streams/vectors_per_position_after_embedding": float(self.summed_into),
            **{f"streams/{kind.replace(' ', '_')}": float(count) for kind, count in self.streams.items()},
        }

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {}


def measure_depth_and_streams(sizes: DepthSizes) -> DepthAndStreams:
    """Generates frames through the real `LMGen` and counts; reads the streams off the published configuration."""
    published = MoshiConfig.published()
    small = replace(
        published,
        dim=sizes.width,
        num_heads=sizes.heads,
        num_layers=sizes.temporal_layers,
        context=16,
        card=sizes.cardinality,
        text_card=sizes.cardinality,
        depformer_dim=sizes.width,
        depformer_num_heads=sizes.heads,
        depformer_dim_feedforward=2 * sizes.width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = build_lm(small).eval()
    found = probe_depth_resets(lm, sizes.frames)
    kinds = [stream.kind for stream in published.streams]
    return DepthAndStreams(
        inits_per_frame=found.inits_per_frame,
        resets_per_second=found.resets_per_second,
        steps_per_frame=found.depth_steps_per_frame,
        steps_per_second=found.depth_steps_per_second,
        streams={kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        predicted=sum(stream.is_predicted for stream in published.streams),
        summed_into=_vectors_per_position(lm),
    )


@torch.no_grad()
def _vectors_per_position(lm: torch.nn.Module) -> int:
    """Vectors that reach the temporal transformer for one position of all streams, counted where they enter."""
    seen: list[int] = []
    hook = lm.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    try:
        lm.forward_text(torch.zeros(1, lm.num_codebooks, 1, dtype=torch.long))
    finally:
        hook.remove()
    [count] = seen
    return count
