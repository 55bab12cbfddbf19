"""Speech in: windows, lengths, splicing, padding and losses of batches."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import whisper
from torch import Tensor, nn

from backbones.llama_omni import LlamaOmni, LlamaOmniConfig, SpeechFrames, SpokenTurn, collapse_frames
from backbones.llama_omni.ctc import summed_ctc
from backbones.llama_omni.speech_encoder import MEL_DYNAMIC_RANGE, MEL_OF_DIGITAL_SILENCE


@pytest.fixture(scope="module")
def model() -> LlamaOmni:
    # A wide initialisation makes logits differ by more than rounding.
    return LlamaOmni.tiny(seed=3, initializer_range=0.2).eval()


def mel_like(frames: int, seed: int) -> Tensor:
    return torch.randn(frames, 128, generator=torch.Generator().manual_seed(seed)) * 0.5


@pytest.mark.parametrize(
    ("mel_frames", "positions"), [(3000, 300), (10, 1), (9, 1), (8, 0), (0, 0), (2999, 300), (3010, 301), (6131, 613)]
)
def test_the_length_rule_holds_window_by_window(mel_frames: int, positions: int) -> None:
    with torch.device("meta"):
        published = LlamaOmni.tiny(speech_encoder_context=1500)
    by_hand = sum((((min(3000, mel_frames - start)) + 1) // 2) // 5 for start in range(0, mel_frames, 3000))
    assert published.speech_positions(mel_frames) == by_hand == positions


def test_long_audio_is_its_windows_encoded_apart_and_joined(model: LlamaOmni) -> None:
    window = model.config.mel_frames_per_window
    mel = mel_like(2 * window + 87, seed=1)
    # The same floor of silence in each piece as in the whole, so that only the cutting is compared.
    mel[[0, window, 2 * window], 0] = mel.max()
    pieces = [mel[:window], mel[window : 2 * window], mel[2 * window :]]
    whole = model.speech_features(mel[None])[0]
    apart = torch.cat([model.speech_features([piece])[0] for piece in pieces])
    assert whole.shape == (30 + 30 + 8, 64)
    assert torch.allclose(whole, apart, atol=1e-6)


def test_a_short_last_window_is_filled_with_what_whisper_makes_of_silence() -> None:
    samples = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.1
    padded = whisper.log_mel_spectrogram(whisper.pad_or_trim(samples), n_mels=128)
    unpadded = whisper.log_mel_spectrogram(samples, n_mels=128)
    ours = max(MEL_OF_DIGITAL_SILENCE, unpadded.max().item() - MEL_DYNAMIC_RANGE)
    assert padded[:, 110:].min() == padded[:, 110:].max() == pytest.approx(ours, abs=1e-3)
    silence = whisper.log_mel_spectrogram(np.zeros(16_000, dtype=np.float32), n_mels=128)
    assert silence.min() == silence.max() == MEL_OF_DIGITAL_SILENCE


def test_a_short_utterance_is_heard_as_if_silence_followed_it(model: LlamaOmni) -> None:
    mel = mel_like(57, 5)
    silence = torch.full((model.config.mel_frames_per_window - 57, 128), mel.max().item() - MEL_DYNAMIC_RANGE)
    assert mel.max() - MEL_DYNAMIC_RANGE > MEL_OF_DIGITAL_SILENCE
    followed = model.speech_features([torch.cat([mel, silence])])[0]
    alone = model.speech_features([mel])[0]
    assert alone.shape == (5, 64)
    assert torch.equal(alone, followed[:5])


def test_a_tenth_of_a_second_is_one_position_and_less_is_refused(model: LlamaOmni) -> None:
    assert model.speech_features([mel_like(10, 0)])[0].shape == (1, 64)
    with pytest.raises(ValueError, match=r"8 mel frames.*too short.*at least 9"):
        model.speech_features([mel_like(8, 0)])


def test_silence_and_twenty_minutes_are_heard(model: LlamaOmni) -> None:
    silence = model.speech_features([torch.full((50, 128), MEL_OF_DIGITAL_SILENCE)])[0]
    assert torch.isfinite(silence).all()
    features = model.speech_features([mel_like(120_000, 0)])[0]
    assert features.shape == (12_000, 64)
    assert torch.isfinite(features).all()


def test_mel_of_another_shape_or_with_nan_is_refused(model: LlamaOmni) -> None:
    with pytest.raises(ValueError, match=r"\(128, 40\); expected \(mel frames, 128\)"):
        model.speech_features([torch.zeros(128, 40)])
    with pytest.raises(ValueError, match="NaN"):
        model.speech_features([torch.full((40, 128), torch.nan)])


def test_the_encoder_is_whispers_own(model: LlamaOmni) -> None:
    plain = whisper.model.AudioEncoder(128, 150, 32, 2, 2)
    plain.load_state_dict(model.speech_encoder.state_dict())
    mel = mel_like(300, 2)
    assert torch.allclose(model.encode_speech([mel]).segments[0], plain(mel.T[None])[0], atol=1e-6)
    assert not any(isinstance(m, whisper.model.LayerNorm) for m in model.speech_encoder.modules())
    assert sum(isinstance(m, nn.LayerNorm) for m in model.speech_encoder.modules()) == 5


@torch.no_grad()
def test_a_batch_of_samples_with_different_segments_gives_each_samples_own_logits(model: LlamaOmni) -> None:
    ids = torch.tensor([[5, -200, 6, -200, 7], [8, 9, 10, 0, 0], [-200, 11, 12, 13, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
    mels = [mel_like(47, 1), mel_like(333, 2), mel_like(20, 3)]
    alone = [
        model(ids[:1], speech=mels[:2]).logits[0],
        model(ids[1:2, :3]).logits[0],
        model(ids[2:, :4], speech=mels[2:]).logits[0],
    ]
    assert [len(logits) for logits in alone] == [3 + 4 + 33, 3, 3 + 2]
    for side in ("right", "left"):
        batch = model(ids, speech=mels, attention_mask=mask, padding_side=side)
        assert torch.isfinite(batch.logits).all()
        for sample, logits in enumerate(alone):
            real = batch.logits[sample][batch.attention_mask[sample]]
            assert torch.allclose(real, logits, atol=2e-4), side


def test_labels_move_with_their_tokens_and_speech_has_none(model: LlamaOmni) -> None:
    ids = torch.tensor([[5, -200, 6, 7], [8, 9, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 6, 7], [-100, 9, -100, -100]])
    spliced = model.splice(ids, [mel_like(30, 1)], labels, attention_mask=mask)
    assert spliced.labels is not None
    assert spliced.labels.tolist() == [[-100] * 4 + [6, 7], [-100, 9] + [-100] * 4]
    assert spliced.attention_mask.sum(dim=1).tolist() == [6, 2]
    left = model.splice(ids, [mel_like(30, 1)], labels, attention_mask=mask, padding_side="left")
    assert left.labels is not None
    assert left.labels.tolist() == [[-100] * 4 + [6, 7], [-100] * 5 + [9]]
    assert left.first_positions == [0, 4]


@torch.no_grad()
def test_a_labelled_first_token_counts_on_neither_side_of_padding(model: LlamaOmni) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    right, left = (model(ids, labels=ids * mask, attention_mask=mask, padding_side=side) for side in ("right", "left"))
    assert right.token_positions.tolist() == [[0, 1], [0, 2], [0, 3], [1, 1]]
    assert left.token_positions.tolist() == [[0, 1], [0, 2], [0, 3], [1, 3]]
    assert torch.allclose(left.token_losses, right.token_losses, atol=1e-4)


@pytest.mark.parametrize("segments", [0, 1, 3])
def test_a_mismatch_of_speech_tokens_and_segments_is_refused(model: LlamaOmni, segments: int) -> None:
    with pytest.raises(ValueError, match=f"2 speech tokens.*but {segments} speech segments"):
        model(torch.tensor([[5, -200], [-200, 6]]), speech=[mel_like(30, s) for s in range(segments)])


@pytest.mark.parametrize("wrong", [320, -1, -201, 10**9])
def test_ids_and_labels_beyond_the_vocabulary_are_refused_where_they_count(model: LlamaOmni, wrong: int) -> None:
    ids = torch.tensor([[5, wrong, 7]])
    with pytest.raises(ValueError, match=rf"input_ids must lie in 0 to 319 .*{wrong}"):
        model(ids)
    with pytest.raises(ValueError, match=rf"labels must lie in 0 to 319 .*{wrong}"):
        model(torch.tensor([[5, 6, 7]]), labels=ids)
    padding = torch.tensor([[1, 0, 1]])
    assert torch.equal(model(ids, attention_mask=padding).logits, model(ids[:, ::2]).logits)


def test_ids_that_are_no_whole_numbers_or_no_sample_at_all_are_refused(model: LlamaOmni) -> None:
    with pytest.raises(ValueError, match=r"input_ids must be whole numbers, got torch.float32"):
        model(torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        model(torch.tensor([[1, 2]]), labels=torch.tensor([[1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"at least one sample, got \(0, 3\)"):
        model(torch.zeros(0, 3, dtype=torch.long))


def test_encoder_frames_that_make_no_whole_positions_are_refused(model: LlamaOmni) -> None:
    for shape in ((7, 32), (10, 31), (2, 5, 32)):
        with pytest.raises(ValueError, match="frames a multiple of 5"):
            model.speech_features(SpeechFrames((torch.zeros(shape),)))
    assert model.speech_features(SpeechFrames((torch.zeros(10, 32),)))[0].shape == (2, 64)


@pytest.mark.parametrize(
    "target_units, match",
    [
        ([[1, 2], [3]], "sample 0 is a list of int"),
        ([torch.tensor([1]), [SpokenTurn(2, 5, torch.tensor([1]))]], "sample 0 is a Tensor"),
        ([SpokenTurn(2, 5, torch.tensor([1]))] * 2, "sample 0 is a SpokenTurn"),
        (torch.tensor([1, 2]), r"must be \(batch, units\), got \(2,\)"),
        (torch.ones(2, 2), "units as whole numbers, got torch.float32"),
    ],
)
def test_target_units_of_another_form_are_refused(model: LlamaOmni, target_units: object, match: str) -> None:
    ids, mask, labels, speech = spoken_batch(model)
    with pytest.raises(ValueError, match=match):
        model(ids, speech=speech, labels=labels, target_units=target_units, attention_mask=mask)


def spoken_batch(model: LlamaOmni) -> tuple[Tensor, Tensor, Tensor, SpeechFrames]:
    ids = torch.tensor([[5, -200, 6, 7, 8, 9, -200, 10, 11, 12], [13, 14, 15, 16, 17, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[1] * 10, [1] * 5 + [0] * 5])
    labels = torch.full_like(ids, -100)
    labels[0, 3:6] = ids[0, 3:6]
    labels[0, 8:] = ids[0, 8:]
    labels[1, 2:5] = ids[1, 2:5]
    return ids, mask, labels, model.encode_speech([mel_like(40, 1), mel_like(29, 2)])


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("alignment", ["predicting", "original"])
def test_the_loss_over_turns_is_each_turns_own_ctc(model: LlamaOmni, side: str, alignment: str) -> None:
    ids, mask, labels, speech = spoken_batch(model)
    units = [torch.tensor([3, 3, 9, 1]), torch.arange(49), torch.tensor([7])]
    # The first sample's speech adds 4 - 1 and 3 - 1 positions in front of what follows it.
    turns = [[SpokenTurn(6, 9, units[0]), SpokenTurn(13, 15, units[1])], [SpokenTurn(2, 5, units[2])]]
    output = model(
        ids,
        speech=speech,
        labels=labels,
        target_units=turns,
        attention_mask=mask,
        padding_side=side,
        ctc_alignment=alignment,
    )
    shift = 1 if alignment == "predicting" else 0
    total = 0.0
    for sample, sample_turns in enumerate(turns):
        hidden = output.hidden_states[sample][output.attention_mask[sample]]
        for turn in sample_turns:
            states = hidden[turn.start - shift : turn.end - shift]
            frames = states.repeat_interleave(25, dim=0)[None]
            log_probabilities = model.speech_generator(frames).log_softmax(dim=-1)[0]
            total += nn.functional.ctc_loss(
                log_probabilities, turn.units, [len(log_probabilities)], [len(turn.units)], blank=50, reduction="sum"
            ).item()
    assert output.ctc_loss.item() == pytest.approx(total / (4 + 49 + 1), rel=1e-5)
    assert output.loss.item() == pytest.approx(output.text_loss.item() + output.ctc_loss.item(), rel=1e-6)
    assert len(output.token_losses) == 8
    assert output.token_losses.mean().item() == pytest.approx(output.text_loss.item(), rel=1e-6)


@torch.no_grad()
def test_ctc_of_a_short_target_is_the_sum_over_all_alignments(model: LlamaOmni) -> None:
    logits = torch.randn(1, 5, 4)
    probabilities = logits[0].softmax(dim=-1)
    target = torch.tensor([2, 2])
    likelihood = sum(
        probabilities[torch.arange(5), torch.tensor(path)].prod().item()
        for path in product(range(4), repeat=5)
        if collapse_frames(torch.tensor(path), blank=3).tolist() == [2, 2]
    )
    loss = summed_ctc(logits, [5], [target], blank=3)
    assert loss.item() == pytest.approx(-np.log(likelihood), rel=1e-5)


def test_units_or_spans_that_cannot_be_are_refused(model: LlamaOmni) -> None:
    ids, mask, labels, speech = spoken_batch(model)

    def loss(turns: list[list[SpokenTurn]]) -> None:
        model(ids, speech=speech, labels=labels, target_units=turns, attention_mask=mask)

    one = torch.tensor([1])
    with pytest.raises(ValueError, match="5 positions; a spoken turn cannot span"):
        loss([[], [SpokenTurn(3, 6, one)]])
    with pytest.raises(ValueError, match="first position"):
        loss([[], [SpokenTurn(0, 2, one)]])
    with pytest.raises(ValueError, match="units from 50 to 50"):
        loss([[], [SpokenTurn(3, 4, torch.tensor([50]))]])
    with pytest.raises(ValueError, match="at least one unit"):
        loss([[], [SpokenTurn(3, 4, torch.tensor([], dtype=torch.long))]])
    with pytest.raises(ValueError, match="1 samples, the batch 2"):
        loss([[SpokenTurn(3, 4, one)]])


def test_each_stage_trains_its_own_parts_and_never_the_encoder() -> None:
    model = LlamaOmni.tiny(seed=1)
    ids, mask, labels, speech = spoken_batch(model)
    turns = [[SpokenTurn(6, 9, torch.tensor([3, 9]))], [SpokenTurn(2, 5, torch.tensor([7]))]]
    for stage, parts in {
        "text": {"llm", "speech_projector"},
        "speech": {"speech_generator"},
        "joint": {"llm", "speech_projector", "speech_generator"},
    }.items():
        model.train_only(stage)
        model.zero_grad(set_to_none=True)
        units = None if stage == "text" else turns
        output = model(ids, speech=speech, labels=labels, target_units=units, attention_mask=mask)
        (output.ctc_loss if stage == "speech" else output.loss).backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert {name.split(".")[0] for name in moved} == parts
        named = {name for name, _ in model.trainable_parameters(stage)}
        assert moved == named == {name for name, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(ValueError, match="no training stage 'three'"):
        model.trainable_parameters("three")


def test_a_few_steps_teach_the_tiny_model_its_reply_and_its_units() -> None:
    model = LlamaOmni.tiny(seed=2).train_only("joint")
    ids, mask, labels, speech = spoken_batch(model)
    turns = [[SpokenTurn(6, 9, torch.tensor([3, 9]))], [SpokenTurn(2, 5, torch.tensor([7]))]]
    optimiser = torch.optim.Adam([p for _, p in model.trainable_parameters("joint")], lr=3e-3)
    losses = []
    for _ in range(30):
        output = model(ids, speech=speech, labels=labels, target_units=turns, attention_mask=mask)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        losses.append((output.text_loss.item(), output.ctc_loss.item()))
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.5 * losses[0][1]


@torch.no_grad()
def test_a_forward_pass_continued_from_a_cache_is_the_whole_pass(model: LlamaOmni) -> None:
    ids, mask, _, speech = spoken_batch(model)
    whole = model(ids, speech=speech, attention_mask=mask)
    first = model(ids[:, :6], speech=SpeechFrames(speech.segments[:1]), attention_mask=mask[:, :6], use_cache=True)
    second = model(
        ids[:1, 6:].expand(2, -1),
        speech=SpeechFrames((speech.segments[1], speech.segments[1])),
        past_key_values=first.past_key_values,
        past_attention_mask=first.attention_mask,
    )
    assert torch.allclose(second.logits[0], whole.logits[0, 9:], atol=2e-4)
    with pytest.raises(ValueError, match="the cache holds"):
        model(ids[:, :1], past_key_values=first.past_key_values, past_attention_mask=mask[:, :1])


@torch.no_grad()
def test_in_bfloat16_everything_runs_and_the_rotary_frequencies_stay_exact() -> None:
    exact = LlamaOmni.tiny(seed=3, initializer_range=0.2)
    model = LlamaOmni.tiny(seed=3, initializer_range=0.2).to(torch.bfloat16)
    assert torch.equal(model.llm.model.rotary_emb.inv_freq, exact.llm.model.rotary_emb.inv_freq)
    ids, mask, labels, speech = spoken_batch(exact)
    frames = model.encode_speech([mel_like(40, 1), mel_like(29, 2)])
    assert frames.segments[0].dtype == torch.bfloat16
    turns = [[SpokenTurn(6, 9, torch.tensor([3, 9]))], [SpokenTurn(2, 5, torch.tensor([7]))]]
    arguments = {"labels": labels, "target_units": turns, "attention_mask": mask}
    coarse = model(ids, speech=frames, **arguments)
    fine = exact(ids, speech=speech, **arguments)
    assert coarse.hidden_states.dtype == torch.bfloat16
    assert coarse.ctc_loss.dtype == torch.float32
    assert coarse.loss.item() == pytest.approx(fine.loss.item(), rel=0.05)
    reply = model.generate(ids, speech=frames, attention_mask=mask, max_new_tokens=3)
    assert reply.ctc_frames is not None and reply.ctc_frames.shape == (2, 75)


def test_the_published_dimensions_are_eight_billion_parameters_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = LlamaOmni(LlamaOmniConfig())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    # Llama-3.1-8B has 8.03 billion; whisper large-v3's encoder 0.64.
    assert count["llm"] == 8_030_261_248
    assert 0.63e9 < count["speech_encoder"] < 0.65e9
    assert count["speech_projector"] == 6400 * 2048 + 2048 + 2048 * 4096 + 4096
    assert model.speech_generator.layer_config.head_dim == 128
