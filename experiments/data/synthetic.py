"""Build a set of synthetic conversations, or find it in the cache.

Two folders per set: the pool of utterances (wav, log-mel, units, tokenizer, lhotse manifest), shared by sets that
differ in seed, length or number only, and the conversations drawn over it. Each is named by a digest of what decides
its content.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import AudioSource, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.qa import validate_recordings_and_supervisions
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from backbones.speech import SPEECH_SAMPLE_RATE_HZ, UnitCodebook, log_mel, read_audio
from backbones.speech.espeak import EspeakError, SpeechJob, engine_version, speak_to_files
from experiments.data.conversations import Measured, Split, draw_conversation
from experiments.data.dataset import (
    CODEBOOK_FILE,
    CONVERSATIONS_FILE,
    MEL_FILE,
    POOL_FILES,
    RECORDINGS_FILE,
    SPEC_FILE,
    SUPERVISIONS_FILE,
    TOKENIZER_FILE,
    UNITS_FILE,
    UTTERANCES_FILE,
    ConversationSet,
    UtterancePool,
    check_files,
    open_conversations,
)
from experiments.data.folders import whole_folder
from experiments.data.packing import default_speech_positions
from experiments.data.spec import ConversationSpec
from experiments.data.text import Sentence, sentence_pool, utterance_id
from experiments.data.tokenizer import ConversationTokenizer

_SENTENCES_PER_ENGINE = 50
_UNIT_FIT_SEED = 0


def build_conversations(
    spec: ConversationSpec,
    cache_dir: str | Path,
    progress: bool = True,
    skip_bad_audio: bool = False,
    processes: int | None = None,
) -> ConversationSet:
    """The conversations of `spec`, from the cache where they are there, else made and put there.

    progress: show bars. skip_bad_audio: leave out the conversations that use a wav that is missing or has changed
    (listed in `.dropped` and in the log) where else it is an error. processes: engines that speak at the same time, by
    default one per core.

    Raises EspeakError where nothing can be spoken, CorruptCacheError (a ValueError) where a cached file is not as
    written, ValueError where the cache cannot be written to or was spoken by another version of the engine.
    """
    cache = Path(cache_dir).expanduser().resolve()
    pool_folder = cache / f"pool-{spec.pool_digest()}"
    conversations_folder = cache / f"conversations-{spec.digest()}"
    if not pool_folder.exists():
        with whole_folder(pool_folder) as folder:
            _build_pool(spec, folder, progress, processes or os.cpu_count() or 1)
    bad_audio = check_files(pool_folder, POOL_FILES, skip_bad_audio)
    _check_engine(pool_folder)
    if not conversations_folder.exists():
        pool = UtterancePool(pool_folder)
        with whole_folder(conversations_folder) as folder:
            _draw_conversations(spec, pool, folder, progress)
    return open_conversations(spec, pool_folder, conversations_folder, bad_audio)


def _build_pool(spec: ConversationSpec, folder: Path, progress: bool, processes: int) -> None:
    pool = sentence_pool(spec)
    sentences = pool.sentences()
    whole_words = sorted({*pool.values, *(word for subject in pool.subjects for word in subject.split())})
    tokenizer = ConversationTokenizer.train([s.text for s in sentences], spec.text_vocab_size, whole_words)
    tokenizer.save(folder / TOKENIZER_FILE)
    voices = {"user": spec.user_voice, "assistant": spec.assistant_voice}
    ids = [utterance_id(s.text, voices[s.speaker]) for s in sentences]
    assert len(set(ids)) == len(ids), "two sentences of the pool are the same"
    (folder / "wav").mkdir()
    jobs = [
        SpeechJob(text=s.text, voice=voices[s.speaker], path=folder / _wav_name(i))
        for s, i in zip(sentences, ids, strict=True)
    ]
    with _one_thread():
        mels = _speak_and_transform(jobs, spec.n_mels, progress, processes)
        codebook, units = _fit_units(spec, mels, progress)
    codebook.save(folder / CODEBOOK_FILE)
    np.save(folder / MEL_FILE, np.concatenate(mels))
    np.save(folder / UNITS_FILE, np.concatenate(units))
    _write_index(folder, sentences, jobs, ids, mels, units)
    _write_manifest(folder)
    description = {"spec": spec.pool_as_dict(), "engine": _engine()}
    (folder / SPEC_FILE).write_text(json.dumps(description, indent=1))


def _engine() -> str:
    return f"espeak-ng {engine_version()}"


def _check_engine(pool_folder: Path) -> None:
    """Refuses a pool that another version of the engine has spoken: sets over it would not be those of their spec."""
    spoken_by = json.loads((pool_folder / SPEC_FILE).read_text())["engine"]
    try:
        installed = _engine()
    except EspeakError:
        return  # without an engine nothing can be spoken otherwise: a cache made elsewhere is as good as it gets
    if spoken_by != installed:
        raise ValueError(
            f"{pool_folder} was spoken by {spoken_by}, installed is {installed}: delete the folder, and the "
            f"conversations-* folders beside it that were drawn from its lengths, to have them made again"
        )


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    """Many small steps are tens of times slower on two torch threads where the cores are busy (11 s against 0.3 s for
    200 log-mels), and the codebook's last bits would follow the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _fit_units(spec: ConversationSpec, mels: list[np.ndarray], progress: bool) -> tuple[UnitCodebook, list[np.ndarray]]:
    """Codebook fitted on utterances at even steps through the pool, and every utterance's units (U,) int16 at 50 Hz."""
    count = min(spec.unit_fit_utterances, len(mels))
    as_stored = [torch.from_numpy(mel.astype(np.float32)) for mel in mels]
    codebook = UnitCodebook.fit(
        [as_stored[i * len(mels) // count] for i in range(count)], spec.unit_vocab_size, _UNIT_FIT_SEED
    )
    bar = tqdm(as_stored, desc="units", unit="utterance", disable=not progress)
    return codebook, [codebook.encode(mel).numpy().astype(np.int16) for mel in bar]


def _wav_name(identifier: str) -> str:
    return f"wav/{identifier}.wav"


def _speak_and_transform(jobs: list[SpeechJob], n_mels: int, progress: bool, processes: int) -> list[np.ndarray]:
    """Speak every job; log-mels (F, n_mels) float16 in the order of the jobs."""
    mels: dict[int, np.ndarray] = {}
    engines = min(processes, -(-len(jobs) // _SENTENCES_PER_ENGINE))
    spoken = speak_to_files(jobs, engines)
    for index in tqdm(spoken, total=len(jobs), desc="speech", unit="utterance", disable=not progress):
        # Half precision: at most 5e-4 off on values of about -1 to 1.5 (0.02 dB), for half the disk.
        mels[index] = log_mel(read_audio(jobs[index].path).samples, n_mels).numpy().astype(np.float16)
    return [mels[i] for i in range(len(jobs))]


def _write_index(
    folder: Path,
    sentences: list[Sentence],
    jobs: list[SpeechJob],
    ids: list[str],
    mels: list[np.ndarray],
    units: list[np.ndarray],
) -> None:
    first_frame, first_unit = 0, 0
    with (folder / UTTERANCES_FILE).open("w", encoding="utf-8") as file:
        for sentence, job, identifier, mel, unit in zip(sentences, jobs, ids, mels, units, strict=True):
            row = {
                "id": identifier,
                "speaker": sentence.speaker,
                "voice": job.voice.name,
                "text": sentence.text,
                "wav": _wav_name(identifier),
                "samples": soundfile.info(job.path).frames,
                "first_frame": first_frame,
                "frames": len(mel),
                "first_unit": first_unit,
                "units": len(unit),
                "fact": asdict(sentence.fact) if sentence.fact else None,
            }
            file.write(json.dumps(row) + "\n")
            first_frame, first_unit = first_frame + len(mel), first_unit + len(unit)


def _write_manifest(folder: Path) -> None:
    """lhotse's RecordingSet and SupervisionSet over the utterances; paths are relative to the folder."""
    recordings: list[Recording] = []
    supervisions: list[SupervisionSegment] = []
    for line in (folder / UTTERANCES_FILE).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        duration_s = row["samples"] / SPEECH_SAMPLE_RATE_HZ
        recordings.append(
            Recording(
                id=row["id"],
                sources=[AudioSource(type="file", channels=[0], source=row["wav"])],
                sampling_rate=SPEECH_SAMPLE_RATE_HZ,
                num_samples=row["samples"],
                duration=duration_s,
            )
        )
        supervisions.append(
            SupervisionSegment(
                id=row["id"],
                recording_id=row["id"],
                start=0.0,
                duration=duration_s,
                channel=0,
                text=row["text"],
                language="English",
                speaker=row["voice"],
                custom={"role": row["speaker"], "fact": row["fact"]},
            )
        )
    recording_set, supervision_set = (
        RecordingSet.from_recordings(recordings),
        SupervisionSet.from_segments(supervisions),
    )
    validate_recordings_and_supervisions(recording_set, supervision_set)
    recording_set.to_file(folder / RECORDINGS_FILE)
    supervision_set.to_file(folder / SUPERVISIONS_FILE)


def _draw_conversations(spec: ConversationSpec, pool: UtterancePool, folder: Path, progress: bool) -> None:
    voices = {"user": spec.user_voice, "assistant": spec.assistant_voice}
    measured: dict[Sentence, Measured] = {}

    def measure(sentence: Sentence) -> Measured:
        if sentence not in measured:
            identifier = utterance_id(sentence.text, voices[sentence.speaker])
            if sentence.speaker == "user":
                positions = 1 + default_speech_positions(pool.mel_frames(identifier))
            else:
                positions = 2 + len(pool.tokenizer.encode(sentence.text))
            measured[sentence] = Measured(
                utterance_id=identifier, positions=positions, duration_s=pool.duration_s(identifier)
            )
        return measured[sentence]

    sentences = sentence_pool(spec)
    counts: dict[Split, int] = {"train": spec.conversations, "validation": spec.validation_conversations}
    wanted: list[tuple[Split, int]] = [(split, i) for split, count in counts.items() for i in range(count)]
    with (folder / CONVERSATIONS_FILE).open("w", encoding="utf-8") as file:
        for split, index in tqdm(wanted, desc="conversations", unit="conversation", disable=not progress):
            conversation = draw_conversation(spec, sentences, measure, split, index)
            row = asdict(conversation)
            for turn in row["turns"]:
                del turn["text"], turn["speaker"]  # the utterance says them
            file.write(json.dumps(row) + "\n")
    (folder / SPEC_FILE).write_text(json.dumps({"spec": spec.as_dict(), "pool": spec.pool_digest()}, indent=1))
