"""The gibberish recipe, run once at the smallest scale as a user runs it: as a command."""

from __future__ import annotations

import csv

import pytest
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

from experiments.recipes import RECIPES


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    return run_command(tmp_path_factory.mktemp("gibberish"), "gibberish")


def test_every_view_is_a_finished_run_with_a_row_in_the_table(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors
    table = (smoke.run_folder / "table.txt").read_text()
    assert table.strip() in smoke.output
    for view in RECIPES["gibberish"].configure(scale="smoke", seed=0).views:
        run = smoke.logged(f"{view.training}/views/{view.name}")
        assert run.status == "FINISHED" and run.tags["arm"] == view.name
        assert "stream/inner_norm" in run.metrics
        assert any(line.startswith(f"{view.name} ") for line in table.splitlines())


def test_the_parent_run_holds_what_the_ledger_reads_and_the_figure(smoke: FinishedCommand) -> None:
    parent = smoke.parent()
    for suspect in ("wrap", "bf16", "age", "leak"):
        for measured in ("word_loss_against_sound", "recall_against_sound", "word_loss_in_company"):
            assert f"gibberish_{suspect}/{measured}" in parent.metrics
    assert (smoke.run_folder / "figures" / "gibberish.png").stat().st_size > 10_000
    with (smoke.run_folder / "curves.csv").open(newline="") as file:
        assert {row["curve"] for row in csv.DictReader(file)} == {"word_excess_nats", "recall", "inner_norm"}


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, "gibberish")


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, "gibberish")
