"""adapter-size and model-cards: lines of adapters, and sizes of published models."""

from __future__ import annotations

from matplotlib.ticker import EngFormatter

from analysis.pictures.drawing import COLOURS, Picture, beside_long_names, panel, rows_height, with_legend
from analysis.pictures.finished import FinishedRun, NothingToShowError

WHOLE_FOLDER, IMPORTS_TTT_CORE = "adapter/whole_folder", "adapter/imports_ttt_core"
LANGUAGE_MODEL, KNOWN, UNKNOWN_PARTS = "card/language_model_parameters", "card/known_parameters", "card/unknown_parts"
PUBLISHED = "card/published_parameters"
BAR = 0.38


def adapter_lines(found: FinishedRun) -> Picture:
    """Lines of every adapter, its whole folder and its files that import ttt_core; files stand beside the bars."""
    readings = {"its whole folder": WHOLE_FOLDER, "files that import ttt_core": IMPORTS_TTT_CORE}
    arms = _arms(found, f"{WHOLE_FOLDER}_lines")
    figure, axes = panel("lines", "", rows_height(2 * len(arms)))
    for number, (label, reading) in enumerate(readings.items()):
        places = [place + (number - 0.5) * BAR for place in range(len(arms))]
        lines = [metrics[f"{reading}_lines"] for metrics in arms.values()]
        axes.barh(places, lines, height=BAR, color=COLOURS[number], label=label)
        for place, length, metrics in zip(places, lines, arms.values(), strict=True):
            files = f" {length:,.0f} in {metrics[f'{reading}_files']:.0f}"
            axes.annotate(files, (length, place), va="center", fontsize="small")
    axes.set_xlim(0, 1.3 * axes.get_xlim()[1])
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.invert_yaxis()
    beside_long_names(axes)
    title = "What an adapter takes, in lines and files"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def model_sizes(found: FinishedRun) -> Picture:
    """Parameters of every model: its language model, with all known parts, and as its authors round them."""
    arms = _arms(found, LANGUAGE_MODEL)
    figure, axes = panel("parameters", "", rows_height(len(arms)))
    language_models = [metrics[LANGUAGE_MODEL] for metrics in arms.values()]
    rest = [metrics[KNOWN] - metrics[LANGUAGE_MODEL] for metrics in arms.values()]
    least = min(language_models) / 2
    places = range(len(arms))
    axes.barh(places, [each - least for each in language_models], left=least, height=0.6, color=COLOURS[0],
              label="language model")  # fmt: skip
    axes.barh(places, rest, left=language_models, height=0.6, color=COLOURS[5], label="its known other parts")
    published = [(metrics[PUBLISHED], place) for place, metrics in enumerate(arms.values()) if PUBLISHED in metrics]
    if published:
        axes.plot(*zip(*published, strict=True), "D", color=COLOURS[1], markersize=5, label="as its authors round it")
    axes.set_xscale("log")
    axes.set_xlim(least, 2 * max(metrics[KNOWN] for metrics in arms.values()))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_yticks(places, [f"{arm} +" if metrics[UNKNOWN_PARTS] else arm for arm, metrics in arms.items()])
    axes.invert_yaxis()
    beside_long_names(axes)
    title = "How large six published models are (+: a part of it is unknown)"
    return Picture(title=title, caption=found.caption, figure=with_legend(figure, axes))


def _arms(found: FinishedRun, needed: str) -> dict[str, dict[str, float]]:
    """{arm: metrics} by name. Raises NothingToShowError where no arm has logged what is needed."""
    arms = {run.arm: dict(run.metrics) for run in sorted(found.arms, key=lambda run: run.arm) if needed in run.metrics}
    if not arms:
        raise NothingToShowError(f"no finished arm of {found.caption} has logged {needed}")
    return arms
