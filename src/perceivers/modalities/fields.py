"""Types of a record's fields: numbers and categories, on their way in and out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.arguments import floats, precise
from perceivers.core.checks import SIZE, check_fields, check_ranges
from perceivers.modalities.embeddings import embedding
from perceivers.modalities.label import Label, check_classes, counted
from perceivers.modalities.modality import check_units, denormalised, known_units, normalised, rounded, unit_std
from perceivers.modalities.raw import as_float32, is_missing
from perceivers.modalities.scalars import UNKNOWN, class_numbers, class_value, scalar
from perceivers.modalities.table_cells import number

DAY = 86_400
"""Seconds."""

ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
"""A Saturday; where days are counted from."""

CYCLES = (365.2425, 7.0, 1.0)
"""Days of a year, a week, a day."""

Column = Sequence[Any] | np.ndarray
"""A field's values of several records, as a data set holds them."""


class FieldType(ABC):
    """What a field of a record answers."""

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether there is nothing left to learn from data before training."""

    @abstractmethod
    def read(self, cell: Any) -> Any:
        """A table's cell, never None, as a value; ValueError if it is none of this type."""

    @abstractmethod
    def fit(self, values: Sequence[Any]) -> "FieldType":
        """Itself with what these known values tell filled in."""

    @abstractmethod
    def preprocess(self, values: Column) -> np.ndarray:
        """[M] as `known` and the encoding take it; None and NaN are unknown."""

    @abstractmethod
    def known(self, values: Tensor) -> Bool[Tensor, "*b"]:
        """True where a raw value is known."""

    @abstractmethod
    def build_encoding(self) -> "FieldEncoding":
        """Raw values to features."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Numbers of a decoder's row that make one value."""

    @abstractmethod
    def arrange(self, rows: Float[Tensor, "b m e"]) -> Tensor:
        """Those numbers to the raw output."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Float[Tensor, "b m"]:
        """Of each record; finite where the target is unknown."""

    @abstractmethod
    def cell(self, prediction: Tensor) -> Any:
        """One predicted value as a plain one for a table."""

    @abstractmethod
    def attribution(self, whole: Tensor, without: Tensor) -> Float[Tensor, " m"]:
        """What each predicted value owes to a part of the inputs: its change from `without` it."""

    @abstractmethod
    def show(self, value: Tensor) -> str:
        """One raw or predicted value in a few characters."""


class FieldEncoding(nn.Module, ABC):
    """Raw values [B, M] of one field to features [B, M, channels]."""

    channels: int

    @abstractmethod
    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m c"]:
        """Features of known and of unknown values; what the mask hides is unknown."""


@dataclass(frozen=True)
class NumberField(FieldType):
    """A number: goes in as itself beside a one where it is known, comes out as itself."""

    mean: float | None = None
    """Subtracted on the way in, added on the way out. Fitted if None."""
    std: float | None = None
    """Divides on the way in, multiplies on the way out. Fitted if None."""
    kind: Literal["number"] = "number"
    """Name in files."""

    def __post_init__(self) -> None:
        check_units(self.mean, self.std)

    @property
    def is_fitted(self) -> bool:
        """Mean and standard deviation are known."""
        return self.mean is not None and self.std is not None

    @property
    def num_outputs(self) -> int:
        """1."""
        return 1

    def read(self, cell: Any) -> float:
        """A number."""
        return number(cell)

    def fit(self, values: Sequence[Any]) -> "NumberField":
        """Mean and standard deviation."""
        numbers = as_float32([_parsed(value) for value in values if not is_missing(value)]).astype(np.float64)
        mean = numbers.mean() if self.mean is None else self.mean
        std = unit_std(numbers.std()) if self.std is None else self.std
        return replace(self, mean=float(mean), std=float(std))

    def preprocess(self, values: Column) -> np.ndarray:
        """As float32; None becomes NaN."""
        return as_float32([_parsed(value) for value in values])

    def known(self, values: Tensor) -> Bool[Tensor, "*b"]:
        """Finite."""
        return values.isfinite()

    def build_encoding(self) -> "NumberEncoding":
        """In units of `std`, and whether it is known."""
        return NumberEncoding(self)

    def normalise(self, values: Tensor) -> Tensor:
        """Data's units to the network's."""
        return normalised(values, self.mean, self.std)

    def arrange(self, rows: Float[Tensor, "b m 1"]) -> Float[Tensor, "b m"]:
        """In the data's units."""
        return denormalised(rows[..., 0], self.mean, self.std)

    def loss(self, prediction: Tensor, target: Tensor) -> Float[Tensor, "b m"]:
        """Squared difference in units of `std`."""
        true = torch.where(self.known(target), floats(target), prediction)
        return (self.normalise(prediction) - self.normalise(true)) ** 2

    def cell(self, prediction: Tensor) -> Any:
        """The number."""
        return rounded(prediction)

    def attribution(self, whole: Tensor, without: Tensor) -> Float[Tensor, " m"]:
        """Of the number."""
        return whole - without

    def show(self, value: Tensor) -> str:
        """Four digits."""
        return f"{float(value):.4g}" if bool(self.known(value)) else "?"


@dataclass(frozen=True)
class CategoryField(FieldType):
    """One class of several; a value that is none of them is unknown, since new ones turn up after training."""

    classes: int | tuple[str, ...] = ()
    """How many there are, or their names. Fitted (sorted) if empty."""
    channels: int = 16
    """As an input: width of the trained vector of each class, and of the one that says unknown."""
    kind: Literal["category"] = "category"
    """Name in files."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, {"channels": SIZE})
        check_classes(self.classes)

    @property
    def is_fitted(self) -> bool:
        """Classes are known."""
        return bool(self.classes)

    @property
    def num_outputs(self) -> int:
        """How many classes there are."""
        count = self.classes if isinstance(self.classes, int) else len(self.classes)
        if not count:
            raise ValueError("a category without classes: give classes=, or fit the schema to data first")
        return count

    def read(self, cell: Any) -> str:
        """Its name, also where the table holds a number."""
        return str(cell)

    def fit(self, values: Sequence[Any]) -> "CategoryField":
        """The names that occur, sorted; whole numbers stay numbers."""
        return replace(self, classes=Label(classes=self.classes).fit(values).classes)

    def preprocess(self, values: Column) -> np.ndarray:
        """Class numbers."""
        names = {} if isinstance(self.classes, int) else {name: place for place, name in enumerate(self.classes)}
        return np.array([self._number(value, names) for value in values], np.int64)

    def known(self, values: Tensor) -> Bool[Tensor, "*b"]:
        """A class; not -1 or -100."""
        return class_numbers(values, self.num_outputs)[1]

    def build_encoding(self) -> "CategoryEncoding":
        """A trained vector for each class."""
        return CategoryEncoding(self)

    def arrange(self, rows: Float[Tensor, "b m e"]) -> Float[Tensor, "b m e"]:
        """Logits."""
        return rows

    def loss(self, prediction: Float[Tensor, "b m e"], target: Int[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Cross entropy."""
        numbers, _ = class_numbers(target, self.num_outputs)
        return F.cross_entropy(rearrange(prediction, "b m e -> b e m"), numbers, reduction="none")

    def cell(self, prediction: Tensor) -> str:
        """The most probable class."""
        return self.show(prediction)

    def attribution(self, whole: Tensor, without: Tensor) -> Float[Tensor, " m"]:
        """Of the log-probability of the class that is predicted from everything."""
        change = whole.float().log_softmax(dim=-1) - without.float().log_softmax(dim=-1)
        return change.gather(-1, whole.argmax(dim=-1, keepdim=True))[..., 0]

    def show(self, value: Tensor) -> str:
        """Name of the class, of the most probable one for logits."""
        number = int(value.argmax() if value.ndim else value)
        if number < 0:
            return "?"
        return str(number) if isinstance(self.classes, int) else self.classes[number]

    def _number(self, value: Any, names: Mapping[str, int]) -> int:
        known = class_value(value)
        if known is None or not isinstance(self.classes, int):
            return names.get(str(known), names.get(str(value), UNKNOWN))
        with suppress(ValueError):
            return counted(known, self.classes)
        return UNKNOWN


@dataclass(frozen=True)
class DateField(NumberField):
    """A moment, to about a minute: ISO text, a date or its days since 2000; goes in with its place in cycles too."""

    kind: Literal["date"] = "date"  # type: ignore[assignment]
    """Name in files."""

    def read(self, cell: Any) -> float:
        """Days since the beginning of 2000 UTC; a moment without a zone is taken for UTC."""
        cell = scalar(cell)
        if isinstance(cell, int | float):
            return number(cell)
        try:
            moment = datetime.fromisoformat(cell if isinstance(cell, str) else cell.isoformat())
        except (AttributeError, ValueError):
            raise ValueError(f"not a date as in 2026-11-22 or 2026-11-22T14:30: {cell!r:.99}") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return (moment - ORIGIN).total_seconds() / DAY

    def fit(self, values: Sequence[Any]) -> "DateField":
        """Mean and standard deviation of the days."""
        fitted = super().fit([self.read(value) for value in values])
        assert isinstance(fitted, DateField)
        return fitted

    def preprocess(self, values: Column) -> np.ndarray:
        """Days as float32; None becomes NaN."""
        return np.asarray([None if is_missing(value) else self.read(value) for value in values], np.float32)

    def build_encoding(self) -> "DateEncoding":
        """In units of `std`, whether it is known, and its place in the year, the week and the day."""
        return DateEncoding(self)

    def cell(self, prediction: Tensor) -> str:
        """ISO text, to the second."""
        return self.show(prediction)

    def show(self, value: Tensor) -> str:
        """ISO text, to the second."""
        with suppress(OverflowError, ValueError):
            return (ORIGIN + timedelta(days=float(value))).strftime("%Y-%m-%dT%H:%M:%S")
        return "?"


Field = NumberField | CategoryField | DateField


class NumberEncoding(FieldEncoding):
    """The number in units of its deviation, 0 where unknown; then a one where it is known."""

    channels = 2

    def __init__(self, field: NumberField) -> None:
        super().__init__()
        self.field = field

    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m 2"]:
        """Finite, whatever the values."""
        number, known = known_units(_unless(mask, floats(values), torch.nan), self.field.mean, self.field.std)
        return torch.stack([number, known.to(number.dtype)], dim=-1)


class DateEncoding(NumberEncoding):
    """As a number; then sine and cosine of its place in each cycle, 0 where unknown."""

    channels = 2 + 2 * 3

    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m 8"]:
        """Finite, whatever the values."""
        values = _unless(mask, precise(floats(values)), torch.nan)
        turns = [2 * torch.pi * values.nan_to_num(0.0, 0.0, 0.0) / days for days in CYCLES]
        waves = torch.stack([wave for turn in turns for wave in (turn.sin(), turn.cos())], dim=-1)
        return torch.cat([super().forward(values), waves * self.field.known(values)[..., None]], dim=-1)


class CategoryEncoding(FieldEncoding):
    """A trained vector for each class; the first one says unknown."""

    def __init__(self, field: CategoryField) -> None:
        super().__init__()
        self.channels, self.count = field.channels, field.num_outputs
        self.embedding = embedding(1 + self.count, field.channels)

    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m c"]:
        """Return features [B, M, C] of class numbers [B, M]; -1 and -100 are unknown."""
        numbers, known = class_numbers(_unless(mask, values, UNKNOWN), self.count)
        return self.embedding(torch.where(known, numbers + 1, torch.zeros_like(numbers)))


def _unless(mask: Bool[Tensor, "b m"] | None, values: Tensor, unknown: int | float) -> Tensor:
    """Return values where the mask says that there are any, and the unknown one elsewhere."""
    return values if mask is None else torch.where(mask, values, torch.full_like(values, unknown))


def _parsed(value: Any) -> Any:
    """Return a number, also of text; NaN where it is unknown."""
    return float("nan") if is_missing(value := scalar(value)) else number(value)
