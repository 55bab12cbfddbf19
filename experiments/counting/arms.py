"""One arm: an adapter's files are counted, or a published model is built and its card checked against the modules."""

from __future__ import annotations

import math

from experiments.counting.cards import Card, card_digest, read_card
from experiments.counting.configuration import Adapter, PublishedModel
from experiments.counting.source_lines import count, files_of, files_of_mounting, sources_digest
from experiments.harness.study import ArmWork

WHOLE_FOLDER, IMPORTS_TTT_CORE = "adapter/whole_folder", "adapter/imports_ttt_core"
COUNTED = ("files", "lines", "code_lines")

LANGUAGE_MODEL_PARAMETERS = "card/language_model_parameters"
KNOWN_PARAMETERS = "card/known_parameters"
UNKNOWN_PARTS = "card/unknown_parts"
FACTS_CHECKED = "card/facts_checked_against_modules"
FACTS = {
    "published_parameters": "card/published_parameters",
    "heard_positions_hz": "card/heard_positions_hz",
    "said_positions_hz": "card/said_positions_hz",
    "context_positions": "card/context_positions",
    "token_streams": "card/token_streams",
}
"""Facts of a card, and the metrics they are logged as where they are known."""


def run_adapter_size_arm(work: ArmWork) -> None:
    """Logs files and lines of an adapter, in both readings."""
    work.logger.log_metrics(adapter_metrics(work.task.config.arm(work.task.arm)))


def adapter_metrics(adapter: Adapter) -> dict[str, float]:
    """Raises ValueError where the files are no longer those that the configuration was made for."""
    now = sources_digest((adapter.folder, adapter.mounted_from))
    if now != adapter.sources_digest:
        raise ValueError(
            f"the files of {adapter.name} were {adapter.sources_digest} when this run was configured and are {now}; "
            "start a new run"
        )
    readings = {
        WHOLE_FOLDER: count(files_of(adapter.folder)),
        IMPORTS_TTT_CORE: count(files_of_mounting(adapter.folder, adapter.mounted_from)),
    }
    return {f"{reading}_{what}": getattr(lines, what) for reading, lines in readings.items() for what in COUNTED}


def run_model_cards_arm(work: ArmWork) -> None:
    """Logs a model's parameters and facts."""
    work.logger.log_metrics(card_metrics(work.task.config.arm(work.task.arm)))


def card_metrics(model: PublishedModel) -> dict[str, float]:
    """Raises ValueError where the card is not the configured one, or says something else than the modules."""
    now = card_digest(model.card)
    if now != model.card_digest:
        raise ValueError(
            f"the card {model.card} was {model.card_digest} when this run was configured and is {now}; start a new run"
        )
    return metrics_of(read_card(model.card))


def metrics_of(card: Card) -> dict[str, float]:
    """Parameters of the built modules, and what the card knows. Raises ValueError where modules contradict it."""
    # Here and not above: the command line imports every recipe, and no model class is needed to name one.
    from experiments.counting.built_modules import facts_of_modules, language_model_parameters, part_parameters

    of_modules = facts_of_modules(card)
    for fact, value in of_modules.items():
        stated = card.number(fact)
        if stated is None or not math.isclose(stated, value, rel_tol=1e-9):
            raise ValueError(f"card {card.name}: {fact} is {stated}, and the modules give {value}; correct the card")
    language_model, parts = language_model_parameters(card), part_parameters(card)
    metrics: dict[str, float] = {
        LANGUAGE_MODEL_PARAMETERS: language_model,
        KNOWN_PARAMETERS: language_model + sum(part for part in parts.values() if part is not None),
        UNKNOWN_PARTS: sum(part is None for part in parts.values()),
        FACTS_CHECKED: len(of_modules),
    }
    known = {metric: card.number(fact) for fact, metric in FACTS.items()}
    return metrics | {metric: value for metric, value in known.items() if value is not None}
