"""Are the pictures of the page of findings drawn of what a recipe's smoke run has left? For the tests of those runs."""

from __future__ import annotations

from collections.abc import Collection

from analysis.pictures.finished import NothingToShowError, newest_finished
from analysis.report.sections import SECTIONS
from analysis.store import open_store


def check_pictures(uri: str, recipe: str, not_drawn: Collection[str] = ()) -> None:
    """Draws every picture that the page has of a recipe, from its smoke run in the store at `uri`.

    not_drawn: functions whose pictures a smoke run, short as it is, has nothing for; all others must be drawn.
    """
    [section] = [section for section in SECTIONS if section.recipe == recipe]
    found = newest_finished(open_store(uri), recipe, "smoke")
    missing: dict[str, str] = {}
    for shown in section.pictures:
        try:
            picture = shown.draw(found, **shown.options)
        except NothingToShowError as nothing:
            missing[shown.draw.__name__] = str(nothing)
            continue
        assert picture.png().startswith(b"\x89PNG") and picture.caption == found.caption
        assert any(axes.has_data() for axes in picture.figure.axes)
    assert set(missing) == set(not_drawn), missing
