"""What is written of a test's results: one page, its tables as CSV, and lines for the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from analysis.listening.along import FEWEST_ITEMS_OF_A_PART
from analysis.listening.judging import FIRST, MOST_CATCHES_FAILED_SHARE, SECOND, TIE, Preference
from analysis.listening.pictures import pictures_of
from analysis.listening.plan import power_lines
from analysis.listening.verdict import Results
from analysis.statistics import Interval

PAGE_FILE, TABLE_FILE, VALUES_FILE, JUDGEMENTS_FILE = "results.html", "table.txt", "results.json", "judgements.csv"


def write_results(results: Results, folder: Path) -> list[Path]:
    """Every file of the results, the page first. Raters are numbered in them, in the order in which they began."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = pictures_of(results)
    for stale in (*folder.glob("*.png"), folder / JUDGEMENTS_FILE):
        stale.unlink(missing_ok=True)
    written = [folder / name for name in (PAGE_FILE, TABLE_FILE, VALUES_FILE)]
    written[0].write_text(page(results), encoding="utf-8")
    written[1].write_text("\n".join(lines(results)) + "\n", encoding="utf-8")
    written[2].write_text(json.dumps(values(results), indent=1) + "\n", encoding="utf-8")
    if results.judged is not None:
        written.append(folder / JUDGEMENTS_FILE)
        numbers = _numbers(results)
        results.judged.judgements.assign(rater=results.judged.judgements["rater"].map(numbers)).to_csv(
            written[-1], index=False
        )
    for name, picture in zip(("shares.png", "strengths.png"), pictures, strict=False):
        written.append(folder / name)
        written[-1].write_bytes(picture.png())
    return written


def page(results: Results) -> str:
    """The page's HTML: everything inside it, nothing loaded from elsewhere."""
    environment = Environment(
        loader=PackageLoader("analysis.listening", "page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(interval=shown, share=shown_share)
    return environment.get_template("results.html").render(
        results=results, judged=results.judged, numbers=_numbers(results), preferences=_preferences(results),
        pictures=pictures_of(results), items=_by_item(results), power=power_lines(results.pairs, results.test.raters),
        most_failed=MOST_CATCHES_FAILED_SHARE, fewest_of_a_part=FEWEST_ITEMS_OF_A_PART,
    )  # fmt: skip


def lines(results: Results) -> list[str]:
    """The results in plain text; raters by number."""
    found = ["SIMULATED: programs answered this test."] if results.test.is_simulated else []
    found += [results.verdict, *results.test.notes]
    for each in _preferences(results):
        found.append(
            f"{each.first} over {each.second}: won {each.won}, ties {each.ties}, lost {each.lost} "
            f"on {each.items} items; {shown_share(each.share)}, ties halved {shown_share(each.share_ties_halved)}; "
            f"binomial p one-sided {each.one_sided:.2g}, two-sided {each.two_sided:.2g}"
        )
    for each in results.along:
        parts = [
            f"{name} {part.won} won, {part.ties} ties, {part.lost} lost on {part.items} items, "
            f"{shown_share(part.share)}"
            for name, part in (("first quarter", each.early), ("last quarter", each.late))
        ]
        found.append(
            f"{each.early.first} over {each.early.second} along the streams: {'; '.join(parts)}; "
            f"late less early {shown(each.change)}"
        )
    if results.judged is not None:
        strengths = ", ".join(f"{label} {shown(each)}" for label, each in results.judged.strengths.items())
        found.append(f"Bradley-Terry strengths (log-odds): {strengths}")
        alpha = results.judged.alpha
        found.append(f"Krippendorff's alpha: {'not defined' if alpha is None else f'{alpha:.2f}'}")
    for code, number in _numbers(results).items():
        each = next(report for report in results.raters if report.code == code)
        found.append(
            f"rater {number}: {each.answered} of {each.trials} answered, {each.catches_failed} of {each.catches} catch "
            f"trials failed, {each.repeats_agreed} of {each.repeats} repeats alike; "
            f"{'counts' if each.is_counted else f'does not count: {each.why_not}'}"
        )
    return found


def values(results: Results) -> dict[str, Any]:
    """The same numbers for programs; null where there is none."""
    judged = results.judged
    return {
        "is_simulated": results.test.is_simulated,
        "refusals": list(results.refusals),
        "verdict": results.verdict,
        "raters_counted": len(results.counted),
        "pairs": results.pairs,
        "digest": results.digest,
        "preferences": [
            {
                "first": each.first, "second": each.second, "items": each.items, "won": each.won, "ties": each.ties,
                "lost": each.lost, "share": _plain(each.share), "share_ties_halved": _plain(each.share_ties_halved),
                "p_one_sided": each.one_sided, "p_two_sided": each.two_sided,
            }
            for each in _preferences(results)
        ],
        "along_streams": [
            {
                "first": each.early.first, "second": each.early.second, "items_early": each.early.items,
                "items_late": each.late.items, "share_first_quarter": _plain(each.early.share),
                "share_last_quarter": _plain(each.late.share), "late_less_early": _plain(each.change),
            }
            for each in results.along
        ],
        "strengths": {label: _plain(each) for label, each in judged.strengths.items()} if judged else {},
        "krippendorff_alpha": judged.alpha if judged else None,
    }  # fmt: skip


def shown(interval: Interval) -> str:
    ends = f" [{interval.low:+.2f}, {interval.high:+.2f}]" if interval.is_known else ""
    return f"{interval.value:+.2f}{ends}"


def shown_share(interval: Interval) -> str:
    ends = f" [{100 * interval.low:.1f} %, {100 * interval.high:.1f} %]" if interval.is_known else ""
    return f"{100 * interval.value:.1f} %{ends}"


def _preferences(results: Results) -> Sequence[Preference]:
    if results.judged is None:
        return ()
    return (*([results.judged.of_ttt] if results.judged.of_ttt else []), *results.judged.preferences)


def _numbers(results: Results) -> dict[str, int]:
    return {each.code: number for number, each in enumerate(results.raters, 1)}


def _by_item(results: Results) -> list[tuple[Any, ...]]:
    """(item, first, second, won, ties, lost)."""
    if results.judged is None:
        return []
    grouped = results.judged.judgements.groupby(["item", "first", "second"])["outcome"].value_counts()
    table = grouped.unstack(fill_value=0).reindex(columns=[FIRST, TIE, SECOND], fill_value=0)
    return [(*key, *map(int, row)) for key, row in zip(table.index, table.to_numpy(), strict=True)]


def _plain(interval: Interval) -> dict[str, float | None]:
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: number if math.isfinite(number) else None for name, number in ends.items()}
