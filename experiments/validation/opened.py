"""The MLflow run and folder of one validation: new ones, or those that it goes on in."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.spec import ConversationSpec
from experiments.harness import tracking
from experiments.harness.arm_process import CONFIG_FILE, RUN_FILE, is_finished
from experiments.harness.data_source import DataSource
from experiments.harness.identity import fingerprint, flattened, plain_values
from experiments.harness.outcomes import Outcome
from experiments.harness.tracking import FOLDER_TAG, RunIdentity, RunLogger, RunStatus
from experiments.long_generation.study import heard_source
from experiments.spoken.study import set_source
from experiments.validation import metric_names as own
from experiments.validation.plan import ValidationPlan
from experiments.validation.speech import LongSpeech
from experiments.validation.trained import TrainedRun


@dataclass(frozen=True, kw_only=True)
class OpenValidation:
    """logger: of the run, in the MLflow experiment `validation`. folder: its files, named by the run's tag."""

    logger: RunLogger
    folder: Path

    def has_read(self, uri: str) -> bool:
        """Whether a validation that goes on had measured the streams that are read, before it was killed."""
        return own.STREAMS in tracking.read_run(uri, self.logger.run_id).metrics

    def close(self, status: RunStatus, message: str = "") -> None:
        self.logger.close(status)
        Outcome(status=status, run_id=self.logger.run_id, message=message).write(self.folder)


def open_validation(
    uri: str, runs_dir: Path, trained: TrainedRun, plan: ValidationPlan, read: ConversationSpec,
    speech: LongSpeech | None, *, resumes: bool,
) -> OpenValidation:  # fmt: skip
    """read: the streams that are read. speech: what is spoken; None where the model cannot.

    Raises:
        ValueError: it is to go on, and there is no unfinished validation of that run with the same plan.
    """
    config = _config(trained, plan, speech)
    family = runs_dir / own.EXPERIMENT / f"{trained.experiment.scale}-seed{trained.experiment.seed}"
    if resumes:
        folder = _unfinished(family, config)
        if folder is None:
            raise ValueError(
                f"no unfinished validation of run {trained.run.run_id} with this plan is in {family}; leave out "
                "--resume to begin one"
            )
        logger = RunLogger.reopen(uri, json.loads((folder / RUN_FILE).read_text())["run_id"])
        print(f"goes on with the validation in {folder}", flush=True)
        return OpenValidation(logger=logger, folder=folder)
    sources = (set_source(read), *([] if speech is None else [heard_source(speech.heard.spec)]))
    logger = _new_run(uri, runs_dir, trained, config, sources)
    folder = family / f"{time.strftime('%Y%m%d-%H%M%S')}-{logger.run_id[:8]}"
    folder.mkdir(parents=True)
    (folder / RUN_FILE).write_text(json.dumps({"run_id": logger.run_id}))
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1))
    logger.set_tag(FOLDER_TAG, str(folder.resolve()))
    logger.log_artifact(folder / CONFIG_FILE)
    return OpenValidation(logger=logger, folder=folder)


def _config(trained: TrainedRun, plan: ValidationPlan, speech: LongSpeech | None) -> dict[str, Any]:
    """What the result depends on, as JSON gives it back."""
    spoken = None if speech is None else speech.experiment.of_arm(speech.arm.name)
    told = {
        "validated_run": trained.run.run_id,
        "validated_config": trained.run.tags["config_fingerprint"],
        "recipe": trained.experiment.recipe,
        "plan": plain_values(plan),
        "arm": {"mixer": trained.experiment.arms[0].name} if spoken is None else spoken.pop("arm"),
        "speech": spoken,
    }
    return json.loads(json.dumps(told))


def _unfinished(family: Path, config: dict[str, Any]) -> Path | None:
    """The newest of them."""
    for path in sorted(family.glob(f"*/{CONFIG_FILE}"), reverse=True):
        if json.loads(path.read_text()) == config and not is_finished(path.parent):
            return path.parent
    return None


def _new_run(
    uri: str, runs_dir: Path, trained: TrainedRun, config: dict[str, Any], sources: Sequence[DataSource]
) -> RunLogger:
    tags, experiment = trained.run.tags, trained.experiment
    identity = RunIdentity(
        experiment=own.EXPERIMENT, role="arm", arm=f"{experiment.recipe}, {tags['arm']}", seed=experiment.seed,
        scale=experiment.scale, is_adhoc=tags.get("adhoc") != "false", config_fingerprint=fingerprint(config),
        parent_run_id=None, data_sources=tuple(sources),
    )  # fmt: skip
    known = tracking.experiment_id_of(uri, own.EXPERIMENT, runs_dir)
    shown = {name: config[name] for name in ("recipe", "plan", "arm")}
    logger = RunLogger.start(uri, known, identity, flattened(shown))
    logger.set_tag(own.VALIDATED_RUN_TAG, trained.run.run_id)
    return logger
