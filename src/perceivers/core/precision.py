"""Precision and range of numbers: conversion to floating point, and NaN in place of numbers that overflow in a norm.

A norm would silently turn tokens with such numbers into 0; NaN stays NaN in every algorithm.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.core.arguments import has_values
from perceivers.core.tokens import Segment, Tokens


def floats(x: Tensor) -> Tensor:
    """Return floating-point numbers as they are; whole numbers and booleans become float32."""
    return x if x.is_floating_point() else x.float()


def precise(x: Tensor) -> Tensor:
    """Return floating-point numbers in at least float32: computations in half precision would overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def zero_where_absent(x: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"] | None) -> Float[Tensor, "b m c"]:
    """Return x with 0 where there is no token: NaN in padding would spread even through a weight of 0."""
    return x if mask is None else torch.where(mask[..., None], x, torch.zeros_like(x))


def in_range(tokens: Tokens, dtype: torch.dtype) -> Tokens:
    """Return tokens with NaN for numbers that are too large to be normed in this precision."""
    return Tokens({name: _in_range(segment, dtype) for name, segment in tokens.segments.items()})


def nan_where_out_of_range(
    written: Mapping[str, Float[Tensor, "b _ _"]], queries: Tokens
) -> dict[str, Float[Tensor, "b _ _"]]:
    """Return decoded outputs with NaN where a query is NaN or too large: attention may hide it."""
    found = {}
    for name, x in written.items():
        sound = _can_be_normed(queries.segments[name], x.dtype)
        found[name] = x if sound is None else torch.where(sound, x, torch.nan)
    return found


def _in_range(segment: Segment, dtype: torch.dtype) -> Segment:
    limited: dict[str, Any] = {name: _within(x, _limit(segment, dtype)) for name, x in _numbers(segment).items()}
    return replace(segment, **limited)


def _can_be_normed(segment: Segment, dtype: torch.dtype) -> Bool[Tensor, "*b m 1"] | None:
    """Return which tokens can be normed, in at least float32; None: all."""
    limit = _limit(segment, torch.promote_types(dtype, torch.float32))
    found = [
        torch.linalg.vector_norm(x.detach(), math.inf, dim=-1, keepdim=True) <= limit
        for x in _numbers(segment).values()
    ]
    return reduce(torch.logical_and, found) if found else None


def _numbers(segment: Segment) -> dict[str, Tensor]:
    """Return the parts that hold numbers of the caller; positions on a grid are computed."""
    parts = {"content": segment.content, "positions": segment.positions if segment.grid is None else None}
    return {name: x for name, x in parts.items() if isinstance(x, Tensor) and x.numel()}


def _limit(segment: Segment, dtype: torch.dtype) -> Tensor | float:
    """Return the largest absolute value with which the sum of squares in a norm does not overflow.

    By Cauchy-Schwarz, a projection multiplies the length of a token by at most the norm of its weight.
    """
    limit = math.sqrt(torch.finfo(dtype).max / max(segment.raw_channels, 1)) / 2
    if segment.projection is None:
        return limit
    return limit / torch.linalg.vector_norm(precise(segment.projection[0].detach())).clamp(min=1)


def _within(x: Tensor, limit: Tensor | float) -> Tensor:
    """Return numbers [..., m, c] with NaN for those beyond a limit."""
    if has_values(x) and not (x.is_cuda and torch.is_grad_enabled()):  # a training step on a GPU does not wait
        peaks = torch.linalg.vector_norm(x.detach(), math.inf, dim=(-2, -1))  # of each sample, without a copy
        if not ((peaks > limit) & peaks.isfinite()).any():
            return x
    return torch.where(x.abs() <= limit, x, torch.nan)
