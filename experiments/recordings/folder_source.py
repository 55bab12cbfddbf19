"""A folder tree of recordings, transcripts beside them; LibriSpeech's chapters are recognised by their .trans.txt."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from backbones.speech.channels import SOUND_SUFFIXES
from experiments.recordings.source_files import Drop, FoundSource, SoundFile, SourceRecording, Transcript, sound_file
from experiments.recordings.transcripts import (
    LIBRISPEECH_SUFFIX,
    TRANSCRIPT_SUFFIXES,
    read_librispeech,
    read_transcript,
)


@dataclass
class _Found:
    root: Path
    recordings: list[SourceRecording] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    real_paths: dict[str, str] = field(default_factory=dict)

    def drop(self, what: str, path: Path, reason: str) -> None:
        self.drops.append(Drop(what=what, path=str(path), reason=reason))

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def recordings_in_folder(root: Path) -> FoundSource:
    """Every file that its suffix says is sound, links followed once, hidden files left aside. Nothing is decoded."""
    found = _Found(root)
    seen_folders = {os.path.realpath(root)}

    def unreadable(error: OSError) -> None:
        found.drop("file", Path(error.filename), f"the folder cannot be listed ({error.strerror})")

    for folder, inner, names in os.walk(root, followlinks=True, onerror=unreadable):
        here = Path(folder)
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and _is_new(here / name, seen_folders, found)
        )
        _take_folder(here, sorted(name for name in names if not name.startswith(".")), found)
    return FoundSource(
        recordings=tuple(sorted(found.recordings, key=lambda one: one.name)),
        drops=tuple(found.drops),
        ignored=dict(sorted(found.ignored.items())),
    )


def _is_new(folder: Path, seen: set[str], found: _Found) -> bool:
    real = os.path.realpath(folder)
    if real in seen:
        found.drop(
            "file", folder, f"a link to {real}, which is taken already: a loop of links, or the same folder twice"
        )
        return False
    seen.add(real)
    return True


def _take_folder(here: Path, names: list[str], found: _Found) -> None:
    chapters = [name for name in names if name.endswith(LIBRISPEECH_SUFFIX)]
    sounds = [name for name in names if Path(name).suffix.lower() in SOUND_SUFFIXES]
    texts = [name for name in names if Path(name).suffix.lower() in TRANSCRIPT_SUFFIXES and name not in chapters]
    in_chapters = {name for chapter in chapters for name in _take_chapter(here, chapter, sounds, found)}
    for name in sounds:
        if name not in in_chapters:
            file = _taken(here / name, found)
            if file is not None:
                files = (sound_file(file, _transcript_beside(here, name, texts, found)),)
                found.recordings.append(SourceRecording(name=found.name(file), files=files))
    known = {*chapters, *sounds, *texts}
    found.ignored.update(Path(name).suffix.lower() or "no suffix" for name in names if name not in known)


def _taken(path: Path, found: _Found) -> Path | None:
    """The path, unless it leads nowhere, may not be read, or is another name of a file that was taken."""
    real = os.path.realpath(path)
    if not os.path.exists(real):
        found.drop("file", path, f"a link that leads nowhere ({real})")
    elif not os.access(real, os.R_OK):
        found.drop("file", path, "may not be read by this user")
    elif real in found.real_paths:
        found.drop("file", path, f"the same file as {found.real_paths[real]}")
    else:
        found.real_paths[real] = str(path)
        return path
    return None


def _take_chapter(here: Path, chapter: str, sounds: list[str], found: _Found) -> list[str]:
    """The sounds that a LibriSpeech transcript names become one recording; gives their names."""
    try:
        texts = read_librispeech(here / chapter)
    except ValueError as error:
        found.drop("transcript", here / chapter, str(error))
        return []
    by_stem = {Path(name).stem: name for name in sounds}
    for missing in sorted(set(texts) - set(by_stem)):
        found.drop("file", here / missing, f"named in {chapter}, and no sound file of that name is there")
    files: list[SoundFile] = []
    for stem in sorted(set(texts) & set(by_stem)):
        path = _taken(here / by_stem[stem], found)
        if path is not None:
            transcript = Transcript(source=str(here / chapter), text=texts[stem])
            files.append(sound_file(path, transcript, is_utterance=True))
    if files:
        name = found.name(here / chapter.removesuffix(LIBRISPEECH_SUFFIX))
        found.recordings.append(SourceRecording(name=name, files=tuple(files)))
    return [by_stem[stem] for stem in texts if stem in by_stem]


def _transcript_beside(here: Path, name: str, texts: list[str], found: _Found) -> Transcript | None:
    """The best readable transcript of a sound: NAME.vtt, .srt, .txt, or with a language, NAME.en.vtt.

    The sound's own name may stand in front with its suffix: NAME.mp3.vtt.
    """
    stem = Path(name).stem
    for suffix in TRANSCRIPT_SUFFIXES:
        for text in texts:
            if Path(text).suffix.lower() != suffix:
                continue
            start = Path(text).stem
            if start in (stem, name) or (Path(start).stem == stem and 2 <= len(Path(start).suffix) - 1 <= 5):
                try:
                    return read_transcript(here / text)
                except ValueError as error:
                    found.drop("transcript", here / text, str(error))
    return None
