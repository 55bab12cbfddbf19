"""Training and measuring Moshi on spoken conversations, against the package's own forward pass and its streaming."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from harness_fixtures import Workshop, open_workshop, smoke_config

pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")

from moshi.modules.transformer import StreamingMultiheadAttention
from torch.nn import functional

from backbones.moshi import FRAME_RATE_HZ, attention_layers, build_lm, delayed_sequence, ttt_layers, write_checkpoint
from experiments.data import framing
from experiments.harness import metric_names as names
from experiments.harness import tracking
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.tracking import RunLogger
from experiments.spoken import metric_names as spoken_names
from experiments.spoken.frame_batches import FrameBatch
from experiments.spoken.frame_module import text_parts
from experiments.spoken.moshi import sample
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.loader import MoshiLoader
from experiments.spoken.moshi.model import able_to_stream, build_model, memory_of
from experiments.spoken.moshi.module import MoshiModule, choose_trained
from experiments.spoken.prepared_data import prepare_data

RECIPE = "moshi-stage1"
AFTER_STEP_3 = 4
DELAYED = {"n_q": 11, "dep_q": 5, "delays": (0, 0, 1, 2, 1, 1, 0, 1, 1, 2, 1, 1), "depformer_context": 5}
"""More codebooks than a frame has units, and delays, as the published model has."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("moshi"), RECIPE)


@dataclass(frozen=True)
class TrainedArm:
    """An arm that was trained in one go, and the run that it logged."""

    config: MoshiExperiment
    module: MoshiModule
    logger: RunLogger


@pytest.fixture(scope="module")
def trained(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> TrainedArm:
    config = config_of(inner_warmup_steps=3)
    logger = workshop.logger(config, "ttt-mlp")
    module = workshop.train(config, "ttt-mlp", tmp_path_factory.mktemp("whole"), logger=logger)
    assert isinstance(module, MoshiModule)
    return TrainedArm(config=config, module=module, logger=logger)


def config_of(model: dict[str, object] | None = None, **training: object) -> MoshiExperiment:
    config = smoke_config(RECIPE, **training)
    assert isinstance(config, MoshiExperiment)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **(model or {})))


def module_and_loader(config: MoshiExperiment, arm: str) -> tuple[MoshiModule, MoshiLoader]:
    """A module that takes steps without a Trainer."""
    lm = build_model(config, config.arm(arm), None)
    module = MoshiModule(lm, config, config.arm(arm))
    module.manual_backward = lambda loss: loss.backward()
    return module, MoshiLoader(lm, config)


def test_a_frame_is_moshis() -> None:
    assert framing.FRAME_RATE_HZ == FRAME_RATE_HZ


@pytest.mark.parametrize(("arm", "model"), [("ttt-linear", {}), ("ring", DELAYED)])
def test_the_training_loss_is_that_of_the_packages_own_forward(
    workshop: Workshop, arm: str, model: dict[str, object]
) -> None:
    config = config_of(model, audio_frames_per_step=10**6, fact_value_weight=3.0, speech_weight=0.7)
    module, loader = module_and_loader(config, arm)
    batch = loader.batch(workshop.data.stages[0], [1])
    logged = module.backward_batch(batch)
    gradients = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
    module.zero_grad()

    out = module.model(batch.codes)
    text, no_text = batch.codes[0, 0], module.model.text_padding_token_id
    weights = torch.where(text == no_text, 0.5, 1.0)
    for fact in batch.asked_facts[0]:
        weights[fact.positions] = 3.0
    nats = functional.cross_entropy(out.text_logits[0, 0], text, reduction="none")
    units = batch.codes[0, 1:5]
    is_unit = out.mask[0, :4] & (units >= 0)
    audio = functional.cross_entropy(out.logits[0, :4][is_unit], units[is_unit])
    loss = (nats * weights).sum() / weights.sum() + 0.7 * audio
    assert batch.asked_facts[0] and is_unit.any(dim=1).all()
    assert logged[names.TRAIN_LOSS] == pytest.approx(loss.item(), rel=1e-5)
    assert logged[spoken_names.TRAIN_AUDIO_LOSS] == pytest.approx(audio.item(), rel=1e-5)
    loss.backward()
    for name, parameter in module.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=2e-4, atol=2e-6)


def test_padding_changes_neither_loss_nor_what_is_drawn_from(workshop: Workshop) -> None:
    config = config_of(audio_frames_per_step=10**6)
    module, loader = module_and_loader(config, "ttt-mlp")
    dataset = workshop.data.stages[0]
    both = loader.batch(dataset, [0, 1])
    single = [loader.batch(dataset, [index]) for index in (0, 1)]
    assert both.lengths[0] != both.lengths[1]
    losses = [module.backward_batch(batch) for batch in (both, *single)]
    tokens = [len(batch.label_seconds[0]) for batch in single]
    frames = [batch.positions for batch in single]
    for metric, sizes in ((names.TRAIN_TEXT_LOSS, tokens), (spoken_names.TRAIN_AUDIO_LOSS, frames)):
        apart = sum(one[metric] * size for one, size in zip(losses[1:], sizes, strict=True)) / sum(sizes)
        assert losses[0][metric] == pytest.approx(apart, rel=1e-5)
    drawn = module._drawn_frames(both)
    assert len(drawn) == both.positions == sum(frames)


def test_the_two_parts_of_the_text_loss_add_up_to_it() -> None:
    logits, targets = 3 * torch.randn(17, 11, dtype=torch.float64), torch.randint(11, (17,))
    targets[3:9] = 4
    parts = text_parts(logits, targets, no_text=4)
    whole = functional.cross_entropy(logits.float(), targets, reduction="none")
    assert float(parts.timing_nats.sum() + parts.token_nats.sum()) == pytest.approx(float(whole.sum()), rel=1e-5)
    # Against a vocabulary that never had the id.
    has_text = targets != 4
    without = torch.cat([logits[has_text, :4], logits[has_text, 5:]], dim=1).float()
    said = targets[has_text] - (targets[has_text] > 4).long()
    torch.testing.assert_close(parts.token_nats, functional.cross_entropy(without, said, reduction="none"))
    assert torch.equal(parts.is_top, without.argmax(dim=1) == said)


def last_logits(module: MoshiModule, batch: FrameBatch) -> torch.Tensor:
    """(T, V) text logits of one conversation in one batched call."""
    sequence = delayed_sequence(module.model, batch.codes)
    return module.model.forward_text(sequence[:, :, :-1])[1][0, 0]


@torch.no_grad()
@pytest.mark.parametrize("arm", ["ttt-mlp", "full-attention"])
def test_the_model_streams_what_it_is_measured_on(workshop: Workshop, trained: TrainedArm, arm: str) -> None:
    config = trained.config
    module = trained.module if arm == "ttt-mlp" else module_and_loader(config, arm)[0]
    module.eval()
    frames = 150
    batch = MoshiLoader(module.model, config).batch(workshop.data.stages[0], [0])
    batch = dataclasses.replace(batch, codes=batch.codes[:, :, :frames])
    whole = last_logits(module, batch)
    sequence = delayed_sequence(module.model, batch.codes)[:, :, :-1]
    contexts = {layer: attention.context for layer, attention in attention_layers(module.model).items()}
    for frames_per_call in (1, 70):
        with able_to_stream(module.model, frames, frames_per_call), module.model.streaming(1):
            parts = [module.model.forward_text(part)[1][0, 0] for part in sequence.split(frames_per_call, dim=2)]
        assert float((torch.cat(parts) - whole).abs().max() / whole.abs().max()) < 1e-5
    assert {layer: attention.context for layer, attention in attention_layers(module.model).items()} == contexts
    assert frames > 2 * config.model.context


@torch.no_grad()
def test_the_sample_is_what_the_model_finds_most_likely_of_its_own_words(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for choices in ("TEXT_TOP_K", "AUDIO_TOP_K"):
        monkeypatch.setattr(sample, choices, 1)
    module, loader = module_and_loader(config_of(DELAYED), "sliding-window")
    module.eval()
    codes = loader.batch(workshop.data.stages[0], [0]).codes
    first, count = 85, 9
    text, units = sample.continued(module.model, codes, first, count)
    assert text.shape == (count,) and units.shape == (count, 4)
    # The same frames again, with what was drawn in the place of what was said.
    again = codes.clone()
    again[0, 0, first : first + count] = text
    again[0, 1:5, first : first + count] = units.T
    out = module.model(again)
    assert torch.equal(out.text_logits[0, 0, first : first + count].argmax(dim=1), text)
    top = out.logits[0, :4].argmax(dim=2).T
    assert torch.equal(top[first : first + count - 2], units[:-2])  # delays reach two steps on


def test_the_ring_arm_is_the_packages_model_bit_for_bit() -> None:
    config = config_of()
    ring = build_model(config, config.arm("ring"), None)
    torch.manual_seed(config.seed)
    plain = build_lm(config.model)
    codes = torch.randint(40, (1, plain.num_codebooks, 150))
    assert all(type(attention) is StreamingMultiheadAttention for attention in attention_layers(ring).values())
    assert torch.equal(ring(codes).text_logits, plain(codes).text_logits)


def test_arms_start_from_the_same_weights_and_the_control_takes_ttts_bytes() -> None:
    config = config_of()
    models = {arm.name: build_model(config, arm, None) for arm in config.arms}
    plain = models["full-attention"].state_dict()
    for name, model in models.items():
        shared = plain.keys() & model.state_dict().keys()
        assert "transformer.layers.0.self_attn.in_projs.0.weight" in shared, name
        assert [key for key in shared if not torch.equal(plain[key], model.state_dict()[key])] == []
    ttt, window, full = (memory_of(config, config.arm(n)) for n in ("ttt-mlp", "sliding-window", "full-attention"))
    one_frame = full.layers[0].bytes_per_position
    assert ttt.is_bounded and window.is_bounded and not full.is_bounded
    assert abs(ttt.bytes_fixed - window.bytes_fixed) < one_frame


def test_a_resumed_run_is_the_uninterrupted_run(workshop: Workshop, trained: TrainedArm, tmp_path: Path) -> None:
    config, whole = trained.config, trained.module
    loggers = [trained.logger, workshop.logger(config, "ttt-mlp")]
    with pytest.raises(InterruptedRunError):
        workshop.train(config, "ttt-mlp", tmp_path, stop_after=AFTER_STEP_3, logger=loggers[1])
    split = workshop.train(config, "ttt-mlp", tmp_path, logger=loggers[1])
    expected, found = whole.state_dict(), split.state_dict()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert whole.last_validation == split.last_validation
    for metric in (names.TRAIN_LOSS, spoken_names.TRAIN_AUDIO_LOSS):
        assert len({tuple(tracking.read_history(workshop.uri, logger.run_id, metric)) for logger in loggers}) == 1


def test_weights_come_from_a_published_folder_of_the_same_dimensions(tmp_path: Path) -> None:
    config = config_of()
    torch.manual_seed(9)
    published = build_lm(config.model)
    write_checkpoint(published, config.model, tmp_path)
    loaded = build_model(config, config.arm("ttt-mlp"), tmp_path).state_dict()
    shared = published.state_dict().keys() & loaded.keys()
    assert "depformer_in.0.weight" in shared
    assert [name for name in shared if not torch.equal(published.state_dict()[name], loaded[name])] == []
    with pytest.raises(ValueError, match="no checkpoint of this config"):
        build_model(config_of({"text_card": 513}), config.arm("ring"), tmp_path)


def test_a_pretrained_model_trains_the_upper_mixers_and_the_depth_transformer_alone() -> None:
    config = config_of()
    lm = build_model(config, config.arm("ttt-mlp"), None)
    choose_trained(lm, "upper_mixers_and_speech", config.arm("ttt-mlp").upper_layers)
    trained = {name.split(".")[0] for name, p in lm.named_parameters() if p.requires_grad}
    assert trained == {"transformer", "depformer", "depformer_in", "depformer_emb", "depformer_text_emb", "linears"}
    in_temporal = {id(p) for name, p in lm.named_parameters() if p.requires_grad and name.startswith("transformer.")}
    assert in_temporal == {id(p) for layer in ttt_layers(lm).values() for p in layer.parameters()}


def test_models_that_the_frames_do_not_fit_into_are_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 units said and as many heard; the model has dep_q=3"):
        config_of({"n_q": 7, "dep_q": 3, "delays": (0,) * 8})
    with pytest.raises(ValueError, match="text must not be delayed"):
        config_of({"delays": (1, *(0,) * 8)})
    cache = workshop.data.validation.pool.folder.parent
    with pytest.raises(ValueError, match=r"the data has 48 speech units, the model only 47; raise model\.card"):
        prepare_data(config_of({"card": 47}), cache, skips_bad_audio=False)
    with pytest.raises(ValueError, match="audio_frames_per_step must be at least 0"):
        config_of(audio_frames_per_step=-1)
