"""Every recipe is built at every scale, and run once at the smallest as a user runs it: as a command."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import SMOKE_SECONDS, FinishedCommand, command, environment, run_command
from safetensors.torch import load_file

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.checkpoints import read_checkpoint
from experiments.harness.identity import fingerprint
from experiments.harness.study import SCALES
from experiments.recipes import RECIPES
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.llama_omni.model import memory_of

RECIPE = "llama-omni-stage1"
ARMS = ("ttt-mlp", "ttt-linear", "sliding-window", "full-attention")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("recipe", [RECIPE, "moshi-stage1", "qwen-tts-stage1", "qwen-mimi-stage1"])
def test_every_committed_configuration_builds_every_arm(recipe: str, scale: str) -> None:
    config = RECIPES[recipe].configure(scale=scale, seed=1)
    assert isinstance(config, SpokenExperiment)
    for arm in config.arms:
        kinds = [layer.kind for layer in spoken_backbone(config.backbone).memory_of(config, arm).layers]
        upper = "ttt" if arm.ttt else "window" if arm.upper_window else "attention"
        lower = "window" if arm.lower_window else "attention"
        assert kinds == [upper if layer in arm.upper_layers else lower for layer in range(config.layers)]
    assert len({fingerprint(config.of_arm(arm.name)) for arm in config.arms}) == len(config.arms)


@pytest.mark.parametrize("scale", SCALES)
def test_stage1_compares_arms_that_differ_in_the_upper_quarter_alone(scale: str) -> None:
    config = RECIPES[RECIPE].configure(scale=scale, seed=0)
    assert [arm.name for arm in config.arms] == list(ARMS)
    layers = config.model.num_hidden_layers
    assert all(arm.upper_layers == tuple(range(layers * 3 // 4, layers)) for arm in config.arms)
    ttt, window = memory_of(config, config.arm("ttt-mlp")), memory_of(config, config.arm("sliding-window"))
    assert ttt.is_bounded and window.is_bounded
    assert abs(ttt.bytes_fixed / window.bytes_fixed - 1) < 0.01
    assert config.data.spec.positions == (512 if scale == "smoke" else 8192)


def test_full_scale_mounts_on_layers_24_to_31_of_the_published_model() -> None:
    config = RECIPES[RECIPE].configure(scale="full", seed=0)
    assert config.arm("ttt-mlp").upper_layers == tuple(range(24, 32))
    assert (config.model.hidden_size, config.model.num_hidden_layers, config.model.vocab_size) == (4096, 32, 128256)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    return run_command(tmp_path_factory.mktemp("smoke"), RECIPE)


def test_the_smoke_run_ends_well(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors


def test_the_printed_table_has_a_row_of_logged_numbers_for_every_arm(smoke: FinishedCommand) -> None:
    table = (smoke.run_folder / "table.txt").read_text()
    assert table.strip() in smoke.output
    header, _, *rows = table.splitlines()
    assert [row.split()[0] for row in rows[:4]] == list(ARMS)
    columns = re.split(r"\s{2,}", header.strip())
    for row in rows[:4]:
        cells = dict(zip(columns, re.split(r"\s{2,}", row.strip()), strict=True))
        logged = smoke.logged(cells["arm"]).metrics
        assert cells["loss 256-512"] == f"{logged['loss_by_position/00256_00512']:.3f}"
        assert cells["recall 256-512"] == f"{logged['recall_by_distance/00256_00512']:.2f}"
        assert cells["positions/s"] == f"{logged[names.SPEED]:,.0f}"
        assert cells["status"] == "finished"
        assert float(cells["loss last"]) < float(cells["loss first"])
    assert "make mlflow-ui" in smoke.output


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_one_run_with_tags_parameters_metrics_and_artifacts(smoke: FinishedCommand, arm: str) -> None:
    run = smoke.logged(arm)
    assert run.status == "FINISHED"
    assert {name: run.tags[name] for name in ("arm", "seed", "scale", "adhoc")} == {
        "arm": arm, "seed": "0", "scale": "smoke", "adhoc": "false",
    }  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", run.tags["git_commit"])
    assert run.tags["git_dirty"] in ("true", "false", "unknown")
    config = json.loads((smoke.run_folder / arm / "config.json").read_text())
    assert run.tags["config_fingerprint"] == fingerprint(config)
    wanted = {
        names.VALIDATION_TEXT_LOSS, names.VALIDATION_PERPLEXITY, names.VALIDATION_CTC_LOSS, names.RECALL_ALL,
        names.SPEED, names.PEAK_BYTES, names.STATE_BYTES, names.TRAIN_LOSS, "loss_by_position/00000_00256",
        "loss_by_time_seconds/00000_00015", "facts_by_distance_seconds/00015_00060",
    }  # fmt: skip
    assert wanted <= run.metrics.keys()
    assert any(name.startswith("ttt/layer03/") for name in run.metrics) == arm.startswith("ttt")
    client = tracking.MlflowClient(smoke.uri)
    artifacts = {item.path for item in client.list_artifacts(run.run_id)}
    assert {"config.json", "memory.txt", "sample.txt", "sample_expected.wav"} <= artifacts
    assert ("trained_difference.safetensors" in artifacts) == arm.startswith("ttt")


def test_table_and_figures_hang_on_one_parent_run_whose_children_are_the_arms(smoke: FinishedCommand) -> None:
    client = tracking.MlflowClient(smoke.uri)
    experiment = client.get_experiment_by_name("llama-omni-stage1")
    assert experiment is not None
    [parent] = client.search_runs([experiment.experiment_id], "tags.role = 'experiment'")
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "llama-omni-stage1-smoke-seed0")
    children = client.search_runs([experiment.experiment_id], "tags.role = 'arm'")
    assert sorted(run.data.tags["arm"] for run in children) == sorted(ARMS)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} >= {"config.json", "table.txt"}
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    drawn = ("loss_by_position", "recall_by_distance", "learning_curves")
    assert figures == {f"figures/{name}.png" for name in drawn}


def test_figures_and_samples_are_files_that_can_be_opened(smoke: FinishedCommand) -> None:
    for figure in smoke.run_folder.glob("**/*.png"):
        assert figure.read_bytes().startswith(b"\x89PNG")
        assert str(figure) in smoke.output
    for arm in ARMS:
        text = (smoke.run_folder / arm / "sample.txt").read_text()
        assert "generated text:" in text
        samples, rate = soundfile.read(smoke.run_folder / arm / "sample_expected.wav")
        assert rate == 16_000 and len(samples) > 1000
        says_nothing = "sound: NONE" in text
        assert (smoke.run_folder / arm / "sample.wav").exists() != says_nothing


def test_the_trained_difference_is_what_the_last_checkpoint_holds(smoke: FinishedCommand) -> None:
    saved = load_file(smoke.run_folder / "ttt-mlp" / "trained_difference.safetensors")
    weights = read_checkpoint(smoke.run_folder / "ttt-mlp" / "checkpoints" / "last.ckpt")["weights"]
    assert saved
    for name, tensor in saved.items():
        assert torch.equal(tensor, weights[f"model.llm.model.{name}"])


def test_ctrl_c_leaves_a_killed_run_that_goes_on_under_its_own_id(smoke: FinishedCommand, tmp_path: Path) -> None:
    options = ("--arm", "full-attention", "--run-dir", str(tmp_path / "run"), "--set", "data.curriculum.0.steps=60")
    data = environment() | {"TTT_DATA_CACHE": str(smoke.folder / "data_cache")}
    with subprocess.Popen(
        command(RECIPE, *options), cwd=tmp_path, env=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        checkpoint = tmp_path / "run" / "full-attention" / "checkpoints" / "last.ckpt"
        give_up = time.monotonic() + SMOKE_SECONDS
        while not checkpoint.exists() and running.poll() is None and time.monotonic() < give_up:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=SMOKE_SECONDS)
    assert running.returncode == 130, errors
    resume = [line.strip() for line in output.splitlines() if line.strip().startswith("python -m experiments")]
    assert len(resume) == 1 and resume[0].endswith("--resume")
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    run_id = json.loads((tmp_path / "run" / "full-attention" / "run.json").read_text())["run_id"]
    killed = tracking.read_run(uri, run_id)
    assert killed.status == "KILLED"
    assert killed.tags["adhoc"] == "true"
    done = read_checkpoint(checkpoint)["step"]
    assert 0 < done < 62

    again = subprocess.run(
        [sys.executable, *resume[0].split()[1:]],
        cwd=tmp_path, env=data, capture_output=True, text=True, timeout=SMOKE_SECONDS, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert f"going on after step {done} of 62" in again.stdout
    assert tracking.read_run(uri, run_id).status == "FINISHED"
    steps = [step for step, _ in tracking.read_history(uri, run_id, names.TRAIN_LOSS)]
    assert steps == list(range(1, 63))


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, RECIPE)


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, RECIPE)
