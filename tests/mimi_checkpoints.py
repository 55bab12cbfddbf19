"""Mimi in both published formats, tiny: checkpoints with the published names, whose random weights are the same."""

from __future__ import annotations

import copy
import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

if find_spec("moshi") is None:
    pytest.skip("needs moshi; runs where `make setup` was", allow_module_level=True)

from moshi.models.loaders import get_mimi
from safetensors.torch import save_file
from torch import Tensor
from transformers import MimiConfig

from backbones.moshi.mimi import PUBLISHED_MIMI

CODEBOOKS, CODEBOOK_SIZE, HEADS = 4, 64, 4
CONTEXT_STEPS, STEPS_PER_FRAME, FRAME_SAMPLES = 10, 2, 1920
# transformers' names for moshi's; whole modules first.
RENAMED = (
    (r"^(en|de)coder\.model\.", r"\1coder.layers."), (r"(\.conv|\.convtr){2,3}\.(weight|bias)", r".conv.\2"),
    (r"coder_transformer\.transformer\.", "coder_transformer."), ("rvq_first", "semantic_residual_vector_quantizer"),
    ("rvq_rest", "acoustic_residual_vector_quantizer"), (r"\.vq\.layers", ".layers"), (r"_codebook\._?", "codebook."),
    ("embedding_sum", "embed_sum"), ("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm"),
    ("linear1", "mlp.fc1"), ("linear2", "mlp.fc2"), ("layer_scale_1", "self_attn_layer_scale"),
    ("layer_scale_2", "mlp_layer_scale"), (r"out_projs\.0", "o_proj"),
)  # fmt: skip


def moshi_settings() -> dict[str, dict[str, object]]:
    """The published config at a small width, a window of 10 steps, and a layer scale at which attention is heard."""
    settings = copy.deepcopy(PUBLISHED_MIMI)
    settings["seanet"] |= {"dimension": 32, "n_filters": 4}
    settings["quantizer"] |= {
        "dimension": 16, "n_q": CODEBOOKS, "bins": CODEBOOK_SIZE, "input_dimension": 32, "output_dimension": 32,
    }  # fmt: skip
    settings["transformer"] |= {
        "d_model": 32, "num_heads": HEADS, "num_layers": 2, "dim_feedforward": 48, "context": CONTEXT_STEPS,
        "input_dimension": 32, "output_dimensions": [32], "layer_scale": 0.3,
    }  # fmt: skip
    return settings


def transformers_config() -> MimiConfig:
    return MimiConfig(
        hidden_size=32, num_filters=4, codebook_dim=16, vector_quantization_hidden_dimension=16,
        num_quantizers=CODEBOOKS, codebook_size=CODEBOOK_SIZE, upsample_groups=32, num_hidden_layers=2,
        intermediate_size=48, num_attention_heads=HEADS, num_key_value_heads=HEADS, sliding_window=CONTEXT_STEPS,
    )  # fmt: skip


def to_transformers_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """moshi's tensors under transformers' published names; rotary pairs interleaved there, halves here."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        if "in_projs.0" not in name:
            renamed[name] = tensor.clone()
            continue
        for part, weight in zip("qkv", tensor.chunk(3), strict=True):
            if part != "v":
                weight = weight.unflatten(0, (HEADS, -1, 2)).transpose(1, 2).flatten(0, 2)
            renamed[name.replace("in_projs.0", f"{part}_proj")] = weight.clone()
    return renamed


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Noise whose loudness changes, so that frames differ."""
    drawn = np.random.default_rng(seed).standard_normal(samples)
    return (drawn * (0.2 + 0.15 * np.sin(np.arange(samples) / 4000))).astype(np.float32)


def write_mimi_checkpoints(home: Path) -> SimpleNamespace:
    """The same random weights in both formats: `transformers` and `moshi`, folders in `home`."""
    folders = SimpleNamespace(transformers=home / "transformers", moshi=home / "moshi")
    for folder in vars(folders).values():
        folder.mkdir()
    torch.manual_seed(0)
    mimi = get_mimi(None, moshi_settings(), num_codebooks=CODEBOOKS)
    sound = torch.from_numpy(noise(4 * FRAME_SAMPLES))[None, None]
    with torch.no_grad():
        latents = mimi.encode_to_latent(sound, quantize=False)
        for rvq in (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest):
            spread, mean = torch.std_mean(rvq.input_proj(latents), dim=(0, 2))
            for level, layer in enumerate(rvq.vq.layers):
                drawn = torch.randn_like(layer._codebook.embedding_sum) * spread
                layer._codebook.embedding_sum.copy_(drawn if level else drawn + mean)
                layer._codebook._initialized.fill_(1)
    weights = {name: tensor.contiguous() for name, tensor in mimi.state_dict().items()}
    save_file(weights, folders.moshi / "mimi.safetensors")
    (folders.moshi / "mimi.json").write_text(json.dumps(moshi_settings()))
    (folders.moshi / "config.json").write_text(
        json.dumps({"mimi_name": "mimi.safetensors", "mimi_config_name": "mimi.json"})
    )
    save_file(to_transformers_names(weights), folders.transformers / "model.safetensors", metadata={"format": "pt"})
    transformers_config().save_pretrained(folders.transformers)
    return folders
