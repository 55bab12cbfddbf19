"""The four families of transformers decoders that TTT is mounted on: one config, attention, decoder and language
model each. They differ in names, and in Qwen3's norms on queries and keys.

Importing this registers the model types `ttt_llama`, `ttt_qwen2`, `ttt_qwen3` and `ttt_mistral`, so that
AutoModelForCausalLM loads a saved mounted model.
"""

# A family's classes annotate `config` with its own type; ours are mixed in before four families.
# pyright: reportIncompatibleVariableOverride=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from backbones.mounting.config import MountedConfigFields
from backbones.mounting.decoder import MountedCausalLM, MountedDecoder
from backbones.mounting.mixers import MountedAttention


@strict
class MountedLlamaConfig(MountedConfigFields, LlamaConfig):
    model_type = "ttt_llama"


@strict
class MountedQwen2Config(MountedConfigFields, Qwen2Config):
    model_type = "ttt_qwen2"


@strict
class MountedQwen3Config(MountedConfigFields, Qwen3Config):
    model_type = "ttt_qwen3"


@strict
class MountedMistralConfig(MountedConfigFields, MistralConfig):
    model_type = "ttt_mistral"


class MountedLlamaAttention(MountedAttention, LlamaAttention): ...


class MountedQwen2Attention(MountedAttention, Qwen2Attention): ...


class MountedQwen3Attention(MountedAttention, Qwen3Attention):
    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(hidden_states)
        return self.q_norm(q), self.k_norm(k), v


class MountedMistralAttention(MountedAttention, MistralAttention): ...


class MountedLlamaModel(MountedDecoder, LlamaModel):
    config_class, attention_class = MountedLlamaConfig, MountedLlamaAttention


class MountedQwen2Model(MountedDecoder, Qwen2Model):
    config_class, attention_class = MountedQwen2Config, MountedQwen2Attention


class MountedQwen3Model(MountedDecoder, Qwen3Model):
    config_class, attention_class = MountedQwen3Config, MountedQwen3Attention


class MountedMistralModel(MountedDecoder, MistralModel):
    config_class, attention_class = MountedMistralConfig, MountedMistralAttention


class MountedLlamaForCausalLM(MountedCausalLM, LlamaForCausalLM):
    config_class, decoder_class = MountedLlamaConfig, MountedLlamaModel


class MountedQwen2ForCausalLM(MountedCausalLM, Qwen2ForCausalLM):
    config_class, decoder_class = MountedQwen2Config, MountedQwen2Model


class MountedQwen3ForCausalLM(MountedCausalLM, Qwen3ForCausalLM):
    config_class, decoder_class = MountedQwen3Config, MountedQwen3Model


class MountedMistralForCausalLM(MountedCausalLM, MistralForCausalLM):
    config_class, decoder_class = MountedMistralConfig, MountedMistralModel


@dataclass(frozen=True)
class Family:
    """A family's plain classes and the mounted ones that take their place."""

    name: str
    plain_decoder: type
    plain_causal_lm: type
    config: type[PreTrainedConfig]
    decoder: type[MountedDecoder]
    causal_lm: type[MountedCausalLM]


FAMILIES = (
    Family("llama", LlamaModel, LlamaForCausalLM, MountedLlamaConfig, MountedLlamaModel, MountedLlamaForCausalLM),
    Family("qwen2", Qwen2Model, Qwen2ForCausalLM, MountedQwen2Config, MountedQwen2Model, MountedQwen2ForCausalLM),
    Family("qwen3", Qwen3Model, Qwen3ForCausalLM, MountedQwen3Config, MountedQwen3Model, MountedQwen3ForCausalLM),
    Family(
        "mistral", MistralModel, MistralForCausalLM,
        MountedMistralConfig, MountedMistralModel, MountedMistralForCausalLM,
    ),
)  # fmt: skip

for _family in FAMILIES:
    AutoConfig.register(f"ttt_{_family.name}", _family.config)
    AutoModel.register(_family.config, _family.decoder)
    AutoModelForCausalLM.register(_family.config, _family.causal_lm)
    # What output_hidden_states can record is looked up by class, and written down by constructors. A model mounted in
    # place has never been through its new class's constructor.
    for _class in (_family.decoder, _family.causal_lm):
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(_class), _class._can_record_outputs)
