"""Views to a store: written where there is none, renewed where it is still ours, left alone once edited by hand."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.dashboard.layout import View
from analysis.dashboard.page_state import VIEW_TAG, Logged, ViewError, envelope, opened, page_state
from analysis.runs import SCALES, LoggedRun
from analysis.store import Store

DIGEST_TAG = "ttt.dashboard.digest."
"""Beside each view: the digest of what was written. A view whose digest is another one was edited by hand."""

Outcome = Literal["written", "renewed", "unchanged", "edited by hand: left as it is"]


@dataclass(frozen=True, kw_only=True)
class SavedView:
    """A view that the store has. experiment_ids: those whose runs it shows, and that each keep it."""

    view: View
    experiment_ids: tuple[str, ...]
    scale: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A view that the store's runs do not fill, and why."""

    view: View
    reason: str


def save_views(store: Store, views: Sequence[View]) -> list[SavedView | LeftOut]:
    """Writes every view that has runs to show, and says why another has none."""
    recipes = store.recipes()
    runs: dict[str, list[LoggedRun]] = {}
    found: list[SavedView | LeftOut] = []
    for view in views:
        for recipe in filter(view.shows, recipes):
            if recipe not in runs:
                runs[recipe] = [run for run in store.runs(recipe) if _is_shown(run)]
        found.append(_save(store, view, recipes, {name: runs[name] for name in recipes if view.shows(name)}))
    return found


def _is_shown(run: LoggedRun) -> bool:
    return run.role == "arm" and run.tags.get("adhoc") == "false" and bool(run.metrics)


def _save(store: Store, view: View, ids: dict[str, str], runs: dict[str, list[LoggedRun]]) -> SavedView | LeftOut:
    scale = largest_scale(runs.values())
    shown = {name: [run for run in of_recipe if run.tags["scale"] == scale] for name, of_recipe in runs.items()}
    shown = {name: of_recipe for name, of_recipe in shown.items() if of_recipe}
    spans_recipes = any(mark in each for each in view.recipes for mark in "*[") or len(view.recipes) > 1
    if scale is None or not shown:
        return LeftOut(view=view, reason=f"no arm of {' or '.join(view.recipes)} has been run")
    if spans_recipes and len(shown) < 2:
        return LeftOut(
            view=view, reason=f"only {', '.join(shown)} has been run, and there is nothing to compare it with"
        )
    every = [run for of_recipe in shown.values() for run in of_recipe]
    logged = Logged(
        metrics=frozenset(name for run in every for name in run.metrics),
        arms=frozenset((run.arm, run.experiment) for run in every),
    )
    kept_at = tuple(ids[name] for name in shown)
    try:
        state = page_state(view, logged, scale, several_recipes=spans_recipes)
        outcome = _write(store, kept_at, view, state)
    except ViewError as error:
        return LeftOut(view=view, reason=str(error))
    return SavedView(view=view, experiment_ids=kept_at, scale=scale, outcome=outcome)


def largest_scale(runs: Iterable[Sequence[LoggedRun]]) -> str | None:
    """The scale at which most recipes were run, of several the largest: scales are never mixed in one view."""
    at = [{run.tags.get("scale") for run in of_recipe} for of_recipe in runs]
    counted = [(sum(scale in scales for scales in at), place, scale) for place, scale in enumerate(SCALES)]
    count, _, scale = max(counted)
    return scale if count else None


def _write(store: Store, experiment_ids: Sequence[str], view: View, state: dict[str, object]) -> Outcome:
    """The same view to every experiment it shows: MLflow looks for it at the one of them that it has loaded first."""
    tags = {each: store.client.get_experiment(each).tags for each in experiment_ids}
    stored = {each: tags[each][VIEW_TAG + view.key] for each in experiment_ids if tags[each].get(VIEW_TAG + view.key)}
    if any(digest(text) != tags[each].get(DIGEST_TAG + view.key) for each, text in stored.items()):
        return "edited by hand: left as it is"
    before = [opened(text) for text in stored.values()]
    if len(before) == len(experiment_ids) and all(_is(each, view, state) for each in before):
        return "unchanged"
    now_ms = int(time.time() * 1000)
    text = envelope(view, state, min([int(each[0]["createdAt"]) for each in before], default=now_ms), now_ms)
    # Were only the first of the two written, the view would be taken for an edited one and kept, never lost.
    for each in experiment_ids:
        store.client.set_experiment_tag(each, DIGEST_TAG + view.key, digest(text))
        store.client.set_experiment_tag(each, VIEW_TAG + view.key, text)
    return "renewed" if stored else "written"


def _is(stored: tuple[dict[str, Any], dict[str, Any]], view: View, state: dict[str, object]) -> bool:
    outer, page = stored
    return outer["name"] == view.title and page == state


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
