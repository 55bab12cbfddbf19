"""Replies: cached and uncached, streamed and whole, alone and in a batch, turn after turn."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from backbones.llama_omni import LlamaOmni, SpokenTurn, collapse_frames
from backbones.text import TokenChoice


@pytest.fixture(scope="module")
def model() -> LlamaOmni:
    return LlamaOmni.tiny(seed=4, initializer_range=0.3).double().eval()


@pytest.fixture(scope="module")
def mels() -> list[Tensor]:
    source = torch.Generator().manual_seed(2)
    return [torch.randn(frames, 128, generator=source) * 0.5 for frames in (47, 333, 20)]


IDS = torch.tensor([[5, -200, 6, -200, 7], [8, 9, 10, 0, 0], [-200, 11, 12, 13, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 11}], ids=["greedy", "sampled"])
def test_cached_uncached_and_chunked_prefill_reply_alike(
    model: LlamaOmni, mels: list[Tensor], options: dict[str, float]
) -> None:
    arguments = {"speech": mels, "attention_mask": MASK, "max_new_tokens": 9, **options}
    cached = model.generate(IDS, **arguments)
    for other in (
        model.generate(IDS, **arguments, use_cache=False),
        model.generate(IDS, **arguments, prefill_chunk=7),
    ):
        assert torch.equal(other.text_ids, cached.text_ids)
        assert torch.equal(other.ctc_frames, cached.ctc_frames)


def test_a_batch_replies_as_each_sample_alone(model: LlamaOmni, mels: list[Tensor]) -> None:
    free = model.generate(IDS, mels, attention_mask=MASK, max_new_tokens=12, eos_token_id=[])
    # Ends that stop the samples at different steps.
    ends = [int(free.text_ids[0, 3]), int(free.text_ids[1, 6])]
    batch = model.generate(IDS, mels, attention_mask=MASK, max_new_tokens=12, eos_token_id=ends, pad_token_id=0)
    alone = [
        model.generate(ids, speech, max_new_tokens=12, eos_token_id=ends, pad_token_id=0)
        for ids, speech in ((IDS[:1], mels[:2]), (IDS[1:2, :3], None), (IDS[2:, :4], mels[2:]))
    ]
    lengths = {reply.text_ids.shape[1] for reply in alone}
    assert len(lengths) > 1 and batch.text_ids.shape[1] == max(lengths)
    for sample, reply in enumerate(alone):
        length = reply.text_ids.shape[1]
        assert torch.equal(batch.text_ids[sample, :length], reply.text_ids[0])
        assert torch.equal(batch.ctc_frames[sample, : 25 * length], reply.ctc_frames[0])
        assert (batch.text_ids[sample, length:] == 0).all()
        assert (batch.ctc_frames[sample, 25 * length :] == 50).all()
        assert torch.equal(batch.units_per_sample[sample], reply.units)
    with pytest.raises(ValueError, match="3 samples; use units_per_sample"):
        _ = batch.units


def test_a_stream_gives_the_reply_piece_by_piece(model: LlamaOmni, mels: list[Tensor]) -> None:
    whole = model.generate(IDS[:1], mels[:2], max_new_tokens=8)
    tokens, frames, units = [], [], []
    for step in model.stream(IDS[:1], mels[:2], max_new_tokens=8):
        assert step.ctc_frames is not None and step.ctc_frames.shape == (1, 25)
        tokens.append(int(step.token_ids))
        frames.append(step.ctc_frames[0])
        units += step.new_units[0].tolist()
    assert tokens == whole.text_ids[0].tolist()
    assert whole.units.tolist() == units == collapse_frames(torch.cat(frames), blank=50).tolist()
    assert len(units) > 0


def test_frames_said_while_generating_are_those_that_training_scores(model: LlamaOmni, mels: list[Tensor]) -> None:
    reply = model.generate(IDS[:1], mels[:2], max_new_tokens=6, eos_token_id=[])
    prompt = 3 + 4 + 33
    ids = torch.cat([IDS[:1], reply.text_ids], dim=1)
    turn = SpokenTurn(prompt, prompt + 6, torch.tensor([1]))
    output = model(ids, mels[:2], labels=ids.masked_fill(ids == -200, -100), target_units=[[turn]])
    states = output.hidden_states[0, turn.start - 1 : turn.end - 1]
    assert torch.equal(model.speech_generator.predict(states), reply.ctc_frames[0])


def test_a_conversation_goes_on_from_its_cache_as_if_read_at_once(model: LlamaOmni, mels: list[Tensor]) -> None:
    first = model.generate(IDS, mels, attention_mask=MASK, max_new_tokens=5, eos_token_id=[])
    next_ids = torch.tensor([[21, -200, 22], [23, 24, 0], [-200, 25, 0]])
    next_mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0]], dtype=torch.bool)
    second = model.generate(
        next_ids, [mels[2], mels[0]], attention_mask=next_mask, max_new_tokens=6, eos_token_id=[], past=first.past
    )
    joined = torch.cat([IDS, first.text_ids, next_ids], dim=1)
    joined_mask = torch.cat([MASK, torch.ones(3, 5, dtype=torch.bool), next_mask], dim=1)
    # Reading order of the joined rows: the first sample's third segment comes before the last sample's two.
    order = [mels[0], mels[1], mels[2], mels[2], mels[0]]
    whole = model.generate(joined, order, attention_mask=joined_mask, max_new_tokens=6, eos_token_id=[])
    assert torch.equal(second.text_ids, whole.text_ids)
    assert torch.equal(second.ctc_frames, whole.ctc_frames)


def test_a_conversation_goes_on_after_replies_that_ended_at_different_steps(
    model: LlamaOmni, mels: list[Tensor]
) -> None:
    free = model.generate(IDS, mels, attention_mask=MASK, max_new_tokens=7, eos_token_id=[])
    ends = [int(free.text_ids[0, 2]), int(free.text_ids[1, 5])]
    first = model.generate(IDS, mels, attention_mask=MASK, max_new_tokens=7, eos_token_id=ends, pad_token_id=0)
    again = torch.tensor([[21, 22], [23, 24], [25, 26]])
    second = model.generate(again, past=first.past, max_new_tokens=4, eos_token_id=[])
    for sample, (ids, speech) in enumerate(((IDS[:1], mels[:2]), (IDS[1:2, :3], None), (IDS[2:, :4], mels[2:]))):
        said = model.generate(ids, speech, max_new_tokens=7, eos_token_id=ends).text_ids
        whole = model.generate(
            torch.cat([ids, said, again[sample : sample + 1]], dim=1), speech, max_new_tokens=4, eos_token_id=[]
        )
        assert torch.equal(second.text_ids[sample], whole.text_ids[0])


def test_a_past_is_continued_once_unless_copied(model: LlamaOmni) -> None:
    first = model.generate(IDS[1:2, :3], max_new_tokens=4)
    copied = copy.deepcopy(first.past)
    once = model.generate(torch.tensor([[30]]), past=first.past, max_new_tokens=4)
    with pytest.raises(ValueError, match="went on to"):
        model.generate(torch.tensor([[30]]), past=first.past, max_new_tokens=4)
    assert torch.equal(model.generate(torch.tensor([[30]]), past=copied, max_new_tokens=4).text_ids, once.text_ids)
    with pytest.raises(ValueError, match="past holds 1 samples, input_ids 2"):
        model.generate(torch.tensor([[30], [31]]), past=once.past, max_new_tokens=4)


def test_a_windowed_voice_changes_frames_but_no_text(model: LlamaOmni, mels: list[Tensor]) -> None:
    full = model.generate(IDS[:1], mels[:2], max_new_tokens=8, eos_token_id=[])
    wide = model.generate(IDS[:1], mels[:2], max_new_tokens=8, eos_token_id=[], speech_window=200)
    narrow = model.generate(IDS[:1], mels[:2], max_new_tokens=8, eos_token_id=[], speech_window=10)
    assert torch.equal(wide.ctc_frames, full.ctc_frames)
    assert torch.equal(narrow.text_ids, full.text_ids)
    assert not torch.equal(narrow.ctc_frames, full.ctc_frames)
    silent = model.generate(IDS[:1], mels[:2], max_new_tokens=8, eos_token_id=[], speak=False)
    assert silent.ctc_frames is None and torch.equal(silent.text_ids, full.text_ids)


def test_sampling_follows_the_nucleus_and_the_seed() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(4000, -1)
    probabilities = logits[0].softmax(dim=-1)
    choice = TokenChoice(temperature=1.0, top_p=0.8, random=torch.Generator().manual_seed(0))
    counts = choice.choose(logits, step=0).bincount(minlength=4) / 4000
    # The first token has 0.64 of the mass, the first two 0.88: these two, renormalised.
    assert counts[2:].tolist() == [0.0, 0.0]
    assert counts[0].item() == pytest.approx((probabilities[0] / probabilities[:2].sum()).item(), abs=0.03)
    nearly_greedy = TokenChoice(temperature=1.0, top_p=1e-6, random=torch.Generator().manual_seed(0))
    assert nearly_greedy.choose(logits[:50], step=0).tolist() == [0] * 50


def test_seeds_repeat_and_minimum_lengths_hold(model: LlamaOmni) -> None:
    arguments = {"max_new_tokens": 10, "temperature": 2.0, "eos_token_id": [], "speak": False}
    same = [model.generate(IDS[1:2, :3], **arguments, seed=7).text_ids for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], model.generate(IDS[1:2, :3], **arguments, seed=8).text_ids)
    first = int(model.generate(IDS[1:2, :3], max_new_tokens=1, speak=False).text_ids)
    stopped = model.generate(IDS[1:2, :3], max_new_tokens=5, eos_token_id=first, speak=False)
    assert stopped.text_ids.tolist() == [[first]]
    longer = model.generate(IDS[1:2, :3], max_new_tokens=5, min_new_tokens=3, eos_token_id=first, speak=False)
    assert longer.text_ids.shape[1] >= 4
    assert first not in longer.text_ids[0, :3]


def test_a_reply_is_the_same_in_training_mode_and_leaves_every_part_in_its_mode(mels: list[Tensor]) -> None:
    model = LlamaOmni.tiny(seed=4, initializer_range=0.3, attention_dropout=0.5).train()
    model.speech_encoder.eval()
    modes = {name: module.training for name, module in model.named_modules()}

    def modes_now() -> dict[str, bool]:
        return {name: module.training for name, module in model.named_modules()}

    replies = [model.generate(IDS[:1], mels[:2], max_new_tokens=6, eos_token_id=[]) for _ in range(2)]
    expected = copy.deepcopy(model).eval().generate(IDS[:1], mels[:2], max_new_tokens=6, eos_token_id=[])
    for reply in replies:
        assert torch.equal(reply.text_ids, expected.text_ids) and torch.equal(reply.ctc_frames, expected.ctc_frames)
    assert modes_now() == modes
    stream = model.stream(IDS[:1], mels[:2], max_new_tokens=6, eos_token_id=[])
    for number in range(3):
        assert int(next(stream).token_ids) == int(expected.text_ids[0, number])
        assert modes_now() == modes, "while the caller has control"
    stream.close()
    with pytest.raises(ValueError, match="speech segments"):
        model.generate(IDS[:1], mels[:1])
    assert modes_now() == modes


def test_logits_with_nothing_to_choose_from_are_refused() -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2], logits[2] = torch.nan, -torch.inf
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"token 7 of sample \[1, 2\].*NaN"):
            TokenChoice(temperature=temperature).choose(logits, step=7)
    masked = torch.tensor([[-torch.inf, 0.5, -torch.inf]])
    assert TokenChoice().choose(masked, step=0).tolist() == [1]
    damaged = LlamaOmni.tiny()
    damaged.llm.lm_head.weight.data[3] = torch.nan
    with pytest.raises(ValueError, match="weights are damaged"):
        damaged.generate(IDS[1:2, :3])


def test_wishes_that_cannot_be_met_are_refused(model: LlamaOmni) -> None:
    ids = IDS[1:2, :3]
    for match, options in {
        "max_new_tokens": {"max_new_tokens": 0},
        "temperature": {"temperature": -1.0},
        "temperature .* got nan": {"temperature": float("nan")},
        "min_new_tokens": {"min_new_tokens": -1},
        r"min_new_tokens must be 0 to max_new_tokens \(3\)": {"min_new_tokens": 4, "max_new_tokens": 3},
        "eos_token_id must be token ids from 0 to 319, got 320": {"eos_token_id": 320},
        r"eos_token_id .* got \[2, -1\]": {"eos_token_id": [2, -1]},
        "eos_token_id .* got 2.0": {"eos_token_id": 2.0},
        "pad_token_id": {"pad_token_id": 320},
        "top_p": {"top_p": 0.0},
        "prefill_chunk": {"prefill_chunk": 0},
        "not both": {"seed": 1, "random": torch.Generator()},
    }.items():
        with pytest.raises(ValueError, match=match):
            model.generate(ids, **options)
    with pytest.raises(ValueError, match=r"at least one sample, got \(0, 3\)"):
        model.generate(torch.zeros(0, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="no token"):
        model.generate(ids, attention_mask=torch.zeros(1, 3))
