"""Classes of a whole sample: one class, or several labels.

A raw batch is [B] class numbers (-1 and -100: unknown), or for several labels [B, classes] zeros and ones. A target of
one class may also be probabilities [B, classes]. NaN is unknown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perceivers.core.arguments import check_positive
from perceivers.core.checks import is_whole
from perceivers.core.interfaces import InputAdapter, OutputAdapter
from perceivers.core.tokens import Segment
from perceivers.media.drawing import drawable
from perceivers.modalities.class_rows import Classes, ClassRows, RowGroup, class_names
from perceivers.modalities.modality import Raw, mean_where, rounded, shown
from perceivers.modalities.scalars import UNKNOWN, class_chances, class_name, class_numbers, class_value, names_of
from perceivers.modalities.scores import mean_average_precision
from perceivers.modalities.single_query import SingleQueryModality, SingleQueryOutput, stack_known
from perceivers.modalities.table_cells import Files, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

TRUTH = ("False", "True")
"""Names of the classes of truth values, in the order of their numbers."""

FEW_OF = 10
"""Sparseness of names: whole numbers are names (years, keys) if fewer than one in FEW_OF up to the largest occurs."""


def f1(count: int) -> "Metric":
    """Return the F1 metric of the last of `count` classes (of two classes, the positive one)."""
    from torchmetrics.classification import BinaryF1Score
    from torchmetrics.wrappers import LambdaInputTransformer

    last = count - 1
    return LambdaInputTransformer(
        BinaryF1Score(), lambda p: (p.argmax(dim=-1) == last).long(), lambda true: (true == last).long()
    )


def matthews(count: int) -> "Metric":
    """Return Matthews' correlation: 0 for guessing and, unlike in torchmetrics, if only one class is predicted."""
    from torchmetrics.classification import MulticlassMatthewsCorrCoef

    class Matthews(MulticlassMatthewsCorrCoef):
        def compute(self) -> Tensor:
            varied = all((self.confmat.sum(dim=side) > 0).sum() > 1 for side in (0, 1))
            return super().compute() if varied else torch.zeros(())

    return Matthews(num_classes=count)


FURTHER_METRICS: "dict[str, Callable[[int], Metric]]" = {"f1": f1, "matthews": matthews}
"""Optional metrics of a label, each made from the number of classes."""


@dataclass(frozen=True)
class Label(SingleQueryModality):
    """One of several classes; a record holds the name or the number of the class."""

    classes: int | tuple[str, ...] = ()
    """Number of classes, or their names. Fitted (sorted) if empty."""
    smoothing: float = 0.0
    """As an output: label smoothing of the loss."""
    further_metrics: tuple[Literal["f1", "matthews"], ...] = ()
    """As an output: F1 of the last class (of two, the positive one) and Matthews' correlation."""
    read_fields: ClassVar[tuple[str, ...]] = ()
    kind: Literal["label"] = "label"
    """Name in schema files."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def read(self, cell: Any, files: Files) -> str:
        """Return the name of the class; a number as text."""
        return class_name(cell)

    @property
    def is_fitted(self) -> bool:
        """True if the classes are known."""
        return bool(self.classes)

    def fit(self, values: Iterable[Any]) -> "Label":
        """Fit the classes: the names that occur, sorted; "False" and "True" for truth values.

        Whole numbers stay numbers, unless hardly any below the largest occurs (`FEW_OF`).
        """
        if self.is_fitted:
            return self
        # Truth values and names.
        distinct = {known for value in values if (known := class_value(value)) is not None}
        if distinct and all(isinstance(value, bool) for value in distinct):
            return replace(self, classes=TRUTH)
        if not all(isinstance(value, int) for value in distinct):
            return replace(self, classes=tuple(sorted({*map(str, distinct)})))
        # Whole numbers: the number of classes, or names.
        numbers = sorted(map(int, distinct))
        if numbers and numbers[0] < 0:
            raise ValueError(
                f"class {numbers[0]}: classes are counted from 0; give None for unknown, or text for a name"
            )
        count = max(numbers, default=-1) + 1
        if count > FEW_OF * (len(distinct) + 1):
            return replace(self, classes=tuple(map(str, numbers)))
        return replace(self, classes=count)

    @property
    def vocabularies(self) -> Mapping[str, Classes]:
        """The classes, if they are fitted."""
        return {"": self.classes} if self.classes else {}

    def with_vocabulary(self, field: str, classes: Classes) -> "Label":
        """Return the spec with other classes; ValueError if its F1 metric would be of another class than before."""
        last, new = class_names(self.classes)[-1], class_names(classes)[-1]
        if "f1" in self.further_metrics and last != new:
            raise ValueError(f"f1 is that of the last class, {last!r}, which would be {new!r}: without f1, change it")
        return replace(self, classes=classes)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> int | None:
        """Return the class number; None (missing) for an unknown class, since new ones turn up after training."""
        try:
            return class_number(value, self.classes)
        except ValueError:
            return None

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> int | None:
        """Return the class number; None where it is unknown; ValueError if there is no such class."""
        return class_number(value, self.classes)

    def collate(self, values: Sequence[Any]) -> Tensor:
        """Return [B] class numbers, -1 where unknown."""
        return torch.tensor([UNKNOWN if value is None else value for value in values])

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return the most probable class, and its probability."""
        ((name, probability),) = self.ranking(sample.float().softmax(dim=-1), 1)
        return {"": name, "probability": rounded(probability)}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the change of the log-probability of the class that is predicted from all inputs."""
        change = whole.float().log_softmax(dim=-1) - without.float().log_softmax(dim=-1)
        return {"": rounded(change[whole.argmax()])}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return class 0."""
        return torch.zeros(batch_size, dtype=torch.long, device=device)

    def build_input(self) -> "OneHotInput":
        """Build the adapter with one token, the one-hot class (official `OneHotPreprocessor`)."""
        fitted_count(self.num_classes)
        return OneHotInput(self.classes)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Build the adapter from the decoded query to logits [B, classes]."""
        head = self.build_head(channels, fitted_count(self.num_classes))
        return SingleQueryOutput(head, classes=self.classes)

    def probabilities(self, target: Tensor) -> Float[Tensor, "b k"]:
        """Return a target of class numbers as probabilities of all classes; NaN where unknown."""
        numbers, known = class_numbers(target, fitted_count(self.num_classes))
        return torch.where(known[:, None], F.one_hot(numbers, self.num_classes).float(), torch.nan)

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean cross entropy over samples whose class, or all of whose probabilities, are known."""
        target, known = self._known(target)
        target = target.to(prediction.dtype) if target.ndim == 2 else target
        loss = F.cross_entropy(prediction, target, reduction="none", label_smoothing=self.smoothing)
        return mean_where(loss, known)

    def metrics(self) -> "dict[str, Metric]":
        """Return accuracy, expected calibration error (mean gap of confidence and accuracy) and `further_metrics`."""
        from torchmetrics import classification

        count = max(self.num_classes, 2)
        return {
            "accuracy": classification.MulticlassAccuracy(num_classes=count, average="micro"),
            "ece": classification.MulticlassCalibrationError(num_classes=count),
            **{name: FURTHER_METRICS[name](count) for name in self.further_metrics},
        }

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return probabilities [n, classes] (of two classes at least) and true classes of the known samples."""
        target, known = self._known(target)
        target = target.argmax(dim=-1) if target.ndim == 2 else target
        return F.pad(prediction[known].softmax(dim=-1), (0, max(2 - self.num_classes, 0))), target[known]

    def ranking(self, probabilities: Float[Tensor, " classes"], count: int) -> list[tuple[str, float]]:
        """Return names and probabilities of the `count` most probable classes; ValueError for a count below 1."""
        check_positive("count", count)
        top = probabilities.topk(min(count, len(probabilities)))
        return [(self.name_of(int(i)), float(p)) for i, p in zip(top.indices, top.values, strict=True)]

    def _known(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return class numbers, or probabilities of all classes, with 0 where unknown; and True for known samples."""
        if target.ndim not in (1, 2):
            raise ValueError(f"classes of shape {tuple(target.shape)}, expected [B] or [B, {self.num_classes}]")
        if target.ndim == 1:
            return class_numbers(target, fitted_count(self.num_classes))
        chances, known = class_chances(target, fitted_count(self.num_classes), "probabilities")
        return chances, known.all(dim=-1)

    def name_of(self, number: int) -> str:
        """Return the name of a class."""
        return str(number) if isinstance(self.classes, int) else self.classes[number]

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw the name of the class; of logits, the three most probable classes as bars."""
        if sample.ndim == 0:
            name = drawable(self.name_of(int(sample))) if int(sample) >= 0 else "?"
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
        """Return three named classes; one sample is unknown."""
        return cls(classes=("cat", "dog", "eel"), query_channels=11), ["dog", "cat", None]


@dataclass(frozen=True)
class Labels(SingleQueryModality):
    """Any number of classes at once; a record holds a list of their names or numbers."""

    classes: int | tuple[str, ...] = ()
    """Number of classes, or their names. Fitted (sorted) if empty."""
    read_fields: ClassVar[tuple[str, ...]] = ()
    kind: Literal["labels"] = "labels"
    """Name in schema files."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def read(self, cell: Any, files: Files) -> list[str]:
        """Parse a list of names; a single name is a list of one."""
        value = plain(cell)
        return [class_name(name) for name in (value if isinstance(value, list) else [value])]

    @property
    def is_fitted(self) -> bool:
        """True if the classes are known."""
        return bool(self.classes)

    def fit(self, values: Iterable[Any]) -> "Labels":
        """Fit the classes: the names that occur, sorted."""
        fitted = Label(classes=self.classes).fit(name for value in values for name in _several(value))
        return replace(self, classes=fitted.classes)

    @property
    def vocabularies(self) -> Mapping[str, Classes]:
        """The classes, if they are fitted."""
        return {"": self.classes} if self.classes else {}

    def with_vocabulary(self, field: str, classes: Classes) -> "Labels":
        """Return the spec with other classes."""
        return replace(self, classes=classes)

    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> np.ndarray:
        """Return [classes] zeros, with ones for the classes of the sample."""
        hot = np.zeros(self.num_classes, np.float32)
        for name in _several(value):
            if (number := class_number(name, self.classes)) is None:
                raise ValueError("a class among several is unknown (None, NaN, -100): leave it out, or the whole list")
            hot[number] = 1
        return hot

    def collate(self, values: Sequence[Any]) -> Tensor:
        """Return [B, classes], NaN where unknown."""
        return stack_known(values)

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return the classes more probable than not, and the probability of each class."""
        probabilities = sample.float().sigmoid()
        names = [str(i) for i in range(self.classes)] if isinstance(self.classes, int) else self.classes
        chosen = [name for name, p in zip(names, probabilities, strict=True) if p > 0.5]
        return {"": chosen, "probabilities": rounded(probabilities)}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the change of the log-probability of the set of classes that is predicted from all inputs."""
        side = torch.where(whole > 0, 1.0, -1.0)
        return {"": rounded((F.logsigmoid(side * whole) - F.logsigmoid(side * without)).sum())}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return samples without any class."""
        return torch.zeros(batch_size, self.num_classes, device=device)

    def build_input(self) -> "OneHotInput":
        """Build the adapter with one token that holds ones for the classes of the sample."""
        fitted_count(self.num_classes)
        return OneHotInput(self.classes)

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Build the adapter from the decoded query to logits [B, classes]."""
        head = self.build_head(channels, fitted_count(self.num_classes))
        return SingleQueryOutput(head, classes=self.classes)

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean binary cross entropy over known labels."""
        target, known = class_chances(target, self.num_classes, "labels")
        loss = F.binary_cross_entropy_with_logits(prediction, target.to(prediction.dtype), reduction="none")
        return mean_where(loss, known)

    def metrics(self) -> "dict[str, Metric]":
        """Return the mean average precision over the classes."""
        return {"mAP": mean_average_precision()}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return probabilities and true labels of the known samples."""
        target, parts = class_chances(target, self.num_classes, "labels")
        known = parts.all(dim=-1)
        return prediction[known].float().sigmoid(), target[known].long()

    @classmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Labels, list[Any]]":
        """Return five numbered classes; one sample has none, one is unknown."""
        return cls(classes=5, query_channels=7), [[0, 3], [], None]


class OneHotInput(InputAdapter):
    """Adapter with one token, whose width is the number of classes; it has no position."""

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        self.channels = len(class_names(classes))
        self.token_classes = ClassRows(1, (RowGroup(classes=classes),))
        """The classes along the width of the token, which is that of the linear maps that read it."""

    def forward(self, raw: Raw) -> Segment:
        """Return the token, from class numbers [B] or from zeros and ones [B, classes]."""
        if not isinstance(raw, Tensor) or raw.ndim not in (1, 2):
            raise ValueError(f"{shown(raw)}, expected class numbers [B], or zeros and ones [B, {self.channels}]")
        if raw.ndim == 1:
            numbers, known = class_numbers(raw, self.channels)
            return Segment(F.one_hot(numbers, self.channels).float()[:, None], mask=known[:, None])
        hot, parts = class_chances(raw, self.channels, "labels")
        return Segment(hot[:, None], mask=parts.all(dim=-1, keepdim=True))

    def absent(self, device: torch.device) -> Segment:
        """Return one token."""
        return Segment(torch.zeros(1, 1, self.channels, device=device))


def fitted_count(num_classes: int) -> int:
    """Return the number of classes; ValueError if it is not fitted yet."""
    if not num_classes:
        raise ValueError("a label without classes: give classes=, or fit the schema to data first")
    return num_classes


def class_number(value: Any, classes: int | tuple[str, ...]) -> int | None:
    """Return the number of a class given by name or number; None if unknown; ValueError if there is no such class."""
    if (known := class_value(value)) is None:
        return None
    if isinstance(classes, int):
        return counted(known, classes)
    # A name.
    for name in names_of(value, known):
        if name in classes:
            return classes.index(name)
    # A truth value in another case, wherever a vocabulary that has grown or shrunk has it.
    truth = str(known).lower() if isinstance(known, bool) or known in ("true", "false") else ""
    lower = [name.lower() for name in classes] if truth else []
    if truth in lower:
        return lower.index(truth)
    # A number, unless the names themselves are numbers, or truth values without this one.
    numbered = any(name.removeprefix("-").isdigit() for name in classes) or not {"true", "false"}.isdisjoint(lower)
    if isinstance(known, int) and 0 <= known < len(classes) and not numbered and (known < 2 or classes != TRUTH):
        return int(known)
    raise ValueError(f"class {known!r} is not one of {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}")


def check_classes(classes: Any) -> None:
    """Raise a ValueError unless classes are given as their number, or as their names without repetition."""
    named = isinstance(classes, tuple | list)
    if not (len(set(classes)) == len(classes) if named else is_whole(classes) and classes >= 0):
        raise ValueError(f"classes = {classes!r:.99} must be a number of classes, or their names, each once")


def counted(value: bool | int | str, count: int) -> int:
    """Return the number of one of `count` classes without names; ValueError if there is no such class."""
    with suppress(ValueError):
        number = float(value)
        if number.is_integer() and 0 <= number < count and not (isinstance(value, bool) and count != 2):
            return int(number)
    raise ValueError(f"class {value!r} is not one of 0 to {count - 1}; where it is unknown, give None")


def _several(value: Any) -> Iterable[Any]:
    """Return the classes of a sample as an iterable, also if the sample has a single class."""
    if isinstance(value, Tensor | np.ndarray) and (value.ndim != 1 or value.dtype in (torch.bool, np.bool_)):
        raise ValueError(f"labels of shape {tuple(value.shape)} and type {value.dtype}, expected a list of classes")
    return value if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else [value]
