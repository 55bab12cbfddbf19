"""What a number was measured on: the machine's processors and the versions of what computes."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

COMPUTING_PACKAGES = ("torch", "triton", "transformers", "moshi", "lightning", "numpy")


def hardware() -> str:
    """Processor and cores, and the GPU where torch sees one: `AMD EPYC 7B13, 2 cores; NVIDIA H200`."""
    cores = f"{_processor()}, {os.cpu_count()} cores"
    return f"{cores}; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else cores


def software() -> str:
    """Python and the packages that compute, by version; those that are not installed are left out."""
    found = [f"python {platform.python_version()}"]
    for package in COMPUTING_PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _processor() -> str:
    """The model's name where Linux tells it, else what Python knows of the platform."""
    told = Path("/proc/cpuinfo")
    if told.is_file():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
