"""From an arrangement to a model that it is mounted on."""

from __future__ import annotations

from experiments.memory.accounting import Subject
from experiments.memory.configuration import Arrangement
from experiments.memory.decoders import DecoderSubject


def published_subject(arrangement: Arrangement, mini_batch_size: int, device: str = "meta") -> Subject:
    """The published dimensions in bfloat16; on the meta device nothing is allocated."""
    return _subject(arrangement, device, False, mini_batch_size)


def small_subject(arrangement: Arrangement, mini_batch_size: int, device: str = "cpu") -> Subject:
    """The same arrangement on a model of the same kind that streams on a CPU in no time, in bfloat16 too."""
    return _subject(arrangement, device, True, mini_batch_size)


def _subject(arrangement: Arrangement, device: str, is_small: bool, mini_batch_size: int) -> Subject:
    if arrangement.backbone == "moshi":
        # Here and not above: see the module's own first lines.
        from experiments.memory.moshi_streams import MoshiSubject

        return MoshiSubject(arrangement, device=device, is_small=is_small, mini_batch_size=mini_batch_size)
    return DecoderSubject(arrangement, device=device, is_small=is_small, mini_batch_size=mini_batch_size)
