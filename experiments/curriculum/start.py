"""The run that a stage starts from: found in the store, checked against the stage's own configuration, its weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.curriculum.limits import StartLimits, require_healthy
from experiments.curriculum.stages import LATER_STAGES
from experiments.harness import tracking
from experiments.harness.arm_process import CONFIG_FILE, RUN_FILE
from experiments.harness.checkpoints import differing_fields
from experiments.harness.identity import flattened, plain_values
from experiments.harness.run import latest_folder
from experiments.harness.study import RunOptions
from experiments.harness.tracking import LoggedRun
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.starting import LAST_CHECKPOINT

CHANGES_NO_WEIGHT = {"model.gradient_checkpointing"}


def begin_stage(config: SpokenExperiment, options: RunOptions) -> tuple[SpokenExperiment, RunOptions]:
    """The stage with the run that it starts from settled: `--from`, the one it is resumed with, or the newest finished.

    Raises:
        ValueError: there is none, it diverged, it is of another configuration, or its checkpoint is gone.
    """
    uri = tracking.store_uri(options.runs_dir)
    tracking.prepare_store(uri)
    run_id = options.start_run or _start_before(config, options)
    if run_id is None:
        run = _newest_finished(config, uri)
    else:
        run = _run_named(uri, run_id)
    require_healthy(uri, run, StartLimits.given(options.start_limits))
    folder = folder_of(run)
    require_same(config, folder)
    print(f"{config.recipe} starts from run {run.run_id} ({run.tags['mlflow.runName']}), {folder}", flush=True)
    # What starts from a run that was changed by hand is itself no evidence.
    is_adhoc = options.is_adhoc or run.tags.get("adhoc") != "false"
    changed = dataclasses.replace(options, start_folder=folder, is_adhoc=is_adhoc)
    return dataclasses.replace(config, start_run_id=run.run_id), changed


def stage_before(recipe: str) -> tuple[str, int]:
    """("llama-omni", 1) for "llama-omni-stage2"."""
    backbone, _, number = recipe.rpartition("-stage")
    assert number.isdecimal() and int(number) in LATER_STAGES, recipe
    return backbone, int(number) - 1


def folder_of(run: LoggedRun) -> Path:
    """Where the files of an arm's run are.

    Raises:
        ValueError: the run left no folder, or it is not on this machine, or holds another run by now.
    """
    told = run.tags.get(tracking.FOLDER_TAG)
    if told is None:
        raise ValueError(
            f"run {run.run_id} has no tag {tracking.FOLDER_TAG}: it is no arm of an experiment here (the experiment's "
            "own run is above its arms: name an arm's), or older than that tag; train it again"
        )
    folder = Path(told)
    run_file = folder / RUN_FILE
    if not run_file.is_file() or json.loads(run_file.read_text())["run_id"] != run.run_id:
        raise ValueError(
            f"the files of run {run.run_id} are not in {folder} on this machine; copy the folder there, or train "
            "it again"
        )
    if not (folder / LAST_CHECKPOINT).is_file():
        raise ValueError(f"{folder} has no {LAST_CHECKPOINT}: without its weights nothing can start from the run")
    return folder


def require_same(config: SpokenExperiment, folder: Path) -> None:
    """Raises ValueError, naming the fields, where the start is of another backbone, model, arm or vocabulary."""
    plain = json.loads((folder / CONFIG_FILE).read_text())
    if "spec" not in plain["data"]:
        raise ValueError(
            f"{config.recipe} cannot start from {folder}, which was trained on own recordings "
            f"({plain['data']['name']}): later stages read synthetic conversations. Give a run of those with --from"
        )
    before = compared(config, plain)
    now = compared(config, config.of_arm(config.arm_names[0]))
    if before != now:
        raise ValueError(
            f"{config.recipe} cannot start from {folder}: {'; '.join(differing_fields(before, now))}. A stage goes on "
            "with the backbone, model, TTT layers, windows and vocabularies that it starts from: give a run of the "
            "same ones with --from, or train the stage before with them"
        )


def compared(config: SpokenExperiment, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that must agree, flattened, of an arm's logged configuration. config: whose vocabulary counts."""
    pool = [name for name in config.data.spec.pool_as_dict() if name in plain["data"]["spec"]]
    chosen = {
        "backbone": plain["backbone"],
        "model": plain["model"],
        "arm": plain["arm"],
        "data": {"spec": {name: plain["data"]["spec"][name] for name in pool}},
    }
    return {name: value for name, value in flattened(chosen).items() if name not in CHANGES_NO_WEIGHT}


def _run_named(uri: str, run_id: str) -> LoggedRun:
    run = tracking.find_run(uri, run_id)
    if run is None:
        raise ValueError(f"--from {run_id}: there is no such run in {uri}; give an arm's run id as MLflow shows it")
    return run


def _newest_finished(config: SpokenExperiment, uri: str) -> LoggedRun:
    """Of the stage before, from its own recipe or as a part of the curriculum; of the same arm, scale and seed."""
    backbone, stage = stage_before(config.recipe)
    [arm] = config.arm_names
    places = {f"{backbone}-stage{stage}": arm, f"{backbone}-curriculum": f"{arm}-stage{stage}"}
    found = [
        run
        for recipe, name in places.items()
        for run in tracking.arms_of(uri, recipe, arm=name, scale=config.scale, seed=config.seed)
        if run.tags.get("adhoc") == "false"
    ]
    finished = [run for run in found if run.status == "FINISHED"]
    if not finished:
        others = f" ({len(found)} began and did not finish)" if found else ""
        raise ValueError(
            f"{config.recipe} starts from stage {stage}, and there is no finished run of {' or '.join(places)} with "
            f"arm {arm}, scale {config.scale} and seed {config.seed} in {uri}{others}. Run: make "
            f"exp-{backbone}-stage{stage} SCALE={config.scale} SEED={config.seed} ARM={arm}; or name a run with "
            "ARGS='--from RUN'"
        )
    return max(finished, key=lambda run: run.start_ms)


def _start_before(config: SpokenExperiment, options: RunOptions) -> str | None:
    """Of a run that is resumed: what it started from."""
    if not options.resumes:
        return None
    plain = plain_values(config)
    folder = latest_folder(config, options, lambda known: {**known, "start_run_id": None} == plain)
    return None if folder is None else json.loads((folder / CONFIG_FILE).read_text())["start_run_id"]
