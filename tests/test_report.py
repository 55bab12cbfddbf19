"""The page of findings stands alone, says what the evidence says, and can be read on a phone."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import soundfile
from analysis_stores import FALLS, RISES, THREE_ARMS, Checkout, findings, with_ends

from analysis.__main__ import main
from analysis.ledger import ClaimTest
from analysis.report.sections import SECTIONS
from analysis.report.sound import SoundBudget, samples_of
from analysis.report.strip import strip
from analysis.statistics import Interval

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (390, 1280)
BROWSER_SECONDS = 240


class Page(HTMLParser):
    """What a browser would load, where links lead, and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.sources += [str(given[name]) for name in ("src", "srcset", "data", "poster") if given.get(name)]
        if tag == "link":
            self.sources.append(str(given["href"]))
        elif given.get("href"):
            self.links.append(str(given["href"]))

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def wav(seconds: float, pitch_hz: float = 440.0) -> bytes:
    written = io.BytesIO()
    samples = numpy.sin(2 * numpy.pi * pitch_hz * numpy.arange(int(seconds * 8000)) / 8000)
    soundfile.write(written, samples, 8000, format="WAV", subtype="PCM_16")
    return written.getvalue()


@pytest.fixture
def stored(checkout: Checkout) -> Checkout:
    """Runs that count for two claims, one recipe with a picture, and one that has spoken."""
    for recipe in ("drift", "mini-batch-leak", "moshi-stage1"):
        checkout.client.create_experiment(recipe, artifact_location=(checkout.root / "files" / recipe).as_uri())
    checkout.run("drift", RISES, THREE_ARMS, scale="gpu")
    checkout.run("drift", FALLS, THREE_ARMS, scale="cpu")
    gap = with_ends("leak_linear-16-leaky/streamed_minus_parallel_nats", 1.5, 0.1)
    checkout.run("mini-batch-leak", gap, {("linear-16-leaky", 0): {}})
    arms = {(arm, 0): {"memory/state_bytes_per_conversation": 8.0} for arm in ("ttt", "window", "ring")}
    checkout.run("moshi-stage1", {}, arms)
    assert findings(checkout) == 0
    return checkout


def spoken(checkout: Checkout, sounds: dict[str, dict[str, bytes]]) -> None:
    """Attaches files to the arms of moshi-stage1: {arm: {name: content}}."""
    experiment = checkout.client.get_experiment_by_name("moshi-stage1")
    assert experiment is not None
    for run in checkout.client.search_runs([experiment.experiment_id]):
        for name, content in sounds.get(run.data.tags["arm"], {}).items():
            path = checkout.root / "sounds" / run.data.tags["arm"] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            checkout.client.log_artifact(run.info.run_id, str(path))


def report(checkout: Checkout, *options: str) -> str:
    output = checkout.root / "page" / "report.html"
    assert main(["report", "--root", str(checkout.root), "--output", str(output), *options]) == 0
    return output.read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_links_to_the_runs(stored: Checkout) -> None:
    page = Page(report(stored, "--store", stored.uri))
    assert page.sources and all(source.startswith("data:") for source in page.sources)
    assert "script" not in page.tags
    for recipe, scale in (("drift", "gpu"), ("mini-batch-leak", "cpu")):
        experiment = stored.client.get_experiment_by_name(recipe)
        assert experiment is not None
        asked = f"tags.role = 'experiment' and tags.scale = '{scale}'"
        [run] = stored.client.search_runs([experiment.experiment_id], asked)
        address = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"
        assert address in page.links
    anchors = {link for link in page.links if link.startswith("#")}
    assert {"#findings", "#mini-batch-leak", "#moshi-stage1"} <= anchors


def test_a_finding_is_shown_with_verdict_scale_interval_and_rule(stored: Checkout) -> None:
    text = report(stored, "--store", stored.uri)
    words = " ".join(Page(text).words.split())
    assert "T01: The loss grows confirmed scale gpu, asked for gpu" in words
    assert "At scale cpu: refuted" in words
    assert "growth: 0.08 [0.07, 0.09] nats, 3 seeds" in words and "above 0.05 nats?" in words
    assert "3 untested" in words and "1 confirmed" in words
    assert "make exp-recall SCALE=cpu" in words and "its recipe is not written yet" in words
    assert "Not run in this store" in words and "gibberish: make exp-gibberish SCALE=cpu" in words


def test_without_a_store_the_page_is_made_of_the_evidence_alone(stored: Checkout) -> None:
    words = " ".join(Page(report(stored, "--from-evidence")).words.split())
    assert "T01: The loss grows confirmed" in words and "(in another store)" in words
    assert "without a store of runs" in words and "moshi-stage1" not in words


def test_a_store_that_is_not_there_is_an_error_with_advice(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = f"sqlite:///{checkout.root / 'elsewhere.db'}"
    assert main(["report", "--root", str(checkout.root), "--store", missing]) == 2
    assert "there is no store of runs at" in capsys.readouterr().err
    assert main(["report", "--root", str(checkout.root), "--store", missing, "--from-evidence"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_what_arms_said_can_be_played_and_the_right_answer_is_heard_once(stored: Checkout) -> None:
    text = b"question (spoken): What is <it>?\ngenerated text: a violin\ngenerated units: 1 2 3\n"
    ours, theirs, right = wav(0.2), wav(0.2, 330.0), wav(0.3, 220.0)
    spoken(stored, {
        "ttt": {"sample.wav": ours, "sample_expected.wav": right, "sample.txt": text},
        "window": {"sample.wav": theirs, "sample_expected.wav": right, "sample.txt": text},
    })  # fmt: skip
    page = report(stored, "--store", stored.uri)
    uris = re.findall(r'<audio[^>]* src="data:audio/wav;base64,([^"]+)"', page)
    assert sorted(map(base64.b64decode, uris)) == sorted([ours, theirs, right])
    assert "What is &lt;it&gt;?" in page and "ttt says" in page and "generated units" not in page


def test_sound_that_would_make_the_page_too_large_is_left_out_and_said_so(stored: Checkout) -> None:
    from analysis.pictures.finished import newest_finished
    from analysis.store import open_store

    spoken(stored, {arm: {"sample.wav": wav(0.1, pitch)} for arm, pitch in (("ttt", 200.0), ("window", 300.0))})
    spoken(stored, {"ring": {"sample.wav": wav(0.5)}})
    size = len(wav(0.1))
    found = newest_finished(open_store(stored.uri), "moshi-stage1")
    first, second, third = samples_of(found, SoundBudget(most_bytes=size + 1, most_bytes_a_sample=2 * size))
    assert first.data_uri and not first.left_out
    assert not second.data_uri and "room for sound is used up" in second.left_out
    assert not third.data_uri and f"no sound above {2 * size:,}" in third.left_out


@pytest.mark.parametrize(
    ("confirmed", "target", "interval", "colour", "is_inside"),
    [
        ("above", None, (0.1, 0.2, 0.3), "#00795a", True),
        ("below", None, (0.1, 0.2, 0.3), "#b34700", False),
        ("within", 0.2, (0.16, 0.2, 0.24), "#00795a", True),
        ("above", None, (0.0, 0.1, 0.2), "#6b6b6b", None),
    ],
)
def test_an_interval_lies_on_green_ground_exactly_where_it_confirms(
    confirmed: str, target: float | None, interval: tuple[float, float, float], colour: str, is_inside: bool | None
) -> None:
    test = ClaimTest(
        name="t", recipe="r", metric="m", unit="nats", margin=0.05, why="w", when="w", source="experiment",
        confirmed=confirmed, target=target,
    )  # type: ignore[arg-type]  # fmt: skip
    low, value, high = interval
    svg = strip(test, Interval(value=value, low=low, high=high, seeds=3))
    [ground] = re.findall(r'<rect x="([\d.]+)" y="8" width="([\d.]+)"[^>]*class="confirmed-side"', svg)
    [bar] = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"[^>]*class="interval"', svg)
    start, end = float(ground[0]), float(ground[0]) + float(ground[1])
    lies_inside = start - 0.1 <= float(bar[0]) and float(bar[1]) <= end + 0.1
    lies_outside = float(bar[1]) < start or float(bar[0]) > end
    assert f'stroke="{colour}"' in svg and (lies_inside, lies_outside) == (is_inside is True, is_inside is False)


def test_an_interval_with_an_unknown_end_has_no_strip() -> None:
    test = ClaimTest(
        name="t", recipe="r", metric="m", unit="nats", margin=0.05, why="w", when="w", source="experiment",
        confirmed="above",
    )  # fmt: skip
    assert strip(test, Interval(value=0.1, low=float("nan"), high=float("nan"), seeds=1)) == ""


def test_every_recipe_of_the_repository_has_its_section() -> None:
    written = {
        path.stem.replace("_", "-")
        for path in (Path(__file__).parents[1] / "experiments" / "recipes").glob("[a-z]*.py")
    }
    shown = [section.recipe for section in SECTIONS]
    assert set(shown) == written and len(shown) == len(set(shown))


@pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium browser; runs where one is installed")
def test_nothing_on_the_page_is_wider_than_a_phone_or_a_desk(stored: Checkout, tmp_path: Path) -> None:
    spoken(stored, {"ttt": {"sample.wav": wav(0.2), "sample.txt": b"generated text: " + b"word" * 90}})
    page = html.escape(report(stored, "--store", stored.uri))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe>' for width in WIDTHS)
    measure = (
        "onload = () => document.title = [...document.querySelectorAll('iframe')].map(frame => {"
        "const page = frame.contentDocument; for (const each of page.querySelectorAll('details')) each.open = true;"
        "return frame.clientWidth + ':' + page.documentElement.scrollWidth + ':' + "
        "[...page.images].filter(image => image.naturalWidth > 0).length}).join(' ')"
    )
    (tmp_path / "frames.html").write_text(
        f"<!doctype html><style>iframe {{border: 0}}</style>{frames}<script>{measure}</script>"
    )
    assert CHROMIUM is not None
    seen = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=20000", "--dump-dom", (tmp_path / "frames.html").as_uri()],
        capture_output=True, text=True, timeout=BROWSER_SECONDS, check=True,
    ).stdout  # fmt: skip
    [title] = re.findall(r"<title>([\d: ]+)</title>", seen)
    measured = [tuple(map(int, each.split(":"))) for each in title.split()]
    assert [(frame, wide <= frame) for frame, wide, _ in measured] == [(width, True) for width in WIDTHS]
    assert all(images == 2 for *_, images in measured)
