"""Speech in: mel frames at 100 Hz to the language model's positions at 10 Hz.

Shape letters: B batch, F mel frames, E encoder width, C hidden size of the language model.

whisper's encoder reads windows of 30 s. Longer audio is encoded window by window and the windows' frames are joined
in order; a last window shorter than 30 s is filled up with silence and only the frames of real audio are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from whisper.model import AudioEncoder
from whisper.model import LayerNorm as WhisperLayerNorm

from backbones.llama_omni.config import LlamaOmniConfig

WINDOWS_PER_CALL = 8
"""Windows encoded at once: bounds memory for audio of any length."""

# whisper's log-mel is (log10(power) + 4) / 4 with power >= 1e-10, then raised to 2.0 (8 decades / 4) below its maximum.
MEL_OF_DIGITAL_SILENCE = -1.5
MEL_DYNAMIC_RANGE = 2.0


@dataclass(frozen=True)
class SpeechFrames:
    """Encoder frames of several speech segments, before the projector: what a frozen encoder is run once for.

    Each segment is (frames, E), frames a multiple of the projector's `ds_rate`.
    """

    segments: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.segments)

    def __add__(self, other: SpeechFrames) -> SpeechFrames:
        return SpeechFrames(self.segments + other.segments)

    def to(self, device: torch.device | str) -> SpeechFrames:
        return SpeechFrames(tuple(segment.to(device) for segment in self.segments))


SpeechInput = Tensor | Sequence[Tensor] | SpeechFrames


def positions_per_window(mel_frames: int, config: LlamaOmniConfig) -> list[int]:
    """Positions that each 30 s window of `mel_frames` frames gives: ((frames + 1) // 2) // ds_rate."""
    if mel_frames < 0:
        raise ValueError(f"an utterance cannot have {mel_frames} mel frames")
    window = config.mel_frames_per_window
    lengths = [min(window, mel_frames - start) for start in range(0, mel_frames, window)]
    return [((length + 1) // 2) // config.speech_encoder_ds_rate for length in lengths]


def build_speech_encoder(config: LlamaOmniConfig) -> AudioEncoder:
    """openai-whisper's encoder, frozen, with LayerNorms that work in the model's dtype.

    whisper's own LayerNorm computes in float32 but keeps its weights in the model's dtype, which fails once the model
    is not float32; the release replaces them too.
    """
    encoder = AudioEncoder(
        config.speech_encoder_mel_bins,
        config.speech_encoder_context,
        config.speech_encoder_hidden_size,
        config.speech_encoder_heads,
        config.speech_encoder_layers,
    )
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, WhisperLayerNorm):
                plain = nn.LayerNorm(list(child.normalized_shape), eps=child.eps)
                module.add_module(name, plain)
    return encoder.requires_grad_(False)


class SpeechProjector(nn.Module):
    """Joins `ds_rate` consecutive encoder frames into one position of the language model."""

    def __init__(self, config: LlamaOmniConfig) -> None:
        super().__init__()
        self.frames_per_position = config.speech_encoder_ds_rate
        self.linear1 = nn.Linear(
            config.speech_encoder_hidden_size * config.speech_encoder_ds_rate, config.speech_projector_hidden_size
        )
        self.linear2 = nn.Linear(config.speech_projector_hidden_size, config.hidden_size)

    def forward(self, frames: Tensor) -> Tensor:
        """(frames, E), frames a multiple of `frames_per_position` -> (positions, C)."""
        width = self.linear1.in_features // self.frames_per_position
        if frames.dim() != 2 or frames.shape[0] % self.frames_per_position or frames.shape[1] != width:
            raise ValueError(
                f"encoder frames of a speech segment must be (frames, {width}), frames a multiple of "
                f"{self.frames_per_position}, got {tuple(frames.shape)}; encode_speech gives such"
            )
        joined = frames.reshape(frames.shape[0] // self.frames_per_position, -1)
        return self.linear2(torch.relu(self.linear1(joined)))


def mel_segments(speech: Tensor | Sequence[Tensor], mel_bins: int) -> list[Tensor]:
    """One (F, mel_bins) tensor a segment, from a (segments, F, mel_bins) or (F, mel_bins) tensor or a list of them."""
    if isinstance(speech, Tensor):
        segments = [speech] if speech.dim() == 2 else list(speech)
    else:
        segments = [segment[0] if segment.dim() == 3 and segment.shape[0] == 1 else segment for segment in speech]
    for index, segment in enumerate(segments):
        if segment.dim() != 2 or segment.shape[1] != mel_bins:
            raise ValueError(
                f"speech segment {index} has shape {tuple(segment.shape)}; expected (mel frames, {mel_bins}), "
                f"frames at 100 Hz"
            )
    return segments


def encode_segments(encoder: AudioEncoder, segments: Sequence[Tensor], config: LlamaOmniConfig) -> SpeechFrames:
    """Encoder frames of each (F, mel_bins) segment, at its true length, window by window."""
    window = config.mel_frames_per_window
    windows: list[Tensor] = []
    kept_frames: list[int] = []
    windows_of_segment: list[int] = []
    for index, mel in enumerate(segments):
        positions = positions_per_window(mel.shape[0], config)
        if sum(positions) == 0:
            least = 2 * config.speech_encoder_ds_rate - 1
            raise ValueError(
                f"speech segment {index} has {mel.shape[0]} mel frames ({mel.shape[0] / 100:.2f} s), too short for one "
                f"position of the language model; at least {least} frames are needed"
            )
        if not torch.isfinite(mel).all():
            raise ValueError(f"speech segment {index} holds NaN or infinite mel values")
        silence = max(MEL_OF_DIGITAL_SILENCE, mel.max().item() - MEL_DYNAMIC_RANGE)
        for start in range(0, mel.shape[0], window):
            piece = mel[start : start + window]
            windows.append(nn.functional.pad(piece, (0, 0, 0, window - piece.shape[0]), value=silence))
        kept_frames += [count * config.speech_encoder_ds_rate for count in positions]
        windows_of_segment.append(len(positions))
    frames = _encode_windows(encoder, windows, kept_frames)
    joined = []
    for count in windows_of_segment:
        joined.append(torch.cat(frames[:count]))
        frames = frames[count:]
    return SpeechFrames(tuple(joined))


@torch.no_grad()
def _encode_windows(encoder: AudioEncoder, windows: Sequence[Tensor], kept_frames: Sequence[int]) -> list[Tensor]:
    weight = encoder.conv1.weight
    encoded: list[Tensor] = []
    for start in range(0, len(windows), WINDOWS_PER_CALL):
        batch = torch.stack(list(windows[start : start + WINDOWS_PER_CALL])).to(weight.device, weight.dtype)
        encoded += list(encoder(batch.transpose(1, 2)))
    # A view of a window would keep the whole window's memory alive in a cache of utterances.
    return [frames[:kept].clone() for frames, kept in zip(encoded, kept_frames, strict=True)]
