"""Streams that are really run: bytes held at small size on any machine, and allocated at full size on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch

from experiments.harness.held_tensors import held_bytes
from experiments.memory.accounting import Subject
from experiments.memory.configuration import AllocationPlan, CheckPlan

MEBIBYTE = 2**20
WARM_UP_POSITIONS = 3
POSITIONS_OF_PREALLOCATED = 16
SHARE_OF_FREE_MEMORY = 0.85
"""What else there is while a cache is filled: activations, and both copies of a layer's keys while they grow."""
ALLOCATOR_SHARE, ALLOCATOR_BYTES = 0.02, 128 * MEBIBYTE
"""What CUDA's allocator may add: up to 1 MiB a tensor by rounding, and the libraries' own workspaces."""


class WrongPredictionError(RuntimeError):
    """The bytes that a stream holds are not those computed for it: one of the two is wrong."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Bytes of a batch after so many positions. allocated_bytes: by the GPU's allocator, None without one."""

    rows: int
    positions: int
    predicted_bytes: int
    held_bytes: int
    allocated_bytes: int | None = None

    @property
    def held_over_predicted(self) -> float:
        return self.held_bytes / self.predicted_bytes

    @property
    def allocated_over_predicted(self) -> float | None:
        return None if self.allocated_bytes is None else self.allocated_bytes / self.predicted_bytes


def measure_small(subject: Subject, plan: CheckPlan) -> list[Measurement]:
    """What small streams hold at every position and batch size of the plan."""
    measured = []
    for rows in plan.batch_sizes:
        with subject.open_stream(rows) as stream:
            stream.say(plan.said_tokens)
            for before, positions in pairwise((0, *plan.positions)):
                # One call of several positions, then one of one: prefill and decoding.
                if positions - before > 1:
                    stream.advance(positions - before - 1)
                stream.advance(1)
                measured.append(
                    Measurement(
                        rows=rows,
                        positions=positions,
                        predicted_bytes=rows * subject.memory.bytes_of_run(positions, plan.said_tokens),
                        held_bytes=held_bytes(stream.held, subject.weights()),
                    )
                )
    return measured


def check(measured: list[Measurement]) -> None:
    """Raises WrongPredictionError where the held bytes are not the predicted ones, to the byte.

    What the allocator adds is no error of the arithmetic; it may not go beyond its rounding and workspaces.
    """
    for each in measured:
        where = f"{each.rows} x {each.positions:,} positions"
        if each.held_bytes != each.predicted_bytes:
            raise WrongPredictionError(
                f"{where}: predicted {each.predicted_bytes:,} bytes, held {each.held_bytes:,} "
                f"({each.held_over_predicted:.6f} times as many): describe() or the cache counts wrongly"
            )
        if each.allocated_bytes is None:
            continue
        added = each.allocated_bytes - each.predicted_bytes
        if not 0 <= added <= max(ALLOCATOR_BYTES, ALLOCATOR_SHARE * each.predicted_bytes):
            raise WrongPredictionError(
                f"{where}: predicted {each.predicted_bytes:,} bytes, allocated {each.allocated_bytes:,}: more than "
                "rounding explains, so something is held that describe() does not know"
            )


def measure_allocated(subject: Subject, plan: AllocationPlan) -> tuple[list[Measurement], list[str]]:
    """Caches filled on the GPU that the subject is on, and what was left out because it would not fit."""
    measured: list[Measurement] = []
    left_out: list[str] = []
    _warm_up(subject, plan)
    for rows in plan.batch_sizes:
        free_bytes, _ = torch.cuda.mem_get_info()
        room = SHARE_OF_FREE_MEMORY * (free_bytes + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
        fitting = [positions for positions in plan.positions if rows * subject.memory.bytes_at(positions) <= room]
        left_out += [
            f"{rows} x {positions:,} positions need {rows * subject.memory.bytes_at(positions) / 1e9:.1f} GB, there is "
            f"room for {room / 1e9:.1f} GB"
            for positions in plan.positions
            if positions not in fitting
        ]
        if not fitting:
            continue
        torch.cuda.synchronize()
        before_bytes = torch.cuda.memory_allocated()
        with subject.open_stream(rows) as stream:
            done = 0
            for positions in fitting:
                # Rings are whole from the first frame on: reading on frame by frame would change nothing.
                goal = min(positions, POSITIONS_OF_PREALLOCATED) if subject.holds_all_at_once else positions
                while done < goal:
                    step = min(plan.positions_per_call, goal - done)
                    stream.advance(step)
                    done += step
                torch.cuda.synchronize()
                measured.append(
                    Measurement(
                        rows=rows,
                        positions=positions,
                        predicted_bytes=rows * subject.memory.bytes_at(positions),
                        held_bytes=held_bytes(stream.held, subject.weights()),
                        allocated_bytes=torch.cuda.memory_allocated() - before_bytes,
                    )
                )
        del stream  # its cache would still be allocated when the next batch is measured
    return measured, left_out


def _warm_up(subject: Subject, plan: AllocationPlan) -> None:
    """Lets the libraries allocate what they keep for themselves."""
    with subject.open_stream(max(plan.batch_sizes)) as stream:
        stream.advance(WARM_UP_POSITIONS)
        if not subject.holds_all_at_once:
            stream.advance(plan.positions_per_call)
