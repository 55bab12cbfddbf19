"""Folders of recordings for the tests of the recordings room: espeak's speech in many formats, and broken files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, read_audio
from backbones.speech.espeak import EspeakVoice, SpeechJob, speak_to_files
from experiments.recordings.settings import PreparationSettings

RATE = SPEECH_SAMPLE_RATE_HZ
SETTINGS = PreparationSettings(unit_vocab_size=20, text_vocab_size=400, monologue_turn_s=4.0, longest_turn_s=10.0)
SENTENCES = {
    "m": (
        "The harbour was quiet that morning.",
        "Nobody had seen the red boat.",
        "We waited until the rain had stopped.",
    ),
    "f": ("Tell me about the old house.", "Yes, I remember it well.", "It stood beside the river for years."),
}

Samples = NDArray[np.float32]
Voices = dict[str, list[Samples]]
"""Sentences of each voice."""


def spoken(folder: Path) -> Voices:
    """Three sentences by each of two voices, 16 kHz mono."""
    voices = {"m": EspeakVoice(language="en-us", variant="m3"), "f": EspeakVoice(language="en-us", variant="f3")}
    jobs = [
        SpeechJob(text=text, voice=voices[who], path=folder / f"{who}{number}.wav")
        for who, texts in SENTENCES.items()
        for number, text in enumerate(texts)
    ]
    assert sorted(speak_to_files(jobs, 1)) == list(range(len(jobs)))
    return {who: [read_audio(folder / f"{who}{n}.wav").samples for n in range(3)] for who in SENTENCES}


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), dtype=np.float32)


def monologue(voice: list[Samples], pause_s: float = 0.9, rounds: int = 1) -> Samples:
    """All sentences of a voice with pauses between them."""
    return np.concatenate([part for sentence in voice * rounds for part in (silence(pause_s), sentence)])


def two_people(voices: Voices, rounds: int = 1, pause_s: float = 0.6) -> Samples:
    """(N, 2): first the one, then the other, a channel each."""
    pieces: list[Samples] = []
    for left, right in zip(voices["m"] * rounds, voices["f"] * rounds, strict=True):
        for channel, sentence in enumerate((left, right)):
            piece = np.zeros((len(sentence) + round(pause_s * RATE), 2), dtype=np.float32)
            piece[: len(sentence), channel] = sentence
            pieces.append(piece)
    return np.concatenate(pieces)


def write_told(folder: Path, name: str, voices: Voices, rounds: int) -> None:
    """NAME.flac, two people on two channels, and NAME.vtt with the words of both."""
    soundfile.write(folder / f"{name}.flac", two_people(voices, rounds=rounds), RATE)
    cues, at_s = ["WEBVTT\n"], 0.0
    for turn in range(6 * rounds):
        who, place = "mf"[turn % 2], turn // 2 % 3
        end_s = at_s + len(voices[who][place]) / RATE
        cues.append(f"00:{_clock(at_s)} --> 00:{_clock(end_s)}\n{SENTENCES[who][place]}\n")
        at_s = end_s + 0.6
    (folder / f"{name}.vtt").write_text("\n".join(cues))


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{seconds % 60:06.3f}"


def write_m4a(path: Path, samples: Samples, rate: int = RATE) -> None:
    """Mono AAC."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.rate = rate
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def write_broken(folder: Path, speech: Samples) -> None:
    """A file of every kind of damage, each named after it."""
    folder.mkdir()
    good = folder / "good.wav"
    soundfile.write(good, speech, RATE)
    content = bytearray(good.read_bytes())
    good.unlink()
    (folder / "zero bytes.wav").touch()
    (folder / "cut.wav").write_bytes(content[: len(content) // 2])
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 10 * 3600 * RATE * 2)
    (folder / "says ten hours.wav").write_bytes(content)
    (folder / "a picture.wav").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + bytes(range(256)) * 8)
    (folder / "text.mp3").write_text("this is no sound at all\n" * 50)
    write_m4a(folder / "whole.m4a", speech)
    whole = (folder / "whole.m4a").read_bytes()
    (folder / "whole.m4a").unlink()
    (folder / "cut.m4a").write_bytes(whole[: len(whole) // 2])
    soundfile.write(folder / "silence.flac", silence(20), RATE)
    rng = np.random.default_rng(0)
    soundfile.write(folder / "noise.flac", rng.normal(0, 0.05, 20 * RATE).astype(np.float32), RATE)
    os.symlink("..", folder / "loop")
    os.symlink("/nowhere/at/all.wav", folder / "leads nowhere.wav")
