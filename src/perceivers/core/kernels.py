"""The sums of the separable order (orders.py) by one kernel: its scores never leave the GPU's registers.

A token at row y and column x of a grid, r one over its deviation, has for question n the score

    s = r (rows[y, n] + columns[x, n] + content . on_content[:, n])

and what reading needs are the sums of e = exp(s - reference); and of w = r e by row, by column, and times content.

A program takes a sample, a tile of ROWS x COLUMNS places and some questions, and goes down the tile row by row:
`columns` and all sums stay in registers, where sums by column add up place by place and a row's sum is one number a
question. The reference is the largest score so far; where it rises, all sums shrink. What the programs find is stacked,
[reference | sum of e | by row | by column | by channel], and added up in a fixed order: the same bits every time,
in whatever order programs end. Statistics, tables and sums are float32. Products of content take it as it is; in half
precision what is asked of it comes in two parts, so that scores are those of float32, as in the gradient.

It needs Triton, which comes with torch for CUDA; with TRITON_INTERPRET=1 it runs on a CPU too, slowly.
"""

import math
from collections.abc import Sequence
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from perceivers.core.reading import NOTHING_SEEN
from perceivers.core.rows import Block, SeparableRows

ROWS, COLUMNS, QUESTIONS, WARPS = 32, 32, 64, 8
"""Of a program: what the compiler fits into registers (sm_90) for any width of content, without spilling."""

BLOCKS = 8
"""Of the other orders, that are taken at once: a block whose scores are written down takes ten times the memory."""

LEAST_CHANNELS, MOST_CHANNELS = 16, 128
"""Of content: fewer are filled up for the product, more would not fit into registers."""

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"""Of content."""


def takes(content: Tensor | None) -> bool:
    """Whether the kernel fits such content; its width and precision matter."""
    return content is None or (content.dtype in PRECISIONS and content.shape[-1] <= MOST_CHANNELS)


def numbers(width: int, channels: int) -> tuple[int, int]:
    """How many it writes for a question: for each token of a block of the other orders, and at least."""
    row_of_tiles = math.ceil(width / COLUMNS) * (2 + ROWS + COLUMNS + channels)
    return math.ceil(BLOCKS * row_of_tiles / (ROWS * width)), row_of_tiles


@triton.jit
@no_type_check
def _tile(
    content, scale, asked, found, content_stride, num_rows, width, channels, questions,
    empty: tl.constexpr, tile_rows: tl.constexpr, tile_columns: tl.constexpr,
    tile_questions: tl.constexpr, tile_channels: tl.constexpr,
):  # fmt: skip
    sample, across = tl.program_id(1), tl.cdiv(width, tile_columns)
    parts = across * tl.cdiv(num_rows, tile_rows)
    part = tl.program_id(0) % parts
    first = part // across * tile_rows
    x = part % across * tile_columns + tl.arange(0, tile_columns)
    n = tl.program_id(0) // parts * tile_questions + tl.arange(0, tile_questions)
    y, c = tl.arange(0, tile_rows), tl.arange(0, tile_channels)
    asking, inside = n[None, :] < questions, x < width

    start = first.to(tl.int64) * width
    content += sample.to(tl.int64) * content_stride + start * channels
    scale += sample.to(tl.int64) * num_rows * width + start
    asked += sample.to(tl.int64) * (num_rows + width + channels) * questions + n
    on_columns = tl.load(asked + (num_rows + x[:, None]) * questions, mask=inside[:, None] & asking, other=0.0)
    place = asked + (num_rows + width + c[:, None]) * questions
    whole = tl.load(place, mask=(c[:, None] < channels) & asking, other=0.0)
    on_content = whole.to(content.dtype.element_ty)
    rest = (whole - on_content.to(tl.float32)).to(content.dtype.element_ty)

    reference = tl.full([tile_questions], empty, tl.float32)
    total = tl.zeros([tile_questions], tl.float32)
    by_row = tl.zeros([tile_rows, tile_questions], tl.float32)
    by_column = tl.zeros([tile_columns, tile_questions], tl.float32)
    by_channel = tl.zeros([tile_channels, tile_questions], tl.float32)
    for row in range(first, min(first + tile_rows, num_rows)):
        r = tl.load(scale + x, mask=inside, other=0.0)
        s = on_columns + tl.load(asked + row * questions, mask=n < questions, other=0.0)[None, :]
        valid = (r[:, None] > 0) & (c[None, :] < channels)  # nothing that is absent is looked at: it may be NaN
        tokens = tl.load(content + x[:, None] * channels + c[None, :], mask=valid, other=0.0)
        s = tl.dot(tokens, on_content, s, input_precision="tf32x3")
        if content.dtype.element_ty != tl.float32:
            s = tl.dot(tokens, rest, s)
        s = tl.where(r[:, None] > 0, s * r[:, None], float("-inf"))
        raised = tl.maximum(reference, tl.max(s, 0))
        shrink = tl.exp(reference - raised)[None, :]
        e = tl.exp(s - raised[None, :])
        w = e * r[:, None]
        total = total * tl.exp(reference - raised) + tl.sum(e, 0)
        by_row = tl.where(y[:, None] == row - first, tl.sum(w, 0)[None, :], by_row * shrink)
        by_column = by_column * shrink + w
        by_channel = tl.dot(tl.trans(tokens), w.to(tokens.dtype), by_channel * shrink, input_precision="tf32x3")
        reference = raised
        content += width * channels
        scale += width

    height = 2 + tile_rows + tile_columns + channels
    found += (sample.to(tl.int64) * parts + part) * height * questions + n
    tl.store(found, reference, mask=n < questions)
    tl.store(found + questions, total, mask=n < questions)
    found += 2 * questions
    tl.store(found + y[:, None] * questions, by_row, mask=(y[:, None] >= 0) & asking)
    found += tile_rows * questions
    tl.store(found + tl.arange(0, tile_columns)[:, None] * questions, by_column, mask=inside[:, None] & asking)
    tl.store(found + (tile_columns + c[:, None]) * questions, by_channel, mask=(c[:, None] < channels) & asking)


def added_up(rows: SeparableRows, blocks: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """The reference of all blocks, and the sums relative to it."""
    reference, total = None, None
    for first in range(0, len(blocks), BLOCKS):
        top, found = sums(rows, (blocks[first][0], blocks[first : first + BLOCKS][-1][1]))
        if reference is None or total is None:
            reference, total = top, found
        else:
            raised = torch.maximum(reference, top)
            before, here = (reference - raised).exp(), (top - raised).exp()
            reference, total = raised, [x * before + y * here for x, y in zip(total, found, strict=True)]
    assert reference is not None
    assert total is not None
    return reference, total


def sums(rows: SeparableRows, block: Block) -> tuple[Tensor, list[Tensor]]:
    """The largest scores of a block, and what `rows.gather` finds in it, relative to them."""
    tensors, features = rows.cut(rows.tensors, block), rows.row_features(block)
    scale, present, hidden = rows.inverse_deviation(tensors, features), rows.present(block), rows.hidden(block)
    scale = scale if present is None else scale.masked_fill(~present, 0)
    seen = scale if hidden is None else scale.masked_fill(hidden, 0)
    asked = [features @ tensors["on_rows"] + tensors["offset"][..., None, :], tensors["on_columns"]]
    asked += [tensors["on_content"]] if "content" in tensors else []
    found = _found(tensors.get("content"), seen, torch.cat(asked, -2), len(features), rows.width)
    reference, total, by_row, by_column, rest = (x if rows.batch else x[0] for x in found)
    if hidden is not None:  # all of them have one score
        count = (hidden & (scale > 0)).sum(-1)[..., None, None]
        score = tensors["on_hidden"].masked_fill(count == 0, NOTHING_SEEN)
        raised = torch.maximum(reference, score)
        shrink, own = (reference - raised).exp(), count * (score - raised).exp()
        reference, total, by_row, by_column = raised, total * shrink + own, by_row * shrink, by_column * shrink
        rest = torch.cat([rest * shrink, own], -2)
    return reference, [total, rest, features.T @ by_row, by_row.sum(-2, keepdim=True), by_column]


def _found(content: Tensor | None, scale: Tensor, asked: Tensor, num_rows: int, width: int) -> list[Tensor]:
    """Reference, total, sums by row, by column and by channel, all [b, k, n]; `scale` is 0 where nothing is seen."""
    scale, asked = (x.reshape(-1, *x.shape[-2:]).contiguous() for x in (scale[..., None], asked))
    channels, questions = (0 if content is None else content.shape[-1]), asked.shape[-1]
    content = scale if content is None else content  # nothing of it is looked at
    content = content if content.ndim == 3 else content[None]
    content = content if content[0].is_contiguous() else content.contiguous()
    down, across = math.ceil(num_rows / ROWS), math.ceil(width / COLUMNS)
    found = scale.new_empty(len(scale), down, across, 2 + ROWS + COLUMNS + channels, questions)
    padded = max(LEAST_CHANNELS, triton.next_power_of_2(channels))
    grid = (down * across * math.ceil(questions / QUESTIONS), len(scale))
    sizes = (content.stride(0), num_rows, width, channels, questions)
    tile = (ROWS, COLUMNS, QUESTIONS, padded)
    with torch.cuda.device_of(scale):
        _tile[grid](content, scale, asked, found, *sizes, NOTHING_SEEN, *tile, num_warps=WARPS)
    reference = found[..., :1, :].amax((1, 2), keepdim=True)
    found = found[..., 1:, :].mul_((found[..., :1, :] - reference).exp())
    total, by_row, by_column, by_channel = found.split([1, ROWS, COLUMNS, channels], -2)
    by_row, by_column = by_row.sum(2).flatten(1, 2)[:, :num_rows], by_column.sum(1).flatten(1, 2)[:, :width]
    return [reference[:, 0, 0], total.sum((1, 2)), by_row, by_column, by_channel.sum((1, 2))]
