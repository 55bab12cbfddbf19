"""Where models are run, and the peak memory of this process: arms have processes of their own, so it is one arm's."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

PROCESS_STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """Most bytes held so far: of the CUDA allocator where a GPU is in use, else of the process's resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Not getrusage: Linux hands a process the peak of the one that started it, which is larger than a small arm's own.
    if PROCESS_STATUS.exists():
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes() -> int:
    """Bytes held now, of the kind that `peak_bytes` counts (the peak so far where the system does not tell)."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status_bytes("VmRSS") if PROCESS_STATUS.exists() else peak_bytes()


def forget_peak() -> None:
    """Starts the peak anew from what is held now, where the system allows it."""
    if torch.cuda.is_available():
        torch.cuda.init()  # the allocator has no statistics before
        torch.cuda.reset_peak_memory_stats()
        return
    _return_what_was_freed()
    if CLEAR_PEAK.exists():
        try:
            CLEAR_PEAK.write_text("5")
        except PermissionError:
            return  # some containers forbid it: the peak then includes start-up, which is the same for every arm


def _status_bytes(field: str) -> int:
    for line in PROCESS_STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{PROCESS_STATUS} has no field {field}")


def start_measuring() -> int:
    """Starts the peak anew and gives the bytes held now: what an arm needs is counted from there."""
    forget_peak()
    return held_bytes()


def _return_what_was_freed() -> None:
    """Gives freed memory back to the system: where it is used again it is no byte more, and hides what an arm needs."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries return it by themselves
        if trim is not None:
            trim(0)


def device() -> torch.device:
    """The GPU where there is one, as Lightning chooses it for training."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
