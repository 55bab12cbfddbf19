"""The LightningModule of Moshi: the next frame's text, and the units that the depth transformer says in it.

Shape letters: B conversations, T frames, K streams, C width, N frames drawn, D codebooks said.
"""

from __future__ import annotations

from collections.abc import Sequence

from moshi.models.lm import LMModel
from torch import Tensor
from torch.nn import functional

from backbones.moshi import delayed_sequence, set_inner_step_size, ttt_layers
from experiments.data.framing import UNITS_PER_FRAME
from experiments.spoken.configuration import Arm, Trained
from experiments.spoken.frame_batches import FrameBatch
from experiments.spoken.frame_module import FrameModule, ReadFrames
from experiments.spoken.moshi.configuration import MoshiExperiment

DEPTH_PARTS = ("depformer", "depformer_in", "depformer_emb", "depformer_text_emb", "depformer_norms", "linears")


class MoshiModule(FrameModule):
    """Trains and measures one arm."""

    model: LMModel

    def __init__(self, model: LMModel, config: MoshiExperiment, arm: Arm) -> None:
        super().__init__(model, config, config.training, model.text_padding_token_id)
        choose_trained(model, self.plan.trains, arm.upper_layers)

    def read(self, batch: FrameBatch, inner_step_size_share: float) -> ReadFrames:
        """The streams as the model reads them, (B, K, T + 1): delayed, behind the initial tokens."""
        self._set_inner_step_size(inner_step_size_share)
        sequence = delayed_sequence(self.model, batch.codes)
        hidden, text_logits = self.model.forward_text(sequence[:, :, :-1])
        return ReadFrames(hidden=hidden, text_logits=text_logits[:, 0], text=sequence[:, 0, 1:], codes=sequence)

    def _set_inner_step_size(self, share: float) -> None:
        """During the inner warm-up, a smaller inner step size than the layers' own."""
        layers = ttt_layers(self.model)
        if not layers:
            return
        own = next(iter(layers.values())).config.resolved_base_lr
        set_inner_step_size(self.model, None if share == 1.0 else own * share)

    def audio_loss_sum(self, read: ReadFrames, frames: Tensor) -> tuple[Tensor, int]:
        """A codebook that is delayed is at a frame asked for an earlier frame's unit; where that one lies before the
        beginning, for nothing.
        """
        if not len(frames):
            return read.hidden.new_zeros(()), 0
        rows, steps = frames.to(read.hidden.device).unbind(dim=1)
        predicted = read.codes[rows, :, steps + 1]
        logits = self.model.forward_depformer_training(predicted.T[None], read.hidden[rows, steps][None])
        logits, first = logits[0, :UNITS_PER_FRAME], self.model.audio_offset
        targets = predicted[:, first : first + UNITS_PER_FRAME].T
        is_unit = (targets >= 0) & (targets < self.model.card)
        total = functional.cross_entropy(logits[is_unit].float(), targets[is_unit], reduction="sum")
        return total, int(is_unit.sum())


def choose_trained(model: LMModel, trains: Trained, upper_layers: Sequence[int]) -> None:
    """Lets the parameters that `trains` names require gradients, and no others."""
    if trains == "everything":
        return
    model.requires_grad_(False)
    for layer in upper_layers:
        model.transformer.layers[layer].self_attn.requires_grad_(True)
    for part in DEPTH_PARTS:
        model.get_submodule(part).requires_grad_(True)
