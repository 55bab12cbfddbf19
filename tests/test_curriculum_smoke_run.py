"""Stages 1 and 2 run as a user runs them, killed in the middle of stage 2 by the system, and gone on with."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import SMOKE_SECONDS, FinishedCommand, command, environment

from experiments.curriculum.start import begin_stage
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.checkpoints import read_checkpoint
from experiments.harness.study import RunOptions
from experiments.recipes import RECIPES

RECIPE, LATER = "llama-omni-curriculum", "ttt-mlp-stage2"
CHECKPOINT_EVERY_STEPS = (
    RECIPES[RECIPE].configure(scale="smoke", seed=0).links[2].experiment.evaluation.checkpoint_every_steps
)


def kill_without_warning(running: subprocess.Popen) -> None:
    """SIGKILL for the command and every process that it has started: what a crash or the system does."""
    for process in [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]:
        process.kill()


@dataclasses.dataclass(frozen=True)
class Killed:
    """What a killed run had saved, and the command that went on with it."""

    step_saved: int
    resumed: FinishedCommand


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("curriculum")
    arguments = command(RECIPE, "--arm", LATER)
    log = (folder / "killed.txt").open("w")
    with subprocess.Popen(arguments, cwd=folder, env=environment(), stdout=log, stderr=log) as running:
        give_up = time.monotonic() + SMOKE_SECONDS
        saved: list[Path] = []
        while not saved and running.poll() is None and time.monotonic() < give_up:
            saved = list(folder.glob(f"runs/*/*/*/{LATER}/checkpoints/last.ckpt"))
            time.sleep(0.02)
        assert saved and running.poll() is None, (folder / "killed.txt").read_text()
        kill_without_warning(running)
        running.wait()
    step = read_checkpoint(saved[0])["step"]
    ran = subprocess.run(
        [*arguments, "--resume"], cwd=folder, env=environment(), capture_output=True, text=True, timeout=SMOKE_SECONDS,
        check=False,
    )  # fmt: skip
    resumed = FinishedCommand(folder=folder, output=ran.stdout, errors=ran.stderr, exit_code=ran.returncode)
    return Killed(step_saved=step, resumed=resumed)


def test_a_run_that_is_killed_loses_no_step_that_was_saved(killed: Killed) -> None:
    smoke = killed.resumed
    assert smoke.exit_code == 0, smoke.errors
    assert "ttt-mlp-stage1: finished before" in smoke.output
    steps = RECIPES[RECIPE].configure(scale="smoke", seed=0).link(LATER).experiment.data.steps
    assert CHECKPOINT_EVERY_STEPS <= killed.step_saved <= steps
    assert f"{LATER}: going on after step {killed.step_saved} of {steps}" in smoke.output
    run = smoke.logged(LATER)
    assert run.status == "FINISHED"
    logged = [step for step, _ in tracking.read_history(smoke.uri, run.run_id, names.TRAIN_LOSS)]
    assert logged == list(range(1, steps + 1))


def test_stage_2_begins_where_stage_1_ended(killed: Killed) -> None:
    folder = killed.resumed.run_folder
    ended = read_checkpoint(folder / "ttt-mlp-stage1" / "checkpoints" / "last.ckpt")["weights"]
    now = read_checkpoint(folder / LATER / "checkpoints" / "last.ckpt")["weights"]
    assert ended.keys() == now.keys()
    # Two small steps: far nearer to where they began than two models drawn by different seeds are.
    distance = sum(float((now[name] - ended[name]).square().sum()) for name in now)
    size = sum(float(tensor.square().sum()) for tensor in ended.values())
    assert 0 < distance < 0.05 * size


def test_the_table_has_a_row_for_each_stage_on_the_same_conversations(killed: Killed) -> None:
    table = (killed.resumed.run_folder / "table.txt").read_text()
    assert table.strip() in killed.resumed.output
    header, _, first, second = table.splitlines()[:4]
    columns = re.split(r"\s{2,}", header.strip())
    cells = [dict(zip(columns, re.split(r"\s{2,}", line.strip()), strict=True)) for line in (first, second)]
    assert [row["stage"] for row in cells] == ["ttt-mlp-stage1", LATER]
    history = tracking.read_history(
        killed.resumed.uri, killed.resumed.logged(LATER).run_id, "loss_by_position/01024_02048"
    )
    assert [row["loss 1k-2k"] for row in cells] == [f"{value:.3f}" for _, value in history]
    assert cells[1]["minutes"] != "-" and cells[0]["status"] == "finished"
    assert (killed.resumed.run_folder / "stages.csv").read_text().count("\n") == 3
    assert {path.name for path in (killed.resumed.run_folder / "figures").glob("*.png")} >= {"loss_by_position.png"}


def test_it_is_logged_as_every_recipe_is(killed: Killed) -> None:
    check_logged_alike(killed.resumed.uri, RECIPE)


def test_the_recipe_of_the_next_stage_finds_it(killed: Killed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = killed.resumed.folder / "runs"
    options = RunOptions(
        runs_dir=runs, data_dir=runs, run_dir=None, resumes=False, arms=(), weights=None, skips_bad_audio=False,
        is_adhoc=False, command="",
    )  # fmt: skip
    third = RECIPES["llama-omni-stage3"].configure(scale="smoke", seed=0)
    config, found = begin_stage(third, options)
    assert config.start_run_id == killed.resumed.logged(LATER).run_id
    assert found.start_folder == killed.resumed.run_folder / LATER
    arm = third.arms[0]
    other = dataclasses.replace(third, arms=(dataclasses.replace(arm, lower_window=99),))
    with pytest.raises(ValueError, match=r"arm.lower_window \(64 -> 99\)"):
        begin_stage(other, options)
    with pytest.raises(ValueError, match="starts from stage 3, and there is no finished run"):
        begin_stage(RECIPES["llama-omni-stage4"].configure(scale="smoke", seed=0), options)
    assert json.loads((found.start_folder / "run.json").read_text())["run_id"] == config.start_run_id


def test_the_page_of_findings_can_draw_it(killed: Killed) -> None:
    check_pictures(killed.resumed.uri, RECIPE)
