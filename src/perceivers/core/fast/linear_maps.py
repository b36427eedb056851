"""The effective weights of layers, for algorithms that use weights instead of calling modules.

The weight of a plain `nn.Linear` is its parameter; with parametrisations, it is their result; with LoRA adapters, the
sum of the base weight and the adapters' updates. Any other change of a module (hooks, quantised weights, other
adapters, another class in its place) shows only in a call: `is_linear_map` is False, and attention is dense.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from perceivers.core.fast.hooks import is_hooked
from perceivers.core.interfaces import BoundHead
from perceivers.core.layers import NORM_EPSILON, RMSNorm

PLAIN_TENSORS = (Tensor, nn.Parameter)
"""Types of ordinary tensors; quantised and distributed tensors have other types."""

LORA = ("peft.tuners.lora.layer", "Linear")
"""Module and name of the class that PEFT puts in place of a linear layer."""

ROW_WISE = (nn.Identity, nn.Tanh, nn.Sigmoid, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)
"""Classes of modules that compute each token from the same token of their input alone."""


class LinearMap(NamedTuple):
    """The linear map x W' + bias."""

    weight: Tensor
    """Weight [outputs, inputs]."""
    bias: Tensor
    """Bias [outputs]."""

    def to(self, dtype: torch.dtype) -> "LinearMap":
        """Return the same map in another precision."""
        return LinearMap(self.weight.to(dtype), self.bias.to(dtype))


def linear_map(module: nn.Module) -> LinearMap:
    """Return the map that a module computes; ValueError unless `is_linear_map`."""
    if not is_linear_map(module):
        raise ValueError(f"{type(module).__name__} is not a linear map whose weights are known: call it")
    if _is_lora(module):
        base = linear_map(module.get_submodule("base_layer"))
        return LinearMap(sum((delta.to(base.weight) for delta in _deltas(module)), base.weight), base.bias)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    return LinearMap(weight, bias if isinstance(bias, Tensor) else weight.new_zeros(len(weight)))


def known_linear_map(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return weight and bias of a linear map; None if only a call shows what the module computes."""
    return linear_map(module) if is_linear_map(module) else None


def is_linear_map(module: Any) -> bool:
    """Return whether a module computes a linear map whose weights are known; the weights are not computed."""
    if isinstance(module, BoundHead):
        return False
    known = type_before_parametrizations(module) is nn.Linear or _is_lora(module)
    return known and not is_hooked(*module.modules()) and has_plain_tensors(module) and _is_steady(module)


def is_row_wise(module: Any) -> bool:
    """Return whether a module is known to give the same results when it is called block by block, repeatedly.

    Modules of other classes are not known to. A head that is bound to embeddings is (tied logits).
    """
    if isinstance(module, BoundHead):
        return all(map(is_plain_embedding, module.shared))
    if type(module) is nn.Sequential:
        return all(map(is_row_wise, module))
    if type(module) is nn.Dropout:
        return not (module.training and module.p)
    if type(module) in (nn.LayerNorm, RMSNorm):
        return len(module.normalized_shape) == 1
    return type(module) in ROW_WISE or is_linear_map(module)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return the number of outputs and inputs of a linear map, without computing its weights."""
    return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]


class Norm(NamedTuple):
    """The kind of a norm and its epsilon."""

    is_centred: bool = True
    """True: layer norm; False: RMS norm, which does not subtract the mean."""
    epsilon: float = NORM_EPSILON
    """Number added to the variance."""

    def __call__(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return x normed over its last axis, then scaled and shifted."""
        if self.is_centred:
            return F.layer_norm(x, x.shape[-1:], weight, bias, self.epsilon)
        found = F.rms_norm(x, x.shape[-1:], weight, self.epsilon)
        return found if bias is None else found + bias

    def centred(self, x: Tensor, dim: int) -> Tensor:
        """Return x minus its mean over an axis, if the norm subtracts the mean."""
        return x - x.mean(dim, keepdim=True) if self.is_centred else x


def norm_of(module: nn.Module) -> Norm:
    """Return the kind of a plain norm, and its epsilon."""
    return Norm(isinstance(module, nn.LayerNorm), float(module.eps))  # type: ignore[arg-type]


def scale_and_shift(module: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of a plain norm; an RMS norm has a shift of 0."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    return weight.to(dtype), torch.zeros_like(weight, dtype=dtype) if bias is None else bias.to(dtype)


def is_plain_norm(module: nn.Module) -> bool:
    """Return whether a module is a layer norm with a scale and a shift, or an RMS norm with a scale, and no more."""
    return (
        isinstance(module, nn.LayerNorm | nn.RMSNorm)
        and type_before_parametrizations(module) in (nn.LayerNorm, RMSNorm)
        and isinstance(module.weight, Tensor)
        and (isinstance(module, nn.RMSNorm) or isinstance(module.bias, Tensor))
        and module.eps is not None
        and not is_hooked(*module.modules())
        and has_plain_tensors(module)
    )


def is_plain_embedding(module: nn.Module) -> bool:
    """Return whether a module is an embedding of ordinary tensors whose call is that of its class."""
    return type(module) is nn.Embedding and "forward" not in module.__dict__ and has_plain_tensors(module)


def has_plain_tensors(module: nn.Module) -> bool:
    """Return whether parameters and buffers are ordinary tensors."""
    return all(type(x) in PLAIN_TENSORS for tensors in (module.parameters(), module.buffers()) for x in tensors)


def _is_steady(module: nn.Module) -> bool:
    """Return whether parametrisations give the same weights each time.

    In training, they may update buffers (spectral norm) or draw at random (dropout); PyTorch's own ones without
    buffers do neither.
    """
    return all(
        not part.training
        or (type(part).__module__ == parametrizations.__name__ and not any(True for _ in part.buffers()))
        for child in module.modules()
        if isinstance(child, ParametrizationList)
        for part in child.children()
    )


def _is_lora(module: nn.Module) -> bool:
    """Return whether a module is PEFT's plain LoRA of a linear map, without active dropout."""
    kind = type(module)
    if (kind.__module__, kind.__qualname__) != LORA or not is_linear_map(module.get_submodule("base_layer")):
        return False
    if module.merged:
        return not module.disable_adapters  # else the next call takes the updates out of the weight
    return all(_is_plain_adapter(module, name) for name in _active(module))


def _active(module: Any) -> Iterable[str]:
    return () if module.disable_adapters else [name for name in module.active_adapters if name in module.lora_A]


def _is_plain_adapter(module: Any, name: str) -> bool:
    dropout = module.lora_dropout[name]
    drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
    plain = isinstance(dropout, nn.Dropout | nn.Identity) and name not in module.lora_variant
    maps = (module.lora_A[name], module.lora_B[name])
    return plain and not drops and all(type(one) is nn.Linear and one.bias is None for one in maps)


def _deltas(module: Any) -> list[Tensor]:
    """Return the update that each active adapter adds to the weight, [outputs, inputs]."""
    return [] if module.merged else [module.get_delta_weight(name) for name in _active(module)]
