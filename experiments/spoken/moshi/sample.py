"""What a trained Moshi says where a fact is asked for in a validation conversation, as text and as sound."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from moshi.models.lm import LMModel
from moshi.utils.sampling import sample_token
from torch import Tensor

from backbones.moshi import delayed_sequence
from experiments.data.dataset import ConversationSet
from experiments.data.framing import UNITS_PER_FRAME
from experiments.spoken.frame_sample import save_frame_sample, sound_of_units
from experiments.spoken.moshi.configuration import MoshiExperiment
from experiments.spoken.moshi.loader import MoshiLoader
from experiments.spoken.moshi.model import able_to_stream

# As the package's own generation draws.
TEXT_TEMPERATURE, TEXT_TOP_K = 0.7, 25
AUDIO_TEMPERATURE, AUDIO_TOP_K = 0.8, 250


def save_sample(
    config: MoshiExperiment, model: LMModel, dataset: ConversationSet, loader: MoshiLoader, folder: Path
) -> list[Path]:
    """See `save_frame_sample`. Drawn as the package draws, by the run's seed."""
    return save_frame_sample(
        config, partial(continued, model), sound_of_units(dataset), model.device, dataset, loader, max(model.delays),
        folder,
    )  # fmt: skip


@torch.no_grad()
def continued(lm: LMModel, codes: Tensor, first: int, frames: int) -> tuple[Tensor, Tensor]:
    """Text (frames,) and units (frames, 4) that the model makes from frame `first` on, given all before it.

    codes (1, 1 + n_q, T): what is heard goes on as they have it, and their own text and units from `first` on are not
    looked at. Units whose delay reaches beyond the last step are left as the codes have them. On the CPU.
    """
    sequence = delayed_sequence(lm, codes).clone()
    own = range(lm.audio_offset, lm.audio_offset + UNITS_PER_FRAME)
    with able_to_stream(lm, first + 1 + frames, first + 1), lm.streaming(1):
        states, text_logits = lm.forward_text(sequence[:, :, : first + 1])
        for step in range(first, first + frames):
            frame = sequence[:, :, step + 1 : step + 2]  # a view: what is drawn is read by the steps to come
            frame[:, 0] = sample_token(text_logits[:, 0, -1:].float(), True, TEXT_TEMPERATURE, TEXT_TOP_K)
            for codebook, stream in enumerate(own):
                if step - lm.delays[stream] < first:
                    continue  # still a unit of a frame that is given
                logits = lm.forward_depformer_training(frame, states[:, -1:])[:, codebook]
                frame[:, stream] = sample_token(logits.float(), True, AUDIO_TEMPERATURE, AUDIO_TOP_K)
            states, text_logits = lm.forward_text(frame)
    ends = [first + 1 + lm.delays[stream] for stream in own]
    units = torch.stack([sequence[0, stream, end : end + frames] for stream, end in zip(own, ends, strict=True)], dim=1)
    return sequence[0, 0, first + 1 : first + 1 + frames].cpu(), units.cpu()
