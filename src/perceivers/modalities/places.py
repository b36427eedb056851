"""Coordinates of tokens and queries along named axes, by which rotary positions act.

    coordinate = first + spacing * number,  for the number of a token along an axis; fractions lie between tokens

The middle of the patch of token i along an axis, in units of its positions: i * patch + (patch - 1) / 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.core.coordinates import Coordinates
from perceivers.core.positions import GridCoordinates
from perceivers.core.precision import zero_where_absent


@dataclass(frozen=True)
class NamedAxes:
    """The axes along which the tokens of an input, or the queries of an output, have coordinates."""

    names: Sequence[str] = ()
    """Name of each axis; (): there are no coordinates."""
    first: Sequence[float] = ()
    """Coordinate of token 0 along each axis; (): 0."""
    spacing: Sequence[float] = ()
    """Distance of neighbouring tokens along each axis; (): 1."""

    @classmethod
    def of_patches(
        cls, names: Sequence[str], patch: Sequence[int], units: Sequence[tuple[float, float]], whole: bool = True
    ) -> "NamedAxes":
        """Return the axes of patches, each at its middle, or at its first position unless it is read `whole`.

        `units`: for each axis the coordinate of position 0, and the distance of neighbouring positions.
        """
        first = [origin + step * (n - 1) / 2 * whole for n, (origin, step) in zip(patch, units, strict=True)]
        return cls(names, first, [step * n for n, (_, step) in zip(patch, units, strict=True)])

    def on_grid(self, size: Sequence[int], start: Sequence[int] | None, device: torch.device | None) -> Coordinates:
        """Return the coordinates of a grid of tokens whose first one has the numbers `start` (None: 0)."""
        if not self.names:
            return None
        # float64 where the device has it: numbers of tokens may be large.
        dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64
        numbers = [
            torch.arange(begin, begin + n, dtype=dtype, device=device)
            for begin, n in zip(start or (0,) * len(size), size, strict=True)
        ]
        return GridCoordinates(tuple(self.names), tuple(x.float() for x in self._scaled(numbers)))

    def at(self, numbers: Float[Tensor, "*b o axes"], mask: Bool[Tensor, "b o"] | None) -> Coordinates:
        """Return the coordinates at any numbers of tokens; 0 where the mask is False."""
        if not self.names:
            return None
        numbers = numbers if numbers.ndim == 3 else numbers[None]
        found = zero_where_absent(torch.stack(self._scaled(numbers.unbind(-1)), -1), mask)
        return dict(zip(self.names, found.unbind(-1), strict=True))

    def _scaled(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        first, spacing = self.first or (0.0,) * len(numbers), self.spacing or (1.0,) * len(numbers)
        return [begin + step * x for begin, step, x in zip(first, spacing, numbers, strict=True)]


def check_axis_names(names: Any, count: int) -> None:
    """Raise a ValueError unless there are no names of axes, or a different one for each of `count` axes."""
    sound = isinstance(names, tuple | list) and all(isinstance(name, str) and name for name in names)
    if not sound or len(names) not in (0, count) or len({*names}) < len(names):
        right = "a name" if count == 1 else f"{count} different names, one for each axis"
        raise ValueError(f"axis_names = {names!r:.99} must be a list of {right}, or empty")
