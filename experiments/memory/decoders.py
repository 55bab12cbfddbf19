"""The transformers decoders: Llama-Omni's Llama with its speech generator, and Qwen2.5.

Shape letters: B rows, T positions of a call, C hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import Cache, DynamicCache

from backbones.llama_omni import LlamaOmni, LlamaOmniConfig
from backbones.llama_omni.generator import GeneratorState, SpeechGenerator
from backbones.mounting import describe, model_cache, mount, ttt_layers
from backbones.mounting.decoder import MountedCausalLM
from backbones.qwen_tts import QwenSize, qwen_llm_config
from experiments.memory.accounting import ConversationMemory, state_bytes
from experiments.memory.configuration import Arrangement, BackboneName, HiddenStates
from experiments.memory.layers import layers_with_ttt
from ttt_core import TTTConfig

QWEN_SIZES: dict[BackboneName, QwenSize] = {"qwen-7b": "7B", "qwen-1.5b": "1.5B"}


class DecoderSubject:
    """A transformers decoder with an arrangement mounted; see `accounting.Subject`."""

    holds_all_at_once = False

    def __init__(self, arrangement: Arrangement, *, device: str, is_small: bool, mini_batch_size: int) -> None:
        """Random weights in bfloat16: the published dimensions, or the same kind of model that runs in no time."""
        with torch.device(device):
            self.whole, self.llm, self.generator = _build(arrangement.backbone, is_small)
        self.whole.eval()
        self.hidden_states = arrangement.hidden_states
        self.generator_window = arrangement.generator_window_frames
        self.context_positions = int(self.llm.config.max_position_embeddings)
        # Asked before mounting: TTT does not run on the meta device, and what a layer hands on has the same shape.
        per_position = _hidden_state_bytes(self.llm, self.hidden_states)
        _mount(self.llm, arrangement, mini_batch_size)
        growing, fixed = _generator_bytes(self.generator, self.generator_window)
        ttt = ttt_layers(self.llm) if arrangement.inner_model is not None else {}
        self.memory = ConversationMemory(
            layers=describe(self.llm), hidden_state_bytes_per_position=per_position,
            generator_bytes_per_said_token=growing, generator_bytes_fixed=fixed, state=state_bytes(ttt),
            ttt_layers=len(ttt),
        )  # fmt: skip
        self.weights_bytes = sum(parameter.nbytes for parameter in self.whole.parameters())

    @contextmanager
    def open_stream(self, rows: int) -> Iterator[DecoderStream]:
        yield DecoderStream(self, rows)

    def weights(self) -> Iterator[Tensor]:
        yield from self.whole.parameters()
        yield from self.whole.buffers()


class DecoderStream:
    """B conversations read through a growing cache, as generation reads them; see `accounting.Stream`."""

    def __init__(self, subject: DecoderSubject, rows: int) -> None:
        self._subject, self._rows = subject, rows
        llm = subject.llm
        self.cache: Cache = model_cache(llm) if isinstance(llm, MountedCausalLM) else DynamicCache(config=llm.config)
        self.hidden: list[tuple[Tensor, ...]] = []
        generator = subject.generator
        self.spoken: GeneratorState | None = generator and generator.initial_state(subject.generator_window)

    @property
    def held(self) -> object:
        return self.cache, self.hidden, self.spoken

    @torch.no_grad()
    def advance(self, positions: int) -> None:
        llm, kept = self._subject.llm, self._subject.hidden_states
        ids = torch.randint(0, llm.config.vocab_size, (self._rows, positions), device=llm.device)
        out = llm.model(input_ids=ids, past_key_values=self.cache, use_cache=True, output_hidden_states=kept != "none")
        if kept != "none":
            self.hidden.append(_kept(out.hidden_states, kept))

    @torch.no_grad()
    def say(self, tokens: int) -> None:
        generator = self._subject.generator
        if generator is None:
            return
        for _ in range(tokens):
            assert self.spoken is not None
            self.spoken = generator.advance(_states_of_one_token(generator, self._rows), self.spoken)[1]


def _build(backbone: BackboneName, is_small: bool) -> tuple[nn.Module, PreTrainedModel, SpeechGenerator | None]:
    """The whole model, the language model in it, and its speech generator if it has one."""
    if backbone == "llama-omni":
        omni = LlamaOmni(LlamaOmniConfig.at_scale("smoke" if is_small else "full")).to(torch.bfloat16)
        return omni, omni.llm, omni.speech_generator
    config = qwen_llm_config(QWEN_SIZES[backbone])
    assert isinstance(config, Qwen2Config)
    llm = Qwen2ForCausalLM(_small(config) if is_small else config).to(torch.bfloat16)
    return llm, llm, None


def _small(config: Qwen2Config) -> Qwen2Config:
    """Four layers of the same make: heads of 8, as many query heads to a key head as published."""
    shared = config.num_attention_heads // config.num_key_value_heads
    small = {"hidden_size": 16 * shared, "num_attention_heads": 2 * shared, "num_key_value_heads": 2}
    sizes = small | {
        "num_hidden_layers": 4,
        "intermediate_size": 40,
        "vocab_size": 97,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return Qwen2Config(**{**config.to_dict(), **sizes, "layer_types": None})


def _mount(llm: PreTrainedModel, arrangement: Arrangement, mini_batch_size: int) -> None:
    config = llm.config
    chosen = layers_with_ttt(arrangement, config.num_hidden_layers)
    ttt = None
    if arrangement.inner_model is not None:
        heads = config.num_attention_heads
        ttt = TTTConfig(
            hidden_size=config.hidden_size, num_heads=heads, head_dim=config.hidden_size // heads,
            inner_model=arrangement.inner_model, mini_batch_size=mini_batch_size,
            projection_bias=isinstance(config, Qwen2Config),
        )  # fmt: skip
    if chosen or arrangement.window is not None:
        mount(llm, layers=chosen, config=ttt, window=arrangement.window, sinks=arrangement.sinks)


def _kept(hidden_states: tuple[Tensor, ...], which: HiddenStates) -> tuple[Tensor, ...]:
    return hidden_states if which == "all" else hidden_states[-1:]


@torch.no_grad()
def _hidden_state_bytes(llm: PreTrainedModel, which: HiddenStates) -> int:
    """Bytes a position, from what one position's call gives."""
    if which == "none":
        return 0
    ids = torch.zeros(1, 1, dtype=torch.long, device=llm.device)
    return sum(
        state.nbytes for state in _kept(llm.model(input_ids=ids, output_hidden_states=True).hidden_states, which)
    )


def _states_of_one_token(generator: SpeechGenerator, rows: int) -> Tensor:
    """(B, frames of a token, C)"""
    weight = generator.input_proj.weight
    return weight.new_zeros(rows, generator.frames_per_token, weight.shape[1])


@torch.no_grad()
def _generator_bytes(generator: SpeechGenerator | None, window: int | None) -> tuple[int, int]:
    """Bytes that each said token adds, and bytes of a filled window: one of the two is 0."""
    if generator is None:
        return 0, 0
    state = generator.advance(_states_of_one_token(generator, 1), generator.initial_state())[1]
    assert state.nbytes % state.frames == 0
    if window is None:
        return state.nbytes, 0
    return 0, (window - 1) * state.nbytes // state.frames
