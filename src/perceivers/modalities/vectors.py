"""Plain vectors, for tokens and queries that the caller computes.

A raw input is [B, M, C] or {"values": [B, M, C], "mask": [B, M]}; a raw output is [B, O, C].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.layers import plain_linear
from perceivers.core.precision import floats, zero_where_absent
from perceivers.core.tokens import Segment
from perceivers.modalities.modality import NOMINAL, Modality, Raw, mean_where, pad_sequences, same_shape
from perceivers.modalities.places import NamedAxes, check_axis_names
from perceivers.modalities.points import Points, Queries
from perceivers.modalities.queries import GivenQuery
from perceivers.modalities.raw import as_float32, check_keys, finite

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class Vectors(Modality):
    """A set of vectors; as an output, one vector for each query that the caller provides."""

    channels: int = 64
    """Width of a vector."""
    query_channels: int = 64
    """As an output: width of the caller's queries."""
    axis_names: tuple[str, ...] = ()
    """As an input: name of an axis, along which the coordinate of a vector is its number, for rotary positions."""
    kind: Literal["vectors"] = "vectors"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_axis_names(self.axis_names, 1)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Return [M, channels] as float32."""
        vectors = as_float32(value)
        if vectors.ndim != 2 or vectors.shape[1] != self.channels:
            raise ValueError(f"vectors of shape {vectors.shape}, expected (M, {self.channels})")
        return vectors

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """Return {"queries": [O, query_channels], "values": [O, channels]}."""
        if not isinstance(value, Mapping) or not {"queries", "values"} <= value.keys():
            raise ValueError('a target must be {"queries": [O, query_channels], "values": [O, channels]}')
        queries, values = as_float32(value["queries"]), self.preprocess(value["values"], rng, training=False)
        if queries.shape != (len(values), self.query_channels):
            raise ValueError(f"queries of shape {queries.shape}, expected ({len(values)}, {self.query_channels})")
        return {"queries": queries, "values": values}

    def collate(self, values: Sequence[Any]) -> Raw:
        """Return a batch, padded to the largest set."""
        known = next(value for value in values if value is not None)
        names = ("queries", "values") if isinstance(known, Mapping) else ("values",)
        batch = {}
        for name in names:
            arrays = [value[name] if isinstance(value, Mapping) else value for value in values]
            batch[name], batch["mask"] = pad_sequences(arrays)
        return batch

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return zeros."""
        return torch.zeros(batch_size, NOMINAL, self.channels, device=device)

    def dummy_points(self, batch_size: int, device: torch.device) -> Points:
        """Return queries of zeros."""
        return Queries(torch.zeros(batch_size, NOMINAL, self.query_channels, device=device))

    def build_input(self) -> "VectorsInput":
        """Build the adapter that takes the vectors as tokens."""
        return VectorsInput(self.channels, NamedAxes(self.axis_names))

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build the module that takes the caller's queries."""
        if self.axis_names:
            raise ValueError("axis_names is for inputs: the queries that the caller gives have no coordinates")
        return GivenQuery(self.query_channels)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> "VectorsOutput":
        """Build the adapter from decoded queries to vectors: a linear map."""
        return VectorsOutput(channels, self.channels)

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Names of the arrays of a raw target."""
        return ("queries", "values", "mask")

    def points(self, target: Raw) -> Points:
        """Return the target's queries."""
        return Queries(target["queries"], target["mask"])

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean squared difference over known numbers."""
        values = same_shape(target["values"], prediction.shape)
        known = target["mask"][..., None] & values.isfinite()
        return mean_where((prediction - finite(values)) ** 2, known)

    def metrics(self) -> "dict[str, Metric]":
        """Return the root mean squared error."""
        from torchmetrics import MeanSquaredError

        return {"rmse": MeanSquaredError(squared=False)}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of the known numbers of valid vectors, flat."""
        known = target["mask"][..., None] & target["values"].isfinite()
        return prediction[known], target["values"][known]

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Vectors, list[Any]]":
        """Return ragged sets; one is missing."""
        return cls(channels=5, query_channels=3), [rng.normal(size=(7, 5)), rng.normal(size=(2, 5)), None]


class VectorsInput(InputAdapter):
    """Adapter that takes the vectors as tokens."""

    def __init__(self, channels: int, axes: NamedAxes) -> None:
        super().__init__()
        self.channels, self.axes = channels, axes
        self.is_set = not axes.names

    def forward(self, raw: Raw) -> Segment:
        """Return the tokens in the order of the vectors."""
        raw = raw if isinstance(raw, Mapping) else {"values": raw}
        check_keys(raw, ["values"], ["mask"])
        values, mask = raw["values"], raw.get("mask")
        if values.ndim != 3 or values.shape[-1] != self.channels:
            raise ValueError(f"input of shape {tuple(values.shape)}, expected [B, M, {self.channels}]")
        coordinates = self.axes.on_grid(values.shape[1:2], None, values.device)
        return Segment(zero_where_absent(floats(values), mask), mask=mask, coordinates=coordinates)


class VectorsOutput(OutputAdapter):
    """Adapter with a linear map from each decoded query to a vector."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.head = plain_linear(channels, width)

    def forward(self, x: Float[Tensor, "b o c"], queries: Segment) -> Float[Tensor, "b o c"]:
        """Return the vectors as the head computed them."""
        return x
