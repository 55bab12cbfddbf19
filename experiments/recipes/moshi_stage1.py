"""Moshi on long spoken conversations: does TTT remember what a ring, or an equally large window, forgets?

The conversations of llama-omni-stage1 as frames of 80 ms: what the user says is heard, the assistant's text and speech
are predicted. Five arms that differ in the temporal transformer alone:

ttt-mlp, ttt-linear  TTT in the upper quarter of the layers; those below see a window with four pinned first frames
sliding-window       attention with a window that takes the same bytes as ttt-mlp's state; the layers below as above
ring                 the model as the package has it: every layer sees the last frames of its context, nothing pinned
full-attention       every layer sees everything
"""

from __future__ import annotations

from experiments.harness.study import Scale
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.stage1 import first_stage


def moshi_stage1(*, scale: Scale, seed: int) -> MoshiExperiment:
    return first_stage(recipe="moshi-stage1", scale=scale, seed=seed)
