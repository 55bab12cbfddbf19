"""Qwen + TTS streams text: cached, in parts and uncached alike, without an end, in bounded memory, at any position."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from tokenizers.decoders import DecodeStream
from transformers.cache_utils import DynamicCache

from backbones import load_backbone
from backbones.mounting import MountedCache, describe, ttt_layers
from backbones.qwen_tts import QwenConfig, QwenTTS, TextStep, byte_tokenizer
from backbones.qwen_tts.rotary import ExactRotary
from backbones.text import StreamedText
from backbones.tts import SAMPLE_RATE_HZ, load_engine
from ttt_core import TTTConfig

FAMILIES: Mapping[str, Mapping[str, object]] = {"qwen2": {}, "qwen3": {"head_dim": 32}}
PROMPT = "Wie heißt das Boot? 小船 🙂"
WINDOW, SINKS = 16, 4


def model_of(family: str = "qwen2", mini_batch_size: int = 4, window: int = WINDOW, seed: int = 0) -> QwenTTS:
    """TTT above, windows below; weights large enough that every layer changes the tokens."""
    model = QwenTTS.tiny(model_type=family, initializer_range=0.3, seed=seed, **FAMILIES[family])
    config = model.llm.config
    ttt = TTTConfig(
        hidden_size=config.hidden_size, num_heads=4, head_dim=model.llm.model.layers[0].self_attn.head_dim,
        mini_batch_size=mini_batch_size, base_lr=1.0, projection_bias=family == "qwen2",
    )  # fmt: skip
    return model.mount(2, ttt, window=window, sinks=SINKS)


def ids_of(model: QwenTTS, count: int, **options: object) -> list[int]:
    return [step.token_id for step in model.stream_text(PROMPT, max_new_tokens=count, **options)]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_streamed_and_uncached_generation_agree(family: str) -> None:
    model = model_of(family)
    prompt = torch.tensor([model.tokenizer.encode(PROMPT)])
    count = 30
    uncached = ids_of(model, count, use_cache=False)
    for prefill_chunk in (7, 512):
        assert ids_of(model, count, prefill_chunk=prefill_chunk) == uncached
    generated = model.llm.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, do_sample=False, suppress_tokens=[256]
    )
    assert generated[0, prompt.shape[1] :].tolist() == uncached
    assert len(set(uncached)) > 10 and prompt.shape[1] + count > 3 * WINDOW
    # The tokens hang on the fast weights: a model whose inner step is almost nothing writes others.
    with torch.no_grad():
        one_pass = model.llm(generated[:, :-1], use_cache=False).logits[0, prompt.shape[1] - 1 :]
        still = model.llm(generated[:, :-1], use_cache=False, ttt_base_lr=1e-6).logits[0, prompt.shape[1] - 1 :]
    one_pass[:, 256] = -torch.inf
    assert one_pass.argmax(dim=1).tolist() == uncached
    assert still.argmax(dim=1).tolist() != uncached


def test_a_conversation_of_several_turns_is_one_stream() -> None:
    model = model_of()
    said, given = "", PROMPT
    stream = model.stream()
    ids = torch.tensor(model.tokenizer.encode(PROMPT))
    for heard in ("And then?", " Nein! 好"):
        stream.read(given)
        reply = list(stream.write(9))
        said += "".join(step.text for step in reply)
        assert [step.token_id for step in model.stream_text(ids, max_new_tokens=9)] == [s.token_id for s in reply]
        ids = torch.cat([ids, torch.tensor([s.token_id for s in reply]), torch.tensor(model.tokenizer.encode(heard))])
        given = heard
    assert said


def test_the_state_and_the_cache_take_the_same_bytes_at_4000_positions_as_at_1000() -> None:
    model = model_of(mini_batch_size=64, window=32)
    stream = model.stream(temperature=1.0, seed=3)
    assert stream.tokens.memory.is_bounded
    held: dict[int, int] = {}
    stream.read(torch.randint(256, (999,)))
    steps = stream.write()
    next(steps)
    for positions in (1000, 4000):
        if positions > 1000:
            # Most of the way is given, not written: the same cache, in a tenth of the time.
            stream.read(torch.randint(256, (positions - stream.tokens.positions - 1,)))
        list(itertools.islice(stream.write(), 2))
        cache = stream.tokens.cache
        assert isinstance(cache, MountedCache)
        assert cache.get_seq_length() == stream.tokens.positions
        held[stream.tokens.positions] = cache.nbytes
    assert min(held) >= 1000 and max(held) >= 4000
    assert len(set(held.values())) == 1
    assert held.popitem()[1] == pytest.approx(describe(model.llm).bytes_fixed, rel=0.05)


def test_a_stream_goes_on_until_it_is_told_to_end() -> None:
    model = model_of()
    end = model.tokenizer.eos_token_id
    with torch.no_grad():  # a model that wants to end at once, and always
        model.llm.lm_head.weight.mul_(0.01)
        model.llm.lm_head.weight[end] = 10 * torch.ones(64)
        model.llm.model.norm.weight.copy_(torch.ones(64))
    wanted = [step.token_id for step in model.stream_text(PROMPT, stops_at_end=True, temperature=5.0, seed=1)]
    endless = [step.token_id for step in itertools.islice(model.stream_text(PROMPT, temperature=5.0, seed=1), 80)]
    assert wanted[-1] == end and wanted.count(end) == 1
    assert len(endless) == 80 and end not in endless


def test_without_bounded_memory_there_is_no_endless_stream_and_none_beyond_the_context() -> None:
    model = QwenTTS.tiny(max_position_embeddings=40)
    with pytest.raises(ValueError, match=r"layers \[0, 1, 2, 3\] keep 1024 bytes of every position; mount TTT"):
        model.stream_text(PROMPT)
    steps = model.stream_text("a" * 30, max_new_tokens=20)
    with pytest.raises(ValueError, match="position 41 lies beyond the 40"):
        list(steps)
    assert isinstance(model.stream().tokens.cache, DynamicCache)
    bounded = QwenTTS.tiny(max_position_embeddings=40).mount(1, window=8, sinks=2)
    assert len(list(bounded.stream_text("a" * 30, max_new_tokens=30))) == 30


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_far_beyond_the_context_change_nothing(family: str) -> None:
    model = QwenTTS.tiny(model_type=family, initializer_range=0.1, **FAMILIES[family]).mount(0, window=16, sinks=0)
    ids = torch.randint(256, (1, 64))

    def logits(first: int, llm: torch.nn.Module = model.llm) -> torch.Tensor:
        return llm(ids, position_ids=torch.arange(64)[None] + first, use_cache=False).logits

    at_the_start = logits(0)
    largest = at_the_start.abs().max()
    for first in (100_000, 10_000_000, 300_000_000):
        assert float((logits(first) - at_the_start).abs().max() / largest) < 2e-5
    # The family's own tables: the same near the start, and worthless far from it.
    decoder = model.llm.model
    exact = decoder.rotary_emb
    assert isinstance(exact, ExactRotary)
    decoder.rotary_emb = type(model_of_plain(family).rotary_emb)(model.llm.config)
    torch.testing.assert_close(logits(0), at_the_start, rtol=1e-4, atol=1e-5)
    assert float((logits(10_000_000) - at_the_start).abs().max() / largest) > 0.02
    decoder.rotary_emb = exact
    before = [table.clone() for table in exact(torch.ones(1), torch.tensor([[7, 123_456]]))]
    after = model.to(torch.bfloat16).llm.model.rotary_emb(torch.ones(1), torch.tensor([[7, 123_456]]))
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def model_of_plain(family: str) -> torch.nn.Module:
    """transformers' own decoder, as nothing of ours has touched it."""
    from transformers import AutoModel

    return AutoModel.from_config(QwenConfig.tiny(model_type=family, **FAMILIES[family]).llm_config())


def test_pieces_joined_are_the_whole_text() -> None:
    model = model_of()
    tokenizer = model.tokenizer
    text = "Größe 🙂👩‍👩‍👧 小船在河上。 ok"
    pieces = StreamedText(tokenizer.backend_tokenizer)
    streamed = [pieces.add(token) for token in tokenizer.encode(text)]
    assert "".join(streamed) + pieces.end() == text
    assert "🙂" in streamed and "船" in streamed and "�" not in "".join(streamed)
    steps = list(model.stream_text(text, max_new_tokens=80, temperature=1.0, seed=5))
    ids = [step.token_id for step in steps]
    assert "".join(step.text for step in steps) == tokenizer.decode(ids)
    assert any(not step.text for step in steps)


def test_bytes_that_make_no_character_are_neither_lost_nor_waited_for() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["a wörd"])
    ids = [0xE5, 0x93, 257, 0x80, 256, 0x80, 0xF0, 0x9F, 256, 0x99, 0x82, 99_999, 0xC3]
    pieces = StreamedText(tokenizer.backend_tokenizer)
    streamed = "".join(pieces.add(token) for token in ids) + pieces.end()
    assert streamed == tokenizer.backend_tokenizer.decode(ids) == "�a wörd��🙂�"
    pieces, waits = StreamedText(tokenizer.backend_tokenizer), DecodeStream(skip_special_tokens=True)
    assert "".join(pieces.add(0x80) for _ in range(500)) == 500 * "�"
    assert not any(waits.step(tokenizer.backend_tokenizer, 0x80) for _ in range(500))


def test_bad_input_is_refused_with_what_was_given() -> None:
    model = QwenTTS.tiny()
    for prompt, message in (
        ("", "the prompt is empty"),
        (torch.empty(0, dtype=torch.long), "the prompt is empty"),
        (torch.tensor([3, 320]), "ids from 3 to 320; the model knows 0 to 319"),
        (torch.ones(2, 3, dtype=torch.long), r"\(T,\) int64 ids, got \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.stream_text(prompt, max_new_tokens=1)
    for options, message in (
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature must be 0"),
        ({"max_new_tokens": 1, "prefill_chunk": 0}, "prefill_chunk must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model.stream_text("a", **options)
    with pytest.raises(ValueError, match="nothing was read yet"):
        next(model.stream().write(1))
    with pytest.raises(ValueError, match="top_layers must be 0 to 4"):
        model.mount(5)
    with pytest.raises(ValueError, match="no chat template"):
        model.chat_prompt([{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="257 tokens, the model knows 200"):
        QwenTTS.from_config(QwenConfig.tiny(vocab_size=200, bos_token_id=None, eos_token_id=None))
    with pytest.raises(ValueError, match="no Qwen of model_type 'qwen9'"):
        QwenConfig(model_type="qwen9")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no field"):
        QwenConfig.tiny(width=3)
    with pytest.raises(ValueError, match="num_attention_heads 4 is no multiple of num_key_value_heads 3"):
        QwenConfig.tiny(num_key_value_heads=3)


def test_it_is_one_of_the_backbones_that_load_by_name() -> None:
    plain = load_backbone("qwen-tts")
    mounted = load_backbone("qwen-tts", scale="smoke", ttt={"mini_batch_size": 16})
    assert isinstance(plain, QwenTTS) and isinstance(mounted, QwenTTS)
    assert {layer: ttt.config.mini_batch_size for layer, ttt in ttt_layers(mounted.llm).items()} == {3: 16}
    shared = plain.llm.state_dict().keys() & mounted.llm.state_dict().keys()
    assert "model.layers.3.mlp.gate_proj.weight" in shared


def test_what_is_written_is_spoken_sentence_by_sentence_while_it_is_written() -> None:
    model = model_of()
    engine = load_engine("espeak", unreadable="skip")
    written: list[str] = []
    stream_text = model.stream_text

    def watched(*arguments: object, **options: object) -> Iterator[TextStep]:
        # A sentence of words in the place of every token that a random model writes.
        for number, _ in enumerate(stream_text(*arguments, **options)):
            written.append(f"This is sentence number {number}. ")
            yield TextStep(token_id=0, text=written[-1], position=number)

    model.stream_text = watched
    spoken = model.speak(PROMPT, engine)
    first, second = next(spoken), next(spoken)
    assert [first.text, second.text] == ["This is sentence number 0.", "This is sentence number 1."]
    assert len(written) <= 4  # and not a word more than it takes to know that a sentence is over
    assert first.samples.dtype == np.float32 and len(first.samples) > SAMPLE_RATE_HZ // 2
    assert np.abs(first.samples).max() > 0.05
    del model.stream_text
    text = "".join(step.text for step in model.stream_text("Hm", max_new_tokens=60, temperature=1.0, seed=2))
    sentences = [said.text for said in model.speak("Hm", engine, max_new_tokens=60, temperature=1.0, seed=2)]
    assert "".join("".join(sentences).split()) == "".join(text.split())
    with pytest.raises(ValueError, match="a stream without an end"):
        QwenTTS.tiny().speak(PROMPT, engine)
