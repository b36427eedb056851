"""Types of the fields of a record: numbers, categories and dates."""

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

from perceivers.core.checks import SIZE, check_fields, check_ranges
from perceivers.core.precision import floats, precise
from perceivers.modalities.class_rows import ClassRows, RowGroup
from perceivers.modalities.embeddings import embedding
from perceivers.modalities.label import Label, check_classes, counted
from perceivers.modalities.modality import check_units, denormalised, known_units, normalised, rounded, unit_std
from perceivers.modalities.position_encodings import Fourier, Positions
from perceivers.modalities.raw import as_float32, is_missing
from perceivers.modalities.scalars import UNKNOWN, class_name, class_numbers, class_value, names_of, scalar
from perceivers.modalities.table_cells import number

DAY = 86_400
"""Seconds of a day."""

ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)
"""Day 0, a Saturday."""

CYCLES = (365.2425, 7.0, 1.0)
"""Lengths of a year, a week and a day, in days."""

Column = Sequence[Any] | np.ndarray
"""Values of one field in several records, as a data set holds them."""


class FieldType(ABC):
    """The interface of a field's type. Shapes: B samples, M records, E numbers decoded for a value."""

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """True if nothing remains to be fitted to data."""

    @abstractmethod
    def read(self, cell: Any) -> Any:
        """Parse a cell of a table, never None; ValueError if it does not fit the type."""

    @abstractmethod
    def fit(self, values: Sequence[Any]) -> "FieldType":
        """Return the type with statistics or classes fitted to known values."""

    @abstractmethod
    def preprocess(self, values: Column) -> np.ndarray:
        """Return [M] raw values, as `known` and the encoding take them; None and NaN are unknown."""

    @abstractmethod
    def known(self, values: Tensor) -> Bool[Tensor, "*b"]:
        """Return True where a raw value is known."""

    @abstractmethod
    def build_encoding(self) -> "FieldEncoding":
        """Build the module that turns raw values into features."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """E: the number of decoded numbers that make one value."""

    @abstractmethod
    def arrange(self, decoded: Float[Tensor, "b m e"]) -> Tensor:
        """Return the raw output from the decoded numbers."""

    @abstractmethod
    def loss(self, prediction: Tensor, target: Tensor) -> Float[Tensor, "b m"]:
        """Return the loss of each record; finite where the target is unknown."""

    @abstractmethod
    def cell(self, prediction: Tensor) -> Any:
        """Return one predicted value as a plain value of a table."""

    @abstractmethod
    def attribution(self, whole: Tensor, without: Tensor) -> Float[Tensor, " m"]:
        """Return the change of each predicted value: the prediction minus the one `without` part of the inputs."""

    @abstractmethod
    def show(self, value: Tensor) -> str:
        """Format one raw or predicted value in a few characters."""


class FieldEncoding(nn.Module, ABC):
    """Encoding of the raw values [B, M] of one field as features [B, M, channels]."""

    channels: int

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the parameters that stand for classes, by name of the parameter."""
        return {}

    @abstractmethod
    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m c"]:
        """Return features, finite for unknown values too; a value is also unknown where the mask is False."""


@dataclass(frozen=True)
class NumberField(FieldType):
    """A number: encoded as itself and a one where it is known, decoded as itself."""

    mean: float | None = None
    """Mean for normalisation. Fitted if None."""
    std: float | None = None
    """Standard deviation for normalisation. Fitted if None."""
    positions: Fourier | None = None
    """As an input: Fourier features of the number in units of `std`, where it depends on fine detail; None: none."""
    kind: Literal["number"] = "number"
    """Name in schema files."""

    def __post_init__(self) -> None:
        check_units(self.mean, self.std)

    @property
    def is_fitted(self) -> bool:
        """True if mean and standard deviation are known."""
        return self.mean is not None and self.std is not None

    @property
    def num_outputs(self) -> int:
        """1: one decoded number makes one value."""
        return 1

    def read(self, cell: Any) -> float:
        """Parse a number."""
        return number(cell)

    def fit(self, values: Sequence[Any]) -> "NumberField":
        """Fit mean and standard deviation."""
        numbers = as_float32([_parsed(value) for value in values if not is_missing(value)]).astype(np.float64)
        mean = numbers.mean() if self.mean is None else self.mean
        std = unit_std(numbers.std()) if self.std is None else self.std
        return replace(self, mean=float(mean), std=float(std))

    def preprocess(self, values: Column) -> np.ndarray:
        """Return the numbers as float32; None becomes NaN."""
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            return as_float32(values)
        return as_float32([_parsed(value) for value in values])

    def known(self, values: Tensor) -> Bool[Tensor, "*b"]:
        """Return True where a number is finite."""
        return values.isfinite()

    def build_encoding(self) -> "NumberEncoding":
        """Build the encoding: the number in units of `std`, and a one where it is known."""
        return NumberEncoding(self)

    def normalise(self, values: Tensor) -> Tensor:
        """Convert numbers from the data's units to the network's."""
        return normalised(values, self.mean, self.std)

    def arrange(self, decoded: Float[Tensor, "b m 1"]) -> Float[Tensor, "b m"]:
        """Return the numbers in the data's units."""
        return denormalised(decoded[..., 0], self.mean, self.std)

    def loss(self, prediction: Tensor, target: Tensor) -> Float[Tensor, "b m"]:
        """Return the squared difference in units of `std`; 0 where the target is unknown."""
        true = torch.where(self.known(target), floats(target), prediction)
        return (self.normalise(prediction) - self.normalise(true)) ** 2

    def cell(self, prediction: Tensor) -> Any:
        """Return the number."""
        return rounded(prediction)

    def attribution(self, whole: Tensor, without: Tensor) -> Float[Tensor, " m"]:
        """Return the change of each number."""
        return whole - without

    def show(self, value: Tensor) -> str:
        """Format the number with four digits."""
        return f"{float(value):.4g}" if bool(self.known(value)) else "?"


@dataclass(frozen=True)
class CategoryField(FieldType):
    """One of several classes; a value of any other class is unknown, since new classes turn up after training."""

    classes: int | tuple[str, ...] = ()
    """Number of classes, or their names. Fitted (sorted) if empty."""
    channels: int = 16
    """As an input: width of the embedding of each class, and of the embedding for unknown values."""
    kind: Literal["category"] = "category"
    """Name in schema files."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, {"channels": SIZE})
        check_classes(self.classes)

    @property
    def is_fitted(self) -> bool:
        """True if the classes are known."""
        return bool(self.classes)

    @property
    def num_outputs(self) -> int:
        """Number of classes."""
        count = self.classes if isinstance(self.classes, int) else len(self.classes)
        if not count:
            raise ValueError("a category without classes: give classes=, or fit the schema to data first")
        return count

    def read(self, cell: Any) -> str:
        """Return the name of the class; a number as text."""
        return class_name(cell)

    def fit(self, values: Sequence[Any]) -> "CategoryField":
        """Fit the classes: the names that occur, sorted; whole numbers stay numbers (`Label.fit`)."""
        return replace(self, classes=Label(classes=self.classes).fit(values).classes)

    def preprocess(self, values: Column) -> np.ndarray:
        """Return class numbers, -1 where unknown."""
        if isinstance(values, np.ndarray) and values.dtype.kind == "U":
            distinct, index = np.unique(values, return_inverse=True)
            return self.preprocess(distinct.tolist())[index]  # each name is looked up once
        names = {} if isinstance(self.classes, int) else {name: index for index, name in enumerate(self.classes)}
        return np.array([self._number(value, names) for value in values], np.int64)

    def known(self, values: Tensor) -> Bool[Tensor, "*b"]:
        """Return True for a class number, False for -1 and -100."""
        return class_numbers(values, self.num_outputs)[1]

    def build_encoding(self) -> "CategoryEncoding":
        """Build the encoding: an embedding of the class."""
        return CategoryEncoding(self)

    def arrange(self, decoded: Float[Tensor, "b m e"]) -> Float[Tensor, "b m e"]:
        """Return the logits as they are."""
        return decoded

    def loss(self, prediction: Float[Tensor, "b m e"], target: Int[Tensor, "b m"]) -> Float[Tensor, "b m"]:
        """Return the cross entropy."""
        numbers, _ = class_numbers(target, self.num_outputs)
        return F.cross_entropy(rearrange(prediction, "b m e -> b e m"), numbers, reduction="none")

    def cell(self, prediction: Tensor) -> str:
        """Return the most probable class."""
        return self.show(prediction)

    def attribution(self, whole: Tensor, without: Tensor) -> Float[Tensor, " m"]:
        """Return the change of the log-probability of the class that is predicted from all inputs."""
        change = whole.float().log_softmax(dim=-1) - without.float().log_softmax(dim=-1)
        return change.gather(-1, whole.argmax(dim=-1, keepdim=True))[..., 0]

    def show(self, value: Tensor) -> str:
        """Return the name of the class; of logits, of the most probable class."""
        number = int(value.argmax() if value.ndim else value)
        if number < 0:
            return "?"
        return str(number) if isinstance(self.classes, int) else self.classes[number]

    def _number(self, value: Any, names: Mapping[str, int]) -> int:
        if (known := class_value(value)) is None:  # even if a class is called "None"
            return UNKNOWN
        if not isinstance(self.classes, int):
            return next((names[name] for name in names_of(value, known) if name in names), UNKNOWN)
        with suppress(ValueError):
            return counted(known, self.classes)
        return UNKNOWN


@dataclass(frozen=True)
class DateField(NumberField):
    """A moment, to about a minute: ISO text, a date or days since 2000. Encoded with its phase in CYCLES."""

    kind: Literal["date"] = "date"  # type: ignore[assignment]
    """Name in schema files."""

    def read(self, cell: Any) -> float:
        """Return days since the beginning of 2000 UTC; a moment without a time zone is taken for UTC."""
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
        """Fit mean and standard deviation of the days."""
        fitted = super().fit([self.read(value) for value in values])
        assert isinstance(fitted, DateField)
        return fitted

    def preprocess(self, values: Column) -> np.ndarray:
        """Return days as float32; None becomes NaN."""
        return np.asarray([None if is_missing(value) else self.read(value) for value in values], np.float32)

    def build_encoding(self) -> "DateEncoding":
        """Build the encoding: the one of a number, and the phase in the year, the week and the day."""
        return DateEncoding(self)

    def cell(self, prediction: Tensor) -> str:
        """Return ISO text, to the second."""
        return self.show(prediction)

    def show(self, value: Tensor) -> str:
        """Format the moment as ISO text, to the second; "?" if it is unknown."""
        with suppress(OverflowError, ValueError):
            return (ORIGIN + timedelta(days=float(value))).strftime("%Y-%m-%dT%H:%M:%S")
        return "?"


Field = NumberField | CategoryField | DateField


class NumberEncoding(FieldEncoding):
    """Encoding of a number: in units of `std`, a one where it is known, then `positions`; all 0 where it is unknown."""

    def __init__(self, field: NumberField) -> None:
        super().__init__()
        self.field = field
        self.positions = None if field.positions is None else Positions(1, None, field.positions)
        self.channels = 2 + (0 if self.positions is None else self.positions.channels)

    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m c"]:
        """Return features [B, M, C], finite for any values."""
        number, known = known_units(_unless(mask, floats(values), torch.nan), self.field.mean, self.field.std)
        features = torch.stack([number, known.to(number.dtype)], dim=-1)
        if self.positions is None:
            return features
        waves = self.positions.at(number[..., None]) * known[..., None]
        return torch.cat([features, waves.to(features.dtype)], dim=-1)


class DateEncoding(NumberEncoding):
    """Encoding of a date: the one of a number; then sine and cosine of its phase in each cycle, 0 where unknown."""

    def __init__(self, field: NumberField) -> None:
        super().__init__(field)
        self.channels += 2 * len(CYCLES)

    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m c"]:
        """Return features [B, M, C], finite for any values."""
        values = _unless(mask, precise(floats(values)), torch.nan)
        phases = [2 * torch.pi * values.nan_to_num(0.0, 0.0, 0.0) / days for days in CYCLES]
        waves = torch.stack([wave for phase in phases for wave in (phase.sin(), phase.cos())], dim=-1)
        return torch.cat([super().forward(values), waves * self.field.known(values)[..., None]], dim=-1)


class CategoryEncoding(FieldEncoding):
    """Encoding of a category: an embedding of each class; the first embedding is for unknown values."""

    def __init__(self, field: CategoryField) -> None:
        super().__init__()
        self.channels, self.count, self.classes = field.channels, field.num_outputs, field.classes
        self.embedding = embedding(1 + self.count, field.channels)

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the embedding: the first one is for unknown values."""
        return {"embedding.weight": ClassRows(0, (RowGroup(classes=self.classes, others=1),))}

    def forward(self, values: Tensor, mask: Bool[Tensor, "b m"] | None = None) -> Float[Tensor, "b m c"]:
        """Return features [B, M, C] of class numbers [B, M]; -1 and -100 are unknown."""
        numbers, known = class_numbers(_unless(mask, values, UNKNOWN), self.count)
        return self.embedding(torch.where(known, numbers + 1, torch.zeros_like(numbers)))


def _unless(mask: Bool[Tensor, "b m"] | None, values: Tensor, unknown: int | float) -> Tensor:
    """Return the values where the mask is True, and `unknown` elsewhere."""
    return values if mask is None else torch.where(mask, values, torch.full_like(values, unknown))


def _parsed(value: Any) -> Any:
    """Return a number, parsed if it is text; NaN where it is unknown."""
    return float("nan") if is_missing(value := scalar(value)) else number(value)
