"""The recipes that only count: lines of adapters, and published models built on the meta device."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from picture_checks import check_pictures
from recipe_commands import SMOKE_SECONDS, FinishedCommand, environment

from experiments.counting import arms as names
from experiments.counting.arms import adapter_metrics, card_metrics, metrics_of
from experiments.counting.built_modules import facts_of_modules, language_model_parameters, part_parameters
from experiments.counting.cards import CARD_FOLDER, card_digest, read_card
from experiments.counting.source_lines import count, files_of, files_of_mounting, imports_ttt_core, sources_digest
from experiments.harness import tracking
from experiments.harness.command_line import main
from experiments.harness.identity import fingerprint
from experiments.harness.study import SCALES
from experiments.recipes.adapter_size import adapter_size
from experiments.recipes.model_cards import CARDS, model_cards

RECIPES = {"adapter-size": adapter_size, "model-cards": model_cards}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two folders of source files: one that imports ttt_core in a folder below, one in a function."""
    (tmp_path / "own" / "deep").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("")
    (tmp_path / "own" / "deep" / "layers.py").write_text("from ttt_core.config import TTTConfig\nx = 1\n")
    (tmp_path / "own" / "plain.py").write_text('"""Says ttt_core."""\n\nimport ttt_corelike\n')
    (tmp_path / "shared" / "host.py").write_text("def f():\n    import ttt_core\n\n    return ttt_core\n")
    return tmp_path


def test_code_lines_leave_out_blanks_comments_and_docstrings(tmp_path: Path) -> None:
    path = tmp_path / "one.py"
    docstring, value = '"""Doc\n\nstring."""\n\n# comment\n', 'x = """a\nb"""  # trailing\n"""What x is."""\n\n\n'
    path.write_text(docstring + value + "def f() -> int:\n    return 1\n")
    counted = count([path])
    assert (counted.files, counted.lines, counted.code_lines) == (1, 12, 4)


def test_files_are_counted_in_the_folder_and_below(folders: Path) -> None:
    counted = count(files_of("own", folders))
    assert (counted.files, counted.lines, counted.code_lines) == (3, 5, 3)


def test_files_of_mounting_are_those_that_import_ttt_core_in_either_folder(folders: Path) -> None:
    assert [path.name for path in files_of_mounting("own", "own", folders)] == ["layers.py"]
    assert [path.name for path in files_of_mounting("own", "shared", folders)] == ["layers.py", "host.py"]
    assert count(files_of_mounting("own", "shared", folders)).lines == 2 + 4


def test_a_folder_without_code_is_named_with_those_that_have_some(folders: Path) -> None:
    with pytest.raises(ValueError, match="no Python file in backbones/empty; name one of own, shared"):
        files_of("empty", folders)


def test_a_digest_of_sources_changes_with_content_and_names(folders: Path) -> None:
    before = sources_digest(("own", "shared"), folders)
    assert sources_digest(("own", "shared", "own"), folders) == before
    (folders / "own" / "plain.py").rename(folders / "own" / "other.py")
    renamed = sources_digest(("own", "shared"), folders)
    (folders / "own" / "other.py").write_text("x = 2\n")
    assert len({before, renamed, sources_digest(("own", "shared"), folders)}) == 3


def test_both_readings_of_the_real_adapters_are_as_the_claim_says() -> None:
    """Llama-Omni's own folder imports nothing of ttt_core, Moshi mounts by itself: what C26's entry says of them."""
    config = adapter_size(scale="cpu", seed=0)
    assert not any(map(imports_ttt_core, files_of("llama_omni")))
    omni, moshi, shared = (adapter_metrics(config.arm(arm)) for arm in config.arm_names)
    mounting = {f"{names.IMPORTS_TTT_CORE}_{what}" for what in names.COUNTED}
    assert all(omni[name] == shared[name] > 0 for name in mounting)
    assert 0 < moshi["adapter/imports_ttt_core_files"] < moshi["adapter/whole_folder_files"]
    for found in (omni, moshi, shared):
        assert found["adapter/whole_folder_code_lines"] < found["adapter/whole_folder_lines"]
    wc = sum(path.read_bytes().count(b"\n") for path in (CARD_FOLDER.parent / "moshi").glob("*.py"))
    assert moshi["adapter/whole_folder_lines"] == wc


def test_an_arm_whose_files_changed_since_it_was_configured_is_refused() -> None:
    adapter = dataclasses.replace(adapter_size(scale="cpu", seed=0).arm("moshi"), sources_digest="0" * 12)
    with pytest.raises(ValueError, match=r"moshi were 000000000000 .* start a new run"):
        adapter_metrics(adapter)
    card = dataclasses.replace(model_cards(scale="cpu", seed=0).arm("vita"), card_digest="0" * 12)
    with pytest.raises(ValueError, match=r"vita\.toml was 000000000000 .* start a new run"):
        card_metrics(card)


def edited(tmp_path: Path, file: str, old: str, new: str) -> Path:
    """A folder with one card of one edit."""
    text = (CARD_FOLDER / file).read_text()
    assert text.count(old) == 1, old
    (tmp_path / file).write_text(text.replace(old, new))
    return tmp_path


def test_a_card_that_contradicts_the_modules_is_refused(tmp_path: Path) -> None:
    rate = 'heard_positions_hz = { value = 50, source = "inference"'
    folder = edited(tmp_path, "mini_omni.toml", rate, rate.replace("50", "12.5"))
    with pytest.raises(ValueError, match=r"mini-omni: heard_positions_hz is 12\.5, and the modules give 50"):
        metrics_of(read_card("mini_omni.toml", folder))


def test_the_rates_follow_from_strides_and_pooling() -> None:
    assert facts_of_modules(read_card("llama_omni.toml")) == {"heard_positions_hz": 10, "context_positions": 131_072}
    assert facts_of_modules(read_card("qwen2_audio.toml")) == {"heard_positions_hz": 25}
    assert facts_of_modules(read_card("spirit_lm.toml")) == {}


def test_parameters_follow_the_dimensions_that_the_card_gives(tmp_path: Path) -> None:
    """One layer less is one layer's parameters less: the number is counted, not looked up."""
    whole = read_card("spirit_lm.toml")
    less = read_card("spirit_lm.toml", edited(tmp_path, "spirit_lm.toml", "layers = 32", "layers = 31"))
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    assert language_model_parameters(whole) - language_model_parameters(less) == layer
    assert part_parameters(read_card("vita.toml")) == {"speech encoder": None, "image encoder": 300_000_000}


def test_what_nothing_builds_is_refused(tmp_path: Path) -> None:
    folder = edited(tmp_path, "vita.toml", 'hosts = "mixtral"', 'hosts = "mamba"')
    with pytest.raises(ValueError, match="vita: nothing builds the family 'mamba'; there are moshi, llama"):
        language_model_parameters(read_card("vita.toml", folder))
    folder = edited(tmp_path, "vita.toml", 'kind = "published"', 'kind = "guessed"')
    with pytest.raises(ValueError, match="vita: nothing builds a part of kind 'guessed'"):
        part_parameters(read_card("vita.toml", folder))
    with pytest.raises(ValueError, match=r"no card .*gpt\.toml; there are vita\.toml"):
        card_digest("gpt.toml", folder)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_scale_and_seed_counts_the_same(recipe: str, scale: str) -> None:
    config, other = RECIPES[recipe](scale=scale, seed=1), RECIPES[recipe](scale="cpu", seed=0)
    assert config.recipe == recipe and config.arms == other.arms and config.seeds == (1,)
    assert len({fingerprint(config.of_arm(arm)) for arm in config.arm_names}) == len(config.arms)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapter-size", "--arm", "vita"], "adapter-size has no arm 'vita'; it has llama-omni, moshi"),
        (["adapter-size", "--set", "arms.moshi.lines=3"], "Adapter has no field 'lines'; it has name"),
        (["model-cards", "--arm", "gpt"], "model-cards has no arm 'gpt'; it has moshi, llama-omni"),
        (["model-cards", "--weights", "."], "takes no --weights"),
    ],
)
def test_a_users_mistake_is_told_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "--weights" in arguments:
        (tmp_path / "config.json").write_text("{}")
        arguments = [*arguments[:-1], str(tmp_path)]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


BOTH = """
from experiments.harness.command_line import main
codes = [main(["model-cards", "--scale", "smoke", "--arm", "mini-omni", "--arm", "vita"]),
         main(["adapter-size", "--scale", "smoke"])]
raise SystemExit(max(codes))
"""
"""Both recipes in one process, so that the modules are imported once."""


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    folder = tmp_path_factory.mktemp("counting")
    ran = subprocess.run(
        [sys.executable, "-c", BOTH], cwd=folder, env=environment(), capture_output=True, text=True,
        timeout=SMOKE_SECONDS, check=False,
    )  # fmt: skip
    return FinishedCommand(folder=folder, output=ran.stdout, errors=ran.stderr, exit_code=ran.returncode)


def logged_by_arm(both: FinishedCommand, recipe: str) -> dict[str, dict[str, float]]:
    files = both.folder.glob(f"runs/{recipe}/*/*/*/run.json")
    runs = {path.parent.name: tracking.read_run(both.uri, json.loads(path.read_text())["run_id"]) for path in files}
    assert {run.status for run in runs.values()} == {"FINISHED"}
    return {arm: dict(run.metrics) for arm, run in runs.items()}


def line_of(both: FinishedCommand, arm: str) -> list[str]:
    [line] = [line for line in both.output.splitlines() if line.startswith(f"{arm} ")]
    return line.split()


def test_the_run_of_adapter_size_prints_and_keeps_what_was_logged(both: FinishedCommand) -> None:
    assert both.exit_code == 0, both.errors
    logged = logged_by_arm(both, "adapter-size")
    assert set(logged) == set(adapter_size(scale="smoke", seed=0).arm_names)
    [table] = both.folder.glob("runs/adapter-size/*/*/adapters.csv")
    with table.open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    for arm, metrics in logged.items():
        assert {name: float(rows[arm][name]) for name in metrics} == metrics
        assert line_of(both, arm)[1:4] == [
            "finished", f"{metrics['adapter/whole_folder_files']:.0f}", f"{metrics['adapter/whole_folder_lines']:,.0f}",
        ]  # fmt: skip


def test_the_run_of_model_cards_leaves_out_what_is_unknown(both: FinishedCommand) -> None:
    assert both.exit_code == 0, both.errors
    logged = logged_by_arm(both, "model-cards")
    assert set(logged) == {"mini-omni", "vita"}
    assert logged["mini-omni"]["card/heard_positions_hz"] == 50
    vita = logged["vita"]
    assert vita[names.UNKNOWN_PARTS] == 1 and vita[names.FACTS_CHECKED] == 0
    assert "card/said_positions_hz" not in vita and "card/published_parameters" not in vita
    billions = [f"{vita[name] / 1e9:.3f}" for name in (names.LANGUAGE_MODEL_PARAMETERS, names.KNOWN_PARAMETERS)]
    assert line_of(both, "vita")[1:6] == ["finished", *billions, "1", "-"]


def test_the_page_of_findings_can_draw_both(both: FinishedCommand) -> None:
    for recipe in RECIPES:
        check_pictures(both.uri, recipe)


def test_every_model_of_the_recipe_has_its_card() -> None:
    assert [read_card(card).name for card in CARDS.values()] == list(CARDS)
