"""Which engines there are, and one door to all of them: `load_engine`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbones.tts.interface import TTSEngine


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """Where an engine's class is, which package it needs from which extra, and what its folder holds."""

    module: str
    engine_class: str
    package: str | None = None
    extra: str | None = None
    folder_holds: str | None = None


ENGINES = {
    "espeak": _Offer(module="backbones.tts.espeak", engine_class="EspeakEngine"),
    "pocket": _Offer(
        module="backbones.tts.pocket",
        engine_class="PocketEngine",
        package="pocket_tts",
        extra="pocket",
        folder_holds="model.safetensors, tokenizer.json (or tokenizer.model), voice.safetensors (or voice.wav), and "
        "config.yaml where the weights are not the published English ones",
    ),
    "f5": _Offer(
        module="backbones.tts.f5",
        engine_class="F5Engine",
        package="f5_tts",
        extra="f5",
        folder_holds="model.safetensors, vocos/config.yaml and vocos/pytorch_model.bin, reference.wav and "
        "reference.txt (a voice, and what it says), and config.yaml and vocab.txt where "
        "the weights are not F5TTS_v1_Base",
    ),
}


def load_engine(name: str = "espeak", folder: str | Path | None = None, **options: Any) -> TTSEngine:
    """An engine that speaks.

    folder: its weights and voice, for all but espeak. options: those of the engine's class (language, unreadable,
    pause_s, ...). Raises ValueError for an unknown engine or option, for a package that is not installed, and for a
    folder that lacks a file; each says what there is instead.
    """
    if name not in ENGINES:
        raise ValueError(f"no engine {name!r}; there are {', '.join(ENGINES)}")
    offer = ENGINES[name]
    if offer.folder_holds is None and folder is not None:
        raise ValueError(f"engine {name!r} has no weights, so no folder; got {str(folder)!r}")
    if offer.folder_holds is not None and folder is None:
        raise ValueError(f"engine {name!r} needs folder=..., with {offer.folder_holds}")
    if offer.package is not None and importlib.util.find_spec(offer.package) is None:
        raise ValueError(
            f"engine {name!r} is not installed: run `pip install 'ttt-speech[{offer.extra}]'`, or take 'espeak', which "
            "needs nothing more"
        )
    engine_class = getattr(importlib.import_module(offer.module), offer.engine_class)
    known = [option for option in inspect.signature(engine_class).parameters if option != "folder"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"engine {name!r} has no option {', '.join(map(repr, unknown))}; it has {', '.join(known)}")
    return engine_class(**options) if folder is None else engine_class(folder=Path(folder), **options)
