"""Start from another model: parts of the same name and size take its weights, the others start fresh."""

from collections.abc import Collection, Iterable

from torch import Tensor, nn

from perceivers.core.perceiver import PerceiverIO

PLACES = {"latents": "trunk.latents", "encoder": "trunk.encoder", "processor": "trunk.processor"}
"""Nouns whose weights stand elsewhere; the others are prefixes of names of weights themselves."""


def transfer(model: nn.Module, source: nn.Module) -> tuple[list[str], list[str]]:
    """Copy what fits; prefixes of what was loaded and of what stays fresh. A layer is loaded whole or not at all."""
    own, given = model.state_dict(), source.state_dict()
    misfits = {_layer(name) for name, tensor in own.items() if not _fits(tensor, given.get(name))}
    loaded = {name: given[name].to(tensor) for name, tensor in own.items() if _layer(name) not in misfits}
    model.load_state_dict(loaded, strict=False)
    return prefixes(loaded, own), prefixes(own.keys() - loaded.keys(), own)


def prefixes(chosen: Collection[str], names: Iterable[str]) -> list[str]:
    """The shortest beginnings of dotted names that stand for all chosen ones and no others."""
    names = list(names)
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        starts = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        if name in chosen:
            found[
                next(start for start in starts if all(other in chosen for other in names if _under(start, other)))
            ] = None
    return list(found)


def freeze(model: PerceiverIO, nouns: Iterable[str]) -> None:
    """Keep these parts from learning: nouns (encoder, ...) or beginnings of names of weights; ValueError if none is."""
    parameters = dict(model.named_parameters())
    for noun in nouns:
        found = [p for name, p in parameters.items() if _under(PLACES.get(noun, noun), name)]
        if not found:
            known = [*PLACES, *dict(model.named_children()).keys() - {"trunk"}]
            raise ValueError(
                f"nothing to freeze is called {noun!r}: there are {', '.join(sorted(known))}, and parts of them"
            )
        for parameter in found:
            parameter.requires_grad_(False)


def _fits(own: Tensor, given: Tensor | None) -> bool:
    return given is not None and own.shape == given.shape


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def _under(prefix: str, name: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
