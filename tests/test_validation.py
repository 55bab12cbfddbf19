"""A trained run measured along long streams, and the checklist that is filled from what was measured."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from harness_fixtures import Workshop, open_workshop, smoke_config
from torch.nn import functional

from analysis.__main__ import main as analyse
from analysis.checklist.items import items_of
from analysis.checklist.runs import runs_of
from analysis.store import open_store
from experiments.data.packing import IGNORED_LABEL
from experiments.harness import tracking
from experiments.harness.identity import plain_values
from experiments.harness.rebuilt import from_plain
from experiments.harness.study import SCALES
from experiments.harness.tracking import LoggedRun
from experiments.recipes import RECIPES
from experiments.validation import metric_names as own
from experiments.validation.command import conversations, main, validate
from experiments.validation.measuring import along_streams, memory_of_samples
from experiments.validation.plan import PLANS
from experiments.validation.trained import TrainedRun, load_trained

RECIPE = "qwen-tts-stage1"
MISSING = ("hour of its own speech", "listeners")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backbone", ["llama-omni", "moshi", "qwen-tts", "qwen-mimi"])
def test_a_configuration_comes_back_from_what_was_logged_of_it(backbone: str, scale: str) -> None:
    for stage in (1, 4):
        config = RECIPES[f"{backbone}-stage{stage}"].configure(scale=scale, seed=1)
        assert from_plain(type(config), json.loads(json.dumps(plain_values(config)))) == config


def test_values_of_other_code_are_refused_by_name() -> None:
    config = RECIPES[RECIPE].configure(scale="smoke", seed=0)
    plain = plain_values(config)
    with pytest.raises(ValueError, match="it has no colour and needs model"):
        from_plain(type(config), {"colour": 1} | {name: plain[name] for name in plain if name != "model"})


@dataclasses.dataclass(frozen=True)
class Bench:
    """A trained run in a store, and the data that it was trained on."""

    workshop: Workshop
    home: Path
    run: LoggedRun

    @property
    def data_dir(self) -> Path:
        return self.home / "data"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    home = tmp_path_factory.mktemp("validation")
    workshop = open_workshop(home, RECIPE)
    config = smoke_config(RECIPE)
    logger, folder = workshop.logger(config, "ttt-mlp"), home / "arm"
    workshop.train(config, "ttt-mlp", folder, logger=logger)
    (folder / "config.json").write_text(json.dumps(config.of_arm("ttt-mlp")))
    (folder / "run.json").write_text(json.dumps({"run_id": logger.run_id}))
    logger.set_tag(tracking.FOLDER_TAG, str(folder))
    logger.close("FINISHED")
    return Bench(workshop=workshop, home=home, run=tracking.read_run(workshop.uri, logger.run_id))


@pytest.fixture
def store_uri(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", bench.workshop.uri)
    return bench.workshop.uri


def test_perplexity_is_that_of_the_models_own_forward(bench: Bench, store_uri: str) -> None:
    trained, plan = load_trained(store_uri, bench.run.run_id), PLANS["smoke"]
    streams = conversations(trained, plan.positions, plan.streams, bench.data_dir)
    measured = along_streams(trained.module, trained.loader, streams, plan, has_ttt=True)
    sums, counts = [0.0] * 3, [0] * 3
    for index in streams.split_indices("validation"):
        batch = trained.loader.batch(streams, [index])
        with torch.no_grad():
            logits = trained.module.model(batch.input_ids, use_cache=False).logits[0, :-1]
        nats = functional.cross_entropy(logits, batch.labels[0, 1:], reduction="none", ignore_index=IGNORED_LABEL)
        for bucket, (first, end) in enumerate(zip(plan.edges, plan.edges[1:], strict=False)):
            at = torch.arange(1, len(nats) + 1)
            inside = (batch.labels[0, 1:] != IGNORED_LABEL) & (at >= first) & (at < end)
            sums[bucket] += float(nats[inside].sum())
            counts[bucket] += int(inside.sum())
    for (first, end), total, count in zip(((0, 256), (256, 512), (512, 1024)), sums, counts, strict=True):
        found = measured[f"{own.PERPLEXITY_BY_POSITION}/{first:05d}_{end:05d}"]
        assert found == pytest.approx(math.exp(total / count), rel=1e-4)
    assert measured[own.PERPLEXITY_RATIO] == pytest.approx(
        math.exp(sums[2] / counts[2] - sums[0] / counts[0]), rel=1e-4
    )
    assert measured[own.STREAMS] == plan.streams


def gain_of(trained: TrainedRun, bench: Bench, forgets_every: int) -> dict[str, float]:
    plan = dataclasses.replace(PLANS["smoke"], forgets_every=forgets_every)
    streams = conversations(trained, plan.positions, plan.streams, bench.data_dir)
    measured = along_streams(trained.module, trained.loader, streams, plan, has_ttt=True)
    return {name: value for name, value in measured.items() if name.startswith(f"{own.GAIN_BY_POSITION}/")}


def test_the_gain_of_memory_is_nothing_where_the_control_forgets_nothing(bench: Bench, store_uri: str) -> None:
    trained = load_trained(store_uri, bench.run.run_id)
    assert all(abs(value) < 1e-6 for value in gain_of(trained, bench, 4096).values())
    gain = gain_of(trained, bench, 256)
    assert gain[f"{own.GAIN_BY_POSITION}/00000_00256"] == pytest.approx(0, abs=1e-6)  # both begin alike
    assert abs(gain[f"{own.GAIN_BY_POSITION}/00256_00512"]) > 1e-6


def test_the_checklist_says_what_is_missing_and_fills_itself_from_the_validation(
    bench: Bench, store_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = items_of(runs_of(open_store(store_uri), bench.run.run_id))
    command = f"make validate RUN={bench.run.run_id}"
    unmeasured = [item for item in before if item.state == "missing"]
    assert len(unmeasured) == 8 and sum(item.command == command for item in unmeasured) == 6
    assert not any(item.state == "met" and "perplexity" in item.question for item in before)

    validation = validate(bench.run.run_id, bench.home, bench.data_dir)
    logged = tracking.read_run(store_uri, validation)
    assert logged.status == "FINISHED" and logged.tags[own.VALIDATED_RUN_TAG] == bench.run.run_id
    assert logged.tags["scale"] == "smoke" and logged.tags["data_digest"] != "none"
    assert "gain of memory" in capsys.readouterr().out

    after = items_of(runs_of(open_store(store_uri), bench.run.run_id))
    assert [item.question for item in after] == [item.question for item in before]
    assert all(any(words in item.question for words in MISSING) for item in after if item.state == "missing")
    [ratio] = [item for item in after if "within 20 %" in item.question]
    value = logged.metrics[own.PERPLEXITY_RATIO]
    assert (ratio.state, f"{value:.3f}" in ratio.found) == ("met" if value <= 1.2 else "not met", True)
    [weights] = [item for item in after if "inner weights" in item.question]
    curves = [name for name in bench.run.metrics if name.endswith("W1_max")]
    largest = max(v for name in curves for _, v in tracking.read_history(store_uri, bench.run.run_id, name))
    assert f"{largest:.3g}" in weights.found and weights.state == "met"

    page = tmp_path / "checklist.html"
    assert analyse(["checklist", bench.run.run_id, "--store", store_uri, "--output", str(page)]) == 0
    html = page.read_text()
    assert validation in html and "not measured: no ratings by people" in html
    assert "src=" not in html and "http" not in html.replace("http-equiv", "")
    assert "2 missing" in html


class Reader:
    """Stands in for a module that holds 40 MB for every sample that it reads."""

    def on_validation_epoch_start(self) -> None: ...

    def validation_step(self, batch: torch.Tensor, number: int) -> None:
        held = torch.ones(len(batch), 10_000_000)
        assert float(held[0, 0]) == 1.0


def test_memory_is_counted_by_sample_also_where_a_process_freed_much_before(bench: Bench) -> None:
    class Rows:
        def batch(self, dataset: object, indices: list[int]) -> torch.Tensor:
            return torch.zeros(len(indices))

    # Blocks of the heap with one that stays at its end: glibc would hand the freed ones out again, unseen by the peak.
    freed = [torch.ones(25_000) for _ in range(3_000)]
    last = freed.pop()
    del freed

    measured = memory_of_samples(Reader(), Rows(), bench.workshop.data.validation)
    assert len(last) == 25_000
    for samples in (1, 4):
        assert 36e6 < measured[f"{own.PEAK_PER_SAMPLE}{samples}"] < 44e6


def test_what_cannot_be_validated_is_refused_with_what_to_do(
    bench: Bench, store_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["nonsense"]) == 2
    assert "no run nonsense" in capsys.readouterr().err
    assert analyse(["checklist", "nonsense", "--store", store_uri]) == 2
    failed = bench.workshop.logger(smoke_config(RECIPE), "ttt-mlp")
    failed.close("FAILED")
    with pytest.raises(ValueError, match="is FAILED; finish it with --resume"):
        load_trained(store_uri, failed.run_id)
