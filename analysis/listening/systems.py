"""From runs and folders of sound to systems, and the items on which they compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from analysis.artifacts import artifact_names, read_artifact
from analysis.listening.streams import LongStream, has_streams, streams_in, streams_of_run
from analysis.runs import LoggedRun

if TYPE_CHECKING:
    from analysis.store import Store

SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
EXPECTED_SUFFIX = "_expected"
"""Ends the name of a sound that is the right answer, not what the system said."""
QUESTION_LINE = "question"
"""How a line of the text beside a sound begins that says what it answers: `question (spoken): Who called?`."""
SHORTEST_PREFIX = 6
TTT_LABEL = "ttt"
MIXER = "arm.mixer"
"""Parameter of a run that speaks: the arm that trained its model."""
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where sounds of a system come from. Of a folder nothing is known, so nothing made of it is ever evidence.

    place: the run's id, or the folder's name. scale: one of `runs.SCALES`. is_adhoc, is_dirty: "true", "false" or
    "unknown", as runs are tagged.
    """

    place: str
    recipe: str = UNKNOWN
    arm: str = UNKNOWN
    seed: int = 0
    scale: str = UNKNOWN
    commit: str = UNKNOWN
    is_adhoc: str = UNKNOWN
    is_dirty: str = UNKNOWN
    weights_digest: str = ""

    def plain(self) -> dict[str, str | int]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One sound file of a system, or an excerpt of a long stream. question: what it answers, as the text beside it
    says; empty where it does not. along: share of the stream that lies before the excerpt."""

    name: str
    read: Callable[[], bytes] = field(repr=False)
    question: str = ""
    along: float | None = None


@dataclass(frozen=True, kw_only=True)
class System:
    """What is compared. sounds: by item; the same item in two systems is the same question to both. streams: long
    ones, of which excerpts become items. is_ttt: what its runs say; of folders and other runs the label does."""

    label: str
    sounds: Mapping[str, Sound]
    origins: tuple[Origin, ...]
    streams: Mapping[str, LongStream] = field(default_factory=dict[str, LongStream])
    is_ttt: bool = False


def systems_of(arguments: Sequence[str], open_runs: Callable[[], Store]) -> list[System]:
    """The systems that `RUN`, `FOLDER`, `LABEL=RUN` and `LABEL=FOLDER` name; those of one label are pooled.

    A recipe's own run stands for all its arms. open_runs: is called only where a run is named.

    Raises:
        ValueError: an argument names nothing, or nothing with sound; fewer than two systems come of all.
    """
    parts: list[System] = []
    store: Store | None = None
    for argument in arguments:
        label, _, place = argument.rpartition("=")
        if Path(place).is_dir():
            parts.append(_of_folder(label or Path(place).resolve().name, Path(place)))
            continue
        store = store or open_runs()
        parts += _of_run(label, _run_called(store, place), store)
    systems = _pooled(parts)
    if len(systems) < 2:
        named = f"only the system {systems[0].label}" if systems else "no system"
        raise ValueError(
            f"a listening test compares two systems or more, and {' '.join(arguments) or 'nothing'} gives {named}; "
            'name a recipe\'s run (its arms are systems) or several: RUNS="run run" or RUNS="ttt=folder window=folder"'
        )
    return systems


def shared_items(systems: Sequence[System]) -> tuple[dict[str, list[str]], list[str]]:
    """{item: labels that have it} of items that two systems or more have, and the items that only one has.

    Raises:
        ValueError: no item is shared, or systems were asked different things under one item's name.
    """
    having: dict[str, list[str]] = {}
    for system in systems:
        for item in system.sounds:
            having.setdefault(item, []).append(system.label)
    shared = {item: labels for item, labels in sorted(having.items()) if len(labels) > 1}
    if not shared:
        listed = "; ".join(f"{each.label} has {_few(sorted(each.sounds))}" for each in systems)
        raise ValueError(
            f"the systems share no item, so that nothing can be compared: {listed}. The same item must have the same "
            "file name (and, of runs, the same seed) in each system"
        )
    by_label = {system.label: system for system in systems}
    for item, labels in shared.items():
        _refuse_other_questions(item, [(label, by_label[label].sounds[item]) for label in labels])
    return shared, sorted(set(having) - set(shared))


def labels_of_ttt(systems: Sequence[System], named: Sequence[str]) -> tuple[str, ...]:
    """Which systems count as TTT: those that are named, else those whose label begins with `ttt`, or whose runs spoke
    with a model that has TTT.

    Raises:
        ValueError: a name is that of no system.
    """
    labels = [system.label for system in systems]
    unknown = sorted(set(named) - set(labels))
    if unknown:
        raise ValueError(f"no system is called {', '.join(unknown)}; the systems are {', '.join(labels)}")
    return tuple(named) or tuple(
        system.label for system in systems if system.is_ttt or system.label.lower().startswith(TTT_LABEL)
    )


def _of_folder(label: str, folder: Path) -> System:
    origins = (Origin(place=folder.resolve().name),)
    if has_streams(folder):  # an arm's folder, as its run left it
        return System(label=label, sounds={}, origins=origins, streams=streams_in(folder))
    sounds: dict[str, Sound] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SOUND_SUFFIXES or path.stem.endswith(EXPECTED_SUFFIX):
            continue
        item = path.relative_to(folder).with_suffix("").as_posix()
        if item in sounds:
            raise ValueError(f"{folder} has two sounds called {item}; leave one of them")
        sounds[item] = Sound(name=str(path), read=path.read_bytes, question=_question_in(_text_beside(path)))
    if not sounds:
        raise ValueError(f"the folder {folder} holds no sound ({', '.join(SOUND_SUFFIXES)}); name another")
    return System(label=label, sounds=sounds, origins=origins)


def _text_beside(path: Path) -> str:
    text = path.with_suffix(".txt")
    return text.read_text(encoding="utf-8", errors="replace") if text.is_file() else ""


def _of_run(label: str, run: LoggedRun, store: Store) -> list[System]:
    """One system of an arm's run; of a recipe's own run one for each arm."""
    arms = [run]
    if run.role == "experiment":
        of_recipe = store.runs(run.experiment)
        arms = [each for each in of_recipe if each.parent_run_id == run.run_id and each.status == "FINISHED"]
    found: list[System] = []
    for arm in arms:
        streams = streams_of_run(arm)
        # Its sounds in the store are the beginning and the end of the stream.
        sounds = {} if streams else _sounds_of(arm, store)
        # A validation's arm is "moshi-stage1, ttt-mlp"; in a list of systems that would be two.
        name = arm.arm.replace(", ", " ") or arm.tags.get("mlflow.runName", arm.run_id[:8])
        if sounds or streams:
            called = name if not label else label if run.role != "experiment" else f"{label}-{name}"
            is_ttt = arm.params.get(MIXER, "").startswith(TTT_LABEL)
            origins = (_origin(arm),)
            found.append(System(label=called, sounds=sounds, origins=origins, streams=streams, is_ttt=is_ttt))
    if any(system.streams for system in found):  # beside arms that speak stand the trainings of their models
        found = [system for system in found if system.streams]
    if not found:
        raise ValueError(
            f"run {run.run_id} ({run.experiment}, {run.scale or 'no scale'}) has left no sound: none of "
            f"{', '.join(SOUND_SUFFIXES)} but right answers among its files; recipes on spoken conversations leave "
            "sample.wav, e.g. make exp-llama-omni-stage1"
        )
    return found


def _sounds_of(run: LoggedRun, store: Store) -> dict[str, Sound]:
    names = artifact_names(store, run.run_id)
    sounds: dict[str, Sound] = {}
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() not in SOUND_SUFFIXES or path.stem.endswith(EXPECTED_SUFFIX):
            continue
        text = str(path.with_suffix(".txt"))
        question = _question_in(
            read_artifact(store, run.run_id, text).decode(errors="replace") if text in names else ""
        )
        item = f"seed{run.seed}/{path.with_suffix('')}"
        sounds[item] = Sound(
            name=f"{name} of run {run.run_id}", read=_reader(store, run.run_id, name), question=question
        )
    return sounds


def _reader(store: Store, run_id: str, name: str) -> Callable[[], bytes]:
    return lambda: read_artifact(store, run_id, name)


def _question_in(text: str) -> str:
    return next((line.partition(": ")[2] for line in text.splitlines() if line.startswith(QUESTION_LINE)), "")


def _origin(run: LoggedRun) -> Origin:
    return Origin(
        place=run.run_id, recipe=run.experiment, arm=run.arm, seed=run.seed, scale=run.scale or UNKNOWN,
        commit=run.commit, is_adhoc=run.tags.get("adhoc", UNKNOWN), is_dirty=run.tags.get("git_dirty", UNKNOWN),
        weights_digest=run.params.get("weights_digest", ""),
    )  # fmt: skip


def _run_called(store: Store, name: str) -> LoggedRun:
    """The finished run with this id, first digits of an id, or name."""
    runs = store.runs()
    is_prefix = len(name) >= SHORTEST_PREFIX
    found = [each for each in runs if each.run_id == name] or [
        each for each in runs if each.tags.get("mlflow.runName") == name or (is_prefix and each.run_id.startswith(name))
    ]
    if not found:
        raise ValueError(
            f"{name!r} is neither a folder here nor a run in {store.uri}; give a run's id (or its first "
            f"{SHORTEST_PREFIX} digits or more), its name, or a folder of sounds; make mlflow-ui lists the runs"
        )
    if len(found) > 1:
        listed = ", ".join(f"{each.run_id} ({each.experiment}, {each.status.lower()})" for each in found[-5:])
        raise ValueError(f"{len(found)} runs are called {name!r}; give an id, the newest are {listed}")
    if found[0].status != "FINISHED":
        raise ValueError(f"run {found[0].run_id} is {found[0].status.lower()}, not finished; what it says may change")
    return found[0]


def _pooled(parts: Sequence[System]) -> list[System]:
    """Systems of one label as one: the seeds of an arm, say."""
    pooled: dict[str, System] = {}
    for part in parts:
        known = pooled.get(part.label)
        if known is None:
            pooled[part.label] = part
            continue
        twice = sorted({*known.sounds, *known.streams} & {*part.sounds, *part.streams})
        if twice:
            raise ValueError(
                f"the system {part.label} has {_few(twice)} twice, from {known.origins[-1].place} and from "
                f"{part.origins[0].place}; label what differs: RUNS='a={known.origins[-1].place} "
                f"b={part.origins[0].place}'"
            )
        pooled[part.label] = System(
            label=part.label, sounds={**known.sounds, **part.sounds}, origins=(*known.origins, *part.origins),
            streams={**known.streams, **part.streams}, is_ttt=known.is_ttt or part.is_ttt,
        )  # fmt: skip
    return list(pooled.values())


def _refuse_other_questions(item: str, having: Sequence[tuple[str, Sound]]) -> None:
    told = {label: sound.question for label, sound in having if sound.question}
    if len(set(told.values())) > 1:
        listed = "; ".join(f"{label}: {question}" for label, question in told.items())
        raise ValueError(
            f"the systems were asked different things under the item {item}: {listed}. Runs of one recipe and scale "
            "have the same questions"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
