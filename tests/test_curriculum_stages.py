"""Stages of the curriculum: what they keep of stage 1, and which runs they refuse to start from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments.curriculum.ablation import ablation_metrics
from experiments.curriculum.chain import ChainExperiment, Link
from experiments.curriculum.limits import StartLimits, require_healthy
from experiments.curriculum.report import StageRow, stage_table
from experiments.curriculum.start import begin_stage, require_same
from experiments.curriculum.study import begin_chain
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.outcomes import Outcome
from experiments.harness.study import SCALES, FinishedArm, RunOptions
from experiments.harness.tracking import LoggedRun
from experiments.recipes import RECIPES
from experiments.spoken.configuration import SpokenExperiment

BACKBONES = ("llama-omni", "moshi", "qwen-tts", "qwen-mimi")
HEALTHY = {
    names.VALIDATION_TEXT_LOSS: [3.0, 2.0],
    "ttt/layer03/W1_max": [0.5, 4.0, 2.0],
    "ttt/layer03/inner_loss": [1.0, 1.5, 2.0],
}
Log = Callable[..., LoggedRun]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_stage_keeps_model_arm_and_vocabulary_and_doubles_the_length(backbone: str, scale: str) -> None:
    first = RECIPES[f"{backbone}-stage1"].configure(scale=scale, seed=3)
    lengths = []
    for stage in (2, 3, 4):
        config = RECIPES[f"{backbone}-stage{stage}"].configure(scale=scale, seed=3)
        assert isinstance(config, SpokenExperiment)
        assert config.arms == (first.arm("ttt-mlp"),)
        assert config.data.spec.pool_digest() == first.data.spec.pool_digest()
        own, before = dataclasses.asdict(config.model), dataclasses.asdict(first.model)
        assert {name for name in own if own[name] != before[name]} <= {"gradient_checkpointing"}
        [conversations] = config.data.curriculum
        lengths.append(conversations.positions)
        assert config.data.stage_spec(conversations).pool_digest() == config.data.spec.pool_digest()
        assert config.training.segment_positions and config.training.groups[0].from_step == 0
        assert config.training.precision == first.training.precision
    assert lengths == [lengths[0], 2 * lengths[0], 4 * lengths[0]]
    assert config.data.spec.positions == lengths[2]
    if scale != "smoke":
        assert lengths[2] == (65536 if backbone in ("llama-omni", "qwen-tts") else 32768)


@pytest.mark.parametrize("scale", SCALES)
def test_the_ablations_arms_read_as_many_tokens_in_as_many_steps(scale: str) -> None:
    config = RECIPES["curriculum-ablation"].configure(scale=scale, seed=0)
    staged, straight = (config.link(name).experiment.data for name in ("staged", "straight"))

    def tokens_of_steps(data: object) -> list[int]:
        return [s.positions * s.conversations_per_step for s in data.curriculum for _ in range(s.steps)]

    assert tokens_of_steps(staged) == tokens_of_steps(straight)
    lengths = [stage.positions for stage in staged.curriculum]
    assert lengths == [lengths[-1] // 8, lengths[-1] // 4, lengths[-1] // 2, lengths[-1]]
    assert [stage.positions for stage in straight.curriculum] == [lengths[-1]]
    assert staged.spec == straight.spec == config.link("short").experiment.data.spec
    assert config.link("staged").experiment.training == config.link("straight").experiment.training
    assert {config.starts_from(name) for name in ("staged", "straight")} == {"short"}


def test_a_chain_refuses_a_link_that_starts_from_none_before_it() -> None:
    config = RECIPES["llama-omni-curriculum"].configure(scale="smoke", seed=0)
    later = config.link("ttt-mlp-stage2")
    with pytest.raises(ValueError, match="'ttt-mlp-stage2' starts from 'ttt-mlp-stage1', which is not among"):
        dataclasses.replace(config, links=(later,))
    with pytest.raises(ValueError, match="trains one arm"):
        Link(name="both", experiment=RECIPES["llama-omni-stage1"].configure(scale="smoke", seed=0))


@pytest.fixture
def log(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    """Logs an arm's run with the given curves, as a stage would leave it behind."""
    store = tmp_path / "runs" / "mlflow.db"
    store.parent.mkdir()
    shutil.copy(empty_store, store)
    uri = f"sqlite:///{store}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(uri)

    def logged(
        curves: dict[str, list[float]], status: str = "FINISHED", folder: Path | None = None,
        recipe: str = "llama-omni-stage1", **tags: str,
    ) -> LoggedRun:  # fmt: skip
        known = client.get_experiment_by_name(recipe)
        experiment = client.create_experiment(recipe) if known is None else known.experiment_id
        own = {"role": "arm", "arm": "ttt-mlp", "scale": "smoke", "seed": "0", "adhoc": "false", "mlflow.runName": "x"}
        run_id = client.create_run(experiment, tags=own | tags).info.run_id
        for name, values in curves.items():
            for step, value in enumerate(values):
                client.log_metric(run_id, name, value, step=step)
        if folder is not None:
            (folder / "run.json").write_text(json.dumps({"run_id": run_id}))
            client.set_tag(run_id, tracking.FOLDER_TAG, str(folder))
        client.set_terminated(run_id, status)
        return tracking.read_run(uri, run_id)

    logged.uri = uri
    return logged


def test_a_healthy_run_may_be_gone_on_from(log: Log) -> None:
    require_healthy(log.uri, log(HEALTHY), StartLimits())


@pytest.mark.parametrize(
    ("curves", "status", "told"),
    [
        ({names.VALIDATION_TEXT_LOSS: [3.0, float("nan")]}, "FINISHED", "became NaN"),
        ({names.VALIDATION_TEXT_LOSS: [3.0, 3.5]}, "FINISHED", "rose from 3.000 to 3.500"),
        ({}, "FAILED", "it is FAILED, not FINISHED: lost at step 7"),
        ({"ttt/layer03/W1_max": [0.5, 12.5, 3.0]}, "FINISHED", r"12.5 in layer03 at step 1, .* largest_W1=13"),
        ({"ttt/layer03/W1_max": [0.5, float("inf")]}, "FINISHED", "W1_max of layer03 became NaN or infinite"),
        ({"ttt/layer03/inner_loss": [1.0, 1.0, 4.0, 4.0]}, "FINISHED", "4.00 times its start"),
    ],
)
def test_a_run_that_diverged_is_refused_with_what_to_try(log: Log, curves: dict, status: str, told: str) -> None:
    run = log(HEALTHY | curves, status, end_message="lost at step 7")
    with pytest.raises(ValueError, match=told):
        require_healthy(log.uri, run, StartLimits())


def test_limits_are_set_by_name(log: Log) -> None:
    large = log(HEALTHY | {"ttt/layer03/W1_max": [0.5, 12.5]})
    require_healthy(log.uri, large, StartLimits.given(["largest_W1=13"]))
    with pytest.raises(ValueError, match="inner loss of layer03"):
        require_healthy(log.uri, log(HEALTHY), StartLimits.given(["inner_loss_growth = 1"]))
    for wrong, told in (("W1=13", "among largest_W1, inner_loss_growth"), ("largest_W1=much", "a number above 0")):
        with pytest.raises(ValueError, match=told):
            StartLimits.given([wrong])


def stage(number: int = 2) -> SpokenExperiment:
    return RECIPES[f"llama-omni-stage{number}"].configure(scale="smoke", seed=0)


def options_of(runs_dir: Path, **changes: object) -> RunOptions:
    plain = RunOptions(
        runs_dir=runs_dir, data_dir=runs_dir, run_dir=None, resumes=False, arms=(), weights=None,
        skips_bad_audio=False, is_adhoc=False, command="",
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def trained(folder: Path, config: SpokenExperiment | None = None) -> Path:
    """What an arm's run leaves in its folder, as far as a start looks at it."""
    config = config or RECIPES["llama-omni-stage1"].configure(scale="smoke", seed=0)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    (folder / "config.json").write_text(json.dumps(config.of_arm("ttt-mlp")))
    return folder


def test_the_newest_finished_run_of_the_stage_before_is_taken(log: Log, tmp_path: Path) -> None:
    for status, tags in (
        ("FINISHED", {}),
        ("FINISHED", {"adhoc": "true"}),
        ("FAILED", {}),
        ("FINISHED", {"seed": "1"}),
    ):
        log(HEALTHY, status, **tags)
    wanted = log(
        HEALTHY, folder=trained(tmp_path / "arm"), recipe="llama-omni-curriculum", arm="ttt-mlp-stage1"
    )  # fmt: skip
    config, options = begin_stage(stage(), options_of(tmp_path / "runs"))
    assert config.start_run_id == wanted.run_id
    assert options.start_folder == tmp_path / "arm" and not options.is_adhoc


def test_a_start_that_was_changed_by_hand_makes_the_stage_adhoc(log: Log, tmp_path: Path) -> None:
    run = log(HEALTHY, folder=trained(tmp_path / "arm"), adhoc="true")
    with pytest.raises(ValueError, match=r"no finished run of llama-omni-stage1 .* make exp-llama-omni-stage1"):
        begin_stage(stage(), options_of(tmp_path / "runs"))
    assert begin_stage(stage(), options_of(tmp_path / "runs", start_run=run.run_id))[1].is_adhoc


def test_a_resumed_stage_keeps_its_start_when_a_newer_one_has_finished(log: Log, tmp_path: Path) -> None:
    log(HEALTHY, folder=trained(tmp_path / "first"))
    config, _ = begin_stage(stage(), options_of(tmp_path / "runs"))
    begun = tmp_path / "runs" / config.recipe / "smoke-seed0" / "20260101-000000"
    begun.mkdir(parents=True)
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    (begun / "config.json").write_text(json.dumps(plain))
    newer = log(HEALTHY, folder=trained(tmp_path / "second"))
    assert begin_stage(stage(), options_of(tmp_path / "runs"))[0].start_run_id == newer.run_id
    assert begin_stage(stage(), options_of(tmp_path / "runs", resumes=True))[0] == config


def test_a_start_of_another_configuration_is_refused_by_its_fields(tmp_path: Path) -> None:
    first = RECIPES["llama-omni-stage1"].configure(scale="smoke", seed=0)
    require_same(stage(), trained(tmp_path / "same"))
    arm = first.arm("ttt-mlp")
    changes = {
        "arm.ttt.mini_batch_size (32 -> 16)": {
            "arms": (dataclasses.replace(arm, ttt=dataclasses.replace(arm.ttt, mini_batch_size=32)),)
        },
        "data.spec.text_vocab_size (400 -> 512)": {
            "data": dataclasses.replace(first.data, spec=dataclasses.replace(first.data.spec, text_vocab_size=400))
        },
        "model.rope_theta": {"model": dataclasses.replace(first.model, rope_theta=7.0)},
    }
    for number, (told, change) in enumerate(changes.items()):
        folder = trained(tmp_path / str(number), dataclasses.replace(first, **change))
        with pytest.raises(ValueError) as refused:
            require_same(stage(), folder)
        assert told in str(refused.value)


def test_a_start_that_is_gone_or_unknown_is_said_so(log: Log, tmp_path: Path) -> None:
    run = log(HEALTHY, folder=trained(tmp_path / "arm"))
    (tmp_path / "arm" / "checkpoints" / "last.ckpt").unlink()
    for given, told in ((run.run_id, "has no checkpoints/last.ckpt"), ("nonsense", "no such run")):
        with pytest.raises(ValueError, match=told):
            begin_stage(stage(), options_of(tmp_path / "runs", start_run=given))
    bare = log(HEALTHY)
    with pytest.raises(ValueError, match="has no tag run_folder"):
        begin_stage(stage(), options_of(tmp_path / "runs", start_run=bare.run_id))


def test_the_curriculum_goes_on_from_a_stage_1_that_was_trained_before(log: Log, tmp_path: Path) -> None:
    run = log(HEALTHY, folder=trained(tmp_path / "arm"))
    whole = RECIPES["llama-omni-curriculum"].configure(scale="smoke", seed=0)
    config, options = begin_chain(whole, options_of(tmp_path / "runs", start_run=run.run_id))
    assert config.arm_names == ("ttt-mlp-stage2", "ttt-mlp-stage3", "ttt-mlp-stage4")
    assert config.starts_from("ttt-mlp-stage2") is None and config.starts_from("ttt-mlp-stage3") == "ttt-mlp-stage2"
    assert options.start_folder == tmp_path / "arm"
    assert config.link("ttt-mlp-stage2").experiment.start_run_id == run.run_id
    with pytest.raises(ValueError, match="no curriculum of stages"):
        ablation = RECIPES["curriculum-ablation"].configure(scale="smoke", seed=0)
        begin_chain(ablation, options_of(tmp_path / "runs", start_run=run.run_id))


def finished_arm(config: ChainExperiment, name: str, seed: int, metrics: dict[str, float]) -> FinishedArm:
    class Task:
        arm = name

    Task.config = config.with_seed(seed)
    run = LoggedRun(run_id=f"{name}{seed}", status="FINISHED", start_ms=0, tags={}, metrics=metrics)
    return FinishedArm(task=Task(), outcome=Outcome(status="FINISHED", run_id=run.run_id, message=""), run=run)


def test_a_run_that_diverged_counts_as_one_that_guesses(log: Log) -> None:
    config = dataclasses.replace(RECIPES["curriculum-ablation"].configure(scale="smoke", seed=0), seed_count=2)
    good = {names.VALIDATION_TEXT_LOSS: 2.0, names.RECALL_ALL: 0.5, names.RECALL_CHANCE: 0.25}
    lost = {"curriculum/diverged": 1.0, names.RECALL_CHANCE: 0.25}
    finished = [finished_arm(config, "staged", seed, good) for seed in (0, 1)]
    finished += [
        finished_arm(config, "straight", 0, good | {names.VALIDATION_TEXT_LOSS: 2.5}),
        finished_arm(config, "straight", 1, lost),
    ]
    metrics, lines = ablation_metrics(config, finished)
    guessing = 6.238324625  # nats of one of 512 tokens
    name = "curriculum/straight_minus_staged_text_loss_nats"
    assert metrics[name] == pytest.approx((0.5 + guessing - 2.0) / 2)
    assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    assert metrics["curriculum/failed_share_of_straight"] == 0.5
    assert "straight diverged with 1 of 2 seeds" in lines
    assert ablation_metrics(config, finished[:2]) == ({}, ())


def test_the_table_shows_what_was_measured_and_a_dash_where_nothing_was() -> None:
    own = {names.SPEED: 1234.0, names.STATE_BYTES: 2048.0}
    measured = {names.VALIDATION_TEXT_LOSS: 1.5, "loss_by_position/00000_01024": 1.25}
    rows = [
        StageRow(link="a-stage1", seed=0, status="finished", seconds=90.0, measured=measured, own=own),
        StageRow(link="a-stage2", seed=0, status="not run", seconds=float("nan"), measured={}, own={}),
    ]
    header, _, first, second = stage_table(rows, (0, 1024, 4096), (0, 1024)).splitlines()
    assert header.split() == [
        "stage",
        "status",
        "text",
        "loss",
        "loss",
        "0-1k",
        "positions/s",
        "state",
        "bytes",
        "minutes",
    ]
    assert first.split() == ["a-stage1", "finished", "1.500", "1.250", "1,234", "2.0", "KiB", "1.5"]
    assert second.split() == ["a-stage2", "not", "run", "-", "-", "-", "-", "-"]
