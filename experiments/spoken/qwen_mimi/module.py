"""The LightningModule of Qwen + Mimi: the next frame's text, and the codes that the depth decoder says in it.

Shape letters: B conversations, T frames, Q codebooks said, and as many heard; C width, N frames drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache

from backbones.mounting.decoder import MountedDecoder
from backbones.qwen_mimi import QwenMimi
from experiments.spoken.carried_rows import Left, cache_left, left_of_cache
from experiments.spoken.configuration import Arm, Trained
from experiments.spoken.decoder_module import detach_cache
from experiments.spoken.frame_batches import FrameBatch
from experiments.spoken.frame_module import FrameModule, ReadFrames
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.qwen_mimi.model import ttt_layers_of


class QwenMimiModule(FrameModule):
    """Trains and measures one arm."""

    model: QwenMimi

    def __init__(self, model: QwenMimi, config: QwenMimiExperiment, arm: Arm) -> None:
        super().__init__(model, config, config.training, model.config.no_text_id)
        choose_trained(model, config.training.trains, arm.upper_layers)
        self.upper_mixers = [model.decoder.layers[layer].self_attn for layer in arm.upper_layers]
        if config.training.gradient_checkpointing:
            model.decoder.gradient_checkpointing_enable()

    def read(self, batch: FrameBatch, inner_step_size_share: float) -> ReadFrames:
        """The codes as the batch has them, (B, 1 + 2Q, T)."""
        text, said, heard = streams_of(batch.codes, self.model.config.codebooks)
        frames = self.model.frames_before(text, said, heard)
        hidden, _ = self.model.read(*frames, ttt_base_lr=self._inner_step_size(inner_step_size_share))
        return ReadFrames(hidden=hidden, text_logits=self.model.text_logits(hidden), text=text, codes=batch.codes)

    def read_part(
        self, batch: FrameBatch, start: int, end: int, carried: Cache | None, inner_step_size_share: float
    ) -> tuple[ReadFrames, Cache | None]:
        text, said, heard = streams_of(batch.codes, self.model.config.codebooks)
        frames = [stream[..., start:end] for stream in self.model.frames_before(text, said, heard)]
        hidden, cache = self.model.read(
            *frames, past_key_values=carried, use_cache=True, ttt_base_lr=self._inner_step_size(inner_step_size_share)
        )
        detach_cache(cache)
        read = ReadFrames(
            hidden=hidden, text_logits=self.model.text_logits(hidden), text=text[:, start:end],
            codes=batch.codes[:, :, start:end],
        )  # fmt: skip
        return read, cache

    def left_of(self, carried: Cache) -> Left:
        return left_of_cache(carried)

    def carried_from(self, left: Left) -> Cache:
        return cache_left(left, self.model.decoder, isinstance(self.model.decoder, MountedDecoder))

    def whole_codes(self, batch: FrameBatch) -> Tensor:
        return batch.codes

    @property
    def codes_per_frame(self) -> int:
        return self.model.config.codebooks

    def _inner_step_size(self, share: float) -> float | None:
        """During the inner warm-up, a smaller inner step size than the layers' own."""
        layers = ttt_layers_of(self.model)
        if not layers or share == 1.0:
            return None
        return share * next(iter(layers.values())).config.resolved_base_lr

    def audio_loss_sum(self, read: ReadFrames, frames: Tensor) -> tuple[Tensor, int]:
        """Of every codebook of the frames."""
        if not len(frames):
            return read.hidden.new_zeros(()), 0
        rows, steps = frames.to(read.hidden.device).unbind(dim=1)
        said = read.codes[rows, 1 : 1 + self.model.config.codebooks, steps]
        logits = self.model.code_logits(read.hidden[rows, steps], read.text[rows, steps], said)
        total = functional.cross_entropy(logits.flatten(0, 1).float(), said.flatten(), reduction="sum")
        return total, said.numel()


def streams_of(codes: Tensor, codebooks: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 1 + 2Q, T) as text (B, T), codes said and codes heard (B, Q, T)."""
    said, heard = codes[:, 1:].split(codebooks, dim=1)
    return codes[:, 0], said, heard


def choose_trained(model: QwenMimi, trains: Trained, upper_layers: Sequence[int]) -> None:
    """Lets the parameters that `trains` names require gradients, and no others."""
    if trains == "everything":
        return
    model.requires_grad_(False)
    for layer in upper_layers:
        model.decoder.layers[layer].self_attn.requires_grad_(True)
    # Qwen has never seen a code: what reads and says them is new whatever its weights are.
    for part in (model.code_embedding, model.depth):
        part.requires_grad_(True)
