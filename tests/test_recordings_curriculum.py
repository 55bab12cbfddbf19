"""Curriculum sets of recordings: whole exchanges, states carried on, and batches that the backbones train on."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recording_sources import RATE, SETTINGS, monologue, spoken, write_told

from backbones.llama_omni import LlamaOmni
from experiments.data.framing import frame_conversation
from experiments.data.packing import pack, pack_transcript
from experiments.recipes import RECIPES
from experiments.recordings.carried_batches import CarriedOrder, carried_batches
from experiments.recordings.curriculum import PieceSet, pieces_of
from experiments.recordings.dataset import RecordedConversations
from experiments.recordings.preparation import prepare_recordings
from experiments.spoken.frame_batches import FrameLoader, StreamLayout
from experiments.spoken.llama_omni.loader import LlamaOmniLoader

MINI_BATCH = 16
NO_TEXT = 399


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedConversations:
    """Two conversations with words, one of them long, and one without."""
    source = tmp_path_factory.mktemp("source")
    voices = spoken(tmp_path_factory.mktemp("voices"))
    for name, rounds in (("long", 4), ("short", 1)):
        write_told(source, name, voices, rounds)
    soundfile.write(source / "wordless.flac", monologue(voices["f"], rounds=2), RATE)
    settings = replace(SETTINGS, validation_share=0.3)
    root = prepare_recordings(source, "a", tmp_path_factory.mktemp("cache"), settings, processes=1, progress=False)
    return RecordedConversations(root)


def positions_when_laid_out(pieces: PieceSet, index: int) -> int:
    """By the code that makes batches, not by the one that counts."""
    piece = pieces[index]
    if pieces.spec.layout == "frames":
        return len(frame_conversation(piece, pieces, NO_TEXT))  # type: ignore[arg-type]
    if pieces.spec.layout == "heard":
        packed = pack(piece, pieces, mini_batch_size=MINI_BATCH)  # type: ignore[arg-type]
    else:
        packed = pack_transcript(piece, pieces, mini_batch_size=MINI_BATCH)  # type: ignore[arg-type]
    assert packed.exchanges_left_out == 0
    assert packed.length % MINI_BATCH == 0
    return packed.length - packed.pad_count


@pytest.mark.parametrize(("layout", "positions"), [("heard", 200), ("frames", 250), ("read", 129)])
def test_pieces_hold_every_exchange_once_and_are_as_long_as_they_say(
    recorded: RecordedConversations, layout: str, positions: int
) -> None:
    pieces = pieces_of(recorded, positions, layout, MINI_BATCH)  # type: ignore[arg-type]
    limit = positions // MINI_BATCH * MINI_BATCH
    assert len(pieces) > len(recorded) - 1
    for index in range(len(pieces)):
        assert pieces.positions(index) == positions_when_laid_out(pieces, index) <= limit
    laid = [turn.utterance_id for piece in pieces for turn in piece.turns]
    left_out = {one.conversation for one in pieces.left_out}
    expected = [turn.utterance_id for whole in recorded if whole.name not in left_out for turn in whole.turns]
    assert laid == expected
    assert left_out == (set() if layout == "frames" else {"wordless.flac#0"})


def test_a_piece_goes_on_where_the_one_before_ended(recorded: RecordedConversations) -> None:
    pieces = pieces_of(recorded, 96, "heard", MINI_BATCH)
    chains = pieces.chains("train") + pieces.chains("validation")
    (chain,) = [chain for chain in chains if pieces[chain[0]].name.startswith("long")]
    assert len(chain) > 2
    assert [pieces[index].continues for index in chain] == [False] + [True] * (len(chain) - 1)
    (whole,) = [one for one in recorded if one.name.startswith("long")]
    assert sum(pieces[index].duration_s for index in chain) == pytest.approx(whole.duration_s - whole.turns[0].start_s)
    bos = pieces.tokenizer.bos_id
    packed = [pack(pieces[index], pieces, mini_batch_size=MINI_BATCH) for index in chain]  # type: ignore[arg-type]
    assert [bos in one.input_ids.tolist() for one in packed] == [True] + [False] * (len(chain) - 1)


def test_an_exchange_that_does_not_fit_is_named_not_cut(recorded: RecordedConversations) -> None:
    sizes = range(80, 24, -8)
    size, pieces = next((size, found) for size in sizes if (found := pieces_of(recorded, size, "frames", 8)).left_out)
    assert all(f"more than {size} positions" in one.reason for one in pieces.left_out)
    kept = sum(len(piece.turns) // 2 for piece in pieces)
    assert kept + sum(one.exchanges for one in pieces.left_out) == sum(len(whole.turns) // 2 for whole in recorded)
    with pytest.raises(ValueError, match="nothing for layout 'frames' at 16 positions"):
        pieces_of(recorded, 16, "frames", MINI_BATCH)


def test_rows_read_conversations_to_their_end_and_any_step_can_be_resumed(recorded: RecordedConversations) -> None:
    pieces = pieces_of(recorded, 160, "frames", MINI_BATCH)
    order = CarriedOrder(pieces, rows=2, seed=5)
    steps = [order.step(number) for number in range(12)]
    for before, after in itertools.pairwise(steps):
        for row in range(2):
            if not after.begins[row]:
                assert after.indices[row] == before.indices[row] + 1
                assert pieces[after.indices[row]].continues
            else:
                assert not pieces[after.indices[row]].continues
    resumed = CarriedOrder(pieces, rows=2, seed=5).step(11)
    assert resumed.indices == steps[11].indices
    assert {index for step in steps for index in step.indices} == set(pieces.split_indices("train"))


def test_llama_omni_learns_from_carried_batches(recorded: RecordedConversations) -> None:
    config = RECIPES["llama-omni-stage1"].configure(scale="smoke", seed=0)
    model = LlamaOmni.tiny(
        vocab_size=recorded.tokenizer.vocab_size,
        unit_vocab_size=recorded.codebook.size,
        speech_encoder_mel_bins=SETTINGS.n_mels,
    )
    loader = LlamaOmniLoader(model, config)  # type: ignore[arg-type]
    pieces = pieces_of(recorded, 192, "heard", MINI_BATCH, model.speech_positions)
    step = next(carried_batches(loader, pieces, rows=2, first_step=1))
    batch = step.batch
    spliced = model.splice(batch.input_ids, batch.speech, batch.labels, attention_mask=batch.attention_mask)
    hidden, _ = model.read(spliced.inputs_embeds, spliced.attention_mask)
    logits = model.llm.lm_head(hidden)[:, :-1]
    labels = spliced.labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    assert torch.isfinite(loss) and int((labels != -100).sum()) > 0
    assert model.llm.get_input_embeddings().weight.grad.abs().sum() > 0
    assert batch.lengths.tolist() == [pieces.positions(index) for index in CarriedOrder(pieces, 2, 0).step(1).indices]


def test_frames_hold_the_units_of_both_without_any_words(recorded: RecordedConversations) -> None:
    layout = StreamLayout(no_text_id=NO_TEXT, nothing_id=-1, said_codebooks=4, heard_codebooks=4)
    loader = FrameLoader(layout, speech_turns=1)
    pieces = pieces_of(recorded, 512, "frames", MINI_BATCH)
    (index,) = [i for i in range(len(pieces)) if pieces[i].name.startswith("wordless")]
    batch = loader.batch(pieces, [index])  # type: ignore[arg-type]
    said = [turn for turn in pieces[index].turns if turn.speaker == "assistant"]
    units = pieces.pool.frame_units(said[-1].utterance_id)
    spoken_frames = (len(units) + 3) // 4
    frames = batch.codes[0, 1:5, -spoken_frames:].T.flatten()[: len(units)]
    assert frames.tolist() == units.tolist()
    assert set(batch.codes[0, 0].tolist()) == {NO_TEXT, pieces.tokenizer.eos_id}


def test_a_set_travels_to_worker_processes(recorded: RecordedConversations) -> None:
    pool = pickle.loads(pickle.dumps(recorded.pool))
    first = next(iter(pool))
    np.testing.assert_array_equal(pool.mel(first).numpy(), recorded.pool.mel(first).numpy())


def test_codes_are_refused_where_none_were_made(recorded: RecordedConversations) -> None:
    with pytest.raises(ValueError, match="prepared without a Mimi"):
        recorded.pool.codes(next(iter(recorded.pool)))


def test_codes_of_a_mimi_are_kept_turn_by_turn(tmp_path: Path) -> None:
    pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")
    from mimi_checkpoints import CODEBOOKS, write_mimi_checkpoints

    from backbones.speech.mimi import MimiTokenizer
    from experiments.recordings.carried_batches import RecordedCodes

    folder = write_mimi_checkpoints(tmp_path).transformers
    voices = spoken(tmp_path)
    (tmp_path / "source").mkdir()
    soundfile.write(tmp_path / "source" / "a.flac", monologue(voices["m"]), RATE)
    root = prepare_recordings(
        tmp_path / "source", "a", tmp_path, SETTINGS, mimi=folder, codebooks=CODEBOOKS, processes=1, progress=False
    )
    pieces = pieces_of(RecordedConversations(root), 512, "frames", MINI_BATCH)
    codes = RecordedCodes(pieces)
    mimi = MimiTokenizer.from_folder(folder, CODEBOOKS)
    turn = next(turn for turn in pieces[0].turns if turn.utterance_id != "listening")
    frames = codes.of(turn.utterance_id)
    assert frames.shape == (-(-round((turn.end_s - turn.start_s) * RATE) * 24 // 16 // mimi.frame_samples), CODEBOOKS)
    framed = frame_conversation(pieces[0], pieces, NO_TEXT, codes)  # type: ignore[arg-type]
    assert framed.own.shape[1] == CODEBOOKS
