"""Values at free coordinates: point clouds, random pixels, sensors.

A raw batch is {"coordinates": [B, M, axes], "values": [B, M, C], "mask": [B, M]}: B samples of up to M points, in the
data's units. The mask is True where there is a point. With `values: binary`, a raw prediction
holds logits, and a target zeros and ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.core.checks import COUNT
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import plain_linear
from perceivers.core.precision import floats, zero_where_absent
from perceivers.core.tokens import Segment
from perceivers.modalities.modality import (
    LARGEST,
    NOMINAL,
    RANGES,
    Modality,
    Raw,
    check_subsample,
    check_units,
    denormalised,
    input_of,
    known_units,
    mean_where,
    pad_sequences,
    random_members,
    rounded,
    same_shape,
    shown,
    statistics,
)
from perceivers.modalities.places import NamedAxes, check_axis_names
from perceivers.modalities.points import Coordinates, Points
from perceivers.modalities.position_encodings import Fourier, Positions, bounds_to_unit, sound_coordinates
from perceivers.modalities.queries import CoordinateQuery, SharedContent
from perceivers.modalities.raw import as_float32, check_keys, finite
from perceivers.modalities.scalars import class_chances
from perceivers.modalities.scores import correlation
from perceivers.modalities.table_cells import Files, numbers, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric


@dataclass(frozen=True)
class PointSet(Modality):
    """A set of points; a record holds {"coordinates": [M, axes], "values": [M, channels]}, M may differ.

    A record may also be one array [M, axes + channels], or [M, axes] if the values are unknown.
    """

    axes: int = 2
    """Number of coordinates of a point."""
    channels: int = 1
    """Number of values of a point; 0: an input of points that have only coordinates."""
    values: Literal["numbers", "binary"] = "numbers"
    """Kind of the values; "binary": zeros and ones, or probabilities, which are predicted as logits."""
    bounds: tuple[tuple[float, float], ...] | None = None
    """Lowest and highest coordinate along each axis, mapped to -1 and 1. Fitted if None."""
    positions: Fourier | None = field(default_factory=lambda: Fourier(num_bands=32, max_resolution=64))
    """Position features, which resolve `max_resolution` positions along each axis; None: none."""
    axis_names: tuple[str, ...] = ()
    """Name of each axis, along which points then have coordinates, in the data's units, for rotary positions."""
    of: str | None = None
    """As an output: input with a single token, which is the content of every query; None: no such input."""
    query_channels: int = 256
    """As an output with neither positions nor `of`: width of the trained vector of all queries."""
    subsample: tuple[float, float] = (1.0, 1.0)
    """As an input, in training: range of the random fraction of points that each sample keeps, at least one point."""
    subsample_at_eval: bool = False
    """As an input: subsample in evaluation too (never in prediction)."""
    mean: tuple[float, ...] | None = None
    """Mean of the values for normalisation. Fitted if None."""
    std: tuple[float, ...] | None = None
    """Standard deviation of the values for normalisation. Fitted if None."""
    read_fields: ClassVar[tuple[str, ...]] = ("axes",)
    preprocess_needs_fit: ClassVar[bool] = False
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {**RANGES, "channels": COUNT}
    kind: Literal["pointset"] = "pointset"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axis_names(self.axis_names, self.axes)
        check_units(self.mean, self.std, self.channels)
        if self.values == "binary" and not self.mean is self.std is None:
            raise ValueError("values: binary has no mean and no std: leave them out")
        if self.bounds is not None and len(self.bounds) != self.axes:
            raise ValueError(f"bounds = {self.bounds} must have a pair for each of {self.axes} axes")
        if not all(-LARGEST <= low <= high <= LARGEST for low, high in self.bounds or ()):
            raise ValueError(f"bounds = {self.bounds} must be pairs of finite numbers, the lower one first")
        check_subsample(self.subsample)

    def read(self, cell: Any, files: Files) -> dict[str, Any]:
        """Parse {"coordinates", "values"}, or a list of points, each its coordinates and then its values (if known)."""
        value = plain(cell)
        if isinstance(value, Mapping):
            return {name: numbers(value[name]) for name in ("coordinates", "values") if name in value}
        return self._split(numbers(value))

    @property
    def is_fitted(self) -> bool:
        """True if the bounds are known and, of numbers, mean and standard deviation."""
        has_units = self.values == "numbers" and self.channels > 0
        return None not in (self.bounds, *((self.mean, self.std) if has_units else ()))

    def fit(self, values: Iterable[Any]) -> "PointSet":
        """Fit the bounds of the coordinates, and mean and standard deviation of the values."""
        if self.is_fitted:
            return self  # without loading any point
        sets = [self._arrays(value) for value in values]
        points = np.concatenate([each["coordinates"] for each in sets]) if sets else np.empty((0, self.axes))
        if not len(points):
            return self
        bounds = tuple((float(low), float(high)) for low, high in zip(points.min(0), points.max(0), strict=True))
        fitted = replace(self, bounds=self.bounds or bounds)
        if self.values == "binary":
            return fitted
        mean, std = statistics(np.concatenate([each["values"] for each in sets]).astype(np.float64))
        return replace(fitted, mean=self.mean or mean, std=self.std or std)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> dict[str, np.ndarray]:
        """Return coordinates and values as float32; in training, or with `subsample_at_eval`, of random points."""
        points = self._arrays(value)
        return random_members(points, self.subsample, rng) if training or self.subsample_at_eval else points

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """Return all points."""
        return self._arrays(value)

    def collate(self, values: Sequence[Any]) -> Raw:
        """Return a batch, padded to the largest set."""
        coordinates, mask = pad_sequences([None if value is None else value["coordinates"] for value in values])
        numbers, _ = pad_sequences([None if value is None else value["values"] for value in values])
        return {"coordinates": coordinates, "values": numbers, "mask": mask}

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return the values; of binary ones 1 where it is more probable than 0, and the probabilities of 1."""
        if self.values == "numbers":
            return super().to_row(sample)
        probabilities = sample.float().sigmoid()
        return {"": (probabilities > 0.5).int().tolist(), "probabilities": rounded(probabilities)}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the root mean squared difference; of binary values the mean change of their log-probability.

        The log-probability is that of the values that are predicted from all inputs.
        """
        if self.values == "numbers":
            return super().attribution(whole, without)
        side = torch.where(whole > 0, 1.0, -1.0)
        return {"": rounded((F.logsigmoid(side * whole) - F.logsigmoid(side * without)).mean())}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return points at the origin."""
        coordinates, values = (
            torch.zeros(batch_size, NOMINAL, width, device=device) for width in (self.axes, self.channels)
        )
        return {"coordinates": coordinates, "values": values}

    def dummy_points(self, batch_size: int, device: torch.device) -> Points:
        """Return coordinates at the origin."""
        return Coordinates(torch.zeros(batch_size, NOMINAL, self.axes, device=device))

    def build_input(self) -> "PointSetInput":
        """Build the adapter with a token for each point: its values and its position."""
        return PointSetInput(self)

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build a query for each point to decode at, from its position, and from the token of an input."""
        if self.positions is None and not self.axis_names:
            raise ValueError("queries at points differ by position: give positions, or axis_names for rotary ones")
        content = None
        if self.of is not None or self.positions is None:
            width = self.query_channels if self.of is None else input_of(inputs, self.of).channels
            content = SharedContent(width, self.of)
        return CoordinateQuery(self.axes, self.positions, self.to_unit, NamedAxes(self.axis_names), content)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "PointSetOutput":
        """Build the adapter from decoded queries to values."""
        if not self.channels:
            raise ValueError("channels = 0: points without values are inputs; an output needs at least 1")
        return PointSetOutput(self, channels)

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Names of the arrays of a raw target."""
        return ("coordinates", "values", "mask")

    def points(self, target: Raw) -> Points:
        """Return the coordinates of the target."""
        return Coordinates(target["coordinates"], target["mask"])

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean squared difference in units of `std`, over known values of valid points.

        Of binary values, the loss is the mean binary cross entropy.
        """
        if self.values == "binary":
            chances, known = class_chances(same_shape(target["values"], prediction.shape), self.channels, "values")
            loss = F.binary_cross_entropy_with_logits(prediction, chances.to(prediction.dtype), reduction="none")
            return mean_where(loss, target["mask"][..., None] & known)
        std, values = prediction.new_tensor(self.std or (1.0,)), same_shape(target["values"], prediction.shape)
        difference = (prediction - finite(values)) / std
        return mean_where(difference**2, target["mask"][..., None] & values.isfinite())

    def metrics(self) -> "dict[str, Metric]":
        """Return the root mean squared error in the data's units, and R2 (explained variance), over all values.

        Of binary values: IoU (intersection over union, the Jaccard index of those that are 1), and accuracy.
        """
        from torchmetrics import MeanSquaredError, classification

        if self.values == "binary":
            return {"iou": classification.BinaryJaccardIndex(), "accuracy": classification.BinaryAccuracy()}
        return {"rmse": MeanSquaredError(squared=False), "r2": correlation("r2")}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of known values of valid points, flat; of binary values probabilities."""
        known = target["mask"][..., None] & target["values"].isfinite()
        if self.values == "binary":
            return prediction[known].float().sigmoid(), (target["values"][known] > 0.5).long()
        return prediction[known], target["values"][known]

    def to_unit(self, coordinates: Float[Tensor, "*b axes"]) -> Float[Tensor, "*b axes"]:
        """Scale coordinates of the data to -1 to 1, by `bounds`; without rounding if these are -1 and 1."""
        return bounds_to_unit(coordinates, self.bounds)

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Plot values over one coordinate; else points by the first two, the first downwards, grey by value."""
        points = sample["coordinates"][sample["mask"]].detach().cpu().numpy()
        values = sample["values"][sample["mask"]].detach().float().cpu().numpy()
        # One coordinate: a plot of the values.
        if self.axes == 1 and self.channels:
            axes.plot(points[:, 0], values, ".", markersize=3)
            return
        # Two and more: an image, whose background is blue so that every grey stands out.
        across = points[:, 1] if self.axes > 1 else np.zeros(len(points))
        colours: dict[str, Any] = {"c": values.mean(-1), "cmap": "gray"} if self.channels else {"c": "white"}
        colours |= {"vmin": 0.0, "vmax": 1.0} if self.channels and self.values == "binary" else {}
        axes.scatter(across, points[:, 0], s=24, marker="s", **colours)
        (top, bottom), (left, right) = (self.bounds or ((-1.0, 1.0),) * 2)[:2] if self.axes > 1 else ((-1, 1), (-1, 1))
        axes.set(xlim=(left - 0.5, right + 0.5), ylim=(bottom + 0.5, top - 0.5), xticks=[], yticks=[])
        axes.set_facecolor("#33507a")
        axes.set_aspect("equal")

    def for_plot(self, prediction: Raw, target: Raw) -> Raw:
        """Return the predicted values, of binary ones the probabilities, at the target's coordinates."""
        return {**target, "values": prediction.float().sigmoid() if self.values == "binary" else prediction}

    def _split(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Split an array [M, axes + channels] into coordinates and values; values are NaN if the array has none."""
        points = points.reshape(0, self.axes) if points.shape == (0,) else points
        if points.ndim != 2:
            raise ValueError(f"points of shape {points.shape}, expected (M, {self.axes} + {self.channels})")
        coordinates, values = points[:, : self.axes], points[:, self.axes :]
        unknown = np.full((len(points), self.channels), np.nan, np.float32)
        return {"coordinates": coordinates, "values": values if values.size else unknown}

    def _arrays(self, value: Any) -> dict[str, np.ndarray]:
        """Return the points of a record as checked arrays of float32."""
        value = value if isinstance(value, Mapping) else self._split(as_float32(value))
        if not self.channels and "coordinates" in value:
            value = {"values": np.empty((*np.shape(value["coordinates"])[:1], 0)), **value}
        if missing := [name for name in ("coordinates", "values") if name not in value]:
            raise ValueError(f'points without {" and ".join(missing)}: give {{"coordinates", "values"}}')
        points = {name: as_float32(value[name]) for name in ("coordinates", "values")}
        count = points["coordinates"].shape[0] if points["coordinates"].ndim else 1
        for name, width in (("coordinates", self.axes), ("values", self.channels)):
            if points[name].shape != (count, width):
                raise ValueError(f"{name} of shape {points[name].shape}, expected ({count}, {width})")
        if not np.isfinite(points["coordinates"]).all():
            raise ValueError("coordinates must be finite numbers")
        if self.values == "binary":
            class_chances(torch.from_numpy(points["values"]), self.channels, "values")  # raises for other numbers
        return points

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[PointSet, list[Any]]":
        """Return ragged sets with two values at three coordinates; one set is missing."""
        values = [{"coordinates": rng.normal(size=(n, 3)), "values": rng.normal(size=(n, 2))} for n in (5, 7)]
        return cls(axes=3, channels=2, positions=Fourier(num_bands=3, max_resolution=7)), [*values, None]


class PointSetInput(InputAdapter):
    """Adapter with a token for each point: its values and its position."""

    is_set = True

    def __init__(self, spec: PointSet) -> None:
        super().__init__()
        self.spec = spec
        if spec.positions is None and not spec.channels:
            raise ValueError("positions: points without values (channels = 0) have nothing else to make tokens of")
        self.positions = None if spec.positions is None else Positions(spec.axes, None, spec.positions)
        self.channels = spec.channels + (0 if self.positions is None else self.positions.channels)

    def forward(self, raw: Raw) -> Segment:
        """Return the tokens in the order of the points; points without values may be a tensor of coordinates."""
        raw = {"coordinates": raw} if isinstance(raw, Tensor) and not self.spec.channels else raw
        if not isinstance(raw, Mapping):
            raise ValueError(f'{shown(raw)}, expected {{"coordinates", "values", "mask"}}')
        if not self.spec.channels and "coordinates" in raw:
            raw = {"values": raw["coordinates"][..., :0], **raw}
        check_keys(raw, ["coordinates", "values"], ["mask"])
        mask, shape = raw.get("mask"), raw["coordinates"].shape
        if len(shape) != 3 or raw["values"].shape[1:] != (shape[1], self.spec.channels):
            raise ValueError(
                f"coordinates of shape {tuple(shape)} and values of shape {tuple(raw['values'].shape)}, expected "
                f"[B, M, {self.spec.axes}] and [B, M, {self.spec.channels}]"
            )
        coordinates = sound_coordinates(floats(raw["coordinates"]), mask, self.spec.axes)
        values, _ = known_units(zero_where_absent(floats(raw["values"]), mask), self.spec.mean, self.spec.std)
        positions = None if self.positions is None else self.positions.at(self.spec.to_unit(coordinates))
        along = NamedAxes(self.spec.axis_names).at(coordinates, mask)
        return Segment(values, positions, mask=mask, coordinates=along)


class PointSetOutput(OutputAdapter):
    """Adapter from decoded queries to values in the data's units."""

    def __init__(self, spec: PointSet, channels: int) -> None:
        super().__init__()
        self.spec = spec
        self.head = plain_linear(channels, spec.channels)

    def forward(self, x: Float[Tensor, "b o c"], queries: Segment) -> Float[Tensor, "b o c"]:
        """Return the values, or logits of binary ones, in the order of the queries."""
        return denormalised(x, self.spec.mean, self.spec.std)
