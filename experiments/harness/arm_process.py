"""One arm in a process of its own: starts or continues its MLflow run, does the work, and writes down how it ended."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from experiments.harness.checkpoints import CheckpointWriteError
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.outcomes import Outcome, read_outcome
from experiments.harness.stopping import DivergedRunError, InterruptedRunError, StopRequest
from experiments.harness.study import ArmTask, ArmWork
from experiments.harness.system_metrics import machine_watched
from experiments.harness.tracking import FOLDER_TAG, RunIdentity, RunLogger, RunStatus

RUN_FILE = "run.json"
CONFIG_FILE = "config.json"
EXIT_CODES: dict[RunStatus, int] = {"FINISHED": 0, "FAILED": 1, "KILLED": 130}


def work(task: ArmTask) -> None:
    """Entry of the process. Exits with 0 (finished), 1 (failed) or 130 (interrupted)."""
    os.setpgrp()  # a terminal's Ctrl-C then reaches the parent alone, which passes it on once
    stop = StopRequest().listen()
    torch.set_num_threads(task.threads)
    logger: RunLogger | None = None
    try:
        task.folder.mkdir(parents=True, exist_ok=True)
        logger = open_run(task, task.arm, task.config.of_arm(task.arm), task.folder)
        with machine_watched(task.tracking_uri, logger.run_id, task.config.scale, goes_on=task.resumes):
            task.study.run_arm(ArmWork(task=task, logger=logger, stop=stop))
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


def open_run(task: ArmTask, name: str, own: dict[str, Any], folder: Path) -> RunLogger:
    """An MLflow run of this task, under the experiment's parent run: from before where it is resumed, else a new one.

    name, own, folder: the arm's, or those of one of several ways in which a trained arm is looked at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run_file = folder / RUN_FILE
    if task.resumes and run_file.is_file():
        return RunLogger.reopen(task.tracking_uri, json.loads(run_file.read_text())["run_id"])
    identity = RunIdentity(
        experiment=task.config.recipe,
        role="arm",
        arm=name,
        seed=task.config.seed,
        scale=task.config.scale,
        is_adhoc=task.is_adhoc,
        config_fingerprint=fingerprint(own),
        parent_run_id=task.parent_run_id,
        data_sources=task.data_sources,
    )
    logger = RunLogger.start(task.tracking_uri, task.experiment_id, identity, flattened(own))
    run_file.write_text(json.dumps({"run_id": logger.run_id}))
    logger.set_tag(FOLDER_TAG, str(folder.resolve()))
    config_file = folder / CONFIG_FILE
    config_file.write_text(json.dumps(own, indent=1))
    logger.log_artifact(config_file)
    return logger


@contextmanager
def looked_at(task: ArmTask, name: str, own: dict[str, Any], folder: Path) -> Iterator[RunLogger]:
    """One way of looking at a trained arm, under a run of its own, which fails with whatever goes wrong inside."""
    logger = open_run(task, name, own, folder)
    status: RunStatus = "FAILED"
    message, started = "", time.monotonic()
    try:
        yield logger
        status = "FINISHED"
        print(f"{task.label}: view {name} measured, {time.monotonic() - started:.0f} s", flush=True)
    except BaseException as error:
        message = f"{type(error).__name__}: {error}"
        logger.set_tag("end_message", message)
        raise
    finally:
        logger.close(status)
        Outcome(status=status, run_id=logger.run_id, message=message).write(folder)


def is_finished(folder: Path) -> bool:
    """Whether what lies in the folder came to its end before."""
    outcome = read_outcome(folder)
    return outcome is not None and outcome.status == "FINISHED"


def _end(task: ArmTask, logger: RunLogger | None, status: RunStatus, message: str) -> None:
    """Closes the run and leaves the outcome for the parent, each even if the other can't be done (a full disk)."""
    try:
        if logger is not None:
            if message:
                logger.set_tag("end_message", message)
            logger.close(status)
    except Exception as error:
        print(f"{task.label}: MLflow could not be told that the run is {status}: {error}", flush=True)
    run_id = None if logger is None else logger.run_id
    try:
        Outcome(status=status, run_id=run_id, message=message).write(task.folder)
    except OSError as error:
        print(f"{task.label}: {status}: {message} (and its outcome could not be written: {error})", flush=True)
