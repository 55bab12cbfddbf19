"""The conversations of an experiment: built or found once by the parent process, opened by every arm."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments.data.dataset import ConversationSet
from experiments.data.synthetic import build_conversations
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.configuration import SpokenExperiment


@dataclass(frozen=True, kw_only=True)
class ExperimentData:
    """stages: the training conversations of each stage of the curriculum. validation: what every arm is measured on."""

    stages: tuple[ConversationSet, ...]
    validation: ConversationSet

    @property
    def left_out(self) -> list[str]:
        """One line for every conversation that uses an unreadable sound file."""
        every = {id(dataset): dataset for dataset in (*self.stages, self.validation)}.values()
        return sorted({f"{lost.name}: {lost.reason}" for dataset in every for lost in dataset.dropped})


def prepare_data(config: SpokenExperiment, data_dir: Path, *, skips_bad_audio: bool) -> ExperimentData:
    """Builds what the cache lacks, with progress bars, and checks that data and model agree.

    Raises:
        ValueError: a corrupt cached file, or data whose vocabulary, units or mel bands the model does not have.
    """
    specs = [config.data.stage_spec(stage) for stage in config.data.curriculum]
    built = {
        spec: build_conversations(spec, data_dir, skip_bad_audio=skips_bad_audio)
        for spec in dict.fromkeys([config.data.spec, *specs])
    }
    data = ExperimentData(stages=tuple(built[spec] for spec in specs), validation=built[config.data.spec])
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
