"""Training Moshi over segments: TTT states carried from call to call, with gradients."""

from __future__ import annotations

import pytest
import torch
from moshi_models import MINI_BATCH, relative_difference, small_ttt, speaking_lm, text_codes, text_lm
from torch import Tensor

from backbones.moshi import carried_states, delayed_sequence, lm_forward_with_states, mount, ttt_layers
from ttt_core import TTTState

from moshi.models.lm import LMModel  # isort: skip  (after backbones.moshi, which sets how moshi is imported)


def all_ttt(lm: LMModel, inner_model: str = "mlp") -> LMModel:
    return mount(lm, range(len(lm.transformer.layers)), small_ttt(lm, inner_model, base_lr=0.5))


def gradients(lm: LMModel) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in lm.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_segments_with_carried_states_are_one_call_forward_and_backward(inner_model: str) -> None:
    lm = all_ttt(text_lm(norm="layer_norm").double().train(), inner_model)
    codes = text_codes(lm, rows=2, frames=19)
    expected = lm.forward_text(codes)[1]
    expected.logsumexp(-1).sum().backward()
    wanted = gradients(lm)
    lm.zero_grad()
    states, parts = None, []
    for segment in codes.split([7, 1, 11], dim=2):
        _, logits, states = lm_forward_with_states(lm, segment, states)
        parts.append(logits)
    found = torch.cat(parts, dim=2)
    assert relative_difference(found.detach(), expected.detach()) < 1e-10
    found.logsumexp(-1).sum().backward()
    for name, gradient in gradients(lm).items():
        assert relative_difference(gradient, wanted[name]) < 1e-10, name


def test_a_delayed_conversation_cut_in_segments_is_the_packages_forward_with_its_depth_transformer() -> None:
    lm = all_ttt(speaking_lm())
    codes = text_codes(lm, rows=2, frames=13)
    sequence = delayed_sequence(lm, codes)
    states, text, audio = None, [], []
    with torch.no_grad():
        expected = lm(codes)
        for start, stop in ((0, 5), (5, 13)):
            hidden, text_logits, states = lm_forward_with_states(lm, sequence[:, :, start:stop], states)
            text.append(text_logits)
            audio.append(lm.forward_depformer_training(sequence[:, :, start + 1 : stop + 1], hidden))
    assert relative_difference(torch.cat(text, dim=2), expected.text_logits) < 1e-5
    undelayed = torch.cat(audio, dim=2)
    for codebook in range(lm.dep_q):
        delay = lm.delays[1 + codebook]
        found, wanted = undelayed[:, codebook, delay:], expected.logits[:, codebook, : codes.shape[2] - delay]
        assert relative_difference(found, wanted) < 1e-5
    with pytest.raises(ValueError, match=r"\(batch, 5, time\), got \(2, 4, 13\)"):
        delayed_sequence(lm, codes[:, :4])


def test_detached_states_stop_gradients_and_given_states_are_not_changed() -> None:
    lm = all_ttt(text_lm().train())
    codes = text_codes(lm, rows=1, frames=2 * MINI_BATCH)
    first, second = codes.split(MINI_BATCH, dim=2)
    _, _, states = lm_forward_with_states(lm, first)
    assert all(state.W1.grad_fn is not None for state in states.values())
    kept = {layer: state.W1.clone() for layer, state in states.items()}
    _, logits, after = lm_forward_with_states(lm, second, {layer: s.detach() for layer, s in states.items()})
    logits.sum().backward()
    assert all(torch.equal(states[layer].W1, kept[layer]) for layer in states)
    assert not any(torch.equal(after[layer].W1, kept[layer]) for layer in states)
    # The first segment's learned starting weights were cut off, so nothing reaches them.
    assert all(layer.inner.W1.grad is None or not layer.inner.W1.grad.any() for layer in ttt_layers(lm).values())


def test_calls_within_one_context_go_on_from_each_other_and_none_after_it() -> None:
    lm = all_ttt(text_lm())
    codes = text_codes(lm, rows=1, frames=9)
    with torch.no_grad():
        with carried_states(lm) as carried:
            assert carried.states == {}
            for part in codes.split(3, dim=2):
                lm.forward_text(part)
            assert {int(state.count) for state in carried.states.values()} == {9}
            with pytest.raises(ValueError, match="carried already"), carried_states(lm):
                pass
        alone = lm.forward_text(codes)[1]
        assert torch.equal(lm.forward_text(codes)[1], alone)


def test_attention_starts_anew_with_every_segment() -> None:
    lm = mount(text_lm(), [2], small_ttt(text_lm()))
    codes = text_codes(lm, rows=1, frames=8)
    seen: list[Tensor] = []
    lm.transformer.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        _, _, states = lm_forward_with_states(lm, codes[:, :, :4])
        lm_forward_with_states(lm, codes[:, :, 4:], states)
        lm.forward_text(codes[:, :, 4:])
    assert torch.equal(seen[1], seen[2])


@pytest.mark.parametrize(
    ("prepare", "states", "match"),
    [
        (text_lm, None, "no TTT layers"),
        (lambda: all_ttt(text_lm()), {0: None}, r"layers \[0\], the model's TTT layers are \[0, 1, 2\]"),
        (lambda: all_ttt(text_lm(gradient_checkpointing=True)), None, "checkpoint_group"),
    ],
)
def test_states_that_cannot_be_carried_are_refused(
    prepare: object, states: dict[int, TTTState] | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match), carried_states(prepare(), states):
        pass


def test_states_are_not_carried_while_streaming() -> None:
    lm = all_ttt(text_lm())
    with lm.streaming(1), pytest.raises(ValueError, match="while the model is streaming"), carried_states(lm):
        pass
