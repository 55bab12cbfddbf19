"""FINDINGS.md and the findings in README.md: written from evidence, checked against it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.eligibility import DigestsAt
from analysis.evidence import Evidence, EvidenceRow, faults_in, faults_of_commits, read_evidence
from analysis.ledger import CLAIMS_FILE, RATED_COMMANDS, Claim, ClaimTest, Ledger, load_ledger
from analysis.runs import PRETRAINED, SCALES
from analysis.verdicts import Outcome, Verdict, outcome_of, verdicts_of

FINDINGS_FILE = "FINDINGS.md"
EVIDENCE_FOLDER = "evidence"
README_START, README_END = "<!-- findings -->", "<!-- /findings -->"
RUN_ID_CHARACTERS, COMMIT_CHARACTERS = 8, 12
GIGABYTE = 1e9
FIRST_SCALE = SCALES[1]
"""What an untested claim is best tried at first: the cheapest scale that counts."""

INTRODUCTION = f"""# Findings

Written by `make findings` from [{CLAIMS_FILE}]({CLAIMS_FILE}) and `{EVIDENCE_FOLDER}/*.csv`; edits are overwritten, and
`make verify-findings` fails on them. Every claim stood in that file, word for word, at the commit of the runs that
judge it. Intervals are 95 %. A verdict belongs to its scale: `cpu` (toys on two cores, and arithmetic at published
dimensions), `gpu` (trained from scratch on one GPU), `full` (published dimensions), `pretrained` (those with published
weights). None stands for another; the scale that a claim asks for is shown beside. How verdicts follow:
[analysis](analysis/README.md).
"""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things lie in the repository at `root`."""

    root: Path

    @property
    def claims(self) -> Path:
        return self.root / CLAIMS_FILE

    @property
    def evidence(self) -> Path:
        return self.root / EVIDENCE_FOLDER

    @property
    def findings(self) -> Path:
        return self.root / FINDINGS_FILE

    @property
    def readme(self) -> Path:
        return self.root / "README.md"


def verdicts(ledger: Ledger, evidence: Evidence) -> dict[str, list[Verdict]]:
    """{claim id: verdicts, the largest scale's first}."""
    return {claim.id: verdicts_of(claim, evidence.intervals(claim.id)) for claim in ledger.claims}


def render_findings(ledger: Ledger, evidence: Evidence) -> str:
    """The whole of FINDINGS.md."""
    found = verdicts(ledger, evidence)
    head = [["claim", "verdict", "scale obtained / asked", "the number that the first test reads", "run it"]]
    head += [_table_row(ledger, claim, found[claim.id], evidence) for claim in ledger.claims]
    parts = [INTRODUCTION, _markdown_table(head)]
    parts += [_section(ledger, claim, found[claim.id], evidence) for claim in ledger.claims]
    parts.append(_left_out_section(evidence))
    sums = ", ".join(f"`{name}` {checksum}" for name, checksum in evidence.checksums().items())
    parts.append(f"Checksums of the evidence this page was written from (SHA-256): {sums}.\n")
    return "\n".join(part for part in parts if part)


def render_short(ledger: Ledger, evidence: Evidence) -> str:
    """For README.md: how many claims came out how, the table of those with a verdict, and how many have none yet."""
    found = verdicts(ledger, evidence)
    tested = [claim for claim in ledger.claims if found[claim.id][0].scale]
    lines = []
    if tested:
        lines.append(_tally(ledger, [found[claim.id][0] for claim in tested]))
        rows = [["claim", "verdict", "scale / asked", "measured"]]
        rows += [
            [
                f"[{claim.id}]({FINDINGS_FILE}#{claim.id.lower()}) {claim.statement}", found[claim.id][0].text,
                _scales(found[claim.id][0], claim), _first_number(claim, found[claim.id][0], evidence),
            ]
            for claim in tested
        ]  # fmt: skip
        lines.append(_markdown_table(rows))
    waiting = len(ledger.claims) - len(tested)
    if waiting:
        lines.append(
            f"{waiting} of {len(ledger.claims)} claims have no run that counts yet: [{FINDINGS_FILE}]({FINDINGS_FILE}) "
            "names the commands.\n"
        )
    return "\n".join(lines)


def _tally(ledger: Ledger, tested: Sequence[Verdict]) -> str:
    """`Of 30 contested claims, at scale cpu: 4 confirmed, 9 refuted, 8 true in some regimes only, 3 undecided.`"""
    words = {Outcome.CONFIRMED: "confirmed", Outcome.REFUTED: "refuted", Outcome.UNDECIDED: "undecided"}
    sentences: list[str] = []
    for scale in dict.fromkeys(verdict.scale for verdict in tested):
        counts = Counter(
            "true in some regimes only" if verdict.holds_when and verdict.fails_when else words[verdict.outcome]
            for verdict in tested
            if verdict.scale == scale
        )
        sentences.append(f"at scale `{scale}` " + ", ".join(f"{count} {word}" for word, count in counts.most_common()))
    return f"Of {len(ledger.claims)} contested claims, {'; '.join(sentences)}.\n"


def with_findings(readme: str, short: str) -> str:
    """README.md's text with `short` between its two markers. Raises ValueError where they are not there once each."""
    if readme.count(README_START) != 1 or readme.count(README_END) != 1 or not re.search(
        f"{README_START}.*{README_END}", readme, re.DOTALL
    ):  # fmt: skip
        raise ValueError(
            f"README.md must hold {README_START} and, below it, {README_END}, once each: the findings go between them"
        )
    before, _, rest = readme.partition(README_START)
    return f"{before}{README_START}\n{short}{README_END}{rest.partition(README_END)[2]}"


def write_findings(places: Places, ledger: Ledger, evidence: Evidence) -> None:
    """FINDINGS.md, and the table in README.md. Raises ValueError where README.md has no place for it."""
    readme = with_findings(_readme(places), render_short(ledger, evidence))
    places.findings.write_text(render_findings(ledger, evidence), encoding="utf-8")
    places.readme.write_text(readme, encoding="utf-8")


def _readme(places: Places) -> str:
    if not places.readme.is_file():
        raise ValueError(f"there is no {places.readme.name} for the table of findings; it belongs to the repository")
    return places.readme.read_text(encoding="utf-8")


def differences(places: Places, digests_at: DigestsAt | None) -> list[str]:
    """What keeps FINDINGS.md and README.md from following from claims and evidence; empty if nothing does.

    digests_at: the claims at the commits of the runs; None where they cannot be looked up.
    """
    ledger, evidence = load_ledger(places.claims), read_evidence(places.evidence)
    faults = [f"{EVIDENCE_FOLDER}: {fault}" for fault in faults_in(evidence, ledger)]
    if digests_at is not None:
        faults += [f"{EVIDENCE_FOLDER}: {fault}" for fault in faults_of_commits(evidence, digests_at)]
    if not places.findings.is_file():
        return [*faults, f"there is no {FINDINGS_FILE}; write it with: make findings"]
    written, follows = places.findings.read_text(encoding="utf-8"), render_findings(ledger, evidence)
    faults += _line_differences(FINDINGS_FILE, written, follows)
    readme = _readme(places)
    return faults + _line_differences("README.md", readme, with_findings(readme, render_short(ledger, evidence)))


def _line_differences(name: str, written: str, follows: str) -> list[str]:
    """The first line in which a file is not what follows from the evidence."""
    if written == follows:
        return []
    ours, theirs = written.splitlines(), follows.splitlines()
    pairs = zip([*ours, *[""] * len(theirs)], [*theirs, *[""] * len(ours)], strict=False)
    number, (one, other) = next(((n, pair) for n, pair in enumerate(pairs, 1) if pair[0] != pair[1]), (0, ("", "")))
    return [f"{name}:{number} says\n    {one}\n  and from the evidence follows\n    {other}"]


def _table_row(ledger: Ledger, claim: Claim, found: Sequence[Verdict], evidence: Evidence) -> list[str]:
    smaller = [f"{verdict.scale}: {verdict.text}" for verdict in found[1:]]
    verdict = "; ".join([f"**{found[0].text}**", *smaller])
    command = _command(ledger, claim.tests[0].recipe, found[0].scale or FIRST_SCALE)
    named = f"[{claim.id}](#{claim.id.lower()}) {claim.statement}"
    return [named, verdict, _scales(found[0], claim), _first_number(claim, found[0], evidence), command]


def _section(ledger: Ledger, claim: Claim, found: Sequence[Verdict], evidence: Evidence) -> str:
    lines = [f'## <a id="{claim.id.lower()}"></a>{claim.id}: {claim.statement}\n']
    lines.append(f"Contested: {claim.contested}. Entry `{claim.digest}`, asked for at scale `{claim.scale}`.\n")
    for verdict in found:
        where = f" (scale `{verdict.scale}`)" if verdict.scale else ""
        fails = f" It fails when {'; and when '.join(verdict.fails_when)}." if verdict.holds_when else ""
        lines.append(f"**{verdict.text[0].upper()}{verdict.text[1:]}**{where}.{fails if verdict.fails_when else ''}\n")
    rows = [["when", "test", "reads", "confirmed where", "because", "found", "outcome", "runs"]]
    scales: list[str] = list(dict.fromkeys(verdict.scale for verdict in found))
    by_key = {row.key: row for row in evidence.tests}
    for test in claim.tests:
        for scale in scales:
            rows.append(_test_cells(test, scale, by_key.get((claim.id, test.name, scale)), evidence))
    lines.append(_markdown_table(rows))
    scale = found[0].scale or FIRST_SCALE
    lines.append("Run: " + ", ".join(_command(ledger, recipe, scale) for recipe in claim.recipes) + "\n")
    return "\n".join(lines)


def _test_cells(test: ClaimTest, scale: str, row: EvidenceRow | None, evidence: Evidence) -> list[str]:
    outcome = outcome_of(test, None if row is None else row.interval)
    needs = f", needs {test.needs}" if outcome == Outcome.UNTESTED and test.needs else ""
    runs = "-"
    if row is not None:
        runs = f"{row.run_id[:RUN_ID_CHARACTERS]} at {row.commit[:COMMIT_CHARACTERS]}"
        of_seeds = [seed for seed in evidence.seeds if seed.key == row.key]
        if of_seeds:
            seeds = ", ".join(f"{each.seed}: {number(each.value, test.unit)}" for each in of_seeds)
            runs += f"; by seed {seeds}"
    found = "-" if row is None else f"{with_interval(row)}{f' ({scale})' if scale else ''}"
    reads = f"`{test.recipe}`: {test.what}"
    return [test.when, test.name, reads, rule(test), test.why, found, f"{outcome}{needs}", runs]


def rule(test: ClaimTest) -> str:
    """`above 0.05 nats`, `3,000 ± 0.5 positions`."""
    margin = f"{number(test.margin, test.unit)} {_unit(test.unit)}".rstrip()
    return f"{test.confirmed} {margin}" if test.target is None else f"{number(test.target, test.unit)} ± {margin}"


def number(value: float, unit: str) -> str:
    """Bytes from a million on in GB; shares in per cent; whole numbers as such; four digits else."""
    if unit == "share":
        return f"{100 * value:.3g} %"
    if unit == "bytes":
        if abs(value) >= GIGABYTE / 1000:
            return f"{value / GIGABYTE:.3f} GB"
        return f"{value:,.0f} B" if value == round(value) else f"{value:,.4g} B"
    if value == round(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) < 10000 else f"{value:,.0f}"


def _unit(unit: str) -> str:
    """Empty where the number says it itself."""
    return "" if unit in ("bytes", "share") else unit


def with_interval(row: EvidenceRow) -> str:
    """`0.21 [0.05, 0.37] nats, 6 seeds`."""
    ends = "" if row.low == row.high else f" [{number(row.low, row.unit)}, {number(row.high, row.unit)}]"
    seeds = f", {row.seeds} seeds" if row.seeds > 1 else ""
    return f"{number(row.value, row.unit)}{ends} {_unit(row.unit)}".strip() + seeds


def _first_number(claim: Claim, verdict: Verdict, evidence: Evidence) -> str:
    """What the first test that was measured at the verdict's scale found."""
    by_key: Mapping[tuple[str, str, str], EvidenceRow] = {row.key: row for row in evidence.tests}
    for test in claim.tests:
        row = by_key.get((claim.id, test.name, verdict.scale))
        if row is not None:
            return f"{test.name}: {with_interval(row)} ({rule(test)}?)"
    return "-"


def _scales(verdict: Verdict, claim: Claim) -> str:
    return f"{verdict.scale or '-'} / {claim.scale}"


def _command(ledger: Ledger, recipe: str, scale: str) -> str:
    """What runs a recipe at a scale, or that it is not written yet."""
    if recipe in ledger.planned_recipes:
        return f"`{recipe}` (not written yet)"
    if recipe in ledger.rated_recipes:
        return ", then ".join(f"`{each}`" for each in RATED_COMMANDS)
    how = "full WEIGHTS=path" if scale == PRETRAINED else scale
    return f"`make exp-{recipe} SCALE={how}`"


def _left_out_section(evidence: Evidence) -> str:
    if not evidence.left_out:
        return ""
    rows = [["run", "recipe", "scale", "does not count for", "because"]]
    rows += [
        [f"{row.run_id[:RUN_ID_CHARACTERS]} at {row.commit[:COMMIT_CHARACTERS]}", f"`{row.recipe}`", row.scale,
         row.claims, row.reason]
        for row in evidence.left_out
    ]  # fmt: skip
    return f"## Runs that do not count\n\n{_markdown_table(rows)}"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]]) + "\n"
