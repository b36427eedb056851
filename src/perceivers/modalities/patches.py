"""Conversion of grids to patches and back; channels come last everywhere.

    space_to_depth   [B, H, W, C] -> [B, H / p, W / q, p q C] for patches of p x q, likewise for other numbers of axes

Source: `space_to_depth`, `reverse_space_to_depth`, `extract_patches`, `patches_for_flow` of the official
io_processors.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

from perceivers.core.checks import is_whole


def space_to_depth(x: Shaped[Tensor, "b *size c"], patch: Sequence[int]) -> Shaped[Tensor, "b *tokens pc"]:
    """Rearrange the blocks of a grid into channels, ordered (block axis 1, ..., block axis n, channel)."""
    batch, *size, channels = x.shape
    for n, p in zip(size, patch, strict=True):
        if n % p:
            raise ValueError(f"size {tuple(size)} is not a multiple of the patch {tuple(patch)}: crop or pad it")
    split = [part for n, p in zip(size, patch, strict=True) for part in (n // p, p)]
    axes = range(1, 1 + 2 * len(size))
    blocks = x.reshape(batch, *split, channels).permute(0, *axes[::2], *axes[1::2], 1 + 2 * len(size))
    return blocks.reshape(batch, *split[::2], -1)


def depth_to_space(x: Shaped[Tensor, "b *tokens pc"], patch: Sequence[int]) -> Shaped[Tensor, "b *size c"]:
    """Rearrange channels into the blocks of a grid: the inverse of `space_to_depth`."""
    batch, *tokens, _ = x.shape
    count = len(tokens)
    order = [axis for pair in zip(range(1, 1 + count), range(1 + count, 1 + 2 * count), strict=True) for axis in pair]
    blocks = x.reshape(batch, *tokens, *patch, -1).permute(0, *order, 1 + 2 * count)
    return blocks.reshape(batch, *(n * p for n, p in zip(tokens, patch, strict=True)), -1)


def extract_patches(
    x: Shaped[Tensor, "b h w c"],
    size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    rate: Sequence[int] = (1, 1),
    padding: str = "VALID",
) -> Shaped[Tensor, "b y x pc"]:
    """Extract patches of an image, each ordered (row in patch, column, channel), like tf.image.extract_patches."""
    reach = [(k - 1) * r + 1 for k, r in zip(size, rate, strict=True)]
    if padding == "SAME":
        x = pad_same(x.movedim(-1, 1), reach, stride).movedim(1, -1)
    windows = x.unfold(1, reach[0], stride[0]).unfold(2, reach[1], stride[1])  # [b, y, x, c, reach, reach]
    return windows[..., :: rate[0], :: rate[1]].permute(0, 1, 2, 4, 5, 3).flatten(3)


def surrounding_patches(frames: Shaped[Tensor, "b t h w c"], size: int) -> Shaped[Tensor, "b t h w pc"]:
    """Extract the size x size patch around each pixel of frames, 0 beyond the border (official `patches_for_flow`)."""
    low = (size - 1) // 2
    padded = F.pad(frames.flatten(0, 1), (0, 0, low, size - 1 - low, low, size - 1 - low))
    return extract_patches(padded, (size, size)).unflatten(0, frames.shape[:2])


def pad_same(
    x: Shaped[Tensor, "b c *size"], kernel: Sequence[int], stride: Sequence[int], value: float = 0.0
) -> Shaped[Tensor, "b c *padded"]:
    """Pad like "SAME" in TensorFlow and JAX: an odd element goes to the end, unlike in PyTorch's symmetric padding."""
    pads: list[int] = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads, value=value) if any(pads) else x


def strided(x: Shaped[Tensor, "b *size c"], stride: Sequence[int]) -> Shaped[Tensor, "b *tokens c"]:
    """Take every s-th position along each axis."""
    return x[(slice(None), *(slice(None, None, s) for s in stride))]


def as_sizes(value: int | Sequence[int], axes: int, name: str) -> tuple[int, ...]:
    """Return the size along each axis, from one number for all or one for each; ValueError for others."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    sizes: tuple[Any, ...] = tuple(value) if several else (value,) * axes  # type: ignore[arg-type]
    if len(sizes) != axes or not all(map(is_whole, sizes)) or min(sizes) < 1:
        raise ValueError(f"{name} = {value!r:.99} must be one positive number, or {axes} of them")
    return sizes


def token_grid(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches that cover a grid of this size, along each axis."""
    return tuple(-(-n // p) for n, p in zip(size, patch, strict=True))


def flattened_grid(x: Shaped[Tensor, "b *tokens c"]) -> Shaped[Tensor, "b m c"]:
    """Flatten a grid of tokens, row-major."""
    return torch.flatten(x, 1, -2)
