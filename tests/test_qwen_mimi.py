"""Qwen + Mimi: losses of every stream, what each frame may depend on, and one result however it is run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from qwen_mimi_models import KINDS, SINKS, WINDOW, frames_of, model_of
from torch import Tensor

from backbones import load_backbone
from backbones.mounting import describe, ttt_layers
from backbones.qwen_mimi import FrameChoice, QwenMimi, QwenMimiConfig, load, save

FRAMES = 3 * WINDOW + 4


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter(kind: str) -> None:
    model = model_of(kind).train()
    model(*frames_of(model.config, 2, FRAMES)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert without == []


@torch.no_grad()
def test_each_streams_loss_is_the_mean_nats_of_its_own_targets() -> None:
    model = model_of("ttt")
    text, said, heard = frames_of(model.config, 2, FRAMES)
    out = model(text, said, heard)
    assert out.text_logits.shape == (2, FRAMES, model.config.text_vocab_size - 1)
    assert out.code_logits.shape == (2, FRAMES, model.config.codebooks, model.config.codebook_size)
    nats = torch.log_softmax(out.text_logits.double(), dim=-1).gather(2, text[:, :, None])
    assert float(out.text_loss) == pytest.approx(-float(nats.mean()), rel=1e-5)
    for codebook in range(model.config.codebooks):
        nats = torch.log_softmax(out.code_logits[:, :, codebook].double(), dim=-1)
        expected = -float(nats.gather(2, said[:, codebook, :, None]).mean())
        assert float(out.code_losses[codebook]) == pytest.approx(expected, rel=1e-5)
    assert float(out.loss) == pytest.approx(float(out.text_loss + out.code_losses.mean()), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_depends_on_nothing_that_comes_with_it_or_after_it(kind: str) -> None:
    model = model_of(kind)
    text, said, heard = frames_of(model.config, 1, FRAMES)
    at = WINDOW + 2
    before = model(text, said, heard)
    others = frames_of(model.config, 1, FRAMES, seed=1)
    changed = [torch.cat([a[..., :at], b[..., at:]], dim=-1) for a, b in zip((text, said, heard), others, strict=True)]
    after = model(*changed)
    assert torch.equal(before.text_logits[:, : at + 1], after.text_logits[:, : at + 1])
    assert torch.equal(before.code_logits[:, :at], after.code_logits[:, :at])
    # Each stream of a frame is heard by the next one, and by all that follow.
    for stream in range(3):
        one = [text, said, heard]
        one[stream] = torch.cat(
            [one[stream][..., :at], others[stream][..., at : at + 1], one[stream][..., at + 1 :]], -1
        )
        assert not torch.equal(one[stream], (text, said, heard)[stream])
        moved = (model(*one).text_logits - before.text_logits).abs().amax(dim=(0, 2))
        assert bool((moved[at + 1 :] > 0).all()) and not bool(moved[: at + 1].any())


@torch.no_grad()
def test_a_code_depends_on_its_frames_text_and_on_the_codebooks_before_it() -> None:
    model = model_of("plain")
    config = model.config
    hidden = torch.randn(4, config.hidden_size)
    text, said, _ = frames_of(config, 4, 1)
    text, said = text[:, 0], said[:, :, 0]
    logits = model.code_logits(hidden, text, said)
    other = said.clone()
    other[:, 1] = (other[:, 1] + 1) % config.codebook_size
    moved = (model.code_logits(hidden, text, other) - logits).abs().amax(dim=(0, 2)) > 0
    assert moved.tolist() == [False, False, True]
    assert bool((model.code_logits(hidden, (text + 1) % config.no_text_id, said) != logits).any(dim=2).all())
    greedy = model.depth.say(hidden, model.decoder.embed_tokens(text), lambda scores: scores.argmax(dim=1))
    assert torch.equal(model.code_logits(hidden, text, greedy).argmax(dim=2), greedy)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_neither_the_losses_nor_the_gradients(kind: str) -> None:
    model = model_of(kind).double()
    text, said, heard = frames_of(model.config, 2, FRAMES)
    lengths = torch.tensor([FRAMES, FRAMES - 9])
    gradients = []
    for seed in (2, 3):
        pad = frames_of(model.config, 2, FRAMES, seed)
        is_real = torch.arange(FRAMES) < lengths[:, None]
        padded = [
            torch.where(is_real if given.dim() == 2 else is_real[:, None], given, filling)
            for given, filling in zip((text, said, heard), pad, strict=True)
        ]
        model.zero_grad()
        together = model(*padded, lengths)
        together.loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-12)
    alone = [model(*(x[row : row + 1, ..., :n] for x in (text, said, heard))) for row, n in enumerate(lengths.tolist())]
    shares = (lengths / lengths.sum()).to(together.text_loss)
    assert float(together.text_loss) == pytest.approx(
        sum(float(o.text_loss * w) for o, w in zip(alone, shares, strict=True)), 1e-6
    )
    losses = torch.stack([one.code_losses for one in alone]).mul(shares[:, None]).sum(dim=0)
    torch.testing.assert_close(together.code_losses, losses, rtol=1e-5, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_generation_cached_streamed_and_uncached_agree(kind: str) -> None:
    model = model_of(kind)
    frames = 2 * WINDOW + 3
    _, _, heard = frames_of(model.config, 2, frames)
    cached = model.generate(heard)
    uncached = model.generate(heard, keeps_cache=False)
    streamed = list(model.generate_stream(iter(heard.unbind(dim=2)), rows=2))
    assert len(streamed) == frames + 1
    for other in (uncached.text, torch.stack([frame.text for frame in streamed], dim=1)):
        assert torch.equal(cached.text, other)
    for other in (uncached.codes, torch.stack([frame.codes for frame in streamed], dim=2)):
        assert torch.equal(cached.codes, other)
    # And each frame is the likeliest one of the batched forward pass over what was said.
    out = model(cached.text[:, :-1], cached.codes[:, :, :-1], heard)
    assert torch.equal(out.text_logits.argmax(dim=2), cached.text[:, :-1])
    assert torch.equal(out.code_logits.argmax(dim=3).transpose(1, 2), cached.codes[:, :, :-1])
    assert len(cached.text.unique()) > 3 and len(cached.codes.unique()) > 3, "they must vary to say anything"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_into_calls_gives_the_states_of_one_call(kind: str) -> None:
    model = model_of(kind)
    frames = model.frames_before(*frames_of(model.config, 2, FRAMES))
    whole, _ = model.read(*frames)
    for sizes in ([1] * FRAMES, [5, 1, FRAMES - 6]):
        cache, parts = None, []
        for part in zip(*(stream.split(sizes, dim=-1) for stream in frames), strict=True):
            hidden, cache = model.read(*part, past_key_values=cache, use_cache=True)
            parts.append(hidden)
        assert relative(torch.cat(parts, dim=1), whole) < 1e-5


@torch.no_grad()
def test_casting_keeps_rotary_frequencies_and_ttt_states_exact() -> None:
    exact = {name: buffer.clone() for name, buffer in model_of("ttt").named_buffers() if "inv_freq" in name}
    model = model_of("ttt").to(torch.bfloat16)
    assert len(exact) == 4 and model.text_head.weight.dtype == torch.bfloat16
    for name, frequencies in exact.items():
        assert model.get_buffer(name).dtype == torch.float32 and torch.equal(model.get_buffer(name), frequencies)
    hidden, cache = model.read(*model.frames_before(*frames_of(model.config, 1, FRAMES)), use_cache=True)
    assert hidden.dtype == torch.bfloat16 and bool(hidden.isfinite().all())
    assert {state.W1.dtype for state in cache.states.values()} == {torch.float32}


@torch.no_grad()
def test_what_is_heard_is_asked_for_after_the_frame_beside_it_was_said() -> None:
    model, log = model_of("ttt"), []

    def microphone() -> object:
        for frame in frames_of(model.config, 1, 3)[2].unbind(dim=2):
            log.append("heard")
            yield frame

    for _ in model.generate_stream(microphone()):
        log.append("said")
    assert log == ["said", "heard", "said", "heard", "said", "heard", "said"]


@torch.no_grad()
def test_a_stream_takes_the_memory_that_is_described_however_long_it_gets() -> None:
    model = model_of("ttt")
    memory = describe(model.decoder)
    assert memory.is_bounded
    assert not describe(model_of("plain").decoder).is_bounded
    stream, held = model.stream(), []
    for frame in frames_of(model.config, 1, 3 * (WINDOW + SINKS))[2].unbind(dim=2):
        stream.say()
        stream.hear(frame)
        held.append(stream.nbytes)
    assert set(held[WINDOW + SINKS :]) == {memory.bytes_fixed}
    assert stream.frames == len(held)


@torch.no_grad()
def test_a_stream_goes_on_from_given_frames_as_the_forward_pass_would() -> None:
    model = model_of("ttt")
    text, said, heard = frames_of(model.config, 1, FRAMES)
    stream = model.stream()
    stream.read(text[:, :5], said[:, :, :5], heard[:, :, :5])
    stream.read(text[:, 5:], said[:, :, 5:], heard[:, :, 5:])
    states = model.read(text, said, heard)[0]  # from frames without a start: other states
    frame = stream.say()
    more = [torch.cat([given, torch.zeros_like(given[..., :1])], dim=-1) for given in (text, said, heard)]
    assert frame.text == model(*more).text_logits[:, -1].argmax(dim=1)
    assert states.shape == (1, FRAMES, model.config.hidden_size)


def test_drawn_frames_are_those_of_the_seed_and_among_the_likeliest() -> None:
    logits = torch.randn(2000, 9)
    draw = lambda seed: FrameChoice(  # noqa: E731
        text_temperature=0.8, text_top_k=3, random=torch.Generator().manual_seed(seed)
    ).text(logits)
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert bool((logits.gather(1, draw(1)[:, None]) >= logits.topk(3, dim=1).values[:, 2:]).all())
    # How often the likeliest of three is drawn, against the softmax itself.
    top = logits.topk(3, dim=1).values / 0.8
    expected = float(torch.softmax(top, dim=1)[:, 0].mean())
    assert float((draw(1) == logits.argmax(dim=1)).float().mean()) == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize("kind", ["plain", "ttt", "window"])
def test_a_saved_folder_loads_as_it_was_mounted(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    save(model, tmp_path)
    before = torch.random.get_rng_state()
    loaded = load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    frames = frames_of(model.config, 2, FRAMES)
    with torch.no_grad():
        assert torch.equal(loaded(*frames).text_logits, model(*frames).text_logits)
    assert loaded.config == model.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_damaged_and_foreign_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*config\.json"):
        load(tmp_path)
    save(model_of("ttt"), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.safetensors is no readable safetensors file"):
        load(tmp_path)
    save(model_of("plain", hidden_size=16, num_attention_heads=2), tmp_path / "other")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"lacks decoder\.layers\.2\.self_attn\.ttt"):
        load(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"qwen_mimi"', '"moshi"'))
    with pytest.raises(ValueError, match="model_type 'moshi', expected 'qwen_mimi'"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"codebooks"', '"books"'))
    with pytest.raises(ValueError, match="keys that no Qwen \\+ Mimi has: books"):
        load(tmp_path)


def test_the_planned_model_has_qwens_published_sizes_and_ttt_in_its_top_16_layers() -> None:
    config = QwenMimiConfig.planned()
    assert config.ttt_layers == range(12, 28)
    assert config.token_streams == 17
    assert config.no_text_id == 152_062  # beyond Qwen2.5's 151,665 tokens
    with torch.device("meta"):
        model = QwenMimi(config)
    qwen = sum(p.numel() for p in (*model.decoder.parameters(), *model.text_head.parameters()))
    assert qwen == 7_615_616_512  # Qwen2.5-7B, as published


def test_it_is_loaded_by_its_name_with_ttt_where_its_config_says(tmp_path: Path) -> None:
    model = load_backbone("qwen-mimi", scale="smoke", ttt={"mini_batch_size": 4})
    assert isinstance(model, QwenMimi)
    assert list(ttt_layers(model.decoder)) == list(model.config.ttt_layers) == [2, 3]
    save(model_of("plain"), tmp_path)
    mounted = load_backbone("qwen-mimi", weights=tmp_path, ttt={"inner_model": "linear"})
    assert ttt_layers(mounted.decoder)[3].config.inner_model == "linear"


def test_frames_that_are_none_are_refused() -> None:
    model = model_of("plain")
    text, said, heard = frames_of(model.config, 2, 5)
    with pytest.raises(ValueError, match="codes heard must be 0 to 31, got"):
        model(text, said, torch.full_like(heard, 32))
    with pytest.raises(ValueError, match="text ids must be 0 to 40, got"):
        model(torch.full_like(text, model.config.start_text_id), said, heard)
    with pytest.raises(ValueError, match=r"codes said must be \(batch, codebooks, frames\) = \(2, 3, 5\)"):
        model(text, said[:, :2], heard)
    with pytest.raises(ValueError, match="empty stream has nothing to read"):
        model(text[:, :0], said[:, :, :0], heard[:, :, :0])
    with pytest.raises(ValueError, match="must be whole numbers, got torch"):
        model(text, said.float(), heard)
    with pytest.raises(ValueError, match="lengths must be 2 numbers of 1 to 5 frames"):
        model(text, said, heard, torch.tensor([5, 6]))
    with pytest.raises(ValueError, match="at least one frame"):
        model.generate(heard[:, :, :0])
    with pytest.raises(ValueError, match="ended before any frame was heard"):
        list(model.generate_stream([]))
    stream = model.stream()
    with pytest.raises(ValueError, match="call say first"):
        stream.hear(heard[:1, :, 0])
    stream.say()
    with pytest.raises(ValueError, match="call hear with what sounded"):
        stream.say()
    with pytest.raises(ValueError, match=r"\(rows, codebooks\) = \(1, 3\), got \(2, 3\)"):
        stream.hear(heard[:, :, 0])
    with pytest.raises(ValueError, match="codes heard must be 0 to 31"):
        stream.hear(torch.full((1, 3), -1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"codebooks": 1}, "codebooks must be 2 or more"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1, got 0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a finite number above 0"),
        ({"num_attention_heads": 5}, "hidden_size / num_attention_heads must be an even whole number"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"text_vocab_size": 2}, "text_vocab_size must leave tokens"),
    ],
)
def test_dimensions_that_make_no_model_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QwenMimiConfig.at_scale("smoke"), **fields)
