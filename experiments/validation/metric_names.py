"""Names of what a validation logs beyond what every run on spoken conversations does."""

from __future__ import annotations

PERPLEXITY_BY_POSITION = "perplexity_by_position"
GAIN_BY_POSITION = "loss_against_fresh_memory_by_position"
PERPLEXITY_RATIO = "validation/perplexity_last_over_first"
READ_SPEED = "speed/read_positions_per_second"
PEAK_PER_SAMPLE = "memory/peak_bytes_per_sample_of_"
STREAMS = "validation/streams"
SKIPPED_TAG = "skipped.long_generation"
"""Why a model was not heard to speak for long."""
REAL_SPEECH_TAG = "real_speech"
"""How often the alarm that its speech is watched by is raised by real speech."""
VALIDATED_RUN_TAG = "validated_run"
EXPERIMENT = "validation"
