"""Qwen + Mimi on long spoken conversations: does TTT remember what an equally large window forgets?

The conversations of llama-omni-stage1 as frames of 80 ms: what the user says is heard, the assistant's text and speech
are predicted. Four arms that differ in the top 16 of 28 layers (of a smaller model, the same share):

ttt-mlp, ttt-linear  TTT in the place of attention; the layers below see a window with four pinned first frames
sliding-window       attention with a window that takes the same bytes as ttt-mlp's state; the layers below as above
full-attention       every layer sees everything
"""

from __future__ import annotations

from experiments.harness.study import Scale
from experiments.spoken.qwen_mimi.configuration import QwenMimiExperiment
from experiments.spoken.qwen_mimi.stage1 import first_stage


def qwen_mimi_stage1(*, scale: Scale, seed: int) -> QwenMimiExperiment:
    return first_stage(recipe="qwen-mimi-stage1", scale=scale, seed=seed)
