"""What is measured of validation conversations, against sums done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.harness import metric_names as names
from experiments.harness.buckets import BucketedMean
from experiments.spoken.batches import AskedFact
from experiments.spoken.configuration import EvaluationPlan
from experiments.spoken.evaluation import ConversationScores


def test_values_fall_into_the_bucket_that_begins_at_their_place() -> None:
    mean = BucketedMean((0, 256, 1024))
    mean.add_many(torch.tensor([0, 255, 256, 1023, 1024]), torch.tensor([1.0, 3.0, 5.0, 9.0, 100.0]))
    mean.add(255, 5.0)
    mean.add(1024, 100.0)
    assert mean.means("loss_by_position") == {
        "loss_by_position/00000_00256": 3.0,
        "loss_by_position/00256_01024": 7.0,
    }
    assert list(mean.numbers("n").values()) == [3, 2]


def scores() -> ConversationScores:
    plan = EvaluationPlan(
        validate_every_steps=1, checkpoint_every_steps=1, position_edges=(0, 10, 20), distance_edges=(0, 100, 1000),
        seconds_edges=(0, 30, 60),
    )  # fmt: skip
    return ConversationScores(plan, chance_recall=0.25)


def test_recall_counts_a_value_only_when_every_one_of_its_tokens_was_the_most_likely() -> None:
    measured = scores()
    positions, losses = torch.tensor([3, 4, 5, 12, 13]), torch.tensor([0.5, 1.0, 2.0, 4.0, 0.5])
    facts = [
        AskedFact(torch.tensor([4, 5]), 50, 29.9),
        AskedFact(torch.tensor([12, 13]), 70, 30.0),
        AskedFact(torch.tensor([13]), 500, 31.0),
    ]
    seconds = torch.tensor([0.0, 10.0, 29.9, 30.0, 59.0])
    measured.add_text(positions, seconds, losses, torch.tensor([False, True, True, True, False]), facts)
    measured.add_mean(names.VALIDATION_CTC_LOSS, 20.0, 10)
    measured.add_mean(names.VALIDATION_CTC_LOSS, 100.0, 20)
    measured.add_mean("validation/other", 3.0, 2)
    found = measured.metrics(names.VALIDATION_CTC_LOSS, speech_weight=0.5)
    assert found[names.VALIDATION_TEXT_LOSS] == pytest.approx(8.0 / 5)
    assert found[names.VALIDATION_PERPLEXITY] == pytest.approx(math.exp(8.0 / 5))
    assert found[names.VALIDATION_CTC_LOSS] == pytest.approx(120 / 30)
    assert found[names.VALIDATION_LOSS] == pytest.approx(8.0 / 5 + 0.5 * 4)
    assert found["loss_by_position/00000_00010"] == pytest.approx(3.5 / 3)
    assert found["recall_by_distance/00000_00100"] == 0.5
    assert found["recall_by_distance/00100_01000"] == 0.0
    assert found["fact_value_loss_by_distance/00000_00100"] == pytest.approx((3.0 + 4.5) / 2)
    assert found["facts_by_distance/00000_00100"] == 2
    assert found["loss_by_time_seconds/00000_00030"] == pytest.approx(3.5 / 3)
    assert found["loss_by_time_seconds/00030_00060"] == pytest.approx(4.5 / 2)
    assert found["recall_by_distance_seconds/00000_00030"] == 1.0
    assert found["recall_by_distance_seconds/00030_00060"] == 0.0
    assert found["fact_value_loss_by_distance_seconds/00030_00060"] == pytest.approx((4.5 + 0.5) / 2)
    assert found["facts_by_distance_seconds/00030_00060"] == 2
    assert found["validation/other"] == 1.5
    assert found[names.RECALL_ALL] == pytest.approx(1 / 3)
    assert found[names.RECALL_CHANCE] == 0.25


def test_a_fact_that_stands_on_no_label_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"positions \[6\] is not among the labels"):
        scores().add_text(
            torch.tensor([3, 7]), torch.zeros(2), torch.ones(2), torch.ones(2, dtype=torch.bool),
            [AskedFact(torch.tensor([6]), 1, 1.0)],
        )  # fmt: skip


def test_metric_names_sort_as_their_numbers() -> None:
    found = [names.bucket_name("s", *bucket) for bucket in names.buckets((0, 256, 1024, 16384))]
    assert found == sorted(found)
    assert [names.bucket_label(*bucket) for bucket in names.buckets((0, 256, 1024, 8192))] == [
        "0-256",
        "256-1k",
        "1k-8k",
    ]
