"""The recipe qwen-tts-stage1: what is read and measured, against transformers' own loss, and run once as a command."""

from __future__ import annotations

import dataclasses
import json

import pytest
import soundfile
import torch
from harness_fixtures import Workshop, open_workshop, smoke_config
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from experiments.data.packing import IGNORED_LABEL, pack, pack_transcript
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.checkpoints import read_checkpoint
from experiments.harness.study import SCALES
from experiments.recipes import RECIPES
from experiments.spoken.prepared_data import prepare_data
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.loader import QwenLoader
from experiments.spoken.qwen_tts.model import build_model, memory_of
from experiments.spoken.qwen_tts.module import QwenModule
from experiments.spoken.qwen_tts.sample import written

RECIPE = "qwen-tts-stage1"
RUN = ("ttt-mlp", "full-attention")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("qwen"), RECIPE)


def config_of(model: dict[str, object] | None = None, **training: object) -> QwenExperiment:
    config = smoke_config(RECIPE, **training)
    assert isinstance(config, QwenExperiment)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **(model or {})))


def module_of(config: QwenExperiment, arm: str) -> tuple[QwenModule, QwenLoader]:
    """A module that takes steps without a Trainer."""
    llm = build_model(config, config.arm(arm), None)
    module = QwenModule(llm, config, config.arm(arm))
    module.manual_backward = lambda loss: loss.backward()
    return module, QwenLoader(llm, config)


@pytest.mark.parametrize("scale", SCALES)
def test_arms_differ_in_the_upper_quarter_alone_and_the_window_takes_ttts_bytes(scale: str) -> None:
    config = RECIPES[RECIPE].configure(scale=scale, seed=0)
    other = RECIPES["llama-omni-stage1"].configure(scale=scale, seed=0)
    assert config.arm_names == other.arm_names
    assert all(arm.upper_layers == tuple(range(config.layers * 3 // 4, config.layers)) for arm in config.arms)
    ttt, window = memory_of(config, config.arm("ttt-mlp")), memory_of(config, config.arm("sliding-window"))
    assert ttt.is_bounded and window.is_bounded
    assert abs(ttt.bytes_fixed / window.bytes_fixed - 1) < 0.01
    if scale in ("smoke", "cpu", "gpu"):
        assert config.data == other.data


def test_the_transcript_stands_where_the_speech_would(workshop: Workshop) -> None:
    dataset = workshop.data.validation
    tokenizer, conversation = dataset.tokenizer, dataset[dataset.split_indices("validation")[0]]
    read, heard = pack_transcript(conversation, dataset, 1), pack(conversation, dataset, mini_batch_size=1)
    ids = [tokenizer.bos_id]
    for turn in conversation.turns:
        ids += [tokenizer.user_id if turn.speaker == "user" else tokenizer.assistant_id, *tokenizer.encode(turn.text)]
        ids += [tokenizer.eos_id] if turn.speaker == "assistant" else []
    assert read.input_ids.tolist() == ids and read.exchanges_left_out == 0
    assert torch.equal(read.spliced_positions, torch.arange(len(ids))) and not read.speech_segments
    # What is predicted and asked for is the same; only where it stands differs.
    assert torch.equal(read.labels[read.labels >= 0], heard.labels[heard.labels >= 0])
    assert len(read.recalls) == len(heard.recalls) > 0
    for mine, theirs in zip(read.recalls, heard.recalls, strict=True):
        assert (mine.subject, mine.value, mine.seconds_since_last_mention) == (
            theirs.subject, theirs.value, theirs.seconds_since_last_mention,
        )  # fmt: skip
        assert tokenizer.decode(read.input_ids[list(mine.value_positions)].tolist()).strip() == mine.value
        last = mine.value_positions[0] - mine.distance_to_last_mention
        assert tokenizer.decode([ids[last]]).strip() == mine.value
        assert 0 < mine.distance_to_last_mention < theirs.distance_to_last_mention


@pytest.mark.parametrize(("arm", "family"), [("ttt-linear", {}), ("sliding-window", {"model_type": "qwen3"})])
def test_the_training_loss_is_that_of_the_models_own_forward(
    workshop: Workshop, arm: str, family: dict[str, object]
) -> None:
    config = config_of(family, fact_value_weight=3.0)
    module, loader = module_of(config, arm)
    batch = loader.batch(workshop.data.stages[0], [1])
    logged = module.backward_batch(batch)
    gradients = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
    module.zero_grad()

    logits = module.model(batch.input_ids, use_cache=False).logits[0, :-1]
    targets = batch.labels[0, 1:]
    weights = (targets != IGNORED_LABEL).float()
    for fact in batch.asked_facts[0]:
        weights[fact.positions - 1] = 3.0
    nats = functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED_LABEL)
    assert batch.asked_facts[0]
    assert logged[names.TRAIN_TEXT_LOSS] == pytest.approx(float(nats.sum() / (targets >= 0).sum()), rel=1e-5)
    ((nats * weights).sum() / weights.sum()).backward()
    assert gradients.keys() == {name for name, _ in module.model.named_parameters()}
    for name, parameter in module.model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-4, atol=2e-6)


def test_padding_and_cutting_into_segments_leave_the_loss_as_it_is(workshop: Workshop) -> None:
    dataset = workshop.data.stages[0]
    module, loader = module_of(config_of(), "ttt-mlp")
    both, single = loader.batch(dataset, [0, 1]), [loader.batch(dataset, [index]) for index in (0, 1)]
    assert both.lengths[0] != both.lengths[1]
    losses = [module.backward_batch(batch)[names.TRAIN_TEXT_LOSS] for batch in (both, *single)]
    tokens = [len(batch.label_seconds[0]) for batch in single]
    apart = sum(loss * count for loss, count in zip(losses[1:], tokens, strict=True)) / sum(tokens)
    assert losses[0] == pytest.approx(apart, rel=1e-5)
    for arm in ("ttt-mlp", "full-attention"):
        whole = module_of(config_of(), arm)[0].backward_batch(both)
        cut = module_of(config_of(segment_positions=37), arm)[0].backward_batch(both)
        assert cut[names.TRAIN_TEXT_LOSS] == pytest.approx(whole[names.TRAIN_TEXT_LOSS], rel=1e-5)


def test_the_sample_is_what_the_model_finds_most_likely(workshop: Workshop) -> None:
    config = config_of({"initializer_range": 0.3})
    for arm in RUN:
        module, loader = module_of(config, arm)
        model = module.model.eval()
        prompt = loader.packed(workshop.data.validation, 0).input_ids[:60]
        ids = written(model, prompt, 20, end_id=511)
        with torch.no_grad():
            logits = model(torch.cat([prompt, torch.tensor(ids)])[None], use_cache=False).logits[0, 59:-1]
        assert logits.argmax(dim=1).tolist() == ids
        end = next(token for token in ids if token != ids[0])
        assert written(model, prompt, 20, end_id=end) == ids[: ids.index(end)]


def test_weights_come_from_a_published_folder_of_the_same_dimensions(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, config = tmp_path_factory.mktemp("published"), config_of()
    torch.manual_seed(9)
    published = AutoModelForCausalLM.from_config(config.model.llm_config())
    published.save_pretrained(folder)
    loaded = build_model(config, config.arm("ttt-mlp"), folder).state_dict()
    shared = published.state_dict().keys() & loaded.keys()
    assert "model.layers.3.mlp.up_proj.weight" in shared
    assert [name for name in shared if not torch.equal(published.state_dict()[name], loaded[name])] == []
    with pytest.raises(ValueError, match="does not fit this scale's model: vocab_size 512 instead of 513"):
        build_model(config_of({"vocab_size": 513}), config.arm("ttt-mlp"), folder)


def test_arms_start_equal_and_a_pretrained_model_trains_the_upper_mixers_alone(workshop: Workshop) -> None:
    config = config_of(trains="upper_mixers_and_speech")
    plain = build_model(config, config.arm("full-attention"), None).state_dict()
    for arm in config.arms:
        module, _ = module_of(config, arm.name)
        shared = plain.keys() & module.model.state_dict().keys()
        assert "model.layers.0.self_attn.q_proj.weight" in shared
        assert [key for key in shared if not torch.equal(plain[key], module.model.state_dict()[key])] == []
        trained = {name for name, p in module.model.named_parameters() if p.requires_grad}
        assert trained and all(name.startswith("model.layers.3.self_attn.") for name in trained)
    cache = workshop.data.validation.pool.folder.parent
    with pytest.raises(ValueError, match=r"text tokens, the model only 400; raise model\.vocab_size"):
        prepare_data(config_of({"vocab_size": 400}), cache, skips_bad_audio=False)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    arms = [part for arm in RUN for part in ("--arm", arm)]
    return run_command(tmp_path_factory.mktemp("smoke"), RECIPE, *arms)


def test_the_smoke_run_ends_well_with_a_row_for_every_arm(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors
    table = (smoke.run_folder / "table.txt").read_text()
    assert table.strip() in smoke.output
    assert {row.split()[0] for row in table.splitlines()[2:4]} == set(RUN)


@pytest.mark.parametrize("arm", RUN)
def test_an_arm_logs_what_llama_omnis_do_under_the_same_names(smoke: FinishedCommand, arm: str) -> None:
    run = smoke.logged(arm)
    assert run.status == "FINISHED"
    same = {
        names.VALIDATION_LOSS, names.VALIDATION_TEXT_LOSS, names.VALIDATION_PERPLEXITY, names.RECALL_ALL,
        names.RECALL_CHANCE, names.SPEED, names.PEAK_BYTES, names.STATE_BYTES, names.TRAIN_TEXT_LOSS,
        names.TRAINED_PARAMETERS, "loss_by_position/00000_00128", "loss_by_time_seconds/00000_00015",
        "facts_by_distance_seconds/00015_00060",
    }  # fmt: skip
    assert same <= run.metrics.keys()
    assert run.metrics[names.VALIDATION_LOSS] == run.metrics[names.VALIDATION_TEXT_LOSS]
    assert any(name.startswith("ttt/layer03/") for name in run.metrics) == (arm == "ttt-mlp")
    assert json.loads((smoke.run_folder / arm / "config.json").read_text())["backbone"] == "qwen-tts"
    artifacts = {item.path for item in tracking.MlflowClient(smoke.uri).list_artifacts(run.run_id)}
    assert {"config.json", "memory.txt", "sample.txt", "sample_expected.wav"} <= artifacts
    assert ("trained_difference.safetensors" in artifacts) == (arm == "ttt-mlp")
    text = (smoke.run_folder / arm / "sample.txt").read_text()
    assert "question (read):" in text and "generated text:" in text
    assert (smoke.run_folder / arm / "sample.wav").exists() != ("sound: NONE" in text)
    samples, rate = soundfile.read(smoke.run_folder / arm / "sample_expected.wav")
    assert rate == 24_000 and len(samples) > 10_000


def test_the_trained_difference_is_what_the_last_checkpoint_holds(smoke: FinishedCommand) -> None:
    saved = load_file(smoke.run_folder / "ttt-mlp" / "trained_difference.safetensors")
    weights = read_checkpoint(smoke.run_folder / "ttt-mlp" / "checkpoints" / "last.ckpt")["weights"]
    assert saved
    assert all(torch.equal(tensor, weights[f"model.model.{name}"]) for name, tensor in saved.items())


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, RECIPE)
