"""Llama-Omni on long spoken conversations: does TTT remember what an equally large window forgets?

Conversations of 8,192 positions (smoke: 512) in which facts are told early and asked for late. Four arms that differ in
the upper quarter of the language model's layers alone:

ttt-mlp, ttt-linear  TTT in the place of attention; the layers below see a window with four pinned first positions
sliding-window       attention with a window that takes the same bytes as ttt-mlp's state; the layers below as above
full-attention       nothing mounted: every layer sees everything
"""

from __future__ import annotations

from experiments.harness.study import Scale
from experiments.spoken.llama_omni.configuration import LlamaOmniExperiment
from experiments.spoken.llama_omni.stage1 import first_stage


def llama_omni_stage1(*, scale: Scale, seed: int) -> LlamaOmniExperiment:
    return first_stage(recipe="llama-omni-stage1", scale=scale, seed=seed)
