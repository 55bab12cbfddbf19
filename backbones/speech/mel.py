"""Log-mel spectrograms by openai-whisper's own code and its bundled filters, at true length.

F mel frames at 100 Hz (hop 160 samples of 16 kHz, window 400).

The values are (log10(power) + 4) / 4 with a floor 8 powers of ten (80 dB) below the loudest value of what is given. So
absolute level is kept, but the floor of a whole recording depends on its loudest moment anywhere, future included.
`log_mel_windows` works window by window of 30 s instead: what whisper's encoder sees, and the same whether the sound is
streamed or given whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, N_SAMPLES, SAMPLE_RATE, log_mel_spectrogram, mel_filters

MEL_FRAME_RATE_HZ = SAMPLE_RATE // HOP_LENGTH
SUPPORTED_MEL_COUNTS = (80, 128)
WINDOW_SAMPLES = N_SAMPLES
WINDOW_FRAMES = N_SAMPLES // HOP_LENGTH

SampleArray = NDArray[np.floating] | Tensor


def log_mel(samples: SampleArray, n_mels: int = 128) -> Tensor:
    """Log-mel of 16 kHz samples (N,) in [-1, 1] as one piece: (N // 160, n_mels) float32.

    ValueError below 400 samples (25 ms, one STFT window), on NaN, on integers, and on `n_mels` other than 80 or 128.
    Needs about 0.4 MB per second of sound: use `log_mel_windows` for recordings of many minutes.
    """
    checked = _checked(samples, n_mels)
    if len(checked) < N_FFT:
        raise ValueError(
            f"log-mel needs at least {N_FFT} samples ({1000 * N_FFT // SAMPLE_RATE} ms at {SAMPLE_RATE} Hz), "
            f"got {len(checked)}; leave so short a recording out"
        )
    return log_mel_spectrogram(checked, n_mels).T.contiguous()


def log_mel_windows(samples: SampleArray | Iterable[SampleArray], n_mels: int = 128) -> Iterator[Tensor]:
    """`log_mel` of each 30 s window in turn: (3000, n_mels), the last (F, n_mels), F = N // 160 in all.

    `samples` is an array (N,) or blocks of any sizes in reading order (`stream_audio` gives such), used as they come. A
    last window below one STFT window is filled up with silence, so that its frames are not lost. ValueError as in
    `log_mel`.
    """
    blocks = [samples] if isinstance(samples, np.ndarray | Tensor) else samples
    waiting, windows = torch.zeros(0), 0
    for block in blocks:
        waiting = torch.cat([waiting, _checked(block, n_mels)])
        while len(waiting) >= WINDOW_SAMPLES:
            yield log_mel(waiting[:WINDOW_SAMPLES], n_mels)
            waiting, windows = waiting[WINDOW_SAMPLES:], windows + 1
    if windows and HOP_LENGTH <= len(waiting) < N_FFT:
        filled = torch.cat([waiting, torch.zeros(N_FFT - len(waiting))])
        yield log_mel(filled, n_mels)[: len(waiting) // HOP_LENGTH]
    elif not windows or len(waiting) >= N_FFT:
        yield log_mel(waiting, n_mels)


def mel_power(mel: Tensor) -> Tensor:
    """Power of each mel band, undoing `log_mel`'s scaling; what its floor hid stays at the floor. Any shape."""
    return torch.pow(10.0, 4.0 * mel.double() - 4.0)


def mel_filterbank(n_mels: int) -> Tensor:
    """Whisper's bundled filters (n_mels, 201): power spectrum to mel bands."""
    _check_mel_count(n_mels)
    return mel_filters("cpu", n_mels)


def _check_mel_count(n_mels: int) -> None:
    if n_mels not in SUPPORTED_MEL_COUNTS:
        raise ValueError(f"whisper bundles filters for {SUPPORTED_MEL_COUNTS} mel bands, got n_mels={n_mels}")


def _checked(samples: SampleArray, n_mels: int) -> Tensor:
    _check_mel_count(n_mels)
    # A copy: torch warns of arrays it may not write to, such as memory maps.
    tensor = samples.detach().cpu() if isinstance(samples, Tensor) else torch.from_numpy(np.array(samples))
    if tensor.dim() != 1 or not tensor.is_floating_point():
        raise ValueError(
            f"expected mono samples (N,), floating, in [-1, 1], as `read_audio` gives them, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError("samples hold NaN or infinite values; check the recording")
    return tensor.float()
