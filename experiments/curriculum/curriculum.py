"""All four stages of a backbone in a row, the TTT arm's and those of a window of equal memory as its control."""

from __future__ import annotations

from experiments.curriculum.chain import ChainExperiment, Link
from experiments.curriculum.stages import CONTINUED_ARM, CONTROL_ARM, LATER_STAGES, first_stage_arms, later_stage
from experiments.spoken.configuration import SpokenExperiment


def stages_in_a_row(recipe: str, first: SpokenExperiment) -> ChainExperiment:
    """Arms `ttt-mlp-stage1` to `sliding-window-stage4`, each what the recipe of that stage is.

    The control costs little: on two cores it is trained while the other is. Stage by stage it says what is due to
    more training, and what to a memory that a window has not.
    """
    links = []
    for stage in (1, *LATER_STAGES):
        for arm in (CONTINUED_ARM, CONTROL_ARM):
            own = f"{first.backbone}-stage{stage}"
            experiment = first_stage_arms(first, (arm,)) if stage == 1 else later_stage(first, stage, own, (arm,))
            before = None if stage == 1 else f"{arm}-stage{stage - 1}"
            links.append(Link(name=f"{arm}-stage{stage}", experiment=experiment, starts_from=before))
    return ChainExperiment(recipe=recipe, scale=first.scale, seed=first.seed, links=tuple(links))
