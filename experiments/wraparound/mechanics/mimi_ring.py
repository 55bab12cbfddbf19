"""The ring in Mimi's own decoder: two steps per frame, so that one query of each frame lacks a key after 10 s.

Measured on the package's own transformer at its published size with random weights, of which layer scale (0.01 at the
start of training, learned since) decides how much of it is heard: with trained weights it may be more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from moshi.models.loaders import FRAME_RATE, _mimi_config, _transformer_kwargs
from moshi.modules.transformer import ProjectedTransformer, StreamingMultiheadAttention
from numpy.typing import NDArray

from backbones.moshi import MountedAttention

# SEANet's hop is 960 samples at 24 kHz: 25 latents a second, two for each frame of codes.
STEPS_PER_FRAME = round(_mimi_config["sample_rate"] / np.prod(_mimi_config["seanet"]["ratios"]) / FRAME_RATE)


@dataclass(frozen=True, kw_only=True)
class MimiRingSizes:
    """layers, context_steps: of the transformer, the published ones by default. frames: streamed in all.

    layer_scales: of every layer; the first is the published start of training.
    """

    layers: int = _transformer_kwargs["num_layers"]
    context_steps: int = _transformer_kwargs["context"]
    frames: int = 140
    layer_scales: tuple[float, ...] = (_transformer_kwargs["layer_scale"], 0.3)


@dataclass(frozen=True, kw_only=True)
class MimiRing:
    """difference: layer scale -> (frames,) largest difference from the batched run, relative to the largest output."""

    sizes: MimiRingSizes
    difference: dict[float, NDArray[np.float64]]
    with_room: dict[float, NDArray[np.float64]]

    def metrics(self) -> dict[str, float]:
        full_after = self.sizes.context_steps // STEPS_PER_FRAME
        metrics = {"mimi/steps_per_frame": STEPS_PER_FRAME, "mimi/seconds_until_ring_is_full": full_after / FRAME_RATE}
        for scale, by_frame in self.difference.items():
            metrics[f"mimi/max_difference_before_wrap_layer_scale_{scale}"] = by_frame[:full_after].max()
            metrics[f"mimi/max_difference_after_wrap_layer_scale_{scale}"] = by_frame[full_after:].max()
            metrics[f"mimi/max_difference_with_room_layer_scale_{scale}"] = self.with_room[scale].max()
        return {name: float(value) for name, value in metrics.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {f"mimi/difference_by_frame_layer_scale_{scale}": values for scale, values in self.difference.items()}


@torch.no_grad()
def measure_mimi_ring(sizes: MimiRingSizes) -> MimiRing:
    """Streams random latents frame by frame through the decoder's transformer, with its ring as it is and with room."""
    difference, with_room = {}, {}
    for scale in sizes.layer_scales:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            settings = {"num_layers": sizes.layers, "context": sizes.context_steps, "layer_scale": scale}
            transformer = ProjectedTransformer(**{**_transformer_kwargs, **settings}).eval()
            latents = torch.randn(1, transformer.input_dimension, sizes.frames * STEPS_PER_FRAME)
        (whole,) = transformer(latents)
        difference[scale] = _by_frame(transformer, latents, whole)
        for module in list(transformer.modules()):
            if isinstance(module, StreamingMultiheadAttention):
                MountedAttention.equip(module).tokens_per_call = STEPS_PER_FRAME
        with_room[scale] = _by_frame(transformer, latents, whole)
    return MimiRing(sizes=sizes, difference=difference, with_room=with_room)


def _by_frame(transformer: ProjectedTransformer, latents: torch.Tensor, whole: torch.Tensor) -> NDArray[np.float64]:
    """(frames,) difference of the streamed transformer's outputs; latents and whole (1, width, steps)."""
    with transformer.streaming(1):
        streamed = torch.cat([transformer(frame)[0] for frame in latents.split(STEPS_PER_FRAME, dim=2)], dim=2)
    by_step = (streamed - whole).abs().amax(dim=(0, 1)) / whole.abs().max()
    return by_step.view(-1, STEPS_PER_FRAME).amax(dim=1).numpy()
