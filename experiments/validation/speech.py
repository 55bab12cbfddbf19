"""The validated model speaks one long stream, judged and logged as long-generation's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from experiments.data.dataset import ConversationSet
from experiments.data.synthetic import build_conversations
from experiments.harness.stopping import StopRequest
from experiments.harness.text_table import human_bytes
from experiments.harness.tracking import RunLogger
from experiments.long_generation import metric_names as names
from experiments.long_generation.arm import log_streams, speak_streams, stream_folder
from experiments.long_generation.configuration import LongGenerationExperiment, SpeakingArm
from experiments.long_generation.quality import is_judged, judge_stream
from experiments.long_generation.real_speech import RealSummary, learn_real_speech
from experiments.long_generation.speaking import read_stream
from experiments.recipes import RECIPES
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.speaking import Speaker
from experiments.validation import metric_names as own
from experiments.validation.plan import ValidationPlan
from experiments.validation.trained import TrainedRun


class CannotSpeakError(ValueError):
    """A trained model that no long stream can be had of; the message says why, in one line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LongSpeech:
    """experiment: long-generation of that scale, with one arm and one model: the validated one. heard: conversations
    that no training has drawn, whose user turns the speaker hears and whose other side is real speech."""

    experiment: LongGenerationExperiment
    heard: ConversationSet
    speaker: Speaker

    @property
    def arm(self) -> SpeakingArm:
        [arm] = self.experiment.arms
        return arm


def speech_plan(trained: TrainedRun, plan: ValidationPlan) -> LongGenerationExperiment:
    """What is spoken, and by which real speech it is judged: long-generation's own choices at that scale."""
    recipe, model = RECIPES["long-generation"].configure(
        scale=trained.experiment.scale, seed=trained.experiment.seed
    ), trained.experiment  # fmt: skip
    assert isinstance(recipe, LongGenerationExperiment)
    mixer = model.arms[0].name
    arm = SpeakingArm(
        name=f"{model.backbone}-{mixer}", backbone=model.backbone, mixer=mixer, streams=1, stream_s=plan.speech_s,
        bucket_s=plan.speech_bucket_s,
    )  # fmt: skip
    return dataclasses.replace(recipe, recipe=own.EXPERIMENT, models=(model,), arms=(arm,))


def prepare_speech(trained: TrainedRun, plan: ValidationPlan, data_dir: Path) -> LongSpeech:
    """Everything that speaking takes.

    Raises:
        CannotSpeakError: the backbone has no stream for a model of this configuration.
    """
    experiment, model = speech_plan(trained, plan), trained.experiment
    heard = build_conversations(experiment.heard_spec(model), data_dir)
    try:
        speaker = spoken_backbone(model.backbone).speaker(model, trained.module.model, heard)
    except ValueError as error:
        raise CannotSpeakError(f"{model.recipe}, {model.arms[0].name} cannot speak for long: {error}") from error
    return LongSpeech(experiment=experiment, heard=heard, speaker=speaker)


def speak_and_judge(speech: LongSpeech, logger: RunLogger, folder: Path, stop: StopRequest) -> dict[str, float]:
    """Speaks the stream into `folder`, or goes on with what is there, judges it, and logs all of it.

    Raises:
        InterruptedRunError: the stop was asked for. ValueError, OSError: those of `speak_group`.
    """
    stream = stream_folder(folder, 0)
    speak_streams(speech.experiment, speech.arm, speech.speaker, [stream], stop)
    if not is_judged(stream):
        print("learning what real speech is in these symbols", flush=True)
        backbone = spoken_backbone(speech.arm.backbone)
        real = learn_real_speech(speech.experiment, backbone, speech.heard)
        RealSummary.of(real).write(folder)
        judge_stream(read_stream(stream), real, speech.experiment.sound_window_s)
    logger.set_tag(own.REAL_SPEECH_TAG, real_speech_line(RealSummary.read(folder)))
    return log_streams(logger, speech.arm, folder, [stream])


def real_speech_line(real: RealSummary) -> str:
    """How often real speech raises the alarm itself."""
    return (
        f"real speech raised {real.control_alarms} in {real.control_hours:.3g} held-out hours; calibrated on "
        f"{real.calibrated_hours:.3g} hours to {real.false_alarms_per_hour:g} an hour"
    )


def speech_lines(measured: dict[str, float]) -> str:
    """What was found, for the terminal."""
    first_audio_ms = measured.get(names.FIRST_AUDIO_MS)
    growth = measured.get(names.STATE_BYTES_PER_MINUTE)
    alarms = measured[names.ALARMS_PER_HOUR] * measured[names.STREAM_SECONDS] / 3600
    first_s = measured.get(names.FIRST_ALARM_S)
    latency = "no sound at all" if first_audio_ms is None else f"first audio after {first_audio_ms:.0f} ms"
    grows = "too few pieces to tell by how much it grows"
    if growth is not None:
        grows = f"growing by {growth:,.0f} bytes a minute over the second half"
    return "\n".join([
        f"spoke {measured[names.STREAM_SECONDS]:,.0f} s, {measured[names.REAL_TIME_FACTOR]:.3f} s of compute a second, "
        f"{latency}",
        f"held at the end: {human_bytes(measured[names.STATE_BYTES_AT_THE_END])}, {grows}",
        f"alarms: {alarms:.0f}" + ("" if first_s is None else f", the first at {first_s:,.0f} s"),
    ])  # fmt: skip
