"""How the experiment is done."""

from __future__ import annotations

import json
from collections.abc import Sequence

from experiments.data.dataset import ConversationSet
from experiments.data.spec import ConversationSpec
from experiments.data.synthetic import build_conversations
from experiments.harness.data_source import DataSource
from experiments.harness.run import with_starts
from experiments.harness.study import RunOptions, Study
from experiments.long_generation.arm import PreparedSpeech, run_speaking_arm
from experiments.long_generation.configuration import LongGenerationExperiment
from experiments.long_generation.real_speech import RealSpeech, learn_real_speech
from experiments.long_generation.report import report_long_generation
from experiments.long_generation.trained_models import find_trained
from experiments.spoken.backbone import spoken_backbone
from experiments.spoken.prepared_data import prepare_data


def prepare_speech(experiment: LongGenerationExperiment, options: RunOptions) -> PreparedSpeech:
    """Finds trained models, prepares the training of those that are missing, and learns what real speech is.

    Backbones that say the same symbols of the same conversations share what is learned.
    """
    arms = [experiment.arm(name) for name in with_starts(experiment, options.arms or experiment.arm_names)]
    found, missing = {}, list[str]()
    for arm in arms:
        trained = find_trained(experiment.model_of(arm), arm.mixer, options.runs_dir)
        if trained is not None:
            found[arm.name] = trained
            print(f"{arm.name}: speaks with the model that {trained.folder} trained", flush=True)
        elif experiment.starts_from(arm.name) is None:
            missing.append(arm.name)
            recipe = experiment.model_of(arm).recipe
            print(f"{arm.name}: no finished {recipe} of this configuration is here; it is trained first", flush=True)
    backbones = list(dict.fromkeys(arm.backbone for arm in arms))
    models = {model.backbone: model for model in experiment.models}
    heard = {name: _heard(experiment, name, options) for name in backbones}
    return PreparedSpeech(
        heard=heard,
        real=_real(experiment, backbones, heard),
        training={
            name: prepare_data(models[name], options.data_dir, skips_bad_audio=options.skips_bad_audio)
            for name in dict.fromkeys(experiment.arm(arm).backbone for arm in missing)
        },
        found=found,
    )


def conversations_heard(experiment: LongGenerationExperiment, data: PreparedSpeech) -> tuple[DataSource, ...]:
    """The sets that are heard and that real speech is taken from."""
    specs = {dataset.spec.digest(): dataset.spec for dataset in data.heard.values()}
    return tuple(map(heard_source, specs.values()))


def heard_source(spec: ConversationSpec) -> DataSource:
    digest = spec.digest()
    return DataSource(name=f"heard-{digest[:6]}", digest=digest, made_from=json.dumps(spec.as_dict()))


def _heard(experiment: LongGenerationExperiment, backbone: str, options: RunOptions) -> ConversationSet:
    model = next(each for each in experiment.models if each.backbone == backbone)
    spec = experiment.heard_spec(model)
    return build_conversations(spec, options.data_dir, skip_bad_audio=options.skips_bad_audio)


def _real(
    experiment: LongGenerationExperiment, backbones: Sequence[str], heard: dict[str, ConversationSet]
) -> dict[str, RealSpeech]:
    learned: dict[tuple[object, str], RealSpeech] = {}
    real = {}
    for name in backbones:
        record = spoken_backbone(name)
        same = (record.real_speech, heard[name].spec.digest())
        if same not in learned:
            learned[same] = learn_real_speech(experiment, record, heard[name])
        real[name] = learned[same]
    return real


LONG_GENERATION = Study(
    prepare=prepare_speech,
    data_sources=conversations_heard,
    run_arm=run_speaking_arm,
    report=report_long_generation,
    preloads=("experiments.long_generation.arm",),
)
