"""The prepared views: one for each recipe, one for each backbone's stages, and one across backbones."""

from __future__ import annotations

from analysis.dashboard.layout import Section, View, bar, line, section

LOSS_BY_POSITION = bar("loss by position, nats", "loss_by_position/*")
EXCESS_LOSS = bar("loss above the grammar's own by position, nats", "excess_loss_by_position/*")
NEAR_RECALL = bar("recall of near facts by position", "near_recall_by_position/*")
RECALL = bar("recall by distance to the fact, positions", "recall_by_distance/*")
STATE_BYTES = bar("bytes that a conversation holds", "memory/state_bytes_per_conversation")
STATE_GROWTH = bar(
    "fixed bytes, and bytes a position adds", "memory/state_bytes_fixed", "memory/state_bytes_per_position"
)
SPEED = bar("positions per second", "speed/positions_per_second")
PEAK = bar("peak memory, bytes", "memory/peak_bytes")
TRAINING = section(
    "How every arm learned",
    line("training loss", "train/loss"),
    line("held-out loss", "validation/loss"),
    line("held-out loss of words, nats", "validation/word_loss_nats"),
    line("gradient norm", "train/gradient_norm"),
)
COSTS = section("What every arm costs in memory and time", STATE_BYTES, STATE_GROWTH, SPEED, PEAK)
INNER_STATE = section(
    "What becomes of the fast weights along the stream",
    line("norm of the inner weights by position", "stream/inner_norm"),
    line("effective step by position", "stream/effective_step"),
    line("largest inner weight by position", "stream/largest_weight"),
)

SPOKEN: tuple[Section, ...] = (
    section(
        "How well every arm predicts held-out conversations, by position and by second",
        LOSS_BY_POSITION,
        bar("loss by time, nats by seconds", "loss_by_time_seconds/*"),
        line("held-out loss of text, nats per token", "validation/text_loss_nats_per_token"),
        line("held-out loss of speech, nats per unit", "validation/ctc_loss_*", "validation/audio_loss_*"),
    ),
    section(
        "What is recalled, by the distance to where it was said",
        RECALL,
        bar("recall by distance, seconds", "recall_by_distance_seconds/*"),
        bar("loss of fact values by distance, nats", "fact_value_loss_by_distance/*"),
        bar("recall at all distances, and by guessing", "recall/all_distances", "recall/chance"),
    ),
    COSTS,
    section(
        "How every arm learned", line("training loss", "train/loss"), line("gradient norm", "train/gradient_norm"),
        line("learning rate", "train/learning_rate"),
    ),
)  # fmt: skip
SPOKEN_COLUMNS = ("validation/loss", "recall/all_distances", "speed/positions_per_second", "memory/peak_bytes")

ENDLESS: tuple[Section, ...] = (
    section(
        "What an old state recalls and predicts, against a young one",
        bar("recall, young and old", "endless/recall_*"),
        bar("loss of words, young and old, nats", "endless/word_loss_*"),
    ),
    section("How loss and recall go on along the stream", EXCESS_LOSS, LOSS_BY_POSITION, NEAR_RECALL, RECALL),
    INNER_STATE,
    COSTS,
    TRAINING,
)
ENDLESS_COLUMNS = ("endless/recall_*", "endless/word_loss_*", "endless/norm_growth_exponent")

KV_WRAPAROUND = View(
    key="kv-wraparound",
    title="When Moshi's ring wraps",
    recipes=("kv-wraparound",),
    sections=(
        section("What happens to loss and near recall behind the wrap", EXCESS_LOSS, LOSS_BY_POSITION, NEAR_RECALL),
        section(
            "How it sets in where the ring wraps first",
            bar("loss above the grammar's own by position, nats", "onset_excess_loss_by_position/*"),
            bar("recall of near facts by position", "onset_near_recall_by_position/*"),
        ),
        section("What lies beyond the window is recalled, or it is not", RECALL),
        section(
            "What the package's own ring does, without training",
            bar("capacity of the ring, steps", "ring/capacity_steps", "ring/first_overwriting_step"),
            bar("streamed against windowed, largest difference", "streamed/max_difference*"),
            bar("largest change of an earlier output", "causality/largest_change_of_earlier_outputs"),
        ),
        COSTS,
        TRAINING,
    ),
    columns=("validation/word_loss_nats", "recall/all_distances", "memory/state_bytes_*"),
)

BF16_DRIFT = View(
    key="bf16-drift",
    title="How rounding of a state grows",
    recipes=("bf16-drift",),
    sections=(
        section(
            "How far a rounded state goes from its reference along the stream",
            line("error of the state by updates", "state_error_by_updates/*"),
            line("error of the output by updates", "output_error_by_updates/*"),
            line("share of updates lost to rounding, by updates", "lost_share_of_updates_by_updates/*"),
            line("gap of the inner loss by updates", "inner_loss_gap_by_updates/*"),
        ),
        section(
            "Where it stands at the end, by treatment",
            bar("error of the state, speech", "state_error_at_the_end_speech_lr1/*"),
            bar("error of the output, speech", "output_error_at_the_end_speech_lr1/*"),
            bar("share of updates lost, speech", "lost_share_of_updates_at_the_end_speech_lr1/*"),
        ),
        section("Whether a trained model breaks by it", EXCESS_LOSS, LOSS_BY_POSITION, NEAR_RECALL, RECALL),
        section(
            "What every treatment costs",
            bar("bytes of state a stream", "memory/state_bytes_per_stream/*"),
            bar("seconds an update", "speed/seconds_per_update/*"),
        ),
        TRAINING,
    ),
    columns=("state_error_at_the_end_speech_lr1/*", "validation/word_loss_nats"),
)

ENDLESS_STREAM = View(
    key="endless-stream",
    title="Streams that never end",
    recipes=("endless-stream",),
    sections=ENDLESS,
    columns=ENDLESS_COLUMNS,
)

ROPE_RESET = View(
    key="rope-reset",
    title="Positions that restart or count on",
    recipes=("rope-reset",),
    sections=ENDLESS,
    columns=ENDLESS_COLUMNS,
)

INSTABILITY = View(
    key="instability",
    title="Which choices make training diverge",
    recipes=("instability",),
    sections=(
        section(
            "Which arms diverge, and when an alarm says so first",
            bar("share of runs that diverged", "instability/diverged"),
            bar("step of divergence", "instability/diverged_step"),
            bar("first step of an alarm, by kind", "instability/alarm_step_*"),
        ),
        section(
            "What the fast weights did in training",
            bar("largest |W1|", "instability/largest_W1"),
            bar("inner loss, last fifth over first", "instability/inner_loss_last_fifth_over_first_fifth"),
            line("largest |W1| by step", "ttt/*/W1_max"),
            line("inner loss by step", "ttt/*/inner_loss"),
        ),
        TRAINING,
    ),
    columns=("instability/*", "validation/word_loss_nats"),
)

GIBBERISH = View(
    key="gibberish",
    title="What makes a stream turn to gibberish",
    recipes=("gibberish",),
    sections=(
        section(
            "What each suspect does to the stream, alone and together",
            EXCESS_LOSS,
            bar("share of words that the grammar allows, by position", "legal_words_by_position/*"),
            NEAR_RECALL,
            RECALL,
        ),
        INNER_STATE,
        COSTS,
        TRAINING,
    ),
    columns=("validation/word_loss_nats", "recall/all_distances"),
)

MINI_BATCH_LEAK = View(
    key="mini-batch-leak",
    title="When a mini-batch sees its own future",
    recipes=("mini-batch-leak",),
    sections=(
        section(
            "What a model loses when its text comes one token at a time",
            bar("loss all at once and streamed, nats", "leak/parallel_loss_nats", "leak/streamed_loss_nats"),
            bar("largest difference of logits", "leak/largest_logit_difference*"),
        ),
        section("How readable it writes", bar("shares of what was written", "leak/written_*")),
        TRAINING,
        section("What every arm costs in memory and time", SPEED, PEAK),
    ),
    columns=("leak/*_loss_nats", "leak/largest_logit_difference"),
)

MEMORY = View(
    key="memory",
    title="Bytes of a conversation",
    recipes=("memory",),
    sections=(
        section(
            "What a conversation holds, and what it gains with every position",
            bar("bytes after one hour", "memory/bytes_after_1_hour"),
            bar("bytes at 48k positions", "memory/bytes_at_048k_positions"),
            bar("bytes a position adds", "memory/bytes_per_position"),
            bar("fixed bytes", "memory/bytes_fixed"),
        ),
        section(
            "What fits on one GPU beside the weights",
            bar("hours of conversation", "memory/hours_in_*"),
            bar("bytes of weights", "memory/weights_bytes"),
            bar("bytes with weights at 48k positions", "memory/batch_*_with_weights_at_048k_positions"),
        ),
        section(
            "What small streams really held, over what was computed",
            bar("measured over computed", "memory/measured_over_predicted"),
            bar("bytes, measured and computed", "memory/measured_bytes", "memory/predicted_bytes"),
        ),
        section(
            "What a TTT layer's state consists of",
            bar("inner weights, and open mini-batch", "memory/ttt_inner_weight_*", "memory/ttt_open_mini_batch_*"),
        ),
    ),
    columns=("memory/bytes_fixed", "memory/bytes_per_position", "memory/bytes_after_1_hour", "memory/is_bounded"),
)


def _stage(recipe: str, title: str) -> View:
    return View(key=recipe, title=title, recipes=(recipe,), sections=SPOKEN, columns=SPOKEN_COLUMNS)


VIEWS: tuple[View, ...] = (
    _stage("llama-omni-stage1", "Llama-Omni, stage 1"),
    _stage("moshi-stage1", "Moshi, stage 1"),
    View(
        key="across-backbones",
        title="Across backbones",
        recipes=("*-stage[0-9]",),
        sections=SPOKEN,
        columns=SPOKEN_COLUMNS,
    ),
    View(
        key="llama-omni-stages",
        title="Llama-Omni, stage by stage",
        recipes=("llama-omni-stage[0-9]",),
        sections=SPOKEN,
        columns=SPOKEN_COLUMNS,
    ),
    View(
        key="moshi-stages",
        title="Moshi, stage by stage",
        recipes=("moshi-stage[0-9]",),
        sections=SPOKEN,
        columns=SPOKEN_COLUMNS,
    ),
    KV_WRAPAROUND,
    BF16_DRIFT,
    ENDLESS_STREAM,
    ROPE_RESET,
    INSTABILITY,
    GIBBERISH,
    MINI_BATCH_LEAK,
    MEMORY,
)
"""In the order in which links are printed. A view of several recipes is shown where two of them or more were run."""
