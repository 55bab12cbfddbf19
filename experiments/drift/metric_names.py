"""Names of what only the drift experiment logs. The part before the last slash is the section of MLflow's charts."""

from __future__ import annotations

from experiments.drift.configuration import VectorKind

STATE_ERROR = "state_error"
OUTPUT_ERROR = "output_error"
INNER_LOSS_GAP = "inner_loss_gap"
LOST_SHARE = "lost_share_of_updates"
STEP_ERROR = "step_error"
STATE_MEASURES = (STATE_ERROR, OUTPUT_ERROR, INNER_LOSS_GAP, LOST_SHARE, STEP_ERROR)

NARROW_INNER_PRODUCTS = "narrow_inner_products"
STATE_BYTES = "memory/state_bytes_per_stream"
SECONDS = "speed/seconds_per_update"


def setting_name(kind: VectorKind, step_factor: float) -> str:
    """`speech_lr1`: what flows, and at which multiple of the default step size."""
    return f"{kind}_lr{step_factor:g}"


def curve_name(measure: str, treatment: str) -> str:
    """Logged with steps: updates. `state_error_by_updates/bf16`."""
    return f"{measure}_by_updates/{treatment}"
