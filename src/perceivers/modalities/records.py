"""Sets of typed records: units of a game, rows of a table.

A raw batch is {field: [B, M], ..., "mask": [B, M]}, B samples of up to M records. A field holds numbers in the data's
units (NaN: unknown) or class numbers (-1: unknown). The mask is True where there is a record.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core.arguments import check_names
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import plain_linear, trained_vector
from perceivers.core.precision import floats, precise
from perceivers.core.tokens import Segment
from perceivers.media.drawing import show_text
from perceivers.modalities.class_rows import Classes, ClassRows, RowGroup
from perceivers.modalities.fields import CategoryField, Column, Field, NumberField, is_missing
from perceivers.modalities.modality import (
    NOMINAL,
    Ablation,
    Modality,
    Raw,
    input_of,
    mean_where,
    named,
    pad_sequences,
    rounded,
    shown,
)
from perceivers.modalities.points import Indices, Points
from perceivers.modalities.queries import InputQuery, LearnedQuery
from perceivers.modalities.raw import check_keys
from perceivers.modalities.table_cells import WHOLE_ROW, Files, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

LINES = 12
"""Most lines in a plot of records."""


@dataclass(frozen=True)
class Records(Modality):
    """A set of records: a list of dictionaries, a dictionary of columns, or one of single values (a set of one).

    A value that is None, NaN or absent is unknown.
    """

    fields: dict[str, Field]
    """Type of each field, by name."""
    tokens: Literal["record", "field"] = "record"
    """As an input: a token for each record, or for each field of each record (not linked to its record)."""
    channels: int = 64
    """As an input with tokens = "field": width of a token."""
    combine: Literal["concatenate", "sum"] = "concatenate"
    """As an input with tokens = "record": the fields' features are concatenated, or, equally wide, added."""
    coordinate_fields: tuple[str, ...] = ()
    """As an input: fields of numbers or dates (in days) that give no features, but the coordinate along the axis of the
    same name, for rotary positions. A record whose coordinate is unknown is not read."""
    max_records: int | None = None
    """Largest number of records in a set; None: any number for an input or an output with `of`, otherwise one."""
    of: str | None = None
    """As an output: the records input whose tokens are the queries, one for each record; None: trained queries."""
    query_channels: int = 256
    """As an output without `of`: width of the trained queries."""
    field_mask_prob: dict[str, float] = dataclasses.field(default_factory=dict)
    """As an input, in training: probability by field that a value is masked, that is, becomes unknown."""
    field_mask_at_eval: bool = False
    """As an input: mask values in evaluation too (never in prediction)."""
    masked_only: bool = False
    """As an output with `of`: only values that are unknown in the input count in the loss and the metrics."""
    read_fields: ClassVar[tuple[str, ...]] = ("fields",)
    preprocess_needs_fit: ClassVar[bool] = False
    kind: Literal["records"] = "records"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fields:
            raise ValueError("records need at least one field, e.g. fields={'health': NumberField()}")
        if "mask" in self.fields:
            raise ValueError("a field cannot be called 'mask', the name of the records' mask: give it another name")
        check_names("field in field_mask_prob:", list(self.field_mask_prob), self.fields)
        self._check_coordinates()
        if self.combine == "sum" and self.tokens != "record":
            raise ValueError("combine: sum adds the fields of a record: it needs tokens: record")
        if self.masked_only and self.of is None:
            raise ValueError("masked_only needs `of`, the input whose values are masked")

    def read(self, cell: Any, files: Files) -> dict[str, list[Any]]:
        """Parse a list of objects, an object of lists, or (under the key "*") a whole row as a set of one record."""
        columns = self._columns(plain(cell))
        return {name: [self._read(name, one) for one in columns[name]] for name in self.fields}

    @property
    def is_fitted(self) -> bool:
        """True if all fields are fitted."""
        return all(field.is_fitted for field in self.fields.values())

    def fit(self, values: Iterable[Any]) -> "Records":
        """Fit the statistics or classes of each field; ValueError for a field whose values are all unknown."""
        sets = [self._columns(value) for value in values]
        if not sets:
            return self
        fitted = {name: self._fitted(name, [columns[name] for columns in sets]) for name in self.fields}
        return replace(self, fields=fitted)

    @property
    def vocabularies(self) -> Mapping[str, Classes]:
        """The classes of each category that is fitted, by field."""
        categories = {name: field for name, field in self.fields.items() if isinstance(field, CategoryField)}
        return {name: field.classes for name, field in categories.items() if field.classes}

    def with_vocabulary(self, field: str, classes: Classes) -> "Records":
        """Return the spec with other classes of a category."""
        return replace(self, fields={**self.fields, field: replace(cast(Any, self.fields[field]), classes=classes)})

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
        """Return a column [M] for each field: float32 or class numbers."""
        columns = self._columns(value)
        prepared = {
            name: named(f"field {name!r}", field.preprocess, columns[name]) for name, field in self.fields.items()
        }
        count = _count(prepared)
        if self.max_records is not None and count > self.max_records:
            raise ValueError(f"{count} records are more than max_records = {self.max_records}: raise it, or give fewer")
        # Mask values.
        for name, probability in self.field_mask_prob.items() if training or self.field_mask_at_eval else ():
            prepared[name] = self._without(name, prepared[name], rng.random(count) < probability)
        return prepared

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """Return all records; with `of`, one for each record of the input (None without the input)."""
        target = replace(self, field_mask_prob={}).preprocess(value, rng, training=False)
        # Trained queries: at most as many records as there are queries.
        if self.of is None:
            if _count(target) > self._num_queries:
                raise ValueError(f"{_count(target)} records, but {self._num_queries} queries: raise max_records")
            return target
        # The input's tokens as queries: the input must have the same records.
        source = prepared.get(self.of)
        if source is not None and _count(source) != _count(target):
            raise ValueError(f"{_count(target)} records, but {_count(source)} in input {self.of!r}, their queries")
        if source is None or not (self.masked_only and self.is_fitted):  # no class is known before the fit
            return None if source is None else target
        # Values that are known in the input do not count: in the target they become unknown.
        known = {name: field.known(torch.from_numpy(source[name])).numpy() for name, field in self.fields.items()}
        return {name: self._without(name, target[name], known[name]) for name in self.fields}

    def collate(self, values: Sequence[Any]) -> Raw:
        """Return a batch, padded to the largest set."""
        batch = {}
        for name in self.fields:
            batch[name], mask = pad_sequences([None if value is None else value[name] for value in values])
        return {**batch, "mask": mask}

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return a list of records; for a set of one, its fields as columns."""
        count = _count(sample)
        records = [{name: field.cell(sample[name][i]) for name, field in self.fields.items()} for i in range(count)]
        return records[0] if self.of is None and self._num_queries == 1 else {"": records}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the change of each number, or of the log-probability of each predicted class, by field."""
        changes = {name: rounded(field.attribution(whole[name], without[name])) for name, field in self.fields.items()}
        single = self.of is None and self._num_queries == 1
        return {name: change[0] for name, change in changes.items()} if single else changes

    def ablations(self, raw: Raw) -> Mapping[str, Ablation | list[Ablation]]:
        """Return the batch with each field in turn unknown (a set of one), or without each record in turn ("each")."""
        columns = {name: raw[name] for name in self.fields}
        first = next(iter(columns.values()))
        mask = raw["mask"] if "mask" in raw else torch.ones_like(first, dtype=torch.bool)
        # Without each record: its mask is False.
        if self.max_records != 1 and self.key != WHOLE_ROW:
            others = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
            return {"each": [Ablation({**raw, "mask": mask & rest}, mask[:, i]) for i, rest in enumerate(others)]}
        # Without each field: its values are unknown.
        unknown = {name: torch.from_numpy(field.preprocess([None])) for name, field in self.fields.items()}
        there = {name: (self.fields[name].known(columns[name]) & mask).any(dim=1) for name in columns}
        return {
            name: Ablation({**raw, name: unknown[name].to(x).expand_as(x)}, there[name]) for name, x in columns.items()
        }

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return `max_records` or NOMINAL records whose features are all unknown, with coordinates of 0."""
        size = (batch_size, self.max_records or NOMINAL)
        values = {name: 0.0 if name in self.coordinate_fields else None for name in self.fields}
        columns = {name: torch.from_numpy(self.fields[name].preprocess([value])) for name, value in values.items()}
        return {name: column.to(device).repeat(size) for name, column in columns.items()}

    def build_input(self) -> InputAdapter:
        """Build the adapter that gives a token for each record, or for each field of each record."""
        return RecordsInput(self) if self.tokens == "record" else FieldsInput(self)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build the queries: the input's tokens, or a trained query for each record."""
        if self.of is None:
            return LearnedQuery(self._num_queries, self.query_channels)
        source = input_of(inputs, self.of)
        if not isinstance(source, RecordsInput):
            raise ValueError(f"of = {self.of!r} must name a records input with tokens: record, a token for each record")
        return InputQuery(self.of, source.channels)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "RecordsOutput":
        """Build the adapter from decoded queries to the fields of records."""
        return RecordsOutput(self, channels)

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Names of the arrays of a raw target."""
        return (*self.fields, "mask")

    def points(self, target: Raw) -> Points | None:
        """Return the first queries, as many as the largest target has records; with `of`, None for all queries."""
        mask = target["mask"]
        return Indices(torch.arange(mask.shape[1], device=mask.device)) if self.of is None else None

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean over the fields of each field's mean loss over its known values.

        The loss of a category is its cross entropy, that of a number the squared difference in units of `std`.
        """
        losses = []
        for name, field in self.fields.items():
            predicted = _at_target(prediction[name], target)
            if target[name].shape != predicted.shape[:2]:
                raise ValueError(f"{name} of shape {tuple(target[name].shape)}, expected {tuple(predicted.shape[:2])}")
            loss = field.loss(predicted, target[name])
            losses.append(mean_where(loss, self._known(name, target)))
        return torch.stack(losses).mean()

    def metrics(self) -> "dict[str, Metric]":
        """Return the accuracy over all categories together; without categories the RMSE, in units of `std`."""
        from torchmetrics import MeanSquaredError
        from torchmetrics.classification import MulticlassAccuracy

        if not self._categories:
            return {"rmse": MeanSquaredError(squared=False)}
        most = max(self.fields[name].num_outputs for name in self._categories)
        return {"accuracy": MulticlassAccuracy(num_classes=max(most, 2), average="micro")}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return the known values of all categories, else of all numbers in units of `std`, flat."""
        pairs = [self._metric_inputs_of(name, prediction, target) for name in self._categories or self.fields]
        return torch.cat([predicted for predicted, _ in pairs]), torch.cat([true for _, true in pairs])

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw a table with a row for each record, or for each field of a single record; at most LINES rows."""
        exists = sample["mask"].tolist() if "mask" in sample else [True] * _count(sample)
        columns = [
            [name, *(field.show(value) for value, there in zip(sample[name], exists, strict=True) if there)]
            for name, field in self.fields.items()
        ]
        rows = columns if sum(exists) == 1 else list(zip(*columns, strict=True))
        widths = [max(map(len, column)) for column in zip(*rows[:LINES], strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)) for row in rows[:LINES]]
        show_text(axes, "\n".join([*lines, f"and {len(rows) - LINES} more"] if len(rows) > LINES else lines))

    def for_plot(self, prediction: Raw, target: Raw) -> Raw:
        """Return the predicted records that the target has, with its mask."""
        count = len(target["mask"])
        return {**{name: values[:count] for name, values in prediction.items()}, "mask": target["mask"]}

    @property
    def features(self) -> dict[str, Field]:
        """Type of each field that gives an input features, by name."""
        return {name: field for name, field in self.fields.items() if name not in self.coordinate_fields}

    def _check_coordinates(self) -> None:
        names = check_names("field in coordinate_fields:", self.coordinate_fields, self.fields)
        if wrong := [name for name in names if not isinstance(self.fields[name], NumberField)]:
            kind = self.fields[wrong[0]].kind
            raise ValueError(f"coordinate_fields: {wrong[0]!r} is of kind {kind}: a coordinate is a number or a date")
        if len({*names}) < len(names) or not self.features:
            raise ValueError(f"coordinate_fields = {names} must name each field once, and leave another for features")
        if masked := [name for name in names if name in self.field_mask_prob]:
            raise ValueError(f"field_mask_prob: {masked[0]!r} is a coordinate: only features can be masked")

    @property
    def _num_queries(self) -> int:
        return self.max_records or 1

    @property
    def _categories(self) -> list[str]:
        return [name for name, field in self.fields.items() if isinstance(field, CategoryField)]

    def _columns(self, value: Any) -> dict[str, Column]:
        """Return the values of each field, from any of the forms that a set of records may have."""
        if isinstance(value, Mapping):
            lengths = {name: len(value[name]) for name in self.fields if name in value and np.ndim(value[name]) == 1}
            if lengths:
                return self._checked_columns(value, lengths)
            value = [value]
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise ValueError(f"records must come in a list of dictionaries, not as {type(value).__name__}")
        for record in value:
            if not isinstance(record, Mapping):
                raise ValueError(f"a record must be a dictionary of its fields, not {type(record).__name__}")
        return {name: [record.get(name) for record in value] for name in self.fields}

    def _checked_columns(self, value: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Column]:
        single = [name for name in self.fields if name not in lengths and value.get(name) is not None]
        if single or len(set(lengths.values())) > 1:
            sizes = [f"{name} has {length}" for name, length in lengths.items()]
            sizes += [f"{name} is a single value" for name in single]
            raise ValueError(f"columns must be equally long: {', '.join(sizes)}")
        count = next(iter(lengths.values()))
        return {name: value[name] if name in lengths else [None] * count for name in self.fields}

    def _read(self, name: str, cell: Any) -> Any:
        return None if is_missing(cell) else named(f"field {name!r}", self.fields[name].read, cell)

    def _without(self, name: str, column: np.ndarray, where: np.ndarray) -> np.ndarray:
        """Return the column of a field with the unknown value where `where` is True."""
        return np.where(where, self.fields[name].preprocess([None]), column)

    def _fitted(self, name: str, columns: Sequence[Column]) -> Field:
        known = [value for column in columns for value in column if not is_missing(value)]
        field = self.fields[name]
        if not known and not field.is_fitted:
            raise ValueError(f"field {name!r} is unknown in all records: check its name, or give what would be fitted")
        return cast(Field, named(f"field {name!r}", field.fit, known)) if known else field

    def _known(self, name: str, target: Raw) -> Bool[Tensor, "b m"]:
        return self.fields[name].known(target[name]) & target["mask"]

    def _metric_inputs_of(self, name: str, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        field, known = self.fields[name], self._known(name, target)
        predicted, true = _at_target(prediction[name], target)[known], target[name][known]
        if isinstance(field, CategoryField):
            return predicted.argmax(dim=-1), true
        return field.normalise(predicted), field.normalise(true)

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Records, list[Any]]":
        """Return ragged sets, as dictionaries and as columns, with unknown values; one set is missing."""
        types = CategoryField(classes=("probe", "stalker", "zealot"), channels=5)
        units = [{"type": "probe", "health": 20.0}, {"type": "zealot"}, {"type": None, "health": 45.0}]
        columns = {"type": ["stalker", "probe"], "health": [80.0, float("nan")]}
        return cls({"type": types, "health": NumberField()}, max_records=3, query_channels=7), [units, columns, None]


class RecordsInput(InputAdapter):
    """Adapter with a token for each record: the features of its fields, concatenated or added."""

    is_set = True

    def __init__(self, spec: Records) -> None:
        super().__init__()
        self.spec, self.encodings = spec, FieldEncodings(spec)
        widths = self.encodings.widths
        if spec.combine == "sum" and len({*widths}) > 1:
            found = ", ".join(f"{name} has {width}" for name, width in zip(spec.features, widths, strict=True))
            raise ValueError(f"combine: sum needs fields of equally many channels: {found}")
        self.channels = widths[0] if spec.combine == "sum" else sum(widths)

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the parameters that stand for classes, by name of the parameter."""
        return self.encodings.class_rows("encodings")

    def forward(self, raw: Raw) -> Segment:
        """Return the tokens in the order of the records, which the model does not see."""
        features = self.encodings(raw)
        content = reduce(torch.add, features) if self.spec.combine == "sum" else torch.cat(features, dim=-1)
        mask, coordinates = located(self.spec, raw)
        return Segment(content, mask=mask, coordinates=coordinates or None)


class FieldsInput(InputAdapter):
    """Adapter with a token for each field of each record: a linear map of its features plus the field's embedding."""

    is_set = True

    def __init__(self, spec: Records) -> None:
        super().__init__()
        self.spec, self.channels = spec, spec.channels
        self.encodings = FieldEncodings(spec)
        self.maps = nn.ModuleList(plain_linear(width, spec.channels) for width in self.encodings.widths)
        self.names = trained_vector(len(spec.features), spec.channels)

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the parameters that stand for classes, by name of the parameter."""
        return self.encodings.class_rows("encodings")

    def forward(self, raw: Raw) -> Segment:
        """Return the tokens record by record, within a record in the order of the fields."""
        features = zip(self.maps, self.encodings(raw), strict=True)
        tokens = torch.stack([linear(x.to(self.names.dtype)) for linear, x in features], dim=2) + self.names
        mask, coordinates = located(self.spec, raw)
        mask = None if mask is None else repeat(mask, "b m -> b (m f)", f=len(self.maps))
        along = {name: repeat(x, "b m -> b (m f)", f=len(self.maps)) for name, x in coordinates.items()}
        content = rearrange(tokens, "b m f c -> b (m f) c")
        return Segment(content, mask=mask, coordinates=along or None)


def located(spec: Records, raw: Raw) -> tuple[Bool[Tensor, "b m"] | None, dict[str, Float[Tensor, "b m"]]]:
    """Return which records are read (None: all), and their coordinates by axis, 0 where a record is not read."""
    mask, coordinates = raw.get("mask"), {name: precise(floats(raw[name])) for name in spec.coordinate_fields}
    for x in coordinates.values():
        mask = x.isfinite() if mask is None else mask & x.isfinite()
    return mask, {name: x if mask is None else torch.where(mask, x, 0) for name, x in coordinates.items()}


class FieldEncodings(nn.Module):
    """Encodings of the fields with features, from raw columns by name to the features of each field."""

    def __init__(self, spec: Records) -> None:
        super().__init__()
        self.columns, self.names = list(spec.fields), list(spec.features)
        # A list, not a ModuleDict: a field's name may hold dots or be the name of a method.
        encodings = [field.build_encoding() for field in spec.features.values()]
        self.fields = nn.ModuleList(encodings)
        self.widths = [encoding.channels for encoding in encodings]

    def class_rows(self, place: str) -> dict[str, ClassRows]:
        """Return the rows of the parameters that stand for classes; `place`: the name of this module."""
        encodings: Any = self.fields
        return {
            f"{place}.fields.{number}.{parameter}": rows.within(name)
            for number, (name, encoding) in enumerate(zip(self.names, encodings, strict=True))
            for parameter, rows in encoding.class_rows.items()
        }

    def forward(self, raw: Raw) -> list[Float[Tensor, "b m _"]]:
        """Return the features in the order of the fields; ValueError if a field is absent."""
        if not isinstance(raw, Mapping):
            raise ValueError(f"{shown(raw)}, expected a dictionary of {', '.join(self.columns)} and mask, each [B, M]")
        check_keys(raw, self.columns, ["mask"])
        shapes = {name: tuple(x.shape) for name, x in raw.items()}
        if any(len(shape) != 2 or shape[1] != shapes[self.columns[0]][1] for shape in shapes.values()):
            raise ValueError(f"columns of shapes {shapes}, expected [B, M] of each")
        mask = raw.get("mask")
        return [
            named(f"field {name!r}", encoding, raw[name], mask)
            for name, encoding in zip(self.names, self.fields, strict=True)
        ]


class RecordsOutput(OutputAdapter):
    """Adapter from decoded queries to the fields of records: numbers in the data's units, logits of classes."""

    def __init__(self, spec: Records, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.widths = [field.num_outputs for field in spec.fields.values()]
        self.head = plain_linear(channels, sum(self.widths))

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the head: the classes of each category, and one row for each number."""
        groups = [
            RowGroup(name, field.classes) if isinstance(field, CategoryField) else RowGroup(name, others=width)
            for (name, field), width in zip(self.spec.fields.items(), self.widths, strict=True)
        ]
        rows = ClassRows(0, tuple(groups))
        return {"head.weight": rows, "head.bias": rows} if self.spec.vocabularies else {}

    def forward(self, x: Float[Tensor, "b o e"], queries: Segment) -> dict[str, Tensor]:
        """Return [B, O] or [B, O, classes] by field."""
        parts = zip(self.spec.fields.items(), x.split(self.widths, dim=-1), strict=True)
        return {name: field.arrange(part) for (name, field), part in parts}


def _count(columns: Mapping[str, Any]) -> int:
    return len(next(iter(columns.values())))


def _at_target(prediction: Float[Tensor, "b o ..."], target: Mapping[str, Tensor]) -> Float[Tensor, "b m ..."]:
    # There are more queries than records if the largest input of a batch belongs to a sample without a target.
    return prediction[:, : target["mask"].shape[1]]
