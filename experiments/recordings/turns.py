"""From stretches to conversations: turns of a user, who is heard, and of an assistant, whose speech is learned.

Where two people are told apart, by channels or by a transcript, one of them is the user. Where one person speaks, or
nobody is told apart, the turns are heard and learned by turns: hear a stretch, say the next. User and assistant always
alternate: where one of them goes on after the longest turn, or speaks first or last, the other *listens*, a turn of
silence without words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from experiments.data.text import Speaker
from experiments.recordings.settings import PreparationSettings
from experiments.recordings.stretches import Stretch

LISTENING_S = 0.2
FILE_GAP_S = 0.5
"""Between utterances that were stored as files of their own: what really lay between them is not known."""


@dataclass(frozen=True, kw_only=True)
class PlannedTurn:
    """A turn before its sound is cut out. at_s: when it starts, in the recording. sound: its stretch of a file.

    None is a turn of listening. joined: of how many stretches it consists.
    """

    role: Speaker
    at_s: float
    sound: Stretch | None
    joined: int = 1

    @property
    def duration_s(self) -> float:
        return LISTENING_S if self.sound is None else self.sound.end_s - self.sound.start_s

    @property
    def end_s(self) -> float:
        return self.at_s + self.duration_s


def conversations_of(
    stretches: Sequence[tuple[float, Stretch]], settings: PreparationSettings
) -> list[list[PlannedTurn]]:
    """Conversations of alternating turns, the user's first. stretches: with when they start in the recording."""
    roles = roles_of([one for _, one in stretches], settings)
    limit_s = settings.longest_turn_s if roles else settings.monologue_turn_s
    return [
        list(_alternating(_joined(group, roles, limit_s)))
        for group in _by_conversation(stretches, settings.conversation_pause_s)
    ]


def roles_of(stretches: Iterable[Stretch], settings: PreparationSettings) -> dict[str, Speaker]:
    """Who is user and who assistant, where two or more are told apart; else nothing."""
    seconds: Counter[str] = Counter()
    for one in stretches:
        seconds[one.speaker] += one.end_s - one.start_s
    named = [speaker for speaker, _ in seconds.most_common() if speaker]
    if len(named) < 2:
        return {}
    if set(named) == {"channel 0", "channel 1"}:
        assistant = "channel 1"
    elif settings.assistant_speaker in named:
        assistant = settings.assistant_speaker
    else:
        assistant = named[0]
    return {speaker: "assistant" if speaker == assistant else "user" for speaker in seconds}


def _by_conversation(
    stretches: Sequence[tuple[float, Stretch]], pause_s: float
) -> Iterator[list[tuple[float, Stretch]]]:
    group: list[tuple[float, Stretch]] = []
    end_s = 0.0
    for at_s, one in sorted(stretches, key=lambda pair: (pair[0], pair[1].channel)):
        if group and at_s - end_s >= pause_s:
            yield group
            group = []
        group.append((at_s, one))
        end_s = max(end_s, at_s + one.end_s - one.start_s)
    if group:
        yield group


def _joined(group: Sequence[tuple[float, Stretch]], roles: dict[str, Speaker], limit_s: float) -> list[PlannedTurn]:
    """Neighbours of one speaker as one turn, the pause between them included.

    Without roles the turns are heard and learned by turns, so that the last one is learned.
    """
    turns: list[PlannedTurn] = []
    for at_s, one in group:
        last = turns[-1] if turns else None
        if last is not None and _may_join(last, one, roles, limit_s):
            assert last.sound is not None
            text = f"{last.sound.text} {one.text}".strip()
            end_s = max(last.sound.end_s, one.end_s)
            turns[-1] = replace(last, sound=replace(last.sound, end_s=end_s, text=text), joined=last.joined + 1)
        else:
            turns.append(PlannedTurn(role=roles.get(one.speaker, "user"), at_s=at_s, sound=one))
    if roles:
        return turns
    by_turns: tuple[Speaker, Speaker] = ("assistant", "user")
    return [replace(turn, role=by_turns[(len(turns) - 1 - place) % 2]) for place, turn in enumerate(turns)]


def _may_join(last: PlannedTurn, one: Stretch, roles: dict[str, Speaker], limit_s: float) -> bool:
    sound = last.sound
    assert sound is not None
    return (
        sound.file == one.file
        and sound.channel == one.channel
        and not (sound.is_whole or one.is_whole)
        and (not roles or roles[one.speaker] == last.role)
        and (bool(sound.text) == bool(one.text))
        and max(sound.end_s, one.end_s) - sound.start_s <= limit_s
    )


def _alternating(turns: Iterable[PlannedTurn]) -> Iterator[PlannedTurn]:
    expected: Speaker = "user"
    last: PlannedTurn | None = None
    for turn in turns:
        if turn.role != expected:
            at_s = turn.at_s - LISTENING_S if last is None else last.end_s
            yield PlannedTurn(role=expected, at_s=max(0.0, at_s), sound=None)
        yield turn
        expected = "assistant" if turn.role == "user" else "user"
        last = turn
    if last is not None and last.role == "user":
        yield PlannedTurn(role="assistant", at_s=last.end_s, sound=None)
