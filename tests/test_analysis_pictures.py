"""Pictures of finished runs show the numbers that were logged, with the intervals that follow from them."""

from __future__ import annotations

import json
import math

import numpy
import pandas
import pytest
from analysis_stores import Checkout

from analysis.artifacts import artifact_names, read_artifact
from analysis.pictures import by_bucket, drift, inner_weights, memory, streams, wraparound
from analysis.pictures.drawing import Picture
from analysis.pictures.finished import FinishedRun, NothingToShowError, chosen, newest_finished, over_seeds
from analysis.pictures.gallery import Gallery, Notice
from analysis.store import open_store

T_OF_THREE = 4.302652729749464
"""The 97.5 % point of Student's t with two degrees of freedom."""
CURVES = """view,seed,curve,first_position,end_position,value
plain,0,recall,0,16,0.5
plain,1,recall,0,16,0.7
plain,0,recall,16,64,0.3
plain,1,recall,16,64,
decay,0,recall,0,16,0.6
plain,0,inner_norm,8,8,2.0
"""
STREAM_CONFIG = {"stream": {"values": 16}, "training": {"stages": [{"positions": 8}, {"positions": 32}]}}


def finished(checkout: Checkout, recipe: str, run_id: str = "", **files: str) -> FinishedRun:
    """The newest run of a recipe, with files (`name__csv` for `name.csv`) attached to its own run."""
    for name, text in files.items():
        checkout.client.log_text(run_id, text, name.replace("__", "."))
    return newest_finished(open_store(checkout.uri), recipe)


@pytest.fixture
def stored(checkout: Checkout) -> Checkout:
    """A checkout whose experiments keep their files beside its store, not in the folder that the tests run in."""
    for recipe in ("recall", "streams", "memory", "drift"):
        checkout.client.create_experiment(recipe, artifact_location=(checkout.root / "files" / recipe).as_uri())
    return checkout


def lines(picture: Picture) -> dict[str, list[tuple[float, float]]]:
    """{label: points} of a picture's lines."""
    [axes] = picture.figure.axes
    return {str(line.get_label()): [tuple(point) for point in line.get_xydata().tolist()] for line in axes.lines}


def test_the_mean_over_seeds_has_students_interval_and_leaves_out_what_is_no_number() -> None:
    table = pandas.DataFrame({"arm": ["b", "b", "b", "b", "a"], "value": [1.0, 2.0, 6.0, math.nan, 5.0]})
    found = over_seeds(table, ["arm"])
    assert list(found["arm"]) == ["b", "a"]
    half = T_OF_THREE * numpy.std([1.0, 2.0, 6.0], ddof=1) / math.sqrt(3)
    assert found.loc[0, ["value", "low", "high", "seeds"]].tolist() == pytest.approx([3.0, 3.0 - half, 3.0 + half, 3])
    assert found.loc[1, "value"] == 5.0 and math.isnan(found.loc[1, "low"])


def test_the_largest_scale_speaks_then_unchanged_configurations_then_the_newest(stored: Checkout) -> None:
    stored.run("recall", {}, {("ttt", 0): {}}, scale="smoke")
    older = stored.run("recall", {}, {("ttt", 0): {}}, scale="cpu")
    newer = stored.run("recall", {}, {("ttt", 0): {}}, scale="cpu")
    by_hand = stored.run("recall", {}, {("ttt", 0): {}}, scale="cpu", adhoc="true")
    stored.run("recall", {}, {("ttt", 0): {}}, scale="gpu", status="FAILED")
    found = finished(stored, "recall")
    assert found.run.parent.run_id == newer and newer not in (older, by_hand)
    assert found.caption.startswith("recall, scale cpu, seeds 0; run ")
    smoke = newest_finished(open_store(stored.uri), "recall", "smoke")
    assert "its numbers mean nothing" in smoke.caption


def test_a_recipe_without_a_finished_run_names_the_command_that_makes_one(stored: Checkout) -> None:
    store = open_store(stored.uri)
    with pytest.raises(NothingToShowError, match=r"no finished run of recall in sqlite.*: make exp-recall SCALE=smoke"):
        newest_finished(store, "recall")
    with pytest.raises(NothingToShowError, match=r"at scale gpu .* make exp-recall SCALE=gpu"):
        newest_finished(store, "recall", "gpu")
    with pytest.raises(ValueError, match="'big'; it is one of smoke, cpu"):
        newest_finished(store, "recall", "big")
    notice = Gallery(store=store, scale=None).show("recall", by_bucket.loss_by_position)
    assert isinstance(notice, Notice) and "make exp-recall" in notice._repr_html_()


def test_recall_by_distance_draws_the_mean_of_the_seeds_in_the_middle_of_each_bucket(stored: Checkout) -> None:
    def logged(near: float, far: float) -> dict[str, float]:
        return {
            "recall_by_distance/00000_00016": near, "recall_by_distance/00016_00064": far, "recall/chance": 0.125,
            "recall_by_distance_seconds/00000_00015": 1.0,
        }  # fmt: skip

    arms = {("ttt", 0): logged(0.9, 0.5), ("ttt", 1): logged(0.7, 0.3), ("window", 0): logged(0.8, 0.1)}
    stored.run("recall", {}, arms)
    drawn = lines(by_bucket.recall_by_distance(finished(stored, "recall")))
    assert numpy.allclose(drawn["ttt"], [(4.0, 0.8), (32.0, 0.4)])
    assert numpy.allclose(drawn["window"], [(4.0, 0.8), (32.0, 0.1)])
    assert [y for _, y in drawn["guessing"]] == [0.125, 0.125]
    only = lines(by_bucket.recall_by_distance(finished(stored, "recall"), ["window"]))
    assert set(only) == {"window", "guessing"}
    with pytest.raises(NothingToShowError, match="no arm of mamba is there; there are ttt, window"):
        by_bucket.recall_by_distance(finished(stored, "recall"), ["mamba"])


def test_an_arm_that_did_not_finish_is_not_drawn(stored: Checkout) -> None:
    stored.run("recall", {}, {("ttt", 0): {"speed/positions_per_second": 5.0}})
    found = finished(stored, "recall")
    assert by_bucket.arms_table(found, ["speed/positions_per_second", "absent"]).loc["ttt"].tolist()[0] == 5.0
    stored.client.set_terminated(found.arms[0].run_id, "KILLED")
    with pytest.raises(NothingToShowError, match=r"no finished arm of recall.* has logged speed"):
        by_bucket.one_number(finished(stored, "recall"), "speed/positions_per_second", "", "")


def test_a_curve_along_a_stream_marks_guessing_and_the_trained_length(stored: Checkout) -> None:
    run_id = stored.run("streams", {}, {("plain", 0): {}})
    found = finished(stored, "streams", run_id, curves__csv=CURVES, config__json=json.dumps(STREAM_CONFIG))
    assert streams.views(found) == ["plain", "decay"]
    drawn = lines(streams.along_stream(found, "recall"))
    assert numpy.allclose(drawn["plain"], [(4.0, 0.6), (32.0, 0.3)])
    assert [y for _, y in drawn["guessing"]] == [1 / 16, 1 / 16]
    assert [x for x, _ in drawn["trained length"]] == [32, 32]
    assert set(lines(streams.along_stream(found, "recall", ["decay"]))) == {"decay", "guessing", "trained length"}
    with pytest.raises(NothingToShowError, match="no word_loss_nats; it has recall, inner_norm"):
        streams.along_stream(found, "word_loss_nats")
    with pytest.raises(ValueError, match="curve is 'loss'; it is one of word_loss_nats"):
        streams.along_stream(found, "loss")


def test_differences_of_the_experiments_own_run_are_drawn_with_their_ends(stored: Checkout) -> None:
    metric = "gibberish_bf16/word_loss_against_sound"
    run_id = stored.run("streams", {metric: 0.2, f"{metric}_low": 0.1, f"{metric}_high": 0.4}, {("a", 0): {}})
    curves = CURVES.replace("plain", "bf16").replace("decay", "sound")
    [axes] = streams.suspects(finished(stored, "streams", run_id, curves__csv=curves)).figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bf16"]
    [ends] = axes.collections[0].get_segments()
    assert ends[:, 0].tolist() == pytest.approx([0.1, 0.4])


def test_rounding_is_drawn_for_one_setting_and_the_claimed_update_where_it_was_reached(stored: Checkout) -> None:
    head = "setting,treatment,updates,state_error,state_error_low,state_error_high\n"
    rows = "s1,bf16,1,0.1,0.05,0.15\ns1,bf16,4000,0.4,0.3,0.5\ns1,fp64,1,0,0,0\ns2,bf16,1,0.9,,\n"
    found = finished(stored, "drift", stored.run("drift"), state_curves__csv=head + rows)
    drawn = lines(drift.drift_by_updates(found, setting="s1"))
    assert drawn["bf16"] == [(1.0, 0.1), (4000.0, 0.4)] and "fp64" not in drawn
    assert [x for x, _ in drawn["update 3,750"]] == [3750, 3750]
    with pytest.raises(
        NothingToShowError, match=r"state_curves.csv of drift.* has no inner_loss_gap: other code wrote it"
    ):
        drift.drift_by_updates(found, "inner_loss_gap")
    with pytest.raises(ValueError, match="setting is 's3'; this run has s1, s2"):
        drift.drift_by_updates(found, setting="s3")


def test_inner_weights_are_read_from_the_monitors_metrics(stored: Checkout) -> None:
    stored.run("recall", {}, {("ttt", 0): {"ttt/layer03/W1_max": 12.0}, ("window", 0): {}})
    found = finished(stored, "recall")
    assert inner_weights.monitored_layers(found) == ["layer03"]
    assert lines(inner_weights.inner_weights(found, "W1_max"))["ttt"] == [(0.0, 12.0)]
    with pytest.raises(ValueError, match="layer is 'layer01'; the monitor looked at layer03"):
        inner_weights.inner_weights(found, layer="layer01")


def test_memory_bars_tell_bounded_arrangements_from_growing_ones(stored: Checkout) -> None:
    table = (
        "arm,backbone,layout,memory/bytes_after_1_hour,memory/is_bounded\n"
        "m-ring,moshi,ring,1e9,1.0\nm-full,moshi,full,4e9,0.0\nq-full,qwen,full,2e9,0.0\n"
    )
    found = finished(stored, "memory", stored.run("memory"), memory__csv=table)
    assert memory.backbones_of(found) == ["moshi", "qwen"]
    [axes] = memory.memory_bars(found, "moshi").figure.axes
    ends = {bar.get_y() + bar.get_height() / 2: bar.get_x() + bar.get_width() for bar in axes.patches}
    assert ends == pytest.approx({0.0: 1.0, 1.0: 4.0})
    assert axes.get_legend_handles_labels()[1] == ["never grows further", "grows with every minute"]
    with pytest.raises(NothingToShowError, match="no backbone vita; it has moshi, qwen"):
        memory.memory_bars(found, "vita")


def test_signatures_are_shares_of_seeds_with_exact_intervals(stored: Checkout) -> None:
    table = (
        "trained,symptom,column,seeds_above,seeds,share_low_95,share_high_95\n"
        "inside,known text,breaks_at_wrap,5,6,0.36,0.996\npast,known text,breaks_at_wrap,0,6,0.0,0.46\n"
    )
    found = finished(stored, "recall", stored.run("recall"), signatures__csv=table)
    [axes] = wraparound.signatures(found, "inside").figure.axes
    assert axes.lines[0].get_xdata()[0] == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match="length is 'beyond'; it is one of inside, past"):
        wraparound.signatures(found, "beyond")


def test_files_are_listed_with_their_folders_and_a_missing_one_is_named(stored: Checkout) -> None:
    run_id = stored.run("recall")
    stored.client.log_text(run_id, "one", "figures/one.txt")
    stored.client.log_text(run_id, "two", "two.txt")
    store = open_store(stored.uri)
    assert artifact_names(store, run_id) == ["figures/one.txt", "two.txt"]
    assert read_artifact(store, run_id, "figures/one.txt") == b"one"
    with pytest.raises(ValueError, match=rf"run {run_id} in sqlite.* has no file three.txt"):
        read_artifact(store, run_id, "three.txt")


def test_the_same_run_gives_the_same_bytes(stored: Checkout) -> None:
    stored.run("recall", {}, {("ttt", 0): {"loss_by_position/00000_00016": 1.0}})
    first, second = (by_bucket.loss_by_position(finished(stored, "recall")).png() for _ in range(2))
    assert first.startswith(b"\x89PNG") and first == second


def test_names_are_chosen_in_the_order_in_which_they_are_given() -> None:
    table = pandas.DataFrame({"arm": ["a", "b", "a", "c"], "value": [1, 2, 3, 4]})
    assert chosen(table, "arm", ["c", "a", "z"])["value"].tolist() == [4, 1, 3]
