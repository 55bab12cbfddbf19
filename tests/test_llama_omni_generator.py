"""The speech generator: causal whatever the attention, exact when cached, exact when windowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backbones.llama_omni import GeneratorState, LlamaOmniConfig, SpeechGenerator, collapse_frames
from backbones.llama_omni.ctc import frames_needed, spread


def generator(attention: str = "sdpa", **overrides: object) -> SpeechGenerator:
    torch.manual_seed(5)
    config = LlamaOmniConfig.tiny(initializer_range=0.3, hidden_size=48, num_attention_heads=4, **overrides)
    return SpeechGenerator(config, attention).double().eval()


def agree(one: Tensor, other: Tensor) -> bool:
    """Within 1e-5 of the largest logit: transformers' RMSNorm and eager softmax work in FP32 whatever the dtype."""
    return ((one - other).abs().max() < 1e-5 * other.abs().max()).item()


def in_pieces(module: SpeechGenerator, frames: Tensor, sizes: list[int], window: int | None) -> Tensor:
    state = module.initial_state(window)
    logits = []
    for piece in frames.split(sizes, dim=1):
        piece_logits, state = module.advance(piece, state)
        logits.append(piece_logits)
    assert state.frames == frames.shape[1]
    return torch.cat(logits, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 7])
def test_eager_and_sdpa_attention_agree(window: int | None) -> None:
    frames = torch.randn(2, 31, 48, dtype=torch.float64)
    assert agree(generator("eager")(frames, window), generator("sdpa")(frames, window))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("window", [None, 5])
def test_a_later_frame_changes_no_earlier_logits(attention: str, window: int | None) -> None:
    module = generator(attention)
    frames = torch.randn(1, 23, 48, dtype=torch.float64)
    before = module(frames, window)
    for changed in (1, 11, 22):
        other = frames.clone()
        other[:, changed] += 1.0
        after = module(other, window)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed])


@torch.no_grad()
def test_text_going_on_leaves_the_frames_of_its_prefix() -> None:
    module = generator()
    states = torch.randn(5, 48, dtype=torch.float64)
    assert torch.equal(module.predict(states[:3]), module.predict(states)[:75])


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [None, 1, 2, 13, 25, 40])
@pytest.mark.parametrize("sizes", [[1] * 61, [25, 25, 11], [3, 57, 1]])
def test_any_split_into_calls_gives_the_logits_of_one_call(
    attention: str, window: int | None, sizes: list[int]
) -> None:
    module = generator(attention)
    frames = torch.randn(2, 61, 48, dtype=torch.float64)
    assert agree(in_pieces(module, frames, sizes, window), module(frames, window))


@torch.no_grad()
def test_a_window_as_long_as_the_speech_is_no_window_at_all() -> None:
    module = generator().float()
    frames = torch.randn(1, 50, 48)
    assert torch.equal(module(frames, 50), module(frames))
    assert torch.equal(in_pieces(module, frames, [25, 25], 50), in_pieces(module, frames, [25, 25], None))
    assert not agree(module(frames, 49), module(frames))


@torch.no_grad()
def test_a_window_reaches_as_far_back_as_it_says_in_each_layer() -> None:
    module = generator(ctc_decoder_config="(1,48,4,64)")
    frames = torch.randn(1, 40, 48, dtype=torch.float64)
    other = frames.clone()
    other[:, 10] += 1.0
    changed = ((module(other, 6) - module(frames, 6)).abs() > 1e-12).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == list(range(10, 16))


@torch.no_grad()
def test_chunks_inside_a_long_windowed_call_change_nothing() -> None:
    module = generator()
    frames = torch.randn(1, 300, 48, dtype=torch.float64)
    # 300 frames are more than one internal chunk; a single call of `advance` is not chunked.
    whole, _ = module.advance(frames, module.initial_state(9))
    assert agree(module(frames, 9), whole)


@torch.no_grad()
def test_a_windowed_state_stays_as_small_as_its_window() -> None:
    module = generator().float()
    sizes = {}
    for window in (None, 60):
        state: GeneratorState = module.initial_state(window)
        sizes[window] = []
        for _ in range(8):
            _, state = module.advance(torch.randn(1, 25, 48), state)
            sizes[window].append(state.nbytes)
    per_frame = 2 * 2 * 64 * 4
    assert sizes[None] == [per_frame * 25 * n for n in range(1, 9)]
    assert sizes[60] == [per_frame * min(25 * n, 59) for n in range(1, 9)]


@torch.no_grad()
def test_no_state_is_changed_by_advancing_it() -> None:
    module = generator()
    _, state = module.advance(torch.randn(1, 30, 48, dtype=torch.float64), module.initial_state(17))
    kept = [t.clone() for t in state.keys]
    first, _ = module.advance(torch.ones(1, 25, 48, dtype=torch.float64), state)
    second, _ = module.advance(torch.ones(1, 25, 48, dtype=torch.float64), state)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(kept, state.keys, strict=True))


@torch.no_grad()
def test_attention_depends_on_distance_alone_even_after_hours() -> None:
    module = generator().float()
    frames = torch.randn(1, 25, 48)
    early, _ = module.advance(frames, GeneratorState((), (), frames=0, window=25))
    late, _ = module.advance(frames, GeneratorState((), (), frames=3_000_000, window=25))
    assert agree(late, early)


@torch.no_grad()
def test_the_language_models_head_dim_stays_its_own() -> None:
    config = LlamaOmniConfig.tiny(head_dim=6, ctc_decoder_config="(1,80,5,64)")
    module = SpeechGenerator(config)
    assert module.layer_config.head_dim == 16
    assert module.layers[0].self_attn.k_proj.weight.shape == (80, 80)
    assert module(torch.randn(1, 9, 64)).shape == (1, 9, 51)


def test_chunks_collapse_to_what_the_whole_collapses_to() -> None:
    frames = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(1))
    # A plain loop over frames, as the definition says.
    by_hand, previous = [], None
    for frame in frames.tolist():
        if frame != previous and frame != 2:
            by_hand.append(frame)
        previous = frame
    assert collapse_frames(frames, blank=2).tolist() == by_hand
    for size in (1, 3, 25, 199):
        units, last = [], None
        for chunk in frames.split(size):
            units += collapse_frames(chunk, blank=2, previous=last).tolist()
            last = int(chunk[-1])
        assert units == by_hand


def test_states_are_spread_as_evenly_as_whole_frames_allow() -> None:
    states = torch.arange(3.0)[:, None]
    assert spread(states, 75).flatten().tolist() == [0.0] * 25 + [1.0] * 25 + [2.0] * 25
    assert spread(states, 8).flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert frames_needed(torch.tensor([4, 4, 4, 1])) == 6


def test_gradients_flow_through_a_windowed_loss_as_through_a_full_one() -> None:
    module = generator()
    states = torch.randn(3, 48, dtype=torch.float64, requires_grad=True)
    gradients = []
    for window in (None, 200):
        loss = module.speech_loss([states], [torch.tensor([1, 2])], window).loss
        gradients.append(torch.autograd.grad(loss, states)[0])
    assert torch.equal(*gradients)
    assert torch.isfinite(module.speech_loss([states], [torch.tensor([1, 2])], 10).loss)
    with pytest.raises(ValueError, match="window must be at least 1"):
        module.initial_state(0)
