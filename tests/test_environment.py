"""The lock, the extras, moshi's declared bounds, the Makefile's help and the warning settings say what the docs say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# What moshi 0.2.13 forbids and the lock installs all the same. A newer moshi that lifts one of these bounds makes a
# test below say so: then drop its override, and once none is left make moshi a base dependency.
EXCEEDED_BOUNDS_OF_MOSHI = {
    "aiohttp": "<3.12,>=3.10.5",
    "huggingface-hub": "<1.0.0,>=0.24",
    "numpy": "<2.3,>=1.26",
    "safetensors": "<0.8.0,>=0.4.0",
    "torch": "<2.10,>=2.2.0",
}
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs GNU make; runs where `make test` does")


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def requirement_lines(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def locked() -> dict[str, str]:
    return dict(line.partition(" ;")[0].split("==") for line in requirement_lines("requirements.lock"))


def test_the_lock_is_exact_pins_without_hosts_or_paths() -> None:
    pin = re.compile(r"[a-z0-9][a-z0-9.-]*==[a-z0-9.!]+( ; [\w\s.'<>=!()]+)?")
    other = [line for line in requirement_lines("requirements.lock") if not pin.fullmatch(line)]
    assert other == []


def test_the_lock_leaves_torch_and_its_cuda_libraries_to_the_machine() -> None:
    of_torch = re.compile(r"torch|triton|bitsandbytes|nvidia-.*|cuda-.*")
    assert [name for name in locked() if of_torch.fullmatch(name)] == []


def test_the_lock_holds_everything_that_is_asked_for() -> None:
    told = project()
    extras = told["optional-dependencies"]
    asked = names(told["dependencies"]) | names(extras["moshi"]) | names(extras["dev"])
    assert asked - {"torch"} <= set(locked())


def test_the_lock_meets_the_bounds_of_the_project() -> None:
    told = project()
    extras = told["optional-dependencies"]
    asked = [Requirement(line) for line in [*told["dependencies"], *extras["moshi"], *extras["dev"]]]
    unmet = [str(bound) for bound in asked if bound.name != "torch" and locked()[bound.name] not in bound.specifier]
    assert unmet == []


def test_moshi_is_an_extra_and_no_base_dependency() -> None:
    told = project()
    assert "moshi" not in names(told["dependencies"])
    assert names(told["optional-dependencies"]["moshi"]) == {"moshi"}


def bounds_of_moshi() -> dict[str, Requirement]:
    """What the installed moshi declares to need here, without what the lock leaves out on purpose."""
    try:
        declared = [Requirement(line) for line in metadata.requires("moshi") or []]
    except metadata.PackageNotFoundError:
        pytest.skip("moshi is not installed: runs where `make setup` was")
    here = [bound for bound in declared if bound.marker is None or bound.marker.evaluate({"extra": ""})]
    left_out = names(requirement_lines("requirements.excludes.txt"))
    return {name: bound for bound in here if (name := canonicalize_name(bound.name)) not in left_out}


def test_the_lock_holds_everything_that_moshi_needs() -> None:
    assert set(bounds_of_moshi()) - {"torch"} <= set(locked())


def test_the_bounds_of_moshi_that_we_exceed_are_these() -> None:
    bounds = bounds_of_moshi()
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions()}
    missing = set(bounds) - set(installed)
    if missing:
        pytest.skip(f"{sorted(missing)} are not installed: runs where `make setup` was")
    # "2.13.0+cpu" is judged as 2.13.0.
    exceeded = {
        name: str(bound.specifier)
        for name, bound in bounds.items()
        if not bound.specifier.contains(installed[name].partition("+")[0], prereleases=True)
    }
    lifted = sorted(set(EXCEEDED_BOUNDS_OF_MOSHI) - set(exceeded))
    assert not lifted, f"moshi {metadata.version('moshi')} no longer forbids what is installed of {lifted}"
    assert exceeded == EXCEEDED_BOUNDS_OF_MOSHI


def test_moshi_imports_on_the_locked_stack() -> None:
    if set(bounds_of_moshi()) - {canonicalize_name(found.name) for found in metadata.distributions()}:
        pytest.skip("not everything that moshi needs is installed: runs where `make setup` was")
    program = "from moshi.models import LMGen, LMModel, MimiModel, loaders; print(LMModel.__name__)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stdout.strip() == "LMModel", finished.stderr


def test_the_overrides_are_the_exceeded_bounds_and_no_more() -> None:
    assert names(requirement_lines("requirements.overrides.txt")) == set(EXCEEDED_BOUNDS_OF_MOSHI)


def test_whisper_works_without_triton() -> None:
    whisper = pytest.importorskip("whisper", reason="needs openai-whisper; runs where `make setup` was")
    program = "import sys; sys.modules['triton'] = None; import whisper; print(whisper.audio.SAMPLE_RATE)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stdout.strip() == str(whisper.audio.SAMPLE_RATE), finished.stderr


def test_the_makefile_and_the_overrides_name_the_same_torch() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    told = re.search(r"^TORCH \?= (\S+)$", makefile, flags=re.MULTILINE)
    assert told is not None
    assert told.group(1) in requirement_lines("requirements.overrides.txt")


def output_of_make(*arguments: str) -> str:
    """What make prints, free of the make that may be running the tests."""
    outside = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True).stdout


@needs_make
def test_help_lists_every_target_and_every_recipe_with_one_line() -> None:
    shown = output_of_make("help")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*)(?=:(?!=))", makefile, flags=re.MULTILINE))
    assert {"help", "setup", "test", "lint", "typecheck", "lock", "smoke", "mlflow-ui", "clean"} <= targets
    recipes = {
        "exp-" + path.stem.replace("_", "-")
        for path in (ROOT / "experiments" / "recipes").glob("*.py")
        if not path.name.startswith("_")
    }
    described = dict(re.findall(r"^  make (\S+)\s+(\S.*)$", shown, flags=re.MULTILINE))
    assert targets | recipes | {"exp-NAME"} == set(described)


@needs_make
def test_make_hands_every_option_to_the_recipe() -> None:
    options = ["SCALE=smoke", "SEED=3", "ARM=ttt-mlp", "WEIGHTS=some folder", "RESUME=1", "ARGS=--set steps=2"]
    shown = output_of_make("-n", "exp-llama-omni-stage1", *options)
    command = shown.strip().splitlines()[-1]
    assert command.endswith(
        "-m experiments llama-omni-stage1 --scale smoke --seed 3 --arm ttt-mlp"
        ' --weights "some folder" --resume --set steps=2'
    )
    on_recordings = output_of_make("-n", "exp-llama-omni-stage1", "WEIGHTS=some folder", "DATA=my calls")
    assert '--weights "some folder" --data "my calls"' in on_recordings


@pytest.mark.parametrize("module", ["ttt_core.layer", "backbones.mounting.host", "experiments.harness", "analysis"])
def test_a_warning_from_our_own_module_is_an_error(module: str) -> None:
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn_explicit("ours", UserWarning, filename=f"{module}.py", lineno=1, module=module)


def test_a_warning_from_a_third_party_is_none() -> None:
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, filename="theirs.py", lineno=1, module="torch.nn.modules")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU moshi may compile")
@pytest.mark.parametrize("module", ["experiments.fact_streams.mounted_models", "experiments.recipes"])
def test_moshi_compiles_nothing_on_a_cpu_whichever_module_imports_it_first(module: str) -> None:
    asks = f"import {module}; from moshi.modules import transformer as t; print(hasattr(t._rms_norm, '__wrapped__'))"
    environment = {name: value for name, value in os.environ.items() if name != "NO_TORCH_COMPILE"}
    ran = subprocess.run(
        [sys.executable, "-c", asks], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "False"
