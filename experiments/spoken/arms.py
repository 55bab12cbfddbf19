"""From a row of an experiment to a model: the same initial weights for every arm, then what the arm mounts."""

from __future__ import annotations

from pathlib import Path

import torch

from backbones.llama_omni import LlamaOmni, LlamaOmniConfig
from backbones.mounting import MemoryDescription, describe, mount
from experiments.harness import metric_names as names
from experiments.spoken.configuration import Arm, SpokenExperiment


def build_model(config: SpokenExperiment, arm: Arm, weights: Path | None) -> LlamaOmni:
    """The model of one arm. All arms of a seed share every weight that is not TTT's own.

    weights: folder of a published checkpoint; None draws random weights from the run's seed.

    Raises:
        ValueError: the checkpoint has other dimensions than the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaOmni(config.model) if weights is None else _loaded(weights, config.model)
        torch.manual_seed(config.seed + 1)  # TTT's own weights do not depend on how many the model drew
        mount_arm(model, arm)
    return model


def mount_arm(model: LlamaOmni, arm: Arm) -> None:
    """Puts what `arm` says into the language model, in place."""
    windows = windows_of(arm, model.config.num_hidden_layers)
    if arm.ttt is not None:
        mount(model.llm, layers=arm.upper_layers, config=arm.ttt, mode="replace", window=windows, sinks=arm.sinks)
    elif windows:
        mount(model.llm, layers=(), window=windows, sinks=arm.sinks)


def windows_of(arm: Arm, layers: int) -> dict[int, int] | None:
    """{layer: most recent positions its attention sees} of the layers whose attention is bounded; None without any."""
    windows: dict[int, int] = {}
    for layer in range(layers):
        is_upper = layer in arm.upper_layers
        if is_upper and arm.ttt is not None:
            continue
        window = arm.upper_window if is_upper else arm.lower_window
        if window is not None:
            windows[layer] = window
    return windows or None


def memory_of(config: SpokenExperiment, arm: Arm) -> MemoryDescription:
    """What one conversation takes in the language model, keys and values in the dtype that the training computes in.

    Under mixed precision the parameters are FP32 and the keys BF16, so the trained model itself would tell too much.
    """
    with torch.device("meta"):
        model = LlamaOmni(config.model)
        if config.training.precision != "32-true":
            model = model.to(torch.bfloat16)
        mount_arm(model, arm)
    return describe(model.llm)


def memory_metrics(memory: MemoryDescription, config: SpokenExperiment) -> dict[str, float]:
    """Bytes of one conversation of the validation's length, as logged."""
    return {
        names.STATE_BYTES: float(memory.bytes_at(config.data.spec.positions)),
        names.STATE_BYTES_FIXED: float(memory.bytes_fixed),
        names.STATE_BYTES_PER_POSITION: float(memory.bytes_per_position),
    }


def _loaded(weights: Path, wanted: LlamaOmniConfig) -> LlamaOmni:
    model = LlamaOmni.from_checkpoint(weights)
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "speech_encoder_hidden_size", "speech_encoder_ds_rate", "unit_vocab_size",
        "ctc_decoder_config",
    )  # fmt: skip
    found, expected = vars(model.config), vars(wanted)
    differing = [f"{name} {found[name]} instead of {expected[name]}" for name in names if found[name] != expected[name]]
    if differing:
        raise ValueError(f"--weights {weights} does not fit this scale's model: {', '.join(differing)}")
    return model
