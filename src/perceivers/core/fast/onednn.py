"""x W' + b by oneDNN where that is faster than by PyTorch, equal within rounding.

PyTorch computes float32 products on a CPU by MKL, which is made for Intel processors; oneDNN comes with PyTorch too.
`python -m benchmarks.products` measures both; `torch.backends.mkldnn.set_flags(False)` turns oneDNN off.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

from perceivers.core.fast.hooks import is_hooked

LEAST_WORK = 2**24
"""Smallest number of multiply-adds for oneDNN, whose calls take longer to start."""

LEAST_COLUMNS = 8
"""Smallest output width for oneDNN: narrower products take as long as this width."""


def linear(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """Return x W' + bias, by the faster library."""
    return (onednn if is_for_onednn(x, weight) else F.linear)(x, weight, bias)


def apply_linear(module: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return module(x); a plain linear layer runs by the faster library."""
    # Under a compiler, call the module: else everything that `is_hooked` inspects would become a guard.
    if type(module) is nn.Linear and not torch.compiler.is_compiling() and not is_hooked(module):
        return linear(x, module.weight, module.bias)
    return module(x)


def onednn(
    x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None = None
) -> Float[Tensor, "*b o"]:
    """Return x W' + bias of float32 tensors on a CPU, by oneDNN."""
    result: Tensor = _OneDNN.apply(x, weight, bias)
    return result


def matmul(x: Float[Tensor, "... m i"], y: Float[Tensor, "... i n"]) -> Float[Tensor, "... m n"]:
    """Return x @ y, by the faster library if y is a matrix."""
    return linear(x, y.mT) if y.ndim == 2 else x @ y


def is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN runs the product: large, float32, on a CPU; no compiler, transform or special tensor."""
    return (
        AVAILABLE
        and not torch.compiler.is_compiling()  # first: a compiler would guard every comparison of sizes
        and x.numel() * len(weight) >= LEAST_WORK
        and len(weight) >= LEAST_COLUMNS
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and all(type(tensor) in (Tensor, nn.Parameter) for tensor in (x, weight))
        and not torch.is_autocast_enabled("cpu")
        and not is_transformed()
        and bool(torch.backends.mkldnn.enabled)
    )


def is_transformed() -> bool:
    """Return whether a transform is active: vmap, gradients of `torch.func`, or forward-mode derivatives."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W' + bias by an operator of PyTorch's compiler, which is not public and has no gradient."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result


class _OneDNN(torch.autograd.Function):
    """The product as a function with gradients, which have gradients too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            matmul(gradient, weight) if of_x else None,
            matmul(rows.mT, x.flatten(0, -2)) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Return the operations of the product, for `FlopCounterMode`."""
    return 2 * x.numel() * weight[0]


def _is_available() -> bool:
    """Return whether this PyTorch has the functions used here that are not public."""
    x = torch.eye(2, device="cpu", dtype=torch.float32)
    try:
        if torch.ops.mkldnn._linear_pointwise not in flop_registry:
            register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)
        return not is_transformed() and torch.equal(_product(x, x, None), x)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


AVAILABLE = _is_available()
"""True if oneDNN can be used."""
