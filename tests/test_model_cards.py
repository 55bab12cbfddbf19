"""Model cards: every value has a source, computed ones equal real models', and the page is what the code generates."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.__main__ import main
from analysis.cards import UNKNOWN, Card, read_cards
from analysis.cards.adapters import adapter_of, loadable_names, mountable_families, where_ttt_mounts
from analysis.cards.computed import (
    cache_bytes_per_minute,
    cache_bytes_per_position,
    context_minutes,
    conversation_positions_hz,
    decoder_parameters,
    part_parameters,
)
from analysis.cards.page import PAGE, render_page
from analysis.cards.schema import CARD_FOLDER, FACTS, read_card, read_claimed
from experiments.counting import built_modules
from experiments.counting.cards import read_card as read_built_card

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def cards() -> dict[str, Card]:
    return {card.name: card for card in read_cards()}


def edited(tmp_path: Path, old: str, new: str) -> Path:
    """Moshi's card with one edit."""
    text = (CARD_FOLDER / "moshi.toml").read_text()
    assert text.count(old) == 1, old
    path = tmp_path / "moshi.toml"
    path.write_text(text.replace(old, new))
    return path


def test_every_fact_of_every_card_has_a_source_or_is_unknown(cards: dict[str, Card]) -> None:
    assert len(cards) == 8
    for card in cards.values():
        assert list(card.facts) == list(FACTS)
        for name, fact in card.facts.items():
            assert bool(fact.source) == fact.is_known, f"{card.name}: {name}"
        for part in card.parts:
            assert bool(part.source) == (part.kind != UNKNOWN), f"{card.name}: {part.name}"
        assert card.decoder.source and all(limit.source for limit in card.limits)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('3000, source = "package", note', "3000, note", "context_positions has no source"),
        ('rows = { value = 1, source = "package-lm" }', "rows = 1", "must be"),
        ('rows = { value = 1, source = "package-lm" }', 'rows = { source = "package-lm" }', "no value"),
        ('rows = { value = 1, source = "package-lm" }', "", "facts lack rows"),
        ('rows = { value = 1, source = "package-lm" }', 'rows = { value = 1, source = "hearsay" }', "hearsay"),
        ('rows = { value = 1, source = "package-lm" }', 'rows = "unknown"\ncolumns = "unknown"', "no card has"),
        ('code_licence = { value = "MIT", source = "metadata" }', 'code_licence = "unknown"', "nothing is taken"),
        ("[decoder]", "[decoder", "no TOML"),
    ],
)  # fmt: skip
def test_a_value_without_a_source_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_card(edited(tmp_path, old, new))


def test_an_unknown_value_stays_unknown_in_everything_computed_from_it(tmp_path: Path) -> None:
    known = 'rows = { value = 1, source = "package-lm" }'
    card = read_card(edited(tmp_path, known, 'rows = "unknown"'))
    assert cache_bytes_per_position(card).value == UNKNOWN
    assert cache_bytes_per_minute(card).value == UNKNOWN


@pytest.mark.parametrize("path", sorted(CARD_FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_computed_parameters_are_those_of_the_real_modules(path: Path) -> None:
    card, built = read_card(path), read_built_card(path.name)
    if card.hosts == "moshi":
        pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")
    assert decoder_parameters(card.decoder) == built_modules.language_model_parameters(built)
    assert {part.name: part_parameters(part) for part in card.parts} == built_modules.part_parameters(built)


def test_llama_omnis_speech_generator_is_as_large_as_our_own(cards: dict[str, Card]) -> None:
    from backbones.llama_omni import LlamaOmniConfig
    from backbones.llama_omni.generator import SpeechGenerator

    with torch.device("meta"):
        generator = SpeechGenerator(LlamaOmniConfig())
    parts = [part for part in cards["llama-omni"].parts if part.name.startswith("speech generator")]
    assert sum(part_parameters(part) or 0 for part in parts) == built_modules.parameters_of(generator)


def test_the_planned_qwen_mimi_is_as_large_as_our_own(cards: dict[str, Card]) -> None:
    from backbones.qwen_mimi import QwenMimi, QwenMimiConfig

    card, config = cards["qwen-mimi"], QwenMimiConfig.planned()
    with torch.device("meta"):
        whole = built_modules.parameters_of(QwenMimi(config))
    assert whole == decoder_parameters(card.decoder) + sum(part_parameters(part) or 0 for part in card.parts)
    assert card.facts["token_streams"].value == config.token_streams


def test_cards_agree_with_the_configurations_that_this_repository_runs(cards: dict[str, Card]) -> None:
    from backbones.qwen_tts import qwen_llm_config
    from experiments.recipes.memory import TEXT_TOKENS_PER_SECOND_SAID

    for name, size in (("qwen-tts", "1.5B"), ("qwen-mimi", "7B")):
        config, decoder = qwen_llm_config(size), cards[name].decoder
        ours = (decoder.layers, decoder.width, decoder.heads, decoder.kv_heads, decoder.mlp_width, decoder.vocabulary)
        assert ours == (
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads,
            config.intermediate_size, config.vocab_size,
        )  # fmt: skip
        assert cards[name].facts["context_positions"].value == config.max_position_embeddings
    for name in ("llama-omni", "qwen-tts"):
        assert cards[name].facts["said_positions_hz"].value == TEXT_TOKENS_PER_SECOND_SAID


def test_bytes_and_minutes_are_what_arithmetic_gives(cards: dict[str, Card]) -> None:
    moshi, omni = cards["moshi"], cards["llama-omni"]
    assert cache_bytes_per_position(moshi).value == 2 * 32 * 4096 * 2
    assert cache_bytes_per_position(omni).value == 128 * 1024
    assert context_minutes(moshi, conversation_positions_hz(moshi)).value == 4.0
    minutes = context_minutes(omni, omni.facts["heard_positions_hz"])
    assert minutes.number == pytest.approx(131_072 / 10 / 60)
    # 6.6 positions a second of 128 KiB, and 1.6 text tokens a second of 25 frames through two layers of 4096
    assert cache_bytes_per_minute(omni).number == pytest.approx(60 * (6.6 * 131_072 + 1.6 * 25 * 2 * 2 * 4096 * 2))


def test_a_model_that_does_not_speak_has_no_minutes_of_conversation(cards: dict[str, Card]) -> None:
    rate = conversation_positions_hz(cards["qwen2-audio"])
    assert rate.value == "none" and context_minutes(cards["qwen2-audio"], rate).value == "none"
    rate = conversation_positions_hz(cards["vita"])
    assert rate.value == UNKNOWN and context_minutes(cards["vita"], rate).value == UNKNOWN


def test_an_adapter_is_a_folder_of_the_backbones(cards: dict[str, Card], tmp_path: Path) -> None:
    (tmp_path / "moshi").mkdir()
    (tmp_path / "__init__.py").write_text('BACKBONES = ("moshi",)\n')
    adapter = adapter_of(cards["moshi"], tmp_path)
    assert adapter is not None and adapter.folder == "moshi" and adapter.is_loadable
    assert adapter_of(cards["vita"], tmp_path) is None
    assert adapter_of(cards["llama-omni"], tmp_path) is None
    (tmp_path / "__init__.py").write_text('BACKBONES = ("llama-omni",)\n')
    adapter = adapter_of(cards["moshi"], tmp_path)
    assert adapter is not None and not adapter.is_loadable


def test_names_and_families_are_those_that_the_packages_have() -> None:
    import backbones

    assert loadable_names(ROOT / "backbones" / "__init__.py") == tuple(backbones.BACKBONES)
    assert {"llama", "qwen2", "qwen3", "mistral"} <= set(mountable_families())


def test_a_missing_list_of_backbones_is_named(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("NAMES = ()\n")
    with pytest.raises(ValueError, match="BACKBONES"):
        loadable_names(tmp_path / "__init__.py")


def test_ttt_mounts_where_mount_knows_the_language_model(cards: dict[str, Card]) -> None:
    families = mountable_families()
    assert where_ttt_mounts(cards["qwen2-audio"], families).startswith("layers 0-31")
    assert where_ttt_mounts(cards["vita"], families).startswith("nowhere yet")
    assert where_ttt_mounts(cards["vita"], (*families, "mixtral")).startswith("layers 0-31")


def test_claimed_numbers_are_of_models_that_have_cards(cards: dict[str, Card]) -> None:
    rows = read_claimed()
    assert {row.claim for row in rows} == {"C01", "C06", "C07", "C14"}
    assert {row.model for row in rows} <= set(cards)


def test_the_committed_page_is_what_the_cards_give() -> None:
    assert PAGE.read_text() == render_page(), "run `make cards`"


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    assert main(["cards", "--output", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == render_page()


def test_a_card_that_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def render() -> str:
        raise ValueError("moshi.toml: rows has no source")

    monkeypatch.setattr("analysis.cards.command.render_page", render)
    assert main(["cards", "--output", str(tmp_path / "page.md")]) == 2
    assert "moshi.toml" in capsys.readouterr().err and not (tmp_path / "page.md").exists()


def test_cards_are_read_from_another_folder_too(tmp_path: Path) -> None:
    shutil.copytree(CARD_FOLDER, tmp_path / "cards", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    assert read_cards(tmp_path / "cards") == read_cards()
    (tmp_path / "cards" / "vita.toml").unlink()
    with pytest.raises(ValueError, match=r"vita\.toml"):
        read_cards(tmp_path / "cards")
