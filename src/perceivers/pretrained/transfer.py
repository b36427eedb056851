"""Transfer of weights from another model: arrays of the same name and shape are copied, the others stay fresh.

Rows of classes are found by the names of the classes (`new_classes.py`). Before training, further inputs and outputs
change no prediction of the source, if inputs that are read have a gate, and if the channel alignment is "project", or
the tokens and queries of the source are no narrower than the further ones.
"""

from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn

from perceivers.core.perceiver import PerceiverIO
from perceivers.pretrained.new_classes import arrays_by_name

PREFIXES = {"latents": "trunk.latents", "encoder": "trunk.encoder", "processor": "trunk.processor"}
"""Prefixes of the names of weights, by part; the name of any other part is such a prefix itself."""


def transfer(model: nn.Module, source: nn.Module) -> tuple[list[str], list[str]]:
    """Copy the weights that fit, whole layers only; return the prefixes of the loaded weights and of the fresh ones."""
    current, given = model.state_dict(), arrays_by_name(model, source)
    apart = {name for name, module in model.named_modules() if isinstance(module, nn.ParameterDict)}
    layers = {name: _layer(name, apart) for name in current}
    misfits = {layers[name] for name, tensor in current.items() if not _fits(tensor, given.get(name))}
    loaded = {name: given[name].to(tensor) for name, tensor in current.items() if layers[name] not in misfits}
    model.load_state_dict(loaded, strict=False)
    _start_conditions(model, source)
    return prefixes(loaded, current), prefixes(current.keys() - loaded.keys(), current)


def _start_conditions(model: Any, source: Any) -> None:
    """Start the maps of further conditions at 0: they add nothing to the sum of those that the source knows."""
    new, known = (getattr(each, "conditioning", None) for each in (model, source))
    if new is None or known is None:
        return
    projections = model.input_adapter.alignment.projections
    for name in projections.keys() & set(new.names) - set(known.names):
        for parameter in projections[name].parameters():
            nn.init.zeros_(parameter)


def prefixes(chosen: Collection[str], names: Iterable[str]) -> list[str]:
    """Return the shortest prefixes of dotted names that cover all chosen names and no others."""
    names = list(names)
    shortest: dict[str, None] = {}  # a set in order
    for name in names:
        parts = name.split(".")
        starts = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        if name in chosen:
            prefix = next(s for s in starts if all(other in chosen for other in names if _under(s, other)))
            shortest[prefix] = None
    return list(shortest)


def freeze(model: PerceiverIO, nouns: Iterable[str]) -> None:
    """Freeze parts (encoder, ...) or prefixes of names of weights; ValueError for one that covers no parameter."""
    parameters = dict(model.named_parameters())
    for noun in nouns:
        frozen = [p for name, p in parameters.items() if _under(PREFIXES.get(noun, noun), name)]
        if not frozen:
            known = [*PREFIXES, *dict(model.named_children()).keys() - {"trunk"}]
            raise ValueError(
                f"nothing to freeze is called {noun!r}: there are {', '.join(sorted(known))}, and parts of them"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)


def _fits(tensor: Tensor, given: Tensor | None) -> bool:
    return given is not None and tensor.shape == given.shape


def _layer(name: str, apart: Collection[str]) -> str:
    """Return the module of a parameter; parameters in a module of `apart` are layers of their own."""
    module = name.rpartition(".")[0]
    return name if module in apart or not module else module


def _under(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
