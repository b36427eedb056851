"""A trunk on its own, for arrays of tokens: no schema, no queries."""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.config import Config, DecoderConfig
from perceivers.core.precision import floats, in_range
from perceivers.core.tokens import Segment, Tokens, token_dtype, zero_where_absent
from perceivers.core.trunk import Trunk


class Resampler(Trunk):
    """Trunk that reads any number of tokens [B, M, C] into N latents and processes the latents."""

    def __init__(self, config: Config, input_channels: int) -> None:
        super().__init__(config, input_channels)
        if config.decoder != DecoderConfig():
            warnings.warn("a Resampler has no decoder: config.decoder has no effect", stacklevel=2)
        self.input_channels = input_channels

    def forward(  # type: ignore[override]  # a mask is a part of Tokens
        self, tokens: Tokens | Any, mask: Any = None, plan: Any = None
    ) -> Float[Tensor, "b n d"]:
        """Return latents from tokens; the mask [B, M] is True (or 1) where a token exists."""
        if not isinstance(tokens, Tokens):
            weight = next(self.parameters())
            found = as_tokens(tokens, mask, self.input_channels, weight.device)
            tokens = in_range(found, token_dtype(weight.dtype))
        return super().forward(tokens, plan).array


def as_tokens(x: Any, mask: Any, channels: int, device: torch.device) -> Tokens:
    """Return as Tokens an array [B, M, C] and its mask, True (or 1) for valid tokens; ValueError for others."""
    try:
        x, mask = (v if v is None or isinstance(v, Tensor) else torch.as_tensor(v, device=device) for v in (x, mask))
        sound = x.ndim == 3 and len(x) > 0 and x.shape[-1] == channels and not x.is_complex() and x.device == device
        if mask is not None and sound:
            sound = mask.shape in (x.shape[:2], (1, x.shape[1])) and mask.device == device
            sound = sound and (mask.dtype == torch.bool or bool(((mask == 0) | (mask == 1)).all()))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        sound = False
    if not sound:
        found = ", ".join(f"{list(v.shape)} {v.dtype} on {v.device}" for v in (x, mask) if isinstance(v, Tensor))
        needed = f"real tokens [B, M, {channels}] on {device} and a mask [B, M] of booleans, or 0 and 1, or None"
        raise ValueError(f"found {found or 'no arrays'}, expected {needed}")
    mask = None if mask is None else mask.bool()
    return Tokens({"tokens": Segment(content=zero_where_absent(floats(x), mask), mask=mask)})
