"""Qwen + TTS on long spoken conversations: does TTT remember what an equally large window forgets?

The conversations of llama-omni-stage1. The model reads the transcript of what the user says, and writes text for a
text-to-speech engine; it has no speech units to learn. Four arms that differ in the upper quarter of its layers alone:

ttt-mlp, ttt-linear  TTT in the place of attention; the layers below see a window with four pinned first positions
sliding-window       attention with a window that takes the same bytes as ttt-mlp's state; the layers below as above
full-attention       nothing mounted: every layer sees everything

At scale full the window of equal bytes is longer than the conversations (12,344 positions: Qwen2.5-1.5B keeps 1 KiB of
one in a layer), so there it is full attention in those layers.
"""

from __future__ import annotations

from experiments.harness.study import Scale
from experiments.spoken.qwen_tts.configuration import QwenExperiment
from experiments.spoken.qwen_tts.stage1 import first_stage


def qwen_tts_stage1(*, scale: Scale, seed: int) -> QwenExperiment:
    return first_stage(recipe="qwen-tts-stage1", scale=scale, seed=seed)
