"""What a card holds, read from its TOML file: every value with its source, or the word unknown."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

UNKNOWN = "unknown"
NONE = "none"
"""There is no such thing in this model; that, too, has a source."""

CARD_FOLDER = Path(__file__).parents[2] / "backbones" / "published"
"""Data that the recipe `model-cards` reads too: only files are shared, no code."""
CLAIMED_FILE = Path(__file__).parent / "claimed.toml"
MODEL_FILES = (
    "moshi.toml", "llama_omni.toml", "mini_omni.toml", "qwen2_audio.toml", "spirit_lm.toml", "vita.toml",
    "qwen_tts.toml", "qwen_mimi.toml",
)  # fmt: skip

FACTS: Mapping[str, tuple[str, str]] = {
    "published_parameters": ("parameters, as its authors round them", ""),
    "hears_speech": ("hears speech", ""),
    "says_speech": ("says speech", ""),
    "streams_input": ("hears as a stream", ""),
    "streams_output": ("says as a stream", ""),
    "duplex": ("duplex", ""),
    "first_audio_ms": ("first sound after the question, as published", "ms"),
    "input_frames_hz": ("frames heard", "Hz"),
    "output_frames_hz": ("frames said", "Hz"),
    "text_tokens_hz": ("text tokens while it speaks", "Hz"),
    "heard_positions_hz": ("positions a second heard", "Hz"),
    "said_positions_hz": ("positions a second said", "Hz"),
    "shares_positions": ("one position is heard and said", ""),
    "token_streams": ("token streams summed into a position", ""),
    "rows": ("rows of the batch for one conversation", ""),
    "context_positions": ("context", "positions"),
    "trained_positions": ("longest sequence in training", "positions"),
    "code_licence": ("licence of the code", ""),
    "weights_licence": ("licence of the weights", ""),
}
"""Name of every fact that a card must hold, in the page's order: what it is called there, and its unit."""

Value = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One value of a card. source: where it was read, or how it was computed; empty only where the value is unknown."""

    value: Value
    source: str = ""
    note: str = ""

    @property
    def is_known(self) -> bool:
        return self.value != UNKNOWN

    @property
    def number(self) -> float | None:
        """The value where it is a number; None where it is unknown or there is no such thing."""
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        return float(self.value) if is_number else None


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """Dimensions of the language model, from which its parameters and the bytes of its cache follow."""

    source: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int
    is_tied: bool
    qkv_bias: bool
    experts: int = 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """What stands beside the language model. dimensions: what `computed.part_parameters` takes for its kind."""

    name: str
    kind: str
    source: str
    dimensions: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A length that the published code cuts at or returns, beside the context itself."""

    what: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """One model. adapter: folder under `backbones/`, "" where none is planned. hosts: what `mount` must know of it.

    is_trained: somebody has published such a model; False for an arrangement that is only planned.
    recipes: those that run this model alone. arms: how its arms' names begin in recipes that it shares with others.
    """

    name: str
    title: str
    what: str
    is_trained: bool
    adapter: str
    hosts: str
    recipes: tuple[str, ...]
    arms: str
    decoder: Decoder
    parts: tuple[Part, ...]
    facts: Mapping[str, Fact]
    limits: tuple[Limit, ...]


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A claimed number. quantity: which of the computed quantities it is held beside (`computed.quantities`)."""

    claim: str
    model: str
    what: str
    quantity: str
    value: float
    unit: str
    note: str = ""


def read_cards(folder: Path = CARD_FOLDER) -> tuple[Card, ...]:
    """Every card, in the page's order. Raises ValueError, with file and field, for what is missing or has no source."""
    return tuple(read_card(folder / name) for name in MODEL_FILES)


def read_claimed(path: Path = CLAIMED_FILE) -> tuple[Claimed, ...]:
    """The claimed numbers that cards can be held beside."""
    return tuple(Claimed(**row) for row in _read(path)["claimed"])


def read_card(path: Path) -> Card:
    """The card in one file; raises ValueError where `read_cards` does."""
    content = _read(path)
    sources: dict[str, str] = content.pop("sources", {})
    used = set[str]()

    def source(given: object, where: str) -> str:
        if not isinstance(given, str) or not given:
            raise ValueError(
                f"{path.name}: {where} has no source; name one of [sources], or write the value {UNKNOWN!r}"
            )
        if given.startswith("https://"):
            return given
        if given not in sources:
            raise ValueError(f"{path.name}: {where} names the source {given!r}; [sources] has {', '.join(sources)}")
        used.add(given)
        return sources[given]

    facts = {name: _fact(path, name, given, source) for name, given in _facts(path, content).items()}
    decoder: dict[str, Any] = content.pop("decoder")
    decoder["source"] = source(decoder.get("source"), "decoder")
    parts = tuple(_part(part, source) for part in content.pop("parts", []))
    limits = tuple(_limit(limit, source) for limit in content.pop("limits", []))
    if unused := sorted(set(sources) - used):
        raise ValueError(f"{path.name}: nothing is taken from the sources {', '.join(unused)}; remove them")
    recipes = tuple(content.pop("recipes"))
    return Card(**content, recipes=recipes, decoder=Decoder(**decoder), parts=parts, facts=facts, limits=limits)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; cards are TOML files in backbones/published")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from error


def _facts(path: Path, content: dict[str, Any]) -> dict[str, object]:
    given: dict[str, object] = content.pop("facts", {})
    if missing := [name for name in FACTS if name not in given]:
        raise ValueError(f"{path.name}: facts lack {', '.join(missing)}; what nobody knows is the string {UNKNOWN!r}")
    if extra := [name for name in given if name not in FACTS]:
        raise ValueError(f"{path.name}: no card has the facts {', '.join(extra)}; there are {', '.join(FACTS)}")
    return {name: given[name] for name in FACTS}


def _fact(path: Path, name: str, given: object, source: Any) -> Fact:
    if given == UNKNOWN:
        return Fact(value=UNKNOWN)
    if not isinstance(given, dict):
        raise ValueError(f"{path.name}: {name} must be {{ value, source }} or the string {UNKNOWN!r}, got {given!r}")
    entry = cast("dict[str, Any]", given)
    if unexpected := sorted(set(entry) - {"value", "source", "note"}):
        raise ValueError(f"{path.name}: {name} has {', '.join(unexpected)}; a fact has value, source and note")
    if "value" not in entry or entry["value"] == UNKNOWN:
        raise ValueError(f"{path.name}: {name} has a source but no value; write the string {UNKNOWN!r} instead")
    return Fact(value=entry["value"], source=source(entry.get("source"), name), note=entry.get("note", ""))


def _part(given: dict[str, Any], source: Any) -> Part:
    rest = dict(given)
    name, kind = rest.pop("name"), rest.pop("kind")
    origin = "" if kind == UNKNOWN else source(rest.pop("source", None), f"part {name!r}")
    return Part(name=name, kind=kind, source=origin, dimensions=rest)


def _limit(given: dict[str, Any], source: Any) -> Limit:
    origin = source(given.get("source"), f"limit {given.get('what')!r}")
    return Limit(what=given["what"], value=given["value"], unit=given["unit"], source=origin)
