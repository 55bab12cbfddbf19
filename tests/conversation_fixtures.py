"""The small set of conversations that the tests of the data room share."""

from __future__ import annotations

from experiments.data.spec import ConversationSpec

SPEC = ConversationSpec(
    positions=500,
    conversations=5,
    validation_conversations=2,
    subjects=3,
    values=4,
    small_talk=12,
    unit_vocab_size=30,
    unit_fit_utterances=20,
    text_vocab_size=600,
    seed=3,
)
