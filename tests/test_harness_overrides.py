"""`--set`: single fields of a frozen configuration, changed by name and checked against what there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from experiments.harness.command_line import main
from experiments.harness.overrides import apply_overrides, converted
from experiments.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    width: int | None = 3


@dataclass(frozen=True, kw_only=True)
class Tree:
    rows: tuple[Row, ...] = (Row(name="left"), Row(name="right-hand"))
    edges: tuple[int, ...] = (0, 2)
    rate: float = 0.5
    is_open: bool = False
    mode: Literal["fast", "slow"] = "fast"
    below: Row | None = None


def test_fields_are_set_by_dotted_name_and_rows_by_their_name() -> None:
    changed = apply_overrides(
        Tree(),
        ["rows.right-hand.width=7", "edges=1,5,9", "rate=2", "is_open=true", "mode=slow", "rows.left.width=none"],
    )
    assert changed == Tree(
        rows=(Row(name="left", width=None), Row(name="right-hand", width=7)),
        edges=(1, 5, 9),
        rate=2.0,
        is_open=True,
        mode="slow",
    )
    assert isinstance(changed.rate, float)


@pytest.mark.parametrize(
    ("assignment", "complaint"),
    [
        ("rite=1", "Tree has no field 'rite'; it has rows, edges, rate, is_open, mode, below"),
        ("rows.middle.width=1", "no row 'middle'; there are left, right-hand"),
        ("rows.left.height=1", "Row has no field 'height'; it has name, width"),
        ("rate=fast", "Tree.rate takes a number; it was given 'fast'"),
        ("is_open=1", "true or false"),
        ("mode=medium", "one of fast, slow"),
        ("below.width=1", "Tree.below is not set here"),
        ("rate.digits=1", "nothing below float"),
        ("rows.left=1", "name one of its fields"),
        ("rate", "expects dotted.field=value"),
        ("below=left", "can't be set from the command line"),
    ],
)
def test_a_wrong_assignment_says_what_there_is(assignment: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace(".", r"\.").replace("(", r"\(")):
        apply_overrides(Tree(), [assignment])


def test_fields_that_have_to_agree_are_changed_together() -> None:
    config = RECIPES["llama-omni-stage1"].configure(scale="smoke", seed=0)
    widths = ["model.hidden_size=32", "arms.ttt-mlp.ttt.hidden_size=32", "arms.ttt-linear.ttt.hidden_size=32"]
    changed = apply_overrides(config, widths)
    assert (changed.model.hidden_size, changed.arm("ttt-mlp").ttt.hidden_size) == (32, 32)
    with pytest.raises(ValueError, match="hidden_size 64 on a model of hidden_size 32"):
        apply_overrides(config, widths[:2])


def test_a_path_is_converted() -> None:
    assert converted("/a/b", Path, "f") == Path("/a/b")


def test_an_override_passes_the_owning_dataclass_own_checks() -> None:
    config = RECIPES["llama-omni-stage1"].configure(scale="smoke", seed=0)
    with pytest.raises(ValueError, match="mini_batch_size"):
        apply_overrides(config, ["arms.ttt-mlp.ttt.mini_batch_size=0"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no-such-recipe"], f"there is no recipe 'no-such-recipe'; there are {', '.join(RECIPES)}"),
        ([], f"name a recipe; there are {', '.join(RECIPES)}"),
        (["llama-omni-stage1", "--arm", "ttt-mpl"], "no arm 'ttt-mpl'; it has ttt-mlp, ttt-linear"),
        (
            ["llama-omni-stage1", "--set", "arms.ttt-mlp.ttt.minibatch=16"],
            "TTTConfig has no field 'minibatch'; it has hidden_size, num_heads",
        ),
        (["llama-omni-stage1", "--set", "arms.ttt-mlp.ttt.mini_batch_size=0"], "mini_batch_size"),
        (["llama-omni-stage1", "--set", "arms.ttt-mlp.upper_layers=3,4"], "names layers [4]; the model has layers 0-3"),
        (["llama-omni-stage1", "--weights", "nowhere"], "--weights nowhere is no folder"),
        (["llama-omni-stage1", "--resume"], "there is no run under"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_list_names_every_recipe_with_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(RECIPES)
    assert all(len(line.split()) > 4 for line in listed)
