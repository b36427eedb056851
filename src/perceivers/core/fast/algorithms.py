"""The exact algorithms of a cross-attention.

For a token t, x = (t - mean t) / std t; the layer norm's scale g and shift b fold into the next linear map. With z the
normed query and e = exp(score - max_score):

    score    = (Wq z) . Wk (g x + b) = x . A + constant      A = g Wk' Wq z: the keys' map is folded into the query
    attended = sum e Wv (g x + b) = Wv g (sum e x) + ...     the values' map is applied after the sum

    dense       all keys, values and scores are materialised
    projected   keys and values are computed block by block: for many heads
    absorbed    no key or value is computed; tokens are assembled block by block
    separable   no token is assembled. For t = [content | its row's features | its column's | padding], as with Fourier
                features on a grid, with the columns of A centred and r = 1 / std t:
                    x . A = r (content A_content + (rows A_rows)[row] + (columns A_columns)[column] + padding A_padding)
                    sum e x needs sum e r content, and the sums of e r over each row and over each column alone
    ...-folded  writing only: the maps behind the attention are folded into the values (epilogue.py)

The softmax runs online: exponentials are relative to max_score, the largest score seen so far or a little less.
Samples are processed one by one, so a result is bitwise independent of its batch. On a GPU, where launches are costly,
the separable algorithm reads all samples together, and a kernel computes its sums (kernels.py).
The backward pass computes each block again.

Letters: m tokens of a block, n query columns, c channels, h heads, d channels of a head.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from types import ModuleType
from typing import Any, Literal, TypeVar, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from perceivers.core.blocks import UNMODULATED, CrossAttention, Modulation
from perceivers.core.coordinates import UNTURNED, Rotation
from perceivers.core.fast.epilogue import Epilogue, Tail, epilogue_of, modulated, modulation_of_sample
from perceivers.core.fast.linear_maps import LinearMap, Norm, linear_map, norm_of, scale_and_shift
from perceivers.core.fast.separable_blocks import SeparableBlocks
from perceivers.core.fast.token_blocks import (
    AbsorbedBlocks,
    Block,
    DenseBlocks,
    HeadSteps,
    ProjectedBlocks,
    TokenBlocks,
    blocks_of,
    normed_heads,
    sample_of,
)
from perceivers.core.latents import Latents
from perceivers.core.layers import apply_linear, dtype_of, without_autocast
from perceivers.core.reading import NO_SCORE, SoftmaxState
from perceivers.core.tokens import Segment

Algorithm = Literal["dense", "projected", "absorbed", "separable", "absorbed-folded", "separable-folded"]
"""Names of the algorithms; all give the same numbers. Only writing can be folded."""

HEADROOM = 8.0
"""Excess of a score over max_score at which max_score is raised: exp(8) times any sum is still in range."""

TOGETHER = ("cuda",)
"""Devices on which the separable algorithm reads all samples at once, with a kernel where there is one."""

Writer = Callable[[dict[str, Tensor], Block], Float[Tensor, "m e"]]
"""Function that decodes a block of queries, given the block's slice of the tensors."""

BlockResult = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Tensors computed for a block, and the incoming gradients of these tensors."""

Function = TypeVar("Function", bound=Callable[..., Any])


class _Sums(torch.autograd.Function):
    """The function that returns (max_score, *weighted_sums) over all blocks."""

    @staticmethod
    def forward(ctx: Any, tokens: TokenBlocks, blocks: list[Block], *tensors: Tensor) -> tuple[Tensor, ...]:
        together = isinstance(tokens, SeparableBlocks) and tokens.batch
        kernels = kernels_for(tokens.segment, tokens.dtype) if together else None
        max_score, sums = (_accumulated if kernels is None else kernels.accumulated)(tokens, blocks)
        ctx.token_blocks, ctx.blocks = tokens, blocks
        ctx.save_for_backward(max_score, *tensors)
        ctx.mark_non_differentiable(max_score)
        return max_score, *sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        tokens, max_score = ctx.token_blocks, ctx.saved_tensors[0]

        def again(part: dict[str, Tensor], block: Block) -> BlockResult:
            scores, seen = tokens.scores(part, block)
            return tokens.weighted_sums(seen, (scores - max_score).exp()), gradients

        return None, None, *_gradients(tokens, ctx.blocks, (), ctx.needs_input_grad[2:], again)


def _accumulated(tokens: TokenBlocks, blocks: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """Return max_score of all blocks, and the sums relative to it."""
    max_score, sums = _with_block(tokens, blocks[0])
    for block in blocks[1:]:
        max_score, sums = _with_block(tokens, block, max_score, sums)
    return max_score, sums


def _with_block(
    tokens: TokenBlocks, block: Block, max_score: Tensor | None = None, sums: Sequence[Tensor] = ()
) -> tuple[Tensor, list[Tensor]]:
    """Return max_score and sums with one more block; a function, so that its arrays are freed before the next."""
    scores, seen = tokens.scores(tokens.slice(tokens.tensors, block), block)
    top = scores.amax(-2, keepdim=True)
    if max_score is None:
        max_score = top.clamp(min=NO_SCORE)
        return max_score, list(tokens.weighted_sums(seen, scores.sub_(max_score).exp_()))
    raised = torch.where(top > max_score + HEADROOM, top, max_score)
    scale = (max_score - raised).exp()
    return raised, tokens.accumulate([x.mul_(scale) for x in sums], seen, scores.sub_(raised).exp_())


def is_together(algorithm: Algorithm, device: torch.device) -> bool:
    """Return whether all samples are read at once, instead of one by one."""
    return algorithm == "separable" and device.type in TOGETHER


def kernels_for(segment: Segment, dtype: torch.dtype) -> ModuleType | None:
    """Return the module kernels.py if it can read this segment in the separable algorithm, in this precision."""
    possible = dtype == torch.float32 and is_together("separable", segment.device)
    kernels = triton_kernels() if possible else None
    return kernels if kernels is not None and kernels.takes(segment.content) else None


@cache
def triton_kernels() -> ModuleType | None:
    """Return the module kernels.py where Triton is installed."""
    return importlib.import_module("perceivers.core.fast.kernels") if importlib.util.find_spec("triton") else None


class _Written(torch.autograd.Function):
    """The decoded blocks of `writer`, concatenated; `others` are its other leaves, with sources last in `tensors`."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: TokenBlocks,
        blocks: list[Block],
        writer: Writer,
        others: tuple[Tensor, ...],
        *tensors: Tensor,
    ) -> Tensor:
        written = None
        for block in blocks:
            found = writer(queries.slice(queries.tensors, block), block)
            # One array for all blocks: many small arrays between large ones would fragment the heap.
            written = found.new_empty(queries.segment.num_tokens, found.shape[-1]) if written is None else written
            written[slice(*block)] = found
        assert written is not None
        ctx.queries, ctx.blocks, ctx.writer, ctx.others = queries, blocks, writer, others
        ctx.save_for_backward(*tensors)
        return written

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        def again(part: dict[str, Tensor], block: Block) -> BlockResult:
            return (ctx.writer(part, block),), (gradient[slice(*block)],)

        found = _gradients(ctx.queries, ctx.blocks, ctx.others, ctx.needs_input_grad[4:], again)
        return None, None, None, None, *found


def _gradients(
    tokens: TokenBlocks,
    blocks: list[Block],
    others: Sequence[Tensor],
    needed: Sequence[bool],
    again: Callable[[dict[str, Tensor], Block], BlockResult],
) -> list[Tensor | None]:
    """Return gradients of the tensors of `tokens`, then of `others`, where needed, by computing each block again."""
    # Start from zeros for each tensor that needs a gradient.
    count = len(tokens.tensors)
    names = [name for name, wanted in zip(tokens.tensors, needed[:count], strict=True) if wanted]
    wanted_others = [x for x, wanted in zip(others, needed[count:], strict=True) if wanted]
    sums = {name: torch.zeros_like(tokens.tensors[name]) for name in names}
    of_others = [torch.zeros_like(x) for x in wanted_others]
    for block in blocks:
        # Compute the block again, from leaves.
        views = tokens.slice(tokens.tensors, block)
        part = {name: x.detach().requires_grad_(name in sums) for name, x in views.items()}
        with torch.enable_grad(), without_autocast(tokens.device):
            computed, gradients = again(part, block)
        if block is blocks[0]:
            _check_leaves(computed, [*part.values(), *others])
        # Differentiate; where only values are trained, sums of weights have no gradient.
        differentiable = [(x, of_x) for x, of_x in zip(computed, gradients, strict=True) if x.requires_grad]
        outputs, of_outputs = zip(*differentiable, strict=True)
        inputs = [*(part[name] for name in names), *wanted_others]
        found = torch.autograd.grad(outputs, inputs, of_outputs, allow_unused=True)
        # Add the block's gradients in place.
        for total, more in zip([*tokens.slice(sums, block).values(), *of_others], found, strict=True):
            if more is not None:
                total += more
    gradients_of = iter([*sums.values(), *of_others])
    return [next(gradients_of) if wanted else None for wanted in needed]


def _check_leaves(computed: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raise a RuntimeError if a block uses a parameter not in `known`: it would silently get no gradient."""
    names, nodes, seen = {id(x) for x in known}, [x.grad_fn for x in computed], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [behind for behind, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in names:
            shape = list(leaf.shape)
            raise RuntimeError(f"a parameter {shape} of another module is used in blocks: bind it (`bound_head`)")


def _in_full_precision(function: Function) -> Function:
    """Turn autocast off while the function runs: its sums and statistics need float32."""

    @wraps(function)
    def call(cross: CrossAttention, *given: Any) -> Any:
        with without_autocast(cross.attention.query.weight.device):
            return function(cross, *given)

    return cast(Function, call)


@_in_full_precision
def read(
    cross: CrossAttention, latents: Latents, segment: Segment, algorithm: Algorithm, block_size: int
) -> SoftmaxState:
    """Return the softmax state of a segment for the latents, about `block_size` tokens at a time."""
    attention, norm = cross.attention, cross.token_norm
    dtype = torch.promote_types(latents.array.dtype, torch.float32)
    heads, group = attention.num_heads, attention.num_heads // attention.num_kv_heads
    rotation = _rotation_of_first(cross, latents, segment)
    query = _queries(cross, latents, rotation, dtype)
    # The maps of keys and values with the tokens' norm folded in.
    key, key_bias = _behind_norm(linear_map(attention.key), norm, attention.num_kv_heads, dtype)
    value, value_bias = _behind_norm(linear_map(attention.value), norm, attention.num_kv_heads, dtype)
    # What follows the maps is done head by head; else heads that queries share are copied, and biases added behind.
    steps, shift, is_shared = None, None, group > 1 and algorithm == "projected"
    if attention.key_head_norm is not None or rotation is not UNTURNED or is_shared:
        inside = {"bias": key_bias, "value_bias": value_bias}
        steps = HeadSteps(partial(cross.rotation, latents.segment), attention.key_head_norm, **inside, group=group)
        value_bias = value_bias[:, :0].sum()
    else:
        key, key_bias, value, value_bias = (x.repeat_interleave(group, 0) for x in (key, key_bias, value, value_bias))
        # Other states may have the keys' bias in their scores.
        if cross.attends_queries or attention.rotary is not None or group > 1:
            shift = (query @ key_bias[..., None])[..., 0]
    # Elsewhere the softmax cancels the keys' bias. Its gradient must be 0, not None: data parallelism waits for it.
    value_bias = value_bias + key_bias[:, :0].sum()
    batch = max(batch_of(latents), segment.batch_size)
    # No tokens: zeros that still have gradients.
    if not segment.num_tokens:
        folded = _folded(query[0], key.repeat_interleave(heads // len(key), 0), norm_of(norm))
        parts = [*AbsorbedBlocks(sample_of(segment, 0), norm_of(norm), folded).tensors.values(), value, value_bias]
        return _empty_state(parts, batch, query, attention.v_channels // heads)

    def state_of(segment: Segment, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if algorithm == "projected":
            blocks = ProjectedBlocks(segment, norm_of(norm), queries, key, value, steps=steps)
            max_score, total, found = _sums(blocks, block_size)
            weighted = found.mT
        else:
            folded = _folded(queries, key, norm_of(norm))
            folded = folded.expand(batch, -1, -1) if folded.ndim > 2 else folded
            tokens = (SeparableBlocks if algorithm == "separable" else AbsorbedBlocks)(segment, norm_of(norm), folded)
            max_score, total, *sums = _sums(tokens, block_size)
            weighted = rearrange(tokens.weighted_tokens(sums), "... c (h n) -> ... h n c", h=heads) @ value.mT
            max_score, total = (rearrange(x, "... 1 (h n) -> ... h 1 n", h=heads) for x in (max_score, total))
        biases = value_bias if value_bias.ndim == 0 else total.mT * value_bias[:, None]
        return max_score[..., 0, :], total[..., 0, :], weighted + biases

    # All samples at once where launches are costly, else one by one.
    if is_together(algorithm, segment.device):
        max_score, total, weighted = state_of(segment, query)
    else:
        states = [state_of(sample_of(segment, number), query[number % len(query)]) for number in range(batch)]
        max_score, total, weighted = (torch.stack(parts) for parts in zip(*states, strict=True))
    return SoftmaxState(max_score if shift is None else max_score + shift, total, rotation.back(weighted))


def batch_of(latents: Latents) -> int:
    """Return B; 1 if the latents and their condition are the same for every sample."""
    return max(latents.segment.batch_size, 1 if latents.condition is None else len(latents.condition))


def _queries(
    cross: CrossAttention, latents: Latents, rotation: Rotation, dtype: torch.dtype
) -> Float[Tensor, "#b h n d"]:
    """Return the queries of the latents, divided by the root of their width."""
    attention, (modulation, _) = cross.attention, cross.modulations(latents.condition)
    normed = cross.normed_queries(latents.array.to(dtype_of(cross.query_norm)), modulation)
    query = rearrange(apply_linear(attention.query, normed).to(dtype), "b n (h d) -> b h n d", h=attention.num_heads)
    query = rotation.queries(normed_heads(attention.query_head_norm, query))
    return query / math.sqrt(query.shape[-1])


def _rotation_of_first(cross: CrossAttention, latents: Latents, segment: Segment) -> Rotation:
    """Return the rotation between the latents and the first token; it turns the latents as for all other tokens."""
    return cross.rotation(latents.segment, segment.block(0, 1)) if segment.num_tokens else UNTURNED


def _sums(tokens: TokenBlocks, block_size: int) -> tuple[Tensor, ...]:
    return _Sums.apply(tokens, blocks_of(tokens, block_size), *tokens.tensors.values())


def _empty_state(parts: Sequence[Tensor], batch: int, query: Tensor, width: int) -> SoftmaxState:
    """Return the state of no tokens, with gradients of 0 for all parts.

    A gradient of None would block a group of processes: one that has nothing to read must send its gradients too.
    """
    nothing = torch.stack([x.flatten()[:0].sum(dtype=query.dtype) for x in parts]).sum()
    zeros = nothing.expand(batch, *query.shape[1:-1])
    weighted = zeros[..., None].expand(-1, -1, -1, width)
    return SoftmaxState(torch.full_like(zeros, NO_SCORE), zeros, weighted)


def _behind_norm(
    linear: LinearMap, norm: nn.Module, heads: int, dtype: torch.dtype, modulation: Modulation = UNMODULATED
) -> tuple[Float[Tensor, "h d c"], Float[Tensor, "h d"]]:
    """Return a linear map with the scale and shift of the norm before it folded in, split into heads.

    `modulation`: that of one sample, which acts between the norm and the map.
    """
    (weight, bias), (scale, shift) = linear.to(dtype), scale_and_shift(norm, dtype)
    scale, shift = modulated(scale, shift, modulation)
    bias = bias + weight @ shift
    return (weight * scale).unflatten(0, (heads, -1)), bias.unflatten(0, (heads, -1))


def _folded(queries: Float[Tensor, "*b h n d"], linear: Float[Tensor, "h d c"], norm: Norm) -> Float[Tensor, "*b c hn"]:
    """Return A, the queries folded with the keys' map, centred over channels so that a token's mean cancels."""
    return norm.centred(rearrange(queries @ linear, "... h n c -> ... c (h n)"), -2)


@_in_full_precision
def write(
    cross: CrossAttention, queries: Segment, latents: Latents, tail: Tail, algorithm: Algorithm, block_size: int
) -> Float[Tensor, "b o e"]:
    """Return the decoded queries, after the maps of `tail`, about `block_size` queries at a time.

    As in `read` with the sides exchanged: the queries' map is folded into the latents' keys.
    """
    attention, norm, heads = cross.attention, norm_of(cross.query_norm), cross.attention.num_heads
    dtype = torch.promote_types(latents.array.dtype, torch.float32)
    key, value = _keys_and_values(cross, queries, latents)
    modulations = cross.modulations(latents.condition)
    has_steps = algorithm == "projected" and (attention.query_head_norm is not None or attention.rotary is not None)
    query_map, written = linear_map(attention.query), []
    # One sample after the other: its scores by blocks of queries, then the epilogue.
    for number in range(max(batch_of(latents), queries.batch_size)):
        sample, values = sample_of(queries, number), value[number % len(value)].to(dtype)
        keys = key[number % len(key)].to(dtype) / math.sqrt(key.shape[-1])
        of_attention, of_mlp = (modulation_of_sample(x, number) for x in modulations)
        query, bias = _behind_norm(query_map, cross.query_norm, heads, dtype, of_attention)
        steps = None
        if has_steps:
            here = sample_of(latents.segment, number)
            steps = HeadSteps(partial(cross.rotation, keys=here), attention.query_head_norm, bias)
        added = None if has_steps else (keys @ bias[..., None]).flatten()
        if algorithm == "projected":
            tokens: TokenBlocks = ProjectedBlocks(sample, norm, keys, query, added=added, steps=steps)
        else:
            blocks = SeparableBlocks if algorithm.startswith("separable") else AbsorbedBlocks
            tokens = blocks(sample, norm, _folded(keys, query, norm), added)
        epilogue, shared = epilogue_of(algorithm, cross, values, tail, (of_attention, of_mlp))
        writer = _writer(
            cross, tokens, epilogue, None if latents.mask is None else latents.mask[number % len(latents.mask)]
        )
        tensors = (*tokens.tensors.values(), *shared.sources)
        written.append(_Written.apply(tokens, blocks_of(tokens, block_size), writer, shared.leaves, *tensors))
    return (torch.stack(written) if len(written) > 1 else written[0][None]).to(latents.array.dtype)


def _keys_and_values(
    cross: CrossAttention, queries: Segment, latents: Latents
) -> tuple[Float[Tensor, "#b h n d"], Float[Tensor, "#b h n e"]]:
    """Return the keys and values of the latents, a head of each for every head of queries."""
    attention = cross.attention
    normed = cross.token_norm(latents.array.to(dtype_of(cross.token_norm)))
    key, value = (
        rearrange(apply_linear(module, normed), "b n (h d) -> b h n d", h=attention.num_kv_heads)
        for module in (attention.key, attention.value)
    )
    key = key if attention.key_head_norm is None else attention.key_head_norm(key)
    if queries.num_tokens:
        rotation = cross.rotation(queries.block(0, 1), latents.segment)  # it turns the latents as for all other queries
        key, value = rotation.keys(key), rotation.values(value)
    if (group := attention.num_heads // attention.num_kv_heads) > 1:
        key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    return key, value


def _writer(
    cross: CrossAttention, tokens: TokenBlocks, epilogue: Epilogue, exists: Bool[Tensor, " n"] | None
) -> Writer:
    """Return the function that decodes a block; `exists` is True for the latents that do, None for all."""

    def writer(part: dict[str, Tensor], block: Block) -> Tensor:
        scores, _ = tokens.scores(part, block)
        if scores.ndim == 2:
            scores = rearrange(scores, "m (h n) -> h m n", h=cross.attention.num_heads)
        if exists is None:
            weights = scores.softmax(-1)
        else:  # 0 also where no latent exists
            weights = scores.masked_fill(~exists, -math.inf).softmax(-1).masked_fill(~exists, 0)
        valid = tokens.valid(block)
        weights = weights if valid is None else weights.masked_fill(~valid[:, None], 0)
        queries = tokens.dense_block(part, block) if cross.query_residual and isinstance(tokens, DenseBlocks) else None
        steps = tokens.steps if isinstance(tokens, ProjectedBlocks) else None
        rotation = UNTURNED if steps is None else steps.rotation(tokens.segment.block(*block))
        return epilogue(weights, queries, rotation)

    return writer
