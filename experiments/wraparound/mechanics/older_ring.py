"""The ring cache of older moshi releases, measured by the same probes in a process of their own.

An older release is an unpacked source folder, given by path: nothing here needs the network except the command that
fetches one, `python -m experiments.wraparound.mechanics.older_ring --fetch FOLDER [VERSION ...]`.

What had to be avoided so that old code runs on today's stack: `moshi/__init__.py`, which imports the whole package and
with it libraries that the ring does not need (only `modules/transformer.py` and its siblings are loaded); and in 0.2.1
bitsandbytes, which every linear map imports and uses for quantised weights alone (an empty module stands in for it).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.wraparound.mechanics.ring_probe import (
    called,
    calls_of,
    trace_ring,
    visible_positions,
    window_positions,
)

VERSIONS = ("0.1.0", "0.2.1")
ROOT = Path(__file__).parents[3]
PROBE_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class OlderRingSizes:
    """folders: of unpacked releases, each with `moshi/modules/transformer.py`; without any only the installed one."""

    folders: tuple[Path, ...] = ()
    context_steps: int = 7
    positions: int = 45
    width: int = 32
    heads: int = 4
    layers: int = 2
    tokens_per_call: tuple[int, ...] = (1, 3)


@dataclass(frozen=True, kw_only=True)
class OlderRing:
    """by_version: release -> name -> value, as `probe_release` gives them; "installed" is always there."""

    by_version: dict[str, dict[str, float]]

    def metrics(self) -> dict[str, float]:
        return {
            f"older_ring/{version}_{name}": float(value)
            for version, values in self.by_version.items()
            for name, value in values.items()
        }

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {}


def measure_older_rings(sizes: OlderRingSizes) -> OlderRing:
    """Probes the installed release here, and every given one in a process of its own.

    ValueError names a folder that is no moshi release, or whose probe failed, with the last line it said.
    """
    folders = {release_version(folder): folder for folder in sizes.folders}
    # Imported here and not above: in a probe's own process the name `moshi` belongs to the older release.
    installed = probe_release(import_module("moshi.modules.transformer"), sizes)
    older = {version: _probe_apart(folder, sizes) for version, folder in folders.items()}
    return OlderRing(by_version={"installed": installed} | older)


def release_version(folder: Path) -> str:
    """The version that an unpacked release says it is. ValueError where there is none."""
    init, transformer = folder / "moshi" / "__init__.py", folder / "moshi" / "modules" / "transformer.py"
    if not init.is_file() or not transformer.is_file():
        raise ValueError(
            f"{folder} is no unpacked moshi release: it has no moshi/modules/transformer.py; fetch one with "
            f"`python -m experiments.wraparound.mechanics.older_ring --fetch FOLDER` and give FOLDER/moshi-VERSION"
        )
    found = re.search(r'^__version__ = "([^"]+)"', init.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{init} does not say its __version__; give an unpacked moshi release")
    return found[1]


def fetch_releases(folder: Path, versions: tuple[str, ...] = VERSIONS) -> list[Path]:
    """Downloads releases' sources from the package index that pip is set to use and unpacks them; gives their folders.

    ValueError, in one line, when one cannot be had.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = []
    for version in versions:
        wanted = [f"moshi=={version}", "-d", str(folder)]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ValueError(
                f"moshi {version} could not be fetched ({reason}); give folders of unpacked releases instead"
            )
        with tarfile.open(folder / f"moshi-{version}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        unpacked.append(folder / f"moshi-{version}")
    return unpacked


def probe_release(transformer: Any, sizes: OlderRingSizes) -> dict[str, float]:
    """What one release's `modules.transformer` does past its wrap, fed one and several tokens per call.

    mislabelled_slots: slots, over all calls, whose reported position is not the one that lies there; and by how many
    positions at most. keys_lost_per_query, keys_lost_before_wrap: keys of the window that do not reach a query, past
    the wrap (mean) and before (sum); nearest_lost_key: how far before its query the nearest of them stood (0 for none
    lost; the window's oldest key stands `context - 1` before). keys_outside_window: keys seen that should not be.
    max_difference_*: of a streamed transformer from its own batched run, relative to the largest output.
    """
    context = sizes.context_steps
    window = window_positions(sizes.positions, context)
    values = {}
    for tokens in sizes.tokens_per_call:
        calls = calls_of(sizes.positions, tokens)
        before, past_wrap = context // tokens * tokens, -(-context // tokens) * tokens
        ring = transformer.RingKVCache(1, 1, 1, context, device=torch.device("cpu"), dtype=torch.float64)
        trace = trace_ring(ring, calls)
        seen = visible_positions(transformer.StreamingMultiheadAttention, context, context, calls)
        lost = (window & ~seen).sum(axis=1)
        queries, keys = np.nonzero(window & ~seen)
        difference = _streamed_difference(transformer, sizes, calls)
        way = called(tokens)
        values |= {
            f"mislabelled_slots_{way}": sum(call.mislabelled_slots for call in trace),
            f"mislabelled_by_positions_{way}": max(call.mislabelled_by_positions for call in trace),
            f"keys_lost_per_query_after_wrap_{way}": float(lost[past_wrap:].mean()),
            f"keys_lost_before_wrap_{way}": int(lost[:before].sum()),
            f"first_query_that_lost_a_key_{way}": int(queries.min()) + 1 if len(queries) else 0,
            f"nearest_lost_key_{way}": int((queries - keys).min()) if len(queries) else 0,
            f"keys_outside_window_{way}": int((seen & ~window).sum()),
            f"max_difference_before_wrap_{way}": float(difference[:before].max()),
            f"max_difference_after_wrap_{way}": float(difference[past_wrap:].max()),
        }
    return values


@torch.no_grad()
def _streamed_difference(transformer: Any, sizes: OlderRingSizes, calls: list[int]) -> torch.Tensor:
    """(positions,) relative difference of a streamed transformer of the release from its own batched run."""
    torch.manual_seed(0)
    model = transformer.StreamingTransformer(
        d_model=sizes.width, num_heads=sizes.heads, num_layers=sizes.layers, dim_feedforward=4 * sizes.width,
        causal=True, context=sizes.context_steps, positional_embedding="rope", norm="layer_norm",
    ).eval()  # fmt: skip
    x = torch.randn(1, sizes.positions, sizes.width)
    whole = model(x)
    with model.streaming(1):
        streamed = torch.cat([model(part) for part in x.split(calls, dim=1)], dim=1)
    return (streamed - whole).abs().amax(dim=(0, 2)) / whole.abs().max()


def load_transformer_module(folder: Path) -> Any:
    """`moshi.modules.transformer` of the release in `folder`, and of its siblings only what that imports.

    Takes the name `moshi` in this process, so it is called in a process made for it.
    """
    assert "moshi" not in sys.modules, "another moshi is already imported in this process"
    for name in ("moshi", "moshi.modules", "moshi.utils"):
        package = ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    # `from ..utils import quantize` reads an attribute of the package, which its skipped __init__ would have set.
    sys.modules["moshi"].utils = sys.modules["moshi.utils"]  # type: ignore[attr-defined]
    sys.modules.setdefault("bitsandbytes", ModuleType("bitsandbytes"))
    return import_module("moshi.modules.transformer")


def _probe_apart(folder: Path, sizes: OlderRingSizes) -> dict[str, float]:
    arguments = {
        "context_steps": sizes.context_steps, "positions": sizes.positions, "width": sizes.width,
        "heads": sizes.heads, "layers": sizes.layers, "tokens_per_call": sizes.tokens_per_call,
    }  # fmt: skip
    command = [sys.executable, "-m", __spec__.name, "--probe", str(folder), json.dumps(arguments)]
    environment = os.environ | {"NO_TORCH_COMPILE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=PROBE_TIMEOUT_S
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"the probe of the moshi release in {folder} failed: {reason}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="older moshi releases: fetch them, or probe one")
    parser.add_argument("--fetch", nargs="+", metavar=("FOLDER", "VERSION"), help="download and unpack sources there")
    parser.add_argument("--probe", nargs=2, metavar=("FOLDER", "SIZES"), help="print what one release does, as JSON")
    arguments = parser.parse_args()
    if arguments.fetch:
        folder, *versions = arguments.fetch
        try:
            unpacked = fetch_releases(Path(folder), tuple(versions) or VERSIONS)
        except ValueError as error:
            sys.exit(str(error))
        print("\n".join(str(path) for path in unpacked))
    elif arguments.probe:
        folder, sizes = arguments.probe
        fields = json.loads(sizes)
        fields["tokens_per_call"] = tuple(fields["tokens_per_call"])
        print(json.dumps(probe_release(load_transformer_module(Path(folder)), OlderRingSizes(**fields))))
    else:
        parser.error("give --fetch or --probe")


if __name__ == "__main__":
    main()
