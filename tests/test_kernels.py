"""Samples that are read together, and the kernel for it, on a GPU or in Triton's interpreter on a CPU."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given

from cross_cases import Make, largest_error, makes, reading, with_gradients
from perceivers.core.fast import algorithms
from perceivers.core.fast.algorithms import is_together, triton_kernels
from perceivers.core.fast.op_counts import RATES
from perceivers.core.fast.planner import Plan, choose
from perceivers.core.latents import Latents
from test_algorithms import (
    EXACT,
    assert_agreement,
    assert_errors_within_twice_those_of_the_dense_path,
    blocks,
    many,
    parts_of,
    seeds,
)
from test_plan import LARGE, case_of, peak

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

kernel = pytest.mark.skipif(triton_kernels() is None, reason="Triton is not installed")


@pytest.fixture(autouse=True)
def _together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read all samples together, as on a GPU."""
    monkeypatch.setattr(algorithms, "TOGETHER", ("cpu", "cuda"))


grids = makes.filter(lambda make: len(make.grid) > 1 and make.positions == "tables")


@many
@given(make=grids, block_size=blocks, seed=seeds)
def test_samples_read_together_agree_with_the_dense_path(make: Make, block_size: int, seed: int) -> None:
    """In float64, which the kernel does not support: block by block, gradients too."""
    crossing = reading(make, seed).to(torch.float64, DEVICE)
    assert is_together("separable", crossing.latents.device)
    assert_agreement(crossing, "separable", block_size)


# The kernel. Its programs take 32 rows, 32 columns, 64 queries; content is padded to 16 channels or more.

TILES = Make(grid=(37, 41), mask="some", masked=True)

KERNELS = {
    "less than a tile": Make(grid=(3, 7)),
    "several tiles": TILES,
    "more questions than a tile": Make(grid=(3, 7), heads=13, latents_batch=2),
    "wide content": Make(grid=(5, 41), content=67, mask="some"),
    "three axes, no content": Make(grid=(2, 3, 35), content=0, mask="some", batch=2),
    "a sample without tokens": Make(grid=(3, 7), mask="dead", masked=True, padding=2),
    "projected": Make(grid=(3, 7), projected=True, padding=2, masked=True),
    "content of all samples": Make(grid=(3, 7), mask="some", batch=3, content_batch=1),
    "sharp": Make(grid=(5, 35), sharpness=30.0),
}


@kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", KERNELS)
def test_errors_of_the_kernel_are_within_twice_those_of_the_dense_path(
    name: str, dtype: torch.dtype, counted: list[Any], widened: None
) -> None:
    crossing = reading(KERNELS[name]).to(dtype, DEVICE)
    assert_errors_within_twice_those_of_the_dense_path(crossing, "separable", crossing.segment.num_tokens // 3)
    assert counted


@kernel
@pytest.mark.parametrize("name", KERNELS)
def test_sums_of_the_kernel_are_those_of_the_blocks(
    name: str, counted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    crossing = reading(KERNELS[name]).to(torch.float32, DEVICE)
    tokens = crossing.segment.num_tokens
    monkeypatch.setattr(triton_kernels(), "BLOCKS", 2)
    found = [with_gradients(crossing, crossing.computed("separable", size)) for size in (tokens // 20, tokens)]
    assert len(counted) > 2
    done = len(counted)
    monkeypatch.setattr(algorithms, "triton_kernels", lambda: None)
    exact = crossing.to(torch.float64)
    expected = with_gradients(exact, exact.computed("separable", tokens))
    assert all(largest_error(x, expected) < 1e-4 for x in found)
    without = with_gradients(crossing, crossing.computed("separable", tokens))
    assert largest_error(without, expected) < 1e-4
    assert len(counted) == done


@kernel
def test_bits_are_the_same_every_time() -> None:
    crossing = reading(TILES).to(torch.float32, DEVICE)
    assert all(map(torch.equal, parts_of(crossing, "separable"), parts_of(crossing, "separable")))


@kernel
def test_what_is_absent_may_be_anything() -> None:
    crossing = reading(TILES).to(torch.float32, DEVICE)
    content, mask = crossing.segment.content, crossing.segment.mask
    assert content is not None
    assert mask is not None
    nowhere = replace(crossing.segment, content=content.masked_fill(~mask[..., None], torch.nan))
    with torch.no_grad():
        found = parts_of(replace(crossing, segment=nowhere), "separable")
        assert all(map(torch.equal, found, parts_of(crossing, "separable")))


@kernel
def test_content_may_lie_in_memory_in_any_way() -> None:
    crossing = reading(TILES).to(torch.float32, DEVICE)
    content = crossing.segment.content
    assert content is not None
    turned = replace(crossing.segment, content=content.mT.contiguous().mT)
    with torch.no_grad():
        found = parts_of(replace(crossing, segment=turned), "separable")
        assert all(map(torch.equal, found, parts_of(crossing, "separable")))


@kernel
@pytest.mark.parametrize(("content", "dtype"), [(131, torch.float32), (3, torch.float64)])
def test_what_the_kernel_does_not_take_is_read_without_it(content: int, dtype: torch.dtype, counted: list[Any]) -> None:
    crossing = reading(Make(grid=(3, 7), content=content)).to(dtype, DEVICE)
    expected = with_gradients(crossing, crossing.dense())
    found = with_gradients(crossing, crossing.computed("separable", 7))
    assert largest_error(found, expected) < (EXACT if dtype == torch.float64 else 1e-3)
    assert not counted


@kernel
@pytest.mark.parametrize("part", range(6))
def test_a_thousandth_more_of_any_sum_is_found(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums: max_score, total, content with masked tokens, row features, scales, column features."""
    crossing = reading(replace(KERNELS["less than a tile"], masked=True, padding=2)).to(torch.float32, DEVICE)
    exact = crossing.to(torch.float64)
    expected = exact.dense().detach()
    kernels = triton_kernels()
    sums = kernels.sums

    def changed(*given: Any) -> Any:
        reference, found = sums(*given)
        parts = [x * 1.001 if number == part else x for number, x in enumerate([reference, *found])]
        return parts[0], parts[1:]

    def error() -> float:
        with torch.no_grad():
            found = crossing.computed("separable", 100).double()
        return float((found - expected).abs().max() / expected.abs().max())

    assert error() < 1e-5
    monkeypatch.setattr(kernels, "sums", changed)
    if part == 0:  # max_score cancels in the result, but not in sums of states
        one, two = (
            (state.max_score + state.sum_exp.log()).detach()
            for state in (
                algorithms.read(x.cross, Latents(x.latents), x.segment, "separable", 100) for x in (crossing, exact)
            )
        )
        assert float((one - two).abs().max()) > 1e-5
    else:
        assert error() > 1e-5


@kernel
@pytest.mark.skipif(
    DEVICE == "cpu" and sys.version_info >= (3, 13),
    reason="Triton's interpreter keeps the arrays of earlier blocks alive there, until garbage is collected",
)
def test_memory_of_the_kernel_stays_within_the_limit(counted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RATES, "cpu", RATES["cuda"])
    with torch.no_grad():
        for make in (replace(LARGE, mask="some", masked=True), replace(LARGE, content=0, grid=(29, 7, 5), batch=3)):
            crossing = reading(make).to(torch.float32, DEVICE)
            for tokens in (1, 211, 701):
                limit = case_of(crossing).costs()["separable"].bytes(tokens)
                choice = choose(case_of(crossing), Plan(limit, "separable"), dense=True)
                assert peak(crossing, choice) <= limit, (make, tokens)
    assert counted


# The plan, with the costs of a GPU's operations.


@kernel
def test_the_kernel_is_taken_where_it_is_cheaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is chosen for many samples, but not with gradients, which need all scores again."""
    monkeypatch.setitem(RATES, "cpu", RATES["cuda"])
    many_pixels = Make(grid=(101, 103), content=3, padding=199, batch=8, content_batch=8)
    crossing = reading(many_pixels).to(torch.bfloat16)
    with torch.no_grad():
        costs = case_of(crossing).costs()
        assert min(costs, key=lambda algorithm: costs[algorithm].work) == "separable"
        assert choose(case_of(crossing), Plan(), dense=True).algorithm == "separable"
    assert choose(case_of(crossing), Plan(), dense=True).algorithm == "dense"
    monkeypatch.setattr(algorithms, "triton_kernels", lambda: None)
    with torch.no_grad():
        assert choose(case_of(crossing), Plan(), dense=True).algorithm == "dense"


def test_fused_attention_keeps_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    crossing = reading(replace(LARGE, heads=7, qk=3, v=3)).to(torch.float32)
    written = case_of(crossing).costs()["dense"].token_bytes
    monkeypatch.setitem(RATES, "cpu", RATES["cuda"])
    scores = 2 * 4 * crossing.segment.batch_size * case_of(crossing).query_columns
    assert written - case_of(crossing).costs()["dense"].token_bytes == scores
    assert case_of(crossing.to(torch.float64)).costs()["dense"].token_bytes >= 2 * written


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record every call of the kernel."""
    kernels, used = triton_kernels(), []
    sums = kernels.sums
    monkeypatch.setattr(kernels, "sums", lambda *given: used.append(given) or sums(*given))
    return used


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Widen bfloat16: the interpreter stores it as integers, and would multiply matrices of these."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    product = InterpreterBuilder.create_dot

    def create_dot(self: Any, one: Any, two: Any, *rest: Any) -> Any:
        one, two = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (one, two))
        return product(self, one, two, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
