"""Llama-Omni with test-time training mounted on its language model: it speaks, listens and goes on as without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backbones import load_backbone
from backbones.llama_omni import LlamaOmni, SpokenTurn
from ttt_core import TTTConfig, mount

TTT = TTTConfig(hidden_size=64, num_heads=4, mini_batch_size=16, inner_model="linear")


@pytest.fixture(scope="module")
def mels() -> list[Tensor]:
    source = torch.Generator().manual_seed(2)
    return [torch.randn(frames, 128, generator=source) * 0.5 for frames in (47, 333)]


def mounted(**options: object) -> LlamaOmni:
    model = LlamaOmni.tiny(seed=4, initializer_range=0.3).eval()
    torch.manual_seed(9)
    mount(model.llm, layers=range(3, 4), config=TTT, **options)
    return model


IDS = torch.tensor([[5, -200, 6, 7, 8], [-200, 9, 10, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    "options", [{}, {"mode": "gated"}, {"window": 20, "sinks": 2}], ids=["replace", "gated", "window"]
)
def test_a_mounted_model_replies_alike_cached_uncached_and_in_a_batch(
    options: dict[str, object], mels: list[Tensor]
) -> None:
    model = mounted(**options)
    arguments = {"max_new_tokens": 20, "eos_token_id": [], "attention_mask": MASK}
    cached = model.generate(IDS, mels, **arguments)
    uncached = model.generate(IDS, mels, **arguments, use_cache=False)
    chunked = model.generate(IDS, mels, **arguments, prefill_chunk=11)
    alone = model.generate(IDS[1:, :3], mels[1:], max_new_tokens=20, eos_token_id=[])
    assert torch.equal(cached.text_ids, uncached.text_ids)
    assert torch.equal(cached.text_ids, chunked.text_ids)
    assert torch.equal(cached.text_ids[1:], alone.text_ids)
    assert torch.equal(cached.units_per_sample[1], alone.units)


def test_a_mounted_conversation_goes_on_from_its_state(mels: list[Tensor]) -> None:
    model = mounted(window=12)
    first = model.generate(IDS[:1], mels[:1], max_new_tokens=9, eos_token_id=[])
    assert first.past is not None
    state = first.past.cache[3]
    assert state[0].dtype == torch.float32
    assert state.count.tolist() == [4 + 4 + 8]
    second = model.generate(torch.tensor([[30, -200]]), mels[1:], max_new_tokens=6, eos_token_id=[], past=first.past)
    joined = torch.cat([IDS[:1], first.text_ids, torch.tensor([[30, -200]])], dim=1)
    whole = model.generate(joined, mels, max_new_tokens=6, eos_token_id=[])
    assert torch.equal(second.text_ids, whole.text_ids)
    assert torch.equal(second.ctc_frames, whole.ctc_frames)


def test_a_closed_gate_leaves_the_whole_model_bit_identical(mels: list[Tensor]) -> None:
    plain, gated = LlamaOmni.tiny(seed=4, initializer_range=0.3).eval(), mounted(mode="gated")
    with torch.no_grad():
        assert torch.equal(plain(IDS, mels, attention_mask=MASK).logits, gated(IDS, mels, attention_mask=MASK).logits)


def test_both_losses_reach_the_mounted_parameters(mels: list[Tensor]) -> None:
    model = mounted().train_only("joint")
    labels = IDS.masked_fill(IDS < 6, -100)
    turns = [[SpokenTurn(5, 8, torch.tensor([1, 2]))], [SpokenTurn(34, 35, torch.tensor([3]))]]
    output = model(IDS, mels, labels=labels, target_units=turns, attention_mask=MASK, logits_only_where_labelled=True)
    for loss in (output.text_loss, output.ctc_loss):
        model.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        of_ttt = {n: p.grad for n, p in model.named_parameters() if ".layers.3.self_attn." in n}
        assert of_ttt and all(grad is not None and torch.isfinite(grad).all() for grad in of_ttt.values())
        assert any(grad.abs().sum() > 0 for grad in of_ttt.values())


def test_the_inner_step_size_can_be_set_for_a_call(mels: list[Tensor]) -> None:
    model = mounted()
    with torch.no_grad():
        usual, same, other = (model(IDS, mels, attention_mask=MASK, ttt_base_lr=lr).logits for lr in (None, 1.0, 0.1))
    assert torch.equal(usual, same)
    assert not torch.allclose(usual, other)


def test_a_cast_model_keeps_its_inner_state_in_fp32_and_its_rotary_frequencies_exact(mels: list[Tensor]) -> None:
    model = mounted().to(torch.bfloat16)
    reply = model.generate(IDS[:1], mels[:1], max_new_tokens=3, eos_token_id=[])
    assert reply.past is not None
    assert reply.past.cache[3].W1.dtype == torch.float32
    exact = LlamaOmni.tiny().llm.model.rotary_emb.inv_freq
    assert torch.equal(model.llm.model.rotary_emb.inv_freq, exact)


def test_a_mounted_model_is_not_saved_as_a_published_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_ttt"):
        mounted().save_checkpoint(tmp_path)


def test_a_backbone_takes_ttt_in_the_top_quarter_of_its_layers() -> None:
    for ttt in (TTT, {"mini_batch_size": 16, "inner_model": "linear"}):
        model = load_backbone("llama-omni", scale="smoke", ttt=ttt)
        reply = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2, eos_token_id=[])
        assert reply.past is not None
        assert list(reply.past.cache.states) == [3]
        assert reply.past.cache[3].W1.shape == (1, 4, 16, 16)


@pytest.mark.parametrize(
    "ttt, match",
    [({"foo": 1}, r"TTTConfig has no field \['foo'\]"), (True, "TTTConfig or a mapping"), (False, "got False")],
)
def test_ttt_settings_that_are_none_are_refused_before_anything_is_built(ttt: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load_backbone("llama-omni", weights="nowhere", ttt=ttt)
