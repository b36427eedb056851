"""MixUp and CutMix: pictures of a batch mixed with one another, and their classes in the same parts (paper A.1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.modalities import Image, Label
from perceivers.schema import Batch, Schema

Weights = Float[Tensor, "b h w 1"]
"""Weight of the sample's own pixels, in [0, 1]."""


@dataclass(frozen=True)
class Mixup:
    """Half of each batch is blended (MixUp, arXiv:1710.09412), half gets rectangles of others (CutMix, 1905.04899)."""

    mixup_alpha: float = 0.2
    """Parameter of the Beta distribution of a blend's weights; a rectangle's area is uniform."""

    def __post_init__(self) -> None:
        if self.mixup_alpha <= 0:
            raise ValueError(f"mixup_alpha = {self.mixup_alpha} must be above 0")


def check_mixing(schema: Schema) -> None:
    """Raise a ValueError unless one picture goes in, and nothing but classes comes out."""
    found = [*schema.inputs.values(), *schema.outputs.values()]
    if [type(spec) for spec in found] != [Image] + [Label] * len(schema.outputs):
        kinds = ", ".join(type(spec).__name__ for spec in found)
        raise ValueError(f"training.mixup needs one image in and labels out, not {kinds}: leave it out")


def mixed(schema: Schema, batch: Batch, mixing: Mixup | None) -> Batch:
    """Each sample mixed with the one before it, by torch's random numbers; labels become probabilities.

    Officially two batches make one; here each picture is in two samples, which needs no second batch.
    """
    if mixing is None or not batch["inputs"]:
        return batch
    ((name, raw),) = batch["inputs"].items()
    values = raw["values"] if isinstance(raw, Mapping) else raw
    count, *size, _ = values.shape
    weights = torch.cat([blends(count // 2, size, mixing.mixup_alpha), rectangles(count - count // 2, size)])
    weights = weights.to(values)
    values = _with_neighbour(values, weights)
    # A pixel is known where both were: the mean of a number and NaN is NaN.
    image = {"values": values, "mask": values.isfinite().all(dim=-1)} if isinstance(raw, Mapping) else values
    parts = weights.mean(dim=(1, 2))
    targets: dict[str, Any] = {}
    for output, target in batch["targets"].items():
        targets[output] = _with_neighbour(cast(Label, schema.outputs[output]).probabilities(target), parts)
    return {"inputs": {name: image}, "targets": targets}


def blends(count: int, size: list[int], alpha: float) -> Weights:
    """The same weight everywhere in a picture."""
    weights = torch.distributions.Beta(alpha, alpha).sample((count, 1, 1, 1))
    return weights.expand(count, *size, 1)


def rectangles(count: int, size: list[int]) -> Weights:
    """One within a rectangle of the picture's proportions around any pixel, as far as it is inside; else nothing."""
    part = torch.rand(count)
    inside = [_stretch((part.sqrt() * side).int(), side) for side in size]
    return (inside[0][:, :, None] & inside[1][:, None, :])[..., None].float()


def _stretch(length: Tensor, side: int) -> Tensor:
    """[B, side]: places less than half a length away from any one of them."""
    middle, places = torch.randint(side, length.shape)[:, None], torch.arange(side)
    half = (length // 2)[:, None]
    return (places >= middle - half) & (places < middle + half)


def _with_neighbour(values: Tensor, weights: Tensor) -> Tensor:
    return weights * values + (1 - weights) * values.roll(1, dims=0)
