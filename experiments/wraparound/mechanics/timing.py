"""Times of steps by position: medians with their spread, and how they grow, with an interval."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A slope and its 95 % interval (ordinary least squares, Student's t)."""

    value: float
    low: float
    high: float

    def metrics(self, name: str) -> dict[str, float]:
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def waited_for(call: Callable[[], object]) -> float:
    """Seconds from the start of a call to its end, whatever else the machine did meanwhile."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def computed_by(call: Callable[[], object]) -> float:
    """CPU seconds of this thread in a call.

    What a step costs and how it grows is read off these: with other programs on the same cores the times waited had
    two humps, 2.5 and 6 ms for one and the same step, and medians fell on either.
    """
    start = time.thread_time()
    call()
    return time.thread_time() - start


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in the calling thread alone, so that its CPU time is all there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def timed_in_turns(calls: Mapping[int, Callable[[], object]], rounds: int) -> dict[int, NDArray[np.float64]]:
    """Key -> (rounds,) CPU seconds of its call on one thread, all keys once per round.

    In turns and each time in another order, so that whatever else the machine does meanwhile, and whatever a call
    leaves in its caches, falls on every key alike. A first round is run and thrown away.
    """
    seconds: dict[int, list[float]] = {key: [] for key in calls}
    order = random.Random(0)
    with one_thread():
        for turn in range(rounds + 1):
            for key in order.sample(list(calls), len(calls)):
                taken = computed_by(calls[key])
                if turn:
                    seconds[key].append(taken)
    return {key: np.array(values) for key, values in seconds.items()}


def slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> Slope:
    """Slope of y over x with its interval."""
    fit = stats.linregress(x, y)
    reach = float(fit.stderr) * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2))
    return Slope(value=float(fit.slope), low=float(fit.slope) - reach, high=float(fit.slope) + reach)


def medians(seconds: Mapping[int, NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(keys,) and their median seconds, for a fit.

    Medians and not every step: what one key's steps share by accident (where its tensors lie in memory) is an error of
    that key, and counting it once per step would make the interval several times too narrow.
    """
    return np.array(list(seconds), dtype=np.float64), np.array([np.median(values) for values in seconds.values()])


def require_three(positions: tuple[int, ...]) -> None:
    """ValueError where a slope over these positions would have no interval."""
    if len(positions) < 3:
        raise ValueError(f"a slope with an interval needs 3 or more positions, got {positions}")


def quartiles_ms(seconds: NDArray[np.float64]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile, in milliseconds."""
    low, middle, high = 1e3 * np.quantile(seconds, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def quartile_table(seconds: Mapping[int, NDArray[np.float64]]) -> NDArray[np.float64]:
    """(keys, 4): key, lower quartile, median, upper quartile in milliseconds, for a figure."""
    return np.array([(key, *quartiles_ms(values)) for key, values in seconds.items()])
