"""How the memory of a decode grows with its length.

`python -m backbones.mounting.memory_probe` decodes 65,536 positions on a tiny model, with TTT + window and with
full attention, each in a process of its own, and prints both curves.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from backbones.mounting.cache import MountedCache
from backbones.mounting.decoder import MountedCausalLM
from backbones.mounting.host import model_cache, mount
from ttt_core import TTTConfig

MEBIBYTE = 2**20


class MemoryPoint(NamedTuple):
    """Bytes after `position` tokens: of the cache's tensors, and of the process (of the GPU's allocator on CUDA)."""

    position: int
    cache_bytes: int
    process_bytes: int


@torch.no_grad()
def decode_memory_curve(model: PreTrainedModel, positions: int, every: int, chunk: int = 1) -> list[MemoryPoint]:
    """Decode `positions` random tokens in one stream, `chunk` per call, and measure at the start and every `every`.

    The model may be mounted or plain. Nothing is kept of the outputs.
    """
    for name, value in (("positions", positions), ("every", every), ("chunk", chunk)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    cache = model_cache(model) if isinstance(model, MountedCausalLM) else DynamicCache(config=model.config)
    points, done = [], 0
    while done < positions:
        tokens = min(chunk, positions - done)
        ids = torch.randint(0, model.config.vocab_size, (1, tokens), generator=generator).to(device)
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        before, done = done, done + tokens
        if before == 0 or done // every > before // every:
            points.append(MemoryPoint(done, cache_bytes(cache), _process_bytes(device)))
    return points


def cache_bytes(cache: Cache) -> int:
    """Bytes of the tensors that a mounted or a plain cache holds."""
    if isinstance(cache, MountedCache):
        return cache.nbytes
    layers: list[Any] = cache.layers
    held = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _process_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    import psutil

    return psutil.Process().memory_info().rss


def probe_model(
    kind: str, hidden_size: int = 64, layers: int = 4, window: int = 256, sinks: int = 4
) -> PreTrainedModel:
    """A tiny Llama of random weights: "full-attention", or "ttt-window" with TTT in its upper half."""
    if kind not in ("full-attention", "ttt-window"):
        raise ValueError(f"kind must be 'full-attention' or 'ttt-window', got {kind!r}")
    torch.manual_seed(0)
    heads = 4
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=layers,
            num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=131_072,
        )
    ).eval()  # fmt: skip
    if kind == "ttt-window":
        ttt = TTTConfig(hidden_size=hidden_size, num_heads=heads)
        mount(model, layers=range(layers // 2, layers), config=ttt, window=window, sinks=sinks)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=65_536)
    parser.add_argument("--every", type=int, default=8_192)
    parser.add_argument("--chunk", type=int, default=1, help="tokens per call; 1 is token-by-token decoding")
    parser.add_argument("--kind", choices=("ttt-window", "full-attention"), help="one kind, in this process")
    arguments = parser.parse_args()
    if arguments.kind is None:
        for kind in ("ttt-window", "full-attention"):
            # A process each: what one has freed would hide what the other takes.
            options = ["--positions", arguments.positions, "--every", arguments.every, "--chunk", arguments.chunk]
            subprocess.run(
                [sys.executable, "-m", "backbones.mounting.memory_probe", "--kind", kind, *map(str, options)],
                check=True,
            )
        return
    torch.set_num_threads(1)
    print(f"{arguments.kind}\n{'position':>10}{'cache MiB':>12}{'process MiB':>13}")
    curve = decode_memory_curve(probe_model(arguments.kind), arguments.positions, arguments.every, arguments.chunk)
    for point in curve:
        print(
            f"{point.position:>10,}{point.cache_bytes / MEBIBYTE:>12.2f}{point.process_bytes / MEBIBYTE:>13.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
