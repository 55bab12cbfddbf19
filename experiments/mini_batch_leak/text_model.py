"""A small Llama with TTT on top that reads all at once, or one token a call.

Legend: N rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from backbones.mounting import model_cache, mount
from experiments.data.tokenizer import ConversationTokenizer
from experiments.mini_batch_leak.configuration import TextModel
from ttt_core import TTTConfig


def build_model(sizes: TextModel, vocab_size: int, ttt: TTTConfig, seed: int) -> PreTrainedModel:
    """The untrained model. All of a seed share every weight that is not TTT's own, and TTT's start from the same."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_heads,
        pad_token_id=ConversationTokenizer.pad_id,
        bos_token_id=ConversationTokenizer.bos_id,
        eos_token_id=None,  # an <eos> ends a turn, and the conversation goes on
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        torch.manual_seed(seed + 1)  # TTT's own weights do not depend on how many the model drew
        mount(model, [sizes.num_layers - 1], ttt, "replace", window=sizes.window)
    return model


def whole_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(N, T, V) of ids (N, T), all positions in one call: as in training."""
    return model(ids, use_cache=False).logits


@torch.no_grad()
def streamed_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(N, T, V) of the same ids, one token a call: as in decoding."""
    cache = model_cache(model)
    steps = [model(token, past_key_values=cache, use_cache=True).logits for token in ids.split(1, dim=1)]
    return torch.cat(steps, dim=1)


@torch.no_grad()
def write(model: PreTrainedModel, prompts: Tensor, tokens: int, temperature: float, seed: int) -> Tensor:
    """(N, tokens) ids drawn after prompts (N, P), one token a call, the prompts' own tokens too."""
    generator = torch.Generator().manual_seed(seed)
    cache = model_cache(model)
    for token in prompts.split(1, dim=1):
        logits = model(token, past_key_values=cache, use_cache=True).logits
    drawn: list[Tensor] = []
    for _ in range(tokens):
        probabilities = torch.softmax(logits[:, -1].float().cpu() / temperature, dim=-1)
        drawn.append(torch.multinomial(probabilities, 1, generator=generator))
        logits = model(drawn[-1].to(prompts.device), past_key_values=cache, use_cache=True).logits
    return torch.cat(drawn, dim=1)


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """FP32 nats of every token but each row's first, padding left out: (tokens,), from logits (N, T, V)."""
    wanted = ids[:, 1:]
    losses = functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), wanted, reduction="none")
    return losses[wanted != ConversationTokenizer.pad_id]
