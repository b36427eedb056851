"""Segments and Tokens: the array of tokens, a choice of its rows, masks, names."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from perceivers.core.positions import AxisTables
from perceivers.core.resampler import as_tokens
from perceivers.core.tokens import Segment, Tokens
from perceivers.modalities.position_encodings import Fourier, FourierPositions, GridPositions

B, C, K = 2, 11, 3
GRID = (5, 7)
M = 35


@pytest.fixture
def content() -> Tensor:
    return torch.randn(B, M, C)


@pytest.fixture
def tables() -> AxisTables:
    return FourierPositions(2, GRID, Fourier(num_bands=3)).on_grid(GridPositions(GRID))


@pytest.fixture
def positions(tables: AxisTables) -> Tensor:
    """[M, P]."""
    return tables.dense(torch.float32)


@pytest.fixture
def constant() -> Tensor:
    return torch.randn(K)


@pytest.fixture
def full(content: Tensor, tables: AxisTables, constant: Tensor) -> Segment:
    """Return a segment with all possible parts."""
    width = C + tables.num_channels + K
    return Segment(
        content,
        tables,
        padding=constant,
        mask=torch.rand(B, M) < 0.7,
        grid=GRID,
        mask_token=torch.randn(width),
        masked=torch.rand(B, M) < 0.3,
    )


def of_batch(x: Tensor) -> Tensor:
    return x.expand(B, *x.shape)


def test_content_alone(content: Tensor) -> None:
    segment = Segment(content)
    assert segment.num_tokens == M
    assert torch.equal(segment.dense(torch.float32), content)


@pytest.mark.parametrize("batched", [False, True])
def test_positions_behind_content(content: Tensor, positions: Tensor, batched: bool) -> None:
    given = of_batch(positions) if batched else positions
    dense = Segment(content, given).dense(torch.float32)
    assert torch.equal(dense, torch.cat([content, of_batch(positions)], dim=-1))


def test_tables_and_arrays_of_positions_are_the_same(content: Tensor, tables: AxisTables, positions: Tensor) -> None:
    assert torch.equal(Segment(content, tables).dense(torch.float32), Segment(content, positions).dense(torch.float32))


@pytest.mark.parametrize("batched", [False, True])
def test_positions_added_to_content(positions: Tensor, batched: bool) -> None:
    content = torch.randn(B, *positions.shape)
    given = of_batch(positions) if batched else positions
    dense = Segment(content, given, positions_added=True).dense(torch.float32)
    assert torch.equal(dense, content + positions)


def test_positions_alone_stand_for_every_sample(tables: AxisTables, positions: Tensor) -> None:
    for given in (tables, positions, positions[None]):
        segment = Segment(positions=given)
        assert segment.num_tokens == M
        assert torch.equal(segment.dense(torch.float32), positions[None])


def test_a_constant_stands_behind_every_token(content: Tensor, positions: Tensor, constant: Tensor) -> None:
    behind = constant.expand(B, M, K)
    dense = Segment(content, positions, padding=constant).dense(torch.float32)
    assert torch.equal(dense, torch.cat([content, of_batch(positions), behind], dim=-1))
    assert torch.equal(
        Segment(positions=positions, padding=constant).dense(torch.float32),
        torch.cat([positions, constant.expand(M, K)], dim=-1)[None],
    )


@pytest.mark.parametrize("samples", [1, B])
def test_the_mask_token_replaces_whole_tokens(full: Segment, samples: int) -> None:
    hidden = full.masked[:samples]
    shown = replace(full, masked=None, mask_token=None).dense(torch.float32)
    dense = replace(full, masked=hidden).dense(torch.float32)
    where = hidden.expand(B, M)
    assert torch.equal(dense[where], full.mask_token.expand(int(where.sum()), -1))
    assert torch.equal(dense[~where], shown[~where])
    assert 0 < where.sum() < where.numel()


def test_dense_is_of_the_type_asked_for(full: Segment) -> None:
    expected = full.dense(torch.float32)
    for dtype in (torch.bfloat16, torch.float64):
        dense = full.dense(dtype)
        assert dense.dtype == dtype
        assert torch.allclose(dense.double(), expected.double(), atol=0.02)


@pytest.mark.parametrize("index", [torch.tensor([34, 0, 8, 8]), torch.tensor([[34, 0, 8], [1, 1, 33]])])
def test_rows_are_rows_of_the_dense_array(full: Segment, index: Tensor) -> None:
    rows = full.at(index)
    each = of_batch(index) if index.ndim == 1 else index
    sample = torch.arange(B)[:, None]
    assert rows.num_tokens == index.shape[-1]
    assert torch.equal(rows.dense(torch.float32), full.dense(torch.float32)[sample, each])
    assert torch.equal(rows.mask, full.mask[sample, each])
    assert rows.grid is None


def test_rows_of_one_sample_at_indices_of_each(content: Tensor, positions: Tensor) -> None:
    """Parts that are the same for every sample are expanded to the chosen indices of each sample."""
    index = torch.tensor([[34, 0, 8], [1, 1, 33]])
    added = torch.randn(1, *positions.shape)
    sums = Segment(added, positions, positions_added=True)
    for segment in (Segment(content[:1]), Segment(positions=positions), sums):
        assert torch.equal(segment.at(index).dense(torch.float32), segment.dense(torch.float32)[0][index])


@pytest.fixture
def several(full: Segment) -> Tokens:
    """Return tokens of three segments: with a mask, without one, and the same for every sample."""
    width = full.dense(torch.float32).shape[-1]
    plain, shared = Segment(torch.randn(B, 2, width)), Segment(torch.randn(1, 3, width))
    return Tokens({"full": full, "plain": plain, "shared": shared})


def test_tokens_stand_one_behind_the_other(several: Tokens) -> None:
    parts = [segment.dense(torch.float32) for segment in several.segments.values()]
    expected = torch.cat([part.expand(B, -1, -1) for part in parts], dim=1)
    assert torch.equal(several.dense(torch.float32), expected)


def test_tokens_without_a_mask_exist(several: Tokens) -> None:
    mask = several.mask()
    assert mask.shape == (B, M + 2 + 3)
    assert torch.equal(mask[:, :M], several.segments["full"].mask)
    assert mask[:, M:].all()
    unmasked = Tokens({name: segment for name, segment in several.segments.items() if name != "full"})
    assert unmasked.mask() is None


@pytest.mark.parametrize("dim", [1, -2, 0, -1])
def test_split_gives_each_its_own(several: Tokens, dim: int) -> None:
    array = torch.arange(M + 2 + 3)
    array = array[:, None] if dim in (0, -2) else array[None]
    parts = several.split(array, dim)
    assert {name: part.flatten().tolist() for name, part in parts.items()} == {
        "full": list(range(M)),
        "plain": [M, M + 1],
        "shared": [M + 2, M + 3, M + 4],
    }


def test_a_plain_array_is_tokens(content: Tensor) -> None:
    mask = torch.rand(B, M) < 0.5
    tokens = as_tokens(content.masked_fill(~mask[..., None], torch.nan), mask, content.shape[-1], content.device)
    assert torch.equal(tokens.dense(torch.float32), content * mask[..., None])
    assert torch.equal(tokens.mask(), mask)
    assert as_tokens(content, None, content.shape[-1], content.device).mask() is None


def test_no_tokens_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one input or output"):
        Tokens().dense(torch.float32)
