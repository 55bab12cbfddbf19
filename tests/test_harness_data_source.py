"""What a run reads, as the store has it: digests, MLflow's inputs, and the machine beside them."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from experiments.fact_streams import data_source as fact_streams
from experiments.fact_streams.generate import FactStreams
from experiments.fact_streams.spec import FactStreamSpec
from experiments.harness import tracking
from experiments.harness.data_source import NOTHING_READ, DataSource, digest_of, joint_digest
from experiments.harness.machine import hardware, software
from experiments.harness.system_metrics import machine_watched
from experiments.harness.tracking import RunIdentity, RunLogger

IDENTITY = RunIdentity(
    experiment="a-recipe", role="arm", arm="an-arm", seed=0, scale="smoke", is_adhoc=False,
    config_fingerprint="0123456789ab", parent_run_id=None,
    data_sources=(DataSource(name="words", digest="00ff", made_from="{}"),),
)  # fmt: skip


def test_streams_of_another_specification_or_drawn_in_another_way_have_another_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = FactStreamSpec()
    digest = fact_streams.fact_stream_source(spec).digest
    assert fact_streams.fact_stream_source(FactStreamSpec()).digest == digest
    assert fact_streams.fact_stream_source(dataclasses.replace(spec, event_share=0.31)).digest != digest

    def drawn_otherwise(*arguments: Any, seed: object) -> FactStreams:
        return fact_streams_draw(*arguments, seed=(1,))

    fact_streams_draw = fact_streams.draw_streams
    monkeypatch.setattr(fact_streams, "draw_streams", drawn_otherwise)
    assert fact_streams.fact_stream_source(spec).digest != digest


def test_a_joint_digest_is_the_only_ones_or_of_all_with_their_names() -> None:
    one = DataSource(name="words", digest=digest_of([b"a", b"b"]), made_from="{}")
    other = dataclasses.replace(one, name="sounds")
    assert joint_digest(()) == NOTHING_READ
    assert joint_digest((one,)) == one.digest == digest_of([b"ab"])
    assert joint_digest((one, other)) != joint_digest((other, one)) != joint_digest((one, one))


def test_a_run_names_data_and_machine_and_samples_what_the_machine_does(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking.prepare_store(uri)
    logger = RunLogger.start(uri, tracking.experiment_id_of(uri, "a-recipe", tmp_path), IDENTITY, {})
    for goes_on in (False, True):
        with machine_watched(uri, logger.run_id, "smoke", goes_on):
            time.sleep(1.6)
    run = MlflowClient(uri).get_run(logger.run_id)
    [read] = run.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("words", "00ff")
    assert run.data.tags["data_digest"] == "00ff"
    assert run.data.tags["hardware"] == hardware() and "cores" in hardware()
    assert run.data.tags["software"] == software() and "torch 2." in software()
    steps = MlflowClient(uri).get_metric_history(logger.run_id, "system/cpu_utilization_percentage")
    assert [sample.step for sample in steps] == list(range(len(steps))) and len(steps) >= 2
