"""What an arm logs: flat names with their units, the same at every scale. One conversation, unless a batch is named."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.memory.accounting import SECONDS_PER_HOUR, SECONDS_PER_MINUTE, ConversationMemory, Subject
from experiments.memory.configuration import POSITIONS_PER_K, Backbone, MemoryExperiment
from experiments.memory.measuring import Measurement

BYTES_PER_POSITION = "memory/bytes_per_position"
BYTES_FIXED = "memory/bytes_fixed"
IS_BOUNDED = "memory/is_bounded"
ATTENTION_BYTES_PER_POSITION = "memory/attention_bytes_per_position"
ATTENTION_BYTES_FIXED = "memory/attention_bytes_fixed"
HIDDEN_STATE_BYTES_PER_POSITION = "memory/hidden_state_bytes_per_position"
TTT_LAYERS = "memory/ttt_layers"
TTT_BYTES_PER_LAYER = "memory/ttt_state_bytes_per_layer"
TTT_INNER_WEIGHT_BYTES_PER_LAYER = "memory/ttt_inner_weight_bytes_per_layer"
TTT_OPEN_MINI_BATCH_BYTES_PER_LAYER = "memory/ttt_open_mini_batch_bytes_per_layer"
GENERATOR_BYTES_PER_SAID_TOKEN = "memory/speech_generator_bytes_per_said_token"
GENERATOR_BYTES_FIXED = "memory/speech_generator_bytes_fixed"
WEIGHTS_BYTES = "memory/weights_bytes"

POSITIONS_PER_SECOND = "speech/positions_per_second"
PUBLISHED_CONTEXT_POSITIONS = "speech/published_context_positions"
PUBLISHED_CONTEXT_HOURS = "speech/published_context_hours"
BYTES_PER_MINUTE = "memory/bytes_per_minute_of_speech"
BYTES_PER_MINUTE_SAID = "memory/bytes_per_minute_said"
BYTES_PER_MINUTE_HEARD = "memory/bytes_per_minute_heard"
BYTES_AFTER_1_HOUR = "memory/bytes_after_1_hour"
FIXED_BYTES_ALL_PARTS = "memory/bytes_fixed_all_parts"

PREDICTED_BYTES = "memory/predicted_bytes"
MEASURED_BYTES = "memory/measured_bytes"
MEASURED_OVER_PREDICTED = "memory/measured_over_predicted"
MEASURED_BYTES_PER_POSITION = "memory/measured_bytes_per_position"


def at_positions(positions: int, batch: int = 1, *, with_weights: bool = False) -> str:
    """`memory/bytes_at_048k_positions`, of a batch `memory/batch_4_bytes_...`: zero-padded, so that names sort."""
    what = "bytes_with_weights" if with_weights else "bytes"
    prefix = f"batch_{batch}_" if batch != 1 or with_weights else ""
    return f"memory/{prefix}{what}_at_{positions // POSITIONS_PER_K:03d}k_positions"


def allocated_at(positions: int, batch: int, what: str) -> str:
    """`memory/allocated_bytes_batch_4_at_048k_positions` of a GPU."""
    return f"memory/allocated_{what}_batch_{batch}_at_{positions // POSITIONS_PER_K:03d}k_positions"


def hours_in(gpu_bytes: float) -> str:
    """Conversation that fits beside the weights; not logged where memory is bounded, for it never ends."""
    return f"memory/hours_in_{gpu_bytes / 1e9:.0f}_GB"


def memory_metrics(subject: Subject, config: MemoryExperiment, backbone: Backbone) -> dict[str, float]:
    """Everything that follows from the modules' own sizes."""
    memory = subject.memory
    metrics: dict[str, float] = {
        BYTES_PER_POSITION: memory.bytes_per_position,
        BYTES_FIXED: memory.bytes_fixed,
        IS_BOUNDED: float(memory.is_bounded),
        WEIGHTS_BYTES: subject.weights_bytes,
        **_parts(memory),
        **_by_speech(subject, config, backbone),
    }
    for positions in config.positions:
        one = memory.bytes_at(positions)
        metrics[at_positions(positions)] = one
        metrics[at_positions(positions, config.batch_of)] = config.batch_of * one
        for batch in (1, config.batch_of):
            metrics[at_positions(positions, batch, with_weights=True)] = subject.weights_bytes + batch * one
    return metrics


def _parts(memory: ConversationMemory) -> dict[str, float]:
    attention = [layer for layer in memory.layers.layers if layer.kind != "ttt"]
    parts: dict[str, float] = {
        ATTENTION_BYTES_PER_POSITION: sum(layer.bytes_per_position for layer in attention),
        ATTENTION_BYTES_FIXED: sum(layer.bytes_fixed for layer in attention),
        HIDDEN_STATE_BYTES_PER_POSITION: memory.hidden_state_bytes_per_position,
        GENERATOR_BYTES_PER_SAID_TOKEN: memory.generator_bytes_per_said_token,
        GENERATOR_BYTES_FIXED: memory.generator_bytes_fixed,
        TTT_LAYERS: memory.ttt_layers,
    }
    state = memory.state
    if state is not None:
        parts |= {
            TTT_BYTES_PER_LAYER: state.total,
            TTT_INNER_WEIGHT_BYTES_PER_LAYER: state.inner_weights,
            TTT_OPEN_MINI_BATCH_BYTES_PER_LAYER: state.open_mini_batch,
        }
    return parts


def _by_speech(subject: Subject, config: MemoryExperiment, backbone: Backbone) -> dict[str, float]:
    memory, per_second = subject.memory, subject.memory.bytes_per_second(backbone)
    rate = backbone.positions_per_second
    metrics: dict[str, float] = {
        POSITIONS_PER_SECOND: rate,
        PUBLISHED_CONTEXT_POSITIONS: subject.context_positions,
        PUBLISHED_CONTEXT_HOURS: subject.context_positions / rate / SECONDS_PER_HOUR,
        BYTES_PER_MINUTE: SECONDS_PER_MINUTE * per_second,
        BYTES_PER_MINUTE_SAID: SECONDS_PER_MINUTE * memory.bytes_per_second_said(backbone),
        BYTES_PER_MINUTE_HEARD: SECONDS_PER_MINUTE * memory.bytes_per_second_heard(backbone),
        BYTES_AFTER_1_HOUR: memory.bytes_after(SECONDS_PER_HOUR, backbone),
        FIXED_BYTES_ALL_PARTS: memory.bytes_fixed + memory.generator_bytes_fixed,
    }
    if per_second > 0:
        room = config.gpu_bytes - subject.weights_bytes - memory.bytes_after(0, backbone)
        metrics[hours_in(config.gpu_bytes)] = max(0.0, room / per_second / SECONDS_PER_HOUR)
    return metrics


def check_metrics(measured: Sequence[Measurement]) -> dict[str, float]:
    """What the small run gave: of its longest stream of the largest batch; the ratio is the worst of all."""
    last = measured[-1]
    first = next(each for each in measured if each.rows == last.rows)
    grown = (last.held_bytes - first.held_bytes) / (last.positions - first.positions) / last.rows
    return {
        PREDICTED_BYTES: last.predicted_bytes,
        MEASURED_BYTES: last.held_bytes,
        MEASURED_OVER_PREDICTED: max((each.held_over_predicted for each in measured), key=lambda ratio: abs(ratio - 1)),
        MEASURED_BYTES_PER_POSITION: grown,
    }


def allocation_metrics(measured: Sequence[Measurement]) -> dict[str, float]:
    """What the GPU's allocator gave for full caches."""
    metrics: dict[str, float] = {}
    for each in measured:
        assert each.allocated_bytes is not None and each.allocated_over_predicted is not None
        metrics[allocated_at(each.positions, each.rows, "bytes")] = each.allocated_bytes
        metrics[allocated_at(each.positions, each.rows, "over_predicted")] = each.allocated_over_predicted
    return metrics
