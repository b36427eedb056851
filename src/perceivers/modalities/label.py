"""What a whole sample is: one class, or several labels.

A raw batch is [B] class numbers (-1: unknown), or [B, classes] zeros and ones. A target of one class may also be the
probabilities of all, [B, classes].
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.core.interfaces import InputAdapter, OutputAdapter
from perceivers.core.tokens import Segment
from perceivers.media.pictures import drawable
from perceivers.modalities.cells import Files, plain
from perceivers.modalities.kind import Raw, mean_where, rounded
from perceivers.modalities.row import RowKind, RowOutput, stack_known

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

UNKNOWN = -1
"""Number of an unknown class."""

FEW_OF = 10
"""Whole numbers are names (years, keys) where not even one in so many up to the largest occurs."""


def f1(count: int) -> "Metric":
    """F1 of the last class: of two, the positive one."""
    from torchmetrics.classification import BinaryF1Score
    from torchmetrics.wrappers import LambdaInputTransformer

    last = count - 1
    return LambdaInputTransformer(
        BinaryF1Score(), lambda p: (p.argmax(dim=-1) == last).long(), lambda true: (true == last).long()
    )


def matthews(count: int) -> "Metric":
    """Matthews' correlation, 0 for guessing; also where one class alone is written (torchmetrics has a little more)."""
    from torchmetrics.classification import MulticlassMatthewsCorrCoef

    class Matthews(MulticlassMatthewsCorrCoef):
        def compute(self) -> Tensor:
            varied = all((self.confmat.sum(dim=side) > 0).sum() > 1 for side in (0, 1))
            return super().compute() if varied else torch.zeros(())

    return Matthews(num_classes=count)


FURTHER_METRICS: "dict[str, Callable[[int], Metric]]" = {"f1": f1, "matthews": matthews}
"""Metrics of a label that are computed where they are asked for; of so many classes."""


@dataclass(frozen=True)
class Label(RowKind):
    """One class of several; a record holds its name or its number."""

    classes: int | tuple[str, ...] = ()
    """How many there are, or their names. Fitted (sorted) if empty."""
    smoothing: float = 0.0
    """As an output: label smoothing of the loss."""
    further_metrics: tuple[Literal["f1", "matthews"], ...] = ()
    """As an output: F1 of the last class (of two, the positive one), Matthews' correlation."""
    kind: Literal["label"] = "label"
    """Name in files."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def read(self, cell: Any, files: Files) -> str:
        """Its name, also where the table holds a number."""
        return str(cell)

    def fit(self, values: Iterable[Any]) -> "Label":
        """The names that occur, sorted; whole numbers stay numbers, unless hardly any below the largest occurs."""
        if self.classes:
            return self
        found = set(values)
        if not all(isinstance(value, int | np.integer) for value in found):
            return replace(self, classes=tuple(sorted(map(str, found))))
        count = int(max(found, default=-1)) + 1
        if count > FEW_OF * (len(found) + 1):
            return replace(self, classes=tuple(map(str, sorted(found))))
        return replace(self, classes=count)

    def prepare(self, value: Any, rng: np.random.Generator, training: bool) -> int | None:
        """Its number; None (missing) for a class that is none of these, since new ones turn up after training."""
        try:
            return class_number(value, self.classes)
        except ValueError:
            return None

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> int:
        """Its number; ValueError if there is no such class."""
        return class_number(value, self.classes)

    def collate(self, values: Sequence[Any]) -> Tensor:
        """[B] numbers, -1 where unknown."""
        return torch.tensor([UNKNOWN if value is None else value for value in values])

    def cells(self, sample: Raw) -> dict[str, Any]:
        """The most probable class, and its probability."""
        ((name, probability),) = self.ranking(sample.float().softmax(dim=-1), 1)
        return {"": name, "probability": rounded(probability)}

    def contribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Change of the log-probability of the class that is predicted from everything."""
        change = whole.float().log_softmax(dim=-1) - without.float().log_softmax(dim=-1)
        return {"": rounded(change[whole.argmax()])}

    def blank(self, batch_size: int, device: torch.device) -> Raw:
        """Class 0."""
        return torch.zeros(batch_size, dtype=torch.long, device=device)

    def build_input(self) -> "OneHotInput":
        """One token that holds a one in the place of its class (official `OneHotPreprocessor`)."""
        return OneHotInput(fitted_count(self.num_classes))

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Logits [B, classes]."""
        return RowOutput(self.build_head(channels, fitted_count(self.num_classes)))

    def probabilities(self, target: Tensor) -> Float[Tensor, "b k"]:
        """A target of class numbers as probabilities of all classes; NaN where unknown."""
        hot = F.one_hot(target.clamp(min=0), fitted_count(self.num_classes)).float()
        return torch.where(target[:, None] == UNKNOWN, torch.nan, hot)

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Cross entropy over samples whose class, or the probabilities of all classes, is known."""
        known = target.isfinite().all(dim=-1) if target.ndim == 2 else target != UNKNOWN
        target = target.nan_to_num(0.0) if target.ndim == 2 else target.clamp(min=0)
        loss = F.cross_entropy(prediction, target, reduction="none", label_smoothing=self.smoothing)
        return mean_where(loss, known)

    def metrics(self) -> "dict[str, Metric]":
        """Fraction of right classes; expected calibration error, the mean distance of confidence from accuracy."""
        from torchmetrics import classification

        count = max(self.num_classes, 2)
        return {
            "accuracy": classification.MulticlassAccuracy(num_classes=count, average="micro"),
            "ece": classification.MulticlassCalibrationError(num_classes=count),
            **{name: FURTHER_METRICS[name](count) for name in self.further_metrics},
        }

    def compared(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Probabilities [n, classes] (of two at least) and true classes of known samples."""
        known = target != UNKNOWN
        return F.pad(prediction[known].softmax(dim=-1), (0, max(2 - self.num_classes, 0))), target[known]

    def ranking(self, probabilities: Float[Tensor, " classes"], count: int) -> list[tuple[str, float]]:
        """Names and probabilities of the most probable classes."""
        top = probabilities.topk(min(count, len(probabilities)))
        return [(self.name_of(int(i)), float(p)) for i, p in zip(top.indices, top.values, strict=True)]

    def name_of(self, number: int) -> str:
        """Name of a class."""
        return str(number) if isinstance(self.classes, int) else self.classes[number]

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Its name; of logits, the three most probable classes as bars."""
        if sample.ndim == 0:
            known = int(sample) != UNKNOWN
            name = drawable(self.name_of(int(sample))) if known else "?"
            axes.text(0.5, 0.5, name, ha="center", va="center", fontsize=14)
            axes.set_axis_off()
            return
        top = sample.detach().float().softmax(-1).topk(min(3, self.num_classes))
        names = [drawable(self.name_of(int(i))) for i in top.indices]
        axes.barh(range(len(names)), top.values.cpu().numpy(), tick_label=names, color="0.4")
        axes.invert_yaxis()
        axes.set_xlim(0, 1)

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Label, list[Any]]":
        """Three named classes; one sample is unknown."""
        return cls(classes=("cat", "dog", "eel"), query_channels=11), ["dog", "cat", None]


@dataclass(frozen=True)
class Labels(RowKind):
    """Any number of classes at once; a record holds a list of their names or numbers."""

    classes: int | tuple[str, ...] = ()
    """How many there are, or their names. Fitted (sorted) if empty."""
    kind: Literal["labels"] = "labels"
    """Name in files."""

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def read(self, cell: Any, files: Files) -> list[str]:
        """A list of names; one alone stands for a list of one."""
        value = plain(cell)
        return [str(name) for name in (value if isinstance(value, list) else [value])]

    def fit(self, values: Iterable[Any]) -> "Labels":
        """The names that occur, sorted."""
        fitted = Label(classes=self.classes).fit(name for value in values for name in value)
        return replace(self, classes=fitted.classes)

    def prepare(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Ones in the places of its classes."""
        hot = np.zeros(self.num_classes, np.float32)
        hot[[class_number(name, self.classes) for name in value]] = 1
        return hot

    def collate(self, values: Sequence[Any]) -> Tensor:
        """[B, classes], NaN where unknown."""
        return stack_known(values)

    def cells(self, sample: Raw) -> dict[str, Any]:
        """The classes more probable than not, and the probability of each class."""
        probabilities = sample.float().sigmoid()
        names = [str(i) for i in range(self.classes)] if isinstance(self.classes, int) else self.classes
        chosen = [name for name, p in zip(names, probabilities, strict=True) if p > 0.5]
        return {"": chosen, "probabilities": rounded(probabilities)}

    def contribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Change of the log-probability of the choice that is made from everything: of each class, whether or not."""
        side = torch.where(whole > 0, 1.0, -1.0)
        return {"": rounded((F.logsigmoid(side * whole) - F.logsigmoid(side * without)).sum())}

    def blank(self, batch_size: int, device: torch.device) -> Raw:
        """No class."""
        return torch.zeros(batch_size, self.num_classes, device=device)

    def build_input(self) -> "OneHotInput":
        """One token that holds ones in the places of its classes."""
        return OneHotInput(fitted_count(self.num_classes))

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Logits [B, classes]."""
        return RowOutput(self.build_head(channels, fitted_count(self.num_classes)))

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Binary cross entropy over known samples."""
        known = target.isfinite()
        return mean_where(
            F.binary_cross_entropy_with_logits(prediction, target.nan_to_num(0.0), reduction="none"), known
        )

    def metrics(self) -> "dict[str, Metric]":
        """Mean average precision over the classes."""
        from torchmetrics.classification import MultilabelAveragePrecision

        return {"mAP": MultilabelAveragePrecision(num_labels=self.num_classes)}

    def compared(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Logits and classes of known samples."""
        known = target.isfinite().all(dim=-1)
        return prediction[known], target[known].long()

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Labels, list[Any]]":
        """Five numbered classes; one sample has none, one is unknown."""
        return cls(classes=5, query_channels=7), [[0, 3], [], None]


class OneHotInput(InputAdapter):
    """One token that is as wide as there are classes; no position."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.channels = num_classes

    def forward(self, raw: Tensor) -> Segment:
        """From class numbers [B] or from ones and zeros [B, classes]."""
        if raw.ndim == 1:
            known = raw != UNKNOWN
            hot = F.one_hot(raw.clamp(min=0), self.channels).float()
        else:
            known, hot = raw.isfinite().all(dim=-1), raw.nan_to_num(0.0)
        return Segment(hot[:, None], mask=known[:, None])

    def absent(self, device: torch.device) -> Segment:
        """One token."""
        return Segment(torch.zeros(1, 1, self.channels, device=device))


def fitted_count(num_classes: int) -> int:
    """The number of classes; ValueError if there is none yet."""
    if not num_classes:
        raise ValueError("a label without classes: give classes=, or fit the schema to data first")
    return num_classes


def class_number(value: Any, classes: int | tuple[str, ...]) -> int:
    """Number of a class given by name or number; ValueError if there is no such class."""
    if isinstance(classes, int):
        number = int(value)
        if 0 <= number < classes:
            return number
        raise ValueError(f"class {value} is not one of 0 to {classes - 1}")
    if str(value) in classes:
        return classes.index(str(value))
    numbered = any(name.removeprefix("-").isdigit() for name in classes)  # a number is a name then, no place
    if isinstance(value, int | np.integer) and 0 <= value < len(classes) and not numbered:
        return int(value)
    raise ValueError(f"class {value!r} is not one of {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}")
