"""The epilogue: what follows the softmax when writing, from attention weights to decoded queries, in each algorithm.

With p the weights of a query, v the values, Wo and bo the output map, q the query (with a residual only), W1, b1, W2
and b2 the MLP, Wt and bt the tail:

    u = Wo sum p v + bo (+ q);     y = u + W2 act(W1 norm(u) + b1) + b2;     written = tail(y) = Wt y + bt

    projected   as the dense path
    absorbed    Wo is applied to the values once:  sum p (Wo v); all that follows runs for each query
    ...-folded  all linear maps are applied to the values once; one norm and one activation run for each query

Consecutive linear maps are multiplied into one where that is shorter.
Letters: m queries of a block, n latents, h heads, e channels of a value, f of a query.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.attention import CrossAttention
from perceivers.core.fast.linear_maps import is_linear_map, linear_map, linear_shape
from perceivers.core.fast.onednn import linear, matmul
from perceivers.core.interfaces import BoundHead
from perceivers.core.layers import LAYER_NORM_EPSILON, apply_linear

COLUMN_MULTIPLE = 8
"""Multiple to which the columns of a product are padded: such products are the fastest."""

Tail = Sequence[Any]
"""The maps behind a decoder's block: the map that all outputs share, then a head; modules or `BoundHead`s."""

Epilogue = Callable[[Float[Tensor, "h m n"], Float[Tensor, "m f"] | None], Float[Tensor, "m e"]]
"""Function that decodes queries from their attention weights and, with a residual, from the queries."""


@dataclass(frozen=True)
class SharedParameters:
    """The tensors that an epilogue uses.

    A head may share tensors with the latents; each is detached, so that its gradient is counted once.
    """

    leaves: tuple[Tensor, ...]
    """Tensors in the graph of a block: parameters, and detached tensors."""
    sources: tuple[Tensor, ...]
    """The same tensors in the graph of the model."""

    @classmethod
    def detached(cls, *tensors: Tensor) -> "SharedParameters":
        """Return computed tensors as sources, and detached as leaves."""
        return cls(tuple(x.detach().requires_grad_(x.requires_grad) for x in tensors), tensors)

    @classmethod
    def of(cls, *maps: Any) -> "SharedParameters":
        """Return the parameters of modules and bound heads, each once."""
        found = [module.parameters(recurse=False) for module in modules_of(maps)]
        once = tuple(dict.fromkeys(itertools.chain(*found)))
        return cls(once, once)

    def __add__(self, other: "SharedParameters") -> "SharedParameters":
        return SharedParameters(self.leaves + other.leaves, self.sources + other.sources)


def modules_of(maps: Sequence[Any]) -> Iterator[nn.Module]:
    """Iterate over all modules of maps; a bound head includes the modules that it is bound to."""
    for one in maps:
        for module in (one.head, *one.shared) if isinstance(one, BoundHead) else (one,):
            yield from module.modules()


def through(maps: Tail, x: Tensor) -> Tensor:
    """Apply maps to x, one after the other."""
    for one in maps:
        x = apply_linear(one, x)
    return x


def epilogue_of(
    algorithm: str, cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Tail
) -> tuple[Epilogue, SharedParameters]:
    """Return the epilogue of an algorithm, and the tensors that it uses."""
    if algorithm.endswith("folded"):
        return _folded_epilogue(cross, values, tail)
    return (_projected_epilogue if algorithm == "projected" else _absorbed_epilogue)(cross, values, tail)


def _projected_epilogue(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Tail
) -> tuple[Epilogue, SharedParameters]:
    output, made, dtype = cross.attention.output, SharedParameters.detached(values), cross.mlp_norm.weight.dtype

    def epilogue(weights: Tensor, queries: Tensor | None) -> Tensor:
        found = apply_linear(output, rearrange(weights @ made.leaves[0], "h m e -> m (h e)").to(dtype))
        queries = found if queries is None else queries.to(found)
        return through(tail, cross.finish(queries[None], found[None]))[0]

    return epilogue, made + SharedParameters.of(output, cross.mlp_norm, cross.mlp, *tail)


def _absorbed_epilogue(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Tail
) -> tuple[Epilogue, SharedParameters]:
    output = linear_map(cross.attention.output)
    weight = output.weight.to(values.dtype).unflatten(-1, (len(values), -1))
    columns = _aligned(torch.einsum("hne,fhe->hnf", values, weight).flatten(0, 1))
    made = SharedParameters.detached(columns, output.bias)
    columns, bias = made.leaves
    follow, shared = (_composed_mlp_and_tail if is_shorter_composed(cross, tail) else _mlp_and_tail)(
        cross, values, tail
    )

    def epilogue(weights: Tensor, queries: Tensor | None) -> Tensor:
        found = matmul(rearrange(weights, "h m n -> m (h n)"), columns)[:, : len(bias)]
        found = found.to(bias.dtype) + bias
        return follow(found if queries is None else found + queries.to(found))

    return epilogue, made + shared


def _mlp_and_tail(
    cross: CrossAttention, values: Tensor, tail: Tail
) -> tuple[Callable[[Tensor], Tensor], SharedParameters]:
    """Return the function u [m, f] -> tail(u + mlp(norm u)), which calls the modules."""

    def follow(x: Tensor) -> Tensor:
        x = x[None]
        return through(tail, x + cross.mlp(cross.mlp_norm(x)))[0]

    return follow, SharedParameters.of(cross.mlp_norm, cross.mlp, *tail)


def _composed_mlp_and_tail(
    cross: CrossAttention, values: Tensor, tail: Tail
) -> tuple[Callable[[Tensor], Tensor], SharedParameters]:
    """Return the same function with maps multiplied out: Wt u + bias, plus Wt W2 times the activation."""
    dtype, norm = values.dtype, cross.mlp_norm
    last, after, bias = _last_maps(cross, values, tail)
    scale, shift = norm.weight.to(dtype), norm.bias.to(dtype)
    hidden_map, last_maps = linear_map(cross.mlp.hidden).to(dtype), torch.cat([last[0], after], -1)
    made = SharedParameters.detached(*hidden_map, scale, shift, last_maps, bias)
    hidden, hidden_bias, scale, shift, maps, bias = made.leaves

    def follow(x: Tensor) -> Tensor:
        x = x.to(dtype)
        normed = F.layer_norm(x, x.shape[-1:], scale, shift, LAYER_NORM_EPSILON)
        inner = cross.mlp.activation(linear(normed, hidden, hidden_bias))
        of_x, of_inner = maps.split([x.shape[-1], inner.shape[-1]], -1)
        return linear(x, of_x, bias) + linear(inner, of_inner)

    return follow, made


def is_shorter_composed(cross: CrossAttention, tail: Tail) -> bool:
    """Return whether Wt and Wt W2, multiplied out, need fewer multiply-adds than W2 and then the tail."""
    maps = [linear_shape(module) for module in tail if is_linear_map(module)]
    if not is_linear(tail) or not maps:
        return False
    channels, hidden = cross.attention.query_channels, cross.mlp.hidden_channels
    return maps[-1][0] * (channels + hidden) < channels * hidden + sum(map(math.prod, maps))


def _last_maps(cross: CrossAttention, values: Tensor, tail: Tail) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return (Wt, bt), Wt W2, and the bias bt + Wt b2."""
    second = linear_map(cross.mlp.output).to(values.dtype)
    last = _composed(tail, len(second[0]), values)
    return last, last[0] @ second[0], last[1] + last[0] @ second[1]


def _folded_epilogue(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Tail
) -> tuple[Epilogue, SharedParameters]:
    """Return the epilogue u -> tail(u + mlp(norm u)) with all linear maps applied to the values.

    It needs u through the tail, u through the MLP's first map, and the variance of u, |centred u|^2 / f. With
    centred u = C (v, 1) and C = Q R, the variance is |R (v, 1)|^2 / f; R (v, 1) has no more entries than (v, 1).
    """
    dtype, mlp, norm = values.dtype, cross.mlp, cross.mlp_norm
    output, hidden = linear_map(cross.attention.output).to(dtype), linear_map(mlp.hidden).to(dtype)
    last, after, bias = _last_maps(cross, values, tail)
    # C, and R = Q' C. With Q constant, |R (v, 1)|^2 has a gradient even where R has no inverse (bias 0).
    centred = torch.cat([output[0], output[1][:, None]], -1)
    centred = centred - centred.mean(0)
    tall = centred.shape[0] > centred.shape[1]
    root = torch.linalg.qr(centred.detach()).Q.mT @ centred if tall else centred
    # The three maps of (v, 1), stacked: through the MLP's first map, R, through the tail.
    inside = hidden[0] * norm.weight.to(dtype) @ centred
    maps = torch.cat([inside, root, torch.cat([last[0] @ output[0], (last[0] @ output[1])[:, None]], -1)])
    per_head = maps[:, :-1].unflatten(-1, (len(values), -1))
    columns = _aligned(torch.einsum("hne,fhe->hnf", values, per_head).flatten(0, 1))
    constants = F.pad(maps[:, -1], (0, columns.shape[-1] - len(maps)))
    sizes = [len(inside), len(root), len(last[0]), columns.shape[-1] - len(maps)]
    hidden_bias = hidden[1] + hidden[0] @ norm.bias.to(dtype)
    # Leaves for the blocks.
    made = SharedParameters.detached(columns, constants, hidden_bias, after, bias)
    columns, constants, hidden_bias, after, bias = made.leaves

    def epilogue(weights: Tensor, _: Tensor | None) -> Tensor:
        weights = rearrange(weights, "h m n -> m (h n)")
        inner, rooted, plain, _ = linear(weights, columns.T, constants).split(sizes, -1)
        scale = torch.rsqrt((rooted * rooted).sum(-1, keepdim=True) / len(output[0]) + LAYER_NORM_EPSILON)
        return plain + linear(mlp.activation(torch.addcmul(hidden_bias, inner, scale)), after, bias)

    return epilogue, made


def is_linear(tail: Tail) -> bool:
    """Return whether these maps, one after the other, are a linear map."""
    return all(type(module) is nn.Identity or is_linear_map(module) for module in tail)


def _composed(tail: Tail, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of linear maps, one after the other; the first has `channels` inputs."""
    weight, bias = torch.eye(channels, dtype=like.dtype, device=like.device), like.new_zeros(channels)
    for module in tail:
        if is_linear_map(module):
            matrix, shift = linear_map(module).to(like.dtype)
            weight, bias = matrix @ weight, matrix @ bias + shift
    return weight, bias


def _aligned(columns: Tensor) -> Tensor:
    return F.pad(columns, (0, -columns.shape[-1] % COLUMN_MULTIPLE))
