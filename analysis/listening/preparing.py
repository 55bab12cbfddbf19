"""A new test: sounds are level-matched, written under names that say nothing, and paired."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy

from analysis.listening.database import Database, StoredClip, StoredPair, Test, create
from analysis.listening.excerpts import choose_excerpts, excerpt_wav
from analysis.listening.levels import Clip, at_rate, common_rate_hz, degraded, level_matched, read_clip, wav_bytes
from analysis.listening.plan import CATCH_SHARE, MOST_PAIRS, ItemPair, choose_pairs, hidden
from analysis.listening.systems import Sound, System, labels_of_ttt, shared_items

DATABASE_FILE, CLIPS_FOLDER = "listening.db", "clips"
QUESTION = "Which of the two would you rather listen to?"
FEWEST_RATERS = 3


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A part of every sound: `seconds` from `start_s` on."""

    start_s: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TestOptions:
    """What is chosen for a test. ttt: labels that count as TTT; of none, those that begin with `ttt`.
    excerpts: each an item of its own; of none, whole sounds. raters: how many must finish before anything is judged."""

    __test__ = False

    most_pairs: int = MOST_PAIRS
    raters: int = FEWEST_RATERS
    seed: int = 0
    ttt: tuple[str, ...] = ()
    excerpts: tuple[Excerpt, ...] = ()
    question: str = QUESTION
    is_simulated: bool = False


def parse_excerpt(text: str) -> Excerpt:
    """Of `600:30`, 30 seconds from 10 minutes on. Raises ValueError for anything else."""
    start, _, seconds = text.partition(":")
    try:
        found = Excerpt(start_s=float(start), seconds=float(seconds))
    except ValueError as error:
        raise ValueError(f"an excerpt is START:SECONDS, e.g. 600:30; {text!r} is not") from error
    if not (found.start_s >= 0 and 0 < found.seconds < float("inf")):
        raise ValueError(f"an excerpt starts at 0 s or later and lasts longer than 0 s; {text!r} does not")
    return found


def prepare(
    folder: Path, systems: Sequence[System], options: TestOptions, tell: Callable[[str], None] = lambda line: None
) -> Database:
    """The test of these systems at `folder`: a new one, or the one that is there if it is the same.

    tell: is given a line for what is left out and for the loudness.

    Raises:
        ValueError: the systems cannot be compared, a sound cannot be used, or the folder holds another test.
    """
    if options.raters < FEWEST_RATERS:
        raise ValueError(f"{options.raters} raters show nothing; plan {FEWEST_RATERS} or more (--raters)")
    systems, notes = with_excerpts(systems, options)
    for line in notes:
        tell(line)
    items, alone = shared_items(systems)
    if alone:
        tell(f"left out, because only one system has it: {', '.join(alone)}")
    ttt = labels_of_ttt(systems, options.ttt)
    parts, digest = _digested(systems, items, options, ttt)
    path = folder / DATABASE_FILE
    if path.is_file():
        return _same_test(Database(path), digest, options)
    pairs = choose_pairs(parts, options.most_pairs, options.seed)
    test = Test(
        digest=digest, seed=options.seed, raters=options.raters, question=options.question,
        is_simulated=options.is_simulated,
        systems=tuple(
            {"label": each.label, "is_ttt": each.label in ttt, "origins": [origin.plain() for origin in each.origins]}
            for each in systems
        ),
        notes=notes,
        places={
            name: sound.along for each in systems for name, sound in each.sounds.items() if sound.along is not None
        },
    )  # fmt: skip
    _write(folder, {system.label: system for system in systems}, pairs, test, options, tell)
    return Database(path)


def with_excerpts(systems: Sequence[System], options: TestOptions) -> tuple[Sequence[System], list[str]]:
    """The systems with excerpts of their long streams as sounds, and lines on what was chosen and left out.

    Where none has long streams, the systems as they are.

    Raises:
        ValueError: excerpts were asked for by hand, or there is no place at which two systems speak.
    """
    names = [name for system in systems for name in system.streams]
    if not names:
        return systems, []
    if options.excerpts:
        raise ValueError("long streams are cut at their pauses, minute by minute: leave out --excerpts")
    shared = {
        name: {system.label: system.streams[name] for system in systems if name in system.streams}
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    }
    if not shared:
        listed = "; ".join(f"{system.label} has {', '.join(sorted(system.streams))}" for system in systems)
        raise ValueError(f"the systems share no stream: {listed}. Compare runs of one seed, or folders with folders")
    alone = sorted(set(names) - set(shared))
    notes = [f"left out, because only one system has it: {', '.join(alone)}"] if alone else []
    pairs_an_item = math.comb(max(map(len, shared.values())), 2)
    chosen = choose_excerpts(shared, math.ceil(options.most_pairs / pairs_an_item))
    by_label: dict[str, dict[str, Sound]] = {system.label: {} for system in systems}
    for item in chosen.items:
        for label, cut in item.cuts.items():
            stream = shared[item.stream][label]
            name = f"{stream.audio} from {cut.start_s:.1f} s on"
            by_label[label][item.name] = Sound(
                name=name, read=functools.partial(excerpt_wav, stream, cut, name), along=item.along
            )
    heard = [
        dataclasses.replace(system, sounds={**system.sounds, **by_label[system.label]}, streams={})
        for system in systems
    ]
    return heard, [*notes, *chosen.lines()]


def check_clips(database: Database) -> None:
    """Raises ValueError where a clip's file is missing or is not the one that the test was made with."""
    folder = database.path.parent / CLIPS_FOLDER
    for clip in database.clips():
        path = folder / f"{clip.clip_id}.wav"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != clip.digest:
            what = "is missing" if not path.is_file() else "was changed"
            raise ValueError(
                f"the clip {path} {what} since the test was made; restore the folder {folder}, "
                "or make a new test under another NAME"
            )


def item_name(item: str, excerpt: Excerpt | None) -> str:
    return item if excerpt is None else f"{item} from {excerpt.start_s:g} s for {excerpt.seconds:g} s"


def _digested(
    systems: Sequence[System], items: Mapping[str, Sequence[str]], options: TestOptions, ttt: Sequence[str]
) -> tuple[dict[str, Sequence[str]], str]:
    """{item, an excerpt each: labels}, and a digest of everything that the test is made of."""
    parts = {item_name(item, each): labels for item, labels in items.items() for each in options.excerpts or (None,)}
    sounds = {
        f"{system.label}/{item}": hashlib.sha256(system.sounds[item].read()).hexdigest()
        for system in systems
        for item in sorted(system.sounds)
        if system.label in items.get(item, ())
    }
    told = [sounds, sorted(parts), options.most_pairs, options.raters, options.seed, sorted(ttt), options.question]
    return parts, hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _same_test(database: Database, digest: str, options: TestOptions) -> Database:
    test = database.test
    if test.is_simulated != options.is_simulated:
        is_what = "marked simulated: programs answer it" if test.is_simulated else "for people"
        raise ValueError(f"the test {database.path} is {is_what}, and a test never changes sides; give another NAME")
    if test.digest != digest:
        labels = " and ".join(each["label"] for each in test.systems)
        raise ValueError(
            f"{database.path} holds another test (of {labels}, or of other sounds or options) with "
            f"{len(database.answers())} answers; give another NAME, or leave out RUNS to go on with that one"
        )
    return database


def _write(
    folder: Path, systems: Mapping[str, System], pairs: Sequence[ItemPair], test: Test, options: TestOptions,
    tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Clips first, the database last: a folder without one holds no test and is written anew."""
    clips_folder = folder / CLIPS_FOLDER
    try:
        shutil.rmtree(clips_folder, ignore_errors=True)
        clips_folder.mkdir(parents=True)
        clips, stored = _write_clips(clips_folder, systems, pairs, options, tell)
    except OSError as error:
        raise ValueError(f"the clips cannot be written to {clips_folder}: {error}") from error
    create(folder / DATABASE_FILE, test, clips, stored)


def _write_clips(
    folder: Path, systems: Mapping[str, System], pairs: Sequence[ItemPair], options: TestOptions,
    tell: Callable[[str], None],
) -> tuple[list[StoredClip], list[StoredPair]]:  # fmt: skip
    named = {item_name(item, each): (item, each) for system in systems.values() for item in system.sounds
             for each in options.excerpts or (None,)}  # fmt: skip
    needed = sorted({(pair.item, label) for pair in pairs for label in (pair.first, pair.second)})
    rates = [_read(systems[label], *named[item]).rate_hz for item, label in needed]
    rate_hz = common_rate_hz(rates)
    random = numpy.random.default_rng(options.seed)
    caught = [needed[place] for place in random.permutation(len(needed))]
    catches = [caught[place % len(caught)] for place in range(hidden(len(pairs), CATCH_SHARE))]
    clips: list[StoredClip] = []
    stored: list[StoredPair] = []
    levels: list[float] = []
    places: dict[tuple[str, str], str] = {}
    for item in dict.fromkeys(item for item, _ in needed):
        labels = [label for each, label in needed if each == item]
        heard = [at_rate(_read(systems[label], *named[item]), rate_hz) for label in labels]
        matched, level = level_matched(heard)
        levels.append(level)
        for label, clip in zip(labels, matched, strict=True):
            clips.append(_stored(folder, clip, label, item))
            places[item, label] = clips[-1].clip_id
        for number, (of_item, label) in enumerate(catches):
            if of_item == item:
                clip = heard[labels.index(label)]
                both, _ = level_matched([clip, degraded(clip, options.seed + number)])
                clips += [_stored(folder, each, label, item) for each in both]
                pair = ItemPair(item=item, first=label, second=f"degraded {label}")
                first, second = clips[-2].clip_id, clips[-1].clip_id
                stored.append(StoredPair(kind="catch", number=number, pair=pair, first_clip=first, second_clip=second))
    for number, pair in enumerate(pairs):
        first, second = places[pair.item, pair.first], places[pair.item, pair.second]
        stored.append(StoredPair(kind="pair", number=number, pair=pair, first_clip=first, second_clip=second))
    tell(f"clips at {rate_hz:,} Hz, one channel, {min(levels):.1f} to {max(levels):.1f} LUFS (ITU-R BS.1770-4)")
    return clips, stored


def _read(system: System, item: str, excerpt: Excerpt | None) -> Clip:
    sound = system.sounds[item]
    name = f"{sound.name} ({system.label})"
    if excerpt is None:
        return read_clip(sound.read(), name)
    clip = read_clip(sound.read(), name, excerpt.start_s, excerpt.seconds)
    if clip.seconds < 0.99 * excerpt.seconds:
        raise ValueError(
            f"{name} ends {clip.seconds:.1f} s after {excerpt.start_s:g} s, and the excerpt takes "
            f"{excerpt.seconds:g} s; give an excerpt that every sound has"
        )
    return clip


def _stored(folder: Path, clip: Clip, system: str, item: str) -> StoredClip:
    """Written under a random name; times of files are all the same, for they would tell in which order they came."""
    content, clip_id = wav_bytes(clip), secrets.token_hex(16)
    path = folder / f"{clip_id}.wav"
    path.write_bytes(content)
    os.utime(path, (0, 0))
    digest = hashlib.sha256(content).hexdigest()
    return StoredClip(clip_id=clip_id, system=system, item=item, seconds=clip.seconds, digest=digest)
