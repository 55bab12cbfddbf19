"""Spoken samples that arms have left in the store, small enough to lie inside a page."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from analysis.artifacts import artifact_names, read_artifact
from analysis.pictures.finished import FinishedRun

MOST_BYTES_A_SAMPLE = 1_000_000
MOST_BYTES_IN_ALL = 6_000_000
SHOWN_LINES = ("question (spoken)", "expected text", "generated text", "sound")
EXPECTED = "sample_expected.wav"
SAID = "sample.wav"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sound with what is known of it. data_uri: empty where it is left out, and `left_out` then says why."""

    title: str
    run_id: str
    lines: tuple[tuple[str, str], ...]
    data_uri: str = ""
    left_out: str = ""


class SoundBudget:
    """Bytes of sound that one page may still take."""

    def __init__(self, most_bytes: int = MOST_BYTES_IN_ALL, most_bytes_a_sample: int = MOST_BYTES_A_SAMPLE) -> None:
        self.left, self.most_bytes_a_sample = most_bytes, most_bytes_a_sample

    def refusal(self, size: int) -> str:
        """Why a sound of so many bytes does not fit; empty, and the bytes are taken, where it does."""
        if size > self.most_bytes_a_sample:
            return f"{size:,} bytes; this page takes no sound above {self.most_bytes_a_sample:,}"
        if size > self.left:
            return f"{size:,} bytes; the page's room for sound is used up"
        self.left -= size
        return ""


def samples_of(found: FinishedRun, budget: SoundBudget) -> list[Sample]:
    """The right answer's own sound once, where arms have the same, then what each arm said; nothing for runs without
    sound. Only the first seed of an arm speaks."""
    samples: list[Sample] = []
    heard: set[str] = set()
    for run in found.arms:
        names = artifact_names(found.store, run.run_id)
        if (EXPECTED not in names and SAID not in names) or run.seed != min(found.run.seeds):
            continue
        lines = _lines(found, run.run_id) if "sample.txt" in names else ()
        for name in (EXPECTED, SAID):
            if name not in names:
                continue
            sound = read_artifact(found.store, run.run_id, name)
            digest = hashlib.sha256(sound).hexdigest()
            if digest in heard:
                continue
            heard.add(digest)
            title = f"{run.arm} says" if name == SAID else "The right answer, through the same way from units to sound"
            own = lines if name == SAID else tuple(line for line in lines if line[0] in SHOWN_LINES[:2])
            refusal = budget.refusal(len(sound))
            uri = "" if refusal else f"data:audio/wav;base64,{base64.b64encode(sound).decode()}"
            samples.append(Sample(title=title, run_id=run.run_id, lines=own, data_uri=uri, left_out=refusal))
    return samples


def _lines(found: FinishedRun, run_id: str) -> tuple[tuple[str, str], ...]:
    """What `sample.txt` says that a listener wants to know; lists of ids and units stay in the store."""
    text = read_artifact(found.store, run_id, "sample.txt").decode(errors="replace")
    pairs = (line.partition(": ") for line in text.splitlines())
    return tuple((name, value) for name, _, value in pairs if name in SHOWN_LINES)
