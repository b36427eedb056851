"""What every modality answers, as an input and as an output. A new one is one file and one line in MODALITIES."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.core.arguments import check_names, floats, precise
from perceivers.core.checks import COUNT, FRACTION, SIZE, check_ranges
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.modalities.points import Points
from perceivers.modalities.raw import check_keys, given
from perceivers.modalities.table_cells import Files, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

T = TypeVar("T")

Raw = Any
"""A batch as the model takes or gives it: a tensor with the batch first, or a dictionary of such tensors."""

NOMINAL = 64
"""Elements of a blank set: sets have no size of their own."""


AT_EVAL = {
    "drop_prob": "drop_at_eval",
    "subsample": "subsample_at_eval",
    "field_mask_prob": "field_mask_at_eval",
    "mask_words": "mask_at_eval",
    "mask_prob": "mask_at_eval",
}
"""Corruptions of inputs, and the options that let them act in evaluation too."""

TRAINING_ALONE = ("weight", "noise", "num_points", "augmentation", "smoothing")
"""Fields that no evaluation feels."""


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("weight", "token", "noise"), COUNT),
    **dict.fromkeys(("drop_prob", "mask_prob", "smoothing"), FRACTION),
    **dict.fromkeys(("channels", "query_channels", "hidden_channels", "embed", "vocab_size", "num_points"), SIZE),
    **dict.fromkeys(("axes", "count", "max_records", "rate", "hop", "window", "patch"), SIZE),
}
"""Ranges of the numbers by which any kind is declared."""


class Ablation(NamedTuple):
    """A raw batch without one of its parts."""

    raw: Raw
    """The rest; None: nothing is left."""
    there: Bool[Tensor, " b"]
    """Which samples had that part."""


@dataclass(frozen=True, kw_only=True)
class Modality(ABC):
    """A declared input or output. The methods stand in the order in which data meets them."""

    key: str | None = None
    """Field of a record it is read from; None: its own name."""
    weight: float = 1.0
    """As an output: weight of its loss."""
    drop_prob: float = 0.0
    """As an input, in training: probability that a sample goes without it."""
    drop_at_eval: bool = False
    """As an input: drop in evaluation too; in prediction never."""
    mask_prob: float | None = None
    """As an input: probability that a token is replaced by the trained mask token; None: there is no mask token."""
    mask_at_eval: bool = False
    """As an input: mask in evaluation too; in prediction only what is always masked (released video model)."""

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)

    @property
    def of(self) -> str | None:
        """As an output: the input that it asks with; None: it has queries of its own."""
        return None

    def read(self, cell: Any, files: Files) -> Any:
        """A table's cell, never None, as a record's value; ValueError if it is none of this kind."""
        return plain(cell)

    def fit(self, values: Iterable[Any]) -> "Modality":
        """Itself with the statistics or the vocabulary of the training part filled in."""
        return self

    def uncorrupted(self) -> "Modality":
        """Return the spec as a prediction takes it: with all that it is given, the same each time."""
        options: dict[str, Any] = {own.name: False for own in fields(self) if own.name.endswith("_at_eval")}
        return replace(self, **options)

    @abstractmethod
    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> Any:
        """One record's value, in the data's units, as `collate` takes it; all that is random comes from `rng`.

        Nothing is random outside training, unless an option whose name ends in "_at_eval" is true.
        """

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """The same as an output: never corrupted. `prepared` holds the record's prepared inputs."""
        return self.preprocess(value, rng, training=False)

    @abstractmethod
    def collate(self, values: Sequence[Any]) -> Raw:
        """A batch; None stands for a sample without it. Never called with None alone."""

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """A sample of a prediction as plain values for a table: "" is the output's own column, others stand beside."""
        return {"": rounded(sample)}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """What a sample of a prediction owes to a part of the inputs: its change from `without` it; as `to_row`.

        A signed change where a number or the probability of what is predicted can tell; here how far all values
        moved, the root of the mean squared difference.
        """
        return {"": rounded((whole - without).square().mean().sqrt())}

    def ablations(self, raw: Raw) -> Mapping[str, Ablation | list[Ablation]]:
        """As an input: a batch without each of its named parts, or (a list) without each member of a set."""
        return {}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """A raw input of the trained size (a set of NOMINAL elements), its content irrelevant."""
        raise ValueError(f"{type(self).__name__} cannot be an input")

    def dummy_points(self, batch_size: int, device: torch.device) -> Points | None:
        """Where an output that has no whole is asked, NOMINAL times; None: it has a whole."""
        return None

    @property
    def reads_parts(self) -> bool:
        """Whether an input may be read as a Part: no token depends on its neighbours, and each knows its place."""
        return False

    def build_input(self) -> InputAdapter:
        """Raw batch to tokens."""
        raise ValueError(f"{type(self).__name__} cannot be an input")

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Points to queries."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Rows of the decoder, E channels wide, to a raw batch."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Names of the arrays of a raw target; none: it is a tensor."""
        return ()

    def checked_target(self, target: Any, device: torch.device) -> Raw:
        """Return a raw target as tensors; ValueError for another structure than the loss takes."""
        target, parts = given(target, device), self.target_parts
        if isinstance(target, Mapping) != bool(parts):
            raise ValueError(f"a target is {shown(target)}, expected {', '.join(parts) or 'a tensor'}")
        if parts:
            check_keys(target, parts, ["mask", "masked", "index"])
        return target

    def points(self, target: Raw) -> Points | None:
        """Where a batch of targets was measured; None: everywhere."""
        return None

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Mean loss of a batch over what is there; 0 where nothing is."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    @property
    def is_likelihood(self) -> bool:
        """Whether its loss is a likelihood that may fall below 0: then it weighs itself."""
        return False

    def num_terms(self, target: Raw) -> Tensor:
        """How many elements (to a constant factor) the loss of a batch is a mean over; so that parts can be weighed."""
        if isinstance(target, Mapping):
            return target["mask"].sum() if "mask" in target else target["values"].isfinite().sum()
        return target.isfinite().sum() if target.is_floating_point() else (target >= 0).sum()

    def metrics(self) -> "dict[str, Metric]":
        """New metrics by name; each is updated with `metric_inputs(prediction, target)`."""
        return {}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Predictions and targets of what is there, as the metrics take them."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw one sample (of a raw batch, a target or a prediction)."""
        axes.text(0.5, 0.5, str(sample), ha="center", va="center", wrap=True)
        axes.set_axis_off()

    def attention_picture(self, axes: "Axes", sample: Raw, weights: Float[Tensor, " m"]) -> None:
        """Draw one sample of an input and how much attention each of its tokens gets."""
        self.picture(axes, sample)

    def for_plot(self, prediction: Raw, target: Raw) -> Raw:
        """A prediction as `picture` draws it, with what only the target knows of it (places, masks)."""
        return prediction

    @classmethod
    @abstractmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Modality, list[Any]]":
        """A small spec and at least two values for it: odd sizes, something missing, ragged where it can be."""


def input_of(inputs: Mapping[str, InputAdapter], name: str) -> InputAdapter:
    """The input that an output refers to; ValueError if there is none of that name."""
    return inputs[check_names("input", [name], inputs)[0]]


def asks_in_vain(spec: Modality, inputs: Mapping[str, Any]) -> bool:
    """Return whether an output asks with an input that a sample lacks: then it has no target and no prediction."""
    return spec.of is not None and inputs.get(spec.of) is None


def as_evaluated(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec as an evaluation changes them; ValueError for one that it would not feel.

    A corruption that it names acts, and of those that share an option with it only what acts without that change.
    """
    if unfelt := [name for name in changes if name in TRAINING_ALONE]:
        raise ValueError(f"{unfelt[0]} has no effect in an evaluation: leave it out")
    found = {**own, **changes}
    switched = {at_eval for name, at_eval in AT_EVAL.items() if name in changes and not own.get(at_eval)} - set(changes)
    for name, at_eval in AT_EVAL.items():
        if at_eval in switched:
            found[at_eval] = True
            if name not in changes and own.get(name):
                found[name] = 0.0
    return found


def named(name: str, function: Callable[..., T], *arguments: Any) -> T:
    """What the function gives; its errors say what they are about."""
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def mean_where(loss: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid elements; 0 without any (a target may be absent in a whole batch)."""
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return loss.sum() / valid.sum().clamp(min=1)


def statistics(rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column of [n, C] over its finite values; 0 and 1 where there is nothing."""
    known = np.isfinite(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(known, rows - mean, 0.0) ** 2).sum(axis=0) / count)
    return tuple(mean.tolist()), tuple(unit_std(std).tolist())


def unit_std(std: np.ndarray | np.float64) -> np.ndarray:
    """Return standard deviations found in data, 1 where the data are constant."""
    return np.where(std >= SMALLEST, std, 1.0)


Unit = float | Sequence[float] | None
"""Mean or standard deviation of what is normalised: of all, or of each of the numbers at the end (channels)."""

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Magnitudes that float32 has."""


def check_units(mean: Unit, std: Unit, count: int = 1, what: str = "channels") -> None:
    """Raise a ValueError for a mean or a standard deviation that `count` numbers cannot be normalised with."""
    for name, unit, least in (("mean", mean, -LARGEST), ("std", std, SMALLEST)):
        if unit is None:
            continue
        each = unit if isinstance(unit, Sequence) else (unit,)
        if len(each) not in (1, count):
            raise ValueError(f"{name} = {unit!r:.99} must have one number, or one for each of {count} {what}")
        if not all(isinstance(x, Real) and least <= x <= LARGEST for x in each):
            right = "above 0" if least > 0 else "finite"
            raise ValueError(f"{name} = {unit!r:.99} must be {right}, within the range of float32")


def normalised(values: Tensor, mean: Unit, std: Unit) -> Tensor:
    """Return values in units of `std`, in at least float32; those that are unknown, or overflow, are not finite."""
    if mean is None and std is None:  # a copy of a large input would be felt
        return values
    values = precise(values)
    return (values - _unit(mean, 0.0, values)) / _unit(std, 1.0, values)


def known_units(values: Tensor, mean: Unit, std: Unit) -> tuple[Tensor, Bool[Tensor, "*b"]]:
    """Return normalised values, 0 where they are unknown, and True where they are known."""
    known, values = values.isfinite(), normalised(values, mean, std)
    return torch.where(known, values, torch.zeros_like(values)), known


def denormalised(values: Tensor, mean: Unit, std: Unit) -> Tensor:
    """Return values in the data's units, in at least float32, which near a large mean is no less exact."""
    if mean is None and std is None:
        return values
    values = precise(values)
    return values * _unit(std, 1.0, values) + _unit(mean, 0.0, values)


def _unit(unit: Unit, default: float, like: Tensor) -> Tensor | float:
    """Return what a mean or a standard deviation is of each number at the end; channels may repeat (patches)."""
    if not isinstance(unit, Sequence):
        return default if unit is None else unit
    each = like.new_tensor(unit)
    return each.repeat(like.shape[-1] // len(each)) if len(each) > 1 else each


def pad_sequences(values: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor]:
    """Arrays [n_i, ...] to [B, max n, ...] and a mask [B, max n], True where there is something; None has nothing."""
    known = next(value for value in values if value is not None)
    longest = max(max(0 if value is None else len(value) for value in values), 1)
    batch = np.zeros((len(values), longest, *known.shape[1:]), known.dtype)
    mask = np.zeros(batch.shape[:2], bool)
    for row, value in enumerate(values):
        if value is not None:
            batch[row, : len(value)] = value
            mask[row, : len(value)] = True
    return torch.from_numpy(batch), torch.from_numpy(mask)


def rounded(values: Any) -> Any:
    """Numbers of a tensor as plain ones in seven digits, which is what float32 holds; in lists, in dictionaries."""
    if isinstance(values, Mapping):
        return {name: rounded(value) for name, value in values.items()}
    plain_values = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    if isinstance(plain_values, list):
        return [rounded(value) for value in plain_values]
    return float(f"{plain_values:.7g}") if isinstance(plain_values, float) else plain_values


def same_shape(target: Tensor, expected: Sequence[int]) -> Tensor:
    """Return a target of real numbers of this shape; ValueError for others, which might spread over a prediction."""
    if tuple(target.shape) != tuple(expected) or target.is_complex():
        raise ValueError(f"a target of shape {tuple(target.shape)} and {target.dtype}, expected {tuple(expected)}")
    return floats(target)


def shown(raw: Any) -> str:
    """Return what a raw batch is, in a few words, for a message."""
    if isinstance(raw, Tensor):
        return f"input of shape {tuple(raw.shape)}"
    return f"a dictionary of {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else f"a {type(raw).__name__}"


def sample_of(batch: Raw, index: int) -> Raw:
    """One sample of a raw batch."""
    if isinstance(batch, Mapping):
        return {name: sample_of(value, index) for name, value in batch.items()}
    return batch[index]
