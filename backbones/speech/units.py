"""Speech units without pretrained weights: k-means on pairs of log-mel frames, and sound from units without a vocoder.

F mel frames at 100 Hz, U = ceil(F / 2) units at 50 Hz, K units in the codebook. A unit stands for two consecutive mel
frames, so a centroid is (2 * n_mels,) and says directly what the unit sounds like: its two mel frames give two
magnitude spectra, and Griffin-Lim finds phases for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import librosa
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, SAMPLE_RATE

from backbones.speech.mel import mel_filterbank, mel_power

FRAMES_PER_UNIT = 2
UNIT_RATE_HZ = SAMPLE_RATE // (HOP_LENGTH * FRAMES_PER_UNIT)
FORMAT_VERSION = "1"
_ENCODE_BLOCK_UNITS = 8192
_MINI_BATCH_UNITS = 4096
_KMEANS_STARTS = 3
_WHOLE_PASSES = 10


class UnitCodebook:
    """K centroids of stacked log-mel frames. Build with `fit`, `from_centroids` or `load`."""

    def __init__(self, centroids: Tensor, n_mels: int) -> None:
        if centroids.dim() != 2 or centroids.shape[0] < 1 or centroids.shape[1] != FRAMES_PER_UNIT * n_mels:
            raise ValueError(
                f"centroids must be (units, {FRAMES_PER_UNIT} * n_mels) = (units, {FRAMES_PER_UNIT * n_mels}), "
                f"got {tuple(centroids.shape)}"
            )
        if not bool(torch.isfinite(centroids).all()):
            raise ValueError("centroids hold NaN or infinite values")
        mel_filterbank(n_mels)  # refuses counts of mel bands that whisper has no filters for
        self.centroids = centroids.detach().float().cpu().contiguous()
        self.n_mels = n_mels
        self._magnitudes: NDArray[np.float32] | None = None

    @property
    def size(self) -> int:
        return self.centroids.shape[0]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the units: the centroids' bits and shape."""
        digest = hashlib.sha256(f"{FORMAT_VERSION} {self.n_mels} {tuple(self.centroids.shape)}".encode())
        digest.update(self.centroids.numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    @classmethod
    def fit(cls, mels: Sequence[Tensor], size: int, seed: int = 0) -> UnitCodebook:
        """K-means with `size` centroids on utterances' log-mels, each (F, n_mels). The same inputs and seed give
        the same codebook (to the last bit on one machine with one number of threads).

        ValueError where there are fewer different units' worth of sound than `size`.
        """
        if not len(mels):
            raise ValueError("no utterances to fit units on; give at least one log-mel (F, n_mels)")
        n_mels = mels[0].shape[-1]
        pairs = torch.cat([_stacked_pairs(mel, n_mels) for mel in mels]).numpy()
        different = len({pair.tobytes() for pair in pairs})
        if size < 1 or different < size:
            raise ValueError(
                f"cannot fit {size} units: the sound given has {different} different frames at {UNIT_RATE_HZ} Hz; "
                "give more sound or ask for fewer units"
            )
        return cls(torch.from_numpy(_kmeans_centroids(pairs, size, seed)), n_mels)

    @classmethod
    def from_centroids(cls, centroids: ArrayLike, n_mels: int = 128) -> UnitCodebook:
        """Codebook of centroids (K, 2 * n_mels) made elsewhere, the two frames one after the other."""
        return cls(torch.from_numpy(np.array(centroids, dtype=np.float32)), n_mels)

    def encode(self, mel: Tensor) -> Tensor:
        """Nearest unit of each pair of frames: (F, n_mels) -> (ceil(F / 2),) int64; an odd last frame counts twice."""
        pairs = _stacked_pairs(mel, self.n_mels)
        half_norms = self.centroids.square().sum(dim=1) / 2
        nearest = [(half_norms - block @ self.centroids.T).argmin(dim=1) for block in pairs.split(_ENCODE_BLOCK_UNITS)]
        return torch.cat(nearest)

    def to_mel(self, units: Tensor | Sequence[int]) -> Tensor:
        """Log-mel that the units stand for: (U,) -> (2 * U, n_mels), on the scale of `log_mel`."""
        return self.centroids[self._checked(units)].reshape(-1, self.n_mels)

    def to_waveform(
        self,
        units: Tensor | Sequence[int],
        durations: Tensor | Sequence[int] | None = None,
        seed: int = 0,
        iterations: int = 32,
    ) -> NDArray[np.float32]:
        """Sound of the units at 16 kHz by Griffin-Lim: (320 * units,) float32, the same for the same seed.

        `durations` (U,) says how often each unit is repeated, for units whose repeats were collapsed. Magnitudes come
        from the centroids by non-negative least squares on whisper's filters. The level is the centroids', so a peak
        may pass 1 a little.
        """
        frames = self._checked(units if durations is None else expand_repeats(units, durations)).numpy()
        magnitudes = self._unit_magnitudes()[frames].reshape(-1, N_FFT // 2 + 1).T
        # Whisper's STFT drops its last frame; Griffin-Lim needs it to reach the length.
        magnitudes = np.concatenate([magnitudes, magnitudes[:, -1:]], axis=1)
        return librosa.griffinlim(
            np.ascontiguousarray(magnitudes),
            n_iter=iterations,
            hop_length=HOP_LENGTH,
            n_fft=N_FFT,
            length=len(frames) * FRAMES_PER_UNIT * HOP_LENGTH,
            random_state=seed,
        ).astype(np.float32)

    def save(self, path: str | Path) -> None:
        """One safetensors file: the centroids, and as metadata the version, mel bands and fingerprint."""
        metadata = {
            "version": FORMAT_VERSION,
            "config": json.dumps({"n_mels": self.n_mels}),
            "fingerprint": self.fingerprint,
        }
        save_file({"centroids": self.centroids}, path, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> UnitCodebook:
        """The codebook that `save` wrote; ValueError if missing, of another kind or version, or changed since."""
        if not Path(path).is_file():
            raise ValueError(f"no unit codebook at {path}; fit one and save it there")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no iteration offered
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
        if set(tensors) != {"centroids"} or not {"version", "config", "fingerprint"} <= set(metadata):
            raise ValueError(
                f"{path} is not a unit codebook: it holds {sorted(tensors)} with metadata {sorted(metadata)}"
            )
        if metadata["version"] != FORMAT_VERSION:
            raise ValueError(f"{path} has codebook version {metadata['version']}; this code reads {FORMAT_VERSION}")
        codebook = cls(tensors["centroids"], int(json.loads(metadata["config"])["n_mels"]))
        if codebook.fingerprint != metadata["fingerprint"]:
            raise ValueError(f"{path}: the centroids do not match the file's fingerprint; it was changed after saving")
        return codebook

    def _unit_magnitudes(self) -> NDArray[np.float32]:
        """Magnitude spectra (K, 2, 201) of every unit, inverted once: these few columns serve any length of sound."""
        if self._magnitudes is not None:
            return self._magnitudes
        power = mel_power(self.centroids.reshape(-1, self.n_mels)).numpy()
        filters = mel_filterbank(self.n_mels).double().numpy()
        # Columns of loud and quiet units differ by up to 80 dB; each is solved at its own scale.
        scale = power.max(axis=1, keepdims=True)
        spectra = librosa.util.nnls(filters, (power / scale).T).T * scale
        magnitudes = np.sqrt(spectra).astype(np.float32).reshape(self.size, FRAMES_PER_UNIT, -1)
        self._magnitudes = magnitudes
        return magnitudes

    def _checked(self, units: Tensor | Sequence[int]) -> Tensor:
        tensor = _whole_numbers(units, "units")
        if not len(tensor):
            raise ValueError("no units: expected at least one")
        if int(tensor.min()) < 0 or int(tensor.max()) >= self.size:
            raise ValueError(f"units must lie in 0-{self.size - 1}, got {int(tensor.min())}-{int(tensor.max())}")
        return tensor


def collapse_repeats(units: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Runs of equal units: (units (R,), durations (R,)) int64, no unit following itself."""
    values, counts = torch.unique_consecutive(_whole_numbers(units, "units"), return_counts=True)
    return values, counts


def expand_repeats(units: Tensor | Sequence[int], durations: Tensor | Sequence[int]) -> Tensor:
    """Each unit repeated as often as its duration says: undoes `collapse_repeats`. Durations of 0 leave a unit out."""
    values, counts = _whole_numbers(units, "units"), _whole_numbers(durations, "durations")
    if values.shape != counts.shape or bool((counts < 0).any()):
        raise ValueError(
            f"durations must be {len(values)} numbers of at least 0, one per unit, got {len(counts)} from "
            f"{int(counts.min()) if len(counts) else 'nothing'}"
        )
    return values.repeat_interleave(counts)


def _whole_numbers(values: Tensor | Sequence[int], name: str) -> Tensor:
    tensor = torch.as_tensor(values).detach().cpu()
    if tensor.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be one sequence of whole numbers, got {tensor.dtype} {tuple(tensor.shape)}")
    return tensor.long()


def _kmeans_centroids(pairs: NDArray[np.float32], size: int, seed: int) -> NDArray[np.float32]:
    """Centroids (size, C) of `pairs` (N, C)."""
    rough = MiniBatchKMeans(
        size,
        batch_size=_MINI_BATCH_UNITS,
        n_init=_KMEANS_STARTS,  # pyright: ignore[reportArgumentType] - takes whole numbers too
        random_state=seed,
    ).fit(pairs)
    # Mini-batches are quick but leave centroids beside the means of their units; whole passes settle that.
    settled = KMeans(
        size,
        init=rough.cluster_centers_,  # pyright: ignore[reportArgumentType] - takes arrays too
        n_init=1,  # pyright: ignore[reportArgumentType]
        max_iter=_WHOLE_PASSES,
        random_state=seed,
    ).fit(pairs)
    return np.asarray(settled.cluster_centers_, dtype=np.float32)


def _stacked_pairs(mel: Tensor, n_mels: int) -> Tensor:
    """(F, n_mels) -> (ceil(F / 2), 2 * n_mels)."""
    if mel.dim() != 2 or mel.shape[1] != n_mels or mel.shape[0] < 1:
        raise ValueError(f"expected a log-mel (frames, {n_mels}) of at least one frame, got {tuple(mel.shape)}")
    if not bool(torch.isfinite(mel).all()):
        raise ValueError("the log-mel holds NaN or infinite values")
    mel = mel.detach().float().cpu()
    if mel.shape[0] % FRAMES_PER_UNIT:
        mel = torch.cat([mel, mel[-1:]])
    return mel.reshape(-1, FRAMES_PER_UNIT * n_mels)
