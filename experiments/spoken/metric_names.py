"""Names of what is logged of spoken conversations beyond `harness.metric_names`, which hold for every kind of data."""

from __future__ import annotations

TRAIN_AUDIO_LOSS = "train/audio_loss_nats_per_unit"

VALIDATION_AUDIO_LOSS = "validation/audio_loss_nats_per_unit"
VALIDATION_TIMING_LOSS = "validation/text_timing_loss_nats_per_frame"

# Of frame backbones, where speech is said. Of own recordings without words it is all there is along a conversation.
SPEECH_LOSS_BY_POSITION = "speech_loss_by_position"

# By seconds, so that backbones whose positions last differently can be laid over each other.
SPEECH_LOSS_BY_TIME = "speech_loss_by_time_seconds"
LOSS_BY_TIME = "loss_by_time_seconds"
RECALL_BY_SECONDS = "recall_by_distance_seconds"
VALUE_LOSS_BY_SECONDS = "fact_value_loss_by_distance_seconds"
FACTS_BY_SECONDS = "facts_by_distance_seconds"
