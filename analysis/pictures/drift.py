"""bf16-drift: how rounding of the inner weights adds up, and what it costs a trained model."""

from __future__ import annotations

import pandas

from analysis.pictures.drawing import Picture, draw_lines, draw_points, mark, panel, rows_height, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError
from analysis.tables import Table

CLAIMED_UPDATES = 3750
MEASURES = {
    "state_error": "relative error of the inner weights",
    "output_error": "relative error of the output",
    "inner_loss_gap": "inner loss above FP64's, as a share",
    "lost_share_of_updates": "share of weights whose update is rounded away",
}
FAVOURITE_SETTING = "linear_b16_speech_lr1"
"""Speech, mini-batches of 16, the default step size: what most other settings differ from in one thing."""


def settings(found: FinishedRun) -> list[str]:
    """Settings that states were tried in, e.g. `linear_b16_speech_lr1`."""
    return list(dict.fromkeys(found.csv("state_curves.csv")["setting"]))


def drift_by_updates(found: FinishedRun, measure: str = "state_error", setting: str | None = None) -> Picture:
    """One measure of rounding by inner updates, a line for each way of keeping the state; bands are over streams."""
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; it is one of {', '.join(MEASURES)}")
    there = settings(found)
    chosen = setting or _favourite(there)
    if chosen not in there:
        raise ValueError(f"setting is {chosen!r}; this run has {', '.join(there)}")
    table = found.csv("state_curves.csv", measure)
    rows = table[(table["setting"] == chosen) & (table[measure] > 0)].rename(columns={
        measure: "value", f"{measure}_low": "low", f"{measure}_high": "high",
    })  # fmt: skip
    if rows.empty:
        raise NothingToShowError(f"{measure} is 0 everywhere in {chosen} of {found.caption}")
    figure, axes = panel("inner updates", MEASURES[measure])
    # A symmetric interval may reach below 0, which a logarithmic axis cannot show: it is cut where the curves begin.
    draw_lines(axes, rows.assign(low=rows["low"].clip(lower=rows["value"].min() / 3)), "treatment", "updates")
    axes.set(xscale="log", yscale="log")
    if rows["updates"].max() > CLAIMED_UPDATES:
        mark(axes, f"update {CLAIMED_UPDATES:,}", x=CLAIMED_UPDATES)
    title = f"How rounding adds up, update by update ({chosen})"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def word_loss_by_position(found: FinishedRun) -> Picture:
    """What each treatment adds to the word loss of one and the same trained model; bands are over seeds."""
    table = found.csv("model_by_position.csv", "difference", "difference_low")
    per_update = found.config["model_part"]["ttt"]["mini_batch_size"]
    rows = table[table["treatment"] != table["against"]]
    rows = rows.assign(
        updates=((rows["first_position"].clip(lower=1) * rows["end"]) ** 0.5) / per_update,
        value=rows["difference"], low=rows["difference_low"], high=rows["difference_high"],
    )  # fmt: skip
    figure, axes = panel("inner updates", "nats per word above its reference")
    draw_lines(axes, rows, "treatment", "updates")
    axes.set_xscale("log")
    mark(axes, "no difference", y=0)
    if rows["updates"].max() > CLAIMED_UPDATES:
        mark(axes, f"update {CLAIMED_UPDATES:,}", x=CLAIMED_UPDATES)
    title = "What rounding costs a trained model that streams on and on"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def growth_exponents(found: FinishedRun, setting: str | None = None) -> Picture:
    """Exponent of the error over the last nine tenths of the updates; intervals are over streams."""
    table = found.csv("state_settings.csv", "late_exponent").dropna(subset=["late_exponent"])
    names = _setting_names(table)
    chosen = setting or _favourite(list(dict.fromkeys(names)))
    rows = table[names == chosen]
    if rows.empty:
        raise NothingToShowError(f"no error in setting {chosen} of {found.caption} has an exponent")
    rows = rows.assign(value=rows["late_exponent"], low=rows["late_exponent_low"], high=rows["late_exponent_high"])
    figure, axes = panel("error grows as updates to this power", "", rows_height(len(rows)))
    draw_points(axes, rows, "treatment")
    for label, exponent in (("as chance adds up: 0.5", 0.5), ("as a bias adds up: 1", 1.0)):
        mark(axes, label, x=exponent)
    title = f"How fast the error grows, over the last nine tenths of the updates ({chosen})"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def _setting_names(table: Table) -> Table:
    """Names of settings as `state_curves.csv` has them."""
    rows = zip(
        table["inner_model"], table["mini_batch_size"], table["vectors"], table["step_factor"], strict=True
    )  # fmt: skip
    names = [f"{model}_b{size:02d}_{vectors}_lr{factor:g}" for model, size, vectors, factor in rows]
    return pandas.Series(names, index=table.index, dtype=str)


def _favourite(settings: list[str]) -> str:
    return FAVOURITE_SETTING if FAVOURITE_SETTING in settings else settings[-1]
