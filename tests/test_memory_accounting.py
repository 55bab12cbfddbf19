"""Bytes of a conversation at the published dimensions, against arithmetic done by hand."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from backbones.qwen_tts import PUBLISHED_SIZES, qwen_llm_config
from experiments.memory import metrics as names
from experiments.memory.accounting import Subject
from experiments.memory.claimed import CLAIMED, claim_rows
from experiments.memory.configuration import Arrangement, Backbone, MemoryExperiment
from experiments.memory.metrics import memory_metrics
from experiments.memory.subjects import published_subject
from experiments.recipes.memory import MIMI_FRAMES_PER_SECOND, memory

K = 1024
CONFIG = memory(scale="cpu", seed=0)
# FP32 inner weights and gradient sums of a layer of the 8B and of Moshi: 32 heads of 128, 512 wide inside the mlp.
LINEAR_STATE = 2 * 4 * 32 * (128 * 128 + 128) + 8
MLP_STATE = 2 * 4 * 32 * (128 * 512 + 512 + 512 * 128 + 128) + 8


@functools.cache
def subject_of(name: str) -> Subject:
    if name.startswith("moshi"):
        pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")
    return published_subject(CONFIG.arm(name), CONFIG.mini_batch_size)


def logged(name: str, config: MemoryExperiment = CONFIG) -> dict[str, float]:
    return memory_metrics(subject_of(name), config, config.backbone(config.arm(name).backbone))


def test_llama_3_1_8b_keeps_128_kib_a_position_and_its_top_quarter_a_quarter_of_it() -> None:
    # Keys and values of 8 heads of 128, 2 bytes each, in 32 layers; with TTT above, in 24.
    whole = logged("llama-omni-attention")
    assert whole[names.BYTES_PER_POSITION] == 2 * 8 * 128 * 2 * 32 == 131_072
    assert whole["memory/bytes_at_048k_positions"] == 48 * K * 131_072
    assert whole[names.BYTES_FIXED] == 0
    top = logged("llama-omni-ttt-mlp-top")
    assert top[names.BYTES_PER_POSITION] == 24 * 4096 == 98_304
    assert top[names.BYTES_FIXED] == 8 * MLP_STATE
    assert (whole[names.IS_BOUNDED], top[names.IS_BOUNDED]) == (0.0, 0.0)


def test_ttt_states_are_inner_weights_and_their_gradient_sums_in_fp32() -> None:
    for inner_model, state in (("linear", LINEAR_STATE), ("mlp", MLP_STATE)):
        every = logged(f"llama-omni-ttt-{inner_model}-every")
        assert every[names.TTT_BYTES_PER_LAYER] == state
        assert every[names.TTT_INNER_WEIGHT_BYTES_PER_LAYER] == (state - 8) / 2
        assert every[names.TTT_OPEN_MINI_BATCH_BYTES_PER_LAYER] == (state - 8) / 2
        assert (every[names.BYTES_FIXED], every[names.TTT_LAYERS]) == (32 * state, 32)
        windowed = logged(f"llama-omni-ttt-{inner_model}-top-window")
        # Windows of 2,048 and 4 sinks in 24 layers, each with a counter of 8 bytes.
        assert windowed[names.ATTENTION_BYTES_FIXED] == 24 * (2052 * 4096 + 8)
        assert windowed[names.BYTES_FIXED] == 24 * (2052 * 4096 + 8) + 8 * state
        assert windowed[names.IS_BOUNDED] == 1.0


def test_hidden_states_of_all_layers_are_264_kib_a_position_and_the_last_ones_8() -> None:
    # The embeddings and what 32 layers give, 4,096 numbers of 2 bytes each.
    kept = {which: logged(f"llama-omni-attention-{which}-hidden-states") for which in ("all", "last")}
    assert kept["all"][names.HIDDEN_STATE_BYTES_PER_POSITION] == 33 * 4096 * 2 == 264 * K
    assert kept["last"][names.HIDDEN_STATE_BYTES_PER_POSITION] == 8 * K
    assert kept["all"][names.BYTES_PER_POSITION] == (128 + 264) * K
    assert logged("llama-omni-attention")[names.HIDDEN_STATE_BYTES_PER_POSITION] == 0


def test_the_speech_generator_keeps_25_frames_a_token_unless_it_has_a_window() -> None:
    # Keys and values of 2 layers of 4,096 numbers of 2 bytes: 32 KiB a frame.
    grows, bounded = logged("llama-omni-attention"), logged("llama-omni-window")
    assert grows[names.GENERATOR_BYTES_PER_SAID_TOKEN] == 25 * 32 * K == 800 * K
    assert grows[names.GENERATOR_BYTES_FIXED] == 0
    # The frame being made is the thousandth that it sees.
    assert (bounded[names.GENERATOR_BYTES_PER_SAID_TOKEN], bounded[names.GENERATOR_BYTES_FIXED]) == (0, 999 * 32 * K)


def test_moshis_rings_are_all_it_keeps_and_stretch_with_their_positions() -> None:
    # 32 layers with multi-head attention of 4,096, keys and values in 2 bytes; two counters and a flag each.
    per_position, counters = 32 * 2 * 4096 * 2, 32 * 17
    assert per_position == 512 * K
    ring, stretched = logged("moshi-ring"), logged("moshi-ring-48k")
    assert ring[names.BYTES_FIXED] == 3000 * per_position + counters
    assert stretched[names.BYTES_FIXED] == 48 * K * per_position + counters
    assert ring[names.BYTES_PER_POSITION] == stretched[names.BYTES_PER_POSITION] == 0
    assert ring[names.PUBLISHED_CONTEXT_HOURS] * 60 == pytest.approx(4.0)
    linear = logged("moshi-ttt-linear-top")
    assert linear[names.BYTES_FIXED] == 24 * (3000 * 16_384 + 17) + 8 * (LINEAR_STATE + 1)


def test_qwen_keeps_its_few_key_heads_a_position() -> None:
    for name, heads in (("qwen-7b", 4), ("qwen-1.5b", 2)):
        assert logged(f"{name}-attention")[names.BYTES_PER_POSITION] == 2 * heads * 128 * 2 * 28
        assert logged(f"{name}-ttt-mlp-top")[names.BYTES_PER_POSITION] == 2 * heads * 128 * 2 * 21
    # What the model cards give: 1.54 and 7.61 billion parameters, of 2 bytes.
    for name, billions in (("qwen-7b", 7.61), ("qwen-1.5b", 1.54)):
        assert logged(f"{name}-attention")[names.WEIGHTS_BYTES] / 2e9 == pytest.approx(billions, abs=0.01)
    assert PUBLISHED_SIZES == ("1.5B", "7B", "qwen3-1.7B")
    with pytest.raises(ValueError, match=r"no Qwen of size '3B' here; there are 1\.5B, 7B, qwen3-1\.7B"):
        qwen_llm_config("3B")  # pyright: ignore[reportArgumentType]


def test_a_minute_of_speech_is_the_positions_heard_and_said_in_it() -> None:
    metrics = logged("llama-omni-attention")
    heard, said = 600 * 131_072, 192 * (131_072 + 819_200)
    assert metrics[names.BYTES_PER_MINUTE_HEARD] == pytest.approx(heard)
    assert metrics[names.BYTES_PER_MINUTE_SAID] == pytest.approx(said)
    assert metrics[names.BYTES_PER_MINUTE] == pytest.approx((heard + said) / 2)
    assert metrics[names.BYTES_AFTER_1_HOUR] == pytest.approx(60 * (heard + said) / 2)
    assert metrics[names.POSITIONS_PER_SECOND] == pytest.approx(6.6)
    left = (80e9 - metrics[names.WEIGHTS_BYTES]) / (30 * (heard + said))
    assert metrics["memory/hours_in_80_GB"] == pytest.approx(left)
    assert "memory/hours_in_80_GB" not in logged("llama-omni-window")
    silent = dataclasses.replace(CONFIG.backbone("llama-omni"), said_share=0.0)
    others = tuple(each for each in CONFIG.backbones if each.name != "llama-omni")
    listening = logged("llama-omni-attention", dataclasses.replace(CONFIG, backbones=(silent, *others)))
    assert listening[names.BYTES_PER_MINUTE] == pytest.approx(heard)


def test_frames_a_second_are_the_packages_own() -> None:
    pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")
    from backbones.moshi import FRAME_RATE_HZ

    assert MIMI_FRAMES_PER_SECOND == FRAME_RATE_HZ
    assert CONFIG.backbone("llama-omni").positions_per_second_heard == 10.0


def test_a_batch_is_its_conversations_and_the_weights_once() -> None:
    metrics = logged("qwen-1.5b-ttt-linear-top")
    one, weights = metrics["memory/bytes_at_064k_positions"], metrics[names.WEIGHTS_BYTES]
    assert metrics["memory/batch_4_bytes_at_064k_positions"] == 4 * one
    assert metrics["memory/batch_4_bytes_with_weights_at_064k_positions"] == 4 * one + weights
    assert metrics["memory/batch_1_bytes_with_weights_at_064k_positions"] == one + weights


def test_every_claimed_number_is_of_an_arm_and_a_metric_that_exist() -> None:
    pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")
    arms = {each.arm for each in CLAIMED}
    rows = claim_rows({arm: logged(arm) for arm in arms})
    assert [row.claimed for row in rows] == list(CLAIMED)
    computed = {(row.claimed.claim, row.claimed.arm, row.claimed.metric): row.computed for row in rows}
    assert computed["C04", "moshi-ring-48k", names.BYTES_FIXED] == pytest.approx(25.77, abs=0.01)
    assert computed["C08", "llama-omni-attention", "memory/bytes_at_048k_positions"] == pytest.approx(6.442, abs=0.001)
    assert computed["C09", "llama-omni-ttt-mlp-top", names.BYTES_PER_POSITION] == 98_304
    assert claim_rows({"llama-omni-attention": {}}) == []


def bad(**changes: object) -> Arrangement:
    return dataclasses.replace(CONFIG.arm("qwen-7b-attention"), **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bad(inner_model="mlp"), "inner_model and ttt_layers go together"),
        (lambda: bad(window=0), "window must be at least 1"),
        (lambda: bad(sinks=2), "sinks stand in front of a window"),
        (lambda: bad(inner_model="mlp", ttt_layers="every", window=5), "leaves no attention for a window"),
        (lambda: bad(ring_positions=9), "ring_positions is for Moshi"),
        (lambda: bad(generator_window_frames=9), "only llama-omni has a speech generator"),
        (lambda: bad(backbone="moshi", hidden_states="all"), "Moshi's generation keeps no hidden states"),
        (
            lambda: Backbone(
                name="moshi", positions_per_second_heard=0, positions_per_second_said=1
            ),
            "positions_per_second_heard must be above 0",
        ),
        (lambda: dataclasses.replace(CONFIG.backbone("moshi"), said_share=1.5), "said_share is a part of 1"),
        (lambda: dataclasses.replace(CONFIG, positions=(4 * K, K)), "positions must be 1 or more rising numbers"),
        (lambda: dataclasses.replace(CONFIG, positions=(1000,)), "whole multiples of 1,024"),
        (lambda: dataclasses.replace(CONFIG, backbones=CONFIG.backbones[:1]), "has no backbone 'moshi'"),
        (lambda: dataclasses.replace(CONFIG, arms=CONFIG.arms[:1] * 2), "arms need different names"),
        (lambda: dataclasses.replace(CONFIG.check, positions=(3, 14)), "within window and sinks"),
        (lambda: CONFIG.arm("moshi-attention"), "has no arm 'moshi-attention'; it has llama-omni-attention"),
        (lambda: CONFIG.with_weights("0"), "memory takes no --weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # pyright: ignore[reportCallIssue]
