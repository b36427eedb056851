"""Detection of hooks, and of other ways in which a call of a module does more than its class defines."""

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.module_tracker import ModuleTracker


def is_hooked(*modules: nn.Module, sharding: bool = True) -> bool:
    """Return whether calling a module does more than its class defines: a hook, or a `forward` set on the instance.

    With `sharding` False, hooks with which `fully_shard` gathers a module's weights are ignored. Hooks that count
    operations are always ignored: they change nothing.
    """
    names = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    found = [getattr(torch_module, f"_global_{name}") for name in names] if modules else []
    for module in modules:
        if "forward" in module.__dict__:
            return True
        found += [getattr(module, f"_{name}") for name in names]
    owners = [getattr(hook, "__self__", None) for hooks in found for hook in hooks.values()]
    return not all(isinstance(owner, ModuleTracker) or (not sharding and _is_sharding(owner)) for owner in owners)


def _is_sharding(owner: object) -> bool:
    return type(owner).__module__.startswith("torch.distributed.fsdp")


def check_unhooked(cross: nn.Module, *around: nn.Module) -> None:
    """Raise a ValueError for a hook on a module whose whole call is bypassed when softmax states are read."""
    attention = cross.get_submodule("attention")
    for module in (*around, cross, attention):
        if is_hooked(module, sharding=module is attention):
            kind = type(module).__name__
            raise ValueError(
                f"a hook on {kind} needs all that it is given: read everything at once, with encode, and without gates"
            )
