"""Metrics that are NaN where they are undefined: for too few samples, or for samples that are all alike."""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torchmetrics import Metric


def correlation(kind: Literal["r2", "pearson"]) -> "Metric":
    """Return R2 or Pearson's correlation, NaN if the targets (for Pearson's also the predictions) do not vary."""
    import torchmetrics

    base: type = {"r2": torchmetrics.R2Score, "pearson": torchmetrics.PearsonCorrCoef}[kind]
    first = 1 if kind == "r2" else 0

    class Varied(base):
        low: Tensor
        high: Tensor

        # The ranges of predictions and targets, in that order, decide at the end if the correlation is defined.
        def __init__(self) -> None:
            super().__init__()
            self.add_state("low", torch.full((2,), torch.inf), "min")
            self.add_state("high", torch.full((2,), -torch.inf), "max")

        def update(self, prediction: Tensor, target: Tensor) -> None:
            both = torch.stack([prediction, target]).detach()
            self.low, self.high = torch.minimum(self.low, both.amin(1)), torch.maximum(self.high, both.amax(1))
            super().update(prediction, target)

        def compute(self) -> Tensor:
            varied = bool((self.low < self.high)[first:].all())
            return super().compute() if varied else torch.tensor(torch.nan)

    metric: Metric = Varied()
    return metric


def mean_average_precision() -> "Metric":
    """Return the mean of the average precision over classes that some samples have and others lack.

    Average precision is undefined for the other classes: any ranking is as good as another.
    """
    from torchmetrics import Metric
    from torchmetrics.functional.classification import binary_average_precision
    from torchmetrics.utilities import dim_zero_cat

    class MeanAveragePrecision(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("chances", [], "cat")
            self.add_state("truth", [], "cat")

        def update(self, chances: Tensor, truth: Tensor) -> None:
            self.chances.append(chances)
            self.truth.append(truth)

        def compute(self) -> Tensor:
            chances, truth = dim_zero_cat(self.chances), dim_zero_cat(self.truth)
            # The average precision over the classes that can be ranked.
            ranked = ((truth > 0).any(0) & (truth == 0).any(0)).nonzero().flatten().tolist()
            precisions = [binary_average_precision(chances[:, number], truth[:, number]) for number in ranked]
            return torch.stack(precisions).mean() if precisions else torch.tensor(torch.nan)

    return MeanAveragePrecision()


def root_mean_square(number: int | None = None, unit: float = 1.0) -> "Metric":
    """Return the RMSE over the values of one type (None: of all), times a unit; NaN without any value.

    It is updated with predictions, targets and type numbers.
    """
    from torchmetrics import Metric

    class RootMeanSquare(Metric):
        squares: Tensor
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.add_state("squares", torch.zeros((), dtype=torch.float64), "sum")
            self.add_state("count", torch.zeros((), dtype=torch.long), "sum")

        def update(self, prediction: Tensor, target: Tensor, types: Tensor) -> None:
            own = torch.ones_like(types, dtype=torch.bool) if number is None else types == number
            self.squares = self.squares + ((prediction - target)[own].double() ** 2).sum()
            self.count = self.count + own.sum()

        def compute(self) -> Tensor:
            return (self.squares / self.count).sqrt() * unit

    return RootMeanSquare()
