"""Precision policies on single numbers, against every number that the narrow dtypes have and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from ttt_core import POLICIES
from ttt_core.precision import CommitPlace

MINI_BATCH = 5


def place(number: int) -> CommitPlace:
    return CommitPlace(torch.tensor([number * MINI_BATCH]), 0, MINI_BATCH, 0)


def neighbours(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a 16-bit dtype, in order."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).double()
    return every[every.isfinite()].unique()


def awkward_numbers() -> Tensor:
    """(1, n) FP32 numbers of all signs and sizes: ordinary, ties, tiny, zero."""
    generator = torch.Generator().manual_seed(1)
    ordinary = torch.randn(500, generator=generator) * 10.0 ** torch.randint(-6, 4, (500,), generator=generator)
    ties = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -(1 + 2.0**-8), 1 + 2.0**-11, 2.0**-25, 0.0, 1e-30, -3.0])
    return torch.cat([ordinary, ties])[None]


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_rounding_to_nearest_finds_the_nearest_of_all_numbers(name, dtype) -> None:
    values, every = awkward_numbers(), neighbours(dtype)
    kept = POLICIES[name].round(values, place(3)).double()
    nearest = (values.double().mT - every[None]).abs().min(dim=1).values
    assert torch.equal((values.double() - kept).abs()[0], nearest)


def test_stochastic_rounding_takes_one_of_two_neighbours_and_is_right_on_average() -> None:
    values, every = awkward_numbers(), neighbours(torch.bfloat16)
    draws = 2000
    kept = torch.stack([POLICIES["bf16_stochastic"].round(values, place(n))[0] for n in range(draws)]).double()
    exact = values[0].double()
    above = every[torch.searchsorted(every, exact)]
    below = every[torch.searchsorted(every, exact, right=True) - 1]
    assert ((kept == above) | (kept == below)).all()
    gap = above - below
    chance = torch.where(gap > 0, (exact - below) / gap.clamp_min(1e-300), 0.0)
    error = (kept.mean(dim=0) - exact).abs() / gap.clamp_min(1e-300)
    bound = 5 * (chance * (1 - chance) / draws).sqrt() + 2.0**-15
    assert (error[gap > 0] <= bound[gap > 0]).all(), "biased"
    assert torch.equal(kept[:, gap == 0], exact[gap == 0].expand(draws, -1)), "a number bfloat16 holds was moved"


def test_random_bits_are_new_for_every_commit_tensor_and_element_and_the_same_for_every_row() -> None:
    policy, halfway = POLICIES["bf16_stochastic"], torch.full((3, 4000), 1 + 2.0**-8)

    def went_up(tokens: list[int], tensor: int = 0) -> Tensor:
        kept = policy.round(halfway, CommitPlace(torch.tensor(tokens), 0, MINI_BATCH, tensor))
        return (kept > halfway).double()

    first = went_up([5, 10, 10])
    assert torch.equal(first[1], first[2]) and torch.equal(went_up([10, 5, 12])[0], first[1])
    assert torch.equal(went_up([12, 0, 0])[0], first[1]), "the third commit, wherever in it the call began"
    for other in (first[1], went_up([5, 0, 0], tensor=1)[0], first[0].roll(1)):
        agree = (first[0] == other).double().mean().item()
        assert abs(agree - 0.5) < 4 * 0.5 / 4000**0.5, "the bits of two draws hang together"


def test_a_compensated_pair_keeps_sixteen_bits_and_is_loaded_exactly() -> None:
    policy = POLICIES["bf16_compensated"]
    values = awkward_numbers()
    stored = policy.store(values)
    loaded = policy.load(stored, torch.float32)
    for value, pair, number in zip(values[0].tolist(), stored[0].tolist(), loaded[0].tolist(), strict=True):
        assert Fraction(number) == Fraction(pair[0]) + Fraction(pair[1]), "the sum of the pair was rounded"
        assert abs(Fraction(number) - Fraction(value)) <= abs(Fraction(value)) * Fraction(1, 2**17) + Fraction(1e-40)
    again = policy.load(policy.store(loaded), torch.float32)
    assert torch.equal(again, loaded) and torch.equal(policy.round(values, place(0)), loaded)
