"""Must a stream wait for TTT's mini-batch of 64, 5.12 s? One token a call against one call for all (claim C12)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.moshi import FRAME_RATE_HZ
from experiments.wraparound.mechanics.probe_models import (
    SMALL,
    InnerModel,
    ProbeModel,
    ProbeTTT,
    build_probe_lm,
    random_tokens,
    relative_difference,
    streamed_logits,
    whole_logits,
)
from experiments.wraparound.mechanics.timing import waited_for

INNER_MODELS: tuple[InnerModel, ...] = ("linear", "mlp")


@dataclass(frozen=True, kw_only=True)
class BufferingSizes:
    """positions: of the stream, two mini-batches and a part at least. TTT replaces the model's last layer."""

    model: ProbeModel = SMALL
    mini_batch_steps: int = 64
    positions: int = 300

    def __post_init__(self) -> None:
        if self.positions <= 2 * self.mini_batch_steps:
            raise ValueError(
                f"{self.positions} positions hold no part of a third mini-batch of {self.mini_batch_steps}; give more"
            )


@dataclass(frozen=True, kw_only=True)
class Buffering:
    """Each by inner model. difference: (positions,) relative, of one token per call from one call for all.

    calls_waited: (positions,) calls between the one that brings a token and the one that gives its output.
    change_by_future: largest change of the first half's outputs when all tokens after it are others.
    seconds: (positions,) waited for each step.
    """

    sizes: BufferingSizes
    difference: dict[str, NDArray[np.float64]]
    calls_waited: dict[str, NDArray[np.int64]]
    change_by_future: dict[str, float]
    seconds: dict[str, NDArray[np.float64]]

    def metrics(self) -> dict[str, float]:
        sizes = self.sizes
        metrics = {"buffering/seconds_of_one_mini_batch": sizes.mini_batch_steps / FRAME_RATE_HZ}
        closes = np.arange(sizes.positions) % sizes.mini_batch_steps == sizes.mini_batch_steps - 1
        for inner, seconds in self.seconds.items():
            waited = int(self.calls_waited[inner].max())
            metrics[f"buffering/{inner}_calls_an_output_waits"] = waited
            metrics[f"buffering/{inner}_seconds_an_output_waits"] = waited / FRAME_RATE_HZ
            metrics[f"buffering/{inner}_max_difference"] = self.difference[inner].max()
            metrics[f"buffering/{inner}_change_by_other_future"] = self.change_by_future[inner]
            metrics[f"buffering/{inner}_step_ms"] = 1e3 * np.median(seconds)
            metrics[f"buffering/{inner}_step_ms_95th_percentile"] = 1e3 * np.quantile(seconds, 0.95)
            metrics[f"buffering/{inner}_step_ms_that_closes_a_mini_batch"] = 1e3 * np.median(seconds[closes])
        return {name: float(value) for name, value in metrics.items()}

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        differences = {f"buffering/{inner}_difference": values for inner, values in self.difference.items()}
        return differences | {f"buffering/{inner}_step_ms": 1e3 * values for inner, values in self.seconds.items()}


@torch.no_grad()
def measure_buffering(sizes: BufferingSizes) -> Buffering:
    """Streams tokens one by one through a model with TTT, whole and with another future, and times the steps."""
    tokens = random_tokens(sizes.model, rows=1, positions=sizes.positions)
    half = sizes.positions // 2
    other = tokens.clone()
    other[..., half:] = (other[..., half:] + 1) % sizes.model.vocabulary
    difference, waited, changed, seconds = {}, {}, {}, {}
    one_by_one = [1] * sizes.positions
    for inner in INNER_MODELS:
        lm = build_probe_lm(sizes.model, ProbeTTT(inner_model=inner, mini_batch_steps=sizes.mini_batch_steps))
        whole = whole_logits(lm, tokens)
        streamed = streamed_logits(lm, tokens, one_by_one)
        difference[inner] = relative_difference(streamed, whole).numpy()
        waited[inner] = calls_waited(streamed[0], whole[0])
        with_other_future = streamed_logits(lm, other, one_by_one)
        changed[inner] = float((with_other_future - streamed)[:, :half].abs().max() / whole.abs().max())
        with lm.streaming(1):
            taken = [waited_for(lambda lm=lm, t=t: whole_logits(lm, t)) for t in tokens.split(1, dim=2)]
        seconds[inner] = np.array(taken)
    return Buffering(sizes=sizes, difference=difference, calls_waited=waited, change_by_future=changed, seconds=seconds)


def calls_waited(given: Tensor, whole: Tensor) -> NDArray[np.int64]:
    """(positions,) calls after a token's own until a call gives what the whole run has for it; 0 when its own does.

    given: (calls, vocabulary) what each call of one token gave. whole: (positions, vocabulary).
    """
    given_by = torch.cdist(whole, given).argmin(dim=1)
    return (given_by - torch.arange(len(whole))).numpy()
