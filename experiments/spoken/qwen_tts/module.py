"""The LightningModule of a Qwen text model: next-token loss on the assistant's text."""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from experiments.harness import metric_names as names
from experiments.spoken.carried_rows import Left
from experiments.spoken.configuration import Arm
from experiments.spoken.decoder_module import DecoderModule, train_upper_mixers_alone
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.loader import TranscriptBatch


class QwenModule(DecoderModule):
    """Trains and measures one arm."""

    model: PreTrainedModel

    def __init__(self, model: PreTrainedModel, config: QwenExperiment, arm: Arm) -> None:
        super().__init__(model, model, config, config.training, speech_loss=None)
        if self.plan.trains == "upper_mixers_and_speech":
            train_upper_mixers_alone(model, arm.upper_layers)
        self.upper_mixers = [model.model.layers[layer].self_attn for layer in arm.upper_layers]
        self.add_adapters(arm.upper_layers)

    @property
    def llm(self) -> PreTrainedModel:
        return self.model

    def read(
        self, embeddings: Tensor, mask: Tensor, cache: Cache | None, past_mask: Tensor | None, use_cache: bool
    ) -> tuple[Tensor, Cache | None]:
        """As every backbone's; the masks are not needed: padding is at the end, and nothing looks ahead."""
        if use_cache and cache is None:
            cache = DynamicCache(config=self.model.config)
        hidden = self.model.model(inputs_embeds=embeddings, past_key_values=cache, use_cache=use_cache)
        return hidden.last_hidden_state, cache

    def backward_conversations(
        self, batch: TranscriptBatch, left: Left | None, carries: bool
    ) -> tuple[dict[str, float], Left]:
        """Gradients of a batch's text loss."""
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        segments = list(self.segments(batch.labels.shape[1]))
        loss, _, leaves = self.backward_segments(
            embeddings, batch.labels, batch.attention_mask, segments, batch, left, carries
        )
        return {names.TRAIN_LOSS: loss, names.TRAIN_TEXT_LOSS: loss}, leaves

    def validation_step(self, batch: TranscriptBatch, batch_index: int) -> None:
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        hidden = self.read_whole(embeddings, batch.attention_mask)
        self.score_text(hidden, batch.labels, batch)
