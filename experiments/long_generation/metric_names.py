"""Names of what is logged of long streams."""

from __future__ import annotations

REAL_TIME_FACTOR = "speed/real_time_factor"
"""Seconds of compute per second of the conversation, one stream alone: below 1 is faster than it sounds."""
FIRST_AUDIO_MS = "speed/first_audio_ms"
SLOWDOWN = "speed/real_time_factor_last_over_first_quarter"

STATE_BYTES_AT_THE_END = "memory/held_bytes_at_the_end"
STATE_BYTES_PER_MINUTE = "memory/held_bytes_per_minute"
RESIDENT_BYTES_PER_MINUTE = "memory/resident_bytes_per_minute"

STREAM_SECONDS = "stream/seconds"
POSITIONS_PER_SECOND = "stream/positions_per_second"

SHARE_WITH_ALARM = "quality/share_of_streams_with_alarm"
ALARMS_PER_HOUR = "quality/alarms_per_hour"
FIRST_ALARM_S = "quality/first_alarm_median_s"

LATE_MINUS_EARLY = "late_minus_early"
ALONG = "along"
"""Sections of curves along the stream, their step the second at which a bucket ends, and of the change over it."""

LOGGED_AS_TRAINED = ("validation/text_loss_nats_per_token", "recall/all_distances", "recall/chance")
LOGGED_SECTIONS_AS_TRAINED = (
    "loss_by_position", "recall_by_distance", "loss_by_time_seconds", "recall_by_distance_seconds",
)  # fmt: skip
"""What the model's training has measured, repeated here so that one table holds all of a backbone."""
