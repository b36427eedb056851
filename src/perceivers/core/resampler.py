"""A trunk on its own, for arrays of tokens: no schema, no queries."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.checks import SIZE, check_ranges
from perceivers.core.config import Config, DecoderConfig, TrunkConfig
from perceivers.core.latents import Latents
from perceivers.core.layers import norm_layer, plain_linear, trained_vector
from perceivers.core.precision import floats, in_range, zero_where_absent
from perceivers.core.tokens import Segment, Tokens, token_dtype
from perceivers.core.trunk import Trunk


@dataclass(frozen=True)
class ResamplerConfig(TrunkConfig):
    """Sizes of a resampler.

    `encoder.input_channels` is the width of a linear map of the tokens given (None: no map); the processor's final norm
    comes behind the map to `output_channels`.
    """

    max_times: int | None = None
    """Number of trained vectors, one added to all tokens of a time of [B, T, M, C]; None: times are not told apart."""
    output_channels: int | None = None
    """Width of a linear map of the latents at the end; None: no map."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"max_times": SIZE, "output_channels": SIZE})


class Resampler(Trunk):
    """Trunk that reads any number of tokens [B, M, C] into N latents and processes the latents.

    Of tokens [B, T, M, C], each of T times has latents of its own, with the same weights.
    """

    def __init__(self, config: ResamplerConfig | Config, input_channels: int) -> None:
        if isinstance(config, Config):
            if config.decoder != DecoderConfig():
                warnings.warn("a Resampler has no decoder: config.decoder has no effect", stacklevel=2)
            config = ResamplerConfig(config.latents, config.encoder, config.processor, bottleneck=config.bottleneck)
        width = config.encoder.input_channels
        super().__init__(config, width or input_channels)
        self.input_channels = input_channels
        self.projection = None if width is None else plain_linear(input_channels, width)
        self.times = None if config.max_times is None else trained_vector(config.max_times, width or input_channels)
        self.output = None
        if config.output_channels is not None:
            self.output = plain_linear(config.latents.channels, config.output_channels)
            if self.final_norm is not None:
                processor = config.processor
                self.final_norm = norm_layer(config.output_channels, processor)

    def forward(  # type: ignore[override]  # a mask is a part of Tokens
        self, tokens: Tokens | Any, mask: Any = None, plan: Any = None
    ) -> Float[Tensor, "*b n e"]:
        """Return latents from tokens; the mask, [B, M] or [B, T, M], is True (or 1) where a token exists."""
        if isinstance(tokens, Tokens):
            return super().forward(tokens, plan).array
        weight = next(self.parameters())
        x, mask, times = flattened_times(tokens, mask)
        segment = as_tokens(x, mask, self.input_channels, weight.device).segments["tokens"]
        found = super().forward(self._read_tokens(segment, times, token_dtype(weight.dtype)), plan).array
        return found if times is None else found.unflatten(0, (-1, times))

    def _read_tokens(self, segment: Segment, times: int | None, dtype: torch.dtype) -> Tokens:
        """Return the tokens as the trunk reads them: in range, after the linear map, with the vectors of times."""
        x = in_range(Tokens({"tokens": segment}), dtype).segments["tokens"].dense(dtype)
        x = x if self.projection is None else self.projection(x.to(self.projection.weight.dtype))
        if self.times is not None:
            if (count := times or 1) > len(self.times):
                raise ValueError(f"{count} times are more than max_times = {len(self.times)}")
            x = (x.unflatten(0, (-1, count)) + self.times[:count, None]).flatten(0, 1)
        return Tokens({"tokens": replace(segment, content=x)})

    def ended(self, latents: Latents) -> Latents:
        """Return the latents after the output map and the final norm."""
        return super().ended(latents if self.output is None else replace(latents, array=self.output(latents.array)))


def flattened_times(x: Any, mask: Any) -> tuple[Any, Any, int | None]:
    """Return tokens [B, T, M, C] and their mask as [B T, M, C] and [B T, M], with T; others as they are, with None."""
    if np.ndim(x) != 4:
        return x, mask, None
    return (*(None if v is None else torch.as_tensor(v).flatten(0, 1) for v in (x, mask)), x.shape[1])


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
