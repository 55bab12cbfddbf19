"""The unit vocoder: HuBERT k-means units to a waveform, whole or as an exact stream.

Reads and writes the published format: `config.json` beside one `g_*` torch file `{"generator": state_dict}` whose
weight-normed layers are stored as `weight_g` and `weight_v`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.llama_omni.vocoder_layers import (
    DURATION_CONTEXT_UNITS,
    PUBLISHED_VOCODER_CONFIG,
    UnitGenerator,
    VocoderShape,
    receptive_field_frames,
)

__all__ = ["PUBLISHED_VOCODER_CONFIG", "UnitVocoder"]

CHECKPOINT_NAME = "g_00500000"
# torch.nn.utils.weight_norm stored these names; torch.nn.utils.parametrizations.weight_norm has the second ones.
_PARAMETRIZED_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}

Units = Tensor | Sequence[int]


class UnitVocoder(nn.Module):
    """Published unit HiFi-GAN. Inference only: gradients are off, and the duration predictor has no dropout.

    `config` is the content of a published `config.json` (`PUBLISHED_VOCODER_CONFIG` for the released one); entries that
    only concern its training are kept for `save`. Weights are random until loaded.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(config)
        self.shape = VocoderShape.from_published(config)
        self.receptive_field_frames = receptive_field_frames(self.shape)
        self.generator = UnitGenerator(self.shape)
        self.eval()

    @property
    def sample_rate_hz(self) -> int:
        return self.shape.sample_rate_hz

    @property
    def samples_per_frame(self) -> int:
        return self.shape.samples_per_frame

    @classmethod
    def from_checkpoint(cls, folder: str | Path) -> UnitVocoder:
        """Vocoder of a folder with `config.json` and exactly one `g_*` file; ValueError where these do not fit."""
        folder = Path(folder)
        config_path = folder / "config.json"
        if not config_path.is_file():
            raise ValueError(f"no vocoder at {folder}: expected a folder with config.json and one g_* file")
        try:
            config = json.loads(config_path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{config_path} is not JSON ({error})") from error
        if not isinstance(config, dict):
            raise ValueError(f"{config_path} holds a {type(config).__name__}; expected the vocoder's settings")
        weights = sorted(path for path in folder.glob("g_*") if path.is_file())
        if len(weights) != 1:
            found = [path.name for path in weights]
            raise ValueError(f"expected exactly one g_* weights file in {folder}, found {found}; keep the one to use")
        vocoder = cls(config)
        vocoder.load_published_state_dict(_read_generator(weights[0]), source=str(weights[0]))
        return vocoder

    def load_published_state_dict(self, published: Mapping[str, Tensor], source: str = "state dict") -> None:
        """Takes tensors under their published names; ValueError if one is missing, in excess or of another shape."""
        expected = self.published_state_dict()
        missing = sorted(expected.keys() - published.keys())
        extra = sorted(published.keys() - expected.keys())
        if missing or extra:
            raise ValueError(
                f"{source} does not fit the vocoder's config: it lacks {_first(missing)} and has "
                f"in excess {_first(extra)}; is config.json from the same release?"
            )
        for name, tensor in published.items():
            if tensor.shape != expected[name].shape:
                raise ValueError(
                    f"{source}: {name} has shape {tuple(tensor.shape)}, the config needs {tuple(expected[name].shape)}"
                )
        self.generator.load_state_dict({_parametrized_name(name): tensor for name, tensor in published.items()})

    def published_state_dict(self) -> dict[str, Tensor]:
        """The weights under their published names, in the module's order."""
        names = {new: old for old, new in _PARAMETRIZED_NAMES.items()}
        result = {}
        for name, tensor in self.generator.state_dict().items():
            for new, old in names.items():
                name = name.replace(new, old)
            result[name] = tensor.detach().clone()
        return result

    def save(self, folder: str | Path) -> None:
        """Writes `config.json` and `g_00500000` in the published format; loading them gives the same bits."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.glob("g_*") if path.name != CHECKPOINT_NAME]
        if others:
            raise ValueError(f"{folder} already holds {others}; choose a folder without g_* files")
        (folder / "config.json").write_text(json.dumps(self.config, indent=1), encoding="utf-8")
        tensors = {name: tensor.cpu() for name, tensor in self.published_state_dict().items()}
        torch.save({"generator": tensors}, folder / CHECKPOINT_NAME)

    @torch.no_grad()
    def predict_durations(self, units: Units) -> Tensor:
        """Frames (50 Hz) that each unit lasts. (U,) -> (U,) int64, each at least 1."""
        return self._predict_durations(self._checked(units))

    def _predict_durations(self, units: Tensor) -> Tensor:
        if self.generator.dur_predictor is None:
            raise ValueError("this vocoder has no duration predictor; pass durations=False or the durations themselves")
        return self.generator.dur_predictor(self.generator.dict(units))

    @torch.no_grad()
    def forward(self, units: Units, durations: bool | Units = True, chunk_frames: int | None = None) -> Tensor:
        """Waveform (samples,) in [-1, 1] of `units` (U,) or (1, U).

        `durations`: True predicts how many frames each unit lasts (for units whose repeats were collapsed, as the CTC
        generator gives them); False gives each one frame; a tensor (U,) of frames, each at least 1, is taken as it is.
        `chunk_frames` bounds the memory by computing that many frames at a time, with the same result to rounding.
        """
        checked = self._checked(units)
        frames = self._frames(checked, durations)
        if chunk_frames is None:
            return self._waveform(frames)
        return torch.cat(list(self._emit([frames], chunk_frames)))

    @torch.no_grad()
    def stream(self, units: Iterable[int | Units], durations: bool = True, chunk_frames: int = 100) -> Iterator[Tensor]:
        """Chunks of the waveform that `units`, arriving one by one or in pieces of any size, give as a whole.

        Each chunk is (chunk_frames * samples_per_frame,), the last one shorter. A chunk comes once the receptive field
        after it is known: 21 frames (0.42 s) at the published sizes, and two units more with predicted durations. The
        concatenation equals `vocoder(all_units, durations)` to rounding. Memory does not grow with the stream.
        """
        yield from self._emit(self._frame_pieces(units, durations), chunk_frames)

    def _frame_pieces(self, units: Iterable[int | Units], durations: bool) -> Iterator[Tensor]:
        """Frames of the units as soon as their durations are certain."""
        pieces = (self._checked([piece] if isinstance(piece, int) else piece, empty_is_fine=True) for piece in units)
        if not durations:
            yield from pieces
            return
        context = DURATION_CONTEXT_UNITS
        known, done = self._checked([], empty_is_fine=True), 0
        for piece in pieces:
            known = torch.cat([known, piece])
            certain = len(known) - context
            if certain > done:
                yield known[done:certain].repeat_interleave(self._predict_durations(known)[done:certain])
                start = max(certain - context, 0)
                known, done = known[start:], certain - start
        if len(known) > done:
            yield known[done:].repeat_interleave(self._predict_durations(known)[done:])

    def _emit(self, pieces: Iterable[Tensor], chunk_frames: int) -> Iterator[Tensor]:
        """Waveform chunks of the concatenation of `pieces` of frames, each computed with its context on both sides."""
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames must be at least 1, got {chunk_frames}")
        context, step = self.receptive_field_frames, self.samples_per_frame
        waiting, before = self._checked([], empty_is_fine=True), 0
        for piece in pieces:
            waiting = torch.cat([waiting, piece])
            while len(waiting) >= before + chunk_frames + context:
                after = before + chunk_frames
                yield self._waveform(waiting[: after + context])[before * step : after * step]
                start = max(after - context, 0)
                waiting, before = waiting[start:], after - start
        while len(waiting) > before:
            after = min(before + chunk_frames, len(waiting))
            yield self._waveform(waiting[: after + context])[before * step : after * step]
            start = max(after - context, 0)
            waiting, before = waiting[start:], after - start

    def _frames(self, units: Tensor, durations: bool | Units) -> Tensor:
        if durations is False:
            return units
        if durations is True:
            return units.repeat_interleave(self._predict_durations(units))
        counts = torch.as_tensor(durations, device=units.device).reshape(-1)
        if counts.shape != units.shape or counts.is_floating_point() or int(counts.min()) < 1:
            raise ValueError(
                f"durations must be {len(units)} whole numbers of at least 1, one per unit, "
                f"got {counts.dtype} {tuple(counts.shape)}"
            )
        return units.repeat_interleave(counts.long())

    def _waveform(self, frames: Tensor) -> Tensor:
        embedded = self.generator.dict(frames).T.unsqueeze(0)
        return self.generator(embedded).squeeze(0)

    def _checked(self, units: Units, empty_is_fine: bool = False) -> Tensor:
        device = self.generator.dict.weight.device
        tensor = torch.as_tensor(units, device=device)
        if tensor.numel() == 0:
            if empty_is_fine:
                return torch.zeros(0, dtype=torch.int64, device=device)
            raise ValueError("no units to speak: expected at least one")
        if tensor.dim() > 2 or (tensor.dim() == 2 and tensor.shape[0] != 1):
            raise ValueError(f"units must be one sequence (U,) or (1, U), got shape {tuple(tensor.shape)}")
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise ValueError(f"units must be whole numbers, got {tensor.dtype}")
        tensor = tensor.reshape(-1).long()
        lowest, highest = int(tensor.min()), int(tensor.max())
        if lowest < 0 or highest >= self.shape.unit_vocab_size:
            raise ValueError(
                f"units must lie in 0-{self.shape.unit_vocab_size - 1}, got {lowest}-{highest}; "
                "remove the CTC blank and collapse repeats first"
            )
        return tensor


def _read_generator(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable torch weights file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("generator"), dict):
        raise ValueError(f'{path} must hold {{"generator": state dict}}, as vocoder checkpoints do')
    generator = content["generator"]
    wrong = [name for name, tensor in generator.items() if not isinstance(tensor, Tensor)]
    if wrong:
        raise ValueError(f"{path}: {_first(wrong)} are not tensors")
    not_finite = [name for name, tensor in generator.items() if not bool(torch.isfinite(tensor).all())]
    if not_finite:
        raise ValueError(f"{path} holds NaN or infinite values in {_first(not_finite)}; the file is damaged")
    return generator


def _parametrized_name(published_name: str) -> str:
    stem, _, leaf = published_name.rpartition(".")
    return f"{stem}.{_PARAMETRIZED_NAMES[leaf]}" if leaf in _PARAMETRIZED_NAMES else published_name


def _first(names: Sequence[str], count: int = 4) -> str:
    listed = ", ".join(names[:count]) or "nothing"
    return f"{listed} and {len(names) - count} more" if len(names) > count else listed
