"""The recipe as a user runs it: what it prints, and what it leaves in the store."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

from experiments.drift.curves import DriftCurves
from experiments.harness import tracking
from experiments.recipes.bf16_drift import bf16_drift

pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")

RECIPE = "bf16-drift"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    return run_command(tmp_path_factory.mktemp("drift"), RECIPE)


def test_the_smoke_run_ends_well_with_a_line_for_every_treatment_of_both_parts(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors
    table = (smoke.run_folder / "table.txt").read_text()
    assert table.strip() in smoke.output
    state, model = table.split("trained model")
    experiment = bf16_drift(scale="smoke", seed=0)
    for arm in experiment.state_arms:
        lines = [line for line in state.splitlines() if line.startswith(f"{arm.inner_model} b{arm.mini_batch_size} ")]
        assert [line.split()[2] for line in lines] == [each.name for each in experiment.treatments_of(arm)]
    for treatment in experiment.model_part.treatments:
        assert any(line.startswith(f"{treatment.name} ") for line in model.splitlines())


def test_tables_figures_and_the_claims_numbers_hang_on_the_parent_run(smoke: FinishedCommand) -> None:
    client = tracking.MlflowClient(smoke.uri)
    experiment = client.get_experiment_by_name(RECIPE)
    assert experiment is not None
    [parent] = client.search_runs([experiment.experiment_id], "tags.role = 'experiment'")
    assert parent.info.status == "FINISHED"
    attached = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert attached >= {"table.txt", "state_settings.csv", "state_curves.csv", "model_by_position.csv"}
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    assert figures >= {"figures/drift.png", "figures/state_by_updates.png", "figures/growth_exponents.png"}
    metrics = parent.data.metrics
    assert all(any(name.startswith(f"{claim}/") for name in metrics) for claim in ("C16", "C17", "C18", "C19"))
    assert metrics["C19/autocast_guarded_narrow_inner_products"] == 0
    assert metrics["C19/autocast_unguarded_narrow_inner_products"] > 0
    assert metrics["C18/fp64_state_error_at_the_end_largest"] == 0
    assert metrics["C18/bf16_state_bytes_per_stream_over_fp32"] == pytest.approx(0.75, abs=0.01)
    arms = client.search_runs([experiment.experiment_id], "tags.role = 'arm'")
    # Two arms have both seeds and two the first alone; each seed's model has six views.
    assert len(arms) == 2 * 2 + 2 + 2 * 6
    assert {run.info.status for run in arms} == {"FINISHED"}


def test_every_curve_in_the_csv_is_the_mean_of_the_arms_own_files(smoke: FinishedCommand) -> None:
    with (smoke.run_folder / "state_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    curves = [_curves(smoke.run_folder / f"state-linear-b04-seed{seed}", "bf16") for seed in (0, 1)]
    # Rows are kinds x step sizes, one stream each: the second is i.i.d. vectors at eight times the default step.
    for index, updates in enumerate(curves[0].updates):
        [row] = [
            row
            for row in rows
            if (row["setting"], row["treatment"], float(row["updates"])) == ("linear_b04_iid_lr8", "bf16", updates)
        ]
        assert float(row["state_error"]) == pytest.approx(sum(each.state_error[1, index] for each in curves) / 2)
        assert int(row["tokens"]) == 4 * updates
    own = smoke.logged("state-linear-b04-seed0").metrics
    logged = own["state_error_at_the_end_iid_lr8/bf16"]
    assert logged == pytest.approx(curves[0].state_error[1, -1])
    assert all(math.isfinite(value) for value in own.values())


def test_each_treatment_of_the_model_is_a_run_of_its_own_under_the_experiment(smoke: FinishedCommand) -> None:
    folder = smoke.run_folder / "model-seed1" / "views" / "autocast_unguarded"
    run = tracking.read_run(smoke.uri, json.loads((folder / "run.json").read_text())["run_id"])
    assert run.tags["arm"] == "autocast_unguarded" and run.status == "FINISHED"
    config = json.loads((folder / "config.json").read_text())
    assert config["arm"]["guards_autocast"] is False and config["model_part"]["ttt"]["guards_autocast"] is True
    assert any(name.startswith("loss_by_position/") for name in run.metrics)


def _curves(folder: Path, treatment: str) -> DriftCurves:
    return DriftCurves.load(folder / "curves" / f"{treatment}.npz")


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, RECIPE)


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, RECIPE)
