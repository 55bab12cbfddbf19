"""The pictures of a listening test: shares of pairs won, and strengths of more than two systems."""

from __future__ import annotations

import pandas

from analysis.listening.judging import Judged, Preference
from analysis.listening.verdict import MARGIN, Results
from analysis.pictures.drawing import Picture, draw_points, mark, panel, rows_height, with_legend


def pictures_of(results: Results) -> list[Picture]:
    """None where nothing may be judged yet."""
    if results.judged is None:
        return []
    caption = (
        f"{len(results.counted)} raters, {results.pairs} pairs; 95 % intervals over items"
        + ("; SIMULATED: programs answered" if results.test.is_simulated else "")
    )  # fmt: skip
    drawn = [_shares(results.judged, caption)]
    if len(results.judged.strengths) > 2:
        drawn.append(_strengths(results.judged, caption))
    return drawn


def _shares(judged: Judged, caption: str) -> Picture:
    shown: list[Preference] = [*([judged.of_ttt] if judged.of_ttt else []), *judged.preferences]
    rows = [(f"{each.first}\nover {each.second}", each.share.value, each.share.low, each.share.high) for each in shown]
    figure, axes = panel("share of judgements (a tie is not won)", "", rows_height(len(rows)))
    draw_points(axes, pandas.DataFrame(rows, columns=["pair", "value", "low", "high"]), "pair")
    axes.set_xlim(-0.02, 1.02)
    mark(axes, "half", x=MARGIN)
    return Picture(title="Share of blind pairs won", caption=caption, figure=with_legend(figure, axes))


def _strengths(judged: Judged, caption: str) -> Picture:
    rows = [(label, each.value, each.low, each.high) for label, each in judged.strengths.items()]
    figure, axes = panel("strength (Bradley-Terry, log-odds)", "", rows_height(len(rows)))
    draw_points(axes, pandas.DataFrame(rows, columns=["system", "value", "low", "high"]), "system")
    mark(axes, "mean of all systems", x=0)
    return Picture(title="Strength of each system", caption=caption, figure=with_legend(figure, axes))
