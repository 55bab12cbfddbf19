"""Training of one arm inside this process: resuming, segments, alarms, equal starts, what is logged."""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from harness_fixtures import Workshop, open_workshop, smoke_config

from backbones.llama_omni import IGNORED_LABEL, SpokenTurn
from backbones.llama_omni.checkpoint import save_llama_omni
from backbones.mounting import ttt_layers
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.checkpoints import CheckpointWriteError
from experiments.harness.stopping import DivergedRunError, InterruptedRunError
from experiments.harness.weights import weights_digest
from experiments.spoken.data_module import ConversationDataModule
from experiments.spoken.decoder_module import next_labels
from experiments.spoken.llama_omni.loader import LlamaOmniLoader
from experiments.spoken.llama_omni.model import build_model, memory_of
from experiments.spoken.llama_omni.module import LlamaOmniModule
from experiments.spoken.prepared_data import prepare_data

# A run looks for a stop once in the validation before its first step, after each of the smoke scale's four steps,
# and once in the validation behind the last of them.
AFTER_STEP_3 = 4
IN_LAST_VALIDATION = 6


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("harness"))


@pytest.mark.parametrize(
    ("arm", "training", "looks"),
    [
        ("ttt-mlp", {"segment_positions": 200}, AFTER_STEP_3),
        ("sliding-window", {}, IN_LAST_VALIDATION),
        ("ttt-linear", {"inner_warmup_steps": 3}, AFTER_STEP_3 - 1),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_run(
    arm: str, training: dict[str, int], looks: int, workshop: Workshop, tmp_path: Path
) -> None:
    config = smoke_config(**training)
    whole_logger, split_logger = workshop.logger(config, arm), workshop.logger(config, arm)
    whole = workshop.train(config, arm, tmp_path / "whole", logger=whole_logger)
    with pytest.raises(InterruptedRunError):
        workshop.train(config, arm, tmp_path / "split", stop_after=looks, logger=split_logger)
    split = workshop.train(config, arm, tmp_path / "split", logger=split_logger)
    assert whole.steps_done == split.steps_done == config.data.steps
    expected, found = whole.state_dict(), split.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert whole.last_validation == split.last_validation
    for metric in (names.TRAIN_TEXT_LOSS, names.TRAIN_CTC_LOSS, names.VALIDATION_LOSS):
        histories = [tracking.read_history(workshop.uri, x.run_id, metric) for x in (whole_logger, split_logger)]
        assert histories[0] == histories[1]
        assert histories[0]


def module_of(workshop: Workshop, arm: str, **training: object) -> tuple[LlamaOmniModule, ConversationDataModule]:
    """A module that takes steps without a Trainer, and its data."""
    config = smoke_config(**training)
    model = build_model(config, config.arm(arm), None)
    module = LlamaOmniModule(model, config, config.arm(arm))
    module.manual_backward = lambda loss: loss.backward()
    loader = LlamaOmniLoader(model, config)
    return module, ConversationDataModule(config, workshop.data, loader, next_step=lambda: module.steps_done)


@pytest.mark.parametrize("arm", ["ttt-mlp", "sliding-window", "full-attention"])
def test_segments_with_carried_state_give_the_loss_of_the_whole_conversation(workshop: Workshop, arm: str) -> None:
    losses = []
    for segment_positions in (None, 137):
        module, data = module_of(workshop, arm, segment_positions=segment_positions, ctc_turns_per_step=0)
        losses.append(module.backward_batch(data.training_batch(2))[names.TRAIN_TEXT_LOSS])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_training_loss_is_the_models_own_joint_loss(workshop: Workshop) -> None:
    module, data = module_of(workshop, "ttt-linear", ctc_turns_per_step=1000)
    batch = data.training_batch(1)
    logged = module.backward_batch(batch)
    own = module.model(
        batch.input_ids, batch.speech, batch.labels, batch.spoken_turns, attention_mask=batch.attention_mask
    )
    assert logged[names.TRAIN_TEXT_LOSS] == pytest.approx(own.text_loss.item(), rel=1e-5)
    assert logged[names.TRAIN_CTC_LOSS] == pytest.approx(own.ctc_loss.item(), rel=1e-5)
    gradients = [p.grad.clone() for p in module.trained_parameters()]
    module.zero_grad()
    own.loss.backward()
    for found, parameter in zip(gradients, module.trained_parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=2e-4, atol=2e-6)


def test_a_nan_in_the_inner_weights_ends_the_run_and_names_the_last_good_checkpoint(
    workshop: Workshop, tmp_path: Path
) -> None:
    config = smoke_config()
    with pytest.raises(InterruptedRunError):
        workshop.train(config, "ttt-mlp", tmp_path, stop_after=AFTER_STEP_3)
    last = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    poisoned = next(name for name in content["weights"] if name.endswith("inner.W1"))
    content["weights"][poisoned].fill_(math.nan)
    torch.save(content, last)
    before = last.read_bytes()
    logger = workshop.logger(config, "ttt-mlp")
    with pytest.raises(DivergedRunError, match=r"NaN.*last good checkpoint is .*last\.ckpt"):
        workshop.train(config, "ttt-mlp", tmp_path, logger=logger)
    assert last.read_bytes() == before


def test_a_full_disk_while_checkpointing_ends_the_run_and_keeps_the_checkpoint_before(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = smoke_config()
    with pytest.raises(InterruptedRunError):
        workshop.train(config, "full-attention", tmp_path, stop_after=AFTER_STEP_3)
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full, pytest.raises(CheckpointWriteError, match=r"step 4.*No space left"):
        full.setattr("experiments.harness.checkpoints.os.fsync", no_space)
        workshop.train(config, "full-attention", tmp_path)
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before


def test_arms_of_a_seed_start_from_the_same_shared_weights_and_another_seed_does_not() -> None:
    config = smoke_config()
    models = {arm.name: build_model(config, arm, None).state_dict() for arm in config.arms}
    other = build_model(dataclasses.replace(config, seed=4), config.arm("full-attention"), None).state_dict()
    plain = models.pop("full-attention")
    for name, state in models.items():
        shared = plain.keys() & state.keys()
        assert "llm.model.layers.0.self_attn.q_proj.weight" in shared, name
        assert [key for key in shared if not torch.equal(plain[key], state[key])] == []
    assert not torch.equal(plain["llm.lm_head.weight"], other["llm.lm_head.weight"])


def test_the_windowed_control_keeps_as_many_bytes_as_the_ttt_state() -> None:
    config = smoke_config()
    ttt, window = (memory_of(config, config.arm(name)) for name in ("ttt-mlp", "sliding-window"))
    one_position = ttt.layers[0].bytes_fixed // (config.arm("ttt-mlp").lower_window + config.arm("ttt-mlp").sinks)
    assert ttt.is_bounded and window.is_bounded
    assert 0 <= ttt.bytes_fixed - window.bytes_fixed < one_position
    model = build_model(config, config.arm("ttt-mlp"), None)
    assert ttt.layers[3].bytes_fixed == ttt_layers(model.llm)[3].initial_state(1).nbytes


def test_training_batches_depend_on_seed_and_step_alone(workshop: Workshop) -> None:
    (module, data), (_, again) = module_of(workshop, "ttt-mlp"), module_of(workshop, "full-attention")
    for step in (3, 0, 2):
        first, second = data.training_batch(step), again.training_batch(step)
        assert torch.equal(first.input_ids, second.input_ids)
        assert all(torch.equal(a, b) for a, b in zip(first.speech.segments, second.speech.segments, strict=True))
    module.steps_done = 3
    assert [b.positions for b in data.train_dataloader()] == [data.training_batch(3).positions]


def test_every_conversation_of_a_stage_is_read_once_before_any_is_read_again(workshop: Workshop) -> None:
    _, data = module_of(workshop, "full-attention")
    dataset = workshop.data.stages[0]
    count = len(dataset.split_indices("train"))
    for round_ in range(3):
        places = range(round_ * count, (round_ + 1) * count)
        assert sorted(data._conversation(dataset, 0, place) for place in places) == dataset.split_indices("train")


def test_the_value_of_an_asked_fact_stands_where_the_batch_says(workshop: Workshop) -> None:
    _, data = module_of(workshop, "full-attention")
    [batch] = list(data.val_dataloader())
    dataset = workshop.data.validation
    values = {value for conversation in dataset for value in (fact.value for fact in conversation.facts)}
    spliced = data.loader._model.splice(
        batch.input_ids, batch.speech, batch.labels, attention_mask=batch.attention_mask
    )
    targets = next_labels(spliced.labels)[0]
    assert batch.asked_facts[0]
    for fact in batch.asked_facts[0]:
        assert dataset.tokenizer.decode(targets[fact.positions - 1].tolist()).strip() in values
    assert [label.shape for label in batch.label_seconds] == [(int((targets != IGNORED_LABEL).sum()),)]
    turn: SpokenTurn = batch.spoken_turns[0][-1]
    [validated] = (dataset[index] for index in dataset.split_indices("validation"))
    last_answer = validated.turns[2 * len(batch.spoken_turns[0]) - 1]
    assert batch.label_seconds[0][-1].item() == pytest.approx(last_answer.start_s)
    assert (spliced.labels[0, turn.start : turn.end] >= 0).all()
    assert spliced.labels[0, turn.start - 1] < 0
    assert int(batch.lengths[0]) == int(spliced.attention_mask.sum())


def test_an_unreadable_sound_file_is_an_error_or_is_left_out_and_listed(workshop: Workshop, tmp_path: Path) -> None:
    cache = tmp_path / "data"
    shutil.copytree(workshop.data.validation.pool.folder.parent, cache)
    sets = [workshop.data.stages[0], workshop.data.validation]
    used = [[{turn.utterance_id for turn in conversation.turns} for conversation in one] for one in sets]
    # Said in a training conversation, in no validation one, and never in all of a set.
    bad = next(
        name
        for name in sorted(set.union(*used[0], *used[1]) - used[1][-1])
        if not any(all(name in turns for turns in one[:2]) for one in used)
    )
    [wav] = cache.glob(f"pool-*/wav/{bad}.wav")
    wav.write_bytes(wav.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{bad}\.wav"):
        prepare_data(smoke_config(), cache, skips_bad_audio=False)
    data = prepare_data(smoke_config(), cache, skips_bad_audio=True)
    lost = sum(bad in turns for one in used for turns in one)
    assert len(data.stages[0]) + len(data.validation) == len(sets[0]) + len(sets[1]) - lost
    assert data.left_out and all(bad in line for line in data.left_out)


def test_weights_come_from_a_published_folder_of_the_same_dimensions(tmp_path: Path) -> None:
    config = smoke_config()
    plain = config.arm("full-attention")
    published = build_model(dataclasses.replace(config, seed=9), plain, None)
    save_llama_omni(published, tmp_path / "checkpoint")
    loaded = build_model(config, config.arm("ttt-mlp"), tmp_path / "checkpoint").state_dict()
    own = published.state_dict()
    shared = own.keys() & loaded.keys()
    assert "speech_projector.linear1.weight" in shared
    assert [name for name in shared if not torch.equal(own[name], loaded[name])] == []
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, intermediate_size=96))
    with pytest.raises(ValueError, match="does not fit this scale's model: intermediate_size 160 instead of 96"):
        build_model(wider, plain, tmp_path / "checkpoint")
    assert weights_digest(tmp_path / "checkpoint") == weights_digest(tmp_path / "checkpoint")
