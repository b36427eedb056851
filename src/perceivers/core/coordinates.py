"""Coordinates of tokens along named axes, and rotary positions, which act by them.

Pair i of a head's channels turns by the angle coordinate x frequency_i, so that the product of a query and a key
depends on the difference of their coordinates alone. An axis acts on two tokens only if both have coordinates along it:
where tokens of one side lack an axis, the turned channels x are widened, to [turned x, x] on the other side, to
[turned x, 0] for tokens with the axis, to [0, x] for tokens without it.

m tokens, a axes, p pairs of channels, d channels of a head. Source: RoFormer (Su et al. 2021, arXiv:2104.09864).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perceivers.core.block_config import Axis, Rotary

Coordinates = Any
"""Coordinates of tokens by axis: a mapping to numbers [#b, m], or `positions.GridCoordinates`; None: there are none."""


def dense_coordinates(coordinates: Coordinates) -> Mapping[str, Float[Tensor, "#b m"]]:
    """Return the coordinates of every token, by axis; empty if there are none."""
    return coordinates or {} if isinstance(coordinates, Mapping | None) else coordinates.dense()


@dataclass(frozen=True)
class Located:
    """Coordinates of tokens along the axes of a rotary embedding."""

    coordinates: Float[Tensor, "#b m a"]
    """Coordinates; 0 where a token has none along an axis."""
    runs: tuple[tuple[int, tuple[bool, ...]], ...]
    """Numbers of neighbouring tokens (a segment's), and for each axis whether they have coordinates along it."""

    @property
    def alike(self) -> bool:
        """True if all tokens have coordinates along the same axes."""
        return len({has for _, has in self.runs}) == 1

    def has(self, axis: int) -> bool:
        """Return whether some tokens have coordinates along an axis."""
        return any(has[axis] for _, has in self.runs)

    def limited(self, axes: Sequence[bool]) -> "Located":
        """Return coordinates of 0 along all other axes; no token then counts as lacking one of the others."""
        kept = torch.tensor(axes, device=self.coordinates.device)
        runs = ((n, tuple(known or not there for known, there in zip(has, axes, strict=True))) for n, has in self.runs)
        return Located(torch.where(kept, self.coordinates, 0), tuple(runs))


@dataclass(frozen=True)
class Turn:
    """The turn of the heads of some tokens by their angles."""

    cos: Float[Tensor, "#b 1 m p"]
    """Cosines of the angles."""
    sin: Float[Tensor, "#b 1 m p"]
    """Sines of the angles."""
    known: Float[Tensor, "m w"] | None = None
    """1 where a token has the axis of a turned channel, 0 where it lacks the axis; None: all have all axes."""
    widened: bool = False
    """True if heads are widened, since tokens of one side lack an axis."""

    def __call__(self, x: Float[Tensor, "#b h m d"]) -> Float[Tensor, "_ h m _"]:
        """Return the turned heads, widened if needed."""
        plain, rest = self._split(x)
        turned = self._turned(plain, self.sin)
        if self.known is not None:
            turned, plain = turned * self.known, plain * (1 - self.known)
        parts = [turned, plain, rest] if self.widened else [turned, rest]
        return torch.cat([part.to(x.dtype).expand(turned.shape[0], -1, -1, -1) for part in parts], -1)

    def scaled(self, x: Float[Tensor, "#b h m d"]) -> Float[Tensor, "_ h m _"]:
        """Return turned queries; where they are widened, scaled for the division by the root of their width."""
        turned = self(x)
        return turned * math.sqrt(turned.shape[-1] / x.shape[-1]) if self.widened else turned

    def back(self, x: Float[Tensor, "b h m _"]) -> Float[Tensor, "b h m d"]:
        """Return sums of turned values, turned back by the angles of these tokens."""
        turned, rest = self._split(x)
        found = self._turned(turned, -self.sin)
        if self.widened:
            plain, rest = self._split(rest)
            found = found + plain if self.known is None else found * self.known + plain * (1 - self.known)
        return torch.cat([found.to(x.dtype), rest], -1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = 2 * self.cos.shape[-1]
        return x[..., :width], x[..., width:]

    def _turned(self, x: Tensor, sin: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([first * self.cos - second * sin, second * self.cos + first * sin], -1).flatten(-2)


def unturned(x: Tensor) -> Tensor:
    """Return x."""
    return x


@dataclass(frozen=True)
class Rotation:
    """The functions that turn the heads of one attention; by default nothing is turned."""

    queries: Callable[[Tensor], Tensor] = unturned
    """Turns queries [B, H, T, d]."""
    keys: Callable[[Tensor], Tensor] = unturned
    """Turns keys [B, H, S, d]."""
    values: Callable[[Tensor], Tensor] = unturned
    """Turns values [B, H, S, d]."""
    back: Callable[[Tensor], Tensor] = unturned
    """Turns sums of values [B, H, T, d] back by the queries' angles."""


UNTURNED = Rotation()
"""No rotation: there are no rotary positions, or the two sides have no axis in common."""


class RotaryEmbedding(nn.Module):
    """Rotary positions of heads of `head_channels`: rotations by coordinates."""

    frequencies: Float[Tensor, "a p"]

    def __init__(self, config: Rotary, head_channels: int) -> None:
        super().__init__()
        pairs = int(config.share * head_channels / 2) // len(config.axes)
        if not pairs:
            found = f"{config.share} of the {head_channels} channels of a head are no pair for each of its axes"
            raise ValueError(f"rotary.share: {found}: raise the share, or the width of a head")
        self.axes, self.values = tuple(axis.name for axis in config.axes), config.values
        self.register_buffer("frequencies", torch.stack([frequencies(axis, pairs) for axis in config.axes]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the module; the frequencies keep their precision: rounded ones would be other wavelengths."""
        before = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != before.dtype:
            self.frequencies = before.to(self.frequencies.device)
        return self

    def between(self, queries: Located, keys: Located, dtype: torch.dtype) -> Rotation:
        """Return the rotation between queries and keys, of which one side (the latents) is alike in its axes."""
        if not (queries.alike or keys.alike):
            raise ValueError("rotary: some queries and some keys lack an axis: give all inputs the same axes")
        active = [queries.has(axis) and keys.has(axis) for axis in range(len(self.axes))]
        if not any(active):
            return UNTURNED
        queries, keys = queries.limited(active), keys.limited(active)
        widened = not (queries.alike and keys.alike)
        of_queries, of_keys = self._turn(queries, dtype, widened), self._turn(keys, dtype, widened)
        return Rotation(of_queries.scaled, of_keys, *((of_keys, of_queries.back) if self.values else ()))

    def _turn(self, at: Located, dtype: torch.dtype, widened: bool) -> Turn:
        pairs = self.frequencies.shape[-1]
        # At least float32, under autocast too.
        coordinates = at.coordinates.to(
            torch.promote_types(at.coordinates.dtype, torch.promote_types(dtype, torch.float32))
        )
        angles = (coordinates[..., None] * self.frequencies).flatten(-2)[:, None]
        known = None
        if not at.alike:
            flags = [angles.new_tensor(has).repeat_interleave(2 * pairs).expand(count, -1) for count, has in at.runs]
            known = torch.cat(flags)
        return Turn(angles.cos(), angles.sin(), known, widened)


def frequencies(axis: Axis, pairs: int) -> Float[Tensor, " p"]:
    """Return 2 pi / wavelength for wavelengths that are spaced logarithmically, both ends included."""
    low, high = math.log(axis.min_wavelength), math.log(axis.max_wavelength)
    return (2 * math.pi / torch.linspace(low, high, pairs, dtype=torch.float64).exp()).float()
