"""Bytes really held: of every arm at small size, of full caches with a stand-in for a GPU's allocator; wrong ones."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator

import pytest
import torch

from experiments.harness.held_tensors import held_bytes
from experiments.memory import metrics as names
from experiments.memory.accounting import Subject
from experiments.memory.configuration import AllocationPlan, Arrangement
from experiments.memory.measuring import Measurement, WrongPredictionError, check, measure_allocated, measure_small
from experiments.memory.metrics import allocation_metrics, check_metrics
from experiments.memory.subjects import small_subject
from experiments.recipes.memory import memory

CONFIG = memory(scale="cpu", seed=0)


def subject_of(arrangement: Arrangement) -> Subject:
    if arrangement.backbone == "moshi":
        pytest.importorskip("moshi", reason="needs moshi; runs where `make setup` was")
    return small_subject(CONFIG.check.shrunk(arrangement), CONFIG.check.mini_batch_size)


@pytest.mark.parametrize("name", CONFIG.arm_names)
def test_a_small_stream_of_every_arm_holds_what_is_predicted_for_it_to_the_byte(name: str) -> None:
    subject = subject_of(CONFIG.arm(name))
    measured = measure_small(subject, CONFIG.check)
    check(measured)
    assert [each.held_bytes for each in measured] == [each.predicted_bytes for each in measured]
    assert {each.rows for each in measured} == {1, 4}
    grown = check_metrics(measured)[names.MEASURED_BYTES_PER_POSITION]
    assert grown == subject.memory.bytes_per_position
    bounded = name.startswith("moshi") or name.endswith(("window", "every"))
    assert (grown == 0) == subject.memory.is_bounded == bounded


def test_a_view_counts_as_all_that_it_keeps_alive_and_what_is_shared_counts_once() -> None:
    large, small = torch.zeros(100, dtype=torch.float64), torch.zeros(3)
    assert held_bytes({"kept": large[:2]}) == 800
    assert held_bytes([large[:2], (large[5:], {"again": large.view(10, 10)}), small]) == 812
    assert held_bytes([large[:2], small], besides=[large]) == 12
    assert held_bytes(torch.nn.Linear(3, 3)) == 0


def test_a_cache_that_keeps_a_whole_prompt_alive_by_a_view_is_found() -> None:
    arrangement = CONFIG.check.shrunk(CONFIG.arm("qwen-7b-window"))
    subject = subject_of(arrangement)
    with subject.open_stream(1) as stream:
        stream.advance(25)
        held, _, _ = stream.held  # pyright: ignore[reportGeneralTypeIssues]
        before = held_bytes(stream.held, subject.weights())
        prompt = torch.zeros(1, 2, 25, 8, dtype=torch.bfloat16)
        layer = held.layers[0]
        layer.memory = dataclasses.replace(layer.memory, keys=prompt[:, :, -11:])
        assert layer.memory.nbytes == held.layers[1].memory.nbytes
        assert held_bytes(stream.held, subject.weights()) == before + 2 * 14 * 8 * 2


def tensors_alive() -> int:
    """Stands in for the GPU's allocator: bytes of the storages of every tensor that the interpreter knows."""
    gc.collect()
    # By exact type: asking some lazy objects for their class imports what they stand for.
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    storages = [each.untyped_storage() for each in tensors if each.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.fixture
def gpu_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "memory_allocated", tensors_alive)
    monkeypatch.setattr(torch.cuda, "memory_reserved", tensors_alive)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**7, 10**7))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    gc.freeze()  # what was there before is not looked through
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("gpu_stand_in")
@pytest.mark.parametrize(
    "name", ["qwen-7b-ttt-mlp-top", "moshi-ttt-linear-top", "llama-omni-attention-all-hidden-states"]
)
def test_full_caches_take_what_the_allocator_says_and_what_does_not_fit_is_named(name: str) -> None:
    subject = subject_of(CONFIG.arm(name))
    plan = AllocationPlan(batch_sizes=(1, 3), positions=(13, 29, 90_000), positions_per_call=8)
    measured, left_out = measure_allocated(subject, plan)
    check(measured)
    expected = [(rows, positions) for rows in (1, 3) for positions in (13, 29, 90_000)]
    if not subject.holds_all_at_once:
        expected = [each for each in expected if each[1] != 90_000]
        assert len(left_out) == 2 and left_out[1].startswith("3 x 90,000 positions need ")
    assert [(each.rows, each.positions) for each in measured] == expected
    for each in measured:
        assert each.held_bytes == each.predicted_bytes
        # What moshi keeps beside: a flag for every row and module, and a counter.
        assert 0 <= each.allocated_bytes - each.predicted_bytes < 200
    logged = allocation_metrics([dataclasses.replace(measured[-1], positions=4096)])
    assert logged["memory/allocated_bytes_batch_3_at_004k_positions"] == measured[-1].allocated_bytes


def test_more_or_less_than_predicted_is_an_error_that_names_the_stream() -> None:
    right = Measurement(rows=3, positions=29, predicted_bytes=10**10, held_bytes=10**10, allocated_bytes=10**10 + 10**8)
    check([right])
    for held in (10**10 + 1, 10**10 - 1):
        with pytest.raises(WrongPredictionError, match=r"3 x 29 positions: predicted 10,000,000,000"):
            check([right, dataclasses.replace(right, held_bytes=held)])
    for allocated in (10**10 - 1, 10**10 + 3 * 10**8):
        with pytest.raises(WrongPredictionError, match="more than rounding explains"):
            check([dataclasses.replace(right, allocated_bytes=allocated)])
