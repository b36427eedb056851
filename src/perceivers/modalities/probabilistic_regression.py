"""Numbers with their uncertainty: a normal distribution of each number, or quantiles.

A raw target is [B, n] numbers (NaN: unknown). A prediction is [B, n, 2] means and standard deviations, or [B, n, Q]
quantiles. All are in the data's units.

    loss of a normal distribution   log(std) + (mean - true)^2 / (2 std^2)
    loss of a quantile              max(level (true - predicted), (level - 1) (true - predicted)): pinball
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perceivers.core.interfaces import InputAdapter, OutputAdapter
from perceivers.core.precision import precise
from perceivers.core.tokens import Segment
from perceivers.modalities.modality import Raw, mean_where, rounded, same_shape
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.raw import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

LEAST_STD = 1e-3
"""Smallest predicted standard deviation, in units of `std`; without it the likelihood has no upper bound."""

SIGMAS = 1.0
"""Half the width of a normal distribution's interval, in standard deviations: it covers 68.3 % of all cases."""


@dataclass(frozen=True)
class ProbabilisticRegression(Numbers):
    """Numbers of the whole sample, predicted with their uncertainty; a record holds a number, or a list of numbers."""

    quantiles: tuple[float, ...] = ()
    """Levels of the predicted quantiles, rising; empty: mean and standard deviation of a normal distribution."""
    kind: Literal["probabilistic_regression"] = "probabilistic_regression"  # type: ignore[assignment]
    """Name in schema files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = (0.0, *self.quantiles, 1.0)
        if any(later <= earlier for earlier, later in pairwise(inside)):
            raise ValueError(f"quantiles = {self.quantiles} must rise between 0 and 1, as (0.1, 0.5, 0.9)")

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return the number (mean or middle quantile), and its standard deviation, or each quantile."""
        each = sample[0] if self.count == 1 else sample
        if not self.quantiles:
            return {"": rounded(each[..., 0]), "std": rounded(each[..., 1])}
        quantiles = {f"q{level:g}": rounded(each[..., i]) for i, level in enumerate(self.quantiles)}
        return {"": rounded(each[..., self._middle]), **quantiles}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the change of the mean, or of the middle quantile."""
        index = self._middle if self.quantiles else 0
        return super().attribution(whole[..., index], without[..., index])

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Build the adapter from the decoded query to means and standard deviations, or to quantiles."""
        return ProbabilisticOutput(self, self.build_head(channels, self.count * (len(self.quantiles) or 2)))

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean negative log-likelihood or pinball loss, in units of `std`, over known numbers."""
        std = prediction.new_tensor(self.std or (1.0,))[:, None]
        target = same_shape(target, prediction.shape[:-1])
        known, prediction = target.isfinite(), prediction / std
        true = finite(target)[..., None] / std
        # Normal distribution.
        if not self.quantiles:
            mean, deviation = prediction.split(1, dim=-1)
            loss = F.gaussian_nll_loss(mean, true, deviation**2, reduction="none")[..., 0]
            return mean_where(loss, known)
        # Quantiles.
        level, beyond = prediction.new_tensor(self.quantiles), true - prediction
        return mean_where(torch.maximum(level * beyond, (level - 1) * beyond).mean(dim=-1), known)

    @property
    def is_likelihood(self) -> bool:
        """True for a normal distribution; quantiles have no likelihood."""
        return not self.quantiles

    def metrics(self) -> "dict[str, Metric]":
        """Return the mean absolute error of the mean or middle quantile, and the coverage of the interval.

        The interval is one standard deviation to each side, or from the first quantile to the last.
        """
        from torchmetrics import MeanAbsoluteError
        from torchmetrics.classification import BinaryAccuracy
        from torchmetrics.wrappers import LambdaInputTransformer

        of_middle = {"mae": MeanAbsoluteError(), **self.correlations()}
        coverage = LambdaInputTransformer(BinaryAccuracy(), lambda pair: pair[:, 1], lambda pair: pair[:, 1].long())
        return {
            **{name: LambdaInputTransformer(metric, _first, _first) for name, metric in of_middle.items()},
            "coverage": coverage,
        }

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return [n, 2] prediction and coverage (0 or 1), and [n, 2] truth and 1, of the known numbers."""
        known = same_shape(target, prediction.shape[:-1]).isfinite()
        predicted, true = prediction[known], target[known]
        middle = predicted[:, 0] if not self.quantiles else predicted[:, self._middle]
        low, high = self.interval(predicted)
        covered = ((low <= true) & (true <= high)).to(true.dtype)
        return torch.stack([middle, covered], dim=-1), torch.stack([true, torch.ones_like(true)], dim=-1)

    def interval(self, prediction: Float[Tensor, "*b k"]) -> tuple[Float[Tensor, " *b"], Float[Tensor, " *b"]]:
        """Return the lower and the upper end of the predicted interval."""
        if self.quantiles:
            return prediction[..., 0], prediction[..., -1]
        mean, deviation = prediction.unbind(dim=-1)
        return mean - SIGMAS * deviation, mean + SIGMAS * deviation

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw the intervals of a prediction as bars, the numbers of a target as points."""
        numbers = np.arange(self.count)
        if sample.ndim == 1:
            axes.plot(numbers, sample.cpu().numpy(), "o")
            return
        low, high = (end.detach().cpu().numpy() for end in self.interval(sample))
        axes.errorbar(numbers, (low + high) / 2, (high - low) / 2, fmt="none", capsize=4)

    @property
    def _middle(self) -> int:
        """Index of the quantile nearest to the median."""
        return int(np.argmin(np.abs(np.array(self.quantiles) - 0.5)))

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[ProbabilisticRegression, list[Any]]":
        """Return samples of two numbers, with three quantiles; one number is unknown, one sample is missing."""
        return cls(count=2, query_channels=7, quantiles=(0.1, 0.5, 0.9)), [[1.0, -3.0], [0.5, float("nan")], None]


class ProbabilisticOutput(OutputAdapter):
    """Adapter from the decoded query to means and positive standard deviations, or to rising quantiles."""

    def __init__(self, spec: ProbabilisticRegression, head: nn.Module) -> None:
        super().__init__()
        self.spec, self.head = spec, head

    def forward(self, x: Float[Tensor, "b 1 e"], queries: Segment) -> Float[Tensor, "b n k"]:
        """Return [B, n, 2 or Q] in the data's units."""
        x = precise(x)
        first, rest = x[:, 0].unflatten(-1, (self.spec.count, -1)).tensor_split([1], dim=-1)
        mean, std = (x.new_tensor(unit)[:, None] for unit in (self.spec.mean or (0.0,), self.spec.std or (1.0,)))
        # Positive: a standard deviation, or the distances from one quantile to the next.
        above = F.softplus(rest)
        if not self.spec.quantiles:
            return torch.cat([first * std + mean, (above + LEAST_STD) * std], dim=-1)
        return torch.cat([first, first + above.cumsum(dim=-1)], dim=-1) * std + mean


def _first(pair: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    return pair[:, 0]
