"""The monitor along a stream: its rows and alarms as part of a view's run."""

from __future__ import annotations

from pathlib import Path

from experiments.harness.tracking import RunLogger
from ttt_core import TTTMonitor

ALARM_POSITION = "stream/alarm_position_"


def stream_monitor(folder: Path) -> TTTMonitor:
    """For one view; rows of an earlier try are forgotten."""
    monitor = TTTMonitor(folder / "monitor", watches="stream")
    monitor.rewind(-1)
    return monitor


def log_alarms(monitor: TTTMonitor, logger: RunLogger) -> None:
    """Every alarm as a tag with its message, the position of the first of each kind as a metric, the rows as a file.

    A kind that never was an alarm has no metric.
    """
    first = dict[str, float]()
    for alarm in monitor.alarms:
        logger.set_tag(f"alarm.{alarm.kind}.layer{alarm.layer}", alarm.message)
        first.setdefault(f"{ALARM_POSITION}{alarm.kind}", float(alarm.step))
    logger.log_metrics(first)
    logger.log_artifact(monitor.csv_path)
