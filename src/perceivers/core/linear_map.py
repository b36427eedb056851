"""The weights that a layer computes with now. Algorithms that read weights instead of calling modules ask here.

A plain `nn.Linear` has its own weight, a parametrised one the weight that its parametrisations make, one with LoRA
adapters the sum of its own and theirs. Whatever else was done to a module (hooks, quantised weights, other adapters,
another class in its place) is only known by calling it: `is_linear_map` is False, and attention is dense.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations
from torch.utils.module_tracker import ModuleTracker

from perceivers.core.linear import linear

PLAIN_TENSORS = (Tensor, nn.Parameter)
"""Types of tensors whose products are the usual ones; quantised and distributed ones have types of their own."""

LORA = ("peft.tuners.lora.layer", "Linear")
"""Module and name of the class that PEFT puts in place of a linear layer."""

ROW_WISE = (nn.Identity, nn.Tanh, nn.Sigmoid, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)
"""Classes of modules that compute each row from the same row of their input alone."""


class LinearMap(NamedTuple):
    """x W' + bias."""

    weight: Tensor
    """[outputs, inputs]."""
    bias: Tensor
    """[outputs]."""

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


def is_linear_map(module: nn.Module) -> bool:
    """Return whether a module computes a linear map whose weights are known, without computing them."""
    known = type_before_parametrizations(module) is nn.Linear or _is_lora(module)
    return known and not is_hooked(*module.modules()) and has_plain_tensors(module) and _is_steady(module)


def is_row_wise(module: nn.Module) -> bool:
    """Return whether a module is known to give the same rows when it is called with a few rows at a time, repeatedly.

    A head of another class is not known to, unless it says which parameters it borrows (`borrowed` is not None).
    """
    if type(module) is nn.Sequential:
        return all(map(is_row_wise, module))
    if type(module) is nn.Dropout:
        return not (module.training and module.p)
    if type(module) is nn.LayerNorm:
        return len(module.normalized_shape) == 1
    return type(module) in ROW_WISE or getattr(module, "borrowed", None) is not None or is_linear_map(module)


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the precision of a module's parameters; the default one if it has none of floating point."""
    return next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.get_default_dtype())


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return the number of outputs and inputs of a linear map, without computing its weights."""
    return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]


def apply_linear(module: nn.Module, x: Tensor) -> Tensor:
    """Return module(x); the product of a plain linear layer is made by the faster library."""
    # A compiler is given the call: it would have to guard all that `is_hooked` looks at.
    if type(module) is nn.Linear and not torch.compiler.is_compiling() and not is_hooked(module):
        return linear(x, module.weight, module.bias)
    result: Tensor = module(x)
    return result


def through(modules: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Return what modules make of x, one after the other."""
    for module in modules:
        x = apply_linear(module, x)
    return x


def apply_norm(module: nn.Module, x: Tensor) -> Tensor:
    """Return module(x) in the module's precision; in float16 a norm takes out the scale of x before x is rounded."""
    dtype = dtype_of(module)
    wide = dtype == torch.float16 and x.dtype != dtype
    if wide and isinstance(module, nn.LayerNorm) and is_plain_norm(module, module.eps):
        scale, shift = module.weight.to(x.dtype), module.bias.to(x.dtype)
        return F.layer_norm(x, module.normalized_shape, scale, shift, module.eps).to(dtype)
    result: Tensor = module(x.to(dtype) if wide else x)
    return result


def is_plain_norm(module: nn.Module, epsilon: float) -> bool:
    """Return whether a module is a layer norm with a scale, a shift and this epsilon, and nothing else."""
    return (
        isinstance(module, nn.LayerNorm)
        and type_before_parametrizations(module) is nn.LayerNorm
        and module.eps == epsilon
        and isinstance(module.weight, Tensor)
        and isinstance(module.bias, Tensor)
        and not is_hooked(*module.modules())
        and has_plain_tensors(module)
    )


def embedding_table(module: nn.Module, count: int, device: torch.device) -> Tensor:
    """Return the vector that an embedding gives for each of `count` ids now: its weight, or what a call gives."""
    if type_before_parametrizations(module) is nn.Embedding and not _is_changed(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight
    result: Tensor = module(torch.arange(count, device=device))
    return result


def is_plain_embedding(module: nn.Module) -> bool:
    """Return whether the vectors of an embedding are its only parameter."""
    return type(module) is nn.Embedding and not _is_changed(module)


def _is_changed(module: nn.Module) -> bool:
    return "forward" in module.__dict__ or not has_plain_tensors(module)


def has_plain_tensors(module: nn.Module) -> bool:
    """Return whether parameters and buffers are ordinary tensors."""
    return all(type(x) in PLAIN_TENSORS for own in (module.parameters(), module.buffers()) for x in own)


def is_hooked(*modules: nn.Module, sharding: bool = True) -> bool:
    """Return whether calling a module does more than its class says: a hook, or a `forward` of its own.

    With `sharding` False the hooks by which `fully_shard` gathers a module's weights do not count. Those that count
    operations never do: they change nothing.
    """
    hooks = _global_hooks() if modules else []
    for module in modules:
        if "forward" in module.__dict__:
            return True
        hooks += [hook for own in _own_hooks(module) for hook in own.values()]
    return not all(isinstance(_owner(hook), ModuleTracker) or (not sharding and _is_sharding(hook)) for hook in hooks)


def _is_steady(module: nn.Module) -> bool:
    """Return whether parametrisations give the same weights however often they are asked.

    In training they may count (spectral norm) or draw (dropout); PyTorch's own without buffers do neither.
    """
    return all(
        not part.training
        or (type(part).__module__ == parametrizations.__name__ and not any(True for _ in part.buffers()))
        for own in module.modules()
        if isinstance(own, ParametrizationList)
        for part in own.children()
    )


def _own_hooks(module: nn.Module) -> Iterator[dict[int, Callable[..., Any]]]:
    yield from (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def _global_hooks() -> list[Callable[..., Any]]:
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return [hook for name in names for hook in getattr(torch_module, f"_global_{name}").values()]


def _owner(hook: Callable[..., Any]) -> object:
    """Return the object that a hook is a method of; None for a function."""
    return getattr(hook, "__self__", None)


def _is_sharding(hook: Callable[..., Any]) -> bool:
    return type(_owner(hook)).__module__.startswith("torch.distributed.fsdp")


def _is_lora(module: nn.Module) -> bool:
    """Return whether a module is PEFT's plain LoRA of a linear map, without dropout now."""
    kind = type(module)
    if (kind.__module__, kind.__qualname__) != LORA or not is_linear_map(module.get_submodule("base_layer")):
        return False
    if module.merged:
        return not module.disable_adapters  # else the next call takes the adapters out of the weight
    return all(_is_plain_adapter(module, name) for name in _active(module))


def _active(module: Any) -> Iterable[str]:
    return () if module.disable_adapters else [name for name in module.active_adapters if name in module.lora_A]


def _is_plain_adapter(module: Any, name: str) -> bool:
    dropout = module.lora_dropout[name]
    drops = isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0
    plain = isinstance(dropout, nn.Dropout | nn.Identity) and name not in module.lora_variant
    maps = (module.lora_A[name], module.lora_B[name])
    return plain and not drops and all(type(own) is nn.Linear and own.bias is None for own in maps)


def _deltas(module: Any) -> list[Tensor]:
    """Return the update that each active adapter adds to the weight, [outputs, inputs]."""
    return [] if module.merged else [module.get_delta_weight(name) for name in _active(module)]
