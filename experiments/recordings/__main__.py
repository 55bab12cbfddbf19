"""`python -m experiments.recordings SOURCE NAME`: prepares recordings as a set for training."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from backbones.speech.mimi import CODEBOOKS_MOSHI_USES
from experiments.recordings.preparation import prepare_recordings
from experiments.recordings.set_files import CARD_FILE, CARD_PAGE
from experiments.recordings.settings import PreparationSettings

USER_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; gives the exit code: 0 done, 2 the user's mistake, 130 interrupted."""
    given = _parser().parse_args(arguments)
    try:
        settings = PreparationSettings(
            **{field.name: getattr(given, field.name) for field in fields(PreparationSettings)}
        )
        root = prepare_recordings(
            given.source,
            given.name,
            given.data_dir,
            settings,
            like=given.like,
            mimi=given.mimi,
            codebooks=given.codebooks,
            processes=given.processes,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: what is done stays; the same command goes on from there", file=sys.stderr)
        return 130
    _tell(root)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.recordings",
        description="Prepare recordings as a set for training; an interrupted preparation goes on where it was.",
        allow_abbrev=False,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder, or a manifest: .csv, .jsonl, .jsonl.gz")
    parser.add_argument("name", metavar="NAME", help="what the set is to be called")
    data_dir = Path(os.environ.get("TTT_DATA_CACHE", "data_cache"))
    parser.add_argument("--data-dir", type=Path, default=data_dir, help=f"the data cache (default: {data_dir})")
    parser.add_argument("--processes", type=int, help="at once (default: one a core)")
    parser.add_argument("--like", type=Path, metavar="FOLDER", help="use the units and vocabulary of that set")
    parser.add_argument("--mimi", type=Path, metavar="FOLDER", help="keep the codes of this Mimi beside the units")
    parser.add_argument(
        "--codebooks", type=int, default=CODEBOOKS_MOSHI_USES, help="how many of Mimi's (default: %(default)s)"
    )
    group = parser.add_argument_group("settings", "see experiments/recordings/settings.py")
    hints = get_type_hints(PreparationSettings)
    for field in fields(PreparationSettings):
        option = f"--{field.name.replace('_', '-')}"
        assert field.default is not MISSING
        if isinstance(field.default, bool):
            group.add_argument(option, action="store_true", default=field.default)
        else:
            kind: Any = type(field.default) if field.default is not None else str
            group.add_argument(
                option, type=kind, default=field.default, help=f"{_kind(hints[field.name])} (default: %(default)s)"
            )
    return parser


def _kind(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)).replace("typing.", "")


def _tell(root: Path) -> None:
    facts = json.loads((root / CARD_FILE).read_text(encoding="utf-8"))
    hours, cost = facts["hours"], facts["cost"]
    print(
        f"{root}: {hours['sound']:.2f} h of sound, {hours['speech']:.2f} h of speech, "
        f"{facts['turns']['heard'] + facts['turns']['learned']} turns in {sum(facts['conversations'].values())} "
        f"conversations; {len(facts['drops'])} drops"
    )
    for drop in facts["drops"][:10]:
        print(f"  left out: {drop['what']} {drop['path']}: {drop['reason']}")
    if len(facts["drops"]) > 10:
        print(f"  ... and {len(facts['drops']) - 10} more in the card")
    for one in facts["usable_by"]:
        pieces = ", ".join(f"{stage['train']['pieces']} of {size}" for size, stage in one["stages"].items())
        print(f"  {one['backbone']}: {'pieces ' + pieces if pieces else one['refusal']}")
    print(
        f"  an hour of sound took {cost['cpu_s_per_hour_of_sound']:.1f} s of CPU time; a process at most "
        f"{cost['peak_bytes_of_a_process'] / 2**20:.0f} MiB"
    )
    able = [one["backbone"] for one in facts["usable_by"] if not one["refusal"]]
    if able:
        print(f"train on it: make exp-{able[0]}-stage1 DATA={root.name}  (or {', '.join(able[1:]) or 'no other'})")
    print(f"card: {root / CARD_PAGE}")


if __name__ == "__main__":
    sys.exit(main())
