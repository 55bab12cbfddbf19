"""What two of the suspects do to a model: losing its pinned positions, and training that reads ahead."""

from __future__ import annotations

from moshi.models.lm import LMModel

from backbones.moshi.attention import MountedAttention
from backbones.moshi.mount import attention_layers
from experiments.fact_streams.generate import FactStreams
from experiments.fact_streams.module import FactStreamModule
from experiments.mini_batch_leak.leaky_form import sees_whole_mini_batches


def lose_pinned_positions(lm: LMModel) -> None:
    """From here on attention sees its window alone, as when a ring overwrites the positions it began with."""
    for attention in attention_layers(lm).values():
        assert isinstance(attention, MountedAttention)
        attention.sinks = 0


class LeakyStreamModule(FactStreamModule):
    """Trains and validates with mini-batches whose every row sees the whole of them."""

    def backward_batch(self, batch: FactStreams) -> dict[str, float]:
        with sees_whole_mini_batches(self.lm):
            return super().backward_batch(batch)

    def validation_step(self, batch: FactStreams, batch_index: int) -> None:
        with sees_whole_mini_batches(self.lm):
            super().validation_step(batch, batch_index)
