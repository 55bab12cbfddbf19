"""One arm: trains a model in its form, then reads and writes a token a call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.harness import metric_names as names
from experiments.harness.checkpoints import CheckpointFolder
from experiments.harness.identity import fingerprint, flattened
from experiments.harness.lightning_run import TrainingRun, train
from experiments.harness.memory import forget_peak, held_bytes
from experiments.harness.study import ArmWork
from experiments.mini_batch_leak.configuration import Form, MiniBatchLeakExperiment
from experiments.mini_batch_leak.corpus import TextCorpus
from experiments.mini_batch_leak.leaky_form import sees_whole_mini_batches
from experiments.mini_batch_leak.text_model import build_model, streamed_logits, token_losses, whole_logits, write
from experiments.mini_batch_leak.training import TextData, TextModule
from experiments.mini_batch_leak.writing import readability, readable

PARALLEL, STREAMED = "leak/parallel_loss_nats", "leak/streamed_loss_nats"
LOGIT_DIFFERENCE = "leak/largest_logit_difference"
LOGIT_DIFFERENCE_TO_CAUSAL = "leak/largest_logit_difference_to_causal_form"
WRITTEN = "leak/written_"
WRITTEN_FILE = "written.txt"


def run_mini_batch_leak_arm(work: ArmWork) -> None:
    """The training, what it says of held-out text both ways, and what the model writes."""
    experiment: MiniBatchLeakExperiment = work.task.config
    corpus: TextCorpus = work.task.data
    layer, form = experiment.arm_named(work.task.arm)
    bytes_at_start = held_bytes()
    forget_peak()
    model = build_model(experiment.model, corpus.tokenizer.vocab_size, layer.ttt, experiment.seed)
    with in_form(model, form):
        _train(experiment, model, corpus, bytes_at_start, work)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    found = read_both_ways(model, form, torch.from_numpy(corpus.held_out).to(model.device))
    found |= _write(experiment, model, corpus, work.task.folder / WRITTEN_FILE)
    work.logger.log_metrics(found, step=experiment.training.steps)
    work.logger.log_artifact(work.task.folder / WRITTEN_FILE)


def in_form(model: PreTrainedModel, form: Form) -> AbstractContextManager[None]:
    """The form of the model's TTT layers inside the context."""
    return sees_whole_mini_batches(model) if form == "leaky" else nullcontext()


@torch.no_grad()
def read_both_ways(model: PreTrainedModel, form: Form, ids: Tensor) -> dict[str, float]:
    """Losses of the same text all at once, in the form of training, and one token a call; logits compared.

    Against the causal form's logits, streaming must be exact whatever was trained: what is left is the form.
    """
    with in_form(model, form):
        parallel = whole_logits(model, ids)
    causal, streamed = whole_logits(model, ids), streamed_logits(model, ids)
    return {
        PARALLEL: float(token_losses(parallel, ids).mean()),
        STREAMED: float(token_losses(streamed, ids).mean()),
        LOGIT_DIFFERENCE: float((streamed - parallel).abs().max()),
        LOGIT_DIFFERENCE_TO_CAUSAL: float((streamed - causal).abs().max()),
    }


def _train(
    experiment: MiniBatchLeakExperiment, model: PreTrainedModel, corpus: TextCorpus, bytes_at_start: int, work: ArmWork
) -> None:
    task, plan = work.task, experiment.training
    module = TextModule(model, plan)
    data = TextData(corpus, plan, experiment.seed, lambda: module.steps_done)
    own = experiment.of_arm(task.arm)
    trained = float(sum(parameter.numel() for parameter in module.trained_parameters()))
    work.logger.log_metrics({names.TRAINED_PARAMETERS: trained}, step=0)
    run = TrainingRun(
        label=task.label,
        checkpoints=CheckpointFolder(task.folder / "checkpoints", fingerprint(own), flattened(own)),
        logger=work.logger,
        stop=work.stop,
        seed=experiment.seed,
        checkpoint_every_steps=plan.validate_every_steps,
        bytes_at_start=bytes_at_start,
        progress_line=task.line,
    )
    train(module, data, run)


def _write(
    experiment: MiniBatchLeakExperiment, model: PreTrainedModel, corpus: TextCorpus, path: Path
) -> dict[str, float]:  # fmt: skip
    """Continues held-out conversations token by token, writes them to `path`, and measures them."""
    plan = experiment.writing
    prompts = torch.from_numpy(corpus.held_out[: plan.rows, : plan.prompt_tokens]).to(model.device)
    rows = write(model, prompts, plan.written_tokens, plan.temperature, experiment.seed).tolist()
    pairs = zip(prompts.tolist(), rows, strict=True)
    path.write_text("\n\n---\n\n".join(readable(prompt, row, corpus.tokenizer) for prompt, row in pairs) + "\n")
    shares = readability(rows, corpus.tokenizer, corpus.sentences)
    return {f"{WRITTEN}{what}": share for what, share in vars(shares).items()}
