"""Mounted Moshi generates: LMGen's stream is LMModel's batched forward; guidance, resets, saved conversations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moshi_models import CONTEXT, open_gates, relative_difference, small_ttt, speaking_lm, text_lm
from torch import Tensor

from backbones.moshi import (
    FRAME_RATE_HZ,
    MoshiConfig,
    build_lm,
    delayed_sequence,
    describe,
    gates,
    generate_step,
    give_ring_room,
    load_conversation,
    mount,
    probe_depth_resets,
    save_conversation,
    token_cache_bytes,
)
from backbones.moshi.stream_tensors import nbytes_of, streaming_states

from moshi.models.lm import LMGen, LMModel  # isort: skip  (after backbones.moshi, which sets how moshi is imported)

FRAMES = 25
TOLERANCE = 1e-5


def mounted(mode: str = "replace", inner_model: str = "mlp", **sizes: object) -> LMModel:
    lm = speaking_lm(**sizes)
    mount(lm, [2, 3], small_ttt(lm, inner_model, base_lr=0.5), mode, window=7, sinks=2)
    open_gates(gates(lm))
    return lm


def heard_codes(lm: LMModel, rows: int, frames: int) -> Tensor:
    return torch.randint(lm.card, (rows, lm.n_q - lm.dep_q, frames), generator=torch.Generator().manual_seed(3))


def steps(generator: LMGen, heard: Tensor) -> list[Tensor | None]:
    return [generate_step(generator, frame) for frame in heard.split(1, dim=2)]


@pytest.mark.parametrize(("mode", "inner_model"), [("replace", "linear"), ("gated", "mlp")])
def test_what_is_generated_frame_by_frame_is_what_the_batched_forward_predicts(mode: str, inner_model: str) -> None:
    lm = mounted(mode, inner_model)
    heard, text_logits = heard_codes(lm, rows=2, frames=FRAMES), []
    generator = LMGen(lm, use_sampling=False, on_text_logits_hook=lambda logits: text_logits.append(logits[:, 0, 0]))
    with generator.streaming(2):
        out = [frame for frame in steps(generator, heard) if frame is not None]
    spoken = torch.cat(out, dim=2)
    frames = spoken.shape[2]
    assert frames == FRAMES - max(lm.delays) > 2 * CONTEXT
    # What is heard in the first step is never used, so the frame heard in step t + 1 is the codes' frame t.
    codes = torch.cat([spoken, heard[:, :, 1 : frames + 1]], dim=1)
    with torch.no_grad():
        expected = lm(codes)
    found = torch.stack(text_logits[:frames], dim=1)
    assert relative_difference(found, expected.text_logits[:, 0]) < TOLERANCE
    whole_frames = slice(0, frames - max(lm.delays))
    assert torch.equal(spoken[:, 1:, whole_frames], expected.logits[:, :, whole_frames].argmax(dim=-1))


def test_a_text_only_model_generates_what_its_batched_forward_predicts() -> None:
    lm = text_lm()
    mount(lm, [1, 2], small_ttt(lm, base_lr=0.5))
    generator = LMGen(lm, use_sampling=False)
    with generator.streaming(2):
        spoken = torch.cat([out for out in steps(generator, heard_codes(lm, 2, FRAMES)) if out is not None], dim=2)
    assert spoken.shape == (2, 1, FRAMES)
    with torch.no_grad():
        logits = lm.forward_text(delayed_sequence(lm, spoken)[:, :, :-1])[1]
    assert torch.equal(logits.argmax(dim=-1), spoken)


def test_guidance_streams_every_row_twice_and_resets_both() -> None:
    lm = mounted()
    heard = heard_codes(lm, rows=2, frames=12)
    options: list[dict[str, object]] = [{"cfg_is_no_text": True}, {"cfg_is_masked_until": [3, 5]}]
    for option in options:
        generator = LMGen(lm, use_sampling=False, cfg_coef=2.0, support_out_of_sync=True, **option)
        with generator.streaming(2):
            steps(generator, heard[:, :, :9])
            state = streaming_states(generator)["lm.transformer.layers.3.self_attn"]
            assert state.held.count.tolist() == [9, 9, 9, 9]
            generator.reset_streaming(torch.tensor([False, True]))
            assert state.held.count.tolist() == [9, 0, 9, 0]
            learned = lm.transformer.layers[3].self_attn.ttt.inner.W1
            assert torch.equal(state.held.W1[3], learned) and not torch.equal(state.held.W1[2], learned)
            generator.set_exec_mask(torch.tensor([False, True]))
            steps(generator, heard[:, :, 9:])
            assert state.held.count.tolist() == [9, 3, 9, 3]


def test_resetting_some_rows_hides_frames_of_all_unless_out_of_sync_is_supported() -> None:
    lm = mounted()
    heard, delay = heard_codes(lm, rows=2, frames=11), max(lm.delays)
    for out_of_sync in (False, True):
        generator = LMGen(lm, use_sampling=False, support_out_of_sync=out_of_sync)
        with generator.streaming(2):
            steps(generator, heard[:, :, :6])
            generator.reset_streaming(torch.tensor([False, True]))
            frames = steps(generator, heard[:, :, 6:])
        assert [frame is None for frame in frames] == [not out_of_sync and t < delay for t in range(5)]
        for t, frame in enumerate(frames):
            if frame is not None:
                is_hidden = (frame == lm.ungenerated_token_id).flatten(1).all(dim=1).tolist()
                assert is_hidden == [False, t < delay]


def test_a_reset_row_goes_on_as_a_fresh_one() -> None:
    lm = mounted()
    heard = heard_codes(lm, rows=2, frames=24)
    generator = LMGen(lm, use_sampling=False, support_out_of_sync=True)
    with generator.streaming(2):
        steps(generator, heard[:, :, :9])
        generator.reset_streaming(torch.tensor([True, False]))
        reused = steps(generator, heard[:, :, 9:])
    with generator.streaming(2):
        fresh = steps(generator, heard[:, :, 9:])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(reused, fresh, strict=True))


CONTINUE = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from moshi.models.lm import LMGen
from test_moshi_generation import mounted, heard_codes, steps
from backbones.moshi import load_conversation
lm = mounted("gated")
generator = LMGen(lm, temp=0.9, temp_text=0.9)
torch.manual_seed(99)
with generator.streaming(2):
    load_conversation(generator, {saved!r}, restores_random_state=True)
    torch.save(steps(generator, heard_codes(lm, 2, 24)[:, :, 15:]), {out!r})
"""


def test_a_saved_conversation_goes_on_bit_for_bit_in_another_process(tmp_path: Path) -> None:
    lm = mounted("gated")
    heard = heard_codes(lm, rows=2, frames=24)
    generator = LMGen(lm, temp=0.9, temp_text=0.9)
    with generator.streaming(2):
        steps(generator, heard[:, :, :8])
        generator.reset_streaming(torch.tensor([False, True]))
        steps(generator, heard[:, :, 8:15])
        save_conversation(generator, tmp_path / "conversation")
        expected = steps(generator, heard[:, :, 15:])  # the file is a copy: going on does not change it
    program = CONTINUE.format(
        tests=str(Path(__file__).parent), saved=str(tmp_path / "conversation"), out=str(tmp_path / "out")
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    continued = torch.load(tmp_path / "out")
    assert all(torch.equal(a, b) for a, b in zip(continued, expected, strict=True))


def test_a_conversation_is_refused_by_another_model_and_other_rows(tmp_path: Path) -> None:
    path, lm = tmp_path / "conversation", mounted()
    heard = heard_codes(lm, rows=2, frames=3)
    with pytest.raises(ValueError, match=r"not streaming: enter `with model.streaming\(rows\):`"):
        save_conversation(lm, path)
    generator = LMGen(lm, use_sampling=False)
    with generator.streaming(2):
        steps(generator, heard)
        save_conversation(generator, path)
    with generator.streaming(3), pytest.raises(ValueError, match="holds 2 rows, and the model streams 3"):
        load_conversation(generator, path)
    others = {
        "weights is": mounted(seed=1),
        "mode is 'replace' there and 'gated' here": mounted("gated"),
        "ttt.inner_model is 'mlp' there and 'linear'": mounted(inner_model="linear"),
        "'ring': 7": give_ring_room(mounted(), 2),
        "dtype is 'float32' there and 'float64' here": mounted().double(),
    }
    for match, other in others.items():
        other_generator = LMGen(other, use_sampling=False)
        with other_generator.streaming(2), pytest.raises(ValueError, match=match):
            load_conversation(other_generator, path)
    with lm.streaming(2), pytest.raises(ValueError, match="streamed_by is 'LMGen' there and 'LMModel' here"):
        load_conversation(lm, path)


def test_the_depth_transformer_starts_anew_once_a_frame_not_once_a_codebook() -> None:
    # The published stream counts and depth layers at a tiny width.
    published = MoshiConfig.published().lm_arguments()
    sizes = {"dim": 32, "num_heads": 2, "num_layers": 2, "depformer_dim": 16, "depformer_num_heads": 2, "card": 32}
    sizes |= {"depformer_dim_feedforward": 64, "text_card": 40, "context": 8}
    lm = build_lm(MoshiConfig.from_published({**published, **sizes}))
    before = {name: dict(vars(module)) for name, module in lm.depformer.named_modules()}
    probed = probe_depth_resets(lm, frames=5)
    assert probed.frames == 5 and probed.depth_steps_per_frame == 8 and probed.depth_steps_per_second == 100
    assert probed.inits_per_frame == 1 and probed.state_resets == 0
    assert probed.resets_per_second == FRAME_RATE_HZ == 12.5
    # The transformer, and in each of its six layers the layer and its attention.
    assert probed.modules == 13 and probed.state_inits == 5 * 13
    after = {name: dict(vars(module)) for name, module in lm.depformer.named_modules()}
    assert all(before[name].keys() == after[name].keys() for name in before)
    assert not lm.depformer._forward_hooks and not lm._streaming_detached
    with pytest.raises(ValueError, match="no depth transformer"):
        probe_depth_resets(text_lm(), frames=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner_model", ["linear", "mlp"])
def test_described_bytes_are_those_that_streaming_allocates(inner_model: str, dtype: torch.dtype) -> None:
    lm = speaking_lm(kv_repeat=2, depformer_kv_repeat=1).to(dtype)
    mount(lm, [1], small_ttt(lm, inner_model), "gated", window={2: 6}, sinks=3)
    give_ring_room(lm, 4)
    described = describe(lm)
    generator, rows = LMGen(lm), 3
    with generator.streaming(rows):
        states = streaming_states(generator)
        for layer in described.layers:
            prefix = f"lm.transformer.layers.{layer.layer}.self_attn"
            allocated = sum(nbytes_of(state) for name, state in states.items() if name.startswith(prefix))
            assert rows * layer.bytes_fixed == allocated
        assert rows * token_cache_bytes(lm) == nbytes_of(states["lm_gen"])
    assert described.is_bounded
    assert [layer.kind for layer in described.layers] == ["window", "ttt+window", "window", "window"]


def test_the_published_model_is_described_without_being_allocated() -> None:
    lm = build_lm(MoshiConfig.published(), device="meta", dtype=torch.bfloat16)
    ring = 2 * 4096 * 3000 * 2  # keys and values of 3,000 positions, two bytes each
    assert describe(lm).bytes_fixed == 32 * (ring + 17)
    mount(lm, range(24, 32))
    width = 128  # of 32 heads; weights and open sums of the inner mlp, FP32
    inner = 32 * (2 * width * 4 * width + 5 * width) * 2 * 4
    assert describe(lm).bytes_fixed == 24 * (ring + 17) + 8 * (inner + 9)
    assert token_cache_bytes(lm) == 17 * 3 * 8 + 9


@pytest.mark.parametrize(
    ("heard", "match"),
    [
        (torch.zeros(2, 3, 1, dtype=torch.long), r"\(rows, heard codebooks, 1\) = \(2, 2, 1\), got \(2, 3, 1\)"),
        (torch.zeros(2, 2, 4, dtype=torch.long), r"got \(2, 2, 4\)"),
        (torch.zeros(3, 2, 1, dtype=torch.long), r"got \(3, 2, 1\)"),
        (torch.zeros(2, 2, 1), "must be int64 tokens, got torch.float32"),
        (torch.full((2, 2, 1), 25), "must be in -1-24, got 25-25"),
    ],
)
def test_a_step_of_the_wrong_shape_is_refused(heard: Tensor, match: str) -> None:
    generator = LMGen(speaking_lm())
    with pytest.raises(ValueError, match="not streaming"):
        generate_step(generator, heard)
    with generator.streaming(2), pytest.raises(ValueError, match=match):
        generate_step(generator, heard)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA graphs; runs on a machine with an NVIDIA GPU")
def test_steps_replayed_from_a_cuda_graph_are_those_of_plain_calls() -> None:
    from moshi.utils.compile import no_cuda_graph

    lm = mounted("gated").cuda()
    heard = heard_codes(lm, rows=2, frames=FRAMES).cuda()

    def generated() -> list[Tensor]:
        generator = LMGen(lm, use_sampling=False, support_out_of_sync=True)
        with generator.streaming(2):
            first = [frame.clone() for frame in steps(generator, heard[:, :, :9])]
            generator.reset_streaming(torch.tensor([False, True]))
            return first + [frame.clone() for frame in steps(generator, heard[:, :, 9:])]

    graphed = generated()
    with no_cuda_graph():
        plain = generated()
    assert all(torch.equal(a, b) for a, b in zip(graphed, plain, strict=True))
