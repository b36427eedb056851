"""Renaming of arrays from other libraries to this one, and back: each is used exactly once, or an error names it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers.pretrained.names import (
    BLOCKS,
    DERIVED,
    ENCODERS,
    FAMILIES,
    LAYERS,
    LAYOUTS,
    MODALITIES,
    TRUNK,
    Column,
    Row,
    Rule,
)


class Pair(NamedTuple):
    """One array under two names."""

    ours: str
    """Name in this library."""
    theirs: str
    """Name in the other library."""
    layout: str
    """A key of `LAYOUTS`."""
    rule: Rule
    """Conversion between the two layouts."""


def family_of(names: Iterable[str], column: Column) -> str:
    """Return the released model whose names these resemble most; ValueError if they resemble none."""
    given = set(names)
    families = [family for family, rows in FAMILIES.items() if getattr(rows[0], column)]
    expected = {
        family: {pair.theirs for pair in pairs(family, column, count_layers(family, column, given))}
        for family in families
    }
    nearest = min(families, key=lambda family: len(expected[family] ^ given))
    if 2 * len(expected[nearest] & given) < len(expected[nearest]):
        raise ValueError(f"not the arrays of one of the models {', '.join(families)} as {column} names them")
    return nearest


def count_layers(family: str, column: Column, names: Iterable[str]) -> int:
    """Return the number of self-attention layers per block from the names of the arrays; at least 1."""
    (row,) = (row for row in TRUNK if row.kind == "self_attention")
    numbered = re.escape(getattr(row, column).format(encoder=ENCODERS[family], layer="<layer>", _layer="<_layer>"))
    pattern = re.compile(numbered.replace("<layer>", r"(\d+)").replace("<_layer>", r"((?:_\d+)?)") + "[./]")
    return max(len({match[1] for name in names if (match := pattern.match(name))}), 1)


def pairs(family: str, column: Column, num_layers: int) -> list[Pair]:
    """Return all arrays of a model with `num_layers` layers per block, by both names."""
    result = []
    for row in FAMILIES[family]:
        for filled in _filled(row, family, num_layers):
            for array in _arrays(filled):
                layout = LAYOUTS[array.kind]
                result.append(Pair(array.ours, getattr(array, column), array.kind, layout.get(column, layout["ours"])))
    return result


def to_ours(family: str, column: Column, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy arrays to our names and layout; a ValueError names the first one that is missing, left over or unfitting.

    Shapes are not checked here: the sizes of the model are derived from them.
    """
    given = {name: torch.as_tensor(array) for name, array in arrays.items() if not _is_derived(name, column)}
    table = pairs(family, column, count_layers(family, column, given))
    check_names(family, table, given)
    return {pair.ours: _as_ours(pair, given.get(pair.theirs)) for pair in table}


def to_theirs(family: str, column: Column, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy our arrays to their names and layout; a ValueError names the first one that is missing or left over."""
    num_layers = count_layers(family, "ours", weights)
    check_names(family, pairs(family, "ours", num_layers), weights)
    return {p.theirs: _copy(p.rule.to_theirs(weights[p.ours])) for p in pairs(family, column, num_layers)}


def check_names(family: str, table: Iterable[Pair], given: Iterable[str]) -> None:
    """Raise a ValueError naming the first array that is missing or left over; counts of batches may be missing."""
    names, needed = set(given), {pair.theirs: pair.layout for pair in table}
    for name, layout in needed.items():
        if name not in names and layout != "count":
            raise ValueError(f"{name} is missing: the model {family} has it")
    if extra := sorted(names - needed.keys()):
        raise ValueError(f"{extra[0]} is left over: the model {family} has no place for it")


def _filled(row: Row, family: str, num_layers: int) -> Iterator[Row]:
    fills: list[dict[str, Any]] = [{}]
    if "{layer}" in row.ours:
        fills = [{"layer": number, "_layer": f"_{number}" if number else ""} for number in range(num_layers)]
    elif "{modality}" in row.ours:
        fills = [{"modality": name, "postprocessor": module} for name, module in MODALITIES.items()]
    for fill in fills:
        yield Row(row.kind, *(name.format(encoder=ENCODERS[family], **fill) for name in row[1:]))


def _arrays(row: Row) -> Iterator[Row]:
    parts = BLOCKS.get(row.kind) or LAYERS.get(row.kind)
    if parts is None:
        yield row
        return
    for part in parts:
        yield from _arrays(
            Row(
                part.kind,
                f"{row.ours}.{part.ours}",
                f"{row.haiku}/{part.haiku}",
                f"{row.huggingface}.{part.huggingface}",
                f"{row.krasserm}.{part.krasserm}" if row.krasserm else "",
            )
        )


def _is_derived(name: str, column: Column) -> bool:
    return name.endswith(DERIVED.get(column, ()))


def _as_ours(pair: Pair, array: Tensor | None) -> Tensor:
    if array is None:  # a count of batches
        return torch.zeros((), dtype=torch.int64)
    if array.ndim != pair.rule.axes or not array.numel():
        raise ValueError(
            f"{pair.theirs} has shape {list(array.shape)}; it should have {pair.rule.axes} axes, none empty"
        )
    if array.is_floating_point() == (pair.layout == "count"):
        expected = "whole numbers" if pair.layout == "count" else "floating-point numbers"
        raise ValueError(f"{pair.theirs} holds {array.dtype}, not {expected}")
    array = pair.rule.to_ours(array)
    return array.to(torch.int64) if pair.layout == "count" else _copy(array)


def _copy(array: Tensor) -> Tensor:
    return array.detach().clone(memory_format=torch.contiguous_format)
