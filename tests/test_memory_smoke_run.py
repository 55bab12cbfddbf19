"""The recipe as a user runs it, and the mistakes a user makes."""

from __future__ import annotations

import csv
import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from logged_alike import check_logged_alike

from experiments.harness import arm_process, tracking
from experiments.harness.command_line import main
from experiments.harness.identity import fingerprint
from experiments.harness.outcomes import read_outcome
from experiments.harness.stopping import StopRequest
from experiments.harness.study import SCALES, ArmTask
from experiments.memory import arm as memory_arm
from experiments.memory import metrics as names
from experiments.memory.accounting import Subject
from experiments.memory.configuration import Arrangement
from experiments.memory.study import MEMORY
from experiments.memory.subjects import small_subject
from experiments.recipes.memory import SMOKE_ARMS, memory

pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")

ROOT = Path(__file__).resolve().parents[1]
SMOKE_SECONDS = 200


@dataclass(frozen=True)
class FinishedCommand:
    """A command that ran in a folder of its own."""

    folder: Path
    output: str
    errors: str
    exit_code: int

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    folder = tmp_path_factory.mktemp("memory")
    kept = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    ran = subprocess.run(
        [sys.executable, "-m", "experiments", "memory", "--scale", "smoke"], cwd=folder, capture_output=True, text=True,
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, timeout=SMOKE_SECONDS, check=False,
    )  # fmt: skip
    return FinishedCommand(folder, ran.stdout, ran.stderr, ran.returncode)


def test_the_smoke_run_ends_well_with_a_line_an_arm_and_the_claims_it_can_tell(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert smoke.errors == ""
    lines = smoke.output.splitlines()
    for arm in SMOKE_ARMS:
        [line] = [line for line in lines if line.startswith(f"{arm} ")]
        assert line.split()[1] == "finished" and line.endswith("1.000000")
    assert any(line.startswith("C08") and "2 GB" in line and "0.471 GB" in line for line in lines)


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, "memory")


def test_tables_figures_and_numbers_hang_on_the_parent_run(smoke: FinishedCommand) -> None:
    client = tracking.MlflowClient(smoke.uri)
    experiment = client.get_experiment_by_name("memory")
    assert experiment is not None
    [parent] = client.search_runs([experiment.experiment_id], "tags.role = 'experiment'")
    assert parent.info.status == "FINISHED"
    attached = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert attached >= {"table.txt", "memory.csv", "claims.csv", "config.json"}
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "figures")} == {
        "figures/bytes_by_hours_of_speech.png", "figures/bytes_after_one_hour.png",
    }  # fmt: skip
    name = "claimed/C10_llama-omni-ttt-mlp-top-window_bytes_at_048k_positions_over_claimed"
    assert parent.data.metrics[name] == pytest.approx(0.471 / 3, rel=1e-3)
    arms = client.search_runs([experiment.experiment_id], "tags.role = 'arm'")
    assert {run.data.tags["arm"] for run in arms} == set(SMOKE_ARMS)
    assert {run.data.tags["mlflow.parentRunId"] for run in arms} == {parent.info.run_id}
    [table] = smoke.folder.glob("runs/memory/*/*/memory.csv")
    with table.open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    for run in arms:
        row = rows[run.data.tags["arm"]]
        for metric, value in run.data.metrics.items():
            assert float(row[metric]) == value
        assert int(row[names.MEASURED_BYTES]) == int(row[names.PREDICTED_BYTES])


def test_an_arm_whose_prediction_is_falsified_fails_and_still_logs_both_numbers(
    smoke: FinishedCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def falsified(arrangement: Arrangement, mini_batch_size: int) -> Subject:
        subject = small_subject(arrangement, mini_batch_size)
        subject.memory = dataclasses.replace(subject.memory, hidden_state_bytes_per_position=2)
        return subject

    monkeypatch.setattr(memory_arm, "small_subject", falsified)
    # The arm's process is this one: it must neither leave the test's process group nor take over its signals.
    monkeypatch.setattr(arm_process.os, "setpgrp", lambda: None)
    monkeypatch.setattr(StopRequest, "listen", lambda self: self)
    config, arm = memory(scale="cpu", seed=0), "qwen-1.5b-attention"
    experiment = tracking.experiment_id_of(smoke.uri, "memory", tmp_path)
    task = ArmTask(
        study=MEMORY, config=config, arm=arm, folder=tmp_path / "arm", start_folder=None,
        tracking_uri=smoke.uri, experiment_id=experiment, parent_run_id="none",
        data=None, data_sources=(), weights=None, resumes=False, is_adhoc=False,
        threads=torch.get_num_threads(), line=0,
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        arm_process.work(task)
    assert ended.value.code == 1
    outcome = read_outcome(task.folder)
    assert outcome is not None and outcome.run_id is not None
    assert outcome.status == "FAILED"
    assert "1 x 7 positions: predicted 1,806 bytes, held 1,792" in outcome.message
    run = tracking.read_run(smoke.uri, outcome.run_id)
    assert run.status == "FAILED"
    assert run.metrics[names.MEASURED_OVER_PREDICTED] < 1
    assert run.metrics[names.BYTES_PER_POSITION] == 28_672


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_the_same_numbers_and_arms_that_differ(scale: str) -> None:
    config, whole = memory(scale=scale, seed=1), memory(scale="cpu", seed=1)
    assert set(config.arm_names) <= set(whole.arm_names)
    assert config.arms == whole.arms or scale == "smoke"
    assert (config.check, config.positions) == (whole.check, whole.positions)
    assert (config.allocation is not None) == (scale in ("gpu", "full"))
    assert len({fingerprint(config.of_arm(arm)) for arm in config.arm_names}) == len(config.arms)
    own = config.of_arm(config.arm_names[0])
    assert own["backbone"]["name"] == own["arm"]["backbone"] and "arms" not in own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arm", "moshi-attention"], "memory has no arm 'moshi-attention'; it has llama-omni-attention"),
        (["--set", "arms.moshi-ring.window=0"], "arm 'moshi-ring': window must be at least 1"),
        (["--set", "arms.qwen-7b-window.sinks=-1"], "sinks stand in front of a window"),
        (["--set", "backbones.moshi.said_share=2"], "said_share is a part of 1"),
        (["--set", "backbones.moshi.rate=2"], "Backbone has no field 'rate'; it has name"),
        (["--set", "positions=1000"], "whole multiples of 1,024"),
    ],
)
def test_a_users_mistake_is_told_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", *arguments]) == 2
    assert message in capsys.readouterr().err
