"""The latents at the start: learned, at places or without, or taken from the tokens of an input.

Letters: B batch, N latents, D their channels, M tokens of the input, a axes of its coordinates.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perceivers.core.config import LatentsConfig
from perceivers.core.coordinates import Coordinates, dense_coordinates
from perceivers.core.tokens import Segment


@dataclass(frozen=True)
class Latents:
    """The latents between two stages, and what the stages need to know of them."""

    array: Float[Tensor, "#b n d"]
    """The vectors; a batch of 1 stands for "the same for every sample"."""
    coordinates: Coordinates = None
    """Their coordinates along named axes; None: there are none."""
    mask: Bool[Tensor, "#b n"] | None = None
    """True where a latent exists; None: all do."""
    condition: Float[Tensor, "#b k"] | None = None
    """The vector that conditions the blocks; None: there is none."""
    posterior: Any = None
    """The distribution in the bottleneck (`bottleneck.Posterior`); None: there is none, or it is still to come."""
    noise: Float[Tensor, "_ n z"] | None = None
    """Normal numbers that make the sample of the bottleneck ahead; None: the bottleneck chooses."""

    @property
    def segment(self) -> Segment:
        """The latents as tokens."""
        return Segment(self.array, mask=self.mask, coordinates=self.coordinates)


def place_coordinates(config: LatentsConfig, device: torch.device) -> Coordinates:
    """Return the coordinates of latents on a grid of places, place by place; None without a grid."""
    if not config.places:
        return None
    steps = [(axis, (axis.stop - axis.start) / axis.count) for axis in config.places]
    along = [axis.start + step * (torch.arange(axis.count, dtype=torch.float64) + 0.5) for axis, step in steps]
    grid = torch.cartesian_prod(*along).float().to(device).view(config.num_places, -1)
    each = grid.repeat_interleave(config.num_latents // config.num_places, 0)
    return {axis.name: x[None] for axis, x in zip(config.places, each.unbind(-1), strict=True)}


def chosen_tokens(
    segment: Segment, config: LatentsConfig, training: bool
) -> tuple[Int[Tensor, "#b n"], Bool[Tensor, "#b n"] | None]:
    """Return the numbers of the tokens that become latents, and True where a latent exists (None: all do).

    A sample with fewer tokens than latents has that many latents: the last ones ("last"), or the first ones.
    """
    count, mask = config.num_latents, segment.mask
    if mask is None:
        mask = torch.ones(1, segment.num_tokens, dtype=torch.bool, device=segment.device)
    if not segment.num_tokens:
        raise ValueError(f"input {config.taken_from!r} has no tokens to take latents from")
    # Tokens in the order of the rule, those that do not exist at the end; then the place of each latent in that order.
    place, valid = torch.arange(count, device=mask.device).expand(mask.shape[0], -1), mask.sum(1, keepdim=True)
    if config.rule == "farthest":
        order = farthest_points(segment, mask, count)
    elif config.rule == "random":
        order = _random_order(mask, training)
    else:
        order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
        strided = torch.where(valid < count, place, place * valid // count)
        place = valid - count + place if config.rule == "last" else strided
    exists = (place >= 0) & (place < valid)
    index = order.gather(1, place.clamp(0, order.shape[1] - 1).expand(order.shape[0], -1))
    return index, None if segment.mask is None and segment.num_tokens >= count else exists


def farthest_points(segment: Segment, mask: Bool[Tensor, "#b m"], count: int) -> Int[Tensor, "b n"]:
    """Return `count` tokens, each the farthest from those before it; the first existing token comes first.

    The distance is Euclidean, over all axes of coordinates that the tokens have. ValueError if they have none.
    """
    along = dense_coordinates(segment.coordinates)
    if not along:
        raise ValueError("latents.rule: farthest needs an input with coordinates: name its axes")
    points = torch.stack(torch.broadcast_tensors(*along.values()), -1)  # [#b, m, a]
    batch = max(points.shape[0], mask.shape[0])
    points, mask = points.expand(batch, -1, -1), mask.expand(batch, -1)
    distance = torch.where(mask, math.inf, -1.0)
    chosen = []
    for _ in range(count):
        nearest = distance.argmax(1)
        chosen.append(nearest)
        here = points.gather(1, nearest[:, None, None].expand(-1, 1, points.shape[-1]))
        distance = torch.minimum(distance, (points - here).square().sum(-1))
    return torch.stack(chosen, 1)


def _random_order(mask: Bool[Tensor, "#b m"], training: bool) -> Int[Tensor, "#b m"]:
    """Return the existing tokens in a random order; outside training in the same one for every sample and call."""
    if training:
        key = torch.rand(mask.shape, device=mask.device)
    else:  # multiples of the golden ratio, as fractions of 2^32: spread over the tokens (a generator does not compile)
        key = torch.arange(mask.shape[1], device=mask.device)[None] * 0x9E3779B1 & 0xFFFFFFFF
    return torch.where(mask, key, 2**32).argsort(1)
