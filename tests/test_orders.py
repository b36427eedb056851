"""Every order of a cross-attention gives what the dense one gives, and nothing else shows which was taken."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cross_cases import TAILS, Crossing, Make, largest_error, makes, reading, with_gradients, writing
from perceivers.core import orders, rows
from perceivers.core.orders import Order
from perceivers.core.reading import ReadState

EXACT = 1e-10

many = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)

blocks = st.integers(1, 31)
seeds = st.integers(0, 1000)


def assert_agreement(crossing: Crossing, order: Order, block_size: int) -> None:
    expected = with_gradients(crossing, crossing.dense())
    found = with_gradients(crossing, crossing.ordered(order, block_size))
    assert largest_error(found, expected) <= EXACT, order


@many
@given(make=makes, block_size=blocks, seed=seeds)
def test_reading_agrees_with_the_dense_path(make: Make, block_size: int, seed: int) -> None:
    crossing = reading(make, seed)
    assert {"projected", "absorbed"} <= set(crossing.orders)
    for order in crossing.orders:
        assert_agreement(crossing, order, block_size)


@many
@given(make=makes, tail=st.sampled_from([*TAILS]), block_size=blocks, seed=seeds)
def test_writing_agrees_with_the_dense_path(make: Make, tail: str, block_size: int, seed: int) -> None:
    crossing = writing(make, tail, seed)
    for order in crossing.orders:
        assert_agreement(crossing, order, block_size)
