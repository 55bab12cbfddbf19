"""Low-rank adapters, by peft, on the layers of a language model below those whose mixers are trained whole."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from experiments.spoken.configuration import LoraPlan


def add_adapters(llm: PreTrainedModel, plan: LoraPlan, layers: Sequence[int]) -> None:
    """Puts adapters into the linear maps of `layers`, mounted or not, in place; they add nothing until trained.

    peft would freeze everything else: what was trained before is trained as it was.

    Raises:
        ValueError: peft is not installed, or a layer has no map of a name in the plan.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ValueError(
            "training.lora needs peft, which is not installed: run `make setup`, or pip install 'ttt-speech[lora]'"
        ) from error
    wanted = [f"layers.{layer}.self_attn.{name}" for layer in layers for name in plan.modules]
    missing = [name for name in wanted if not any(known.endswith(name) for known, _ in llm.named_modules())]
    if missing:
        raise ValueError(
            f"training.lora.modules: the model has no {', '.join(missing[:3])}; name maps of its attention"
        )
    trained = {name for name, parameter in llm.named_parameters() if parameter.requires_grad}
    config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, lora_dropout=plan.dropout, target_modules=wanted)
    inject_adapter_in_model(config, llm)
    for name, parameter in llm.named_parameters():
        parameter.requires_grad_("lora_" in name or name.replace(".base_layer.", ".") in trained)
