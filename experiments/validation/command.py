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
from experiments.harness.identity import fingerprint, flattened, plain_values
from experiments.harness.text_table import aligned, human_bytes
from experiments.harness.tracking import RunIdentity, RunLogger
from experiments.spoken.arms import memory_metrics
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.recorded_plan import RecordedPlan
from experiments.spoken.study import set_source
from experiments.validation import metric_names as own
from experiments.validation.measuring import along_streams, memory_of_samples
from experiments.validation.plan import PLANS, SKIPPED, ValidationPlan
from experiments.validation.trained import TrainedRun, load_trained

USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 2 a mistake in the command or a run that cannot be validated."""
    options = _parser().parse_args(arguments)
    try:
        validate(
            options.run, Path("runs").resolve(), Path(os.environ.get("TTT_DATA_CACHE", "data_cache")).resolve(),
            options.streams, options.weights,
        )  # fmt: skip
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def validate(
    run_id: str, runs_dir: Path, data_dir: Path, streams: int | None = None, weights: Path | None = None
) -> str:
    """Measures a finished arm's run, prints a table, and gives the id of the run that all of it is logged under.

    streams: how many are read; None: the scale's number.
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
    logger = _open(uri, runs_dir, trained, plan, long)
    status: tracking.RunStatus = "FAILED"
    try:
        measured = measure(trained, plan, long, short)
        logger.log_metrics(measured, step=0)
        for name, why in SKIPPED.items():
            logger.set_tag(f"{own.SKIPPED_TAG}{name}", why)
        status = "FINISHED"
    finally:
        logger.close(status)
    print(f"\n{table_of(measured, plan)}\n")
    print(*(f"{name}: {why}" for name, why in SKIPPED.items()), sep="\n")
    return logger.run_id


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


def _open(uri: str, runs_dir: Path, trained: TrainedRun, plan: ValidationPlan, streams: ConversationSet) -> RunLogger:
    """A run in the MLflow experiment `validation`, named after what it validates."""
    tags, experiment = trained.run.tags, trained.experiment
    identity = RunIdentity(
        experiment=own.EXPERIMENT, role="arm", arm=f"{experiment.recipe}, {tags['arm']}", seed=experiment.seed,
        scale=experiment.scale, is_adhoc=tags.get("adhoc") != "false",
        config_fingerprint=fingerprint([tags["config_fingerprint"], plain_values(plan)]), parent_run_id=None,
        data_sources=(set_source(streams.spec),),
    )  # fmt: skip
    known = tracking.experiment_id_of(uri, own.EXPERIMENT, runs_dir)
    logger = RunLogger.start(uri, known, identity, flattened({"recipe": experiment.recipe, "plan": plain_values(plan)}))
    logger.set_tag(own.VALIDATED_RUN_TAG, trained.run.run_id)
    return logger


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.validation", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="id of a finished arm's run on spoken conversations")
    parser.add_argument("--streams", type=int, help="how many streams are read (default: by scale)")
    parser.add_argument("--weights", type=Path, help="the checkpoint folder that the run was built from, if any")
    return parser
