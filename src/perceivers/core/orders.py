"""The other exact orders of a cross-attention, block by block. Without this file the dense path computes the same.

With x = (t - mean t) / std t, a token behind its layer norm, whose scale g and shift b fold into the next linear map:

    score = (Wq z) . Wk (g x + b) = x . A + constant      A = g Wk' Wq z: the keys' map is folded into the question
    found = sum e Wv (g x + b) = Wv g (sum e x) + ...     the values' map is applied after the sum

so that no token is projected ("absorbed"). Where t = [content | its row's features | its column's | padding],
as Fourier features on a grid are, with the columns of A centred and r = 1 / std t:

    x . A = r (content A_content + (rows A_rows)[row] + (columns A_columns)[column] + padding A_padding)
    sum e x needs sum e r content, and the sums of e r over each row and over each column alone

so that no token is made ("separable"). "projected" makes keys and values as usual, a block at a time: for many heads.
Softmax runs online: exponentials are relative to a reference, the largest score seen so far or a little less.
One sample at a time: its bits do not depend on the others. On a GPU, where launches are dear, all samples are read
together in the separable order, and a kernel makes its sums (kernels.py).
m tokens of a block, n questions, c channels.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from types import ModuleType
from typing import Any, Literal, TypeVar, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from perceivers.core.arguments import without_autocast
from perceivers.core.attention import CrossAttention
from perceivers.core.finishing import Finish, finish_of
from perceivers.core.linear_map import LinearMap, apply_linear, linear_map
from perceivers.core.reading import NOTHING_SEEN, ReadState
from perceivers.core.rows import AbsorbedRows, Block, MadeRows, ProjectedRows, Rows, SeparableRows, blocks_of
from perceivers.core.tokens import Segment

Order = Literal["dense", "projected", "absorbed", "separable", "absorbed-folded", "separable-folded"]
"""How a cross-attention is computed; all give the same. Only writing can be folded."""

HEADROOM = 8.0
"""How far a score may exceed the reference before that is raised: exp(8) times any sum is still in range."""

TOGETHER = ("cuda",)
"""Devices on which all samples are read at once in the separable order, by a kernel where there is one."""

Writer = Callable[[dict[str, Tensor], Block], Float[Tensor, "m e"]]
"""Makes the decoded rows of a block from what `Rows` cut for it."""

Made = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""What a block gave, and the gradients of that."""

Function = TypeVar("Function", bound=Callable[..., Any])


class _Sums(torch.autograd.Function):
    """Sums over all blocks, exponentials relative to a reference; the gradient makes each block again."""

    @staticmethod
    def forward(ctx: Any, rows: Rows, blocks: list[Block], *tensors: Tensor) -> tuple[Tensor, ...]:
        together = isinstance(rows, SeparableRows) and rows.batch
        kernels = kernels_for(rows.segment, rows.dtype) if together else None
        reference, sums = (_added_up if kernels is None else kernels.added_up)(rows, blocks)
        ctx.rows, ctx.blocks = rows, blocks
        ctx.save_for_backward(reference, *tensors)
        ctx.mark_non_differentiable(reference)
        return reference, *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, reference = ctx.rows, ctx.saved_tensors[0]

        def again(part: dict[str, Tensor], block: Block) -> Made:
            scores, seen = rows.look(part, block)
            return rows.gather(seen, (scores - reference).exp()), gradients

        return None, None, *_gradients(rows, ctx.blocks, (), ctx.needs_input_grad[2:], again)


def _added_up(rows: Rows, blocks: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """The reference, and the sums relative to it."""
    reference, sums = _with_block(rows, blocks[0])
    for block in blocks[1:]:
        reference, sums = _with_block(rows, block, reference, sums)
    return reference, sums


def _with_block(
    rows: Rows, block: Block, reference: Tensor | None = None, sums: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """The same with one more block: what is made of it is let go before the next one is."""
    scores, seen = rows.look(rows.cut(rows.tensors, block), block)
    top = scores.amax(-2, keepdim=True)
    if reference is None:
        reference = top.clamp(min=NOTHING_SEEN)
        return reference, list(rows.gather(seen, scores.sub_(reference).exp_()))
    raised = torch.where(top > reference + HEADROOM, top, reference)
    scale = (reference - raised).exp()
    return raised, rows.add([x.mul_(scale) for x in sums], seen, scores.sub_(raised).exp_())


def is_together(order: Order, device: torch.device) -> bool:
    """Whether all samples are read at once."""
    return order == "separable" and device.type in TOGETHER


def kernels_for(segment: Segment, dtype: torch.dtype) -> ModuleType | None:
    """kernels.py, if it reads this segment in the separable order, with statistics of this precision."""
    possible = dtype == torch.float32 and is_together("separable", segment.device)
    kernels = triton_kernels() if possible else None
    return kernels if kernels is not None and kernels.takes(segment.content) else None


@cache
def triton_kernels() -> ModuleType | None:
    """kernels.py, where Triton is installed."""
    return importlib.import_module("perceivers.core.kernels") if importlib.util.find_spec("triton") else None


class _Rows(torch.autograd.Function):
    """What `writer` makes of all blocks, one behind the other; the gradient makes each block again.

    `others`: leaves that the writer uses beside the tensors of `rows`; what they stand for are the last of `tensors`.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Rows, blocks: list[Block], writer: Writer, others: tuple[Tensor, ...], *tensors: Tensor
    ) -> Tensor:
        written = None
        for block in blocks:
            found = writer(rows.cut(rows.tensors, block), block)
            # One array for all: many small ones between large ones would keep the heap from being used again.
            written = found.new_empty(rows.segment.num_tokens, found.shape[-1]) if written is None else written
            written[slice(*block)] = found
        assert written is not None
        ctx.rows, ctx.blocks, ctx.writer, ctx.others = rows, blocks, writer, others
        ctx.save_for_backward(*tensors)
        return written

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        def again(part: dict[str, Tensor], block: Block) -> Made:
            return (ctx.writer(part, block),), (gradient[slice(*block)],)

        found = _gradients(ctx.rows, ctx.blocks, ctx.others, ctx.needs_input_grad[4:], again)
        return None, None, None, None, *found


def _gradients(
    rows: Rows,
    blocks: list[Block],
    others: Sequence[Tensor],
    needed: Sequence[bool],
    again: Callable[[dict[str, Tensor], Block], Made],
) -> list[Tensor | None]:
    """Gradients of the tensors of `rows`, then of the others, where needed, by making each block again."""
    count = len(rows.tensors)
    names = [name for name, wanted in zip(rows.tensors, needed[:count], strict=True) if wanted]
    beside = [x for x, wanted in zip(others, needed[count:], strict=True) if wanted]
    own = {name: torch.zeros_like(rows.tensors[name]) for name in names}
    of_others = [torch.zeros_like(x) for x in beside]
    for block in blocks:
        cut = rows.cut(rows.tensors, block)
        part = {name: x.detach().requires_grad_(name in own) for name, x in cut.items()}
        with torch.enable_grad(), without_autocast(rows.device):
            made, gradients = again(part, block)
        if block is blocks[0]:
            _check_leaves(made, [*part.values(), *others])
        # Where values alone are trained, sums of weights have no gradient.
        differentiable = [(x, of_x) for x, of_x in zip(made, gradients, strict=True) if x.requires_grad]
        outputs, of_outputs = zip(*differentiable, strict=True)
        inputs = [*(part[name] for name in names), *beside]
        found = torch.autograd.grad(outputs, inputs, of_outputs, allow_unused=True)
        for total, more in zip([*rows.cut(own, block).values(), *of_others], found, strict=True):
            if more is not None:
                total += more
    gradients_of = iter([*own.values(), *of_others])
    return [next(gradients_of) if wanted else None for wanted in needed]


def _check_leaves(made: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """RuntimeError if a block uses a parameter that is not known here: it would get no gradient, without a word."""
    names, nodes, seen = {id(x) for x in known}, [x.grad_fn for x in made], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [behind for behind, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in names:
            shape = list(leaf.shape)
            raise RuntimeError(f"a parameter {shape} of another module is used in blocks: name it in `borrowed`")


def _in_full_precision(function: Function) -> Function:
    """Turn autocast off while the function runs: its sums and statistics need float32."""

    @wraps(function)
    def call(cross: CrossAttention, *given: Any) -> Any:
        with without_autocast(cross.mlp_norm.weight.device):
            return function(cross, *given)

    return cast(Function, call)


@_in_full_precision
def read(
    cross: CrossAttention, latents: Float[Tensor, "#b n f"], segment: Segment, order: Order, block_size: int
) -> ReadState:
    """What latents take from the tokens of a segment, about `block_size` of them at a time."""
    attention, norm = cross.attention, cross.token_norm
    dtype = torch.promote_types(latents.dtype, torch.float32)
    heads = attention.num_heads
    query = apply_linear(attention.query, cross.query_norm(latents.to(cross.query_norm.weight.dtype)))
    query = rearrange(query.to(dtype), "b n (h d) -> b h n d", h=heads)
    query = query / math.sqrt(query.shape[-1])
    key, key_bias = _behind_norm(linear_map(attention.key), norm, heads, dtype)
    value, value_bias = _behind_norm(linear_map(attention.value), norm, heads, dtype)
    # The softmax cancels the keys' bias; its gradient is 0 and not None, which data parallelism would wait for.
    value_bias = value_bias + key_bias[:, :0].sum()
    batch = max(len(latents), segment.batch_size)
    if not segment.num_tokens:
        # Gradients are 0 and not None: processes of a group, one of which has nothing to read, wait for one another.
        parts = [*AbsorbedRows(segment.sample(0), _folded(query[0], key)).tensors.values(), value, value_bias]
        nothing = torch.stack([x.flatten()[:0].sum(dtype=dtype) for x in parts]).sum()
        zeros = nothing.expand(batch, heads, query.shape[-2])
        weighted = zeros[..., None].expand(-1, -1, -1, value.shape[1])
        return ReadState(torch.full_like(zeros, NOTHING_SEEN), zeros, weighted)

    def taken(own: Segment, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if order == "projected":
            reference, total, found = _sums(ProjectedRows(own, asked, key, value), block_size)
            weighted = found.mT
        else:
            folded = _folded(asked, key)
            folded = folded.expand(batch, -1, -1) if folded.ndim > 2 else folded
            rows = (SeparableRows if order == "separable" else AbsorbedRows)(own, folded)
            reference, total, *sums = _sums(rows, block_size)
            weighted = rearrange(rows.expand(sums), "... c (h n) -> ... h n c", h=heads) @ value.mT
            reference, total = (rearrange(x, "... 1 (h n) -> ... h 1 n", h=heads) for x in (reference, total))
        return reference[..., 0, :], total[..., 0, :], weighted + total.mT * value_bias[:, None]

    if is_together(order, segment.device):
        return ReadState(*taken(segment, query))
    states = [taken(segment.sample(number), query[number % len(query)]) for number in range(batch)]
    return ReadState(*(torch.stack(parts) for parts in zip(*states, strict=True)))


def _sums(rows: Rows, block_size: int) -> tuple[Tensor, ...]:
    return _Sums.apply(rows, blocks_of(rows, block_size), *rows.tensors.values())


def _behind_norm(
    linear: LinearMap, norm: nn.LayerNorm, heads: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "h d c"], Float[Tensor, "h d"]]:
    """A linear map with the scale and shift of the norm before it folded in, split into heads."""
    weight, bias = linear.to(dtype)
    bias = bias + weight @ norm.bias.to(dtype)
    return (weight * norm.weight.to(dtype)).unflatten(0, (heads, -1)), bias.unflatten(0, (heads, -1))


def _folded(asked: Float[Tensor, "*b h n d"], linear: Float[Tensor, "h d c"]) -> Float[Tensor, "*b c hn"]:
    """What is asked of normed tokens themselves; centred, so that their mean does not matter."""
    folded = rearrange(asked @ linear, "... h n c -> ... c (h n)")
    return folded - folded.mean(-2, keepdim=True)


@_in_full_precision
def write(
    cross: CrossAttention,
    queries: Segment,
    latents: Float[Tensor, "#b n d"],
    tail: Sequence[nn.Module],
    order: Order,
    block_size: int,
) -> Float[Tensor, "b o e"]:
    """What queries find in the latents, behind the maps that follow (`tail`), `block_size` queries at a time."""
    heads, dtype = cross.attention.num_heads, torch.promote_types(latents.dtype, torch.float32)
    normed = cross.token_norm(latents.to(cross.token_norm.weight.dtype))
    key, value = (
        rearrange(apply_linear(module, normed), "b n (h d) -> b h n d", h=heads)
        for module in (cross.attention.key, cross.attention.value)
    )
    query, bias = _behind_norm(linear_map(cross.attention.query), cross.query_norm, heads, dtype)
    written = []
    for number in range(max(len(latents), queries.batch_size)):
        own, values = queries.sample(number), value[number % len(value)].to(dtype)
        asked = key[number % len(key)].to(dtype) / math.sqrt(key.shape[-1])
        added = (asked @ bias[..., None]).flatten()
        if order == "projected":
            rows: Rows = ProjectedRows(own, asked, query, added=added)
        else:
            kind = SeparableRows if order.startswith("separable") else AbsorbedRows
            rows = kind(own, _folded(asked, query), added)
        finish, used = finish_of(order, cross, values, tail)
        writer = _writer(cross, rows, finish)
        tensors = (*rows.tensors.values(), *used.sources)
        written.append(_Rows.apply(rows, blocks_of(rows, block_size), writer, used.leaves, *tensors))
    return (torch.stack(written) if len(written) > 1 else written[0][None]).to(latents.dtype)


def _writer(cross: CrossAttention, rows: Rows, finish: Finish) -> Writer:
    def writer(part: dict[str, Tensor], block: Block) -> Tensor:
        scores, _ = rows.look(part, block)
        if scores.ndim == 2:
            scores = rearrange(scores, "m (h n) -> h m n", h=cross.attention.num_heads)
        weights, present = scores.softmax(-1), rows.present(block)
        weights = weights if present is None else weights.masked_fill(~present[:, None], 0)
        queries = rows.made(part, block) if cross.query_residual and isinstance(rows, MadeRows) else None
        return finish(weights, queries)

    return writer
