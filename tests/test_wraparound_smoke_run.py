"""kv-wraparound as a user runs it: every training and view once, interrupted and taken up again."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

from experiments.harness import tracking
from experiments.harness.outcomes import read_outcome
from experiments.recipes import RECIPES
from experiments.wraparound.claimed import CLAIMED
from experiments.wraparound.configuration import MECHANICS, WraparoundExperiment
from experiments.wraparound.signatures import EXPLANATIONS, SYMPTOMS

RECIPE = "kv-wraparound"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedCommand]:
    yield run_command(tmp_path_factory.mktemp("wraparound"), RECIPE)


def configuration() -> WraparoundExperiment:
    config = RECIPES[RECIPE].configure(scale="smoke", seed=0)
    assert isinstance(config, WraparoundExperiment)
    return config


def test_the_smoke_run_ends_well(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors and "Warning" not in smoke.errors


def test_trainings_views_and_mechanics_are_children_of_one_parent_run(smoke: FinishedCommand) -> None:
    client = tracking.MlflowClient(smoke.uri)
    experiment = client.get_experiment_by_name(RECIPE)
    assert experiment is not None
    [parent] = client.search_runs([experiment.experiment_id], "tags.role = 'experiment'")
    children = client.search_runs([experiment.experiment_id], "tags.role = 'arm'", max_results=500)
    config = configuration()
    expected = sorted(
        [(MECHANICS, "0")]
        + [(row.name, str(seed)) for row in config.trainings for seed in config.seeds_of(row.name)]
        + [(view.name, str(seed)) for view in config.views for seed in config.seeds_of(view.training)]
    )
    assert sorted((run.data.tags["arm"], run.data.tags["seed"]) for run in children) == expected
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    figures = {item.path for item in client.list_artifacts(parent.info.run_id, "figures")}
    drawn = ("wraparound", "windows_swept", "free_running", "mechanics")
    assert figures == {f"figures/{name}.png" for name in drawn}
    assert {"table.txt", "signatures.csv"} <= {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert "signature_inside_local_loss/breaks_at_wrap_median" in parent.data.metrics
    assert parent.data.tags["has_every_arm"] == "true"


def test_every_view_logs_loss_by_position_recall_by_distance_and_bytes(smoke: FinishedCommand) -> None:
    client = tracking.MlflowClient(smoke.uri)
    experiment = client.get_experiment_by_name(RECIPE)
    assert experiment is not None
    for view in configuration().views:
        [run] = client.search_runs([experiment.experiment_id], f"tags.arm = '{view.name}' and tags.seed = '0'")
        sections = {name.rpartition("/")[0] for name in run.data.metrics}
        assert {"memory", "recall", "onset_legal_words_by_position", "onset_recall_by_distance"} <= sections
        assert ("onset_excess_loss_by_position" in sections) == (view.kind != "free_running")
        assert ("recall_by_distance" in sections) == (view.kind != "first_positions_hidden")
        agreement = run.data.metrics.get("agreement/streamed_against_batched_relative_difference")
        assert (agreement is not None) == (view.kind == "streamed")
        assert agreement is None or agreement < 1e-5


def test_the_table_has_a_row_for_every_claim_view_and_explanation(smoke: FinishedCommand) -> None:
    table = (smoke.run_folder / "table.txt").read_text()
    assert table.strip() in smoke.output
    starts = [re.split(r"\s{2,}", line)[0] for line in table.splitlines()]
    assert {row.claim for row in CLAIMED} <= set(starts)
    assert {view.name for view in configuration().views} <= set(starts)
    assert starts.count("sink eviction") == starts.count("rounding of the state") == 2 * len(SYMPTOMS)
    rows = list(csv.DictReader((smoke.run_folder / "signatures.csv").open()))
    assert {row["trained"] for row in rows} == {"inside", "past"}
    assert {row["symptom"] for row in rows} == {symptom.name for symptom in SYMPTOMS}
    assert all(f"{name}_expects" in rows[0] for name in EXPLANATIONS)
    assert {row["seeds"] for row in rows if row["column"] == "breaks_at_wrap"} == {"2"}


def test_a_run_that_died_between_views_goes_on_with_the_views_that_are_missing(smoke: FinishedCommand) -> None:
    folder = smoke.run_folder
    arm = folder / "attention-trained-past-seed1"
    (arm / "outcome.json").unlink()
    shutil.rmtree(arm / "views" / "ring-past")
    kept = json.loads((arm / "views" / "window-past" / "run.json").read_text())["run_id"]
    before = (folder / "table.txt").read_text()
    again = run_command(smoke.folder, RECIPE, "--resume", "--run-dir", str(folder), "--arm", "attention-trained-past")
    assert again.exit_code == 0, again.errors
    assert "attention-trained-past-seed0: finished before" in again.output
    outcome = read_outcome(arm)
    assert outcome is not None and outcome.status == "FINISHED"
    assert json.loads((arm / "views" / "window-past" / "run.json").read_text())["run_id"] == kept

    assert len((folder / "table.txt").read_text().splitlines()) == len(before.splitlines())  # all arms are in it

    def row(table: str) -> list[str]:
        return next(line.split() for line in table.splitlines() if line.startswith("ring-past "))

    assert row((folder / "table.txt").read_text()) == row(before)


def test_an_arm_that_is_none_is_named(tmp_path: Path) -> None:
    ran = run_command(tmp_path, RECIPE, "--arm", "ring")
    assert ran.exit_code == 2
    assert "error: kv-wraparound has no arm 'ring'; it has mechanics, attention-trained-inside" in ran.errors


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, RECIPE)


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, RECIPE)
