"""Numbers with how sure they are: a normal distribution of each, or quantiles.

A raw target is [B, n] numbers (NaN: unknown); a prediction [B, n, 2] means and standard deviations, or [B, n, Q]
quantiles, all in the data's units.
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

from perceivers.core.arguments import precise
from perceivers.core.interfaces import InputAdapter, OutputAdapter
from perceivers.core.tokens import Segment
from perceivers.modalities.modality import Raw, mean_where, rounded, same_shape
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.raw import finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

LEAST_STD = 1e-3
"""Smallest standard deviation that is predicted, in units of the data's: a likelihood has no upper bound otherwise."""

SIGMAS = 1.0
"""A normal distribution's interval reaches this many standard deviations to each side: 68.3 % of all cases."""


@dataclass(frozen=True)
class ProbabilisticRegression(Numbers):
    """Numbers of the whole sample, which come out with how sure they are; a record holds one, or a list of them."""

    quantiles: tuple[float, ...] = ()
    """Which quantiles are predicted, rising; none: mean and standard deviation of a normal distribution."""
    kind: Literal["probabilistic_regression"] = "probabilistic_regression"  # type: ignore[assignment]
    """Name in files."""

    def __post_init__(self) -> None:
        super().__post_init__()
        inside = (0.0, *self.quantiles, 1.0)
        if any(later <= earlier for earlier, later in pairwise(inside)):
            raise ValueError(f"quantiles = {self.quantiles} must rise between 0 and 1, as (0.1, 0.5, 0.9)")

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """The number; beside it its standard deviation, or each quantile."""
        one = sample[0] if self.count == 1 else sample
        if not self.quantiles:
            return {"": rounded(one[..., 0]), "std": rounded(one[..., 1])}
        each = {f"q{quantile:g}": rounded(one[..., i]) for i, quantile in enumerate(self.quantiles)}
        return {"": rounded(one[..., self._middle]), **each}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Change of the mean, or of the middle quantile."""
        place = self._middle if self.quantiles else 0
        return super().attribution(whole[..., place], without[..., place])

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Means and deviations, or quantiles."""
        return EstimateOutput(self, self.build_head(channels, self.count * (len(self.quantiles) or 2)))

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Negative log likelihood, or the quantiles' mean pinball loss, in units of `std`; over known numbers."""
        std = prediction.new_tensor(self.std or (1.0,))[:, None]
        target = same_shape(target, prediction.shape[:-1])
        known, prediction = target.isfinite(), prediction / std
        true = finite(target)[..., None] / std
        if not self.quantiles:
            mean, deviation = prediction.split(1, dim=-1)
            loss = F.gaussian_nll_loss(mean, true, deviation**2, reduction="none")[..., 0]
            return mean_where(loss, known)
        level, beyond = prediction.new_tensor(self.quantiles), true - prediction
        return mean_where(torch.maximum(level * beyond, (level - 1) * beyond).mean(dim=-1), known)

    @property
    def is_likelihood(self) -> bool:
        """Of a normal distribution; quantiles have none."""
        return not self.quantiles

    def metrics(self) -> "dict[str, Metric]":
        """Mean absolute error of the mean (the middle quantile); how often the truth lies within the interval.

        The interval is one standard deviation to each side, or from the first quantile to the last.
        """
        from torchmetrics import MeanAbsoluteError
        from torchmetrics.classification import BinaryAccuracy
        from torchmetrics.wrappers import LambdaInputTransformer

        of_middle = {"mae": MeanAbsoluteError(), **self.correlations()}
        inside = LambdaInputTransformer(BinaryAccuracy(), lambda rows: rows[:, 1], lambda rows: rows[:, 1].long())
        return {
            **{name: LambdaInputTransformer(own, _first, _first) for name, own in of_middle.items()},
            "coverage": inside,
        }

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """[n, 2] of known numbers: what is estimated and whether it fits; the truth, and a one, which means it does."""
        known = same_shape(target, prediction.shape[:-1]).isfinite()
        found, true = prediction[known], target[known]
        middle = found[:, 0] if not self.quantiles else found[:, self._middle]
        low, high = self.interval(found)
        fits = ((low <= true) & (true <= high)).to(true.dtype)
        return torch.stack([middle, fits], dim=-1), torch.stack([true, torch.ones_like(true)], dim=-1)

    def interval(self, prediction: Float[Tensor, "*b k"]) -> tuple[Float[Tensor, " *b"], Float[Tensor, " *b"]]:
        """Lower and upper end of what is likely."""
        if self.quantiles:
            return prediction[..., 0], prediction[..., -1]
        mean, deviation = prediction.unbind(dim=-1)
        return mean - SIGMAS * deviation, mean + SIGMAS * deviation

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Points with bars; of a target points."""
        places = np.arange(self.count)
        if sample.ndim == 1:
            axes.plot(places, sample.cpu().numpy(), "o")
            return
        low, high = (end.detach().cpu().numpy() for end in self.interval(sample))
        axes.errorbar(places, (low + high) / 2, (high - low) / 2, fmt="none", capsize=4)

    @property
    def _middle(self) -> int:
        return int(np.argmin(np.abs(np.array(self.quantiles) - 0.5)))

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[ProbabilisticRegression, list[Any]]":
        """Two numbers, three quantiles; one number and one sample are unknown."""
        return cls(count=2, query_channels=7, quantiles=(0.1, 0.5, 0.9)), [[1.0, -3.0], [0.5, float("nan")], None]


class EstimateOutput(OutputAdapter):
    """The one row of an estimate: standard deviations positive, quantiles rising."""

    def __init__(self, spec: ProbabilisticRegression, head: nn.Module) -> None:
        super().__init__()
        self.spec, self.head = spec, head

    def forward(self, rows: Float[Tensor, "b 1 e"], queries: Segment) -> Float[Tensor, "b n k"]:
        """In the data's units."""
        rows = precise(rows)
        first, rest = rows[:, 0].unflatten(-1, (self.spec.count, -1)).tensor_split([1], dim=-1)
        mean, std = (rows.new_tensor(own)[:, None] for own in (self.spec.mean or (0.0,), self.spec.std or (1.0,)))
        above = F.softplus(rest)
        if not self.spec.quantiles:
            return torch.cat([first * std + mean, (above + LEAST_STD) * std], dim=-1)
        return torch.cat([first, first + above.cumsum(dim=-1)], dim=-1) * std + mean


def _first(rows: Float[Tensor, "n 2"]) -> Float[Tensor, " n"]:
    return rows[:, 0]
