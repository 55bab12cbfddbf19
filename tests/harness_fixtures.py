"""The smoke configuration, its data, and a store, in which the tests of the harness run single arms."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from experiments.harness import tracking
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.stopping import StopRequest
from experiments.harness.tracking import RunIdentity, RunLogger
from experiments.recipes import RECIPES
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.module import SpokenModule
from experiments.spoken.prepared_data import ExperimentData, prepare_data
from experiments.spoken.training import train_arm


def smoke_config(recipe: str = "llama-omni-stage1", **training: object) -> SpokenExperiment:
    """The smoke scale with fields of its training plan replaced."""
    config = RECIPES[recipe].configure(scale="smoke", seed=3)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def built(config: SpokenExperiment, arm: str) -> tuple[SpokenModule, object]:
    """A module that takes steps without a Trainer, and its loader."""
    backbone = spoken_backbone(config.backbone)
    model = backbone.build_model(config, config.arm(arm), None)
    module = backbone.module(model, config, config.arm(arm))
    module.manual_backward = lambda loss: loss.backward()
    return module, backbone.loader(model, config)


class StopAfter(StopRequest):
    """Stands in for Ctrl-C: asked for once it was looked at that many times (0: never)."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks_left = looks

    @property
    def is_asked(self) -> bool:
        self.looks_left -= 1
        return self.looks_left == 0


@dataclasses.dataclass(frozen=True)
class Workshop:
    """A store and data in which single arms are run inside the test's own process."""

    uri: str
    experiment_id: str
    data: ExperimentData

    def logger(self, config: SpokenExperiment, arm: str) -> RunLogger:
        own = config.of_arm(arm)
        identity = RunIdentity(
            experiment=config.recipe, role="arm", arm=arm, seed=config.seed, scale=config.scale, is_adhoc=False,
            config_fingerprint=fingerprint(own), parent_run_id=None,
        )  # fmt: skip
        return RunLogger.start(self.uri, self.experiment_id, identity, flattened(own))

    def train(
        self, config: SpokenExperiment, arm: str, folder: Path, stop_after: int = 0, logger: RunLogger | None = None,
        stop: StopRequest | None = None,
    ) -> SpokenModule:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        logger = logger or self.logger(config, arm)
        return train_arm(config, config.arm(arm), self.data, logger, stop or StopAfter(stop_after), folder)


def open_workshop(home: Path, recipe: str = "llama-omni-stage1") -> Workshop:
    """A fresh store and the smoke scale's data in `home`."""
    uri = f"sqlite:///{home / 'mlflow.db'}"
    tracking.prepare_store(uri)
    experiment = tracking.experiment_id_of(uri, recipe, home)
    data = prepare_data(smoke_config(recipe), home / "data", skips_bad_audio=False)
    return Workshop(uri=uri, experiment_id=experiment, data=data)
