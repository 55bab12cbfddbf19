"""Several arms at once, each in a process of its own with its share of the cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from types import FrameType

import torch

from experiments.harness import tracking
from experiments.harness.arm_process import ArmTask, Outcome, read_outcome, work
from experiments.harness.configuration import ExperimentConfig

# What an arm's process imports before its first step: the server that arms are forked from imports it once for all.
PRELOADED = ["experiments.harness.arm_process", "experiments.harness.training"]


def prepare_processes() -> None:
    """Starts the server that arms are forked from; its imports then run beside the building of the data."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    ensure_running()


def arms_at_once(config: ExperimentConfig) -> int:
    """One arm a GPU; without one, an arm a core: small models gain little from a second thread."""
    return 1 if torch.cuda.is_available() else min(len(config.arms), os.cpu_count() or 1)


def threads_per_arm(config: ExperimentConfig) -> int:
    """Cores by arms at once, whichever arms are chosen: a resumed arm must add its sums in the same order."""
    return max(1, (os.cpu_count() or 1) // arms_at_once(config))


def run_arms(tasks: Sequence[ArmTask], at_once: int) -> bool:
    """Runs every arm to its end and says how each one that did not finish ended. True when one was interrupted.

    Ctrl-C and SIGTERM go to the running arms, which save and end by themselves; none is started after that.
    """
    waiting, running = list(tasks), dict[BaseProcess, ArmTask]()
    interrupted = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        for process in running:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while running or (waiting and not interrupted):
            while waiting and len(running) < at_once and not interrupted:
                _start(waiting.pop(0), running)
            if not running:
                continue
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                task = running.pop(process)
                outcome = read_outcome(task.folder) or _mourn(task, process.exitcode)
                interrupted |= outcome.status == "KILLED"
                if outcome.status != "FINISHED":
                    print(f"{task.arm}: {outcome.status.lower()}: {outcome.message}", file=sys.stderr, flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return interrupted


def _start(task: ArmTask, running: dict[BaseProcess, ArmTask]) -> None:
    finished = read_outcome(task.folder)
    if task.resumes and finished is not None and finished.status == "FINISHED":
        print(f"{task.arm}: finished before", flush=True)
        return
    (task.folder / "outcome.json").unlink(missing_ok=True)
    process = multiprocessing.get_context("forkserver").Process(target=work, args=(task,), name=task.arm)
    process.start()
    running[process] = task


def _mourn(task: ArmTask, exit_code: int | None) -> Outcome:
    """An arm that died without a word (killed by the system, for instance out of memory)."""
    run_file = task.folder / "run.json"
    run_id = json.loads(run_file.read_text())["run_id"] if run_file.is_file() else None
    if run_id is not None:
        tracking.set_status(task.tracking_uri, run_id, "FAILED")
    message = f"its process died with exit code {exit_code} (-9: killed by the system, often out of memory)"
    outcome = Outcome(status="FAILED", run_id=run_id, message=message)
    outcome.write(task.folder)
    return outcome
