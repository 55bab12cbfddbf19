"""The mini-batch-leak recipe: its text, its configuration, its measures, its report, and a smoke run."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import pytest
import torch
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

from experiments.data.tokenizer import ConversationTokenizer
from experiments.harness import tracking
from experiments.harness.identity import fingerprint
from experiments.harness.overrides import apply_overrides
from experiments.harness.study import SCALES
from experiments.mini_batch_leak.arm import (
    LOGIT_DIFFERENCE,
    LOGIT_DIFFERENCE_TO_CAUSAL,
    PARALLEL,
    STREAMED,
    WRITTEN,
    WRITTEN_FILE,
    read_both_ways,
)
from experiments.mini_batch_leak.configuration import FORMS, Form, MiniBatchLeakExperiment
from experiments.mini_batch_leak.corpus import TextCorpus, build_corpus
from experiments.mini_batch_leak.report import sentence
from experiments.mini_batch_leak.results import ArmResult, SeedResult, findings, parent_metrics
from experiments.mini_batch_leak.text_model import build_model, streamed_logits, token_losses, whole_logits, write
from experiments.mini_batch_leak.training import TextData
from experiments.mini_batch_leak.writing import readability, readable, words_of
from experiments.recipes import RECIPES
from ttt_core import TTTLayer


def configured(scale: str = "smoke") -> MiniBatchLeakExperiment:
    config = RECIPES["mini-batch-leak"].configure(scale=scale, seed=3)
    assert isinstance(config, MiniBatchLeakExperiment)
    return config


@pytest.fixture(scope="module")
def corpus() -> TextCorpus:
    return build_corpus(configured().text)


@pytest.mark.parametrize("scale", SCALES)
def test_every_layer_is_trained_in_both_forms_and_nothing_else_differs(scale: str) -> None:
    config = configured(scale)
    assert len({fingerprint(config.of_arm(name)) for name in config.arm_names}) == len(config.arm_names)
    assert {layer.ttt.inner_model for layer in config.layers} == {"linear", "mlp"}
    for layer in config.layers:
        causal, leaky = (config.of_arm(f"{layer.name}-{form}") for form in FORMS)
        assert causal["arm"].pop("trained") == "causal" and leaky["arm"].pop("trained") == "leaky"
        assert causal == leaky
        assert layer.ttt.mini_batch_size < config.text.positions


def test_wrong_configurations_say_what_is_wrong() -> None:
    config = configured()
    for field, value, message in (
        ("layers", (config.layers[0], config.layers[0]), "layers need different names"),
        ("writing", dataclasses.replace(config.writing, rows=3), "writing.rows is 3, and there are 2 held-out"),
        ("writing", dataclasses.replace(config.writing, prompt_tokens=128), "must be below the 128"),
        ("text", dataclasses.replace(config.text, validation_conversations=1), "1 held-out"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **{field: value})
    with pytest.raises(ValueError, match="has mini-batches of 129"):
        apply_overrides(config, ["layers.mlp-16.ttt.mini_batch_size=129"])
    with pytest.raises(ValueError, match="no arm 'linear-16-open'; it has linear-16-causal, linear-16-leaky"):
        config.arm_named("linear-16-open")
    with pytest.raises(ValueError, match="num_layers must be 2 or more"):
        dataclasses.replace(config.model, num_layers=1)


@pytest.mark.parametrize("field", ["form", "trained", "ttt.form", "ttt.causal"])
def test_the_form_is_no_setting_of_this_recipe_either(field: str) -> None:
    with pytest.raises(ValueError, match="has no field"):
        apply_overrides(configured(), [f"layers.linear-16.{field}=leaky"])


def test_the_text_is_whole_turns_of_known_sentences_and_held_out_is_not_trained_on(corpus: TextCorpus) -> None:
    again = build_corpus(configured().text)
    assert (corpus.training == again.training).all() and (corpus.held_out == again.held_out).all()
    assert not {row.tobytes() for row in corpus.training} & {row.tobytes() for row in corpus.held_out}
    rows = corpus.held_out.tolist()
    assert all(row[0] == ConversationTokenizer.bos_id for row in rows)
    shares = readability([row[1:] for row in rows], corpus.tokenizer, corpus.sentences)
    assert (shares.known_words, shares.whole_turns) == (1.0, 1.0) and shares.distinct_4grams > 0.5


def test_the_vocabulary_of_readable_text_spells_words_in_pieces_too(corpus: TextCorpus) -> None:
    """Else every written word would be a known one by construction."""
    words = {word for text in corpus.sentences for word in text.split()}
    assert sum(len(corpus.tokenizer.encode(f" {word}")) > 1 for word in words) > len(words) / 5


def ids_of(corpus: TextCorpus, *turns: str) -> list[int]:
    marks = [corpus.tokenizer.user_id, corpus.tokenizer.assistant_id]
    ids = corpus.tokenizer.encode(" end of a turn")
    for number, turn in enumerate(turns):
        ids += [marks[number % 2], *corpus.tokenizer.encode(turn), *([corpus.tokenizer.eos_id] if number % 2 else [])]
    return ids


def test_planted_texts_have_their_planted_shares(corpus: TextCorpus) -> None:
    said = sorted(corpus.sentences)[:3]
    broken = ids_of(corpus, said[0], "xqzt " + said[1], said[2], "cut o")
    shares = readability([broken], corpus.tokenizer, [*said, "end of a turn cut o"])
    counted = len(words_of(f"of a turn {said[0]} xqzt {said[1]} {said[2]} cut"))
    assert shares.whole_turns == pytest.approx(2 / 3), "the cut turn at the end and the prompt's rest are no turns"
    assert shares.known_words == pytest.approx((counted - 1) / counted)
    repeated = readability([corpus.tokenizer.encode(" one two three four" * 8)], corpus.tokenizer, said)
    assert repeated.distinct_4grams == pytest.approx(4 / 27) and repeated.whole_turns == 0.0
    nothing = readability([[]], corpus.tokenizer, said)
    assert (nothing.known_words, nothing.whole_turns, nothing.distinct_4grams) == (0.0, 0.0, 0.0)
    shown = readable(ids_of(corpus, said[0]), ids_of(corpus, said[1], said[2]), corpus.tokenizer)
    assert f"\nuser: {said[0]} >>> end of a turn\nuser: {said[1]}\nassistant: {said[2]}" in shown


def test_batches_depend_on_seed_and_step_alone(corpus: TextCorpus) -> None:
    plan = configured().training
    first, again, other = (TextData(corpus, plan, seed, lambda: 0) for seed in (0, 0, 1))
    batches = [first.training_batch(step) for step in range(4)]
    assert all(torch.equal(batch, again.training_batch(step)) for step, batch in enumerate(batches))
    assert any(not torch.equal(batch, other.training_batch(step)) for step, batch in enumerate(batches))


@pytest.mark.parametrize("place", [0, 1])
def test_streaming_is_the_causal_form_and_is_not_the_leaky_one(corpus: TextCorpus, place: int) -> None:
    config = configured()
    model = build_model(config.model, corpus.tokenizer.vocab_size, config.layers[place].ttt, seed=0)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, TTTLayer):
                layer.wo.weight.mul_(50.0)  # TTT's part of the logits is large, as it is after training
    ids = torch.from_numpy(corpus.held_out[:, :40])
    causal, leaky = (read_both_ways(model, form, ids) for form in FORMS)
    assert causal[LOGIT_DIFFERENCE] == causal[LOGIT_DIFFERENCE_TO_CAUSAL] < 1e-4 < 0.1 < leaky[LOGIT_DIFFERENCE]
    assert causal[PARALLEL] == pytest.approx(causal[STREAMED], abs=1e-5)
    assert leaky[STREAMED] == causal[STREAMED] and leaky[LOGIT_DIFFERENCE_TO_CAUSAL] < 1e-4


def test_losses_leave_out_padding_and_are_the_models_own(corpus: TextCorpus) -> None:
    config = configured()
    model = build_model(config.model, corpus.tokenizer.vocab_size, config.layers[0].ttt, seed=0)
    ids = torch.from_numpy(corpus.training)
    labels = ids.masked_fill(ids == corpus.tokenizer.pad_id, -100)
    with torch.no_grad():
        losses = token_losses(whole_logits(model, ids), ids)
        assert float(losses.mean()) == pytest.approx(float(model(ids, labels=labels).loss), rel=1e-5)
    assert len(losses) == int((labels[:, 1:] != -100).sum()) < labels[:, 1:].numel()


def test_writing_is_reproducible_and_cold_writing_is_the_likeliest_token(corpus: TextCorpus) -> None:
    config = configured()
    model = build_model(config.model, corpus.tokenizer.vocab_size, config.layers[0].ttt, seed=0)
    prompts = torch.from_numpy(corpus.held_out[:, :9])
    cold = write(model, prompts, 5, 1e-6, seed=0)
    assert torch.equal(write(model, prompts, 5, 1.0, seed=2), write(model, prompts, 5, 1.0, seed=2))
    logits = streamed_logits(model, torch.cat([prompts, cold], dim=1))
    assert torch.equal(logits[:, 8:-1].argmax(dim=2), cold)


def planted(form: Form, gaps: tuple[float, ...]) -> ArmResult:
    runs = tuple(
        SeedResult(
            seed=seed,
            metrics={
                PARALLEL: 0.5, STREAMED: 0.5 + gap, LOGIT_DIFFERENCE: 1.0, LOGIT_DIFFERENCE_TO_CAUSAL: 1e-5,
                f"{WRITTEN}known_words": 1.0, f"{WRITTEN}whole_turns": 0.25, f"{WRITTEN}distinct_4grams": 0.5,
            },
            losses={step: float(100 - step) for step in range(1, 101)},
        )
        for seed, gap in enumerate(gaps)
    )  # fmt: skip
    return ArmResult(layer=configured().layers[0], form=form, runs=runs)


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ((1.0, 1.1, 1.2), "does not decode"),
        ((0.001, 0.002, 0.0), "it decodes as it was trained"),
        ((0.0, 0.2, -0.1), "is open"),
        ((1.0,), "one seed"),
    ],
)
def test_the_report_of_planted_results_can_come_out_every_way(gaps: tuple[float, ...], verdict: str) -> None:
    causal, leaky = "linear-16-causal", "linear-16-leaky"
    found = findings({causal: planted("causal", (0.0,) * len(gaps)), leaky: planted("leaky", gaps)})
    text = sentence(leaky, found[leaky])
    assert verdict in text and "25% of what it writes" in text
    metrics = parent_metrics(found)
    name = f"leak_{leaky}/streamed_minus_parallel_nats"
    assert metrics[name] == pytest.approx(sum(gaps) / len(gaps))
    assert (f"{name}_low" in metrics) == (f"{name}_high" in metrics) == (len(gaps) > 1)
    assert metrics[f"leak_{leaky}/streamed_against_causal_nats"] == pytest.approx(metrics[name])
    assert metrics[f"leak_{leaky}/training_loss_at_end_nats"] == pytest.approx(4.5), "the mean of 9, 8, ..., 0"
    assert f"leak_{causal}/streamed_against_causal_nats" not in metrics


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    return run_command(tmp_path_factory.mktemp("leak"), "mini-batch-leak")


def test_the_smoke_run_reports_every_arm_and_attaches_what_it_wrote(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert "Traceback" not in smoke.errors
    table = (smoke.run_folder / "table.txt").read_text()
    for name in configured().arm_names:
        run = smoke.logged(name)
        assert run.status == "FINISHED" and run.tags["arm"] == name
        assert run.metrics[LOGIT_DIFFERENCE_TO_CAUSAL] < 1e-4
        assert (run.metrics[LOGIT_DIFFERENCE] < 1e-4) == name.endswith("causal")
        assert any(line.split()[:1] == [name] for line in table.splitlines())
        files = {file.path for file in tracking.MlflowClient(smoke.uri).list_artifacts(run.run_id)}
        assert WRITTEN_FILE in files
        assert (smoke.run_folder / name / WRITTEN_FILE).read_text().count(">>>") == configured().writing.rows


def test_the_parent_run_holds_every_estimate_of_the_csv_and_the_figure_is_there(smoke: FinishedCommand) -> None:
    parent = tracking.read_run(smoke.uri, json.loads((smoke.run_folder / "run.json").read_text())["run_id"])
    with (smoke.run_folder / "findings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == set(configured().arm_names)
    for row in rows:
        assert parent.metrics[f"leak_{row['arm']}/{row['what']}"] == pytest.approx(float(row["mean"]))
        assert math.isnan(float(row["low_95"])) and row["seeds"] == "1"
    assert [path.name for path in (smoke.run_folder / "figures").glob("*.png")] == ["losses.png"]


def test_the_page_of_findings_can_draw_it(smoke: FinishedCommand) -> None:
    check_pictures(smoke.uri, "mini-batch-leak")


def test_it_is_logged_as_every_recipe_is(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, "mini-batch-leak")
