"""The probes of the ring's mechanics: each against a closed form or a slower definition, and each able to fail."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from moshi.models import loaders
from moshi.modules.transformer import RingKVCache

from backbones.moshi import MoshiConfig, give_ring_room
from experiments.wraparound.mechanics import older_ring
from experiments.wraparound.mechanics.buffering import BufferingSizes, calls_waited, measure_buffering
from experiments.wraparound.mechanics.cache_cost import CacheCostSizes, next_logits_differ_by
from experiments.wraparound.mechanics.causality import CausalitySizes, measure_causality
from experiments.wraparound.mechanics.horizon import horizon_positions, influence_by_distance
from experiments.wraparound.mechanics.measure import MechanicsReport, MechanicsSizes, measure_mechanics
from experiments.wraparound.mechanics.mimi_ring import MimiRingSizes, measure_mimi_ring
from experiments.wraparound.mechanics.older_ring import OlderRingSizes, fetch_releases, measure_older_rings
from experiments.wraparound.mechanics.probe_models import (
    ProbeModel,
    ProbeTTT,
    build_probe_lm,
    random_tokens,
    relative_difference,
    streamed_logits,
    whole_logits,
)
from experiments.wraparound.mechanics.published_steps import PublishedStepsSizes, measure_published_steps
from experiments.wraparound.mechanics.ring_positions import (
    RingSizes,
    keys_lost_when_full,
    measure_ring_positions,
)
from experiments.wraparound.mechanics.ring_probe import NOTHING, calls_of, trace_ring
from experiments.wraparound.mechanics.rotary_precision import (
    MAX_PERIOD,
    RotarySizes,
    counter_stops_at,
    first_collision,
    measure_rotary_precision,
)
from experiments.wraparound.mechanics.state_cost import StateCostSizes, measure_state_cost, streaming_bytes
from experiments.wraparound.mechanics.streamed_against_windowed import (
    NOTICED,
    StreamedSizes,
    difference_by_position,
)
from experiments.wraparound.mechanics.timing import slope, timed_in_turns

EXACT = 1e-5
OLDER_RELEASES = os.environ.get("OLDER_MOSHI_RELEASES")
"""Folder that `python -m experiments.wraparound.mechanics.older_ring --fetch` filled."""


@pytest.fixture(scope="module")
def smoke() -> MechanicsReport:
    return measure_mechanics(MechanicsSizes.smoke())


def test_step_n_writes_slot_n_modulo_capacity_and_overwrites_the_position_a_capacity_before() -> None:
    found = measure_ring_positions(RingSizes(capacity_steps=13, steps_past_wrap=15, tokens_per_call=(1,)))
    steps = np.arange(13 + 15)
    assert np.array_equal(found.slots, steps % 13)
    assert np.array_equal(found.overwritten, np.where(steps < 13, NOTHING, steps - 13))
    assert found.metrics()["ring/first_overwriting_step"] == 14


def test_the_published_ring_is_full_after_four_minutes_and_its_next_step_overwrites_the_first(
    smoke: MechanicsReport,
) -> None:
    assert smoke.metrics["ring/capacity_steps"] == 3000
    assert smoke.metrics["ring/minutes_until_overwriting"] == 4.0
    assert smoke.metrics["ring/first_overwriting_step"] == 3001
    assert smoke.metrics["ring/first_overwritten_position"] == 1
    assert smoke.metrics["ring/mislabelled_slots"] == 0


def test_a_ring_that_reports_other_positions_than_it_holds_is_caught() -> None:
    class OffByOne(RingKVCache):
        def complete(self, k: torch.Tensor, v: torch.Tensor, exec_mask: torch.Tensor):
            result = super().complete(k, v, exec_mask)
            return result._replace(positions=torch.where(result.positions < 0, -1, result.positions + 1))

    rings = [kind(1, 1, 1, 5, device=torch.device("cpu"), dtype=torch.float64) for kind in (RingKVCache, OffByOne)]
    right, wrong = (trace_ring(ring, calls_of(13, 3)) for ring in rings)
    assert not any(call.mislabelled_slots for call in right)
    assert all(call.mislabelled_slots for call in wrong)
    assert {call.mislabelled_by_positions for call in wrong} == {1}


@pytest.mark.parametrize(("context", "tokens"), [(7, 2), (5, 3), (5, 9)])
def test_every_query_of_a_full_ring_loses_a_key_for_each_token_after_it_in_its_call(context: int, tokens: int) -> None:
    lost = keys_lost_when_full(context, context, tokens)
    assert lost.tolist() == 3 * [min(context, tokens - 1 - place) for place in range(tokens)]
    assert not keys_lost_when_full(context, context + tokens - 1, tokens).any()
    # One less would not do.
    assert keys_lost_when_full(context, context + tokens - 2, tokens).any()


def test_streams_leave_the_window_only_where_keys_are_lost() -> None:
    sizes = StreamedSizes(positions=33, model=ProbeModel(context_steps=6))
    assert difference_by_position(sizes, 1, has_room=False).max() < EXACT
    several = difference_by_position(sizes, 4, has_room=False)
    # The second call, positions 4 to 7, writes two more than six slots hold: 0 and 1 are gone, and queries 4, 5 and 6
    # may see one of them. Query 7 may not, but in the second layer it reads keys made by those.
    assert (several[:4] < EXACT).all()
    assert (several[4:] > NOTICED).all()
    assert difference_by_position(sizes, 4, has_room=True).max() < EXACT


def test_the_batched_reference_is_the_definition_of_a_window() -> None:
    """An output is that of its last `horizon` tokens alone: rotary positions are relative, a cut start is no harm."""
    model = ProbeModel(layers=2, context_steps=4)
    lm, horizon = build_probe_lm(model), horizon_positions(2, 4)
    tokens = random_tokens(model, rows=2, positions=23)
    whole = whole_logits(lm, tokens)[:, -1:]
    assert relative_difference(whole_logits(lm, tokens[..., -horizon:])[:, -1:], whole) < EXACT
    assert relative_difference(whole_logits(lm, tokens[..., -horizon + 1 :])[:, -1:], whole) > NOTICED


@pytest.mark.parametrize(("layers", "context"), [(1, 6), (3, 3), (5, 2)])
def test_influence_ends_at_the_closed_forms_horizon(layers: int, context: int) -> None:
    influence = influence_by_distance(
        build_probe_lm(ProbeModel(layers=layers, context_steps=context)), positions=21, seed=1
    )
    horizon = layers * (context - 1) + 1
    assert (influence[:horizon] > 0).all()
    assert not influence[horizon:].any()


def test_ttt_in_one_layer_makes_the_horizon_the_whole_stream() -> None:
    model = ProbeModel(layers=2, context_steps=3)
    lm = build_probe_lm(model, ProbeTTT(mini_batch_steps=4))
    tokens = random_tokens(model, rows=1, positions=40)
    other = tokens.clone()
    other[..., 0] = (other[..., 0] + 1) % model.vocabulary
    calls = [1] * 40
    moved = relative_difference(streamed_logits(lm, other, calls), streamed_logits(lm, tokens, calls))
    assert moved[-1] > EXACT
    assert moved[-1] < moved[0]
    assert influence_by_distance(lm, positions=40, seed=2).all()


def test_rows_out_of_step_are_exact_one_token_per_call_and_with_room(smoke: MechanicsReport) -> None:
    section = "streamed/rows_out_of_step_max_difference_"
    assert smoke.metrics[f"{section}1_token_per_call"] < EXACT
    assert smoke.metrics[f"{section}3_tokens_per_call_with_room"] < EXACT
    assert smoke.metrics[f"{section}3_and_1_token_per_call_with_room"] < EXACT
    assert smoke.metrics[f"{section}3_tokens_per_call"] > NOTICED
    assert smoke.metrics[f"{section}3_and_1_token_per_call"] > NOTICED


def test_no_arm_sees_the_future_and_a_model_that_does_is_caught() -> None:
    metrics = measure_causality(CausalitySizes(positions=17, changed=(2, 13))).metrics()
    caught = {name: value for name, value in metrics.items() if name.startswith("causality/sees_the_future")}
    for name, value in metrics.items():
        if name.endswith("_later_outputs_change") or name in caught:
            assert value > NOTICED, f"{name}: a probe that cannot fail says nothing"
        else:
            assert value == 0.0, name
    assert len(caught) == 4


def test_whole_numbers_end_where_the_mantissa_does() -> None:
    for dtype, bits in ((torch.bfloat16, 8), (torch.float16, 11), (torch.float32, 24)):
        assert first_collision(dtype) == counter_stops_at(dtype) == 2**bits


def test_rotary_error_is_that_of_angles_rounded_to_their_dtype(smoke: MechanicsReport) -> None:
    """An angle of p radians is off by up to p/2 ulp in FP32, half of that or less in the score."""
    found = measure_rotary_precision(RotarySizes(offsets=(0, 100_000), distances=(3,), pairs=32))
    assert found.errors["package", 0] < 1e-6
    assert 1e-6 < found.errors["package", 100_000] < 100_000 * 2.0**-24
    # Every frequency turns by less than a radian a position, so two positions apart are not one.
    assert MAX_PERIOD > 1
    assert found.errors["bf16", 100_000] > 0.05
    assert ("fp16", 100_000) not in found.errors, "FP16 has no 100,000"
    assert smoke.metrics["rotary/first_position_equal_to_the_next_sin_embedding_bf16"] == 256


def test_a_slope_and_its_interval_are_those_of_the_line() -> None:
    x = np.arange(12.0)
    noise = np.random.default_rng(0).standard_normal(12)
    found = slope(x, 3 * x + noise)
    assert found.value == pytest.approx(np.polyfit(x, 3 * x + noise, 1)[0])
    # The interval's half width by hand: t(0.975, 10) = 2.2281 times the slope's standard error.
    residuals = 3 * x + noise - np.polyval(np.polyfit(x, 3 * x + noise, 1), x)
    error = np.sqrt((residuals**2).sum() / 10 / ((x - x.mean()) ** 2).sum())
    assert found.high - found.value == pytest.approx(2.2281 * error, rel=1e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_calls_are_timed_in_turns_and_the_first_turn_is_not_counted() -> None:
    called: list[str] = []
    seconds = timed_in_turns({1: lambda: called.append("a"), 2: lambda: called.append("b")}, rounds=5)
    assert {key: len(values) for key, values in seconds.items()} == {1: 5, 2: 5}
    assert Counter(called) == {"a": 6, "b": 6}
    assert all({*pair} == {"a", "b"} for pair in zip(called[::2], called[1::2], strict=True))


def test_both_timed_ways_give_the_same_next_logits() -> None:
    assert next_logits_differ_by(ProbeModel(layers=3), position=29) < EXACT


def test_a_ring_too_small_for_what_is_timed_is_refused() -> None:
    with pytest.raises(ValueError, match="a ring of 20 does not hold 30 positions"):
        CacheCostSizes(model=ProbeModel(context_steps=20), positions=(5, 10, 30))
    with pytest.raises(ValueError, match="3 or more positions"):
        StateCostSizes(positions=(64, 128))
    with pytest.raises(ValueError, match="do not go well past a ring of 7"):
        StreamedSizes(positions=20)
    with pytest.raises(ValueError, match="no part of a third mini-batch"):
        BufferingSizes(mini_batch_steps=8, positions=16)


@pytest.mark.parametrize(("inner", "maps"), [("linear", 8 * 8 + 8), ("mlp", 8 * 32 + 32 + 32 * 8 + 8)])
def test_bytes_of_a_ttt_stream_are_the_closed_forms(inner: str, maps: int) -> None:
    model = ProbeModel(layers=3, width=32, heads=4)
    lm = build_probe_lm(model, ProbeTTT(inner_model=inner, layers=None))
    with lm.streaming(2):
        # Two rows; weights and the open mini-batch's sums, FP32; and an int64 count per row.
        assert streaming_bytes(lm) == 3 * 2 * (2 * 4 * maps * 4 + 8)


def test_state_stays_as_large_as_it_was_and_a_cache_does_not() -> None:
    model = ProbeModel(layers=2, width=16, heads=2)
    sizes = StateCostSizes(model=model, positions=(11, 23, 50), rounds=2, mini_batch_steps=4, tokens_per_call=7)
    nbytes = measure_state_cost(sizes).nbytes
    assert len({*nbytes["ttt_linear"].values()}) == len({*nbytes["ttt_mlp"].values()}) == 1
    # Keys and values of two layers, FP32, for every position and the three steps timed there.
    assert nbytes["cache"] == {position: 2 * 2 * 16 * 4 * (position + 3) for position in (11, 23, 50)}


def test_one_token_per_call_waits_for_nothing() -> None:
    found = measure_buffering(BufferingSizes(mini_batch_steps=16, positions=41))
    for inner in ("linear", "mlp"):
        assert found.difference[inner].max() < EXACT
        assert not found.calls_waited[inner].any()
        assert found.change_by_future[inner] == 0.0


def test_an_output_held_back_is_seen_to_be() -> None:
    whole = torch.randn(20, 7)
    held_back = torch.cat([torch.zeros(3, 7), whole])
    assert (calls_waited(held_back, whole) == 3).all()


def test_mimis_transformer_loses_a_key_per_frame_once_its_ring_is_full_and_none_with_room() -> None:
    sizes = MimiRingSizes(layers=1, context_steps=11, frames=9, layer_scales=(0.3,))
    found = measure_mimi_ring(sizes)
    # Five frames fill ten of eleven steps; the first step of the sixth is the last that sees everything.
    assert found.difference[0.3][:5].max() < EXACT
    assert found.difference[0.3][5:].min() > EXACT
    assert found.with_room[0.3].max() < EXACT
    assert MimiRingSizes().context_steps / 2 / 12.5 == 10.0


def test_a_release_probed_in_a_process_of_its_own_gives_what_it_gives_here() -> None:
    sizes = OlderRingSizes(context_steps=5, positions=22, tokens_per_call=(1, 2))
    import moshi

    site_packages = Path(moshi.__file__).parents[1]
    apart = older_ring._probe_apart(site_packages, sizes)
    here = measure_older_rings(sizes).by_version["installed"]
    assert apart.keys() == here.keys()
    for name, value in here.items():
        assert apart[name] == pytest.approx(value, abs=1e-6), name
    assert here["keys_lost_per_query_after_wrap_1_token_per_call"] == 0
    assert here["keys_lost_per_query_after_wrap_2_tokens_per_call"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.skipif(
    OLDER_RELEASES is None,
    reason="set OLDER_MOSHI_RELEASES to the folder that `... mechanics.older_ring --fetch FOLDER` filled",
)
def test_the_first_release_masks_its_oldest_key_and_the_second_does_not() -> None:
    assert OLDER_RELEASES is not None
    folders = tuple(Path(OLDER_RELEASES) / f"moshi-{version}" for version in older_ring.VERSIONS)
    first, second = list(measure_older_rings(OlderRingSizes(folders=folders)).by_version.values())[1:]
    one = "1_token_per_call"
    assert first[f"keys_lost_per_query_after_wrap_{one}"] == 1
    assert first[f"nearest_lost_key_{one}"] == 6, "the oldest of a window of seven"
    assert first[f"mislabelled_by_positions_{one}"] == 7, "labelled as the position to come"
    assert first[f"max_difference_after_wrap_{one}"] > NOTICED
    assert second[f"keys_lost_per_query_after_wrap_{one}"] == second[f"mislabelled_slots_{one}"] == 0
    assert second[f"max_difference_after_wrap_{one}"] < EXACT


def test_a_folder_that_is_no_release_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no unpacked moshi release.*--fetch"):
        measure_older_rings(OlderRingSizes(folders=(tmp_path,)))
    modules = tmp_path / "moshi" / "modules"
    modules.mkdir(parents=True)
    (modules / "transformer.py").write_text("raise RuntimeError('this release is broken')\n")
    (tmp_path / "moshi" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    with pytest.raises(ValueError, match="failed: RuntimeError: this release is broken"):
        measure_older_rings(OlderRingSizes(folders=(tmp_path,)))


def test_without_a_package_index_fetching_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIP_INDEX_URL", "http://127.0.0.1:9/"), ("PIP_RETRIES", "0"), ("PIP_EXTRA_INDEX_URL", ""),
                        ("PIP_CONFIG_FILE", os.devnull)):  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"moshi 0\.1\.0 could not be fetched \(.*\); give folders") as caught:
        fetch_releases(tmp_path / "new", ("0.1.0",))
    assert "\n" not in str(caught.value)


def test_the_depth_transformer_starts_anew_once_a_frame_and_steps_once_a_codebook(smoke: MechanicsReport) -> None:
    assert smoke.metrics["depth/state_starts_per_frame"] == 1
    assert smoke.metrics["depth/state_starts_per_second"] == 12.5
    assert smoke.metrics["depth/steps_per_second"] == 8 * 12.5


def test_the_published_model_has_seventeen_streams_summed_into_one_vector(smoke: MechanicsReport) -> None:
    published = loaders._lm_kwargs  # what the package itself builds the 7B from
    assert smoke.metrics["streams/all"] == len(published["delays"]) == published["n_q"] + 1 == 17
    assert smoke.metrics["streams/own_audio"] == published["dep_q"]
    assert smoke.metrics["streams/vectors_per_position_after_embedding"] == 1


def test_steps_are_timed_past_the_wrap_of_every_ring_and_with_ttt() -> None:
    config = MoshiConfig.text_only(dim=32, num_heads=4, num_layers=4, context=9, text_card=23)
    sizes = PublishedStepsSizes(contexts=(9, 20), positions=(3, 9, 30), steps=2, config=config)
    found = measure_published_steps(sizes)
    assert found.seconds.keys() == {"ring_9", "ring_20", "ttt_mlp_top_quarter"}
    assert {taken.shape for by in found.seconds.values() for taken in by.values()} == {(2,)}
    assert found.nbytes["ring_20"] - found.nbytes["ring_9"] == 4 * 11 * 2 * 32 * 4  # layers, positions, K and V, width
    assert found.metrics()["published/ring_9_step_ms_position_30"] > 0


def test_a_smoke_run_gives_every_section_and_only_finite_numbers(smoke: MechanicsReport) -> None:
    sections = {name.rpartition("/")[0] for name in smoke.metrics}
    assert sections == {
        "ring", "streamed", "causality", "horizon", "rotary", "older_ring", "cache_cost", "state_cost", "buffering",
        "mimi", "depth", "streams",
    }  # fmt: skip
    assert all(np.isfinite(value) for value in smoke.metrics.values())
    assert all(np.isfinite(values).all() for values in smoke.arrays.values())


def test_room_does_not_change_what_attention_sees() -> None:
    model = ProbeModel(context_steps=5)
    plain, roomy = build_probe_lm(model), give_ring_room(build_probe_lm(model), 4)
    tokens = random_tokens(model, rows=1, positions=19)
    one_by_one = [1] * 19
    streamed = streamed_logits(roomy, tokens, one_by_one)
    assert relative_difference(streamed, streamed_logits(plain, tokens, one_by_one)).max() < EXACT


def test_older_releases_are_added_to_the_sizes_of_a_run() -> None:
    sizes = MechanicsSizes.smoke().with_older_releases(Path("a"), Path("b"))
    assert sizes.older_ring.folders == (Path("a"), Path("b"))
    assert replace(sizes, older_ring=OlderRingSizes()) == MechanicsSizes.smoke()


def test_the_probe_that_runs_older_code_imports_no_installed_moshi() -> None:
    probing = Path(older_ring.__file__).parent
    for name in ("ring_probe.py", "older_ring.py"):
        source = (probing / name).read_text()
        assert "\nimport moshi" not in source and "\nfrom moshi" not in source, name
    assert "moshi" in sys.modules
