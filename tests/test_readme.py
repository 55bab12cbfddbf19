"""The README holds what is there: its tree, its links, its commands."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_tree_has_one_line_for_every_file_of_code() -> None:
    tree = README.split("## The tree")[1]
    listed, folder = set[str](), ""
    for line in tree.split("```")[1].splitlines():
        if line and not line.startswith(" "):
            folder = line.split()[0].rstrip("/")
        elif line:
            listed.add(f"{folder}/{line.split()[0]}")
    found = {
        str(path.relative_to(ROOT))
        for package in ("ttt_core", "backbones", "experiments", "analysis")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert listed == found


def test_links_and_pictures_lead_to_files() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", README))
    assert {"exp-llama-omni-stage1", "test", "help"} <= named
    for target in named:
        recipe = target.removeprefix("exp-").replace("-", "_")
        is_recipe = target.startswith("exp-") and (ROOT / "experiments" / "recipes" / f"{recipe}.py").is_file()
        assert is_recipe or re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    assert "\nmake test" in README and "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
