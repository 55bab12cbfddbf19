"""Folders of Qwen2 and Qwen3 as transformers itself writes them are read by their own keys, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer, Qwen3ForCausalLM

from backbones.qwen_tts import QwenConfig, QwenTTS, byte_tokenizer
from backbones.qwen_tts.rotary import give_exact_rotary
from backbones.qwen_tts.stream import end_token_ids

MODELS = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
KEYS = {
    "qwen2": {"model.layers.0.self_attn.q_proj.bias", "model.layers.3.self_attn.k_proj.weight"},
    "qwen3": {"model.layers.0.self_attn.q_norm.weight", "model.layers.3.self_attn.k_norm.weight"},
}
COMMON_KEYS = {
    "model.embed_tokens.weight", "model.norm.weight", "model.layers.2.mlp.gate_proj.weight",
    "model.layers.2.input_layernorm.weight", "model.layers.2.post_attention_layernorm.weight",
    "model.layers.1.self_attn.o_proj.weight",
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"
)
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
PROMPT = "Where is 小船?"


@pytest.fixture(scope="module", params=MODELS)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(family, folder): a tiny model that transformers wrote, with an instruct model's end tokens and template."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(4)
    head_dim = 32 if family == "qwen3" else None
    config = QwenConfig.tiny(model_type=family, initializer_range=0.3, head_dim=head_dim)
    llm = MODELS[family](config.llm_config())
    llm.generation_config.eos_token_id = [258, 256]
    llm.to(torch.bfloat16).save_pretrained(folder)
    own = byte_tokenizer()
    tokenizer = Qwen2Tokenizer(
        vocab=own.get_vocab(), merges=[], additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=TEMPLATE,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    return family, folder


def tokens(model: QwenTTS, **options: object) -> list[int]:
    return [step.token_id for step in model.stream_text(PROMPT, max_new_tokens=12, **options)]


def test_a_published_folder_is_read_key_by_key(published: tuple[str, Path]) -> None:
    family, folder = published
    stored = load_file(folder / "model.safetensors")
    assert COMMON_KEYS | KEYS[family] <= stored.keys()
    assert "lm_head.weight" not in stored  # tied to the embeddings
    model = QwenTTS.from_checkpoint(folder)
    held = model.llm.state_dict()
    assert type(model.llm) is MODELS[family]
    assert [key for key, tensor in stored.items() if not torch.equal(tensor, held[key])] == []
    assert held.keys() - stored.keys() == {"lm_head.weight"}
    assert model.dtype == torch.bfloat16
    assert end_token_ids(model.llm) == (258, 256)
    assert model.chat_prompt([{"role": "user", "content": PROMPT}]) == (
        f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.tokenizer.encode("<|im_start|>é") == [257, 0xC3, 0xA9]


def test_what_it_writes_is_what_transformers_generates(published: tuple[str, Path]) -> None:
    family, folder = published
    plain = MODELS[family].from_pretrained(folder, dtype=torch.float32)
    give_exact_rotary(plain)
    model = QwenTTS.from_checkpoint(folder, dtype=torch.float32)
    prompt = torch.tensor([model.tokenizer.encode(PROMPT)])
    generated = plain.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, suppress_tokens=[256, 258]
    )
    assert tokens(model) == generated[0, prompt.shape[1] :].tolist()


def test_saving_and_reading_again_gives_the_same_model_plain_and_mounted(
    published: tuple[str, Path], tmp_path: Path
) -> None:
    _, folder = published
    model = QwenTTS.from_checkpoint(folder, dtype=torch.float32)
    for name in ("plain", "mounted"):
        if name == "mounted":
            model.mount(1, window=8, sinks=2)
        model.save_checkpoint(tmp_path / name)
        again = QwenTTS.from_checkpoint(tmp_path / name)
        assert type(again.llm) is type(model.llm)
        expected, found = model.llm.state_dict(), again.llm.state_dict()
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
        assert tokens(again) == tokens(model)
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    assert weights.keys() == load_file(folder / "model.safetensors").keys()


def edited_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_a_tensor(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["model.norm.weight"]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


def test_folders_that_do_not_hold_a_whole_qwen_are_refused(published: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = published
    damages = (
        (lambda at: shutil.rmtree(at), "is no folder"),
        (lambda at: (at / "config.json").unlink(), "holds no config.json"),
        (lambda at: (at / "config.json").write_text("{"), "is no JSON"),
        (lambda at: (at / "config.json").write_text("[]"), "holds list"),
        (lambda at: edited_config(at, model_type="llama"), "of model_type 'llama'; a qwen2 or qwen3 is read here"),
        (lambda at: edited_config(at, model_type=None), "of model_type None"),
        (lambda at: edited_config(at, hidden_size=63), "cannot be read|do not fit"),
        (lambda at: edited_config(at, intermediate_size=161), "cannot be read|do not fit"),
        (lambda at: edited_config(at, vocab_size="many"), "cannot be read"),
        (lambda at: (at / "model.safetensors").unlink(), "holds no weights"),
        (lambda at: (at / "model.safetensors").write_bytes(b"\x01" * 40), "cannot be read"),
        (without_a_tensor, r"lack model\.norm\.weight"),
        (lambda at: (at / "tokenizer.json").unlink(), "holds no tokenizer"),
        (lambda at: (at / "tokenizer.json").write_text("{}"), "the tokenizer in .* cannot be read"),
        (lambda at: edited_config(at, rope_parameters=DYNAMIC), "of type 'dynamic' change with the longest position"),
    )  # fmt: skip
    for number, (damage, message) in enumerate(damages):
        damaged = tmp_path / str(number)
        shutil.copytree(folder, damaged)
        damage(damaged)
        with pytest.raises(ValueError, match=message):
            QwenTTS.from_checkpoint(damaged)
