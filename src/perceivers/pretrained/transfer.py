"""Transfer of weights from another model: arrays of the same name and shape are copied, the others stay fresh.

Rows of classes are found by the names of the classes (`new_classes.py`).
"""

from collections.abc import Collection, Iterable

from torch import Tensor, nn

from perceivers.core.perceiver import PerceiverIO
from perceivers.pretrained.new_classes import arrays_by_name

PREFIXES = {"latents": "trunk.latents", "encoder": "trunk.encoder", "processor": "trunk.processor"}
"""Prefixes of the names of weights, by part; the name of any other part is such a prefix itself."""


def transfer(model: nn.Module, source: nn.Module) -> tuple[list[str], list[str]]:
    """Copy the weights that fit, whole layers only; return the prefixes of the loaded weights and of the fresh ones."""
    current, given = model.state_dict(), arrays_by_name(model, source)
    misfits = {_layer(name) for name, tensor in current.items() if not _fits(tensor, given.get(name))}
    loaded = {name: given[name].to(tensor) for name, tensor in current.items() if _layer(name) not in misfits}
    model.load_state_dict(loaded, strict=False)
    return prefixes(loaded, current), prefixes(current.keys() - loaded.keys(), current)


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


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _under(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
