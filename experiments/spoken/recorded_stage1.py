"""Stage 1 on own recordings: the model and arms of synthetic conversations, on pieces whose state goes on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from experiments.harness.study import Scale
from experiments.recordings.curriculum import LAYOUTS, PieceSet, pieces_of
from experiments.recordings.dataset import RecordedConversations
from experiments.recordings.named_sets import find_prepared
from experiments.spoken.backbone import DataSizes, spoken_backbone
from experiments.spoken.configuration import EvaluationPlan, SpokenExperiment, with_fields
from experiments.spoken.recorded_plan import RecordedPlan

WITHOUT_WORDS = "moshi-stage1 and qwen-mimi-stage1 train without words"
KEEPS_PUBLISHED_SIZES: Scale = "full"

Spoken = TypeVar("Spoken", bound=SpokenExperiment)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What scales and layouts differ in: see `RecordedPlan`."""

    positions: int
    rows: int
    steps: int
    validation_conversations: int
    validation_positions: int


MOST_CARRIED_PIECES = 8
TEXT_POSITIONS: dict[Scale, _Reading] = {
    "smoke": _Reading(positions=128, rows=2, steps=4, validation_conversations=1, validation_positions=512),
    "cpu": _Reading(positions=2048, rows=2, steps=160, validation_conversations=8, validation_positions=8192),
    "gpu": _Reading(positions=8192, rows=8, steps=4000, validation_conversations=24, validation_positions=16384),
    "full": _Reading(positions=4096, rows=1, steps=4000, validation_conversations=16, validation_positions=16384),
}
FRAMES: dict[Scale, _Reading] = {
    "smoke": _Reading(positions=256, rows=2, steps=4, validation_conversations=1, validation_positions=512),
    "cpu": _Reading(positions=1024, rows=2, steps=120, validation_conversations=6, validation_positions=4096),
    "gpu": _Reading(positions=4096, rows=8, steps=4000, validation_conversations=24, validation_positions=16384),
    "full": _Reading(positions=2048, rows=1, steps=4000, validation_conversations=16, validation_positions=16384),
}


def on_recordings(config: Spoken, name_or_path: str, data_dir: Path) -> Spoken:
    """A stage 1 on a prepared set in the place of synthetic conversations.

    The vocabularies and mel bands of a model that is built from scratch become the set's. Published sizes and
    checkpoints stay what they are; `prepare_recorded` refuses them where they do not fit.

    Raises:
        ValueError: there is no such set, or it lacks the words that the backbone needs.
    """
    recorded = RecordedConversations(find_prepared(name_or_path, data_dir))
    layout = LAYOUTS[config.backbone]
    reading = (FRAMES if layout == "frames" else TEXT_POSITIONS)[config.scale]
    rows = [recorded.pool.row(utterance_id) for utterance_id in recorded.pool]
    plan = RecordedPlan(
        name=recorded.folder.name,
        digest=recorded.state.digest,
        hours=round(sum(row.seconds for row in rows) / 3600, 4),
        has_words=any(row.text for row in rows if row.role == "assistant"),
        layout=layout,
        most_carried_pieces=MOST_CARRIED_PIECES,
        **dataclasses.asdict(reading),
    )
    if layout != "frames" and not plan.has_words:
        raise ValueError(
            f"{config.recipe} writes text (layout {layout!r}), and no words of {recorded.folder} are known: put "
            f"transcripts beside the recordings (NAME.vtt, NAME.srt) and prepare them again; {WITHOUT_WORDS}"
        )
    config = dataclasses.replace(
        config,
        model=_fitted(config, recorded),
        data=plan,
        training=with_fields(config.training, gradient_checkpointing=False),
        evaluation=_evaluation(config.evaluation, plan),
    )
    if config.weights_digest is None:  # else fields may still be set to what the checkpoint has
        _require_fit(config, recorded)
    return config


def _fitted(config: SpokenExperiment, recorded: RecordedConversations) -> object:
    # Checkpointed layers would lose the state that they carry.
    model = with_fields(config.model, gradient_checkpointing=False)
    if config.weights_digest is not None or config.scale == KEEPS_PUBLISHED_SIZES:
        return model
    sizes = DataSizes(
        text_tokens=recorded.tokenizer.vocab_size, units=recorded.codebook.size, n_mels=recorded.codebook.n_mels
    )
    return spoken_backbone(config.backbone).fitted(model, sizes)


def _evaluation(first: EvaluationPlan, plan: RecordedPlan) -> EvaluationPlan:
    edges = list(first.position_edges)
    while edges[-1] < plan.validation_positions:
        edges.append(2 * edges[-1])
    return dataclasses.replace(
        first,
        validate_every_steps=max(1, plan.steps // 2),
        checkpoint_every_steps=max(1, plan.steps // 10),
        monitor_every_steps=max(1, min(first.monitor_every_steps, plan.steps // 2)),
        position_edges=tuple(edges),
        # Frames are looked at along whole conversations; a generator of CTC units costs too much for that.
        speech_turns=plan.validation_positions if plan.layout == "frames" else first.speech_turns,
    )


def prepare_recorded(config: SpokenExperiment, folder: Path) -> tuple[PieceSet, PieceSet]:
    """The pieces that are trained on, and the held-out conversations from their beginnings on.

    Raises:
        ValueError: the set is not what it was when the experiment was configured, its words or held-out conversations
            are missing, or the model's vocabularies, units or mel bands are not its.
    """
    plan = config.data
    assert isinstance(plan, RecordedPlan)
    recorded = RecordedConversations(folder, digest=plan.digest)
    backbone = spoken_backbone(config.backbone)
    mini_batch_size = max(arm.ttt.mini_batch_size if arm.ttt else 1 for arm in config.arms)
    counts = {} if backbone.speech_positions is None else {"speech_positions": backbone.speech_positions(config.model)}
    training = pieces_of(recorded, plan.positions, plan.layout, mini_batch_size, **counts)
    whole = pieces_of(recorded, plan.validation_positions, plan.layout, mini_batch_size, **counts)
    for split, pieces in (("train", training), ("validation", whole)):
        if not pieces.split_indices(split):
            reasons = "; ".join(sorted({one.reason for one in pieces.left_out})[:3]) or "none was held out"
            raise ValueError(
                f"{folder} has no {split} conversation for {config.recipe} (layout {plan.layout!r}): {reasons}. "
                f"Recordings are held out by --validation-share, and need words but for frames: {WITHOUT_WORDS}"
            )
    _require_fit(config, recorded)
    return training, whole.beginnings("validation", plan.validation_conversations)


def _require_fit(config: SpokenExperiment, recorded: RecordedConversations) -> None:
    try:
        spoken_backbone(config.backbone).check_data(config, recorded)
    except ValueError as error:
        model = f"the model of {config.recipe} at scale {config.scale}"
        if config.weights_digest is not None:
            model = f"the checkpoint of --weights ({config.weights_digest})"
        raise ValueError(f"{model} does not fit the recordings {recorded.folder.name}: {error}") from error
