"""MixUp and CutMix: images of a batch mixed with one another, and their classes in the same proportions (paper A.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.modalities import Image, Label
from perceivers.schema import Batch, Schema

Weights = Float[Tensor, "b h w 1"]
"""Weight of each pixel of a sample, in [0, 1]; the sample that it is mixed with has 1 minus this weight."""


@dataclass(frozen=True)
class Mixup:
    """MixUp (arXiv:1710.09412) for half of each batch, CutMix (arXiv:1905.04899) for the other half."""

    mixup_alpha: float = 0.2
    """Parameter of the Beta distribution of the MixUp weights; the area of a CutMix rectangle is uniform."""

    def __post_init__(self) -> None:
        if self.mixup_alpha <= 0:
            raise ValueError(f"mixup_alpha = {self.mixup_alpha} must be above 0")


def check_mixing(schema: Schema) -> None:
    """Raise a ValueError unless the schema has one input, an image, and all outputs are labels."""
    specs = [*schema.inputs.values(), *schema.outputs.values()]
    if [type(spec) for spec in specs] != [Image] + [Label] * len(schema.outputs):
        kinds = ", ".join(type(spec).__name__ for spec in specs)
        raise ValueError(f"training.mixup needs one image in and labels out, not {kinds}: leave it out")


def mixed(schema: Schema, batch: Batch, mixing: Mixup) -> Batch:
    """Mix each sample of a batch with the sample before it, with torch's random numbers; labels become probabilities.

    The official code mixes two batches into one. Here each image is part of two samples, which needs no second batch.
    """
    if not batch["inputs"]:
        return batch
    ((name, raw),) = batch["inputs"].items()
    # Mix the pixels [B, H, W, C]: the first half of the batch by MixUp, the rest by CutMix.
    values = raw["values"] if isinstance(raw, Mapping) else raw
    count, *size, _ = values.shape
    weights = torch.cat([blends(count // 2, size, mixing.mixup_alpha), rectangles(count - count // 2, size)])
    weights = weights.to(values)
    values = _with_neighbour(values, weights)
    # A pixel is valid if both images have it: NaN marks missing pixels, and the mean of a number and NaN is NaN.
    image = {"values": values, "mask": values.isfinite().all(dim=-1)} if isinstance(raw, Mapping) else values
    # Mix the classes in the proportions of the areas [B, 1].
    parts = weights.mean(dim=(1, 2))
    targets: dict[str, Any] = {}
    for output, target in batch["targets"].items():
        targets[output] = _with_neighbour(cast(Label, schema.outputs[output]).probabilities(target), parts)
    return {**batch, "inputs": {name: image}, "targets": targets}


def blends(count: int, size: list[int], alpha: float) -> Weights:
    """Draw MixUp weights: the same for all pixels of an image."""
    weights = torch.distributions.Beta(alpha, alpha).sample((count, 1, 1, 1))
    return weights.expand(count, *size, 1)


def rectangles(count: int, size: list[int]) -> Weights:
    """Draw CutMix weights: 1 in a rectangle with the image's aspect ratio around a random pixel, clipped, else 0."""
    area = torch.rand(count)
    inside = [_stretch((area.sqrt() * side).int(), side) for side in size]
    return (inside[0][:, :, None] & inside[1][:, None, :])[..., None].float()


def _stretch(length: Tensor, side: int) -> Tensor:
    """Return a mask [B, side] of the positions less than half a length away from a random one."""
    middle, positions = torch.randint(side, length.shape)[:, None], torch.arange(side)
    half = (length // 2)[:, None]
    return (positions >= middle - half) & (positions < middle + half)


def _with_neighbour(values: Tensor, weights: Tensor) -> Tensor:
    return weights * values + (1 - weights) * values.roll(1, dims=0)
