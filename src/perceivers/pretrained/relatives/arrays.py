"""Arrays of another library's state dict: found by name, checked against expected shapes, renamed block by block.

A state dict may be a part of a larger one, whose names then begin with a prefix. Errors give the names in the file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
"""Shapes of arrays by name."""

Weights = dict[str, Tensor]
"""Arrays by our names."""

LINEAR = ("weight", "bias")
"""Arrays of a linear map or a norm."""


@dataclass(frozen=True)
class Arrays:
    """The arrays of one model, by their names without the prefix."""

    tensors: Mapping[str, Any]
    """Arrays by name."""
    kind: str
    """Name of such models, for errors."""
    prefix: str = ""
    """Prefix of each name in the file."""

    @classmethod
    def of(
        cls, state: Mapping[str, Any], kind: str, mark: str, prefix: str | None = None, alone: bool = True
    ) -> "Arrays":
        """Return the arrays of the model that has an array called `mark`.

        `prefix`: what comes before its names; None: found by the mark. `alone`: the file has no other arrays.
        """
        prefix = _prefix_of(state, mark) if prefix is None else prefix
        found = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        if alone and len(found) < len(state):
            other = min(name for name in state if not name.startswith(prefix))
            raise ValueError(f"{other:.300} is left over: the names of {kind} begin with {prefix!r:.99} here")
        arrays = cls(found, kind, prefix)
        arrays[mark]
        return arrays

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        """Return an array; ValueError if it is missing, or is no tensor of floating-point numbers."""
        array = self.tensors.get(name)
        if array is None:
            raise ValueError(f"{self.prefix}{name} is missing: {self.kind} has it")
        if not isinstance(array, Tensor) or not array.is_floating_point():
            what = f"of {array.dtype}" if isinstance(array, Tensor) else f"a {type(array).__name__}"
            raise ValueError(f"{self.prefix}{name} is {what}: it should be a tensor of floating-point numbers")
        return array.detach()

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Return the shape of an array; ValueError unless it has as many axes, none of them empty."""
        array = self[name]
        if array.ndim != axes or not array.numel():
            shape = list(array.shape)
            raise ValueError(f"{self.prefix}{name} has shape {shape}; it should have {axes} axes, none empty")
        return tuple(array.shape)

    def count(self, stem: str) -> int:
        """Return how many different numbers follow a stem: the number of layers."""
        pattern = re.compile(rf"{re.escape(stem)}\.(\d{{1,9}})\.")
        return len({match[1] for name in self.tensors if (match := pattern.match(name))})

    def check(self, expected: Shapes) -> None:
        """Raise a ValueError naming the first array that is missing, of another shape, or left over."""
        for name, shape in expected.items():
            if (found := tuple(self[name].shape)) != shape:
                right = f"with the sizes of the other arrays it should be {list(shape)}"
                raise ValueError(f"{self.prefix}{name} has shape {list(found)}; {right}")
        if extra := sorted(self.tensors.keys() - expected.keys()):
            raise ValueError(f"{self.prefix}{extra[0]:.300} is left over: {self.kind} has no place for it")

    def without(self, *names: str) -> "Arrays":
        """Return the arrays without some."""
        return replace(self, tensors={name: x for name, x in self.tensors.items() if name not in names})

    def multiple(self, name: str, axis: int, of: int, what: str) -> int:
        """Return how many times a size goes into an axis of an array; ValueError if there is a rest."""
        size = self.shape(name, 2)[axis]
        times, rest = divmod(size, of)
        if rest or not times:
            raise ValueError(f"{self.prefix}{name}: {size} channels are no multiple of the {of} {what}")
        return times

    def renamed(self, names: Mapping[str, str]) -> Weights:
        """Return weight and bias of modules by our names, given {our module: theirs}."""
        return {
            f"{ours}.{kind}": self[f"{theirs}.{kind}"]
            for ours, theirs in names.items()
            for kind in LINEAR
            if f"{theirs}.{kind}" in self
        }

    def attention(self, ours: str, theirs: str, packed: str = "to_kv") -> Weights:
        """Return the maps of an attention with `to_q` and `to_kv` (keys, then values), or with all in `to_qkv`."""
        maps = self[f"{theirs}.{packed}.weight"]
        q, k, v = maps.chunk(3) if packed == "to_qkv" else (self[f"{theirs}.to_q.weight"], *maps.chunk(2))
        found = {f"{ours}.{name}.weight": x for name, x in (("query", q), ("key", k), ("value", v))}
        return found | self.renamed({f"{ours}.output": f"{theirs}.to_out"})


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """Return the shapes of a linear map."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def norm(name: str, width: int, bias: bool = True) -> Shapes:
    """Return the shapes of a layer norm, or without bias of an RMS norm."""
    shapes: Shapes = {f"{name}.weight": (width,)}
    return shapes | ({f"{name}.bias": (width,)} if bias else {})


def attention(name: str, query: int, token: int, inner: int, output_bias: bool = True) -> Shapes:
    """Return the shapes of an attention with `to_q` and `to_kv`."""
    maps = linear(f"{name}.to_q", query, inner, False) | linear(f"{name}.to_kv", token, 2 * inner, False)
    return maps | linear(f"{name}.to_out", inner, query, output_bias)


def num_heads(width: int, given: Mapping[str, int | None], default: tuple[int, int], where: str) -> int:
    """Return the number of heads that share a width, from {name: number of heads, name: width of a head}.

    Where neither is given, `default` (number, width) holds if it makes up the width; else a ValueError names both.
    """
    (number_name, number), (width_name, head_width) = given.items()
    if number is None and head_width is None:
        if width != default[0] * default[1]:
            reason = f"{where} gives only {width}, the channels of all heads together"
            raise ValueError(f"{number_name} is missing: {reason}: give {number_name} or {width_name}")
        number = default[0]
    for name, value in given.items():
        if value is not None and (value < 1 or width % value):
            raise ValueError(f"{name} = {value} must divide the {width} channels of {where}")
    number = width // (head_width or width) if number is None else number
    if head_width is not None and number * head_width != width:
        raise ValueError(f"{number_name} = {number} of {width_name} = {head_width} are not the {width} of {where}")
    return number


def in_float32(x: Tensor) -> Tensor:
    """Return numbers in at least float32, without a change of any."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _prefix_of(state: Mapping[str, Any], mark: str) -> str:
    """Return what comes before the mark in the names of a state dict; "" where the mark is missing."""
    found = [name.removesuffix(mark) for name in state if name == mark or name.endswith(f".{mark}")]
    if len(found) > 1:
        places = ", ".join(repr(prefix) for prefix in sorted(found)[:5])
        raise ValueError(f"prefix is missing: there are {len(found)} such models, at {places:.300}: give one of these")
    return found[0] if found else ""
