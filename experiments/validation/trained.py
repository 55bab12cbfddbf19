"""A finished arm's run as the model that it trained: its configuration read back, its last weights loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.curriculum.start import folder_of
from experiments.harness import tracking
from experiments.harness.arm_process import CONFIG_FILE
from experiments.harness.checkpoints import differing_fields
from experiments.harness.identity import flattened
from experiments.harness.memory import device
from experiments.harness.rebuilt import from_plain
from experiments.harness.tracking import LoggedRun
from experiments.recipes import RECIPES
from experiments.spoken.backbone import Loader, spoken_backbone
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.module import SpokenModule
from experiments.spoken.starting import start_from


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """run: as logged. experiment: of its one arm. module: with its last weights, not training."""

    run: LoggedRun
    experiment: SpokenExperiment
    module: SpokenModule
    loader: Loader

    @property
    def has_ttt(self) -> bool:
        return self.experiment.arms[0].ttt is not None


def load_trained(uri: str, run_id: str, weights: Path | None = None) -> TrainedRun:
    """The model of an arm's run on spoken conversations. weights: the checkpoint folder that it was built from, if any.

    Raises:
        ValueError: no such run, one that did not finish, one of another kind, or files that are gone.
    """
    run = tracking.find_run(uri, run_id)
    if run is None:
        raise ValueError(f"there is no run {run_id} in {uri}; give an arm's run id as MLflow shows it")
    if run.status != "FINISHED":
        raise ValueError(f"run {run_id} is {run.status}; finish it with --resume before it is validated")
    folder = folder_of(run)
    experiment = experiment_of(json.loads((folder / CONFIG_FILE).read_text()), run_id)
    if experiment.weights_digest is not None and weights is None:
        raise ValueError(f"run {run_id} was built from a checkpoint folder; name it with --weights")
    backbone = spoken_backbone(experiment.backbone)
    arm = experiment.arms[0]
    model = backbone.build_model(experiment, arm, weights)
    module = backbone.module(model, experiment, arm)
    start_from(module, folder)
    module.to(device()).eval()
    return TrainedRun(run=run, experiment=experiment, module=module, loader=backbone.loader(model, experiment))


def experiment_of(plain: Mapping[str, Any], run_id: str) -> SpokenExperiment:
    """The configuration of an arm's run, from what was logged of it.

    Raises:
        ValueError: it is no run on spoken conversations, or other code wrote it.
    """
    first = RECIPES.get(f"{plain.get('backbone')}-stage1")
    if first is None or "arm" not in plain:
        raise ValueError(f"run {run_id} is no arm on spoken conversations; validate one of a stage or a curriculum")
    fields = {name: value for name, value in plain.items() if name not in ("arm", "starts_from")}
    kind = type(first.configure(scale=plain["scale"], seed=plain["seed"]))
    assert issubclass(kind, SpokenExperiment)
    experiment = from_plain(kind, {**fields, "arms": [plain["arm"]]})
    again = {**experiment.of_arm(plain["arm"]["name"]), "starts_from": plain.get("starts_from")}
    changed = differing_fields(flattened({"starts_from": None, **plain}), flattened(again))
    if changed:
        raise ValueError(f"run {run_id} was configured by other code: {'; '.join(changed)}; use its commit's")
    return experiment
