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
from experiments.harness.arm_process import RUN_FILE, is_finished, work
from experiments.harness.outcomes import OUTCOME_FILE, Outcome, read_outcome
from experiments.harness.study import ArmTask, Study

# What every arm's process needs whatever it does; MLflow's store alone takes a second to import.
PRELOADED = ("experiments.harness.arm_process", "mlflow.store.tracking.sqlalchemy_store")


def prepare_processes(study: Study) -> None:
    """Starts the server that arms are forked from; its imports then run beside the building of the data."""
    # Otherwise a preloaded module that asks whether there is a GPU would open it in the server, and no fork could.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *study.preloads])
    ensure_running()


def arms_at_once(tasks: int) -> int:
    """One arm a GPU; without one, an arm a core: small models gain little from a second thread."""
    return 1 if torch.cuda.is_available() else min(tasks, os.cpu_count() or 1)


def threads_per_arm(tasks: int) -> int:
    """Cores by arms at once; by all the arms there are, since a resumed arm must add its sums in the same order."""
    return max(1, (os.cpu_count() or 1) // arms_at_once(tasks))


def run_arms(tasks: Sequence[ArmTask], at_once: int) -> bool:
    """Runs every arm to its end and says how each one that did not finish ended. True when one was interrupted.

    An arm waits for the one it starts from. Ctrl-C and SIGTERM go to the running arms, which save and end by
    themselves; none is started after that.
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
            while len(running) < at_once and not interrupted:
                task = _next_to_start(waiting, running)
                if task is None:
                    break
                _start(task, running)
            if not running:
                continue
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                task = running.pop(process)
                outcome = read_outcome(task.folder) or _mourn(task, process.exitcode)
                interrupted |= outcome.status == "KILLED"
                if outcome.status != "FINISHED":
                    print(f"{task.label}: {outcome.status.lower()}: {outcome.message}", file=sys.stderr, flush=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return interrupted


def _next_to_start(waiting: list[ArmTask], running: dict[BaseProcess, ArmTask]) -> ArmTask | None:
    """Takes the first task out of `waiting` whose start is there; ends those whose start will never be."""
    for task in list(waiting):
        if task.start_folder is None or is_finished(task.start_folder):
            waiting.remove(task)
            return task
        under_way = {other.folder for other in (*waiting, *running.values())}
        if task.start_folder not in under_way:
            waiting.remove(task)
            message = f"it starts from {task.start_folder.name}, which did not finish"
            Outcome(status="FAILED", run_id=None, message=message).write(task.folder)
            print(f"{task.label}: failed: {message}", file=sys.stderr, flush=True)
    return None


def _start(task: ArmTask, running: dict[BaseProcess, ArmTask]) -> None:
    if task.resumes and is_finished(task.folder):
        print(f"{task.label}: finished before", flush=True)
        return
    (task.folder / OUTCOME_FILE).unlink(missing_ok=True)
    process = multiprocessing.get_context("forkserver").Process(target=work, args=(task,), name=task.label)
    process.start()
    running[process] = task


def _mourn(task: ArmTask, exit_code: int | None) -> Outcome:
    """An arm that died without a word (killed by the system, for instance out of memory)."""
    run_file = task.folder / RUN_FILE
    run_id = json.loads(run_file.read_text())["run_id"] if run_file.is_file() else None
    if run_id is not None:
        tracking.set_status(task.tracking_uri, run_id, "FAILED")
    message = f"its process died with exit code {exit_code} (-9: killed by the system, often out of memory)"
    outcome = Outcome(status="FAILED", run_id=run_id, message=message)
    outcome.write(task.folder)
    return outcome
