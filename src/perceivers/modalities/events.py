"""Events: marks of several types at irregular times, such as laboratory values, messages of sensors, or spikes.

A raw batch is {"time": [B, M], "type": [B, M], "value": [B, M], "mask": [B, M]}: B samples of up to M events. Times
count from `origin`, types are class numbers (-1: unknown), values are marks in the units of their type (NaN: unknown;
left out with `marks: false`). The mask is True where there is an event.

As an output: the mark at any time, of any type. When the next event comes, and of which type, is another question
(of point processes), which this output does not answer; `numbers` can predict a count of each type in a window.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from perceivers.core.arguments import near, require
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import plain_linear
from perceivers.core.precision import floats, precise, zero_where_absent
from perceivers.core.reading import Encoded
from perceivers.core.tokens import Segment
from perceivers.media.drawing import drawable
from perceivers.modalities.class_rows import Classes, ClassRows, class_names
from perceivers.modalities.event_columns import PARTS, as_numbers, distinct, items, listed
from perceivers.modalities.fields import CategoryEncoding, CategoryField, DateField
from perceivers.modalities.modality import (
    LARGEST,
    NOMINAL,
    Ablation,
    Modality,
    Raw,
    check_subsample,
    check_units,
    mean_where,
    pad_sequences,
    random_members,
    rounded,
    same_shape,
    shown,
)
from perceivers.modalities.places import NamedAxes, check_axis_names
from perceivers.modalities.points import Coordinates, Points
from perceivers.modalities.position_encodings import (
    Fourier,
    Positions,
    bounds_to_unit,
    sound_coordinates,
    sound_vectors,
)
from perceivers.modalities.raw import as_float32, check_keys, is_missing
from perceivers.modalities.scalars import UNKNOWN
from perceivers.modalities.scores import root_mean_square
from perceivers.modalities.table_cells import Files, plain
from perceivers.modalities.type_units import by_name, known_or_own, of_type, statistics_by_type

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

TIME, TYPE = "time of an event", "type of an event"
"""Axes that carry the time and the type number of a query to the output; rotary positions do not act on them."""

MOST_COLOURS = 10
"""Largest number of types whose colours a plot explains."""

FURTHEST = 1000
"""Largest time, in spans of a set of events: 32 bits then tell 16,000 times of a span apart."""


@dataclass(frozen=True)
class Events(Modality):
    """A set of events: a list of {"time", "type", "value"}, of [time, type, value], or a dictionary of columns.

    A value, or a type, that is None, NaN or absent is unknown; so is a type that did not occur in training, and the
    value of an event of an unknown type.
    """

    classes: int | tuple[str, ...] = ()
    """Types of events: their number, or their names. Fitted (sorted) if empty."""
    channels: int = 64
    """Width of the embedding of each type, and of the embedding for unknown types."""
    marks: bool = True
    """True: events have values, which an output needs; False: values are not read."""
    dates: bool = False
    """True: times are dates, which become days since the beginning of 2000 UTC."""
    origin: float = 0.0
    """Time at which raw batches and coordinates are 0; a time near all others keeps the precision of large times."""
    bounds: tuple[float, float] | None = None
    """Earliest and latest time after `origin`, mapped to -1 and 1 for position features. Fitted if None."""
    positions: Fourier | None = field(default_factory=lambda: Fourier(num_bands=8, spacing="octaves"))
    """Position features of the time; None: none."""
    axis_names: tuple[str, ...] = ()
    """Name of the axis along which events have their time after `origin` as a coordinate, for rotary positions."""
    subsample: tuple[float, float] = (1.0, 1.0)
    """As an input, in training: range of the random share of events that each sample keeps, at least one event."""
    subsample_at_eval: bool = False
    """As an input: subsample in evaluation too (never in prediction)."""
    mean: tuple[float, ...] | None = None
    """Mean of the values of each type, or one for all types. Fitted if None."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the values of each type, or one for all types. Fitted if None."""
    score_types: bool = False
    """As an output: the error of each type is a metric too, in the units of the type."""
    read_fields: ClassVar[tuple[str, ...]] = ("marks", "dates")
    preprocess_needs_fit: ClassVar[bool] = False
    kind: Literal["events"] = "events"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axis_names(self.axis_names, 1)
        check_units(self.mean, self.std, self.num_types, "types")
        if self.positions is None and not self.axis_names:
            raise ValueError("events without positions: their times have no effect; give positions, or axis_names")
        if not -LARGEST <= self.origin <= LARGEST:
            raise ValueError(f"origin = {self.origin} must be a finite number")
        check_subsample(self.subsample)
        if self.bounds is not None and not -LARGEST <= self.bounds[0] <= self.bounds[1] <= LARGEST:
            raise ValueError(f"bounds = {self.bounds} must be two finite numbers, the lower one first")

    @property
    def types(self) -> CategoryField:
        """The types as a category."""
        return CategoryField(classes=self.classes, channels=self.channels)

    @property
    def num_types(self) -> int:
        """Number of known types; 0 before the fit."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def read(self, cell: Any, files: Files) -> dict[str, Any]:
        """Parse a list of events, or an object of lists."""
        return self._columns(plain(cell))

    @property
    def is_fitted(self) -> bool:
        """True if types, bounds, means and standard deviations are known."""
        units = (self.mean, self.std) if self.marks else ()
        return bool(self.classes) and None not in (self.bounds, *units)

    def fit(self, values: Iterable[Any]) -> "Events":
        """Fit the types, the bounds of the times, and mean and standard deviation of the values of each type."""
        sets = [] if self.is_fitted else [self._columns(value) for value in values]
        sets = [columns for columns in sets if len(columns["time"])]
        if not sets:
            return self
        kinds = dict.fromkeys(kind for columns in sets for kind in distinct(columns["type"]) if not is_missing(kind))
        if not (self.classes or kinds):
            raise ValueError("the type of all events is unknown: give classes, or the events' types")
        known = replace(self, classes=self.classes or self.types.fit(list(kinds)).classes)
        low, high = self._bounds([columns["time"] - self.origin for columns in sets])
        fitted = replace(known, bounds=self.bounds or (low, high))
        if not self.marks:
            return fitted
        numbers = np.concatenate([known.numbers(columns["type"]) for columns in sets])
        mean, std = statistics_by_type(numbers, np.concatenate([columns["value"] for columns in sets]), known.num_types)
        return replace(fitted, mean=self.mean or mean, std=self.std or std)

    @property
    def vocabularies(self) -> Mapping[str, Classes]:
        """The types, if they are fitted."""
        return {"": self.classes} if self.classes else {}

    def with_vocabulary(self, field: str, classes: Classes) -> "Events":
        """Return the spec with other types; a new one has the mean of the statistics of the others."""
        mean, std = (by_name(unit, self.classes, classes) for unit in (self.mean, self.std))
        return replace(self, classes=classes, mean=mean, std=std)

    def with_units_of(self, source: "Events") -> "Events":
        """Return the spec with the statistics of a source for the types that it knows, and its own for others."""
        known = class_names(source.classes)
        mean, std = (
            own if own is None or theirs is None else known_or_own(theirs, own, class_names(self.classes), known)
            for theirs, own in zip(
                (by_name(unit, source.classes, self.classes) for unit in (source.mean, source.std)),
                (self.mean, self.std),
                strict=True,
            )
        )
        return replace(self, mean=mean, std=std)

    def numbers(self, types: Sequence[Any] | np.ndarray) -> Int[np.ndarray, " m"]:
        """Return type numbers, -1 where a type is unknown."""
        kinds = distinct(types)
        found = dict(zip(kinds, self.types.preprocess(kinds).tolist(), strict=True))
        return np.array([found[kind] for kind in items(types)], np.int64)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
        """Return columns [M]: float32 times after `origin`, type numbers and float32 values."""
        columns = self._columns(value)
        prepared = {"time": as_float32(columns["time"] - self.origin), "type": self.numbers(columns["type"])}
        if self.marks:
            prepared["value"] = as_float32(columns["value"])
        return random_members(prepared, self.subsample, rng) if training or self.subsample_at_eval else prepared

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """Return all events."""
        return replace(self, subsample=(1.0, 1.0)).preprocess(value, rng, training=False)

    def collate(self, values: Sequence[Any]) -> Raw:
        """Return a batch, padded to the largest set."""
        batch = {}
        for name in self._parts:
            batch[name], mask = pad_sequences([None if value is None else value[name] for value in values])
        return {**batch, "mask": mask}

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return a list of {"time", "type", "value"}; an unknown type, and its value, is None."""
        rows = zip(rounded(sample["time"]), sample["type"].tolist(), rounded(sample["value"]), strict=True)
        return {"": [self._event(*row) for row in rows]}

    def name_of(self, number: int) -> str | int:
        """Return the name of a type; its number if types have no names."""
        return number if isinstance(self.classes, int) else self.classes[number]

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the change of each value."""
        return {"": rounded(whole["value"] - without["value"])}

    def ablations(self, raw: Raw) -> Mapping[str, list[Ablation]]:
        """Return the batch without each event in turn."""
        mask = raw["mask"] if "mask" in raw else torch.ones_like(raw["type"], dtype=torch.bool)
        others = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        return {"each": [Ablation({**raw, "mask": mask & rest}, mask[:, i]) for i, rest in enumerate(others)]}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return events of unknown types and values at the origin."""
        size = (batch_size, NOMINAL)
        value = {"value": torch.full(size, torch.nan, device=device)} if self.marks else {}
        unknown = torch.full(size, UNKNOWN, device=device)
        return {"time": torch.zeros(size, device=device), "type": unknown, **value}

    def dummy_points(self, batch_size: int, device: torch.device) -> Points:
        """Return points of the first type at the origin."""
        return Coordinates(torch.zeros(batch_size, NOMINAL, 2, device=device))

    def at(self, times: Any, types: Any) -> Coordinates:
        """Return the points at which to decode: times in the data's units (or dates), and names of types.

        Both are [O] for the whole batch or [B, O]; a single time or a single type stands for all.
        """
        times, types = np.broadcast_arrays(np.asarray(times), np.asarray(types, object))
        found = self.numbers(types.ravel())
        if unknown := [kind for kind, n in zip(types.ravel().tolist(), found, strict=True) if n == UNKNOWN]:
            names = [str(self.name_of(n)) for n in range(self.num_types)]
            raise ValueError(f"type {unknown[0]!r} is not one of {', '.join(names[:10])}{near(str(unknown[0]), names)}")
        since = as_float32(self._times(times.ravel()) - self.origin)
        return Coordinates(torch.from_numpy(np.stack([since, found], -1).astype(np.float32).reshape(*times.shape, 2)))

    def build_input(self) -> "EventsInput":
        """Build the adapter with a token for each event."""
        return EventsInput(self)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> "EventsQuery":
        """Build a query for each time and type to decode at."""
        return EventsQuery(self)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "EventsOutput":
        """Build the adapter from decoded queries to values."""
        if not self.marks:
            raise ValueError("marks = false: an output is the value of events, which then have none")
        return EventsOutput(self, channels)

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Names of the arrays of a raw target."""
        return (*self._parts, "mask")

    def points(self, target: Raw) -> Points:
        """Return the times and types of the target; those of unknown types are masked."""
        time = precise(floats(target["time"]))
        types = target["type"]
        return Coordinates(torch.stack([time, types.to(time.dtype)], -1), target["mask"] & (types >= 0))

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean squared difference in units of the type's `std`, over known values."""
        predicted, known = prediction["value"], self._known(target)
        true = torch.where(known, precise(same_shape(target["value"], predicted.shape)), predicted)
        _, std = self.units(target["type"])
        return mean_where(((predicted - true) / std) ** 2, known)

    def num_terms(self, target: Raw) -> Tensor:
        """Return the number of known values."""
        return self._known(target).sum()

    def metrics(self) -> "dict[str, Metric]":
        """Return the RMSE over all events in units of their type's `std`; with `score_types`, by type in its units."""
        every = {"rmse": root_mean_square()}
        if not self.score_types:
            return every
        _, std = self.units(torch.arange(self.num_types))
        units = std.expand(self.num_types).tolist()
        return every | {f"rmse {self.name_of(n)}": root_mean_square(n, unit) for n, unit in enumerate(units)}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return predictions and targets of known values in units of their type's `std`, and the types; all flat."""
        known = self._known(target)
        types = target["type"][known]
        mean, std = self.units(types)
        predicted, true = ((precise(floats(x["value"][known])) - mean) / std for x in (prediction, target))
        return predicted, true, types

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Plot values in units of their type's `std` over time, a colour for each type; without values, the types."""
        there = sample["mask"] if "mask" in sample else torch.ones_like(sample["type"], dtype=torch.bool)
        time, types = (sample[name][there].detach().cpu() for name in ("time", "type"))
        height = types.float()
        if "value" in sample:
            mean, std = self.units(types)
            height = (sample["value"][there].detach().float().cpu() - mean) / std
        kinds = types.unique().tolist()
        for kind in kinds:
            own, colour = types == kind, f"C{kind % 10}" if kind >= 0 else "0.6"
            label = drawable(str(self.name_of(kind))) if kind >= 0 else "?"
            axes.plot(time[own], height[own], ".", markersize=4, color=colour, label=label)
        if 0 < len(kinds) <= MOST_COLOURS:
            axes.legend(fontsize=4, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15))

    def for_plot(self, prediction: Raw, target: Raw) -> Raw:
        """Return the target's events with the predicted values."""
        return {**target, "value": prediction["value"]}

    def units(self, types: Int[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        """Return mean and standard deviation of the type of each event; 0 and 1 where it is unknown, or not fitted."""
        return tuple(of_type(unit, default, types) for unit, default in ((self.mean, 0.0), (self.std, 1.0)))  # type: ignore[return-value]

    @property
    def _parts(self) -> tuple[str, ...]:
        return PARTS if self.marks else PARTS[:2]

    def _known(self, target: Raw) -> Bool[Tensor, "b m"]:
        return target["mask"] & (target["type"] >= 0) & target["value"].isfinite()

    def _columns(self, value: Any) -> dict[str, Any]:
        """Return the columns of a set of events, from any of its forms: times and values as float64, checked."""
        if not isinstance(value, Mapping):
            value = listed(value)
        if missing := [name for name in PARTS[:2] if name not in value]:
            raise ValueError(f"events without {' and '.join(missing)}: give time, type{' and value' * self.marks}")
        times, count = self._times(value["time"]), len(value["time"])
        columns = {"time": times, "type": value["type"]}
        if self.marks:
            marks = value.get("value")
            columns["value"] = np.full(count, np.nan) if marks is None else as_numbers("value", marks)
        sizes = {name: np.shape(column) for name, column in columns.items()}
        if any(size != (count,) for size in sizes.values()):
            raise ValueError(f"columns must be equally long: {', '.join(f'{n} has {s}' for n, s in sizes.items())}")
        if not np.isfinite(times).all():
            raise ValueError(f"the time of event {int((~np.isfinite(times)).argmax()) + 1} is unknown")
        return columns

    def _times(self, column: Any) -> Float[np.ndarray, " m"]:
        if not self.dates or (isinstance(column, np.ndarray) and column.dtype.kind in "fiu"):
            return as_numbers("time", column)
        read = DateField().read
        return np.array([np.nan if is_missing(cell) else read(cell) for cell in column], np.float64)

    def _bounds(self, sets: Sequence[np.ndarray]) -> tuple[float, float]:
        """Return the earliest and the latest time; ValueError for times that 32 bits hardly tell apart."""
        low, high = min(times.min() for times in sets), max(times.max() for times in sets)
        span = float(np.median([np.ptp(times) for times in sets])) or high - low
        if span and max(-low, high) > FURTHEST * span:
            first, last = (f"{time + self.origin:.12g}" for time in (low, high))
            raise ValueError(
                f"times of {first} to {last}, but sets that span {span:.4g}: 32 bits would round them; give origin, "
                f"the time from which to count, e.g. origin: {first}"
            )
        return float(low), float(high)

    def _event(self, time: float, kind: int, value: float) -> dict[str, Any]:
        known = {"type": self.name_of(kind), "value": value} if kind >= 0 else dict.fromkeys(PARTS[1:])
        return {"time": self._shown(time), **known}

    def _shown(self, time: float) -> float | str:
        return (
            DateField().show(torch.tensor(self.origin + time, dtype=torch.float64))
            if self.dates
            else self.origin + time
        )

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Events, list[Any]]":
        """Return ragged sets, in lists and in columns, with unknown types and values; one set is missing."""
        first = [[0.5, "lactate", 2.0], [1.25, "pulse", None], [3.0, None, 7.0], [3.0, "pulse", 80.0]]
        columns = {"time": [2.0, 0.0, 7.5], "type": ["pulse", "lactate", "pulse"], "value": [95.0, 3.0, float("nan")]}
        positions = Fourier(num_bands=3, spacing="octaves")
        return cls(classes=("lactate", "pulse"), channels=5, positions=positions), [first, columns, None]


class EventEncoding(nn.Module):
    """Encoding of types and times: the embedding of the type, position features of the time, and its coordinate."""

    def __init__(self, spec: Events) -> None:
        super().__init__()
        self.spec, self.types = spec, CategoryEncoding(spec.types)
        self.positions = None if spec.positions is None else Positions(1, None, spec.positions)
        self.channels = self.types.channels, 0 if self.positions is None else self.positions.channels

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the embedding of types, by name of the parameter."""
        return {f"encoding.types.{name}": rows for name, rows in self.types.class_rows.items()}

    def forward(
        self, time: Shaped[Tensor, "#b m"], types: Shaped[Tensor, "#b m"], mask: Bool[Tensor, "#b m"] | None
    ) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b m p"] | None, Any]:
        """Return embeddings, position features and coordinates; ValueError for times that are not finite."""
        time = sound_vectors(precise(floats(time))[..., None], mask, "time of event")
        positions = None if self.positions is None else self.positions.at(bounds_to_unit(time, _pair(self.spec.bounds)))
        return self.types(types, mask), positions, NamedAxes(self.spec.axis_names).at(time, mask)


class EventsInput(InputAdapter):
    """Adapter with a token for each event: [e, e v, v, known] and position features.

    e is the embedding of the type and v the value in units of the type's `std`, 0 where unknown. The product lets one
    linear map treat the values of each type differently; without it, a sum over tokens would lose whose value it is.
    """

    is_set = True

    def __init__(self, spec: Events) -> None:
        super().__init__()
        self.spec, self.encoding = spec, EventEncoding(spec)
        width, positions = self.encoding.channels
        self.channels = (2 * width + 2 if spec.marks else width) + positions

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the parameters that stand for types, by name of the parameter."""
        return self.encoding.class_rows

    def forward(self, raw: Raw) -> Segment:
        """Return the tokens in the order of the events, which the model does not see."""
        needed = self.spec._parts
        if not isinstance(raw, Mapping):
            raise ValueError(f"{shown(raw)}, expected a dictionary of {', '.join(needed)} and mask, each [B, M]")
        check_keys(raw, needed, ["mask"])
        shapes = {name: tuple(raw[name].shape) for name in needed}
        if any(len(shape) != 2 or shape[1] != shapes["time"][1] for shape in shapes.values()):
            raise ValueError(f"columns of shapes {shapes}, expected [B, M] of each")
        mask, types = raw.get("mask"), raw["type"]
        embedding, positions, along = self.encoding(raw["time"], types, mask)
        if self.spec.marks:
            marks = zero_where_absent(self._marks(raw["value"], types, mask), mask)
            embedding = torch.cat([embedding, embedding * marks[..., :1], marks], -1)
        return Segment(embedding, positions, mask=mask, coordinates=along)

    def _marks(self, value: Tensor, types: Tensor, mask: Tensor | None) -> Float[Tensor, "b m 2"]:
        """Return values in units of their type's `std`, 0 where unknown, and a one where known."""
        value = precise(floats(value))
        known = value.isfinite() & (types >= 0)
        mean, std = self.spec.units(types)
        return torch.stack([torch.where(known, (value - mean) / std, 0), known.to(value.dtype)], -1)


class EventsQuery(OutputQuery):
    """Queries made of a time and a type, which the caller must give."""

    def __init__(self, spec: Events) -> None:
        super().__init__()
        self.encoding = EventEncoding(spec)
        self.channels = sum(self.encoding.channels)

    @property
    def class_rows(self) -> dict[str, ClassRows]:
        """Rows of the parameters that stand for types, by name of the parameter."""
        return self.encoding.class_rows

    def forward(self, encoded: Encoded, points: Points | None) -> Segment:
        """Return a query for each point; ValueError for points other than Coordinates of times and type numbers."""
        if not isinstance(points, Coordinates):
            raise ValueError("events have no whole: give points={name: spec.at(times, types)}")
        given = points.coordinates if points.coordinates.ndim == 3 else points.coordinates[None]
        sound = sound_coordinates(given, points.mask, 2)
        whole = sound[..., 1] == sound[..., 1].round()
        require(whole.all(), lambda: f"type {float(sound[..., 1][~whole][0])}, expected the number of a type")
        types = sound[..., 1].nan_to_num(UNKNOWN).long()
        content, positions, along = self.encoding(sound[..., 0], types, points.mask)
        # The output needs times and types, of points without a query (those of unknown types) too.
        carried = types if points.mask is None else torch.where(points.mask, types, UNKNOWN)
        along = {**(along or {}), TIME: given[..., 0], TYPE: carried.to(given.dtype)}
        return Segment(content, positions, mask=points.mask, coordinates=along)


class EventsOutput(OutputAdapter):
    """Adapter from decoded queries to events: their times, types and values in the units of the type."""

    def __init__(self, spec: Events, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.head = plain_linear(channels, 1)

    def forward(self, x: Float[Tensor, "b o 1"], queries: Segment) -> dict[str, Tensor]:
        """Return {"time", "type", "value"} [B, O]; the value is NaN where a query asks for an unknown type."""
        assert isinstance(queries.coordinates, Mapping)
        time, types = (queries.coordinates[axis].expand(x.shape[:2]) for axis in (TIME, TYPE))
        types = types.long()
        mean, std = self.spec.units(types)
        value = precise(x[..., 0]) * std + mean
        asked = types < 0 if queries.mask is None else (types < 0) & queries.mask
        return {"time": time, "type": types, "value": torch.where(asked, torch.nan, value)}


def _pair(bounds: tuple[float, float] | None) -> tuple[tuple[float, float], ...] | None:
    return None if bounds is None else (bounds,)
