"""Long generation: what is computed of streams, by hand; speakers; resuming; and the recipe run once as a command."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from harness_fixtures import StopAfter, smoke_config
from logged_alike import check_logged_alike
from picture_checks import check_pictures
from recipe_commands import FinishedCommand, run_command

from backbones.tts import speech_on_disk
from experiments.data.dataset import ConversationSet
from experiments.data.synthetic import build_conversations
from experiments.harness.stopping import InterruptedRunError
from experiments.harness.study import SCALES
from experiments.long_generation.configuration import LongGenerationExperiment, SymbolWindows
from experiments.long_generation.measures import (
    MEASURES,
    alarm_within,
    cost_of,
    curves_along,
    judged,
    median_until_alarm,
)
from experiments.long_generation.quality import StreamQuality
from experiments.long_generation.real_speech import RealSpeech, sounding_by_minute
from experiments.long_generation.report import minutes
from experiments.long_generation.speaking import Piece, is_spoken, read_stream, speak_group
from experiments.quality.detector import Alarm, GibberishDetector
from experiments.quality.real_streams import every_turn
from experiments.quality.windows import SymbolBlock
from experiments.recipes import RECIPES
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.llama_omni.speaking import spread_units
from experiments.spoken.speaking import PAUSE_S, SaidPiece, Speaker, user_turns

BACKBONES = ("llama-omni", "moshi", "qwen-tts", "qwen-mimi")


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> ConversationSet:
    config = RECIPES["long-generation"].configure(scale="smoke", seed=0)
    assert isinstance(config, LongGenerationExperiment)
    spec = dataclasses.replace(config.heard_spec(config.models[0]), conversations=3)
    return build_conversations(spec, tmp_path_factory.mktemp("cache"), progress=False)


def speaker_of(backbone: str, heard: ConversationSet, mixer: str = "ttt-mlp") -> Speaker:
    config = smoke_config(f"{backbone}-stage1")
    record = spoken_backbone(backbone)
    return record.speaker(config, record.build_model(config, config.arm(mixer), None).eval(), heard)


def said(speaker: Speaker, seconds: float, indices: tuple[int, ...] = (0,), seed: int = 5) -> list[list[SaidPiece]]:
    """Pieces of every row."""
    return [list(row) for row in zip(*speaker.speak(indices, seed, seconds), strict=True)]


# Speakers


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_stream_is_as_long_as_asked_for_and_the_same_again(backbone: str, heard: ConversationSet) -> None:
    speaker = speaker_of(backbone, heard)
    [first], [again] = said(speaker, 8.0), said(speaker, 8.0)
    assert first[-1].end_s >= 8.0 > (first[-2].end_s if len(first) > 1 else 0.0)
    assert [piece.symbols.tolist() for piece in first] == [piece.symbols.tolist() for piece in again]
    [other] = said(speaker, 8.0, seed=6)
    assert [piece.symbols.tolist() for piece in first] != [piece.symbols.tolist() for piece in other]
    start_s = 0.0
    for piece in first:
        assert len(piece.samples) / piece.sample_rate_hz == pytest.approx(piece.end_s - start_s, abs=1e-3)
        assert ((piece.seconds >= start_s) & (piece.seconds < piece.end_s)).all()
        assert piece.compute_s > 0 and np.abs(piece.samples).max() < 2
        start_s = piece.end_s
    assert [piece.positions for piece in first] == sorted({piece.positions for piece in first})


@pytest.mark.parametrize("backbone", BACKBONES)
def test_ttt_over_windows_holds_the_same_bytes_however_long(backbone: str, heard: ConversationSet) -> None:
    ages = {}
    for mixer in ("ttt-mlp", "full-attention"):
        speaker, held = speaker_of(backbone, heard, mixer), []
        for _ in speaker.speak((0,), 1, 30.0):
            held.append(speaker.held_bytes())
        ages[mixer] = held
    # The windows of the smoke scale are full after 64 positions.
    assert ages["ttt-mlp"][-1] == ages["ttt-mlp"][len(ages["ttt-mlp"]) // 2]
    assert ages["full-attention"][-1] > ages["full-attention"][0]


@pytest.mark.parametrize("backbone", ["moshi", "qwen-mimi"])
def test_frames_are_said_in_rows(backbone: str, heard: ConversationSet) -> None:
    rows = said(speaker_of(backbone, heard), 10.0, indices=(0, 1))
    assert len(rows) == 2 and all(len(row) == 1 and row[0].end_s == 10.0 for row in rows)
    assert rows[0][0].symbols.tolist() != rows[1][0].symbols.tolist()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_real_speech_is_the_assistants_side(backbone: str, heard: ConversationSet) -> None:
    record = spoken_backbone(backbone)
    whole = record.real_speech(heard, 0, every_turn)
    none = record.real_speech(heard, 0, lambda turn: False)
    assert len(whole.symbols) and not len(none.symbols)
    assert (np.diff(whole.seconds) > 0).all() and whole.seconds[-1] < whole.end_s
    turns = [turn for turn in heard[0].turns if turn.speaker == "assistant"]
    if backbone == "qwen-tts":
        ids = [id_ for turn in turns for id_ in [*heard.tokenizer.encode(turn.text), heard.tokenizer.eos_id]]
        assert whole.symbols.tolist() == ids
    if backbone == "llama-omni":
        spoken_s = sum(turn.end_s - turn.start_s for turn in heard[0].turns)
        assert whole.end_s == pytest.approx(spoken_s + PAUSE_S * len(turns), rel=0.1)


def test_units_last_their_mean_and_none_is_lost(heard: ConversationSet) -> None:
    units = torch.arange(40) % 7
    spread = spread_units(heard, units)
    assert [int(unit) for unit, before in zip(spread, [-1, *spread], strict=False) if unit != before] == units.tolist()


def test_the_users_turns_go_on_in_a_circle(heard: ConversationSet) -> None:
    own = [turn.utterance_id for each in (1, 2, 0, 1) for turn in heard[each].turns if turn.speaker == "user"]
    turns = user_turns(heard, 1)
    assert [next(turns).utterance_id for _ in own] == own


# To disk


def test_a_stream_that_was_stopped_goes_on_and_is_the_uninterrupted_one(heard: ConversationSet, tmp_path: Path) -> None:
    speaker = speaker_of("qwen-tts", heard)
    never = StopAfter(0)
    speak_group(speaker, [0], [tmp_path / "whole"], 3, 25.0, never, "whole")
    with pytest.raises(InterruptedRunError, match="of 25 s"):
        speak_group(speaker, [0], [tmp_path / "halves"], 3, 25.0, StopAfter(2), "halves")
    before = speech_on_disk(tmp_path / "halves")
    assert 0 < before.duration_s < 25 and not is_spoken(tmp_path / "halves")
    assert soundfile.info(before.audio).duration == pytest.approx(before.duration_s)
    speak_group(speaker, [0], [tmp_path / "halves"], 3, 25.0, never, "halves")
    for name in ("speech.wav", "speech.vtt"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "halves" / name).read_bytes()
    stream = read_stream(tmp_path / "halves")
    assert stream.duration_s >= 25 and len(stream.symbols.symbols)
    with pytest.raises(ValueError, match="text is not the one"):
        speak_group(speaker, [1], [tmp_path / "halves"], 4, 25.0, never, "another")


# Numbers


def piece(end_s: float, **fields: object) -> Piece:
    given: dict = {
        "end_s": end_s, "duration_s": 10.0, "positions": round(end_s * 12.5), "compute_s": 2.0, "first_audio_ms": 100.0,
        "held_bytes": 1000, "resident_bytes": 5000,
    }  # fmt: skip
    return Piece(**given | fields)


def test_costs_by_hand() -> None:
    ends = [10.0 * n for n in range(1, 13)]
    flat = cost_of([piece(end) for end in ends])
    assert (flat.real_time_factor, flat.last_over_first_quarter) == (pytest.approx(0.2), pytest.approx(1.0))
    assert flat.held_bytes_per_minute == pytest.approx(0) and flat.positions_per_second == pytest.approx(12.5)
    warming = cost_of([piece(10.0, compute_s=50.0), *(piece(end) for end in ends[1:])])
    assert warming.real_time_factor == pytest.approx(0.2) and warming.last_over_first_quarter == pytest.approx(1.0)
    grows = cost_of([piece(end, held_bytes=round(100 * end), compute_s=end / 50) for end in ends])
    assert grows.held_bytes_per_minute == pytest.approx(6000) and grows.last_over_first_quarter > 3
    late = cost_of([piece(10.0, first_audio_ms=None), piece(20.0, first_audio_ms=50.0), piece(30.0)])
    assert late.first_audio_ms == 75
    silent = cost_of([piece(10.0, first_audio_ms=None)])
    assert math.isnan(silent.first_audio_ms) and "speed/first_audio_ms" not in silent.metrics()


def quality(duration_s: float, *onsets_s: float, surprise: tuple[float, ...] = (1.0,)) -> StreamQuality:
    seconds = np.linspace(0, duration_s, len(surprise) + 1)[1:]
    nothing = (seconds, np.full(len(seconds), np.nan))
    return StreamQuality(
        duration_s=duration_s,
        alarms=tuple(Alarm(onset_s=onset, raised_s=onset + 10, measure="entropy_nats") for onset in onsets_s),
        curves=dict.fromkeys(MEASURES, nothing) | {"cross_entropy_nats": (seconds, np.array(surprise))},
    )


def test_the_median_until_an_alarm_counts_streams_that_end_without_one() -> None:
    assert median_until_alarm([quality(600.0)] * 3) == math.inf
    assert median_until_alarm([quality(600.0, 100.0), quality(600.0, 200.0), quality(600.0, 300.0)]) == 200.0
    # Two of four by 200 s; of the others one ended at 150 s, so that it may have been the next.
    streams = [quality(600.0, 100.0), quality(600.0, 200.0), quality(150.0), quality(600.0)]
    assert median_until_alarm(streams) == 200.0
    assert median_until_alarm([quality(600.0, 100.0), quality(600.0), quality(600.0)]) == math.inf


def test_a_minute_more_silent_than_any_real_one_raises_an_alarm() -> None:
    seconds = np.arange(0, 300, 0.5)
    symbols = np.where((seconds >= 120) & (seconds < 240), 7, 1)
    stream = SymbolBlock(symbols=symbols, seconds=seconds, end_s=300.0)
    assert sounding_by_minute(stream, 7).tolist() == [120, 120, 0, 0, 120]
    assert sounding_by_minute(stream, None).tolist() == [120] * 5
    assert not len(sounding_by_minute(SymbolBlock(symbols=symbols[:9], seconds=seconds[:9], end_s=59.0), 7))
    real = RealSpeech(
        windows=SymbolWindows(window_s=5.0, ngram_order=1, remembered_symbols=0), model=None, silence=7,
        detector=GibberishDetector(
            window_s=5.0, windows_to_raise=2, threshold=1.0, false_alarms_per_hour=1.0, calibrated_hours=1.0, limits={}
        ),
        least_sounding=1, control_alarms=(), control_hours=1.0,
    )  # fmt: skip
    [alarm] = real.alarms([], stream)
    assert (alarm.onset_s, alarm.raised_s, alarm.measure) == (120.0, 180.0, "sounding_symbols_per_minute")
    assert not dataclasses.replace(real, least_sounding=0).alarms([], stream)


def test_only_streams_that_are_long_enough_are_asked_whether_they_last() -> None:
    share = alarm_within([quality(3600.0), quality(3600.0, 100.0), quality(600.0, 5.0), quality(7200.0, 4000.0)], 3600)
    assert (share.count, share.seeds) == (1, 3)
    assert alarm_within([quality(600.0)], 3600).seeds == 0


def test_what_changes_along_a_stream_is_late_minus_early() -> None:
    found = judged([quality(80.0, surprise=(1, 1, 2, 2, 3, 3, 4, 4)), quality(80.0, surprise=(1, 1, 1, 1, 1, 1, 1, 1))])
    change = found.late_minus_early["cross_entropy_nats"]
    assert change.mean == pytest.approx(1.5) and change.low < 0 < change.high
    assert math.isnan(found.late_minus_early["loudness_dbfs"].mean)
    assert found.late_minus_early["loudness_dbfs"].seeds == 0 and change.seeds == 2
    assert found.metrics()["late_minus_early/cross_entropy_nats"] == pytest.approx(1.5)
    assert "late_minus_early/loudness_dbfs" not in found.metrics()


def test_curves_are_means_over_streams_in_whole_buckets() -> None:
    config = RECIPES["long-generation"].configure(scale="smoke", seed=0)
    arm = dataclasses.replace(config.arms[0], stream_s=40.0, bucket_s=20.0)
    streams = [quality(45.0, 25.0, surprise=(1, 2, 3, 4, 5)), quality(45.0, surprise=(3, 4, 5, 6, 7))]
    along = curves_along(arm, [piece(10.0 * n) for n in range(1, 5)], streams)
    assert list(along) == [20, 40]
    assert along[20]["along/cross_entropy_nats"] == pytest.approx(2.5)  # windows that end at 9 and 18 s
    assert [along[end]["along/share_of_streams_after_first_alarm"] for end in (20, 40)] == [0.0, 0.5]
    assert along[40]["along/real_time_factor"] == pytest.approx(0.2)


def test_durations_in_words() -> None:
    assert [minutes(seconds) for seconds in (45, 600, 5340, 5400, 7200)] == ["45 s", "10 min", "89 min", "1.5 h", "2 h"]


# The recipe


@pytest.mark.parametrize("scale", SCALES)
def test_every_backbone_speaks_with_the_models_of_stage_1(scale: str) -> None:
    config = RECIPES["long-generation"].configure(scale=scale, seed=0)
    assert {arm.backbone for arm in config.arms} == set(BACKBONES)
    for arm in config.arms:
        stage_1 = RECIPES[f"{arm.backbone}-stage1"].configure(scale=scale, seed=0)
        assert config.of_arm(arm.name)["model"] == stage_1.of_arm(arm.mixer)
        heard = config.heard_spec(stage_1)
        assert heard.pool_digest() == stage_1.data.spec.pool_digest() and heard.seed != stage_1.data.spec.seed
    if scale != "smoke":
        assert config.starts_from("moshi-two-hours") == "moshi-ttt-mlp"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> FinishedCommand:
    """A model that stage 1 has trained before, and one that is trained on the way."""
    folder = tmp_path_factory.mktemp("long")
    before = run_command(folder, "qwen-tts-stage1", "--arm", "ttt-mlp")
    assert before.exit_code == 0, before.errors
    return run_command(folder, "long-generation", "--arm", "qwen-tts-ttt-mlp", "--arm", "moshi-ttt-mlp")


def test_models_of_stage_1_are_found_and_missing_ones_trained(smoke: FinishedCommand) -> None:
    assert smoke.exit_code == 0, smoke.errors
    assert "qwen-tts-ttt-mlp: speaks with the model that" in smoke.output
    assert "moshi-ttt-mlp: no finished moshi-stage1" in smoke.output
    stage_1 = json.loads(next(smoke.folder.glob("runs/qwen-tts-stage1/*/*/ttt-mlp/run.json")).read_text())
    assert smoke.logged("qwen-tts-ttt-mlp").tags["trained_run"] == stage_1["run_id"]
    assert (smoke.run_folder / "moshi-ttt-mlp" / "trained" / "checkpoints" / "last.ckpt").is_file()


def test_what_a_stream_takes_and_is_worth_is_logged(smoke: FinishedCommand) -> None:
    for arm in ("qwen-tts-ttt-mlp", "moshi-ttt-mlp"):
        metrics = smoke.logged(arm).metrics
        assert {
            "speed/real_time_factor", "speed/first_audio_ms", "memory/held_bytes_at_the_end", "stream/seconds",
            "quality/share_of_streams_with_alarm", "along/cross_entropy_nats", "along/held_bytes",
            "along/loudness_dbfs", "validation/text_loss_nats_per_token", "recall/all_distances",
            "loss_by_time_seconds/00000_00015",
        } <= metrics.keys()  # fmt: skip
        assert metrics["speed/real_time_factor"] > 0 and metrics["speed/first_audio_ms"] > 0
        first, second = (smoke.run_folder / arm / "streams" / name for name in ("00", "01"))
        assert soundfile.info(first / "speech.wav").duration >= 20 and not (second / "speech.wav").exists()
        assert soundfile.info(smoke.run_folder / arm / "last.wav").duration == pytest.approx(20, abs=0.1)
        assert (first / "speech.vtt").read_text().startswith("WEBVTT")
    judged_of_a_part = [name for name in smoke.parent().metrics if name.startswith("long_generation_")]
    assert not judged_of_a_part, "two of four arms stand for themselves alone"
    table = (smoke.run_folder / "table.txt").read_text()
    assert "moshi-ttt-mlp" in table and "real speech in the same symbols" in table
    with (smoke.run_folder / "arms.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"qwen-tts-ttt-mlp", "moshi-ttt-mlp"}
    for arm, row in rows.items():
        asked = ("speed/first_audio_ms", "loss_by_time_seconds/00000_00015", "memory/held_bytes_at_the_end")
        assert [float(row[name]) for name in asked] == [smoke.logged(arm).metrics[name] for name in asked]


def test_the_smoke_run_is_logged_as_all_are_and_pictured(smoke: FinishedCommand) -> None:
    check_logged_alike(smoke.uri, "long-generation")
    check_pictures(smoke.uri, "long-generation")


def test_finished_arms_and_streams_are_not_spoken_again(smoke: FinishedCommand) -> None:
    wav = smoke.run_folder / "moshi-ttt-mlp" / "streams" / "00" / "speech.wav"
    before = wav.stat().st_mtime_ns
    again = run_command(smoke.folder, "long-generation", "--resume", "--arm", "moshi-ttt-mlp")
    assert again.exit_code == 0, again.errors
    assert "finished before" in again.output and wav.stat().st_mtime_ns == before
