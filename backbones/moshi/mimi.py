"""Mimi from codes to sound in real time, by moshi's own implementation; `backbones.speech.mimi` is transformers'.

The two agree on the same weights (codes equal, samples to 3e-7 of their peak, tests/test_moshi_mimi.py) but not in what
they can stream: transformers' streams encoding exactly and has no exact streaming decode. moshi's decodes a stream
exactly until its transformer's ring is full, after 250 steps or 10 s: a frame is two steps, the first of which then
misses the oldest key of its window (9e-4 of the peak, same weights). `StreamingMimiDecoder` gives the rings room for a
frame and is exact without end. At the published size one CPU core takes about as long for a frame as it sounds, 80 ms:
real time needs more, or a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from moshi.models import MimiModel as MoshiMimi
from moshi.models.loaders import MIMI_NAME, get_mimi
from moshi.models.loaders import _mimi_config as PUBLISHED_MIMI
from moshi.modules.transformer import StreamingMultiheadAttention
from safetensors import SafetensorError
from torch import Tensor

from backbones.config_file import read_config_file
from backbones.moshi.attention import MountedAttention
from backbones.speech.mimi import (
    CODEBOOKS_MOSHI_USES,
    CONFIG_FILE,
    MimiEncodingStream,
    MimiTokenizer,
    Samples,
    check_codes,
    named,
)

# The tokenizer is every backbone's; it goes by this module's name too, beside the decoder that belongs to it.
__all__ = ["CODEBOOKS_MOSHI_USES", "MimiDecodingStream", "MimiEncodingStream", "MimiTokenizer", "StreamingMimiDecoder"]


class StreamingMimiDecoder:
    """Codes to sound by moshi's own Mimi: whole, or frame by frame as a model says them, with the same result.

    mimi: of moshi's package, in eval mode from here on, with as many codebooks as it is set to.
    """

    def __init__(self, mimi: MoshiMimi) -> None:
        self.mimi = mimi.eval().requires_grad_(False)
        for module in list(mimi.modules()):
            if isinstance(module, StreamingMultiheadAttention):
                MountedAttention.equip(module).tokens_per_call = round(mimi.encoder_frame_rate / mimi.frame_rate)

    @staticmethod
    def from_folder(folder: str | Path, codebooks: int = CODEBOOKS_MOSHI_USES) -> StreamingMimiDecoder:
        """The Mimi of a published Moshi folder: the file that its config.json names, without one the published name."""
        folder = Path(folder)
        names = read_config_file(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
        config = names.get("mimi_config_name")
        return StreamingMimiDecoder.from_file(
            folder / names.get("mimi_name", MIMI_NAME), None if config is None else folder / config, codebooks
        )

    @staticmethod
    def from_file(
        weights: str | Path, config: str | Path | None = None, codebooks: int = CODEBOOKS_MOSHI_USES
    ) -> StreamingMimiDecoder:
        """Weights in moshi's own format, from a local path. config: its JSON; None is the published Mimi's dimensions.

        ValueError names the file and what is missing, unreadable, or of another shape.
        """
        weights = Path(weights)
        if not weights.is_file():
            raise ValueError(f"there is no Mimi at {weights}; moshi's own format is one file, published as {MIMI_NAME}")
        settings = PUBLISHED_MIMI if config is None else read_config_file(Path(config))
        try:
            mimi = get_mimi(weights, settings, num_codebooks=codebooks)
        except (KeyError, TypeError, AssertionError) as error:
            raise ValueError(
                f"no Mimi of {codebooks} codebooks can be made from {config or 'the published config'}: "
                f"{type(error).__name__} {error}"
            ) from error
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{weights} is no Mimi of those dimensions: {_load_faults(error)}") from error
        return StreamingMimiDecoder(mimi)

    @property
    def sample_rate_hz(self) -> int:
        return self.mimi.sample_rate

    @property
    def frame_samples(self) -> int:
        """Samples of sound that one frame of codes stands for."""
        return self.mimi.frame_size

    def decode(self, codes: Tensor) -> Samples:
        """Samples (frames * frame_samples,) of codes (codebooks, frames), in one call. Not while a stream is open."""
        if self.mimi.is_streaming:
            raise ValueError("a stream is open on this decoder; close it before decoding a whole")
        return self._decode(codes)

    @contextmanager
    def stream(self) -> Iterator[MimiDecodingStream]:
        """A stream of frames that starts from silence; one at a time, since it lives in the model's modules."""
        if self.mimi.is_streaming:
            raise ValueError("this decoder already has an open stream; close that one, or load another decoder")
        stream = MimiDecodingStream(self)
        try:
            with self.mimi.streaming(1):
                yield stream
        finally:
            stream.is_open = False

    @torch.no_grad()
    def _decode(self, codes: Tensor) -> Samples:
        check_codes(codes, self.mimi.num_codebooks, self.mimi.cardinality)
        device = next(self.mimi.parameters()).device
        return self.mimi.decode(codes[None].to(device))[0, 0].float().cpu().numpy()


class MimiDecodingStream:
    """A stream of a `StreamingMimiDecoder`, until that closes it."""

    def __init__(self, decoder: StreamingMimiDecoder) -> None:
        self._decoder = decoder
        self.is_open = True

    def push(self, codes: Tensor) -> Samples:
        """Samples (frames * frame_samples,) of the next frames (codebooks, frames), complete at once.

        Decoded one frame at a time whatever their number, which is what the rings have room for.
        """
        if not self.is_open:
            raise ValueError("this stream is closed; open another with StreamingMimiDecoder.stream")
        return np.concatenate([self._decoder._decode(frame) for frame in codes.split(1, dim=1)])


def _load_faults(error: Exception) -> str:
    """The kinds of fault of torch's strict loading, with at most three names each; another error's first line."""
    text = str(error)
    faults = []
    for kind, found in (("missing", "Missing key"), ("unexpected", "Unexpected key")):
        for names in re.findall(rf"{found}\(s\) in state_dict: (.*)", text):
            quoted = re.findall('"([^"]+)"', names)
            faults.append(f"{kind} {named(quoted)}")
    misshaped = re.findall(r"size mismatch for ([^:]+):", text)
    return "; ".join([*faults, *([f"misshaped {named(misshaped)}"] if misshaped else [])]) or text.partition("\n")[0]
