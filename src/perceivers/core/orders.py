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
from torch.nn import functional as F

from perceivers.core.attention import LAYER_NORM_EPSILON, CrossAttention
from perceivers.core.reading import NOTHING_SEEN, ReadState
from perceivers.core.rows import AbsorbedRows, Block, MadeRows, ProjectedRows, Rows, SeparableRows, blocks_of
from perceivers.core.tokens import Segment

Order = Literal["dense", "projected", "absorbed", "separable", "absorbed-folded", "separable-folded"]
"""How a cross-attention is computed; all give the same. Only writing can be folded."""

HEADROOM = 8.0
"""How far a score may exceed the reference before that is raised: exp(8) times any sum is still in range."""

ALIGNMENT = 8
"""Products with a multiple of so many columns are the fastest."""

TOGETHER = ("cuda",)
"""Devices on which all samples are read at once in the separable order, by a kernel where there is one."""

Writer = Callable[[dict[str, Tensor], Block], Float[Tensor, "m e"]]
"""Makes the decoded rows of a block from what `Rows` cut for it."""

Finish = Callable[[Float[Tensor, "h m n"], Float[Tensor, "m f"] | None], Float[Tensor, "m e"]]
"""Makes decoded rows from attention weights, and queries where they are added to what is found."""

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
    reference, sums = None, None
    for block in blocks:
        scores, seen = rows.look(rows.cut(rows.tensors, block), block)
        top = scores.amax(-2, keepdim=True)
        if reference is None or sums is None:
            reference = top.clamp(min=NOTHING_SEEN)
        else:
            raised = torch.where(top > reference + HEADROOM, top, reference)
            scale = (reference - raised).exp()
            sums, reference = [x.mul_(scale) for x in sums], raised
        found = rows.gather(seen, scores.sub_(reference).exp_())
        sums = list(found) if sums is None else [x.add_(y) for x, y in zip(sums, found, strict=True)]
    assert reference is not None
    assert sums is not None
    return reference, sums


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

    `others`: the tensors that the writer uses beside those of `rows`, parameters too, none made of another.
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
        with torch.enable_grad(), torch.autocast(rows.device.type, enabled=False):
            made, gradients = again(part, block)
        found = torch.autograd.grad(made, [*(part[name] for name in names), *beside], gradients, allow_unused=True)
        for total, more in zip([*rows.cut(own, block).values(), *of_others], found, strict=True):
            if more is not None:
                total += more
    gradients_of = iter([*own.values(), *of_others])
    return [next(gradients_of) if wanted else None for wanted in needed]


def _without_autocast(function: Function) -> Function:
    """Only the layers before and behind may lose precision: sums and statistics need float32."""

    @wraps(function)
    def call(cross: CrossAttention, *given: Any) -> Any:
        with torch.autocast(cross.mlp.output.weight.device.type, enabled=False):
            return function(cross, *given)

    return cast(Function, call)


@_without_autocast
def read(
    cross: CrossAttention, latents: Float[Tensor, "#b n f"], segment: Segment, order: Order, block_size: int
) -> ReadState:
    """What latents take from the tokens of a segment, about `block_size` of them at a time."""
    attention, norm = cross.attention, cross.token_norm
    dtype = torch.promote_types(latents.dtype, torch.float32)
    heads = attention.num_heads
    query = attention.query(cross.query_norm(latents.to(attention.query.weight.dtype)))
    query = rearrange(query.to(dtype), "b n (h d) -> b h n d", h=heads)
    query = query / math.sqrt(query.shape[-1])
    key, key_bias = _behind_norm(attention.key, norm, heads, dtype)
    value, value_bias = _behind_norm(attention.value, norm, heads, dtype)
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
    linear: nn.Linear, norm: nn.LayerNorm, heads: int, dtype: torch.dtype
) -> tuple[Float[Tensor, "h d c"], Float[Tensor, "h d"]]:
    """A linear map with the scale and shift of the norm before it folded in, split into heads."""
    weight, bias = linear.weight.to(dtype), linear.bias.to(dtype)
    bias = bias + weight @ norm.bias.to(dtype)
    return (weight * norm.weight.to(dtype)).unflatten(0, (heads, -1)), bias.unflatten(0, (heads, -1))


def _folded(asked: Float[Tensor, "*b h n d"], linear: Float[Tensor, "h d c"]) -> Float[Tensor, "*b c hn"]:
    """What is asked of normed tokens themselves; centred, so that their mean does not matter."""
    folded = rearrange(asked @ linear, "... h n c -> ... c (h n)")
    return folded - folded.mean(-2, keepdim=True)


@_without_autocast
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
    normed = cross.token_norm(latents.to(cross.attention.key.weight.dtype))
    key, value = (
        rearrange(linear(normed), "b n (h d) -> b h n d", h=heads)
        for linear in (cross.attention.key, cross.attention.value)
    )
    query, bias = _behind_norm(cross.attention.query, cross.query_norm, heads, dtype)
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
        if order.endswith("folded"):
            finish, others = _folded_finish(cross, values, tail)
        else:
            finish, others = (_projected_finish if order == "projected" else _finish)(cross, values, tail)
        writer = _writer(cross, rows, finish)
        written.append(_Rows.apply(rows, blocks_of(rows, block_size), writer, others, *rows.tensors.values(), *others))
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


def _projected_finish(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Sequence[nn.Module]
) -> tuple[Finish, tuple[Tensor, ...]]:
    """As the dense path."""
    output = cross.attention.output

    def finish(weights: Tensor, queries: Tensor | None) -> Tensor:
        found = output(rearrange(weights @ values, "h m e -> m (h e)").to(output.weight.dtype))
        queries = found if queries is None else queries.to(found)
        return _through(tail, cross.finish(queries[None], found[None]))[0]

    return finish, (values, *_parameters(output, cross.mlp_norm, cross.mlp, *tail))


def _finish(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Sequence[nn.Module]
) -> tuple[Finish, tuple[Tensor, ...]]:
    """The output map is applied to the values; all that follows, to each query."""
    output = cross.attention.output
    weight = output.weight.to(values.dtype).unflatten(-1, (len(values), -1))
    columns = _aligned(torch.einsum("hne,fhe->hnf", values, weight).flatten(0, 1))
    follow, others = (_composed_mlp_and_tail if is_shorter_composed(cross, tail) else _mlp_and_tail)(
        cross, values, tail
    )

    def finish(weights: Tensor, queries: Tensor | None) -> Tensor:
        found = (rearrange(weights, "h m n -> m (h n)") @ columns)[:, : output.out_features]
        found = found.to(output.bias.dtype) + output.bias
        return follow(found if queries is None else found + queries.to(found))

    return finish, (columns, output.bias, *others)


def _mlp_and_tail(
    cross: CrossAttention, values: Tensor, tail: Sequence[nn.Module]
) -> tuple[Callable[[Tensor], Tensor], Sequence[Tensor]]:
    """The MLP and the maps that follow it, of rows [m, f]."""

    def follow(x: Tensor) -> Tensor:
        x = x[None]
        return _through(tail, x + cross.mlp(cross.mlp_norm(x)))[0]

    return follow, _parameters(cross.mlp_norm, cross.mlp, *tail)


def _composed_mlp_and_tail(
    cross: CrossAttention, values: Tensor, tail: Sequence[nn.Module]
) -> tuple[Callable[[Tensor], Tensor], Sequence[Tensor]]:
    """The same: all linear maps behind the activation are one, and one is all that they make of x itself."""
    dtype, norm = values.dtype, cross.mlp_norm
    hidden = _plain(cross.mlp.hidden, dtype)
    scale, shift = norm.weight.to(dtype), norm.bias.to(dtype)
    last, after, bias = _last_maps(cross, values, tail)
    maps = torch.cat([last[0], after], -1).T  # one of them is made of the other: their gradients come together

    def follow(x: Tensor) -> Tensor:
        x = x.to(dtype)
        inner = cross.mlp.activation(F.linear(F.layer_norm(x, x.shape[-1:], scale, shift, LAYER_NORM_EPSILON), *hidden))
        of_x, of_inner = maps.split([x.shape[-1], inner.shape[-1]])
        return torch.addmm(torch.addmm(bias, x, of_x), inner, of_inner)

    return follow, (scale, shift, *hidden, maps, bias)


def is_shorter_composed(cross: CrossAttention, tail: Sequence[nn.Module]) -> bool:
    """Whether the maps behind the MLP's activation, and behind what goes past it, are cheaper as two."""
    maps = [module for module in tail if isinstance(module, nn.Linear)]
    if not is_linear(tail) or not maps:
        return False
    second = cross.mlp.output.weight
    return maps[-1].out_features * sum(second.shape) < second.numel() + sum(linear.weight.numel() for linear in maps)


def _last_maps(
    cross: CrossAttention, values: Tensor, tail: Sequence[nn.Module]
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """The tail as one map, with its bias; that of the activation; the bias of both together."""
    second = _plain(cross.mlp.output, values.dtype)
    last = _composed(tail, len(second[0]), values)
    return last, last[0] @ second[0], last[1] + last[0] @ second[1]


def _folded_finish(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Sequence[nn.Module]
) -> tuple[Finish, tuple[Tensor, ...]]:
    """All linear maps are applied to the values; what remains for a query is one activation and one norm.

    With u what attention finds, tail(u + mlp(norm u)) needs u behind the tail, behind the MLP's first map, and its
    variance, |centred u|^2: with centred u = Q R (values in their own width, 1) that is |R (values, 1)|^2.
    """
    dtype, mlp, norm = values.dtype, cross.mlp, cross.mlp_norm
    output, hidden = _plain(cross.attention.output, dtype), _plain(mlp.hidden, dtype)
    last, after, bias = _last_maps(cross, values, tail)
    centred = torch.cat([output[0], output[1][:, None]], -1)
    centred = centred - centred.mean(0)
    # R is Q' (centred u); with Q constant |R (values, 1)|^2 has its gradient also where R has no inverse (bias 0).
    tall = centred.shape[0] > centred.shape[1]
    root = torch.linalg.qr(centred.detach()).Q.mT @ centred if tall else centred
    inside = hidden[0] * norm.weight.to(dtype) @ centred
    maps = torch.cat([inside, root, torch.cat([last[0] @ output[0], (last[0] @ output[1])[:, None]], -1)])
    per_head = maps[:, :-1].unflatten(-1, (len(values), -1))
    columns = _aligned(torch.einsum("hne,fhe->hnf", values, per_head).flatten(0, 1))
    constants = F.pad(maps[:, -1], (0, columns.shape[-1] - len(maps)))
    sizes = [len(inside), len(root), len(last[0]), columns.shape[-1] - len(maps)]
    hidden_bias = hidden[1] + hidden[0] @ norm.bias.to(dtype)

    def finish(weights: Tensor, _: Tensor | None) -> Tensor:
        weights = rearrange(weights, "h m n -> m (h n)")
        inner, rooted, plain, _ = torch.addmm(constants, weights, columns).split(sizes, -1)
        scale = torch.rsqrt((rooted * rooted).sum(-1, keepdim=True) / len(output[0]) + LAYER_NORM_EPSILON)
        return torch.addmm(plain + bias, mlp.activation(torch.addcmul(hidden_bias, inner, scale)), after.T)

    return finish, (columns, constants, hidden_bias, after, bias)


def is_linear(tail: Sequence[nn.Module]) -> bool:
    """Whether these maps, one after the other, are a linear one."""
    return all(isinstance(module, nn.Linear | nn.Identity) for module in tail)


def _composed(tail: Sequence[nn.Module], channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Linear maps of rows [channels], one after the other, as one."""
    weight, bias = torch.eye(channels, dtype=like.dtype, device=like.device), like.new_zeros(channels)
    for linear in tail:
        if isinstance(linear, nn.Linear):
            own, shift = _plain(linear, like.dtype)
            weight, bias = own @ weight, own @ bias + shift
    return weight, bias


def _through(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _parameters(*modules: nn.Module) -> list[Tensor]:
    return [parameter for module in modules for parameter in module.parameters()]


def _plain(linear: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return linear.weight.to(dtype), linear.bias.to(dtype)


def _aligned(columns: Tensor) -> Tensor:
    return F.pad(columns, (0, -columns.shape[-1] % ALIGNMENT))
