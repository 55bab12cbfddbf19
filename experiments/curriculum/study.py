"""How stages and chains of stages are run: each arm from the weights of the one before, refused where it diverged."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.curriculum.ablation import ablation_metrics
from experiments.curriculum.chain import ChainExperiment
from experiments.curriculum.limits import StartLimits, require_healthy
from experiments.curriculum.metric_names import DIVERGED, SECONDS
from experiments.curriculum.report import report_chain
from experiments.curriculum.stages import CONTINUED_ARM, LATER_STAGES
from experiments.curriculum.start import begin_stage
from experiments.harness import tracking
from experiments.harness.arm_process import RUN_FILE
from experiments.harness.data_source import DataSource
from experiments.harness.stopping import DivergedRunError
from experiments.harness.study import ArmWork, FinishedArm, Report, RunOptions, Study
from experiments.spoken.backbone import folder_of
from experiments.spoken.prepared_data import ExperimentData, prepare_data
from experiments.spoken.study import conversations_read, spoken_study
from experiments.spoken.training import train_arm

ChainData = dict[str, ExperimentData]


def stage_study(backbone: str) -> Study:
    """Of a recipe that is one stage behind the first."""
    return dataclasses.replace(spoken_study(backbone), begin=begin_stage, on_recordings=None)


def chain_study(backbone: str) -> Study:
    """Of all stages in a row."""
    return Study(
        begin=begin_chain, prepare=prepare_chain, run_arm=run_link, report=report_chain, data_sources=chain_read,
        preloads=("experiments.spoken.training", "experiments.curriculum.study", folder_of(backbone)),
    )  # fmt: skip


def ablation_study(backbone: str) -> Study:
    """Of stages in a row against the longest at once."""
    return dataclasses.replace(chain_study(backbone), report=report_ablation)


def begin_chain(config: ChainExperiment, options: RunOptions) -> tuple[ChainExperiment, RunOptions]:
    """With `--from`, the TTT arm's stages alone, the second from that run of stage 1."""
    if options.start_run is None:
        return config, options
    second, *later = (f"{CONTINUED_ARM}-stage{stage}" for stage in LATER_STAGES)
    if not {second, *later} <= set(config.arm_names):
        raise ValueError(f"{config.recipe} is no curriculum of stages; leave out --from {options.start_run}")
    link = config.link(second)
    experiment, options = begin_stage(link.experiment, options)
    first = dataclasses.replace(link, experiment=experiment, starts_from=None)
    return dataclasses.replace(config, links=(first, *(config.link(name) for name in later))), options


def prepare_chain(config: ChainExperiment, options: RunOptions) -> ChainData:
    """The conversations of every link; those that links share are opened once."""
    opened: list[tuple[object, ExperimentData]] = []
    found: ChainData = {}
    for link in config.links:
        known = next((data for plan, data in opened if plan == link.experiment.data), None)
        if known is None:
            known = prepare_data(link.experiment, options.data_dir, skips_bad_audio=options.skips_bad_audio)
            opened.append((link.experiment.data, known))
        found[link.name] = known
    return found


def chain_read(config: ChainExperiment, data: ChainData) -> tuple[DataSource, ...]:
    """Every set of every link, once."""
    every = [source for link in config.links for source in conversations_read(link.experiment, data[link.name])]
    return tuple({source.digest: source for source in every}.values())


def run_link(work: ArmWork) -> None:
    """Trains and measures one link, after a look at the run that it starts from."""
    task = work.task
    config: ChainExperiment = task.config
    link = config.link(task.arm)
    if link.starts_from is not None:
        assert task.start_folder is not None
        run_id = json.loads((task.start_folder / RUN_FILE).read_text())["run_id"]
        require_healthy(task.tracking_uri, tracking.read_run(task.tracking_uri, run_id), limits_of(work))
    experiment, started = link.experiment, time.monotonic()
    try:
        train_arm(
            experiment, experiment.arms[0], task.data[link.name], work.logger, work.stop, task.folder, task.weights,
            task.line, task.start_folder, task.label,
        )  # fmt: skip
    except DivergedRunError as error:
        if not link.survives_divergence:
            raise
        work.logger.set_tag("diverged", str(error))
        work.logger.log_metrics({DIVERGED: 1.0}, step=experiment.data.steps)
        print(f"{task.label}: diverged, as it may: {error}", flush=True)
    else:
        if link.survives_divergence:
            work.logger.log_metrics({DIVERGED: 0.0}, step=experiment.data.steps)
    work.logger.log_metrics({SECONDS: time.monotonic() - started}, step=experiment.data.steps)


def limits_of(work: ArmWork) -> StartLimits:
    return StartLimits.given(work.task.start_limits)


def report_ablation(config: ChainExperiment, folder: Path, uri: str, finished: Sequence[FinishedArm]) -> Report:
    """The chain's table, and the claim's metrics."""
    whole = report_chain(config, folder, uri, finished)
    metrics, lines = ablation_metrics(config, finished)
    return dataclasses.replace(whole, metrics=metrics, table="\n".join([whole.table, *lines]))
