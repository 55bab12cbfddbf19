"""One arm: bytes computed from the published dimensions, checked on a small model, and filled in on a GPU."""

from __future__ import annotations

import torch

from experiments.harness.study import ArmWork
from experiments.memory.configuration import AllocationPlan, Arrangement, MemoryExperiment
from experiments.memory.measuring import check, measure_allocated, measure_small
from experiments.memory.metrics import allocation_metrics, check_metrics, memory_metrics
from experiments.memory.subjects import published_subject, small_subject

DESCRIPTION_FILE = "memory.txt"


def run_memory_arm(work: ArmWork) -> None:
    """Logs what the arm's arrangement takes. Raises WrongPredictionError where a real stream takes something else."""
    task = work.task
    config: MemoryExperiment = task.config
    arrangement = config.arm(task.arm)
    torch.manual_seed(config.seed)
    subject = published_subject(arrangement, config.mini_batch_size)
    work.logger.log_metrics(memory_metrics(subject, config, config.backbone(arrangement.backbone)))
    description = task.folder / DESCRIPTION_FILE
    description.write_text(f"one conversation of {task.arm}, bfloat16\n\n{subject.memory.layers}\n")
    work.logger.log_artifact(description)
    small = small_subject(config.check.shrunk(arrangement), config.check.mini_batch_size)
    measured = measure_small(small, config.check)
    work.logger.log_metrics(check_metrics(measured))
    check(measured)
    if config.allocation is not None and torch.cuda.is_available():
        _fill_on_gpu(work, arrangement, config.mini_batch_size, config.allocation)


def _fill_on_gpu(work: ArmWork, arrangement: Arrangement, mini_batch_size: int, plan: AllocationPlan) -> None:
    subject = published_subject(arrangement, mini_batch_size, device="cuda")
    torch.cuda.empty_cache()  # the weights were FP32 while they were drawn
    measured, left_out = measure_allocated(subject, plan)
    work.logger.log_metrics(allocation_metrics(measured))
    if left_out:
        work.logger.set_tag("left_out", "; ".join(left_out))
        print(f"{work.task.label}: left out: {'; '.join(left_out)}", flush=True)
    check(measured)
