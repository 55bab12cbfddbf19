"""Names of what chains of stages log beyond what every run on spoken conversations does."""

from __future__ import annotations

DIVERGED = "curriculum/diverged"
SECONDS = "speed/seconds_of_stage"

STRAIGHT_MINUS_STAGED = "curriculum/straight_minus_staged_"
FAILED_SHARE = "curriculum/failed_share_of_"
