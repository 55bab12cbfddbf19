"""Layers of the unit HiFi-GAN, and how far its output looks into its input.

Shape letters: B batch, U units, N frames (50 Hz), C channels, S samples (16 kHz).

The module names are those of the published checkpoint (`conv_pre`, `ups`, `resblocks`, `conv_post`, `dict`,
`dur_predictor`), so that its keys load without a table of names. Architecture: HiFi-GAN (Kong et al., 2020, V1) on unit
embeddings with a duration predictor (Polyak et al., 2021; Lee et al., 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

LEAKY_SLOPE = 0.1
# The published generator calls its last leaky ReLU without a slope, so that one has torch's default.
LAST_LEAKY_SLOPE = 0.01
EDGE_KERNEL = 7
DURATION_KERNEL = 3
DURATION_CONTEXT_UNITS = 2

# hubert-base layer 11, k-means 1000, LJSpeech voice: the vocoder that LLaMA-Omni is released with.
PUBLISHED_VOCODER_CONFIG: dict[str, Any] = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 512,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": 1000,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "code_hop_size": 320,
    "f0": False,
    "dur_predictor_params": {
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
        "var_pred_kernel_size": 3,
        "var_pred_dropout": 0.5,
    },
    "sampling_rate": 16000,
}

# Features of other vocoders of the family: they add parameters and inputs that a unit sequence alone does not give.
_UNSUPPORTED_FEATURES = ("f0", "multispkr", "embedder_params", "multistyle", "f0_quant_num_bin")


@dataclass(frozen=True, kw_only=True)
class VocoderShape:
    """What the layers are built from, read and checked from a published `config.json`."""

    unit_vocab_size: int
    channels_in: int
    channels_first: int
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    resblock_kernels: tuple[int, ...]
    resblock_dilations: tuple[tuple[int, ...], ...]
    duration_hidden: int | None
    sample_rate_hz: int

    @property
    def samples_per_frame(self) -> int:
        return math.prod(self.upsample_rates)

    @classmethod
    def from_published(cls, config: Mapping[str, Any]) -> VocoderShape:
        """Checked shape of a published configuration; ValueError if incomplete, inconsistent or of another model."""
        for feature in _UNSUPPORTED_FEATURES:
            if config.get(feature):
                raise ValueError(
                    f"vocoder config asks for {feature!r} ({config[feature]!r}), which needs inputs besides the units; "
                    "expected a single-voice unit vocoder without pitch input"
                )
        needed = ("num_embeddings", "embedding_dim", "model_in_dim", "upsample_initial_channel", "sampling_rate")
        needed += ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes", "resblock_dilation_sizes")
        missing = [name for name in needed if name not in config]
        if missing:
            raise ValueError(f"vocoder config lacks {missing}; it has {sorted(config)}")
        duration = config.get("dur_predictor_params")
        lacking = {"encoder_embed_dim", "var_pred_hidden_dim", "var_pred_kernel_size"} - set(duration or ())
        if duration and lacking:
            raise ValueError(f"vocoder config: dur_predictor_params lacks {sorted(lacking)}")
        shape = cls(
            unit_vocab_size=int(config["num_embeddings"]),
            channels_in=int(config["embedding_dim"]),
            channels_first=int(config["upsample_initial_channel"]),
            upsample_rates=tuple(int(rate) for rate in config["upsample_rates"]),
            upsample_kernels=tuple(int(kernel) for kernel in config["upsample_kernel_sizes"]),
            resblock_kernels=tuple(int(kernel) for kernel in config["resblock_kernel_sizes"]),
            resblock_dilations=tuple(tuple(int(d) for d in row) for row in config["resblock_dilation_sizes"]),
            duration_hidden=int(duration["var_pred_hidden_dim"]) if duration else None,
            sample_rate_hz=int(config["sampling_rate"]),
        )
        shape._check_against(config)
        return shape

    def _check_against(self, config: Mapping[str, Any]) -> None:
        if config["model_in_dim"] != self.channels_in:
            raise ValueError(
                f"vocoder config has model_in_dim {config['model_in_dim']} and embedding_dim {self.channels_in}; "
                "without pitch and speaker inputs they must be equal"
            )
        if str(config.get("resblock", "1")) != "1":
            raise ValueError(f"vocoder config has resblock {config['resblock']!r}; expected '1'")
        if len(self.upsample_rates) != len(self.upsample_kernels):
            raise ValueError("vocoder config: upsample_rates and upsample_kernel_sizes differ in length")
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise ValueError("vocoder config: resblock_kernel_sizes and resblock_dilation_sizes differ in length")
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernels, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise ValueError(f"vocoder config: upsample kernel {kernel} must exceed rate {rate} by an even number")
        if self.channels_first % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"vocoder config: upsample_initial_channel {self.channels_first} cannot be halved "
                f"{len(self.upsample_rates)} times"
            )
        if any(kernel % 2 == 0 for kernel in self.resblock_kernels):
            raise ValueError(f"vocoder config: resblock kernels must be odd, got {self.resblock_kernels}")
        hop = config.get("code_hop_size", self.samples_per_frame)
        if hop != self.samples_per_frame:
            raise ValueError(f"vocoder config: code_hop_size {hop} is not the product of {self.upsample_rates}")
        duration = config.get("dur_predictor_params")
        if duration and duration["encoder_embed_dim"] != self.channels_in:
            raise ValueError("vocoder config: dur_predictor_params.encoder_embed_dim must equal embedding_dim")
        if duration and duration["var_pred_kernel_size"] != DURATION_KERNEL:
            # The published predictor pads its second convolution by 1 whatever the kernel, so only 3 keeps the length.
            raise ValueError(f"vocoder config: var_pred_kernel_size must be 3, got {duration['var_pred_kernel_size']}")


def receptive_field_frames(shape: VocoderShape) -> int:
    """How many frames before and after a frame can change its samples: the larger of both sides.

    The range of needed inputs is followed backwards from the samples of one frame through every layer. Positions are
    counted from the frame's own first one, so that earlier ones are negative.
    """
    first, last = 0, shape.samples_per_frame - 1
    reach = EDGE_KERNEL // 2
    first, last = first - reach, last + reach
    block_reach = max(
        sum((kernel - 1) // 2 * (dilation + 1) for dilation in dilations)
        for kernel, dilations in zip(shape.resblock_kernels, shape.resblock_dilations, strict=True)
    )
    for rate, kernel in reversed(list(zip(shape.upsample_rates, shape.upsample_kernels, strict=True))):
        first, last = first - block_reach, last + block_reach
        padding = (kernel - rate) // 2
        # Output n of a transposed convolution reads the inputs i with 0 <= n + padding - i * rate < kernel.
        first, last = -((kernel - 1 - padding - first) // rate), (last + padding) // rate
    first, last = first - reach, last + reach
    return max(-first, last)


class ResidualBlock(nn.Module):
    """Pairs of a dilated and an undilated convolution, each pair added to its input. (B, C, N) -> (B, C, N)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) // 2 * d))
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2)) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            residual = dilated(functional.leaky_relu(x, LEAKY_SLOPE))
            x = x + plain(functional.leaky_relu(residual, LEAKY_SLOPE))
        return x


class DurationPredictor(nn.Module):
    """Frames that each unit lasts. (U, C) -> (U,) int64, at least 1.

    Computed in FP64: the last step rounds, and FP32 sums that depend on how many units are given at once could round a
    unit to another length in a stream than in the whole. In FP64 that difference is some 1e-16.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(channels, hidden, DURATION_KERNEL, padding=1), nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, DURATION_KERNEL, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, embedded: Tensor) -> Tensor:
        x = embedded.double()
        for convolution, norm in ((self.conv1[0], self.ln1), (self.conv2[0], self.ln2)):
            assert isinstance(convolution, nn.Conv1d)
            x = functional.conv1d(x.T, convolution.weight.double(), _double(convolution.bias), padding=1).relu().T
            x = functional.layer_norm(x, norm.normalized_shape, norm.weight.double(), _double(norm.bias), norm.eps)
        log_frames = functional.linear(x, self.proj.weight.double(), _double(self.proj.bias)).squeeze(-1)
        return torch.clamp(torch.round(torch.exp(log_frames) - 1), min=1).long()


def _double(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias.double()


class UnitGenerator(nn.Module):
    """Embedded frames to samples. (B, C, N) -> (B, N * samples_per_frame) in [-1, 1]."""

    def __init__(self, shape: VocoderShape) -> None:
        super().__init__()
        self.conv_pre = weight_norm(
            nn.Conv1d(shape.channels_in, shape.channels_first, EDGE_KERNEL, padding=EDGE_KERNEL // 2)
        )
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        channels = shape.channels_first
        for rate, kernel in zip(shape.upsample_rates, shape.upsample_kernels, strict=True):
            step = nn.ConvTranspose1d(channels, channels // 2, kernel, stride=rate, padding=(kernel - rate) // 2)
            self.ups.append(weight_norm(step))
            channels //= 2
            for block_kernel, dilations in zip(shape.resblock_kernels, shape.resblock_dilations, strict=True):
                self.resblocks.append(ResidualBlock(channels, block_kernel, dilations))
        self.conv_post = weight_norm(nn.Conv1d(channels, 1, EDGE_KERNEL, padding=EDGE_KERNEL // 2))
        self.dict = nn.Embedding(shape.unit_vocab_size, shape.channels_in)
        if shape.duration_hidden is not None:
            self.dur_predictor = DurationPredictor(shape.channels_in, shape.duration_hidden)
        else:
            self.dur_predictor = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        blocks_per_step = len(self.resblocks) // len(self.ups)
        for index, upsample in enumerate(self.ups):
            x = upsample(functional.leaky_relu(x, LEAKY_SLOPE))
            parallel = self.resblocks[index * blocks_per_step : (index + 1) * blocks_per_step]
            total = parallel[0](x)
            for block in parallel[1:]:
                total = total + block(x)
            x = total / blocks_per_step
        x = self.conv_post(functional.leaky_relu(x, LAST_LEAKY_SLOPE))
        return torch.tanh(x).squeeze(1)
