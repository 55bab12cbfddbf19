"""Training of later stages: groups of parameters, segments of frames, adapters, and weights of the stage before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from harness_fixtures import StopAfter, Workshop, built, open_workshop, smoke_config

from experiments.curriculum.chain import ChainExperiment, Link
from experiments.curriculum.study import chain_study, run_link
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.parameter_groups import ParameterGroup
from experiments.harness.stopping import DivergedRunError
from experiments.harness.study import ArmTask, ArmWork
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.configuration import LoraPlan, SpokenExperiment
from experiments.spoken.module import SpokenModule
from experiments.spoken.starting import start_from

MIXERS_FIRST = (
    ParameterGroup(name="mixers", holds="upper_mixers", learning_rate=0.01),
    ParameterGroup(name="others", holds="others", learning_rate=0.001, from_step=2),
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("curriculum"), "qwen-tts-stage1")


def stepped(module: SpokenModule, batch: object) -> dict[str, float]:
    """One optimiser step, as Lightning would ask for it."""
    if not hasattr(module, "own_optimizer"):
        module.own_optimizer = module.configure_optimizers()
        module.optimizers = lambda: module.own_optimizer
    return module.training_step(batch, 0)


def changed(before: dict[str, torch.Tensor], module: SpokenModule) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def copied(module: SpokenModule) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("arm", ["ttt-mlp", "sliding-window"])
def test_what_mixes_positions_is_trained_alone_at_first_and_everything_later(workshop: Workshop, arm: str) -> None:
    config = smoke_config("qwen-tts-stage1", groups=MIXERS_FIRST)
    module, loader = built(config, arm)
    batch = loader.batch(workshop.data.stages[0], [0])
    before = copied(module)
    logged = [stepped(module, batch) for _ in range(2)]
    assert all("layers.3.self_attn" in name for name in changed(before, module))
    assert changed(before, module)
    assert module.llm.model.layers[0].mlp.up_proj.weight.grad is None
    assert [row["train/learning_rate_of_others"] for row in logged] == [0.0, 0.0]
    before, row = copied(module), stepped(module, batch)
    assert {"model.model.layers.0.mlp.up_proj.weight", "model.model.embed_tokens.weight"} <= changed(before, module)
    assert 0 < row["train/learning_rate_of_others"] <= 0.001 < row["train/learning_rate_of_mixers"]


def test_a_parameter_in_no_group_stays_as_it_was(workshop: Workshop) -> None:
    config = smoke_config("qwen-tts-stage1", groups=MIXERS_FIRST[:1])
    module, loader = built(config, "ttt-mlp")
    batch, before = loader.batch(workshop.data.stages[0], [0]), copied(module)
    for _ in range(3):
        stepped(module, batch)
    assert all("layers.3.self_attn" in name for name in changed(before, module))


def test_groups_that_would_train_nothing_are_refused() -> None:
    misspelt = ParameterGroup(name="x", holds="speech_generatr", learning_rate=1.0)
    module, _ = built(smoke_config("qwen-tts-stage1", groups=(misspelt,)), "ttt-mlp")
    with pytest.raises(ValueError, match="group 'x' holds no trained parameter: none is of 'speech_generatr'"):
        module.configure_optimizers()
    with pytest.raises(ValueError, match="no group is trained from step 0 on"):
        smoke_config("qwen-tts-stage1", groups=MIXERS_FIRST[1:])
    with pytest.raises(ValueError, match="different names"):
        smoke_config("qwen-tts-stage1", groups=MIXERS_FIRST[:1] * 2)


@pytest.mark.parametrize("arm", ["ttt-mlp", "sliding-window"])
def test_a_validation_in_segments_is_that_of_the_whole(workshop: Workshop, arm: str) -> None:
    found = []
    for segment in (None, 37):
        module, loader = built(smoke_config("qwen-tts-stage1", segment_positions=segment), arm)
        batch = loader.batch(workshop.data.stages[0], [0, 1])
        with torch.no_grad():
            hidden = module.read_whole(module.model.get_input_embeddings()(batch.input_ids), batch.attention_mask)
        found.append(hidden[batch.attention_mask])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_segments_of_frames_that_carry_windows_and_state_give_the_whole_ones_gradients(workshop: Workshop) -> None:
    """Text, timing and codes; the frames drawn for the codes lie in several segments."""
    results = []
    for segment in (None, 131):
        config = smoke_config("qwen-mimi-stage1", segment_positions=segment)
        module, loader = built(config, "ttt-mlp")
        batch = loader.batch(workshop.data.stages[0], [0, 1])
        logged = module.backward_batch(batch)
        validated = module.read_whole(batch)
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        results.append((logged, gradients, validated))
    (whole, gradients, read), (cut, cut_gradients, cut_read) = results
    assert batch.codes.shape[2] > 3 * 131
    for name in (names.TRAIN_TEXT_LOSS, spoken_names.TRAIN_AUDIO_LOSS, names.TRAIN_LOSS):
        assert cut[name] == pytest.approx(whole[name], rel=1e-5)
    torch.testing.assert_close(cut_read.text_logits, read.text_logits, rtol=1e-4, atol=1e-5)
    # Gradients are cut between segments, so only what needs no earlier segment is equal: the head's.
    assert gradients.keys() == cut_gradients.keys()
    torch.testing.assert_close(
        cut_gradients["model.text_head.weight"], gradients["model.text_head.weight"], rtol=1e-3, atol=1e-5
    )


def test_moshis_segments_leave_out_frames_that_see_too_little_and_its_validation_streams(workshop: Workshop) -> None:
    config = smoke_config("moshi-stage1", segment_positions=160)
    module, loader = built(config, "ttt-mlp")
    assert module.blind_frames == config.model.context == 64
    batch = loader.batch(workshop.data.stages[0], [0, 1])
    logged = module.backward_batch(batch)
    assert all(torch.isfinite(torch.tensor(value)) for value in logged.values())
    whole, _ = built(smoke_config("moshi-stage1"), "ttt-mlp")
    with torch.no_grad():
        streamed, expected = module.read_whole(batch), whole.read_whole(batch)
    assert batch.codes.shape[2] > 2 * 160
    for row, length in enumerate(batch.lengths.tolist()):
        torch.testing.assert_close(
            streamed.text_logits[row, :length], expected.text_logits[row, :length], rtol=1e-3, atol=1e-4
        )
    with pytest.raises(ValueError, match="segment_positions is 64, and the first 64 frames"):
        built(smoke_config("moshi-stage1", segment_positions=64), "ttt-mlp")
    with pytest.raises(ValueError, match="the arm needs TTT layers"):
        built(config, "sliding-window")


def test_a_stage_begins_with_the_weights_that_the_one_before_ended_with(workshop: Workshop, tmp_path: Path) -> None:
    config = smoke_config("qwen-tts-stage1")
    ended = workshop.train(config, "ttt-mlp", tmp_path / "before")
    began, _ = built(dataclasses.replace(config, seed=9), "ttt-mlp")
    assert changed(copied(ended), began)
    start_from(began, tmp_path / "before")
    assert not changed(copied(ended), began)
    with pytest.raises(ValueError, match=r"last.ckpt is missing"):
        start_from(began, tmp_path)
    with pytest.raises(ValueError, match=r"does not fit this model \(missing:"):
        start_from(built(config, "sliding-window")[0], tmp_path / "before")


def test_adapters_add_nothing_at_first_and_leave_what_they_adapt(workshop: Workshop, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is an extra, in requirements.lock: `make setup` installs it")
    plain = smoke_config("qwen-tts-stage1")
    groups = (
        MIXERS_FIRST[0], ParameterGroup(name="adapters", holds="lora_", learning_rate=0.01),
    )  # fmt: skip
    adapted = smoke_config("qwen-tts-stage1", lora=LoraPlan(rank=2), groups=groups)
    ended = workshop.train(plain, "ttt-mlp", tmp_path / "before")
    module, loader = built(adapted, "ttt-mlp")
    start_from(module, tmp_path / "before")
    batch = loader.batch(workshop.data.stages[0], [0])
    with torch.no_grad():
        for each in (ended, module):
            each.eval()
        expected = ended.model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        found = module.model.model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    module.train()
    before = copied(module)
    for _ in range(2):
        stepped(module, batch)
    moved = changed(before, module)
    assert any("layers.0.self_attn.q_proj.lora_B" in name for name in moved)
    assert all("lora_" in name or "layers.3.self_attn" in name for name in moved)
    assert not any("lora_" in name and "layers.3." in name for name in before)
    state = module.named_parts()["ttt"][0].initial_state(1)
    assert state.W1.dtype == torch.float32


def chain_of(config: SpokenExperiment, **link: object) -> ChainExperiment:
    """One link, which may start from an earlier one that is not trained here."""
    one = dataclasses.replace(config, arms=(config.arm("ttt-mlp"),))
    links = (Link(name="first", experiment=one), Link(name="second", experiment=one, **link))
    return ChainExperiment(recipe="chain", scale="smoke", seed=config.seed, links=links)


def work_on(workshop: Workshop, config: ChainExperiment, folder: Path, start: Path | None = None) -> ArmWork:
    experiment = config.link("second").experiment
    task = ArmTask(
        study=chain_study("qwen-tts"), config=config, arm="second", folder=folder, start_folder=start,
        tracking_uri=workshop.uri, experiment_id=workshop.experiment_id, parent_run_id="", line=0, threads=1,
        data={"second": workshop.data}, data_sources=(), weights=None, resumes=False, is_adhoc=False,
    )  # fmt: skip
    folder.mkdir(parents=True)
    return ArmWork(task=task, logger=workshop.logger(experiment, "ttt-mlp"), stop=StopAfter(0))


def test_divergence_is_a_result_where_a_link_is_there_to_show_it(workshop: Workshop, tmp_path: Path) -> None:
    config = smoke_config("qwen-tts-stage1", learning_rate=1e30, ttt_learning_rate=1e30, gradient_clip_norm=1e30)
    work = work_on(workshop, chain_of(config, survives_divergence=True), tmp_path / "shown")
    run_link(work)
    work.logger.close("FINISHED")
    run = tracking.read_run(workshop.uri, work.logger.run_id)
    assert run.metrics["curriculum/diverged"] == 1.0 and "became NaN or infinite" in run.tags["diverged"]
    with pytest.raises(DivergedRunError):
        run_link(work_on(workshop, chain_of(config), tmp_path / "raised"))


def test_a_link_does_not_start_from_one_that_passed_a_limit(workshop: Workshop, tmp_path: Path) -> None:
    config, before = smoke_config("qwen-tts-stage1"), tmp_path / "before"
    logger = workshop.logger(config, "ttt-mlp")
    workshop.train(config, "ttt-mlp", before, logger=logger)
    logger.log_metrics({"ttt/layer03/W1_max": 11.0}, step=3)
    logger.close("FINISHED")
    (before / "run.json").write_text(json.dumps({"run_id": logger.run_id}))
    chain = chain_of(config, starts_from="first")
    with pytest.raises(ValueError, match=r"largest \|W1\| was 11 in layer03 at step 3"):
        run_link(work_on(workshop, chain, tmp_path / "refused", before))
    work = work_on(workshop, chain, tmp_path / "allowed", before)
    allowed = dataclasses.replace(work, task=dataclasses.replace(work.task, start_limits=("largest_W1=12",)))
    run_link(allowed)
    work.logger.close("FINISHED")
    assert tracking.read_run(workshop.uri, work.logger.run_id).metrics["speed/seconds_of_stage"] > 0
