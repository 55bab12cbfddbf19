"""One arm: calibrates a detector of one view on real streams, then measures its errors on held-out ones."""

from __future__ import annotations

import math
import time

import numpy as np

from experiments.data.dataset import ConversationSet
from experiments.harness import metric_names as names
from experiments.harness.memory import peak_bytes, start_measuring
from experiments.harness.stopping import InterruptedRunError, StopRequest
from experiments.harness.study import ArmWork
from experiments.quality.configuration import DetectorExperiment
from experiments.quality.detector import GibberishDetector
from experiments.quality.evaluation import Evaluation, WatchedStream, evaluate, write_onsets
from experiments.quality.views import SoundView, SymbolView, draw_onset, open_view

EVALUATION_FILE, DETECTOR_FILE, ONSETS_FILE = "evaluation.json", "detector.json", "onsets.csv"
AUC_BY_KIND, ONSETS_BY_KIND, DELAY_BY_KIND = "auc_by_kind", "share_of_onsets_by_kind", "delay_seconds_by_kind"
THRESHOLD, FALSE_ALARMS, CLEAN_HOURS = "detector/threshold", "detector/false_alarms", "detector/clean_hours"
SECONDS_PER_HOUR_OF_STREAM = "speed/seconds_per_hour_of_stream"


def run_detector_arm(work: ArmWork) -> None:
    """Logs what the detector of the arm's view is worth; its files are the detector, every onset, and the ROC."""
    experiment: DetectorExperiment = work.task.config
    dataset: ConversationSet = work.task.data[experiment.seed]
    bytes_at_start = start_measuring()
    view = open_view(experiment, work.task.arm, dataset)
    real = [list(view.clean(index)) for index in dataset.split_indices("train")[experiment.model_conversations :]]
    _end_if_asked(work.stop)
    detector = GibberishDetector.calibrate(
        real,
        false_alarms_per_hour=experiment.false_alarms_per_hour,
        windows_to_raise=experiment.windows_to_raise,
    )
    started = time.process_time()
    clean = [
        WatchedStream(
            conversation=dataset[index].name, kind="", onset_s=None, windows=tuple(detector.watch(view.clean(index)))
        )
        for index in dataset.split_indices("validation")
    ]
    seconds = time.process_time() - started
    damaged = plant(experiment, dataset, view, detector, work.stop)
    found = evaluate(clean, damaged, detector.threshold, detector.calibrated_hours)
    work.logger.log_metrics(arm_metrics(experiment, found))
    work.logger.log_metrics(
        {
            SECONDS_PER_HOUR_OF_STREAM: seconds / found.clean_hours,
            names.PEAK_BYTES: peak_bytes(),
            names.PEAK_BYTES_ABOVE_START: peak_bytes() - bytes_at_start,
        }
    )
    folder = work.task.folder
    found.save(folder / EVALUATION_FILE)
    detector.save(folder / DETECTOR_FILE)
    for path in (folder / DETECTOR_FILE, write_onsets(folder / ONSETS_FILE, found)):
        work.logger.log_artifact(path)


def plant(
    experiment: DetectorExperiment,
    dataset: ConversationSet,
    view: SymbolView | SoundView,
    detector: GibberishDetector,
    stop: StopRequest,
) -> list[WatchedStream]:
    """Every kind of damage in every validation conversation, with what the detector says of it. All kinds and views
    of a seed begin at the same second of a conversation."""
    streams = []
    for index in dataset.split_indices("validation"):
        _end_if_asked(stop)
        onset_s = draw_onset(
            dataset, index, experiment.onset_between_s, np.random.default_rng([experiment.seed, index])
        )
        excerpt = view.excerpt(index, experiment.excerpt_s)
        for place, kind in enumerate(view.damages):
            rng = np.random.default_rng([experiment.seed, index, place])
            windows = view.damaged(excerpt, kind, onset_s, rng)
            watched = tuple(detector.watch(windows))
            streams.append(WatchedStream(conversation=dataset[index].name, kind=kind, onset_s=onset_s, windows=watched))
    return streams


def _end_if_asked(stop: StopRequest) -> None:
    if stop.is_asked:
        raise InterruptedRunError("stopped while streams were measured; resumed, the arm measures them again")


def arm_metrics(experiment: DetectorExperiment, found: Evaluation) -> dict[str, float]:
    """What one view under one seed logs. The delay of a kind is the median over its streams, where most were found."""
    metrics = {
        THRESHOLD: found.threshold,
        FALSE_ALARMS: float(found.false_alarms),
        CLEAN_HOURS: found.clean_hours,
        "detector/calibrated_hours": found.calibrated_hours,
    }
    for kind, own in found.kinds.items():
        metrics[f"{AUC_BY_KIND}/{kind}"] = own.auc
        metrics[f"{ONSETS_BY_KIND}/{kind}"] = float(np.mean(own.found_within(experiment.tolerated_onset_s)))
        delay_s = float(np.median([each.delay_s for each in own.onsets]))
        if math.isfinite(delay_s):
            metrics[f"{DELAY_BY_KIND}/{kind}"] = delay_s
    return metrics
