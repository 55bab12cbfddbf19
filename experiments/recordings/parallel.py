"""Jobs in processes, with progress: a process that dies takes one job with it, a disk that fails stops them all."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for
from typing import Any, TypeVar

import torch
from tqdm import tqdm

Job = TypeVar("Job")
Work = Callable[[Any, Callable[[float], None]], None]
"""A job, and what to tell how much of its size is done since the last time."""

_LOOK_EVERY_S = 1.0
_done: Any = None


def run_jobs(
    work: Work, jobs: Sequence[Job], size_of: Callable[[Job], int], processes: int, bar: tqdm[Any]
) -> list[Job]:
    """Runs every job, large ones first; gives those whose process died twice: killed, or by a fault in a decoder.

    work: a function of a module, or functools.partial of one. bar: counts the jobs' sizes. With one process the jobs
    run in this one. Whatever `work` raises is raised here, once the jobs under way are done; no other is begun.
    """
    ordered = sorted(jobs, key=size_of, reverse=True)
    if processes == 1:
        for job in ordered:
            _run_told(work, job, size_of(job), bar.update)
        return []
    suspects = _together(work, ordered, size_of, processes, bar)
    # Of several jobs under way when a process died, only one need have been its end.
    return [job for job in suspects if _together(work, [job], size_of, 1, bar)]


def _together(
    work: Work, jobs: Sequence[Job], size_of: Callable[[Job], int], processes: int, bar: tqdm[Any]
) -> list[Job]:
    """Runs jobs until all are done or gave their process an end; gives those that were under way when one died."""
    suspects: list[Job] = []
    shown = 0.0
    waiting = list(reversed(jobs))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.recordings.shard_job"])
    done = context.Value(ctypes.c_double, 0.0)
    while waiting:
        under_way: dict[Future[None], Job] = {}
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(done,))
        try:
            while waiting or under_way:
                while waiting and len(under_way) < processes:
                    under_way[pool.submit(_run, work, waiting[-1], size_of(waiting[-1]))] = waiting[-1]
                    waiting.pop()
                for future in wait(under_way, timeout=_LOOK_EVERY_S, return_when=FIRST_COMPLETED).done:
                    future.result()
                    del under_way[future]
                bar.update(done.value - shown)
                shown = done.value
        except BrokenProcessPool:
            suspects += under_way.values()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return suspects


def _begin(done: Any) -> None:
    global _done
    _done = done
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A process pool's workers outlive a parent that is killed, waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _run(work: Work, job: Any, size: int) -> None:
    def add(amount: float) -> None:
        with _done.get_lock():
            _done.value += amount

    _run_told(work, job, size, add)


def _run_told(work: Work, job: Any, size: int, add: Callable[[float], Any]) -> None:
    """Tells all of the job's size in the end, however much of it `work` told."""
    told = 0.0

    def tell(amount: float) -> None:
        nonlocal told
        amount = min(amount, size - told)
        told += amount
        add(amount)

    work(job, tell)
    add(size - told)
