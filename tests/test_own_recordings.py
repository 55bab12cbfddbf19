"""Own recordings from a folder to a trained arm: the commands, states carried from piece to piece, what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from harness_fixtures import StopAfter, Workshop, built
from recipe_commands import SMOKE_SECONDS, FinishedCommand, environment
from recording_sources import RATE, SETTINGS, Voices, monologue, spoken, write_told

from experiments.curriculum.start import require_same
from experiments.harness import command_line, tracking
from experiments.harness import metric_names as names
from experiments.harness.arm_process import CONFIG_FILE
from experiments.harness.data_source import DIGEST_TAG, OWN_DATA_TAG
from experiments.recipes import RECIPES
from experiments.recordings.carried_batches import CarriedOrder
from experiments.recordings.curriculum import PieceSet, pieces_of
from experiments.recordings.dataset import RecordedConversations
from experiments.recordings.preparation import prepare_recordings
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.configuration import SpokenExperiment
from experiments.spoken.llama_omni.loader import EncodedUtterances
from experiments.spoken.prepared_data import ExperimentData
from experiments.spoken.recorded_plan import RecordedPlan
from experiments.spoken.recorded_stage1 import on_recordings, prepare_recorded
from experiments.validation.trained import experiment_of

pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data cache of a user: a set with words, `mine`, and one without, `wordless`."""
    home = tmp_path_factory.mktemp("home")
    voices = spoken(tmp_path_factory.mktemp("voices"))
    for name in ("told", "untold"):
        (home / name).mkdir()
    for number, rounds in enumerate((4, 3, 2)):
        write_told(home / "told", f"talk{number}", voices, rounds)
    write_untold(home / "untold", voices)
    for source, name in (("told", "mine"), ("untold", "wordless")):
        prepare_recordings(home / source, name, home / "data_cache", SETTINGS, processes=1, progress=False)
    (home / "data_cache" / "recordings" / "begun").mkdir()
    return home


def write_untold(folder: Path, voices: Voices) -> None:
    for number, who in enumerate("mf"):
        soundfile.write(folder / f"talk{number}.flac", monologue(voices[who], rounds=3), RATE)


@pytest.fixture(scope="module")
def recorded(home: Path) -> RecordedConversations:
    return RecordedConversations(home / "data_cache" / "recordings" / "mine")


def configured(home: Path, recipe: str, name: str = "mine", **plan: object) -> SpokenExperiment:
    config = RECIPES[recipe].configure(scale="smoke", seed=0)
    assert isinstance(config, SpokenExperiment)
    config = on_recordings(config, name, home / "data_cache")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **plan))


def long_chain(pieces: PieceSet) -> list[int]:
    return max(pieces.chains("train"), key=len)


# The user's two commands


BOTH_COMMANDS = (
    "import json, sys\n"
    "from experiments.harness.command_line import main\n"
    "sys.exit(max(main(arguments) for arguments in json.loads(sys.argv[1])))\n"
)


@pytest.fixture(scope="module")
def commands(home: Path) -> dict[str, FinishedCommand]:
    """What a user types, by recipe: a set by its name, and one without words by its path. One process imports once."""
    wordless = str(home / "data_cache" / "recordings" / "wordless")
    given = [
        ["llama-omni-stage1", "--scale", "smoke", "--data", "mine", "--arm", "ttt-mlp", "--arm", "full-attention"],
        ["qwen-mimi-stage1", "--scale", "smoke", "--data", wordless, "--arm", "ttt-linear"],
    ]
    ran = subprocess.run(
        [sys.executable, "-c", BOTH_COMMANDS, json.dumps(given)], cwd=home, env=environment(), capture_output=True,
        text=True, timeout=2 * SMOKE_SECONDS, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return {
        recipe: FinishedCommand(folder=home, output=ran.stdout, errors=ran.stderr, exit_code=0, recipe=recipe)
        for recipe in ("llama-omni-stage1", "qwen-mimi-stage1")
    }


@pytest.fixture(scope="module")
def finished(commands: dict[str, FinishedCommand]) -> FinishedCommand:
    return commands["llama-omni-stage1"]


def test_an_arm_is_trained_on_the_set_and_its_loss_told_along_held_out_conversations(
    finished: FinishedCommand, recorded: RecordedConversations
) -> None:
    for arm in ("ttt-mlp", "full-attention"):
        run = finished.logged(arm)
        assert run.status == "FINISHED"
        assert {"loss_by_position/00000_00256", "loss_by_time_seconds/00000_00015"} <= run.metrics.keys()
        assert run.metrics[names.VALIDATION_TEXT_LOSS] < finished_first_loss(finished, arm)
        told_of_facts = [name for name in run.metrics if "recall" in name or "fact" in name]
        assert not told_of_facts
        config = json.loads((finished.run_folder / arm / "config.json").read_text())
        assert config["data"]["digest"] == recorded.state.digest
        assert config["data"]["name"] == "mine" and 0.02 < config["data"]["hours"] < 0.03
        # The model is built for the set: 20 units, and at most 400 tokens of text.
        assert config["model"]["unit_vocab_size"] == SETTINGS.unit_vocab_size
        assert config["model"]["vocab_size"] == recorded.tokenizer.vocab_size <= SETTINGS.text_vocab_size
    assert "recall" not in (finished.run_folder / "table.txt").read_text()
    assert not (finished.run_folder / "figures" / "recall_by_distance.png").exists()
    assert (finished.run_folder / "figures" / "loss_by_position.png").exists()


def finished_first_loss(finished: FinishedCommand, arm: str) -> float:
    return tracking.read_history(finished.uri, finished.logged(arm).run_id, names.VALIDATION_TEXT_LOSS)[0][1]


def test_its_runs_name_the_set_and_count_for_no_claim(
    finished: FinishedCommand, recorded: RecordedConversations
) -> None:
    for run in (finished.parent(), finished.logged("ttt-mlp")):
        assert run.tags[OWN_DATA_TAG] == "mine"
        assert run.tags[DIGEST_TAG] == recorded.state.digest
        assert run.tags["adhoc"] == "true"


# States carried from piece to piece


@pytest.mark.parametrize(
    ("recipe", "arm"),
    [
        ("llama-omni-stage1", "ttt-mlp"),
        ("llama-omni-stage1", "full-attention"),
        ("qwen-tts-stage1", "sliding-window"),
        ("qwen-mimi-stage1", "ttt-mlp"),
        ("qwen-mimi-stage1", "full-attention"),
    ],
)
def test_pieces_that_carry_what_the_one_before_left_are_the_conversation_in_one(
    home: Path, recorded: RecordedConversations, recipe: str, arm: str
) -> None:
    config = configured(home, recipe)
    plan = config.data
    assert isinstance(plan, RecordedPlan)
    if plan.layout == "frames":
        config = replace(config, training=replace(config.training, audio_frames_per_step=100_000))
    module, loader = built(config, arm)
    divided = pieces_of(recorded, plan.positions, plan.layout, 16)
    whole = pieces_of(recorded, 4096, plan.layout, 16)
    chain = long_chain(divided)
    assert len(chain) >= 2
    name = divided[chain[0]].name.partition("[")[0]
    [alone] = [one for one in whole.chains("train") if whole[one[0]].name.startswith(name)]
    expected, _ = module.backward_conversations(loader.batch(whole, alone), None, carries=True)
    left, sums, counts = None, dict.fromkeys(measures(plan), 0.0), dict.fromkeys(measures(plan), 0)
    for index in chain:
        batch = loader.batch(divided, [index])
        losses, left = module.backward_conversations(batch, left, carries=True)
        for name, weigh in measures(plan).items():
            sums[name] += losses[name] * weigh(batch, module)
            counts[name] += weigh(batch, module)
    for name in sums:
        assert sums[name] / counts[name] == pytest.approx(expected[name], rel=2e-5)


def measures(plan: RecordedPlan) -> dict[str, object]:
    """{loss: how many things its mean is over}."""
    if plan.layout == "frames":
        return {
            names.TRAIN_TEXT_LOSS: lambda batch, module: int((batch.codes[0, 0] != module.no_text_id).sum()),
            spoken_names.TRAIN_AUDIO_LOSS: lambda batch, _: batch.positions,
        }
    return {names.TRAIN_TEXT_LOSS: lambda batch, _: int((batch.labels != -100).sum())}


def test_moshi_carries_the_state_and_learns_from_frames_that_see_their_window(
    home: Path, recorded: RecordedConversations
) -> None:
    config = configured(home, "moshi-stage1")
    module, loader = built(config, "ttt-mlp")
    pieces = pieces_of(recorded, 256, "frames", 16)
    first, second = long_chain(pieces)[:2]
    _, left = module.backward_conversations(loader.batch(pieces, [first]), None, carries=True)
    batch = loader.batch(pieces, [second])
    continued, after = module.backward_conversations(batch, left, carries=True)
    anew, _ = module.backward_conversations(batch, None, carries=True)
    assert int(after["layers.3.count"]) == pieces.positions(first) + pieces.positions(second)
    assert torch.equal(left["lead"][0, :, 0], loader.batch(pieces, [first]).codes[0, :, -1])
    assert module.blind_frames == config.model.context
    assert continued[names.TRAIN_TEXT_LOSS] != anew[names.TRAIN_TEXT_LOSS]


def test_a_state_is_carried_over_so_many_pieces_and_no_more(recorded: RecordedConversations) -> None:
    pieces = pieces_of(recorded, 96, "frames", 16)
    assert len(long_chain(pieces)) > 4
    order = CarriedOrder(pieces, rows=1, seed=0, most_pieces=2)
    steps = [order.step(number) for number in range(2 * len(pieces))]
    ages = [0]
    for step in steps[1:]:
        ages.append(0 if step.begins[0] else ages[-1] + 1)
    assert max(ages) == 1
    assert {step.indices[0] for step in steps} == set(pieces.split_indices("train"))


class DiesAfter(StopAfter):
    """Stands in for kill -9: once looked at that many times, the run breaks off without saving anything."""

    @property
    def is_asked(self) -> bool:
        self.looks_left -= 1
        if self.looks_left == 0:
            raise RuntimeError("killed")
        return False


@pytest.mark.parametrize(
    ("recipe", "arm", "positions"), [("qwen-tts-stage1", "sliding-window", 64), ("moshi-stage1", "ttt-linear", 256)]
)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    home: Path, tmp_path: Path, recipe: str, arm: str, positions: int, empty_store: Path
) -> None:
    """A checkpoint of every step; killed after the third was made and before it was saved, in the middle of rows."""
    config = configured(home, recipe, positions=positions)
    pieces, held_out = prepare_recorded(config, home / "data_cache" / "recordings" / "mine")
    order = CarriedOrder(pieces, config.data.rows, config.seed)
    assert not order.step(2).begins.all()
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment = tracking.experiment_id_of(uri, recipe, tmp_path)
    data = ExperimentData(stages=(pieces,), validation=held_out)
    workshop = Workshop(uri=uri, experiment_id=experiment, data=data)
    uninterrupted = workshop.train(config, arm, tmp_path / "whole")
    looks_before_the_first_step = len(held_out)
    with pytest.raises(RuntimeError, match="killed"):
        workshop.train(config, arm, tmp_path / "killed", stop=DiesAfter(looks_before_the_first_step + 3))
    resumed = workshop.train(config, arm, tmp_path / "killed")
    assert resumed.steps_done == uninterrupted.steps_done == config.data.steps
    whole, again = uninterrupted.state_dict(), resumed.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert resumed.last_validation == uninterrupted.last_validation


# Without words


def test_a_set_without_words_trains_on_sound_and_tells_the_loss_of_the_speech(
    commands: dict[str, FinishedCommand],
) -> None:
    finished = commands["qwen-mimi-stage1"]
    metrics = finished.logged("ttt-linear").metrics
    assert any(name.startswith(spoken_names.SPEECH_LOSS_BY_POSITION) for name in metrics)
    assert any(name.startswith(spoken_names.SPEECH_LOSS_BY_TIME) for name in metrics)
    assert spoken_names.VALIDATION_AUDIO_LOSS in metrics
    assert names.VALIDATION_TEXT_LOSS not in metrics and "loss_by_position/00000_00512" not in metrics
    assert "speech loss last" in (finished.run_folder / "table.txt").read_text()


# What is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["llama-omni-stage1", "--data", "nowhere"], r"nowhere is no prepared set.*there are mine, wordless"),
        (["llama-omni-stage1", "--data", "begun"], r"begun was begun and never finished: run the same `make data`"),
        (["llama-omni-stage1", "--data", "wordless"], r"no words of .*wordless are known.*moshi-stage1 and qwen-mimi"),
        (["qwen-tts-stage1", "--data", "wordless"], r"layout 'read'.*no words of"),
        (["memory", "--data", "mine"], r"memory reads no recordings: leave out --data mine; llama-omni-stage1, "),
        (["llama-omni-stage2", "--data", "mine"], "llama-omni-stage2 reads no recordings"),
        (["llama-omni-stage1", "--data", "mine", "--scale", "full"], "at scale full does not fit .* 80 mel bands"),
        (["moshi-stage1", "--data", "mine", "--set", "data.spec.positions=9"], "RecordedPlan has no field 'spec'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(home)
    scale = [] if "--scale" in arguments else ["--scale", "smoke"]
    assert command_line.main([*arguments, *scale, "--run-dir", str(home / "refused" / arguments[0])]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and re.search(said, told), told


def test_a_set_that_changed_since_it_was_configured_is_refused(home: Path) -> None:
    config = configured(home, "qwen-tts-stage1", digest="0123456789abcdef")
    with pytest.raises(ValueError, match=r"mine has changed: it was 0123456789abcdef and is"):
        prepare_recorded(config, home / "data_cache" / "recordings" / "mine")


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(home: Path) -> None:
    config = RECIPES["qwen-tts-stage1"].configure(scale="smoke", seed=0).with_weights("abcdef123456")
    config = replace(config, model=replace(config.model, vocab_size=40))
    config = on_recordings(config, "mine", home / "data_cache")
    assert config.model.vocab_size == 40
    with pytest.raises(
        ValueError, match=r"checkpoint of --weights \(abcdef123456\) does not fit the recordings mine: "
    ):
        prepare_recorded(config, home / "data_cache" / "recordings" / "mine")


def test_encoder_frames_are_kept_up_to_a_bound(home: Path, recorded: RecordedConversations) -> None:
    module, _ = built(configured(home, "llama-omni-stage1"), "full-attention")
    every = list(recorded.pool)[:6]
    plain = EncodedUtterances(module.model).frames(recorded, every).segments
    bounded = EncodedUtterances(module.model, most_bytes=2 * plain[0].nbytes)
    for utterance, expected in zip(every, plain, strict=True):
        [found] = bounded.frames(recorded, [utterance]).segments
        torch.testing.assert_close(found, expected)
    assert sum(frames.nbytes for frames in bounded._frames.values()) <= 2 * plain[0].nbytes


def test_later_stages_and_validation_tell_that_a_run_reads_recordings(home: Path, tmp_path: Path) -> None:
    config = configured(home, "llama-omni-stage1")
    again = experiment_of(json.loads(json.dumps(config.of_arm("ttt-mlp"))), "a run")
    assert again.data == config.data
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config.of_arm("ttt-mlp")))
    second = RECIPES["llama-omni-stage2"].configure(scale="smoke", seed=0)
    with pytest.raises(ValueError, match=r"trained on own recordings \(mine\): later stages read synthetic"):
        require_same(second, tmp_path)
