"""The endless-stream and rope-reset recipes, run once at the smallest scale as a user runs them: as commands."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

from experiments.recipes import RECIPES

CHOSEN = ("window-only", "reset-plain", "carried-decay")
"""Arms of endless-stream that differ in how they are trained; the others repeat them with other numbers."""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    arms = [part for name in CHOSEN for part in ("--arm", name)]
    return run_command(tmp_path_factory.mktemp("endless"), "endless-stream", *arms)


@pytest.fixture(scope="module")
def rope(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    return run_command(tmp_path_factory.mktemp("rope"), "rope-reset")


def test_every_view_of_the_chosen_arms_is_a_finished_run_with_a_row_in_the_table(endless: FinishedCommand) -> None:
    assert endless.exit_code == 0, endless.errors
    assert "Traceback" not in endless.errors
    config = RECIPES["endless-stream"].configure(scale="smoke", seed=0)
    table = (endless.run_folder / "table.txt").read_text()
    assert table.strip() in endless.output
    for arm in CHOSEN:
        for view in config.views_of(arm):
            run = endless.logged(f"{arm}/views/{view.name}")
            assert run.status == "FINISHED" and run.tags["arm"] == view.name
            assert {"endless/word_loss_young", "endless/recall_old"} <= run.metrics.keys()
            assert ("stream/inner_norm" in run.metrics) == (view.ttt is not None)
            assert any(line.split()[:2] == [view.name, arm] for line in table.splitlines())


def test_the_csv_holds_every_view_and_the_parent_of_a_part_of_the_arms_is_not_judged(endless: FinishedCommand) -> None:
    with (endless.run_folder / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["view"] for row in rows} >= {"window-only", "reset-plain", "carried-decay-bf16"}
    assert all(name.startswith("system/") for name in endless.parent().metrics)


def test_the_parent_run_of_all_arms_holds_every_estimate_of_the_csv(rope: FinishedCommand) -> None:
    parent = rope.parent()
    with (rope.run_folder / "findings.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert parent.metrics[f"endless_{row['view']}/{row['what']}"] == pytest.approx(float(row["mean"]))


def test_rope_reset_compares_both_kinds_of_positions_under_every_seed(rope: FinishedCommand) -> None:
    assert rope.exit_code == 0, rope.errors
    parent = rope.parent()
    for what in ("recall_against_control_old", "word_loss_against_control_old", "recall_lost_with_age_low"):
        assert f"endless_global/{what}" in parent.metrics
    assert "2 seeds" in rope.output


@pytest.mark.parametrize("recipe", ["endless", "rope"])
def test_figures_are_attached_and_printed(recipe: str, request: pytest.FixtureRequest) -> None:
    ran: FinishedCommand = request.getfixturevalue(recipe)
    wanted = {"recall_by_position.png", "inner_weights.png"} | ({"topic_changes.png"} if recipe == "endless" else set())
    assert {path.name for path in (ran.run_folder / "figures").glob("*.png")} == wanted
    assert all(str(Path("figures") / name) in ran.output for name in wanted)


def test_a_recipe_that_trains_from_scratch_refuses_weights_and_unknown_arms(tmp_path: Path) -> None:
    ran = run_command(tmp_path, "endless-stream", "--arm", "reset-everything")
    assert ran.exit_code == 2 and "no arm 'reset-everything'" in ran.errors


def test_the_page_of_findings_can_draw_rope_reset(rope: FinishedCommand) -> None:
    check_pictures(rope.uri, "rope-reset")


def test_the_page_of_findings_can_draw_endless_stream(endless: FinishedCommand) -> None:
    check_pictures(endless.uri, "endless-stream", not_drawn={"cures"})  # which a part of the arms does not log


def test_it_is_logged_as_every_recipe_is_rope_reset(rope: FinishedCommand) -> None:
    check_logged_alike(rope.uri, "rope-reset")


def test_it_is_logged_as_every_recipe_is_endless_stream(endless: FinishedCommand) -> None:
    check_logged_alike(endless.uri, "endless-stream")
