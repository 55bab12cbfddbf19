"""Mimi, from sound to codes and back offline, by transformers' implementation. A stream of sound is encoded exactly.

Its decoder cannot stream: its convolutions keep nothing between calls, and frame by frame the sound is off by its peak
(6 % in root mean square, small random weights). `backbones.moshi.mimi` decodes a stream exactly by moshi's own Mimi.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import MimiConfig, MimiModel

from backbones.config_file import read_config_file

CODEBOOKS_MOSHI_USES = 8
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ENCODED_AT_ONCE_S = 30.0
MOST_NAMES = 3

Samples = NDArray[np.float32]


class MimiTokenizer:
    """Sound to codes and back by transformers' `MimiModel`, offline or as a stream of sound.

    model: in eval mode from here on. codebooks: how many of the model's are used, the first ones (Moshi uses 8 of 32).
    Codes are int64 (codebooks, frames) on the CPU; samples float32 (time,), nominally in [-1, 1].
    """

    def __init__(self, model: MimiModel, codebooks: int = CODEBOOKS_MOSHI_USES) -> None:
        known = model.config.num_quantizers
        if not model.config.num_semantic_quantizers < codebooks <= known:
            raise ValueError(
                f"this Mimi has {known} codebooks, of which at least {model.config.num_semantic_quantizers + 1} must "
                f"be used; got codebooks={codebooks}"
            )
        self.model = model.eval().requires_grad_(False)
        self.codebooks = codebooks

    @staticmethod
    def from_folder(folder: str | Path, codebooks: int = CODEBOOKS_MOSHI_USES) -> MimiTokenizer:
        """A checkpoint in transformers' format: config.json and model.safetensors, every tensor of it present.

        ValueError names the folder and what is missing, unreadable, or of another model or shape.
        """
        folder = Path(folder)
        kind = read_config_file(folder / CONFIG_FILE).get("model_type")
        if kind != "mimi":
            raise ValueError(f"{folder} holds a model of type {kind!r}, not 'mimi'; give transformers' Mimi")
        if not (folder / WEIGHTS_FILE).is_file():
            raise ValueError(f"{folder} has no {WEIGHTS_FILE}; copy the whole checkpoint there")
        try:
            model, report = MimiModel.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except SafetensorError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE} is no readable safetensors file: {error}") from error
        # Mismatches are let through so that the tensors can be named; transformers' own error is a table.
        for what, names in (("lacks", report["missing_keys"]), ("has, in another shape,", report["mismatched_keys"])):
            if names:
                raise ValueError(f"{folder / WEIGHTS_FILE} {what} {named([str(name) for name in names])}")
        return MimiTokenizer(model, codebooks)

    @staticmethod
    def random(config: MimiConfig, seed: int, codebooks: int = CODEBOOKS_MOSHI_USES) -> MimiTokenizer:
        """Random weights, and codebooks drawn where the model's latents of noise lie, so that many codes are used.

        transformers' own initial codebooks are all zero, which gives code 0 for any sound.
        """
        if config.vector_quantization_hidden_dimension == config.hidden_size:
            raise ValueError("a Mimi whose codebooks are as wide as its latents has no projection to draw them behind")
        latents: dict[nn.Module, Tensor] = {}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = MimiTokenizer(MimiModel(config), codebooks).model
            quantizer = model.quantizer
            parts = (quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer)
            hooks = [part.input_proj.register_forward_hook(lambda m, _, z: latents.update({m: z})) for part in parts]
            model.encode(torch.randn(1, 1, 4 * config.sampling_rate) / 10)
            for hook in hooks:
                hook.remove()
            for part in parts:
                spread, mean = torch.std_mean(latents[part.input_proj], dim=(0, 2))
                for level, layer in enumerate(part.layers):
                    # What a later level quantizes is what the first left over: centred.
                    drawn = spread * torch.randn_like(layer.codebook.embed_sum)
                    layer.codebook.embed_sum.copy_(drawn if level else drawn + mean)
                    layer.codebook._embed = None  # made from embed_sum when first used, and kept
        return MimiTokenizer(model, codebooks)

    @property
    def sample_rate_hz(self) -> int:
        return self.model.config.sampling_rate

    @property
    def frame_rate_hz(self) -> float:
        return self.model.config.frame_rate

    @property
    def frame_samples(self) -> int:
        """Samples of sound that one frame of codes stands for."""
        return round(self.sample_rate_hz / self.frame_rate_hz)

    def encode(self, samples: ArrayLike, sample_rate_hz: int) -> Tensor:
        """Codes (codebooks, frames) of a mono recording (time,) at any rate; the last frame is filled with silence.

        Works through the sound 30 s at a time, so memory does not grow with its length. ValueError on samples of
        another shape, NaN, and less than one sample at the model's rate.
        """
        values = _checked_samples(samples)
        stream = self.stream(sample_rate_hz)
        step = round(ENCODED_AT_ONCE_S * sample_rate_hz)
        parts = [stream.push(values[start : start + step]) for start in range(0, len(values), step)]
        codes = torch.cat([*parts, stream.finish()], dim=1)
        if not codes.shape[1]:
            raise ValueError(f"{len(values)} samples at {sample_rate_hz} Hz are too short to encode; give more")
        return codes

    @torch.no_grad()
    def encode_many(self, recordings: Sequence[ArrayLike], sample_rate_hz: int) -> list[Tensor]:
        """Codes (codebooks, frames) of each recording, all of them in one batched call.

        The encoder is causal, so the silence that fills the shorter ones up changes nothing before it.
        """
        resampled = [soxr.resample(_checked_samples(one), sample_rate_hz, self.sample_rate_hz) for one in recordings]
        frames = [-(-len(one) // self.frame_samples) for one in resampled]
        if not frames or not min(frames):
            raise ValueError(f"every recording must hold a sample at {self.sample_rate_hz} Hz; they make {frames}")
        batch = torch.zeros(len(resampled), 1, max(frames) * self.frame_samples, device=self.model.device)
        for row, one in enumerate(resampled):
            batch[row, 0, : len(one)] = torch.from_numpy(one)
        codes = self.model.encode(batch, num_quantizers=self.codebooks).audio_codes.cpu()
        return [codes[row, :, :count] for row, count in enumerate(frames)]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Samples:
        """Samples (frames * frame_samples,) of codes (codebooks, frames), offline, in one call."""
        check_codes(codes, self.codebooks, self.model.config.codebook_size)
        return self.model.decode(codes[None].to(self.model.device)).audio_values[0, 0].float().cpu().numpy()

    def stream(self, sample_rate_hz: int) -> MimiEncodingStream:
        """An encoder of sound that arrives in pieces of any size at that rate; its codes are those of the whole."""
        if sample_rate_hz < 1:
            raise ValueError(f"sample_rate_hz must be 1 or more, got {sample_rate_hz}")
        return MimiEncodingStream(self, sample_rate_hz)


class MimiEncodingStream:
    """Codes of a sound that arrives in pieces: a frame as soon as its samples are there."""

    def __init__(self, tokenizer: MimiTokenizer, sample_rate_hz: int) -> None:
        self._tokenizer = tokenizer
        own_rate_hz = tokenizer.sample_rate_hz
        same = sample_rate_hz == own_rate_hz
        self._resampler = None if same else soxr.ResampleStream(sample_rate_hz, own_rate_hz, 1, dtype="float32")
        self._waiting = np.zeros(0, dtype=np.float32)
        self._keys_and_values: Any = None
        self._conv_history: Any = None
        self._is_finished = False

    def push(self, samples: ArrayLike) -> Tensor:
        """Codes (codebooks, frames) of the frames that these samples (time,) complete, 0 or more of them."""
        return self._encode(self._converted(_checked_samples(samples), is_last=False), fills_up=False)

    def finish(self) -> Tensor:
        """Codes of what is still waiting, filled up with silence to a whole frame. Nothing can be pushed after it."""
        codes = self._encode(self._converted(np.zeros(0, dtype=np.float32), is_last=True), fills_up=True)
        self._is_finished = True
        return codes

    def _converted(self, samples: Samples, is_last: bool) -> Samples:
        if self._is_finished:
            raise ValueError("this stream is finished; make another with MimiTokenizer.stream")
        return samples if self._resampler is None else self._resampler.resample_chunk(samples, last=is_last)

    @torch.no_grad()
    def _encode(self, samples: Samples, fills_up: bool) -> Tensor:
        tokenizer, frame = self._tokenizer, self._tokenizer.frame_samples
        self._waiting = np.concatenate([self._waiting, samples])
        if fills_up:
            self._waiting = np.pad(self._waiting, (0, -len(self._waiting) % frame))
        whole = len(self._waiting) // frame * frame
        if not whole:
            return torch.zeros(tokenizer.codebooks, 0, dtype=torch.int64)
        sound = torch.from_numpy(self._waiting[:whole].copy())[None, None].to(tokenizer.model.device)
        self._waiting = self._waiting[whole:]
        encoded = tokenizer.model.encode(
            sound, num_quantizers=tokenizer.codebooks, encoder_past_key_values=self._keys_and_values,
            padding_cache=self._conv_history, use_streaming=True,
        )  # fmt: skip
        self._keys_and_values, self._conv_history = encoded.encoder_past_key_values, encoded.padding_cache
        return encoded.audio_codes[0].cpu()


def _checked_samples(samples: ArrayLike) -> Samples:
    values = np.asarray(samples)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(
            f"samples must be floating and mono, of shape (time,); got {values.dtype} of shape {values.shape} "
            "(`backbones.speech.audio.read_audio` gives such)"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} samples are NaN or infinite")
    return values.astype(np.float32)


def check_codes(codes: Tensor, codebooks: int, size: int) -> None:
    if codes.dim() != 2 or codes.shape[0] != codebooks or not codes.shape[1] or codes.dtype != torch.int64:
        raise ValueError(
            f"codes must be int64 of shape ({codebooks} codebooks, frames), got {codes.dtype} {tuple(codes.shape)}"
        )
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= size:
        raise ValueError(f"codes must be 0 to {size - 1}, got {low} to {high} (a model's special tokens are no codes)")


def named(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(sorted(names)[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
