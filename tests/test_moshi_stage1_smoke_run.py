"""The recipe moshi-stage1 run once at the smallest scale, as a command, with two of its arms."""

from __future__ import annotations

import json

import pytest
import soundfile
import torch
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command
from safetensors.torch import load_file

pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.checkpoints import read_checkpoint
from experiments.harness.study import SCALES
from experiments.recipes import RECIPES
from experiments.spoken import metric_names as spoken_names
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
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors
    table = (smoke.run_folder / "table.txt").read_text()
    assert table.strip() in smoke.output
    assert {row.split()[0] for row in table.splitlines()[2:4]} == set(RUN)


@pytest.mark.parametrize("arm", RUN)
def test_an_arm_logs_what_llama_omnis_do_under_the_same_names(smoke: FinishedCommand, arm: str) -> None:
    run = smoke.logged(arm)
    assert run.status == "FINISHED"
    same = {
        names.VALIDATION_TEXT_LOSS, names.VALIDATION_PERPLEXITY, names.RECALL_ALL, names.RECALL_CHANCE, names.SPEED,
        names.PEAK_BYTES, names.STATE_BYTES, names.TRAIN_TEXT_LOSS, names.TRAINED_PARAMETERS,
        "loss_by_position/00000_00512", "loss_by_time_seconds/00000_00015", "facts_by_distance_seconds/00015_00060",
    }  # fmt: skip
    own = {spoken_names.VALIDATION_AUDIO_LOSS, spoken_names.VALIDATION_TIMING_LOSS, spoken_names.TRAIN_AUDIO_LOSS}
    assert same | own <= run.metrics.keys()
    assert any(name.startswith("ttt/layer03/") for name in run.metrics) == (arm == "ttt-mlp")
    assert json.loads((smoke.run_folder / arm / "config.json").read_text())["backbone"] == "moshi"
    artifacts = {item.path for item in tracking.MlflowClient(smoke.uri).list_artifacts(run.run_id)}
    assert {"config.json", "memory.txt", "sample.txt", "sample.wav", "sample_expected.wav"} <= artifacts
    assert ("trained_difference.safetensors" in artifacts) == (arm == "ttt-mlp")


def test_samples_are_sounds_of_the_same_length_and_text(smoke: FinishedCommand) -> None:
    for arm in RUN:
        lengths = []
        for name in ("sample", "sample_expected"):
            samples, rate = soundfile.read(smoke.run_folder / arm / f"{name}.wav")
            lengths.append(len(samples) / rate)
        frames = RECIPES[RECIPE].configure(scale="smoke", seed=0).evaluation.sample_new_positions
        assert lengths == [pytest.approx(0.08 * frames)] * 2
        assert "generated text:" in (smoke.run_folder / arm / "sample.txt").read_text()


def test_the_trained_difference_is_what_the_last_checkpoint_holds(smoke: FinishedCommand) -> None:
    saved = load_file(smoke.run_folder / "ttt-mlp" / "trained_difference.safetensors")
    weights = read_checkpoint(smoke.run_folder / "ttt-mlp" / "checkpoints" / "last.ckpt")["weights"]
    assert saved
    assert all(torch.equal(tensor, weights[f"model.{name}"]) for name, tensor in saved.items())


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, RECIPE)


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, RECIPE)
