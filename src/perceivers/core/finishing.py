"""Decoded rows from attention weights: what follows the scores when writing, in each order.

Linear maps that follow one another are one, where that is shorter. What for: orders.py.
m queries of a block, n latents, h heads, e channels of a value, f of a query.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.attention import LAYER_NORM_EPSILON, CrossAttention
from perceivers.core.linear import linear, matmul
from perceivers.core.linear_map import apply_linear, is_linear_map, linear_map, linear_shape, through

ALIGNMENT = 8
"""Products with a multiple of so many columns are the fastest."""

Finish = Callable[[Float[Tensor, "h m n"], Float[Tensor, "m f"] | None], Float[Tensor, "m e"]]
"""Makes decoded rows from attention weights, and queries where they are added to what is found."""


@dataclass(frozen=True)
class Used:
    """The tensors that make decoded rows. A head may use what latents are made of: each stands for itself alone."""

    leaves: tuple[Tensor, ...]
    """In the graph of a block: parameters, and tensors with nothing behind them."""
    sources: tuple[Tensor, ...]
    """What each is in the graph of the model."""

    @classmethod
    def made(cls, *tensors: Tensor) -> "Used":
        """Tensors that were made of others."""
        return cls(tuple(x.detach().requires_grad_(x.requires_grad) for x in tensors), tensors)

    @classmethod
    def of(cls, *modules: nn.Module) -> "Used":
        """Parameters that modules have, and those that they borrow (a tied head has its input's embeddings)."""
        parts = [part for module in modules for part in module.modules()]
        found = [(*part.parameters(recurse=False), *(getattr(part, "borrowed", None) or ())) for part in parts]
        once = tuple(dict.fromkeys(itertools.chain(*found)))
        return cls(once, once)

    def __add__(self, other: "Used") -> "Used":
        return Used(self.leaves + other.leaves, self.sources + other.sources)


def finish_of(
    order: str, cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Sequence[nn.Module]
) -> tuple[Finish, Used]:
    """What makes decoded rows in this order, and the tensors that it uses."""
    if order.endswith("folded"):
        return _folded_finish(cross, values, tail)
    return (_projected_finish if order == "projected" else _finish)(cross, values, tail)


def _projected_finish(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Sequence[nn.Module]
) -> tuple[Finish, Used]:
    """As the dense path."""
    output, made, dtype = cross.attention.output, Used.made(values), cross.mlp_norm.weight.dtype

    def finish(weights: Tensor, queries: Tensor | None) -> Tensor:
        found = apply_linear(output, rearrange(weights @ made.leaves[0], "h m e -> m (h e)").to(dtype))
        queries = found if queries is None else queries.to(found)
        return through(tail, cross.finish(queries[None], found[None]))[0]

    return finish, made + Used.of(output, cross.mlp_norm, cross.mlp, *tail)


def _finish(cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Sequence[nn.Module]) -> tuple[Finish, Used]:
    """The output map is applied to the values; all that follows, to each query."""
    output = linear_map(cross.attention.output)
    weight = output.weight.to(values.dtype).unflatten(-1, (len(values), -1))
    made = Used.made(_aligned(torch.einsum("hne,fhe->hnf", values, weight).flatten(0, 1)), output.bias)
    columns, bias = made.leaves
    follow, used = (_composed_mlp_and_tail if is_shorter_composed(cross, tail) else _mlp_and_tail)(cross, values, tail)

    def finish(weights: Tensor, queries: Tensor | None) -> Tensor:
        found = matmul(rearrange(weights, "h m n -> m (h n)"), columns)[:, : len(bias)]
        found = found.to(bias.dtype) + bias
        return follow(found if queries is None else found + queries.to(found))

    return finish, made + used


def _mlp_and_tail(
    cross: CrossAttention, values: Tensor, tail: Sequence[nn.Module]
) -> tuple[Callable[[Tensor], Tensor], Used]:
    """The MLP and the maps that follow it, of rows [m, f]."""

    def follow(x: Tensor) -> Tensor:
        x = x[None]
        return through(tail, x + cross.mlp(cross.mlp_norm(x)))[0]

    return follow, Used.of(cross.mlp_norm, cross.mlp, *tail)


def _composed_mlp_and_tail(
    cross: CrossAttention, values: Tensor, tail: Sequence[nn.Module]
) -> tuple[Callable[[Tensor], Tensor], Used]:
    """The same: all linear maps behind the activation are one, and one is all that they make of x itself."""
    dtype, norm = values.dtype, cross.mlp_norm
    last, after, bias = _last_maps(cross, values, tail)
    scale, shift = norm.weight.to(dtype), norm.bias.to(dtype)
    made = Used.made(*linear_map(cross.mlp.hidden).to(dtype), scale, shift, torch.cat([last[0], after], -1), bias)
    hidden, hidden_bias, scale, shift, maps, bias = made.leaves

    def follow(x: Tensor) -> Tensor:
        x = x.to(dtype)
        normed = F.layer_norm(x, x.shape[-1:], scale, shift, LAYER_NORM_EPSILON)
        inner = cross.mlp.activation(linear(normed, hidden, hidden_bias))
        of_x, of_inner = maps.split([x.shape[-1], inner.shape[-1]], -1)
        return linear(x, of_x, bias) + linear(inner, of_inner)

    return follow, made


def is_shorter_composed(cross: CrossAttention, tail: Sequence[nn.Module]) -> bool:
    """Whether the maps behind the MLP's activation, and behind what goes past it, are cheaper as two."""
    maps = [linear_shape(module) for module in tail if is_linear_map(module)]
    if not is_linear(tail) or not maps:
        return False
    channels, hidden = cross.attention.query_channels, cross.mlp.hidden_channels
    return maps[-1][0] * (channels + hidden) < channels * hidden + sum(map(math.prod, maps))


def _last_maps(
    cross: CrossAttention, values: Tensor, tail: Sequence[nn.Module]
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """The tail as one map, with its bias; that of the activation; the bias of both together."""
    second = linear_map(cross.mlp.output).to(values.dtype)
    last = _composed(tail, len(second[0]), values)
    return last, last[0] @ second[0], last[1] + last[0] @ second[1]


def _folded_finish(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Sequence[nn.Module]
) -> tuple[Finish, Used]:
    """All linear maps are applied to the values; what remains for a query is one activation and one norm.

    With u what attention finds, tail(u + mlp(norm u)) needs u behind the tail, behind the MLP's first map, and its
    variance, |centred u|^2: with centred u = Q R (values in their own width, 1) that is |R (values, 1)|^2.
    """
    dtype, mlp, norm = values.dtype, cross.mlp, cross.mlp_norm
    output, hidden = linear_map(cross.attention.output).to(dtype), linear_map(mlp.hidden).to(dtype)
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
    made = Used.made(columns, constants, hidden[1] + hidden[0] @ norm.bias.to(dtype), after, bias)
    columns, constants, hidden_bias, after, bias = made.leaves

    def finish(weights: Tensor, _: Tensor | None) -> Tensor:
        weights = rearrange(weights, "h m n -> m (h n)")
        inner, rooted, plain, _ = linear(weights, columns.T, constants).split(sizes, -1)
        scale = torch.rsqrt((rooted * rooted).sum(-1, keepdim=True) / len(output[0]) + LAYER_NORM_EPSILON)
        return plain + linear(mlp.activation(torch.addcmul(hidden_bias, inner, scale)), after, bias)

    return finish, made


def is_linear(tail: Sequence[nn.Module]) -> bool:
    """Whether these maps, one after the other, are a linear one."""
    return all(is_linear_map(module) or type(module) is nn.Identity for module in tail)


def _composed(tail: Sequence[nn.Module], channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Linear maps of rows [channels], one after the other, as one."""
    weight, bias = torch.eye(channels, dtype=like.dtype, device=like.device), like.new_zeros(channels)
    for module in tail:
        if is_linear_map(module):
            own, shift = linear_map(module).to(like.dtype)
            weight, bias = own @ weight, own @ bias + shift
    return weight, bias


def _aligned(columns: Tensor) -> Tensor:
    return F.pad(columns, (0, -columns.shape[-1] % ALIGNMENT))
