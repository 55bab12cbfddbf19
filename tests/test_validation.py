"""A trained run measured along long streams, and the checklist that is filled from what was measured."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import soundfile
import torch
from harness_fixtures import StopAfter, Workshop, open_workshop, smoke_config
from torch.nn import functional

from analysis.__main__ import main as analyse
from analysis.checklist.items import Item, items_of, speech
from analysis.checklist.runs import ModelRuns, runs_of
from analysis.runs import LoggedRun as AnalysedRun
from analysis.store import open_store
from experiments.data.packing import IGNORED_LABEL
from experiments.harness import tracking
from experiments.harness.identity import plain_values
from experiments.harness.rebuilt import from_plain
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import SCALES
from experiments.harness.tracking import LoggedRun
from experiments.recipes import RECIPES
from experiments.spoken.backbone import spoken_backbone
from experiments.validation import metric_names as own
from experiments.validation.command import conversations, main, validate
from experiments.validation.measuring import along_streams, memory_of_samples
from experiments.validation.plan import PLANS
from experiments.validation.speech import speech_plan
from experiments.validation.trained import TrainedRun, load_trained

RECIPE = "qwen-tts-stage1"
MISSING = ("listeners",)


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
    assert len(unmeasured) == 9 and sum(item.command == command for item in unmeasured) == 8
    assert not any(item.state == "met" and "perplexity" in item.question for item in before)

    # Killed while it speaks, and gone on with: what was read is not read again.
    with pytest.raises(InterruptedRunError, match="of 20 s"):
        validate(bench.run.run_id, bench.home, bench.data_dir, stop=StopAfter(2))
    capsys.readouterr()
    validation = validate(bench.run.run_id, bench.home, bench.data_dir, stop=StopAfter(0), resumes=True)
    logged = tracking.read_run(store_uri, validation)
    assert logged.status == "FINISHED" and logged.tags[own.VALIDATED_RUN_TAG] == bench.run.run_id
    assert logged.tags["scale"] == "smoke" and logged.tags["data_digest"] != "none"
    told = capsys.readouterr().out
    assert "gain of memory" not in told and "s of compute a second" in told
    check_spoken(logged)
    with pytest.raises(ValueError, match="no unfinished validation of run"):
        validate(bench.run.run_id, bench.home, bench.data_dir, stop=StopAfter(0), resumes=True)

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
    assert "1 missing" in html


def check_spoken(logged: LoggedRun) -> None:
    """The stream is the one that long-generation would speak with this model, under the same names."""
    assert {
        "speed/real_time_factor", "speed/first_audio_ms", "memory/held_bytes_at_the_end", "stream/seconds",
        "quality/share_of_streams_with_alarm", "quality/alarms_per_hour", "late_minus_early/loudness_dbfs",
        "along/cross_entropy_nats", "along/held_bytes",
    } <= logged.metrics.keys()  # fmt: skip
    stream = Path(logged.tags[tracking.FOLDER_TAG]) / "streams" / "00"
    seconds = logged.metrics["stream/seconds"]
    assert seconds >= PLANS["smoke"].speech_s
    assert soundfile.info(stream / "speech.wav").duration == pytest.approx(seconds, abs=1e-3)
    assert (stream / "speech.vtt").read_text().startswith("WEBVTT") and (stream / "windows.csv").is_file()
    with (stream / "heard.csv").open(newline="") as file:
        heard = list(csv.DictReader(file))
    due = [float(row["reply_due_s"]) for row in heard]
    assert heard and due == sorted(due) and float(heard[0]["start_s"]) == 0.0 and due[-1] < seconds
    assert "held-out hours; calibrated on" in logged.tags[own.REAL_SPEECH_TAG]


def test_speech_is_judged_as_long_generation_does(bench: Bench, store_uri: str) -> None:
    trained = load_trained(store_uri, bench.run.run_id)
    ours = speech_plan(trained, PLANS["cpu"])
    smoke = RECIPES["long-generation"].configure(scale="smoke", seed=trained.experiment.seed)
    given = {"recipe", "models", "arms"}
    assert {name for name, value in vars(smoke).items() if vars(ours)[name] != value} == given
    [arm] = ours.arms
    assert (arm.streams, arm.stream_s, arm.backbone) == (1, 600.0, "qwen-tts")
    assert ours.of_arm(arm.name)["model"] == trained.experiment.of_arm("ttt-mlp")


def test_a_model_that_cannot_speak_says_so_in_one_line(
    bench: Bench, store_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_mimi_codes(*_: object) -> None:
        raise ValueError("this model says 'mimi' codes")

    record = dataclasses.replace(spoken_backbone("qwen-tts"), speaker=of_mimi_codes)
    monkeypatch.setattr("experiments.validation.speech.spoken_backbone", lambda name: record)
    monkeypatch.setattr("experiments.validation.command.measure", lambda *_: {own.STREAMS: 1.0})
    monkeypatch.setattr("experiments.validation.command.table_of", lambda *_: "")
    validation = validate(bench.run.run_id, bench.home, bench.data_dir, stop=StopAfter(0))
    line = f"{RECIPE}, ttt-mlp cannot speak for long: this model says 'mimi' codes"
    assert tracking.read_run(store_uri, validation).tags[own.SKIPPED_TAG] == line
    assert line in capsys.readouterr().out
    [item] = [each for each in speech(runs_of(open_store(store_uri), bench.run.run_id)) if "hour" in each.question]
    assert (item.state, item.found, item.command) == ("missing", line, "")


def checklist_of(**measured: object) -> list[Item]:
    """Of planted metrics and tags of a validation."""
    run = AnalysedRun(
        run_id="v", experiment="validation", status="FINISHED", start_ms=0, params={},
        tags={"real_speech": "real speech raised 0 in 16 held-out hours"} if measured else {},
        metrics={name.replace("__", "/"): value for name, value in measured.items()},
    )  # fmt: skip
    return list(speech(ModelRuns(store=None, run=run, before=(), validation=run)))


def test_an_alarm_an_hour_without_one_and_less_than_an_hour_are_told_apart() -> None:
    minutes = {"stream__seconds": 600.0, "quality__alarms_per_hour": 0.0}
    short, *_ = checklist_of(**minutes)
    assert short.state == "measured" and short.found.startswith("10 min spoken, no alarm; an hour is")
    hour, *_ = checklist_of(**minutes | {"stream__seconds": 3600.0})
    assert hour.state == "met" and "16 held-out hours" in hour.bound
    broken, *_ = checklist_of(stream__seconds=600.0, quality__alarms_per_hour=12.0, quality__first_alarm_median_s=180.0)
    assert (broken.state, broken.found) == ("not met", "10 min spoken, 2 alarms, the first after 3 min")
    _, cost, _ = checklist_of(**minutes, speed__real_time_factor=1.2, memory__held_bytes_at_the_end=2e6)
    assert cost.state == "not met" and "no sound at all" in cost.found and "so few pieces" in cost.found


class Reader:
    """Stands in for a module that holds 160 MB for every sample that it reads."""

    def on_validation_epoch_start(self) -> None: ...

    def validation_step(self, batch: torch.Tensor, number: int) -> None:
        held = torch.ones(len(batch), 40_000_000)
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
        assert 144e6 < measured[f"{own.PEAK_PER_SAMPLE}{samples}"] < 176e6


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
