"""Pretrained judges on checkpoints written here in their published formats, and their arithmetic by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector
from whisper.model import ModelDimensions, Whisper

from backbones.tts import SAMPLE_RATE_HZ, SpeechWriter, SpokenSentence
from experiments.quality.judges import (
    judge_speech,
    load_speaker_model,
    load_whisper,
    main,
    word_error_rate,
)

SENTENCES = ["Yes, box tiger.", "The rain should be gone by tomorrow.", "Of course.", "I would stay at home."]


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """Sentences of four seconds each, a tone for each."""
    folder = tmp_path / "speech"
    with SpeechWriter(folder) as writer:
        for number, text in enumerate(SENTENCES):
            tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * number) * np.arange(4 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
            writer.append(SpokenSentence(text=text, samples=tone.astype(np.float32)))
        writer.finish()
    return folder


@pytest.fixture(scope="module")
def whisper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    dims = ModelDimensions(
        n_mels=80, n_audio_ctx=1500, n_audio_state=32, n_audio_head=2, n_audio_layer=1, n_vocab=51864, n_text_ctx=448,
        n_text_state=32, n_text_head=2, n_text_layer=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("whisper") / "tiny.en.pt"
    torch.save({"dims": vars(dims), "model_state_dict": Whisper(dims).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def speaker_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("speaker")
    config = WavLMConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(16, 16),
        conv_stride=(20, 16), conv_kernel=(40, 16), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        tdnn_dim=(16, 16), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=8,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_error_rates_by_hand() -> None:
    assert word_error_rate("Yes, box tiger.", "yes box TIGER") == 0
    assert word_error_rate("red green blue grey", "red green blew grey brown") == pytest.approx(0.5)
    assert math.isnan(word_error_rate("...", "anything"))


def test_windows_are_whole_sentences_with_their_own_sound(spoken: Path) -> None:
    heard: list[int] = []

    def transcribe(samples: np.ndarray) -> str:
        heard.append(len(samples))
        return " ".join(SENTENCES[:2]) if len(heard) == 1 else "of course not I would stay at home"

    found = list(judge_speech(spoken, transcribe, None, window_s=7.0))
    assert heard == [8 * 16_000, 8 * 16_000]
    assert [(each.start_s, each.end_s) for each in found] == [(0.0, 8.0), (8.0, 16.0)]
    assert [each.word_error_rate for each in found] == [0, pytest.approx(1 / 7)]
    assert all(math.isnan(each.speaker_similarity) for each in found)


def test_a_voice_is_compared_with_the_first_window(spoken: Path) -> None:
    voices = iter([np.array([1.0, 0.0]), np.array([0.6, 0.8])])
    found = list(judge_speech(spoken, None, lambda samples: next(voices), window_s=7.0))
    assert math.isnan(found[0].speaker_similarity) and found[1].speaker_similarity == pytest.approx(0.6)


def test_the_real_loaders_judge_speech_from_published_formats(
    spoken: Path, whisper_file: Path, speaker_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(spoken), "--whisper", str(whisper_file), "--speaker", str(speaker_folder)]) == 0
    said = capsys.readouterr().out
    assert "skipped" not in said
    [row] = csv.DictReader((spoken / "judged.csv").open(newline=""))
    assert row["speaker_similarity"] == "nan" and float(row["word_error_rate"]) > 0
    assert main([str(spoken), "--speaker", str(speaker_folder)]) == 0
    assert "word error rate: skipped: no weights" in capsys.readouterr().out


def test_what_cannot_be_judged_is_named(
    spoken: Path, tmp_path: Path, whisper_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(spoken)]) == 2 and "name at least one judge" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no Whisper checkpoint"):
        load_whisper(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(ValueError, match="no checkpoint of openai-whisper"):
        load_whisper(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="holds no x-vector model"):
        load_speaker_model(tmp_path)
    assert main([str(tmp_path), "--whisper", str(whisper_file)]) == 2
    assert "speech.vtt" in capsys.readouterr().err
    vtt = (spoken / "speech.vtt").read_text()
    (spoken / "speech.vtt").write_text(vtt.replace("00:00:16.000", "00:00:26.000"))
    with pytest.raises(ValueError, match="before its subtitles"):
        list(judge_speech(spoken, lambda samples: "", None, window_s=7.0))
