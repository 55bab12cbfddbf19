"""The prepared views: one for each recipe, one for each backbone's stages, and one across backbones."""

from __future__ import annotations

from analysis.dashboard.layout import Section, View, bars, lines, lines_together, section

LOSS_BY_POSITION = bars("loss_by_position/*")
EXCESS_LOSS = bars("excess_loss_by_position/*")
NEAR_RECALL = bars("near_recall_by_position/*")
RECALL = bars("recall_by_distance/*")
SPEED_AND_PEAK = bars("speed/positions_per_second", "memory/peak_bytes")
STATE_BYTES = bars("memory/state_bytes_per_conversation", "memory/state_bytes_fixed", "memory/state_bytes_per_position")
TRAINING = section(
    "How every arm learned",
    lines("train/loss", "validation/loss", "validation/word_loss_nats", "train/gradient_norm"),
)
COSTS = section("What every arm costs", STATE_BYTES, SPEED_AND_PEAK)
INNER_STATE = section(
    "What becomes of the fast weights",
    lines("stream/inner_norm", "stream/effective_step", "stream/largest_weight"),
)

SPOKEN: tuple[Section, ...] = (
    section(
        "How well every arm predicts held-out conversations",
        LOSS_BY_POSITION,
        bars("loss_by_time_seconds/*"),
        lines("validation/text_loss_nats_per_token", "validation/ctc_loss_*", "validation/audio_loss_*"),
    ),
    section(
        "What is recalled, by distance",
        RECALL,
        bars("recall_by_distance_seconds/*", "fact_value_loss_by_distance/*", "recall/all_distances", "recall/chance"),
    ),
    COSTS,
    section("How every arm learned", lines("train/loss", "train/gradient_norm", "train/learning_rate")),
)
SPOKEN_COLUMNS = ("validation/loss", "recall/all_distances", "speed/positions_per_second", "memory/peak_bytes")

ENDLESS: tuple[Section, ...] = (
    section(
        "What an old state knows, and a young one",
        bars("endless/recall_*", "endless/word_loss_*"),
    ),
    section("How loss and recall go on", EXCESS_LOSS, LOSS_BY_POSITION, NEAR_RECALL, RECALL),
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
        section("What happens behind the wrap", EXCESS_LOSS, LOSS_BY_POSITION, NEAR_RECALL),
        section(
            "How it begins at the first wrap",
            bars("onset_excess_loss_by_position/*", "onset_near_recall_by_position/*"),
        ),
        section("What is recalled, by distance", RECALL),
        section(
            "What the package's own ring does",
            bars(
                "ring/capacity_steps",
                "ring/first_overwriting_step",
                "streamed/max_difference*",
                "causality/largest_change_of_earlier_outputs",
            ),
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
            "How a rounded state leaves its reference",
            lines_together("state_error_by_updates/*"),
            lines_together("output_error_by_updates/*"),
            lines_together("lost_share_of_updates_by_updates/*"),
            lines_together("inner_loss_gap_by_updates/*"),
        ),
        section(
            "Where it stands at the end",
            bars(
                "state_error_at_the_end_speech_lr1/*",
                "output_error_at_the_end_speech_lr1/*",
                "lost_share_of_updates_at_the_end_speech_lr1/*",
            ),
        ),
        section("Whether a trained model breaks", EXCESS_LOSS, LOSS_BY_POSITION, NEAR_RECALL, RECALL),
        section(
            "What every treatment costs",
            bars("memory/state_bytes_per_stream/*", "speed/seconds_per_update/*"),
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
            "Which arms diverge, and what warns first",
            bars("instability/diverged", "instability/diverged_step", "instability/alarm_step_*"),
        ),
        section(
            "What the fast weights did",
            bars("instability/largest_W1", "instability/inner_loss_last_fifth_over_first_fifth"),
            lines("ttt/*/W1_max", "ttt/*/inner_loss"),
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
            "What each suspect does to the stream",
            EXCESS_LOSS,
            bars("legal_words_by_position/*"),
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
            "What is lost one token at a time",
            bars("leak/parallel_loss_nats", "leak/streamed_loss_nats", "leak/largest_logit_difference*"),
        ),
        section("How readable it writes", bars("leak/written_*")),
        TRAINING,
        section("What every arm costs", SPEED_AND_PEAK),
    ),
    columns=("leak/*_loss_nats", "leak/largest_logit_difference"),
)

GIBBERISH_DETECTOR = View(
    key="gibberish-detector",
    title="How surely gibberish is told",
    recipes=("gibberish-detector",),
    sections=(
        section("What each view tells from speech (area under the ROC)", bars("auc_by_kind/*")),
        section(
            "Whether it says when",
            bars("share_of_onsets_by_kind/*", "delay_seconds_by_kind/*"),
        ),
        section(
            "How often it is wrong",
            bars("detector/false_alarms", "detector/clean_hours", "detector/calibrated_hours", "detector/threshold"),
        ),
        section(
            "What every view costs",
            bars("speed/seconds_per_hour_of_stream", "memory/peak_bytes", "memory/peak_bytes_above_start"),
        ),
    ),
    columns=("detector/false_alarms", "detector/clean_hours", "auc_by_kind/*"),
)

LONG_GENERATION = View(
    key="long-generation",
    title="Four backbones that go on speaking",
    recipes=("long-generation",),
    sections=(
        section(
            "What speaking takes",
            bars("speed/real_time_factor", "speed/first_audio_ms", "speed/real_time_factor_last_over_first_quarter"),
            lines("along/real_time_factor"),
        ),
        section(
            "What a stream holds",
            bars("memory/held_bytes_at_the_end", "memory/held_bytes_per_minute", "memory/resident_bytes_per_minute"),
            lines("along/held_bytes", "along/resident_bytes"),
        ),
        section(
            "How good it is along the way",
            bars("quality/share_of_streams_with_alarm", "quality/alarms_per_hour", "late_minus_early/*"),
            lines(
                "along/share_of_streams_after_first_alarm",
                "along/cross_entropy_nats",
                "along/repeated_share",
                "along/entropy_nats",
                "along/silence_share",
                "along/loudness_dbfs",
            ),
        ),
        section(
            "How the same models did when they were trained",
            bars("loss_by_time_seconds/*"),
            LOSS_BY_POSITION,
            bars("recall_by_distance_seconds/*", "recall/all_distances", "recall/chance"),
            RECALL,
        ),
    ),
    columns=(
        "speed/real_time_factor",
        "speed/first_audio_ms",
        "memory/held_bytes_per_minute",
        "quality/share_of_streams_with_alarm",
        "validation/text_loss_nats_per_token",
        "recall/all_distances",
    ),
)

MEMORY = View(
    key="memory",
    title="Bytes of a conversation",
    recipes=("memory",),
    sections=(
        section(
            "What a conversation holds",
            bars(
                "memory/bytes_after_1_hour",
                "memory/bytes_at_048k_positions",
                "memory/bytes_per_position",
                "memory/bytes_fixed",
            ),
        ),
        section(
            "What fits on one GPU",
            bars("memory/hours_in_*", "memory/weights_bytes", "memory/batch_*_with_weights_at_048k_positions"),
        ),
        section(
            "What small streams really held",
            bars("memory/measured_over_predicted", "memory/measured_bytes", "memory/predicted_bytes"),
        ),
        section(
            "What a TTT layer's state consists of",
            bars("memory/ttt_inner_weight_*", "memory/ttt_open_mini_batch_*"),
        ),
    ),
    columns=("memory/bytes_fixed", "memory/bytes_per_position", "memory/bytes_after_1_hour", "memory/is_bounded"),
)

ADAPTER_SIZE = View(
    key="adapter-size",
    title="Lines of adapters",
    recipes=("adapter-size",),
    sections=(
        section(
            "What its whole folder takes",
            bars("adapter/whole_folder_lines", "adapter/whole_folder_code_lines", "adapter/whole_folder_files"),
        ),
        section(
            "What mounting TTT takes of it",
            bars(
                "adapter/imports_ttt_core_lines",
                "adapter/imports_ttt_core_code_lines",
                "adapter/imports_ttt_core_files",
            ),
        ),
    ),
    columns=("adapter/whole_folder_lines", "adapter/imports_ttt_core_lines"),
)

MODEL_CARDS = View(
    key="model-cards",
    title="Published models, counted",
    recipes=("model-cards",),
    sections=(
        section(
            "How large each model is",
            bars("card/language_model_parameters", "card/known_parameters", "card/published_parameters"),
        ),
        section(
            "How fast speech fills how long a context",
            bars("card/heard_positions_hz", "card/said_positions_hz", "card/context_positions"),
        ),
    ),
    columns=("card/language_model_parameters", "card/heard_positions_hz", "card/context_positions"),
)


def _spoken(key: str, title: str, recipes: str = "") -> View:
    """recipes: a pattern of their names; the recipe called `key` where none is given."""
    return View(key=key, title=title, recipes=(recipes or key,), sections=SPOKEN, columns=SPOKEN_COLUMNS)


CURRICULUM_ABLATION = View(
    key="curriculum-ablation",
    title="Straight to 64k, or in stages",
    recipes=("curriculum-ablation",),
    sections=(
        section(
            "Which way diverges, and how well each predicts the longest conversations",
            bars("curriculum/diverged", "curriculum/straight_minus_staged_*"),
            LOSS_BY_POSITION,
        ),
        section("What is recalled, by distance", RECALL),
        section("What the fast weights did", lines("ttt/*/W1_max", "ttt/*/inner_loss")),
        TRAINING,
        COSTS,
    ),
    columns=("curriculum/diverged", "validation/text_loss_nats_per_token", "recall/all_distances"),
)

BACKBONES = {
    "llama-omni": "Llama-Omni", "moshi": "Moshi", "qwen-tts": "Qwen + TTS", "qwen-mimi": "Qwen + Mimi",
}  # fmt: skip
"""As their recipes are called, and as people call them."""

VIEWS: tuple[View, ...] = (
    *(_spoken(f"{name}-stage1", f"{title}, stage 1") for name, title in BACKBONES.items()),
    _spoken("across-backbones", "Across backbones", recipes="*-stage[0-9]"),
    *(_spoken(f"{name}-stages", f"{title}, stage by stage", f"{name}-stage[0-9]") for name, title in BACKBONES.items()),
    *(_spoken(f"{name}-curriculum", f"{title}, the curriculum") for name, title in BACKBONES.items()),
    *(
        _spoken(f"{name}-stage{stage}", f"{title}, stage {stage}")
        for name, title in BACKBONES.items()
        for stage in (2, 3, 4)
    ),
    CURRICULUM_ABLATION,
    KV_WRAPAROUND,
    BF16_DRIFT,
    ENDLESS_STREAM,
    ROPE_RESET,
    INSTABILITY,
    GIBBERISH,
    MINI_BATCH_LEAK,
    GIBBERISH_DETECTOR,
    LONG_GENERATION,
    MEMORY,
    ADAPTER_SIZE,
    MODEL_CARDS,
)
"""In the order in which links are printed. A view of several recipes is shown where two of them or more were run."""
