"""One arm in a process of its own: starts or continues its MLflow run, trains, and writes down how it ended."""

from __future__ import annotations

import json
import os
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from experiments.harness.checkpoints import CheckpointWriteError
from experiments.harness.configuration import ExperimentConfig, fingerprint, flattened
from experiments.harness.prepared_data import ExperimentData
from experiments.harness.stopping import DivergedRunError, InterruptedRunError, StopRequest
from experiments.harness.tracking import RunIdentity, RunLogger, RunStatus
from experiments.harness.training import train_arm

OUTCOME_FILE = "outcome.json"
RUN_FILE = "run.json"
EXIT_CODES: dict[RunStatus, int] = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}


@dataclass(frozen=True, kw_only=True)
class ArmTask:
    """Everything an arm's process is told. The configuration is what it is; the rest is where and how.

    threads: cores it may use. line: of the terminal that its progress bar takes, when several arms run at once.
    """

    config: ExperimentConfig
    arm: str
    folder: Path
    tracking_uri: str
    experiment_id: str
    data: ExperimentData
    weights: Path | None
    resumes: bool
    is_adhoc: bool
    threads: int
    line: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an arm ended. run_id is None where it failed before its run was made."""

    status: RunStatus
    run_id: str | None
    message: str

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / OUTCOME_FILE).write_text(json.dumps(asdict(self)))


def read_outcome(folder: Path) -> Outcome | None:
    """What an arm's process wrote when it ended, or None."""
    path = folder / OUTCOME_FILE
    return Outcome(**json.loads(path.read_text())) if path.is_file() else None


def work(task: ArmTask) -> None:
    """Entry of the process. Exits with 0 (finished), 1 (failed) or 130 (interrupted)."""
    os.setpgrp()  # a terminal's Ctrl-C then reaches the parent alone, which passes it on once
    stop = StopRequest().listen()
    torch.set_num_threads(task.threads)
    logger: RunLogger | None = None
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        logger = open_run(task)
        train_arm(task.config, task.config.arm(task.arm), task.data, logger, stop, task.folder, task.weights, task.line)
        status, message = "FINISHED", ""
    except InterruptedRunError as interruption:
        status, message = "KILLED", str(interruption)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
        status, message = "KILLED", "stopped at once; the last checkpoint is what remains"
    except (DivergedRunError, CheckpointWriteError, ValueError) as error:
        status, message = "FAILED", str(error)
        (task.folder / "error.txt").write_text(traceback.format_exc())
    except Exception as error:
        traceback.print_exc()
        status, message = "FAILED", f"{type(error).__name__}: {error}"
    _end(task, logger, status, message)
    raise SystemExit(EXIT_CODES[status])


def open_run(task: ArmTask) -> RunLogger:
    """The arm's MLflow run: its own from before when the arm is resumed, else a new one."""
    run_file = task.folder / RUN_FILE
    if task.resumes and run_file.is_file():
        return RunLogger.reopen(task.tracking_uri, json.loads(run_file.read_text())["run_id"])
    own = task.config.of_arm(task.arm)
    identity = RunIdentity(
        experiment=task.config.recipe,
        arm=task.arm,
        seed=task.config.seed,
        scale=task.config.scale,
        is_adhoc=task.is_adhoc,
        config_fingerprint=fingerprint(own),
    )
    logger = RunLogger.start(task.tracking_uri, task.experiment_id, identity, flattened(own))
    run_file.write_text(json.dumps({"run_id": logger.run_id}))
    config_file = task.folder / "config.json"
    config_file.write_text(json.dumps(own, indent=1))
    logger.log_artifact(config_file)
    return logger


def _end(task: ArmTask, logger: RunLogger | None, status: RunStatus, message: str) -> None:
    """Closes the run and leaves the outcome for the parent, each even if the other can't be done (a full disk)."""
    try:
        if logger is not None:
            if message:
                logger.set_tag("end_message", message)
            logger.close(status)
    except Exception as error:
        print(f"{task.arm}: MLflow could not be told that the run is {status}: {error}", flush=True)
    run_id = None if logger is None else logger.run_id
    try:
        Outcome(status=status, run_id=run_id, message=message).write(task.folder)
    except OSError as error:
        print(f"{task.arm}: {status}: {message} (and its outcome could not be written: {error})", flush=True)
