"""The command line of the experiments: one recipe, its scale, its seed, and single fields changed with `--set`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.harness.overrides import apply_overrides
from experiments.harness.run import run_experiment
from experiments.harness.study import SCALES, Experiment, RunOptions
from experiments.harness.weights import weights_digest
from experiments.recipes import RECIPES, help_line

USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code: 0 done, 1 an arm failed, 2 the user's mistake, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    if options.list:
        print("\n".join(f"{name:24} {help_line(name)}" for name in RECIPES))
        return 0
    try:
        config = _configuration(options)
        run_options = _run_options(options, given)
        return run_experiment(config, RECIPES[config.recipe].study, run_options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted before the first arm started; nothing is lost", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments", description="Run one recipe.", allow_abbrev=False)
    parser.add_argument("recipe", nargs="?", metavar="NAME", help="a recipe; --list names them")
    parser.add_argument("--list", action="store_true", help="list the recipes and stop")
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="how large (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of initial weights and data order (default: 0)")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME", help="only this arm; may be repeated")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="assignments",
        help="change one field of the configuration, e.g. data.curriculum.0.steps=5; marks the runs adhoc",
    )  # fmt: skip
    parser.add_argument("--resume", action="store_true", help="go on with the latest interrupted run of these options")
    parser.add_argument(
        "--weights", type=Path, metavar="PATH", help="folder of a pretrained checkpoint, for recipes that take one"
    )
    parser.add_argument(
        "--data", metavar="NAME", help="own recordings that `make data` prepared, by name or path, in place of its data"
    )
    parser.add_argument(
        "--from", dest="start_run", metavar="RUN", help="the arm's run that a stage starts from (default: the newest)"
    )
    parser.add_argument(
        "--start-limit", action="append", default=[], metavar="NAME=NUMBER", dest="start_limits",
        help="how much the run that a stage starts from may have shown: largest_W1 (10), inner_loss_growth (3)",
    )  # fmt: skip
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where this run's files go (default: under runs/)")
    parser.add_argument(
        "--skip-bad-audio", action="store_true", help="leave unreadable audio out and list it at the end"
    )
    return parser


def _configuration(options: argparse.Namespace) -> Experiment:
    if options.recipe is None:
        raise ValueError(f"name a recipe; there are {', '.join(RECIPES)}")
    if options.recipe not in RECIPES:
        raise ValueError(f"there is no recipe {options.recipe!r}; there are {', '.join(RECIPES)}")
    config = RECIPES[options.recipe].configure(scale=options.scale, seed=options.seed)
    if options.weights is not None:
        config = config.with_weights(weights_digest(options.weights))
    if options.data is not None:
        config = _on_recordings(config, options.data)
    config = apply_overrides(config, options.assignments)
    for name in options.arm:
        config.of_arm(name)
    return config


def _on_recordings(config: Experiment, name_or_path: str) -> Experiment:
    on_recordings = RECIPES[config.recipe].study.on_recordings
    if on_recordings is None:
        able = [name for name, recipe in RECIPES.items() if recipe.study.on_recordings is not None]
        raise ValueError(f"{config.recipe} reads no recordings: leave out --data {name_or_path}; {', '.join(able)} do")
    return on_recordings(config, name_or_path, _data_dir())


def _data_dir() -> Path:
    return Path(os.environ.get("TTT_DATA_CACHE", "data_cache")).resolve()


def _run_options(options: argparse.Namespace, given: list[str]) -> RunOptions:
    runs_dir = Path("runs").resolve()
    return RunOptions(
        runs_dir=runs_dir,
        data_dir=_data_dir(),
        run_dir=None if options.run_dir is None else options.run_dir.resolve(),
        resumes=options.resume,
        arms=tuple(options.arm),
        weights=None if options.weights is None else options.weights.resolve(),
        skips_bad_audio=options.skip_bad_audio,
        is_adhoc=bool(options.assignments) or options.data is not None,
        own_data=options.data,
        start_run=options.start_run,
        start_limits=tuple(options.start_limits),
        command=shlex.join(["python", "-m", "experiments", *(part for part in given if part != "--resume")]),
    )
