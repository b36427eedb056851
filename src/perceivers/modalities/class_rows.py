"""Rows of parameters that stand for classes: where they are, and arrays in which classes come and go.

A parameter along `axis`, for example the head of records with a number and a category of n classes:

    group "speed"   1 other row
    group "unit"    n rows, one for each class, in the order of the classes

A row is a slice along the axis: a row of an embedding or of a head, a column of a map that reads one-hot classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Classes = int | tuple[str, ...]
"""Number of classes, or their names."""

Start = Literal["mean", "zero"]
"""Start of the row of a new class: the mean over the classes before, or 0."""


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows of a parameter: first the others, then one for each class of a vocabulary."""

    vocabulary: str = ""
    """Name of the field of a record; "" where a modality has one vocabulary. Within a model: the whole name."""
    classes: Classes = 0
    """The classes, by number or by name."""
    others: int = 0
    """Number of rows that stand for no class: the unknown class, a number, a position feature."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return class_names(self.classes)


@dataclass(frozen=True)
class ClassRows:
    """The rows of a parameter, all of them, along the axis that has the classes."""

    axis: int
    """Axis of the parameter."""
    groups: tuple[RowGroup, ...]
    """The groups of rows, in order."""

    def within(self, place: str) -> "ClassRows":
        """Return the rows with the place of a modality before the names of its vocabularies."""
        return replace(
            self, groups=tuple(replace(g, vocabulary=vocabulary_name(place, g.vocabulary)) for g in self.groups)
        )

    def fits(self, other: "ClassRows") -> bool:
        """Return whether both differ at most in their classes, so that rows of one can be found in the other."""
        mine, others = ([(g.vocabulary, g.others) for g in rows.groups] for rows in (self, other))
        return self.axis == other.axis and mine == others


def vocabulary_name(place: str, field: str) -> str:
    """Return the name of a vocabulary: the place of its modality, then the field, if it belongs to one."""
    return f"{place}.{field}" if field else place


def class_names(classes: Classes) -> tuple[str, ...]:
    """Return the names of classes; numbered classes are called "0", "1", ..."""
    return tuple(map(str, range(classes))) if isinstance(classes, int) else classes


def as_classes(names: Sequence[str], before: Classes) -> Classes:
    """Return classes of these names: their number, if they were numbered before and still count from 0."""
    numbered = isinstance(before, int) and tuple(names) == class_names(len(names))
    return len(names) if numbered else tuple(names)


def resized(array: Tensor, old: ClassRows, new: ClassRows, start: Start = "mean") -> Tensor:
    """Return an array with the rows of the old classes as the new ones: known rows by name, others at their start."""
    pieces, begin = [], 0
    for group, wanted in zip(old.groups, new.groups, strict=True):
        names = group.names
        pieces.append(array.narrow(old.axis, begin, group.others))
        if names:
            rows = array.narrow(old.axis, begin + group.others, len(names))
            fresh = rows.mean(old.axis, keepdim=True)
            fresh = fresh if start == "mean" else torch.zeros_like(fresh)
            place = {name: number for number, name in enumerate(names)}
            numbers = [place.get(name, len(names)) for name in wanted.names]
            index = torch.tensor(numbers, dtype=torch.long, device=array.device)
            pieces.append(torch.cat([rows, fresh], old.axis).index_select(old.axis, index))
        begin += group.others + len(names)
    return torch.cat(pieces, old.axis)
