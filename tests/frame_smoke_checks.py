"""What a smoke run of a backbone that reads frames must leave behind, whichever backbone it is."""

from __future__ import annotations

import json

import pytest
import soundfile
import torch
from recipe_commands import FinishedCommand
from safetensors.torch import load_file

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.checkpoints import read_checkpoint
from experiments.recipes import RECIPES
from experiments.spoken import metric_names as spoken_names


def check_table(smoke: FinishedCommand, arms: tuple[str, ...]) -> None:
    """It ended well, with a row for every arm."""
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors
    table = (smoke.run_folder / "table.txt").read_text()
    assert table.strip() in smoke.output
    assert {row.split()[0] for row in table.splitlines()[2 : 2 + len(arms)]} == set(arms)


def check_logged(smoke: FinishedCommand, arm: str, backbone: str) -> None:
    """The arm logged what Llama-Omni's do, under the same names."""
    run, has_ttt = smoke.logged(arm), arm.startswith("ttt-")
    assert run.status == "FINISHED"
    same = {
        names.VALIDATION_TEXT_LOSS, names.VALIDATION_PERPLEXITY, names.RECALL_ALL, names.RECALL_CHANCE, names.SPEED,
        names.PEAK_BYTES, names.STATE_BYTES, names.TRAIN_TEXT_LOSS, names.TRAINED_PARAMETERS,
        "loss_by_position/00000_00512", "loss_by_time_seconds/00000_00015", "facts_by_distance_seconds/00015_00060",
    }  # fmt: skip
    own = {spoken_names.VALIDATION_AUDIO_LOSS, spoken_names.VALIDATION_TIMING_LOSS, spoken_names.TRAIN_AUDIO_LOSS}
    assert same | own <= run.metrics.keys()
    assert any(name.startswith("ttt/layer03/") for name in run.metrics) == has_ttt
    assert json.loads((smoke.run_folder / arm / "config.json").read_text())["backbone"] == backbone
    artifacts = {item.path for item in tracking.MlflowClient(smoke.uri).list_artifacts(run.run_id)}
    assert {"config.json", "memory.txt", "sample.txt", "sample.wav", "sample_expected.wav"} <= artifacts
    assert ("trained_difference.safetensors" in artifacts) == has_ttt


def check_samples(smoke: FinishedCommand, recipe: str, arms: tuple[str, ...]) -> None:
    """Samples are sounds of the same length, and text."""
    for arm in arms:
        lengths = []
        for name in ("sample", "sample_expected"):
            samples, rate = soundfile.read(smoke.run_folder / arm / f"{name}.wav")
            lengths.append(len(samples) / rate)
        frames = RECIPES[recipe].configure(scale="smoke", seed=0).evaluation.sample_new_positions
        assert lengths == [pytest.approx(0.08 * frames)] * 2
        assert "generated text:" in (smoke.run_folder / arm / "sample.txt").read_text()


def check_trained_difference(smoke: FinishedCommand, arm: str, prefix: str) -> None:
    """It is what the last checkpoint holds. prefix: of its names there."""
    saved = load_file(smoke.run_folder / arm / "trained_difference.safetensors")
    weights = read_checkpoint(smoke.run_folder / arm / "checkpoints" / "last.ckpt")["weights"]
    assert saved
    assert all(torch.equal(tensor, weights[f"{prefix}{name}"]) for name, tensor in saved.items())
