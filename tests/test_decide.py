"""The decision guide: it says what was measured, at which scale, and invents nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from analysis.__main__ import main
from analysis.cards import Card, read_cards
from analysis.cards.adapters import adapter_of
from analysis.decide.answers import Answer, answers, what_follows
from analysis.decide.command import add_command, decision
from analysis.decide.evidence import Measurement, about, read_evidence
from analysis.decide.needs import Needs, Risk, add_flags, needs_from

FLAGS = ["--real-time", "yes", "--latency-ms", "500", "--speech-to-speech", "yes", "--risk", "low"]


@pytest.fixture(scope="module")
def cards() -> dict[str, Card]:
    return {card.name: card for card in read_cards()}


def needs(risk: Risk = "low", **changed: object) -> Needs:
    values = {"real_time": True, "latency_ms": 500.0, "speech_to_speech": True, "risk": risk, **changed}
    return Needs(**values)  # type: ignore[arg-type]


def measured(
    metric: str, value: float, half: float = 0.0, scale: str = "full", recipe: str = "moshi-stage1"
) -> Measurement:
    return Measurement(
        claim="C15", recipe=recipe, scale=scale, metric=metric, value=value, low=value - half, high=value + half,
    )  # fmt: skip


def asked(card: Card, wanted: Needs, *rows: Measurement) -> dict[str, Answer]:
    found = answers(card, adapter_of(card), rows, wanted)
    return dict(zip(("real time", "latency", "speech", "risk"), found, strict=True))


def test_without_evidence_nothing_is_measured_and_nothing_is_invented(cards: dict[str, Card]) -> None:
    found = asked(cards["moshi"], needs())
    assert found["real time"].standing == found["latency"].standing == found["risk"].standing == "unknown"
    assert found["real time"].reason == "not measured" and "real_time_factor" in found["real time"].unknown[-1]
    assert found["speech"].standing == "meets"
    assert what_follows(tuple(found.values()), needs()).startswith("open")


@pytest.mark.parametrize(
    ("value", "half", "standing"), [(0.5, 0.2, "meets"), (1.5, 0.2, "fails"), (1.0, 0.2, "unknown")]
)
def test_the_whole_interval_decides_whether_it_keeps_up(
    cards: dict[str, Card], value: float, half: float, standing: str
) -> None:
    row = measured("speed/real_time_factor", value, half)
    assert asked(cards["moshi"], needs(), row)["real time"].standing == standing


@pytest.mark.parametrize(("value", "standing"), [(300, "meets"), (700, "fails")])
def test_measured_latency_wins_over_the_published_one(cards: dict[str, Card], value: float, standing: str) -> None:
    row = measured("speech/first_audio_ms", value)
    for risk in ("low", "medium", "high"):
        assert asked(cards["moshi"], needs(risk), row)["latency"].standing == standing


def test_a_smaller_scale_decides_only_where_risk_is_high(cards: dict[str, Card]) -> None:
    row = measured("speed/real_time_factor", 0.3, scale="cpu")
    for risk, standing in (("low", "unknown"), ("medium", "unknown"), ("high", "meets")):
        answer = asked(cards["moshi"], needs(risk), row)["real time"]
        assert answer.standing == standing
        assert any("at scale cpu" in line for line in answer.known)
        assert "measured here at scale full" in answer.unknown[-1]


def test_the_largest_scale_decides_where_several_may(cards: dict[str, Card]) -> None:
    rows = (measured("speed/real_time_factor", 2.0), measured("speed/real_time_factor", 0.3, scale="cpu"))
    assert asked(cards["moshi"], needs("high"), *rows)["real time"].standing == "fails"


def test_what_the_authors_published_decides_from_medium_risk_on(cards: dict[str, Card]) -> None:
    for risk, standing in (("low", "unknown"), ("medium", "meets"), ("high", "meets")):
        assert asked(cards["moshi"], needs(risk), *())["latency"].standing == standing
    assert asked(cards["moshi"], needs("medium", latency_ms=100.0))["latency"].standing == "fails"


def test_a_model_that_says_no_speech_is_ruled_out_unless_that_is_not_needed(cards: dict[str, Card]) -> None:
    model, wanted = cards["qwen2-audio"], needs("high")
    found = answers(model, None, (), wanted)
    assert what_follows(found, wanted).startswith("ruled out by")
    assert "does not say speech" in what_follows(found, wanted)
    assert asked(model, needs("high", speech_to_speech=False))["speech"].standing == "not needed"
    assert asked(model, needs("high", real_time=False))["real time"].standing == "not needed"


def test_a_plan_is_no_model(cards: dict[str, Card]) -> None:
    answer = asked(cards["qwen-mimi"], needs("low"))["speech"]
    assert answer.standing == "unknown" and "planned" in answer.reason


def test_high_risk_says_what_the_choice_rests_on(cards: dict[str, Card]) -> None:
    wanted = needs("high")
    follows = what_follows(answers(cards["mini-omni"], None, (), wanted), wanted)
    assert follows.startswith("not ruled out") and "real time" in follows and "500 ms" in follows


def test_nothing_speaks_against_a_model_that_was_measured_through(cards: dict[str, Card]) -> None:
    rows = (measured("speed/real_time_factor", 0.5), measured("speech/first_audio_ms", 300))
    found = tuple(asked(cards["moshi"], needs(), *rows).values())
    assert what_follows(found, needs()) == "nothing that was asked speaks against it"


def test_commands_are_recipes_that_exist_and_metrics_that_are_logged(cards: dict[str, Card], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "moshi_stage1.py").write_text("")
    (tmp_path / "timing.py").write_text('NAME = "speech/first_audio_ms"\n')
    moshi = cards["moshi"]
    found = answers(moshi, adapter_of(moshi), (), needs(), tmp_path)
    assert found[3].measure == ("make exp-moshi-stage1 SCALE=full",)
    assert "timing.py" in found[1].measure[0] and found[0].measure[0].startswith("nothing under experiments/")
    assert answers(cards["vita"], None, (), needs(), tmp_path)[3].measure[0].startswith("nothing yet")


def test_every_recipe_that_a_card_names_exists(cards: dict[str, Card]) -> None:
    recipes = Path(__file__).parents[1] / "experiments" / "recipes"
    for card in cards.values():
        assert all((recipes / f"{name.replace('-', '_')}.py").is_file() for name in card.recipes), card.name


HEAD = "claim,test,scale,recipe,source,metric,arm,against,minus,unit,value,low,high,confirmed,margin,seeds,run_id"


def written(folder: Path, *lines: str, head: str = HEAD) -> Path:
    path = folder / "tests.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def test_evidence_is_read_and_given_to_the_models_it_is_about(cards: dict[str, Card], tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "C04,ring,cpu,memory,experiment,moshi-ring-48k/bytes_fixed,,,,GB,25.8,25.8,25.8,above,30,1,r1",
        "C23,late,cpu,llama-omni-stage1,arms,loss,ttt-mlp,full-attention,,nats,-0.5,-0.7,-0.3,below,0,3,r2",
        "C08,qwen,cpu,memory,arms,bytes,qwen-7b-ring,,,GB,1,1,1,below,0,1,r3",
    )
    rows = read_evidence(path)
    assert about(cards["moshi"], rows) == (rows[0],)
    assert about(cards["llama-omni"], rows) == (rows[1],)
    assert about(cards["qwen-mimi"], rows) == (rows[2],)
    text = decision(needs(), rows)
    assert "C04: moshi-ring-48k/bytes_fixed = 25.8 GB (memory at scale cpu, run r1)" in text
    assert "loss of ttt-mlp minus full-attention = -0.5 [-0.7, -0.3] nats" in text
    assert "3 measurements, 3 at scale cpu" in text


def test_the_largest_scale_is_listed_first(cards: dict[str, Card]) -> None:
    rows = tuple(measured("loss", 1.0, scale=scale) for scale in ("cpu", "full", "smoke"))
    assert [row.scale for row in about(cards["moshi"], rows)] == ["full", "cpu", "smoke"]


def test_a_difference_between_arms_is_no_latency(cards: dict[str, Card], tmp_path: Path) -> None:
    line = "C15,late,full,moshi-stage1,arms,speech/first_audio_ms,ttt-mlp,window,,ms,5,4,6,below,0,3,r1"
    (row,) = read_evidence(written(tmp_path, line))
    assert asked(cards["moshi"], needs(), row)["latency"].standing == "unknown"


def test_no_file_is_no_evidence(tmp_path: Path) -> None:
    assert read_evidence(tmp_path / "tests.csv") == ()
    assert "nothing has been measured yet" in decision(needs(), ())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("C04,ring,huge,memory,arms,bytes,,,,GB,1,1,1,above,30,1,r1", "scale 'huge'"),
        ("C04,ring,cpu,memory,arms,bytes,,,,GB,many,1,1,above,30,1,r1", "value of bytes is no number"),
        ("C04,ring,cpu,memory,arms,bytes,,,,GB,1,,1,above,30,1,r1", "low of bytes is no number"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_evidence(written(tmp_path, line))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks the columns scale, metric"):
        read_evidence(written(tmp_path, "C04,memory,1", head="claim,recipe,value"))


def test_input_that_ends_is_an_error() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)

    def ask(prompt: str) -> str:
        raise EOFError

    with pytest.raises(ValueError, match="ended before --real-time"):
        needs_from(parser.parse_args([]), ask)


def test_without_a_terminal_the_missing_flags_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decide", "--risk", "low"]) == 2
    message = capsys.readouterr().err
    assert all(flag in message for flag in ("--real-time yes|no", "--latency-ms 500", "--speech-to-speech yes|no"))
    assert "--risk" not in message


@pytest.mark.parametrize(
    ("flag", "answer", "message"),
    [
        ("--real-time", "maybe", "expected yes or no, got 'maybe'"),
        ("--latency-ms", "0", "above 0"),
        ("--latency-ms", "nan", "above 0"),
        ("--risk", "none", "expected low, medium, high"),
    ],
)
def test_an_answer_that_cannot_be_read_is_refused(
    flag: str, answer: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = list(FLAGS)
    given[given.index(flag) + 1] = answer
    assert main(["decide", *given]) == 2
    assert flag in (error := capsys.readouterr().err) and message in error


def test_missing_answers_are_asked_for_until_they_can_be_read() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    typed = iter(["perhaps", "y", "500", "high"])
    prompts: list[str] = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return next(typed)

    found = needs_from(parser.parse_args(["--speech-to-speech", "no"]), ask)
    assert found == Needs(real_time=True, latency_ms=500.0, speech_to_speech=False, risk="high")
    assert len(prompts) == 4 and prompts[0] == prompts[1]


def test_the_command_prints_every_model_and_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    given = parser.parse_args(["decide", *FLAGS, "--evidence", str(tmp_path / "tests.csv")])
    assert given.command(given) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{card.title}\n" in printed for card in read_cards())
    assert printed.count("what follows:") == len(read_cards()) and "no ranking" in printed
