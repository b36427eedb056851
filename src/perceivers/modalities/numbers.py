"""Numbers of a whole sample.

A raw batch is [B, n], n = `count` numbers of each sample, NaN or infinite where unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from perceivers.core.interfaces import InputAdapter, OutputAdapter
from perceivers.core.precision import floats
from perceivers.core.tokens import Segment
from perceivers.modalities.modality import (
    Raw,
    check_units,
    known_units,
    mean_where,
    rounded,
    same_shape,
    shown,
    statistics,
)
from perceivers.modalities.raw import as_float32, finite
from perceivers.modalities.scalars import scalar
from perceivers.modalities.scores import correlation
from perceivers.modalities.single_query import SingleQueryModality, SingleQueryOutput, stack_known
from perceivers.modalities.table_cells import Files, number, plain

if TYPE_CHECKING:
    from torchmetrics import Metric


@dataclass(frozen=True)
class Numbers(SingleQueryModality):
    """Numbers that belong to the whole sample; a record holds one, or a list of them."""

    count: int = 1
    """Number of numbers."""
    mean: tuple[float, ...] | None = None
    """Mean for normalisation. Fitted if None."""
    std: tuple[float, ...] | None = None
    """Standard deviation for normalisation. Fitted if None."""
    further_metrics: tuple[Literal["pearson"], ...] = ()
    """As an output: Pearson's correlation with the targets, over all numbers together."""
    read_fields: ClassVar[tuple[str, ...]] = ()
    preprocess_needs_fit: ClassVar[bool] = False
    kind: Literal["numbers"] = "numbers"
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_units(self.mean, self.std, self.count, "numbers")

    def read(self, cell: Any, files: Files) -> list[float]:
        """Parse a number, or a list of numbers."""
        value = plain(cell)
        return [number(one) for one in (value if isinstance(value, list) else [value])]

    @property
    def is_fitted(self) -> bool:
        """True if mean and standard deviation are known."""
        return None not in (self.mean, self.std)

    def summary(self, value: Any) -> Any:
        """Return the numbers as float32; a single one as a Python number, which is smaller than an array."""
        numbers = self._array(value)
        return numbers.item() if self.count == 1 else numbers

    def fit(self, values: Iterable[Any]) -> "Numbers":
        """Fit mean and standard deviation of each number, over its known values."""
        if self.is_fitted:
            return self
        table = np.array([self._array(value) for value in values], np.float64).reshape(-1, self.count)
        mean, std = statistics(table)
        return replace(self, mean=self.mean or mean, std=self.std or std)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Return [count] numbers as float32."""
        return self._array(value)

    def collate(self, values: Sequence[Any]) -> Tensor:
        """Return [B, count], NaN where unknown."""
        return stack_known(values)

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return the number, or a list of numbers."""
        return {"": rounded(sample if self.count > 1 else sample[0])}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the change of the number, or of each number."""
        return Numbers.to_row(self, whole - without)

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return zeros."""
        return torch.zeros(batch_size, self.count, device=device)

    def build_input(self) -> "NumbersInput":
        """Build the adapter with one token: the numbers, and for each whether it is known."""
        return NumbersInput(self)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Build the adapter from the decoded query to numbers [B, count]."""
        return SingleQueryOutput(self.build_head(channels, self.count), self.mean, self.std)

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean squared difference in units of `std`, over known numbers."""
        std = prediction.new_tensor(self.std or (1.0,))
        target = same_shape(target, prediction.shape)
        return mean_where(((prediction - finite(target)) / std) ** 2, target.isfinite())

    def metrics(self) -> "dict[str, Metric]":
        """Return mean absolute error in the data's units, R2 (explained variance), and `further_metrics`."""
        from torchmetrics import MeanAbsoluteError

        return {"mae": MeanAbsoluteError(), "r2": correlation("r2"), **self.correlations()}

    def correlations(self) -> "dict[str, Metric]":
        """Return the `further_metrics` by name."""
        return {name: correlation(name) for name in self.further_metrics}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of the known numbers, flat."""
        target = same_shape(target, prediction.shape)
        known = target.isfinite()
        return prediction[known], target[known]

    def _array(self, value: Any) -> np.ndarray:
        if isinstance(value, list | tuple | str):  # text may hold a number
            value = [
                one if isinstance(one, Tensor) else number(one)
                for one in ([value] if isinstance(value, str) else value)
            ]
        array = np.atleast_1d(as_float32(scalar(value)))
        if array.shape != (self.count,):
            raise ValueError(f"numbers of shape {array.shape}, expected ({self.count},)")
        return array

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Numbers, list[Any]]":
        """Return samples of three numbers, one of them unknown; one sample is missing."""
        return cls(count=3, query_channels=7), [[1.0, 2.0, -3.0], [0.5, float("nan"), 1.0], None]


class NumbersInput(InputAdapter):
    """Adapter with one token: the numbers in units of `std`, 0 where unknown, then ones where they are known."""

    def __init__(self, spec: Numbers) -> None:
        super().__init__()
        self.spec, self.channels = spec, 2 * spec.count

    def forward(self, raw: Raw) -> Segment:
        """Return the token; it is masked for a sample without any known number."""
        if not isinstance(raw, Tensor) or raw.ndim != 2 or raw.shape[1] != self.spec.count:
            raise ValueError(f"{shown(raw)}, expected [B, {self.spec.count}]")
        numbers, known = known_units(floats(raw), self.spec.mean, self.spec.std)
        token = torch.cat([numbers, known.to(numbers.dtype)], dim=-1)
        return Segment(token[:, None], mask=known.any(dim=-1, keepdim=True))

    def absent(self, device: torch.device) -> Segment:
        """Return one token."""
        return Segment(torch.zeros(1, 1, self.channels, device=device))
