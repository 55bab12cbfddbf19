"""The recipe moshi-stage1 run once at the smallest scale, as a command, with two of its arms."""

from __future__ import annotations

import pytest
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")

from frame_smoke_checks import check_logged, check_samples, check_table, check_trained_difference

from experiments.harness.study import SCALES
from experiments.recipes import RECIPES
from experiments.spoken.moshi.model import memory_of

RECIPE = "moshi-stage1"
RUN = ("ttt-mlp", "ring")


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_the_upper_quarter_alone_and_the_window_takes_ttts_bytes(scale: str) -> None:
    config = RECIPES[RECIPE].configure(scale=scale, seed=0)
    other = RECIPES["llama-omni-stage1"].configure(scale=scale, seed=0)
    assert set(config.arm_names) == {*other.arm_names, "ring"}
    assert all(arm.upper_layers == tuple(range(config.layers * 3 // 4, config.layers)) for arm in config.arms)
    ttt, window = memory_of(config, config.arm("ttt-mlp")), memory_of(config, config.arm("sliding-window"))
    assert ttt.is_bounded and window.is_bounded
    assert abs(ttt.bytes_fixed / window.bytes_fixed - 1) < 0.01


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    arms = [part for arm in RUN for part in ("--arm", arm)]
    return run_command(tmp_path_factory.mktemp("smoke"), RECIPE, *arms)


def test_the_smoke_run_ends_well_with_a_row_for_every_arm(smoke: FinishedCommand) -> None:
    check_table(smoke, RUN)


@pytest.mark.parametrize("arm", RUN)
def test_an_arm_logs_what_llama_omnis_do_under_the_same_names(smoke: FinishedCommand, arm: str) -> None:
    check_logged(smoke, arm, "moshi")


def test_samples_are_sounds_of_the_same_length_and_text(smoke: FinishedCommand) -> None:
    check_samples(smoke, RECIPE, RUN)


def test_the_trained_difference_is_what_the_last_checkpoint_holds(smoke: FinishedCommand) -> None:
    check_trained_difference(smoke, "ttt-mlp", "model.")


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, RECIPE)


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, RECIPE)
