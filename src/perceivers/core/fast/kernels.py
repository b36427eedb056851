"""The sums of the separable algorithm (algorithms.py) by one kernel: its scores never leave the GPU's registers.

A token at row y and column x of a grid has for query column n, with r = 1 / std of the token, the score

    s = r (rows[y, n] + columns[x, n] + content . on_content[:, n])

Reading needs the sum of e = exp(s - max_score), and the sums of w = r e by row, by column, and times content.

A program takes one sample, a tile of ROWS x COLUMNS grid positions and QUERY_COLUMNS query columns, and goes down the
tile row by row. `columns` and all sums stay in registers; a row's sum is one number for each query column. max_score is
the largest score so far; where it rises, all sums are scaled down. The programs' results are stacked,
[max_score | sum of e | by row | by column | by channel], and added in a fixed order, so that the bits do not depend on
the order in which programs end. Statistics, tables and sums are float32. Products with content take its precision; in
half precision the queries are split into two parts, so that scores are as exact as in float32, as in the gradient.

It needs Triton, which comes with torch for CUDA; with TRITON_INTERPRET=1 it runs on a CPU too, slowly.
"""

import math
from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from perceivers.core.fast.separable_blocks import SeparableBlocks
from perceivers.core.fast.token_blocks import Block
from perceivers.core.reading import NO_SCORE

ROWS, COLUMNS, QUERY_COLUMNS, WARPS = 32, 32, 64, 8
"""Tile and warps of a program: registers (sm_90) suffice without spilling, for any width of content."""

BLOCKS = 8
"""Number of other algorithms' blocks that are read at once: materialised scores take ten times the memory."""

LEAST_CHANNELS, MOST_CHANNELS = 16, 128
"""Numbers of content channels: fewer are padded for the product, more would not fit into registers."""

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"""Precisions of content."""


def takes(content: Tensor | None) -> bool:
    """Return whether the kernel supports the width and precision of this content."""
    return content is None or (content.dtype in PRECISIONS and content.shape[-1] <= MOST_CHANNELS)


def numbers(width: int, channels: int) -> tuple[int, int]:
    """Return the numbers written per query column: for each token of another algorithm's block, and at least."""
    row_of_tiles = math.ceil(width / COLUMNS) * (2 + ROWS + COLUMNS + channels)
    return math.ceil(BLOCKS * row_of_tiles / (ROWS * width)), row_of_tiles


@triton.jit
@no_type_check
def _tile(
    content, scale, queries, found, content_stride, num_rows, width, channels, query_columns,
    empty: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
    tile_query_columns: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    sample, across = tl.program_id(1), tl.cdiv(width, tile_columns)
    parts = across * tl.cdiv(num_rows, tile_rows)
    part = tl.program_id(0) % parts
    first = part // across * tile_rows
    x = part % across * tile_columns + tl.arange(0, tile_columns)
    n = tl.program_id(0) // parts * tile_query_columns + tl.arange(0, tile_query_columns)
    y, c = tl.arange(0, tile_rows), tl.arange(0, tile_channels)
    in_queries, inside = n[None, :] < query_columns, x < width
    # Move the pointers to the tile; load the columns' and the content's queries, which stay in registers.
    start = first.to(tl.int64) * width
    content += sample.to(tl.int64) * content_stride + start * channels
    scale += sample.to(tl.int64) * num_rows * width + start
    queries += sample.to(tl.int64) * (num_rows + width + channels) * query_columns + n
    column = queries + (num_rows + x[:, None]) * query_columns
    on_columns = tl.load(column, mask=inside[:, None] & in_queries, other=0.0)
    pointers = queries + (num_rows + width + c[:, None]) * query_columns
    whole = tl.load(pointers, mask=(c[:, None] < channels) & in_queries, other=0.0)
    on_content = whole.to(content.dtype.element_ty)
    rest = (whole - on_content.to(tl.float32)).to(content.dtype.element_ty)
    # Go down the tile row by row: an online softmax over its tokens.
    max_score = tl.full([tile_query_columns], empty, tl.float32)
    total = tl.zeros([tile_query_columns], tl.float32)
    by_row = tl.zeros([tile_rows, tile_query_columns], tl.float32)
    by_column = tl.zeros([tile_columns, tile_query_columns], tl.float32)
    by_channel = tl.zeros([tile_channels, tile_query_columns], tl.float32)
    for row in range(first, min(first + tile_rows, num_rows)):
        r = tl.load(scale + x, mask=inside, other=0.0)
        s = on_columns + tl.load(queries + row * query_columns, mask=n < query_columns, other=0.0)[None, :]
        valid = (r[:, None] > 0) & (c[None, :] < channels)  # absent tokens are not loaded: they may be NaN
        tokens = tl.load(content + x[:, None] * channels + c[None, :], mask=valid, other=0.0)
        s = tl.dot(tokens, on_content, s, input_precision="tf32x3")
        if content.dtype.element_ty != tl.float32:
            s = tl.dot(tokens, rest, s)
        s = tl.where(r[:, None] > 0, s * r[:, None], float("-inf"))
        raised = tl.maximum(max_score, tl.max(s, 0))
        shrink = tl.exp(max_score - raised)[None, :]
        e = tl.exp(s - raised[None, :])
        w = e * r[:, None]
        total = total * tl.exp(max_score - raised) + tl.sum(e, 0)
        by_row = tl.where(y[:, None] == row - first, tl.sum(w, 0)[None, :], by_row * shrink)
        by_column = by_column * shrink + w
        by_channel = tl.dot(tl.trans(tokens), w.to(tokens.dtype), by_channel * shrink, input_precision="tf32x3")
        max_score = raised
        content += width * channels
        scale += width
    # Store [max_score | sum of e | by row | by column | by channel].
    height = 2 + tile_rows + tile_columns + channels
    found += (sample.to(tl.int64) * parts + part) * height * query_columns + n
    tl.store(found, max_score, mask=n < query_columns)
    tl.store(found + query_columns, total, mask=n < query_columns)
    found += 2 * query_columns
    tl.store(found + y[:, None] * query_columns, by_row, mask=(y[:, None] >= 0) & in_queries)
    found += tile_rows * query_columns
    tl.store(found + tl.arange(0, tile_columns)[:, None] * query_columns, by_column, mask=inside[:, None] & in_queries)
    tl.store(found + (tile_columns + c[:, None]) * query_columns, by_channel, mask=(c[:, None] < channels) & in_queries)


def accumulated(tokens: SeparableBlocks, blocks: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """Return max_score of all blocks, and the sums relative to it."""
    max_score, total = None, None
    for first in range(0, len(blocks), BLOCKS):
        top, found = sums(tokens, (blocks[first][0], blocks[first : first + BLOCKS][-1][1]))
        if max_score is None or total is None:
            max_score, total = top, found
        else:
            raised = torch.maximum(max_score, top)
            before, here = (max_score - raised).exp(), (top - raised).exp()
            max_score, total = raised, [x * before + y * here for x, y in zip(total, found, strict=True)]
    assert max_score is not None
    assert total is not None
    return max_score, total


def sums(tokens: SeparableBlocks, block: Block) -> tuple[Tensor, list[Tensor]]:
    """Return the largest scores of a block, and its `SeparableBlocks.weighted_sums` relative to them."""
    tensors, features = tokens.slice(tokens.tensors, block), tokens.row_features(block)
    scale, valid, masked = tokens.inverse_deviation(tensors, features), tokens.valid(block), tokens.masked(block)
    scale = scale if valid is None else scale.masked_fill(~valid, 0)
    seen = scale if masked is None else scale.masked_fill(masked, 0)
    queries = [features @ tensors["on_rows"] + tensors["offset"][..., None, :], tensors["on_columns"]]
    queries += [tensors["on_content"]] if "content" in tensors else []
    found = _found(tensors.get("content"), seen, torch.cat(queries, -2), len(features), tokens.width)
    max_score, total, by_row, by_column, rest = (x if tokens.batch else x[0] for x in found)
    if masked is not None:  # all masked tokens have the same score
        count = (masked & (scale > 0)).sum(-1)[..., None, None]
        score = tensors["on_masked"].masked_fill(count == 0, NO_SCORE)
        raised = torch.maximum(max_score, score)
        shrink, term = (max_score - raised).exp(), count * (score - raised).exp()
        max_score, total, by_row, by_column = raised, total * shrink + term, by_row * shrink, by_column * shrink
        rest = torch.cat([rest * shrink, term], -2)
    return max_score, [total, rest, features.T @ by_row, by_row.sum(-2, keepdim=True), by_column]


def _found(content: Tensor | None, scale: Tensor, queries: Tensor, num_rows: int, width: int) -> list[Tensor]:
    """Return max_score, total, sums by row, by column and by channel, all [b, k, n]; `scale` is 0 without a token."""
    scale, queries = (x.reshape(-1, *x.shape[-2:]).contiguous() for x in (scale[..., None], queries))
    channels, query_columns = (0 if content is None else content.shape[-1]), queries.shape[-1]
    content = scale if content is None else content  # any array: it is not loaded
    content = content if content.ndim == 3 else content[None]
    content = content if content[0].is_contiguous() else content.contiguous()
    down, across = math.ceil(num_rows / ROWS), math.ceil(width / COLUMNS)
    found = scale.new_empty(len(scale), down, across, 2 + ROWS + COLUMNS + channels, query_columns)
    padded = max(LEAST_CHANNELS, triton.next_power_of_2(channels))
    grid = (down * across * math.ceil(query_columns / QUERY_COLUMNS), len(scale))
    sizes = (content.stride(0), num_rows, width, channels, query_columns)
    tile = (ROWS, COLUMNS, QUERY_COLUMNS, padded)
    with torch.cuda.device_of(scale):
        _tile[grid](content, scale, queries, found, *sizes, NO_SCORE, *tile, num_warps=WARPS)
    max_score = found[..., :1, :].amax((1, 2), keepdim=True)
    found = found[..., 1:, :].mul_((found[..., :1, :] - max_score).exp())
    total, by_row, by_column, by_channel = found.split([1, ROWS, COLUMNS, channels], -2)
    by_row, by_column = by_row.sum(2).flatten(1, 2)[:, :num_rows], by_column.sum(1).flatten(1, 2)[:, :width]
    return [max_score[:, 0, 0], total.sum((1, 2)), by_row, by_column, by_channel.sum((1, 2))]
