"""The model that an arm speaks with: found among the runs of stage 1, or trained here by the same configuration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.harness import tracking
from experiments.harness.arm_process import CONFIG_FILE, RUN_FILE, is_finished, looked_at
from experiments.harness.checkpoints import load_weights_strictly, read_checkpoint
from experiments.harness.memory import device
from experiments.harness.study import ArmWork
from experiments.long_generation.configuration import LongGenerationExperiment, SpeakingArm
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.prepared_data import ExperimentData
from experiments.spoken.training import train_arm

RECIPE = "long-generation"
TRAINED_FOLDER, TRAINED_FILE = "trained", "trained.json"
LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A finished training: its folder, and its MLflow run."""

    folder: Path
    run_id: str

    def write(self, folder: Path) -> None:
        """Leaves word of it for the arms that start from this one."""
        (folder / TRAINED_FILE).write_text(json.dumps({**asdict(self), "folder": str(self.folder)}))

    @classmethod
    def read(cls, folder: Path) -> TrainedModel:
        content = json.loads((folder / TRAINED_FILE).read_text())
        return cls(folder=Path(content["folder"]), run_id=content["run_id"])


def find_trained(model: SpokenExperiment, mixer: str, runs_dir: Path) -> TrainedModel | None:
    """The newest finished run of exactly this configuration among the runs of its recipe, or among those that were
    trained to speak; None where there is none."""
    wanted = model.of_arm(mixer)
    scale = f"{model.scale}-seed{model.seed}"
    in_its_recipe = sorted((runs_dir / model.recipe / scale).glob(f"*/{mixer}/{CONFIG_FILE}"), reverse=True)
    to_speak = sorted((runs_dir / RECIPE / scale).glob(f"*/*/{TRAINED_FOLDER}/{CONFIG_FILE}"), reverse=True)
    for config_file in (*in_its_recipe, *to_speak):
        folder = config_file.parent
        same = json.loads(config_file.read_text()) == wanted
        if same and is_finished(folder) and (folder / LAST_CHECKPOINT).is_file():
            return TrainedModel(folder=folder, run_id=json.loads((folder / RUN_FILE).read_text())["run_id"])
    return None


def trained_for(work: ArmWork, found: TrainedModel | None, data: ExperimentData | None) -> TrainedModel:
    """What the arm speaks with: what was found, what the arm it starts from has, or what is trained now.

    data: of the training; None where nothing is to be trained. Raises what `train_arm` raises.
    """
    task = work.task
    experiment: LongGenerationExperiment = task.config
    arm = experiment.arm(task.arm)
    if (task.folder / TRAINED_FILE).is_file():  # a resumed arm goes on with the model that it began with
        trained = TrainedModel.read(task.folder)
    elif task.start_folder is not None:
        trained = TrainedModel.read(task.start_folder)
    elif found is not None:
        trained = found
    else:
        trained = _trained_here(work, experiment, arm, data)
    trained.write(task.folder)
    _note_origin(work, trained)
    return trained


def load_trained(model: SpokenExperiment, mixer: str, trained: TrainedModel) -> Any:
    """The model as its training left it, in eval mode, on the device that is used here.

    Raises:
        ValueError: the checkpoint is damaged, or of another model.
    """
    backbone = spoken_backbone(model.backbone)
    arm = model.arm(mixer)
    module = backbone.module(backbone.build_model(model, arm, None), model, arm)
    path = trained.folder / LAST_CHECKPOINT
    load_weights_strictly(module, read_checkpoint(path)["weights"], path)
    return module.model.to(device()).eval()


def scores_of(trained: TrainedModel, uri: str, sections: Sequence[str]) -> dict[str, float]:
    """What the training has logged under these names or sections: how the model did on held-out conversations."""
    metrics = tracking.read_run(uri, trained.run_id).metrics
    return {
        name: value for name, value in metrics.items() if name in sections or name.rpartition("/")[0] in sections
    }  # fmt: skip


def _trained_here(
    work: ArmWork, experiment: LongGenerationExperiment, arm: SpeakingArm, data: ExperimentData | None
) -> TrainedModel:
    assert data is not None, "the parent prepares what a model that was not found is trained on"
    task, model = work.task, experiment.model_of(arm)
    folder = task.folder / TRAINED_FOLDER
    if not is_finished(folder):
        with looked_at(task, f"{arm.name}-training", model.of_arm(arm.mixer), folder) as logger:
            train_arm(model, model.arm(arm.mixer), data, logger, work.stop, folder, None, task.line)
    return TrainedModel(folder=folder, run_id=json.loads((folder / RUN_FILE).read_text())["run_id"])


def _note_origin(work: ArmWork, trained: TrainedModel) -> None:
    """What the training was counts for what is said of its model: of changed code, or by hand, so is this run."""
    tags = tracking.read_run(work.task.tracking_uri, trained.run_id).tags
    work.logger.set_tag("trained_run", trained.run_id)
    work.logger.set_tag("trained_git_commit", tags["git_commit"])
    for tag, clean in (("git_dirty", "false"), ("adhoc", "false")):
        if tags.get(tag) != clean:
            work.logger.set_tag(tag, "true")
