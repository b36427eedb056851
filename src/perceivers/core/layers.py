"""Linear maps and norms: their initialisation and their calls; and `fast`, the seam to core/fast."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

fast: ModuleType | None = None
"""Package `core/fast`, the same numbers in less time and memory; set by `core/__init__.py`. None: all is dense."""

NORM_EPSILON = 1e-5

INIT_STD = 0.02
"""Standard deviation of latents, learned positions, queries, paddings and mask tokens at initialisation."""

CUT_STD = 0.87962566103423978
"""Std of a unit normal cut at +-2: haiku's VarianceScaling divides by it, its TruncatedNormal does not."""


def trained_vector(*shape: int, std: float = INIT_STD) -> nn.Parameter:
    """Return a parameter that is not a layer's weight: latents, positions, queries, paddings, mask tokens."""
    return nn.Parameter(truncated_normal_(torch.empty(*shape), std))


def sines(count: int, length: int, channels: int) -> nn.Parameter:
    """Return sines and cosines at `count` positions over `length`: mean square 1, wavelengths 2 pi to 2 pi `length`."""
    positions = torch.arange(count)[:, None] * (length / count)
    angles = positions * length ** -torch.linspace(0, 1, (channels + 1) // 2)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return nn.Parameter(math.sqrt(2) * waves[:, :channels])


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill from a normal of this std, cut at 2 std (haiku TruncatedNormal: the result has 0.88 times this std)."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def attention_linear(in_channels: int, out_channels: int, bias: bool = True) -> nn.Linear:
    """Return a linear map inside attention or its MLP: std exactly 1 / sqrt(fan in), bias 0 (official `conv_1d`)."""
    return _linear(in_channels, out_channels, 1 / math.sqrt(in_channels) / CUT_STD, bias)


def plain_linear(in_channels: int, out_channels: int, zero: bool = False) -> nn.Linear:
    """Return any other linear map (heads, projections, patches): haiku's hk.Linear; `zero` starts it at 0."""
    return _linear(in_channels, out_channels, 0.0 if zero else 1 / math.sqrt(max(in_channels, 1)))


def linear(x: Tensor, weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None) -> Tensor:
    """Return x W' + bias."""
    return (F.linear if fast is None else fast.linear)(x, weight, bias)


def apply_linear(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return module(x)."""
    return module(x) if fast is None else fast.apply_linear(module, x)


def apply_norm(module: nn.Module, x: Tensor) -> Tensor:
    """Return module(x) in the module's precision; in float16, x is normed before it is rounded."""
    dtype = dtype_of(module)
    if dtype != torch.float16 or x.dtype == dtype:
        return module(x)
    wide = {name: parameter.to(x.dtype) for name, parameter in module.named_parameters()}
    return functional_call(module, wide, (x,)).to(dtype)


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the precision of a module's parameters; the default precision if none is floating-point."""
    return next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.get_default_dtype())


def in_own_range(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast to float16 is off, so that raw values keep their range."""
    kind = device.type
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    return without_autocast(device) if is_on and torch.get_autocast_dtype(kind) == torch.float16 else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off, for sums and statistics; the device meta has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class RMSNorm(nn.RMSNorm):
    """RMS norm; under autocast it runs in its own precision, as a layer norm does."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x divided by the root of its mean square, times the scale."""
        return super().forward(x.to(torch.promote_types(x.dtype, self.weight.dtype)))


def norm_layer(channels: int, config: Any) -> nn.Module:
    """Return the norm over the last axis that a `BlockConfig` says."""
    return (nn.LayerNorm if config.norm == "layer" else RMSNorm)(channels, eps=config.norm_epsilon)


def _linear(in_channels: int, out_channels: int, std: float, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_channels, out_channels, bias)
    if bias:
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(layer.weight) if std == 0 else truncated_normal_(layer.weight, std)
    return layer
