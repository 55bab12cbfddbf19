"""One arm: a trained model speaks its streams to disk, which are then judged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from backbones.speech import write_audio
from experiments.data.dataset import ConversationSet
from experiments.harness.stopping import StopRequest
from experiments.harness.study import ArmWork
from experiments.harness.tracking import RunLogger
from experiments.long_generation import metric_names as names
from experiments.long_generation.configuration import LongGenerationExperiment, SpeakingArm
from experiments.long_generation.measures import cost_of, curves_along, judged
from experiments.long_generation.quality import SOUND_FILE, WINDOWS_FILE, is_judged, judge_stream, read_quality
from experiments.long_generation.real_speech import RealSpeech, RealSummary
from experiments.long_generation.speaking import PIECES_FILE, is_spoken, read_stream, speak_group
from experiments.long_generation.trained_models import TrainedModel, load_trained, scores_of, trained_for
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.prepared_data import ExperimentData
from experiments.spoken.speaking import Speaker

STREAMS_FOLDER = "streams"
EXCERPT_S = 20.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedSpeech:
    """What all arms share. By backbone: the conversations that are heard, real speech, and what models are trained on
    where any is missing. found: trained models by arm, as far as there are any."""

    heard: dict[str, ConversationSet]
    real: dict[str, RealSpeech]
    training: dict[str, ExperimentData]
    found: dict[str, TrainedModel]


def run_speaking_arm(work: ArmWork) -> None:
    """Logs what the arm's streams cost and how good they are; leaves the first one's sound, whole and in excerpts."""
    task = work.task
    experiment: LongGenerationExperiment = task.config
    data: PreparedSpeech = task.data
    arm = experiment.arm(task.arm)
    trained = trained_for(work, data.found.get(arm.name), data.training.get(arm.backbone))
    folders = [stream_folder(task.folder, number) for number in range(arm.streams)]
    if not all(map(is_spoken, folders)):
        config = experiment.model_of(arm)
        model = load_trained(config, arm.mixer, trained)
        speaker = spoken_backbone(arm.backbone).speaker(config, model, data.heard[arm.backbone])
        speak_streams(experiment, arm, speaker, folders, work.stop, task.line)
    RealSummary.of(data.real[arm.backbone]).write(task.folder)
    for folder in folders:
        if not is_judged(folder):
            judge_stream(read_stream(folder), data.real[arm.backbone], experiment.sound_window_s)
    for folder in folders[1:]:  # judged, they are not listened to: hours of them would fill a disk
        (folder / "speech.wav").unlink(missing_ok=True)
    logged = (*names.LOGGED_AS_TRAINED, *names.LOGGED_SECTIONS_AS_TRAINED)
    work.logger.log_metrics(scores_of(trained, task.tracking_uri, logged))
    log_streams(work.logger, arm, task.folder, folders)


def stream_folder(folder: Path, number: int) -> Path:
    return folder / STREAMS_FOLDER / f"{number:02d}"


def speak_streams(
    experiment: LongGenerationExperiment, arm: SpeakingArm, speaker: Speaker, folders: Sequence[Path],
    stop: StopRequest, line: int = 0,
) -> None:  # fmt: skip
    """Speaks an arm's streams to their folders, the first one alone; those that are whole are left.

    Raises what `speak_group` raises.
    """
    for numbers in _groups(arm.streams, speaker.most_rows):
        group = [folders[number] for number in numbers]
        if all(map(is_spoken, group)):
            continue
        # An arm of its own hears and draws what no other arm of its model does: its streams count beside theirs.
        seed = experiment.seed * 10_007 + 101 * arm.first_conversation + numbers[0]
        indices = [arm.first_conversation + number * arm.conversations_apart for number in numbers]
        label = f"{arm.name}, stream {numbers[0] + 1}" + (f"-{numbers[-1] + 1}" if len(numbers) > 1 else "")
        speak_group(speaker, indices, group, seed, arm.stream_s, stop, label, line)


def _groups(streams: int, most_rows: int | None) -> Iterator[list[int]]:
    """The first stream alone, the others as many at once as can be."""
    yield [0]
    others = list(range(1, streams))
    size = most_rows or max(1, len(others))
    for first in range(0, len(others), size):
        yield others[first : first + size]


def log_streams(logger: RunLogger, arm: SpeakingArm, folder: Path, folders: Sequence[Path]) -> dict[str, float]:
    """Logs what an arm's streams cost and how good they are, curves and files; gives the numbers that are no curve.

    folder: the arm's, where excerpts are left. folders: of its streams, spoken and judged.
    """
    alone = read_stream(folders[0])
    streams = [read_quality(each) for each in folders]
    found = cost_of(alone.pieces).metrics() | judged(streams).metrics()
    found[names.STREAM_SECONDS] = sum(stream.duration_s for stream in streams)
    logger.log_metrics(found)
    for second, values in curves_along(arm, alone.pieces, streams).items():
        logger.log_metrics(values, step=second)
    left = [alone.folder / name for name in (WINDOWS_FILE, SOUND_FILE, PIECES_FILE, "speech.vtt")]
    for path in (*left, *_excerpts(alone.audio, folder)):
        logger.log_artifact(path)
    return found


def _excerpts(audio: Path, folder: Path) -> list[Path]:
    """`first.wav` and `last.wav`: how the stream begins, and what has become of it."""
    written = []
    with soundfile.SoundFile(audio) as file:
        count = min(file.frames, round(EXCERPT_S * file.samplerate))
        for name, start in (("first", 0), ("last", file.frames - count)):
            file.seek(start)
            path = folder / f"{name}.wav"
            write_audio(path, np.asarray(file.read(count, dtype="float32")), file.samplerate)
            written.append(path)
    return written
