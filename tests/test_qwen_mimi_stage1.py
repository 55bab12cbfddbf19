"""Training and measuring Qwen + Mimi on spoken conversations, against the model's own forward pass and its stream."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from harness_fixtures import Workshop, open_workshop, smoke_config
from qwen_mimi_models import tiny_mimi
from torch.nn import functional

from backbones.mounting import ttt_layers
from backbones.qwen_mimi import GREEDY, QwenMimi, QwenMimiConfig, save
from backbones.qwen_mimi.config import FRAME_RATE_HZ
from experiments.data import framing
from experiments.harness import metric_names as names
from experiments.recipes import RECIPES
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.prepared_data import prepare_data
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.qwen_mimi.loader import QwenMimiLoader
from experiments.spoken.qwen_mimi.model import build_model, memory_of
from experiments.spoken.qwen_mimi.module import QwenMimiModule, choose_trained, streams_of
from experiments.spoken.qwen_mimi.sample import continued

RECIPE = "qwen-mimi-stage1"
MIMI_CODES = 64


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("qwen_mimi"), RECIPE)


def config_of(model: dict[str, object] | None = None, codes: str = "units", **training: object) -> QwenMimiExperiment:
    config = smoke_config(RECIPE, **training)
    assert isinstance(config, QwenMimiExperiment)
    return dataclasses.replace(config, codes=codes, model=dataclasses.replace(config.model, **(model or {})))


def module_and_loader(
    config: QwenMimiExperiment, arm: str, weights: Path | None = None
) -> tuple[QwenMimiModule, QwenMimiLoader]:
    """A module that takes steps without a Trainer."""
    model = build_model(config, config.arm(arm), weights)
    module = QwenMimiModule(model, config, config.arm(arm))
    module.manual_backward = lambda loss: loss.backward()
    return module, QwenMimiLoader(model, config)


@pytest.fixture(scope="module")
def mimi_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mimi of four codebooks, as the smoke scale's model has, in transformers' format."""
    folder = tmp_path_factory.mktemp("mimi")
    tiny_mimi(codebooks=4, codebook_size=MIMI_CODES).model.save_pretrained(folder)
    return folder


def test_a_frame_is_mimis() -> None:
    assert framing.FRAME_RATE_HZ == FRAME_RATE_HZ == tiny_mimi().frame_rate_hz


@pytest.mark.parametrize("arm", ["ttt-linear", "sliding-window"])
def test_the_training_loss_is_that_of_the_models_own_forward(workshop: Workshop, arm: str) -> None:
    plan = {"audio_frames_per_step": 10**6, "speech_weight": 0.7}
    module, loader = module_and_loader(config_of(fact_value_weight=3.0, **plan), arm)
    batch = loader.batch(workshop.data.stages[0], [0, 1])
    assert batch.lengths[0] != batch.lengths[1] and batch.asked_facts[0]
    logged = module.backward_batch(batch)
    gradients = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
    module.zero_grad()

    out = module.model(*streams_of(batch.codes, 4), batch.lengths)
    text, is_real = batch.codes[:, 0], batch.is_real()
    weights = torch.where(text == module.no_text_id, 0.5, 1.0)
    for row, facts in enumerate(batch.asked_facts):
        for fact in facts:
            weights[row, fact.positions] = 3.0
    weights = weights * is_real
    nats = functional.cross_entropy(out.text_logits.transpose(1, 2), text, reduction="none")
    loss = (nats * weights).sum() / weights.sum() + 0.7 * out.code_losses.mean()
    assert logged[names.TRAIN_LOSS] == pytest.approx(loss.item(), rel=1e-5)
    assert logged[spoken_names.TRAIN_AUDIO_LOSS] == pytest.approx(out.code_losses.mean().item(), rel=1e-5)
    loss.backward()
    for name, parameter in module.model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-4, atol=2e-6)


def test_fewer_frames_are_drawn_by_seed_and_step_alone(workshop: Workshop) -> None:
    module, loader = module_and_loader(config_of(audio_frames_per_step=7), "full-attention")
    batch = loader.batch(workshop.data.stages[0], [1])
    drawn = module._drawn_frames(batch)
    assert len(drawn) == 7 and torch.equal(drawn, module._drawn_frames(batch))
    module.steps_done += 1
    assert not torch.equal(drawn, module._drawn_frames(batch))
    none, _ = module_and_loader(config_of(audio_frames_per_step=0), "full-attention")
    assert none.backward_batch(batch)[spoken_names.TRAIN_AUDIO_LOSS] == 0


def test_gradient_checkpointing_changes_no_gradient(workshop: Workshop) -> None:
    gradients = []
    for is_on in (False, True):
        module, loader = module_and_loader(config_of(gradient_checkpointing=is_on), "ttt-linear")
        assert module.train().model.decoder.gradient_checkpointing == is_on
        module.backward_batch(loader.batch(workshop.data.stages[0], [0]))
        gradients.append({name: p.grad for name, p in module.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_the_inner_warm_up_reaches_the_layers_and_leaves_other_arms_alone(workshop: Workshop) -> None:
    module, loader = module_and_loader(config_of(inner_warmup_steps=10), "ttt-mlp")
    batch = loader.batch(workshop.data.stages[0], [0])
    whole, share = module.read(batch, 1.0).hidden, module.read(batch, 0.1).hidden
    assert not torch.allclose(whole, share, rtol=1e-4)
    layers = ttt_layers(module.model.decoder)
    slow = 0.1 * layers[3].config.resolved_base_lr
    frames = module.model.frames_before(*streams_of(batch.codes, 4))
    assert torch.equal(module.model.read(*frames, ttt_base_lr=slow)[0], share)
    other, _ = module_and_loader(config_of(inner_warmup_steps=10), "full-attention")
    assert torch.equal(other.read(batch, 0.1).hidden, other.read(batch, 1.0).hidden)


@torch.no_grad()
def test_the_sample_is_what_the_model_finds_most_likely_of_its_own_words(workshop: Workshop) -> None:
    module, loader = module_and_loader(config_of(), "ttt-mlp")
    module.eval()
    codes = loader.batch(workshop.data.stages[0], [0]).codes
    first, count = 85, 9
    text, said = continued(module.model, codes, first, count, GREEDY)
    assert text.shape == (count,) and said.shape == (count, 4)
    again = codes.clone()
    again[0, 0, first : first + count] = text
    again[0, 1:5, first : first + count] = said.T
    out = module.model(*streams_of(again, 4))
    assert torch.equal(out.text_logits[0, first : first + count].argmax(dim=1), text)
    assert torch.equal(out.code_logits[0, first : first + count].argmax(dim=2), said)


def test_arms_start_from_the_same_weights_and_the_control_takes_ttts_bytes() -> None:
    config = config_of()
    models = {arm.name: build_model(config, arm, None) for arm in config.arms}
    plain = models["full-attention"].state_dict()
    for name, model in models.items():
        shared = plain.keys() & model.state_dict().keys()
        assert "depth.heads" in shared, name
        assert [key for key in shared if not torch.equal(plain[key], model.state_dict()[key])] == []
    ttt, window, full = (memory_of(config, config.arm(n)) for n in ("ttt-mlp", "sliding-window", "full-attention"))
    one_frame = full.layers[0].bytes_per_position
    assert ttt.is_bounded and window.is_bounded and not full.is_bounded
    assert abs(ttt.bytes_fixed - window.bytes_fixed) < one_frame * len(config.model.ttt_layers)


def test_full_scale_is_qwens_with_ttt_in_layers_12_to_27() -> None:
    config = RECIPES[RECIPE].configure(scale="full", seed=0)
    assert config.model == QwenMimiConfig.planned() and config.codes == "mimi"
    assert config.arm("ttt-mlp").upper_layers == tuple(range(12, 28))
    siblings = RECIPES["llama-omni-stage1"].configure(scale="full", seed=0)
    assert config.arm_names == siblings.arm_names


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_the_conversations_are_told_from_llama_omnis_pool_of_sentences(scale: str) -> None:
    ours, theirs = (RECIPES[name].configure(scale=scale, seed=0) for name in (RECIPE, "llama-omni-stage1"))
    assert ours.data.spec.pool_digest() == theirs.data.spec.pool_digest()


def test_codes_of_a_mimi_take_the_units_place(workshop: Workshop, mimi_folder: Path) -> None:
    config = config_of({"codebook_size": MIMI_CODES}, codes="mimi")
    module, loader = module_and_loader(config, "ttt-linear", mimi_folder)
    assert module.model.mimi is not None
    dataset = workshop.data.stages[0]
    framed = loader.framed(dataset, 1)
    assert framed.own.shape == framed.heard.shape == (len(framed), 4)
    turn = framed.turns[1]
    own = framed.own[turn.sound : turn.end]
    spoken = next(t for t in dataset[1].turns if t.text == turn.text)
    sound = dataset.utterance(spoken.utterance_id)
    assert abs(len(own) / FRAME_RATE_HZ - sound.duration_s) < 2 / FRAME_RATE_HZ
    assert len(own.unique()) > 8 and len(framed.own[turn.start : turn.sound].unique(dim=0)) == 1
    # As the units lie: the same frames of text, and sound where the units sound.
    in_units = QwenMimiLoader(module.model, config_of()).framed(dataset, 1)
    assert torch.equal(in_units.text[in_units.text != module.no_text_id], framed.text[framed.text != module.no_text_id])
    assert module.backward_batch(loader.batch(dataset, [1]))[spoken_names.TRAIN_AUDIO_LOSS] > 0


def test_weights_come_from_a_saved_folder_of_the_same_dimensions(tmp_path: Path, mimi_folder: Path) -> None:
    config = config_of({"codebook_size": MIMI_CODES})
    torch.manual_seed(9)
    saved = QwenMimi(config.model)
    save(saved, tmp_path)
    loaded = build_model(config, config.arm("ttt-mlp"), tmp_path).state_dict()
    shared = saved.state_dict().keys() & loaded.keys()
    assert "depth.heads" in shared
    assert [name for name in shared if not torch.equal(saved.state_dict()[name], loaded[name])] == []
    with pytest.raises(ValueError, match="text_vocab_size 514 instead of 515"):
        build_model(config_of({"codebook_size": MIMI_CODES, "text_vocab_size": 515}), config.arm("ttt-mlp"), tmp_path)
    save(build_model(config, config.arm("ttt-mlp"), None), tmp_path / "mounted")
    with pytest.raises(ValueError, match="holds a mounted model"):
        build_model(config, config.arm("ttt-mlp"), tmp_path / "mounted")
    of_mimi = dataclasses.replace(config, codes="mimi")
    with pytest.raises(ValueError, match="codes='mimi' reads sound through a trained Mimi"):
        build_model(of_mimi, config.arm("ttt-mlp"), tmp_path)
    (tmp_path / "mimi").symlink_to(mimi_folder)
    assert build_model(of_mimi, config.arm("ttt-mlp"), tmp_path).mimi is not None


def test_a_pretrained_model_trains_the_upper_mixers_the_depth_decoder_and_the_codes_embedding() -> None:
    config = config_of()
    model = build_model(config, config.arm("ttt-mlp"), None)
    choose_trained(model, "upper_mixers_and_speech", config.arm("ttt-mlp").upper_layers)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"decoder", "code_embedding", "depth"}
    in_decoder = {id(p) for p in model.decoder.parameters() if p.requires_grad}
    assert in_decoder == {id(p) for layer in ttt_layers(model.decoder).values() for p in layer.parameters()}


def test_models_that_the_frames_do_not_fit_into_are_refused(workshop: Workshop) -> None:
    with pytest.raises(ValueError, match=r"codes='units' needs model\.codebooks=4; got 3"):
        config_of({"codebooks": 3})
    with pytest.raises(ValueError, match="codes must be one of units, mimi; got 'mel'"):
        config_of(codes="mel")
    cache = workshop.data.validation.pool.folder.parent
    with pytest.raises(ValueError, match=r"48 speech units, the model only 47; raise model\.codebook_size"):
        prepare_data(config_of({"codebook_size": 47}), cache, skips_bad_audio=False)
    with pytest.raises(ValueError, match="codes='mimi' reads sound through a trained Mimi"):
        prepare_data(config_of(codes="mimi"), cache, skips_bad_audio=False)
