"""Training through a mounted model: gradients, carried state, truncation, checkpointing."""

from __future__ import annotations

import pytest
import torch
from mounting_models import tiny_model, tiny_ttt
from torch import Tensor
from transformers import PreTrainedModel

from backbones.mounting import gates, model_cache, mount, ttt_layers


def mounted(mode: str = "replace", **ttt: object) -> PreTrainedModel:
    model = tiny_model(num_hidden_layers=3, initializer_range=0.1)
    mount(model, layers=[1, 2], config=tiny_ttt(**ttt), mode=mode, window=5, sinks=2)
    for alpha in gates(model).values():
        alpha.data.fill_(0.5)
    return model.double().train()


def prompt(tokens: int = 14) -> Tensor:
    return torch.randint(1, 97, (2, tokens), generator=torch.Generator().manual_seed(2))


def loss_of(model: PreTrainedModel, ids: Tensor, splits: list[int]) -> Tensor:
    """Summed logits-weighted loss of the ids in segments that share a cache."""
    weights = torch.linspace(-1, 1, 97, dtype=torch.float64)
    cache, total = model_cache(model), torch.zeros((), dtype=torch.float64)
    for part in ids.split(splits, dim=1):
        logits = model(part, past_key_values=cache, use_cache=True).logits
        total = total + (torch.log_softmax(logits, -1) * weights).sum()
    return total


@pytest.mark.parametrize("mode", ["replace", "gated"])
def test_segments_with_a_carried_cache_have_the_gradients_of_the_whole_sequence(mode: str) -> None:
    model, ids = mounted(mode), prompt()
    whole = torch.autograd.grad(loss_of(model, ids, [14]), list(model.parameters()), allow_unused=True)
    parts = torch.autograd.grad(loss_of(model, ids, [3, 1, 6, 4]), list(model.parameters()), allow_unused=True)
    names = [name for name, _ in model.named_parameters()]
    for name, one, other in zip(names, whole, parts, strict=True):
        assert one is not None and other is not None, name
        # Rotary tables are FP32 in transformers, whatever the model's dtype.
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


def test_detaching_the_cache_ends_backpropagation_at_the_segment() -> None:
    model, ids = mounted(), prompt()
    cache = model_cache(model)
    first = model(ids[:, :7], past_key_values=cache).logits.sum()
    carried = cache[1].W1.detach().clone()
    assert cache.detach() is cache
    second = model(ids[:, 7:], past_key_values=cache).logits.sum()
    first.backward()
    # The first segment's graph is gone now; the second must not need it.
    second.backward()
    assert torch.isfinite(ttt_layers(model)[1].wq.weight.grad).all()
    initial = ttt_layers(model)[1].inner.W1
    assert not torch.allclose(carried[0], initial)
    model.zero_grad()
    cache.detach()
    model(ids[:, :5], past_key_values=cache).logits.sum().backward()
    # Cut off from the segment that began at the learned weights, they get no gradient.
    assert initial.grad is None or not initial.grad.any()
    cache.detach().reset(rows=[0])
    model(ids[:, :5], past_key_values=cache).logits.sum().backward()
    assert initial.grad is not None and initial.grad.any()


def test_a_carried_cache_is_refused_under_gradient_checkpointing_instead_of_dropped() -> None:
    model, ids = mounted(), prompt()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="checkpoint_group"):
        model(ids, past_key_values=model_cache(model))
    # Without carried state it works, and gives the plain gradients.
    parameters = [p for p in model.parameters() if p.requires_grad]
    weights = torch.linspace(-1, 1, 97, dtype=torch.float64)
    checkpointed = torch.autograd.grad((model(ids).logits * weights).sum(), parameters)
    model.activation_checkpointing_disable()
    plain = torch.autograd.grad((model(ids, use_cache=False).logits * weights).sum(), parameters)
    for one, other in zip(checkpointed, plain, strict=True):
        torch.testing.assert_close(one, other)
    # In eval mode nothing is checkpointed, and a cache is as good as ever.
    model.activation_checkpointing_enable()
    model.eval()
    assert model(ids, past_key_values=model_cache(model)).past_key_values.get_seq_length() == 14


def test_checkpointing_inside_the_ttt_layers_carries_state_with_the_same_gradients() -> None:
    plain, grouped, ids = mounted(), mounted(checkpoint_group=2), prompt()
    grouped.load_state_dict(plain.state_dict())
    ours = torch.autograd.grad(loss_of(grouped, ids, [9, 5]), list(grouped.parameters()))
    theirs = torch.autograd.grad(loss_of(plain, ids, [9, 5]), list(plain.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gate_at_zero_learns_first_and_ttt_after_it() -> None:
    model = tiny_model(num_hidden_layers=2)
    mount(model, layers=[1], config=tiny_ttt(), mode="gated")
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    trained = [*ttt_layers(model)[1].parameters(), *gates(model).values()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer, losses = torch.optim.Adam(trained, lr=0.02), []
    ids = prompt(30)
    for step in range(8):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert gates(model)[1].grad.any()
            assert not ttt_layers(model)[1].wq.weight.grad.any()
        if step == 1:
            assert ttt_layers(model)[1].wq.weight.grad.any()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
