"""Linear maps and norms: how they start, and how they are called.

`fast` is the seam to `core/fast`, which computes the same numbers in less time and memory. Where it is None (the folder
was taken away), everything is dense.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.utils.module_tracker import ModuleTracker

fast: ModuleType | None = None
"""`core/fast`, set by `core/__init__.py`."""

LAYER_NORM_EPSILON = 1e-5

INIT_STD = 0.02
"""Standard deviation of latents, learned positions, queries, paddings and mask tokens at the start."""

CUT_STD = 0.87962566103423978
"""Std of a unit normal cut at +-2: haiku's VarianceScaling divides by it, its TruncatedNormal does not."""


def trained_vector(*shape: int, std: float = INIT_STD) -> nn.Parameter:
    """Return a parameter that is not a layer's weight: latents, positions, queries, paddings, mask tokens."""
    return nn.Parameter(truncated_normal_(torch.empty(*shape), std))


def sines(count: int, num_places: int, channels: int) -> nn.Parameter:
    """Return, in place of `trained_vector`, sines and cosines of `count` places, spread evenly over `num_places`.

    Their mean square is 1, their wavelengths run from 2 pi places to 2 pi times all of them.
    """
    places = torch.arange(count)[:, None] * (num_places / count)
    angles = places * num_places ** -torch.linspace(0, 1, (channels + 1) // 2)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return nn.Parameter(math.sqrt(2) * waves[:, :channels])


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill from a normal of this std cut at two of them (haiku TruncatedNormal: the result is 0.88 times as wide)."""
    return nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)


def attention_linear(in_channels: int, out_channels: int) -> nn.Linear:
    """Return a linear map inside attention or its MLP: std exactly 1 / sqrt(fan in), bias 0 (official `conv_1d`)."""
    return _linear(in_channels, out_channels, 1 / math.sqrt(in_channels) / CUT_STD)


def plain_linear(in_channels: int, out_channels: int, zero: bool = False) -> nn.Linear:
    """Return any other linear map (heads, projections, patches): haiku's hk.Linear; `zero` starts it at 0."""
    return _linear(in_channels, out_channels, 0.0 if zero else 1 / math.sqrt(max(in_channels, 1)))


def zero_(*modules: nn.Module) -> None:
    """Set every parameter to 0."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """Return x W' + bias."""
    return (F.linear if fast is None else fast.linear)(x, weight, bias)


def apply_linear(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return module(x); the product of a plain linear layer is made by the faster library."""
    # A compiler is given the call: it would have to guard all that `is_hooked` looks at.
    if type(module) is nn.Linear and not torch.compiler.is_compiling() and not is_hooked(module):
        return linear(x, module.weight, module.bias)
    return module(x)


def apply_norm(module: nn.Module, x: Tensor) -> Tensor:
    """Return module(x) in the module's precision; in float16 a norm takes out the scale of x before x is rounded."""
    dtype = dtype_of(module)
    wide = dtype == torch.float16 and x.dtype != dtype
    if wide and type(module) is nn.LayerNorm and not is_hooked(module):
        scale, shift = module.weight.to(x.dtype), module.bias.to(x.dtype)
        return F.layer_norm(x, module.normalized_shape, scale, shift, module.eps).to(dtype)
    result: Tensor = module(x.to(dtype) if wide else x)
    return result


def linear_map(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a linear map; None if only a call tells what the module computes."""
    if fast is not None:
        return fast.known_linear_map(module)
    return (module.weight, module.bias) if type(module) is nn.Linear and not is_hooked(module) else None


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the precision of a module's parameters; the default one if it has none of floating point."""
    return next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.get_default_dtype())


def is_hooked(*modules: nn.Module, sharding: bool = True) -> bool:
    """Return whether calling a module does more than its class says: a hook, or a `forward` of its own.

    With `sharding` False the hooks by which `fully_shard` gathers a module's weights do not count. Those that count
    operations never do: they change nothing.
    """
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    found = [getattr(torch_module, f"_global_{name}") for name in names] if modules else []
    for module in modules:
        if "forward" in module.__dict__:
            return True
        found += [getattr(module, f"_{name}") for name in names]
    owners = [getattr(hook, "__self__", None) for hooks in found for hook in hooks.values()]
    return not all(isinstance(owner, ModuleTracker) or (not sharding and _is_sharding(owner)) for owner in owners)


def floats(x: Tensor) -> Tensor:
    """Return floating-point numbers as they are; whole numbers and booleans become float32."""
    return x if x.is_floating_point() else x.float()


def precise(x: Tensor) -> Tensor:
    """Return floating-point numbers in at least float32: in half precision, what is made of them would overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_own_range(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which raw values keep their range: autocast to float16, if it is on, is off within."""
    kind = device.type
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    return without_autocast(device) if is_on and torch.get_autocast_dtype(kind) == torch.float16 else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off, for sums and statistics; the device meta has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _linear(in_channels: int, out_channels: int, std: float) -> nn.Linear:
    layer = nn.Linear(in_channels, out_channels)
    nn.init.zeros_(layer.bias)
    nn.init.zeros_(layer.weight) if std == 0 else truncated_normal_(layer.weight, std)
    return layer


def _is_sharding(owner: object) -> bool:
    return type(owner).__module__.startswith("torch.distributed.fsdp")
