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
from typing import Any, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.blocks import UNMODULATED, CrossAttention, Modulation
from perceivers.core.coordinates import Rotation
from perceivers.core.fast.linear_maps import (
    LinearMap,
    is_linear_map,
    linear_map,
    linear_shape,
    norm_of,
    scale_and_shift,
)
from perceivers.core.fast.onednn import linear, matmul
from perceivers.core.interfaces import BoundHead
from perceivers.core.layers import apply_linear, dtype_of

COLUMN_MULTIPLE = 8
"""Multiple to which the columns of a product are padded: such products are the fastest."""

Tail = Sequence[Any]
"""The maps behind a decoder's block: the map that all outputs share, then a head; modules or `BoundHead`s."""

Epilogue = Callable[[Float[Tensor, "h m n"], Float[Tensor, "m f"] | None, Rotation], Float[Tensor, "m e"]]
"""Function that decodes queries from their attention weights, with a residual also from the queries, and from the
rotation, which turns values back where they were turned."""

Modulations = tuple[Modulation, Modulation]
"""The modulations of attention and MLP by a condition, for one sample."""


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


class BlockMaps(NamedTuple):
    """The maps behind the attention, with LayerScale and the gates of a condition folded in."""

    output: LinearMap
    """The output map of the attention."""
    hidden: LinearMap | None
    """The first map of the MLP; None: there is no MLP."""
    second: LinearMap | None
    """The second map of the MLP."""
    scale: Tensor | None
    """Scale of the MLP's norm."""
    shift: Tensor | None
    """Shift of the MLP's norm."""

    @classmethod
    def of(cls, cross: CrossAttention, modulations: Modulations, dtype: torch.dtype) -> "BlockMaps":
        """Return the maps of a block, for one sample."""
        of_attention, of_mlp = modulations
        output = _gated(linear_map(cross.attention.output), of_attention)
        if cross.mlp is None or cross.mlp_norm is None:
            return cls(output, None, None, None, None)
        scale, shift = modulated(*scale_and_shift(cross.mlp_norm, dtype), of_mlp)
        second = _gated(linear_map(cross.mlp.output), of_mlp)
        return cls(output, linear_map(cross.mlp.hidden), second, scale, shift)


def modulated(scale: Tensor, shift: Tensor, modulation: Modulation) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a norm, followed by what a modulation of one sample does on entering a branch."""
    if modulation.scale is None or modulation.shift is None:
        return scale, shift
    factor = modulation.scale.to(scale.dtype).flatten()
    return scale * factor, shift * factor + modulation.shift.to(scale.dtype).flatten()


def modulation_of_sample(modulation: Modulation, number: int) -> Modulation:
    """Return the modulation of one sample, as a batch of one."""
    parts = (modulation.scale, modulation.shift, modulation.gate)
    return Modulation(*(x if x is None or x.ndim == 1 else x[number % len(x)][None] for x in parts))


def _gated(linear: LinearMap, modulation: Modulation) -> LinearMap:
    """Return a map followed by what a modulation of one sample does on leaving a branch."""
    if modulation.gate is None:
        return linear
    gate = modulation.gate.flatten()
    return LinearMap(linear.weight * gate[:, None], linear.bias * gate)


def epilogue_of(
    algorithm: str,
    cross: CrossAttention,
    values: Float[Tensor, "h n e"],
    tail: Tail,
    modulations: Modulations = (UNMODULATED, UNMODULATED),
) -> tuple[Epilogue, SharedParameters]:
    """Return the epilogue of an algorithm for one sample, and the tensors that it uses."""
    if algorithm == "projected":
        return _projected_epilogue(cross, values, tail, modulations)
    maps = BlockMaps.of(cross, modulations, values.dtype)
    if algorithm.endswith("folded"):
        return _folded_epilogue(cross, maps, values, tail)
    return _absorbed_epilogue(cross, maps, values, tail, modulations)


def _detached(modulation: Modulation) -> tuple[Modulation, SharedParameters]:
    """Return a modulation for the graph of a block, and its tensors."""
    parts = (modulation.scale, modulation.shift, modulation.gate)
    made = SharedParameters.detached(*(part for part in parts if part is not None))
    leaves = iter(made.leaves)
    return Modulation(*(None if part is None else next(leaves) for part in parts)), made


def modules_behind(cross: CrossAttention, tail: Tail) -> list[Any]:
    """Return the modules behind the output map that an epilogue may call."""
    found = (cross.mlp_norm, cross.mlp)
    return [*(module for module in found if module is not None), *tail]


def _projected_epilogue(
    cross: CrossAttention, values: Float[Tensor, "h n e"], tail: Tail, modulations: Modulations
) -> tuple[Epilogue, SharedParameters]:
    output, made, dtype = cross.attention.output, SharedParameters.detached(values), dtype_of(cross.query_norm)
    (of_attention, one), (of_mlp, other) = map(_detached, modulations)

    def epilogue(weights: Tensor, queries: Tensor | None, rotation: Rotation) -> Tensor:
        attended = rotation.back((weights @ made.leaves[0])[None])[0]
        found = apply_linear(output, rearrange(attended, "h m e -> m (h e)").to(dtype))
        queries = found if queries is None else queries.to(found)
        return through(tail, cross.finish(queries[None], found[None], of_attention, of_mlp))[0]

    return epilogue, made + one + other + SharedParameters.of(output, *modules_behind(cross, tail))


def _absorbed_epilogue(
    cross: CrossAttention, maps: BlockMaps, values: Float[Tensor, "h n e"], tail: Tail, modulations: Modulations
) -> tuple[Epilogue, SharedParameters]:
    output = maps.output
    weight = output.weight.to(values.dtype).unflatten(-1, (len(values), -1))
    columns = _aligned(torch.einsum("hne,fhe->hnf", values, weight).flatten(0, 1))
    made = SharedParameters.detached(columns, output.bias)
    columns, bias = made.leaves
    if is_shorter_composed(cross, tail):
        follow, shared = _composed_mlp_and_tail(cross, maps, values, tail)
    else:
        follow, shared = _mlp_and_tail(cross, tail, modulations)

    def epilogue(weights: Tensor, queries: Tensor | None, _: Rotation) -> Tensor:
        found = matmul(rearrange(weights, "h m n -> m (h n)"), columns)[:, : len(bias)]
        found = found.to(bias.dtype) + bias
        return follow(found if queries is None else found + queries.to(found))

    return epilogue, made + shared


def _mlp_and_tail(
    cross: CrossAttention, tail: Tail, modulations: Modulations
) -> tuple[Callable[[Tensor], Tensor], SharedParameters]:
    """Return the function u [m, f] -> tail(u + mlp(norm u)), which calls the modules."""
    of_mlp, modulating = _detached(modulations[1])

    def follow(x: Tensor) -> Tensor:
        return through(tail, cross.through_mlp(x[None], of_mlp))[0]

    return follow, modulating + SharedParameters.of(*modules_behind(cross, tail))


def _composed_mlp_and_tail(
    cross: CrossAttention, maps: BlockMaps, values: Tensor, tail: Tail
) -> tuple[Callable[[Tensor], Tensor], SharedParameters]:
    """Return the same function with maps multiplied out: Wt u + bias, plus Wt W2 times the activation."""
    dtype, mlp = values.dtype, cross.mlp
    if mlp is None or maps.hidden is None or maps.scale is None or maps.shift is None or cross.mlp_norm is None:
        raise ValueError("a block without an MLP has nothing to compose")
    norm = norm_of(cross.mlp_norm)
    last, after, bias = _last_maps(maps, values, tail)
    last_maps = torch.cat([last[0], after], -1)
    made = SharedParameters.detached(*maps.hidden.to(dtype), maps.scale, maps.shift, last_maps, bias)
    hidden, hidden_bias, scale, shift, both, bias = made.leaves

    def follow(x: Tensor) -> Tensor:
        x = x.to(dtype)
        inner = mlp.activated(linear(norm(x, scale, shift), hidden, hidden_bias))
        of_x, of_inner = both.split([x.shape[-1], inner.shape[-1]], -1)
        return linear(x, of_x, bias) + linear(inner, of_inner)

    return follow, made


def is_shorter_composed(cross: CrossAttention, tail: Tail) -> bool:
    """Return whether Wt and Wt W2, multiplied out, need fewer multiply-adds than W2 and then the tail."""
    maps = [linear_shape(module) for module in tail if is_linear_map(module)]
    if not is_linear(tail) or not maps or cross.mlp is None:
        return False
    channels, hidden = cross.attention.query_channels, cross.mlp.hidden_channels
    return maps[-1][0] * (channels + hidden) < channels * hidden + sum(map(math.prod, maps))


def _last_maps(maps: BlockMaps, values: Tensor, tail: Tail) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Return (Wt, bt), Wt W2, and the bias bt + Wt b2."""
    assert maps.second is not None
    second = maps.second.to(values.dtype)
    last = _composed(tail, len(second[0]), values)
    return last, last[0] @ second[0], last[1] + last[0] @ second[1]


def _folded_epilogue(
    cross: CrossAttention, maps: BlockMaps, values: Float[Tensor, "h n e"], tail: Tail
) -> tuple[Epilogue, SharedParameters]:
    """Return the epilogue u -> tail(u + mlp(norm u)) with all linear maps applied to the values.

    It needs u through the tail, u through the MLP's first map, and the variance of u, |centred u|^2 / f. With
    centred u = C (v, 1) and C = Q R, the variance is |R (v, 1)|^2 / f; R (v, 1) has no more entries than (v, 1).
    """
    dtype, mlp = values.dtype, cross.mlp
    output = maps.output.to(dtype)
    if mlp is None or maps.hidden is None or maps.scale is None or maps.shift is None or cross.mlp_norm is None:
        return _folded_tail(output, values, tail)
    norm, hidden = norm_of(cross.mlp_norm), maps.hidden.to(dtype)
    last, after, bias = _last_maps(maps, values, tail)
    # C, and R = Q' C. With Q constant, |R (v, 1)|^2 has a gradient even where R has no inverse (bias 0).
    centred = norm.centred(torch.cat([output[0], output[1][:, None]], -1), 0)
    tall = centred.shape[0] > centred.shape[1]
    root = torch.linalg.qr(centred.detach()).Q.mT @ centred if tall else centred
    # The three maps of (v, 1), stacked: through the MLP's first map, R, through the tail.
    inside = hidden[0] * maps.scale @ centred
    stacked = torch.cat([inside, root, torch.cat([last[0] @ output[0], (last[0] @ output[1])[:, None]], -1)])
    columns, constants = _on_values(stacked, values)
    sizes = [len(inside), len(root), len(last[0]), columns.shape[-1] - len(stacked)]
    hidden_bias = hidden[1] + hidden[0] @ maps.shift
    # Leaves for the blocks.
    made = SharedParameters.detached(columns, constants, hidden_bias, after, bias)
    columns, constants, hidden_bias, after, bias = made.leaves

    def epilogue(weights: Tensor, _: Tensor | None, __: Rotation) -> Tensor:
        weights = rearrange(weights, "h m n -> m (h n)")
        inner, rooted, plain, _ = linear(weights, columns.T, constants).split(sizes, -1)
        scale = torch.rsqrt((rooted * rooted).sum(-1, keepdim=True) / len(output[0]) + norm.epsilon)
        return plain + linear(mlp.activated(torch.addcmul(hidden_bias, inner, scale)), after, bias)

    return epilogue, made


def _folded_tail(output: LinearMap, values: Float[Tensor, "h n e"], tail: Tail) -> tuple[Epilogue, SharedParameters]:
    """Return the epilogue u -> tail(u) with all linear maps applied to the values, for a block without an MLP."""
    weight, shift = _composed(tail, len(output[0]), values)
    stacked = torch.cat([weight @ output[0], (weight @ output[1] + shift)[:, None]], -1)
    made = SharedParameters.detached(*_on_values(stacked, values))
    columns, constants = made.leaves

    def epilogue(weights: Tensor, _: Tensor | None, __: Rotation) -> Tensor:
        found = linear(rearrange(weights, "h m n -> m (h n)"), columns.T, constants)
        return found[:, : len(stacked)]

    return epilogue, made


def _on_values(stacked: Float[Tensor, "k v1"], values: Float[Tensor, "h n e"]) -> tuple[Tensor, Tensor]:
    """Return maps of (v, 1) applied to the values, as columns by head and latent, and their constants."""
    per_head = stacked[:, :-1].unflatten(-1, (len(values), -1))
    columns = _aligned(torch.einsum("hne,fhe->hnf", values, per_head).flatten(0, 1))
    return columns, F.pad(stacked[:, -1], (0, columns.shape[-1] - len(stacked)))


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
