"""How the drift experiment is done."""

from __future__ import annotations

import json

from experiments.drift.configuration import MODEL, DriftExperiment
from experiments.drift.model_arm import run_model_arm
from experiments.drift.report import report_drift
from experiments.drift.state_arm import run_state_arm
from experiments.drift.vectors import Mel, speak_utterances
from experiments.fact_streams.data_source import fact_stream_source
from experiments.harness.data_source import DataSource, digest_of
from experiments.harness.study import ArmWork, RunOptions, Study


def prepare_speech(experiment: DriftExperiment, options: RunOptions) -> list[Mel]:
    """The utterances that the speech streams are strung together from; none where no chosen arm reads speech."""
    needs_speech = "speech" in experiment.state.kinds and set(options.arms) != {MODEL}
    return speak_utterances(experiment.state.speech_utterances) if needs_speech else []


def speech_and_streams_read(experiment: DriftExperiment, speech: list[Mel]) -> tuple[DataSource, ...]:
    """What the random layers read that is not drawn from a normal distribution, and what the trained model reads."""
    plan = json.dumps({"speech_utterances": experiment.state.speech_utterances})
    spoken = DataSource(name="speech", digest=digest_of(mel.tobytes() for mel in speech), made_from=plan)
    return (*((spoken,) if speech else ()), fact_stream_source(experiment.model_part.stream))


def run_drift_arm(work: ArmWork) -> None:
    """The trained model, or random layers."""
    experiment: DriftExperiment = work.task.config
    if work.task.arm == MODEL:
        run_model_arm(experiment, work)
    else:
        run_state_arm(experiment, work)


DRIFT = Study(
    prepare=prepare_speech,
    run_arm=run_drift_arm,
    report=report_drift,
    data_sources=speech_and_streams_read,
    preloads=("experiments.drift.model_arm",),
)
