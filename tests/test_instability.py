"""The instability experiment: planted losses and alarms, its configurations, and a smoke run with a diverging arm."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.identity import fingerprint
from experiments.harness.study import SCALES
from experiments.instability.arm import (
    ALARM_STEP,
    DIVERGED,
    INNER_LOSS_FALLS,
    LARGEST_W1,
    STEP_ABOVE,
    alarm_steps,
    watched,
)
from experiments.instability.configuration import InstabilityExperiment
from experiments.instability.judging import first_alarm, lost_step
from experiments.instability.report import sentences
from experiments.instability.results import JudgedRun, arm_findings, predictor
from experiments.recipes import RECIPES
from ttt_core import TTTMonitor
from ttt_core.monitor import Alarm


def smoke() -> InstabilityExperiment:
    config = RECIPES["instability"].configure(scale="smoke", seed=4)
    assert isinstance(config, InstabilityExperiment)
    return config


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_the_ladder_the_defaults_and_a_cure(scale: str) -> None:
    config = RECIPES["instability"].configure(scale=scale, seed=1)
    assert isinstance(config, InstabilityExperiment)
    assert len({fingerprint(config.of_arm(name)) for name in config.arm_names}) == len(config.arm_names)
    rates = {(arm.ttt.inner_model, arm.ttt.resolved_base_lr) for arm in config.arms}
    assert {("linear", 0.1), ("mlp", 0.1)} <= rates
    if scale != "smoke":
        assert ("linear", 1.0) in rates
    for arm in config.arms:
        if arm.cures is not None:
            ill = config.arm_named(arm.cures)
            assert arm.ttt == dataclasses.replace(ill.ttt, base_lr=0.1)
            assert arm.outer_rate_factor == ill.outer_rate_factor
    with pytest.raises(ValueError, match="no arm 'nobody' to compare with"):
        dataclasses.replace(config, reference="nobody")
    with pytest.raises(ValueError, match="lost_nats must be above 0"):
        dataclasses.replace(config, lost_nats=0.0)


REFERENCE = {step: 2.0 - 0.01 * step for step in range(1, 101)}


def test_a_planted_loss_is_lost_at_the_planted_step() -> None:
    planted = {step: loss + (0.0 if step < 41 else 1.0) for step, loss in REFERENCE.items()}
    assert lost_step(planted, REFERENCE, 1, 0.3) == 41
    assert lost_step(planted, REFERENCE, 10, 0.3) == 44, "four of ten averaged steps are needed for 0.4 > 0.3"
    assert lost_step(REFERENCE, REFERENCE, 10, 0.3) == math.inf


def test_a_loss_that_comes_back_is_not_lost_and_one_that_ends_early_is() -> None:
    back = {step: loss + (1.0 if 30 < step < 60 else 0.0) for step, loss in REFERENCE.items()}
    assert lost_step(back, REFERENCE, 5, 0.3) == math.inf
    ended = {step: loss for step, loss in REFERENCE.items() if step <= 70}
    assert lost_step(ended, REFERENCE, 5, 0.3) == 71
    assert lost_step({}, REFERENCE, 5, 0.3) == 1
    nan = ended | {step: math.nan for step in range(71, 101)}
    assert lost_step(nan, REFERENCE, 5, 0.3) == 71


def test_the_first_alarm_is_the_earliest_of_all_layers() -> None:
    alarms = [Alarm(9, "1", "large_weights", ""), Alarm(7, "2", "large_weights", ""), Alarm(8, "1", "not_finite", "")]
    assert alarm_steps(alarms) == {"large_weights": 7.0, "not_finite": 8.0}
    assert first_alarm(alarm_steps(alarms)) == ("large_weights", 7.0)
    assert first_alarm({}) is None


def test_what_a_monitor_saw_is_told_from_its_rows(tmp_path: Path) -> None:
    monitor = TTTMonitor(tmp_path)
    for step in range(1, 11):
        weight = torch.full((1, 1, 4, 4), 12.0 if step >= 6 else 1.0)
        monitor.log_layer_state(1, weight, weight[:, :, :1], step=step, inner_loss=1.0 if step <= 5 else 4.0)
    found = watched(monitor)
    assert found[LARGEST_W1] == 12.0 and found[STEP_ABOVE] == 6.0
    assert found[INNER_LOSS_FALLS] == pytest.approx(4.0)
    assert found[f"{ALARM_STEP}large_weights"] == 6.0 and found[f"{ALARM_STEP}inner_loss_not_falling"] == 10.0


def planted_run(name: str, seed: int, lost_at: float, metrics: dict[str, float]) -> JudgedRun:
    return JudgedRun(arm=smoke().arm_named(name), seed=seed, losses={}, lost_at=lost_at, metrics=metrics)


def test_findings_of_planted_runs() -> None:
    healthy = {LARGEST_W1: 17.0, INNER_LOSS_FALLS: 0.8, STEP_ABOVE: 5.0, DIVERGED: 0.0, names.RECALL_ALL: 0.6}
    ill = {LARGEST_W1: 50.0, STEP_ABOVE: 1.0, DIVERGED: 1.0, f"{ALARM_STEP}large_weights": 1.0, names.RECALL_ALL: 0.9}
    calm = {LARGEST_W1: 2.0, INNER_LOSS_FALLS: 1.2, DIVERGED: 0.0, names.RECALL_ALL: 0.1}
    runs = [planted_run("linear-8", seed, math.inf, healthy) for seed in (0, 1)]
    runs += [planted_run("linear-8-outer-x100", seed, 21.0, ill) for seed in (0, 1)]
    runs += [planted_run("linear-0.1-outer-x100", seed, at, calm) for seed, at in ((0, math.inf), (1, 30.0))]
    runs += [planted_run("linear-overflows", 0, 1.0, {DIVERGED: 1.0})]
    of_ill = arm_findings(smoke(), runs, "linear-8-outer-x100")
    assert of_ill["lost_share"].mean == 1.0 and of_ill["lead_of_first_alarm_steps"].mean == 20.0
    assert "recall" not in of_ill, "the last validation of a diverged run says nothing about its end"
    cure = arm_findings(smoke(), runs, "linear-0.1-outer-x100")
    assert cure["cured_share"].mean == 0.5 and cure["recall_against_reference"].mean == pytest.approx(-0.5)
    found = predictor(runs)
    assert found["instability/share_of_healthy_runs_that_pass_10"] == pytest.approx(2 / 3)
    assert found["instability/share_of_lost_runs_that_pass_10"] == pytest.approx(2 / 3)
    assert found["instability/unwatched_runs"] == 1
    assert found["instability/share_of_healthy_runs_with_alarm_large_weights"] == 0.0
    assert found["instability/share_of_lost_runs_with_alarm_large_weights"] == pytest.approx(2 / 3)
    assert found["instability/share_of_healthy_runs_whose_inner_loss_falls"] == pytest.approx(2 / 3)
    assert any("of 3 lost runs, 67% that pass 10" in line for line in sentences(found))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    return run_command(tmp_path_factory.mktemp("instability"), "instability")


def test_an_arm_that_diverges_on_purpose_is_a_finished_run_with_its_step(ran: FinishedCommand) -> None:
    assert ran.exit_code == 0, ran.errors
    run = ran.logged("linear-overflows")
    assert run.status == "FINISHED" and run.metrics[DIVERGED] == 1.0 and "diverged" in run.tags
    assert run.metrics["instability/diverged_step"] < 12
    assert ran.logged("linear-8").metrics[DIVERGED] == 0.0
    assert "Traceback" not in ran.errors


def test_the_table_the_csv_and_the_parent_run_tell_of_every_arm(ran: FinishedCommand) -> None:
    table = (ran.run_folder / "table.txt").read_text()
    assert table.strip() in ran.output
    with (ran.run_folder / "runs.csv").open(newline="") as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows.keys() == set(smoke().arm_names)
    assert rows["linear-overflows"]["lost_at_step"] == "1.0" and rows["linear-8"]["lost_at_step"] == "inf"
    parent = tracking.read_run(ran.uri, json.loads((ran.run_folder / "run.json").read_text())["run_id"])
    assert parent.metrics["instability_linear-overflows/lost_share"] == 1.0
    assert parent.metrics["instability_linear-0.1/cured_share"] == 1.0
    assert (ran.run_folder / "figures" / "instability.png").is_file()


def test_the_page_of_findings_can_draw_it(ran: FinishedCommand) -> None:
    check_pictures(ran.uri, "instability")


def test_it_is_logged_as_every_recipe_is(ran: FinishedCommand) -> None:
    check_logged_alike(ran.uri, "instability")
