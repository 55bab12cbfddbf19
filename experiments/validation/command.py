"""The command that validates a run: `python -m experiments.validation RUN`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.curriculum.stages import drawn_positions
from experiments.data.dataset import ConversationSet
from experiments.data.synthetic import build_conversations
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.stopping import InterruptedRunError, StopRequest
from experiments.harness.text_table import aligned, human_bytes
from experiments.spoken.arms import memory_metrics
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.recorded_plan import RecordedPlan
from experiments.validation import metric_names as own
from experiments.validation.measuring import along_streams, memory_of_samples
from experiments.validation.opened import open_validation
from experiments.validation.plan import PLANS, ValidationPlan
from experiments.validation.speech import CannotSpeakError, prepare_speech, speak_and_judge, speech_lines
from experiments.validation.trained import TrainedRun, load_trained

USER_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 2 a mistake in the command or a run that cannot be validated, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        validate(
            options.run, Path("runs").resolve(), Path(os.environ.get("TTT_DATA_CACHE", "data_cache")).resolve(),
            streams=options.streams, weights=options.weights, resumes=options.resume, stop=StopRequest(),
        )  # fmt: skip
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except InterruptedRunError as interruption:
        print(f"{interruption}: make validate RUN={options.run} RESUME=1", file=sys.stderr)
        return INTERRUPTED
    return 0


def validate(
    run_id: str, runs_dir: Path, data_dir: Path, *, stop: StopRequest, streams: int | None = None,
    weights: Path | None = None, resumes: bool = False,
) -> str:  # fmt: skip
    """Measures a finished arm's run, prints what was found, and gives the id of the run that all is logged under.

    streams: how many are read; None: the scale's number. resumes: go on with a validation that was killed.
    stop: is listened to while the model speaks.

    Raises:
        ValueError: the run cannot be validated. InterruptedRunError: a stop was asked for; resumed, it goes on.
    """
    uri = tracking.store_uri(runs_dir)
    tracking.prepare_store(uri)
    trained = load_trained(uri, run_id, weights)
    if isinstance(trained.experiment.data, RecordedPlan):
        raise ValueError(
            f"run {run_id} was trained on own recordings ({trained.experiment.data.name}), and validation asks for "
            "facts of synthetic conversations; its loss along held-out recordings is in its own run: loss_by_position"
        )
    plan = PLANS[trained.experiment.scale]
    plan = plan if streams is None else dataclasses.replace(plan, streams=streams)
    long, short = (
        conversations(trained, positions, count, data_dir)
        for positions, count in ((plan.positions, plan.streams), (plan.memory_positions, 1))
    )
    speech, why_not = None, ""
    try:
        speech = prepare_speech(trained, plan, data_dir)
    except CannotSpeakError as error:
        why_not = str(error)
    opened = open_validation(uri, runs_dir, trained, plan, long.spec, speech, resumes=resumes)
    status: tracking.RunStatus = "FAILED"
    try:
        if not opened.has_read(
            uri
        ):  # before anything is spoken: what a sample takes is seen in a process that rose little
            measured = measure(trained, plan, long, short)
            opened.logger.log_metrics(measured, step=0)
            opened.logger.write_pending()
            print(f"\n{table_of(measured, plan)}\n", flush=True)
        if speech is None:
            opened.logger.set_tag(own.SKIPPED_TAG, why_not)
            print(why_not)
        else:
            print(f"\n{speech_lines(speak_and_judge(speech, opened.logger, opened.folder, stop.listen()))}\n")
        status = "FINISHED"
    except InterruptedRunError:
        status = "KILLED"
        raise
    finally:
        opened.close(status)
    return opened.logger.run_id


def conversations(trained: TrainedRun, positions: int, count: int, data_dir: Path) -> ConversationSet:
    """Held-out conversations of that length, in the backbone's own positions: of the run's own sentences and voices."""
    spec = dataclasses.replace(
        trained.experiment.data.spec,
        positions=drawn_positions(trained.experiment, positions),
        conversations=1,
        validation_conversations=count,
    )
    return build_conversations(spec, data_dir)


def measure(
    trained: TrainedRun, plan: ValidationPlan, long: ConversationSet, short: ConversationSet
) -> dict[str, float]:
    """Everything that a validation measures, by its logged name."""
    experiment = trained.experiment
    memory = spoken_backbone(experiment.backbone).memory_of(experiment, experiment.arms[0])
    return {
        **memory_metrics(memory, plan.positions),
        **memory_of_samples(trained.module, trained.loader, short),
        **along_streams(trained.module, trained.loader, long, plan, has_ttt=trained.has_ttt),
    }


def table_of(measured: dict[str, float], plan: ValidationPlan) -> str:
    """One line a bucket, and the numbers that have none."""

    def cell(section: str, bucket: tuple[int, int], form: str) -> str:
        value = measured.get(names.bucket_name(section, *bucket))
        return "-" if value is None else format(value, form)

    rows = [["positions", "perplexity", "gain of memory, nats", "recall at that distance"]]
    for bucket in names.buckets(plan.edges):
        rows.append(
            [
                f"{bucket[0]:,}-{bucket[1]:,}",
                cell(own.PERPLEXITY_BY_POSITION, bucket, ".3f"),
                cell(own.GAIN_BY_POSITION, bucket, "+.4f"),
                cell(names.RECALL_BY_DISTANCE, bucket, ".2f"),
            ]
        )
    lines = [
        aligned(rows, text_columns=1),
        f"recall by guessing: {measured[names.RECALL_CHANCE]:.3f}; read at {measured[own.READ_SPEED]:,.0f} positions/s",
        f"state of one conversation: {human_bytes(measured[names.STATE_BYTES])}; peak while reading, above the model: "
        f"{human_bytes(measured[f'{own.PEAK_PER_SAMPLE}1'])} for one sample, "
        f"{human_bytes(measured[f'{own.PEAK_PER_SAMPLE}4'])} a sample for four",
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.validation", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="id of a finished arm's run on spoken conversations")
    parser.add_argument("--streams", type=int, help="how many streams are read (default: by scale)")
    parser.add_argument("--resume", action="store_true", help="go on with a validation of that run that was killed")
    parser.add_argument("--weights", type=Path, help="the checkpoint folder that the run was built from, if any")
    return parser
