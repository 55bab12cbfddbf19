"""The conversations of an experiment: built or found once by the parent process, opened by every arm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.data.conversation_lines import PooledConversations
from experiments.data.synthetic import build_conversations
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.configuration import DataPlan, SpokenExperiment


@dataclass(frozen=True, kw_only=True)
class ExperimentData:
    """stages: the training conversations of each stage of the curriculum; of recordings their pieces, as one stage.
    validation: what every arm is measured on. left_out: one line for whatever cannot be used, and why.
    """

    stages: tuple[PooledConversations, ...]
    validation: PooledConversations
    left_out: tuple[str, ...] = ()


def prepare_data(config: SpokenExperiment, data_dir: Path, *, skips_bad_audio: bool) -> ExperimentData:
    """Builds what the cache lacks, with progress bars, and checks that data and model agree.

    Raises:
        ValueError: a corrupt cached file, or data whose vocabulary, units or mel bands the model does not have.
    """
    assert isinstance(config.data, DataPlan)
    specs = [config.data.stage_spec(stage) for stage in config.data.curriculum]
    built = {
        spec: build_conversations(spec, data_dir, skip_bad_audio=skips_bad_audio)
        for spec in dict.fromkeys([config.data.spec, *specs])
    }
    left_out = {f"{lost.name}: {lost.reason}" for dataset in built.values() for lost in dataset.dropped}
    data = ExperimentData(
        stages=tuple(built[spec] for spec in specs),
        validation=built[config.data.spec],
        left_out=tuple(f"left out, unreadable audio: {line}" for line in sorted(left_out)),
    )
    spoken_backbone(config.backbone).check_data(config, data.validation)
    if not data.validation.split_indices("validation"):
        raise ValueError("no validation conversation is left: all of them use unreadable sound files")
    return data


def require_vocabularies(needs: dict[str, tuple[int, int, str]]) -> None:
    """Raises ValueError where the data has more of something than the model knows.

    needs: what -> (how many the data has, how many the model knows, the field to raise).
    """
    for what, (needed, available, field) in needs.items():
        if needed > available:
            raise ValueError(f"the data has {needed} {what}, the model only {available}; raise {field}")
