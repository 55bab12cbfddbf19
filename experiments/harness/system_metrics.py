"""What the machine does while an experiment and its arms run: MLflow's own monitor, under `system/`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.system_metrics import system_metrics_monitor

from experiments.harness.study import Scale

SECONDS_BETWEEN_SAMPLES: dict[Scale, float] = {"smoke": 1.0, "cpu": 5.0, "gpu": 5.0, "full": 10.0}
"""An arm of a smoke run ends within seconds and is to have a sample all the same."""


@contextmanager
def machine_watched(uri: str, run_id: str, scale: Scale, goes_on: bool) -> Iterator[None]:
    """Logs cores, memory, disk, network and GPU, where there is one, of the whole machine, while the context is open.

    goes_on: the run was begun earlier, and its steps are counted on.
    """
    logging.getLogger(system_metrics_monitor.__name__).setLevel(logging.WARNING)  # it reports every start and stop
    monitor = system_metrics_monitor.SystemMetricsMonitor(
        run_id, sampling_interval=SECONDS_BETWEEN_SAMPLES[scale], resume_logging=goes_on, tracking_uri=uri
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
