"""The interface of a modality, as an input and as an output. A new modality is one file and one line in MODALITIES."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perceivers.core.arguments import check_names
from perceivers.core.checks import COUNT, FRACTION, SIZE, check_ranges
from perceivers.core.interfaces import InputAdapter, OutputAdapter, OutputQuery
from perceivers.core.precision import floats, precise
from perceivers.modalities.class_rows import Classes
from perceivers.modalities.points import Points
from perceivers.modalities.raw import check_keys, given
from perceivers.modalities.table_cells import Files, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torchmetrics import Metric

T = TypeVar("T")

Raw = Any
"""A batch as the model takes or returns it: a tensor with the batch first, or a dictionary of such tensors."""

NOMINAL = 64
"""Number of elements of a dummy input that is a set, since a set has no fixed size."""


AT_EVAL = {
    "drop_prob": "drop_at_eval",
    "subsample": "subsample_at_eval",
    "field_mask_prob": "field_mask_at_eval",
    "mask_words": "mask_at_eval",
    "mask_prob": "mask_at_eval",
}
"""Fields that corrupt inputs in training, each with the option that applies it in evaluation too."""

TRAINING_ALONE = ("weight", "noise", "num_points", "augmentation", "smoothing")
"""Fields that act in training only; an evaluation does not depend on them."""


RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("weight", "token", "noise"), COUNT),
    **dict.fromkeys(("drop_prob", "mask_prob", "smoothing"), FRACTION),
    **dict.fromkeys(("channels", "query_channels", "hidden_channels", "embed", "vocab_size", "num_points"), SIZE),
    **dict.fromkeys(("axes", "count", "max_records", "rate", "hop", "window", "patch"), SIZE),
}
"""Allowed ranges of numeric fields, by name, in all modalities."""


class Ablation(NamedTuple):
    """A raw batch without one of its parts."""

    raw: Raw
    """The batch without the part; None: nothing is left."""
    there: Bool[Tensor, " b"]
    """True for the samples that had the part."""


@dataclass(frozen=True, kw_only=True)
class Modality(ABC):
    """A declared input or output. The methods come in the order in which data passes through them."""

    key: str | None = None
    """Field of a record that holds the value; None: the name of the input or output."""
    weight: float = 1.0
    """As an output: weight of its loss."""
    drop_prob: float = 0.0
    """As an input, in training: probability that the input is dropped from a sample."""
    drop_at_eval: bool = False
    """As an input: drop it in evaluation too; in prediction never."""
    mask_prob: float | None = None
    """As an input: probability that a token is replaced by the trained mask token; None: there is no mask token."""
    mask_at_eval: bool = False
    """As an input: mask in evaluation too; with `mask_prob` 1 also in prediction (released video model)."""
    role: Literal["read", "condition", "query"] = "read"
    """As an input: its tokens are read; or their mean conditions the stages that are `conditioned`; or they serve the
    queries of outputs alone."""

    gate: bool = False
    """As an input: a trained gate weighs its tokens in the softmax of reading. The gate starts closed, so that an input
    that is added to a trained model changes nothing at first."""

    read_fields: ClassVar[tuple[str, ...] | None] = None
    """Names of the fields that `read` depends on; None: all."""
    preprocess_needs_fit: ClassVar[bool] = True
    """False if `preprocess` and `target` do not depend on fitted fields: values can be checked before `fit`."""
    ranges: ClassVar[Mapping[str, tuple[float, float]]] = RANGES
    """Allowed ranges of numeric fields, by name."""

    def __post_init__(self) -> None:
        check_ranges(self, self.ranges)

    @property
    def of(self) -> str | None:
        """Name of the input whose tokens are the queries of this output; None: the output has its own queries."""
        return None

    def read(self, cell: Any, files: Files) -> Any:
        """Parse a cell of a table (never None) into a record's value; ValueError if it does not fit the modality."""
        return plain(cell)

    def reads_like(self, other: "Modality") -> bool:
        """Return whether `read` gives the same value as `other.read` for any cell."""
        if type(self) is not type(other) or self.read_fields is None:
            return self == other
        return all(getattr(self, name) == getattr(other, name) for name in self.read_fields)

    @property
    def is_fitted(self) -> bool:
        """True if `fit` would change nothing; no values are then loaded for `fit`."""
        return type(self).fit is Modality.fit

    def summary(self, value: Any) -> Any:
        """Return what `fit` needs to know of a value; `fit` takes the summary, so that large values are not kept."""
        return value

    def fit(self, values: Iterable[Any]) -> "Modality":
        """Return the spec with statistics or a vocabulary fitted to the training values, or to their summaries."""
        return self

    @property
    def vocabularies(self) -> Mapping[str, Classes]:
        """The classes of each fitted vocabulary, by field; "": the vocabulary of the modality itself."""
        return {}

    def with_vocabulary(self, field: str, classes: Classes) -> "Modality":
        """Return the spec with other classes in one of its vocabularies."""
        raise ValueError(f"{type(self).__name__} has no vocabulary {field!r}")

    def uncorrupted(self) -> "Modality":
        """Return the spec for prediction: nothing is random, and the inputs are whole."""
        options: dict[str, Any] = {option.name: False for option in fields(self) if option.name.endswith("_at_eval")}
        return replace(self, **options)

    @abstractmethod
    def preprocess(self, value: Any, rng: np.random.Generator, training: bool) -> Any:
        """Return the value of one record in the data's units, ready for `collate`; all random draws come from `rng`.

        Nothing is random outside training, unless an option whose name ends in "_at_eval" is true.
        """

    def target(self, value: Any, rng: np.random.Generator, prepared: Mapping[str, Any], training: bool) -> Any:
        """Return the value of one record as a target, never corrupted. `prepared` holds the preprocessed inputs."""
        return self.preprocess(value, rng, training=False)

    @abstractmethod
    def collate(self, values: Sequence[Any]) -> Raw:
        """Return a raw batch of preprocessed values or targets. None is a missing value; at least one is not None."""

    def to_row(self, sample: Raw) -> dict[str, Any]:
        """Return one predicted sample as plain values of a table: "" is the output's column, others are extra."""
        return {"": rounded(sample)}

    def attribution(self, whole: Raw, without: Raw) -> dict[str, Any]:
        """Return the attribution to a part of the inputs: the prediction minus the one `without` it, as in `to_row`.

        Modalities that predict a number or a probability return a signed change. The default is the root mean
        squared difference over all values.
        """
        return {"": rounded((whole - without).square().mean().sqrt())}

    def ablations(self, raw: Raw) -> Mapping[str, Ablation | list[Ablation]]:
        """Return the batch without each of its named parts in turn, or (a list) without each member of a set."""
        return {}

    def dummy_input(self, batch_size: int, device: torch.device) -> Raw:
        """Return a raw input of the trained size (a set of NOMINAL elements) with arbitrary content."""
        raise ValueError(f"{type(self).__name__} cannot be an input")

    def dummy_points(self, batch_size: int, device: torch.device) -> Points | None:
        """Return NOMINAL arbitrary points for an output that can only be decoded at points; None for others."""
        return None

    @property
    def reads_parts(self) -> bool:
        """True if the input can be read as a Part: each token has a position and is independent of its neighbours."""
        return False

    def build_input(self) -> InputAdapter:
        """Build the adapter that turns a raw batch into tokens."""
        raise ValueError(f"{type(self).__name__} cannot be an input")

    def build_query(self, inputs: Mapping[str, InputAdapter]) -> OutputQuery:
        """Build the module that turns points into queries."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    def build_output(self, channels: int, inputs: Mapping[str, InputAdapter]) -> OutputAdapter:
        """Build the adapter that turns decoded queries, E = `channels` wide, into a raw batch."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    @property
    def target_parts(self) -> tuple[str, ...]:
        """Names of the arrays of a raw target; empty if the target is a tensor."""
        return ()

    def checked_target(self, target: Any, device: torch.device) -> Raw:
        """Return a raw target as tensors; ValueError for a structure that the loss does not take."""
        target, parts = given(target, device), self.target_parts
        if isinstance(target, Mapping) != bool(parts):
            raise ValueError(f"a target is {shown(target)}, expected {', '.join(parts) or 'a tensor'}")
        if parts:
            check_keys(target, parts, ["mask", "masked", "index"])
        return target

    def points(self, target: Raw) -> Points | None:
        """Return the points at which a batch of targets is known; None: everywhere."""
        return None

    def loss(self, prediction: Raw, target: Raw) -> Tensor:
        """Return the mean loss over the known elements of a batch; 0 if there are none."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    @property
    def is_likelihood(self) -> bool:
        """True if the loss is a negative log-likelihood, which may fall below 0: it takes no learned weight."""
        return False

    def num_terms(self, target: Raw) -> Tensor:
        """Return the number of elements, up to a factor, that the loss averages over: the weight of a partial batch."""
        if isinstance(target, Mapping):
            return target["mask"].sum() if "mask" in target else target["values"].isfinite().sum()
        return target.isfinite().sum() if target.is_floating_point() else (target >= 0).sum()

    def metrics(self) -> "dict[str, Metric]":
        """Return new metrics by name; each is updated with `metric_inputs(prediction, target)`."""
        return {}

    def metric_inputs(self, prediction: Raw, target: Raw) -> tuple[Tensor, Tensor]:
        """Return predictions and targets of the known elements, as the metrics take them."""
        raise ValueError(f"{type(self).__name__} cannot be an output")

    def picture(self, axes: "Axes", sample: Raw) -> None:
        """Draw one sample (of a raw batch, a target or a prediction)."""
        axes.text(0.5, 0.5, str(sample), ha="center", va="center", wrap=True)
        axes.set_axis_off()

    def attention_picture(self, axes: "Axes", sample: Raw, weights: Float[Tensor, " m"]) -> None:
        """Draw one sample of an input and the attention that each of its tokens gets."""
        self.picture(axes, sample)

    def for_plot(self, prediction: Raw, target: Raw) -> Raw:
        """Merge a prediction with its target's coordinates and masks, for `picture`."""
        return prediction

    @classmethod
    @abstractmethod
    def example(cls, rng: np.random.Generator) -> "tuple[Modality, list[Any]]":
        """Return a small spec and two or more values, for tests: odd sizes, one missing, ragged where allowed."""


def input_of(inputs: Mapping[str, InputAdapter], name: str) -> InputAdapter:
    """Return the input that an output refers to; ValueError if no input has that name."""
    return inputs[check_names("input", [name], inputs)[0]]


def lacks_source(spec: Modality, inputs: Mapping[str, Any]) -> bool:
    """Return whether a sample lacks the input whose tokens are the queries: it has no target and no prediction."""
    return spec.of is not None and inputs.get(spec.of) is None


def as_evaluated(spec_fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a spec with the `changes` of an evaluation; ValueError for a change without effect.

    A changed corruption acts in the evaluation: its option (`AT_EVAL`) is switched on. Other corruptions that share
    the option, and did not act before, are set to 0.
    """
    if without_effect := [name for name in changes if name in TRAINING_ALONE]:
        raise ValueError(f"{without_effect[0]} has no effect in an evaluation: leave it out")
    changed = {**spec_fields, **changes}
    acting = {at_eval for at_eval in AT_EVAL.values() if spec_fields.get(at_eval)}
    switched = {at_eval for name, at_eval in AT_EVAL.items() if name in changes} - acting - set(changes)
    for name, at_eval in AT_EVAL.items():
        if at_eval in switched:
            changed[at_eval] = True
            if name not in changes and spec_fields.get(name):
                changed[name] = 0.0
    return changed


def named(name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call a function; the message of a TypeError or ValueError begins with the name."""
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def mean_where(loss: Tensor, valid: Tensor) -> Tensor:
    """Return the mean over the valid elements; 0 if there are none (a whole batch may lack a target)."""
    loss = torch.where(valid, loss, torch.zeros_like(loss))
    return loss.sum() / valid.sum().clamp(min=1)


def statistics(rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of the finite values of each column of [n, C]; 0 and 1 without any."""
    known = np.isfinite(rows)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, rows, 0.0).sum(axis=0) / count
    std = np.sqrt((np.where(known, rows - mean, 0.0) ** 2).sum(axis=0) / count)
    return tuple(mean.tolist()), tuple(unit_std(std).tolist())


def unit_std(std: np.ndarray | np.float64) -> np.ndarray:
    """Return the standard deviations, with 1 where the data are constant, since the data are divided by them."""
    return np.where(std >= SMALLEST, std, 1.0)


Unit = float | Sequence[float] | None
"""Mean or standard deviation for normalisation: one for all values, or one for each channel (the last axis)."""

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
"""Smallest and largest magnitude of float32 (normal numbers)."""


def check_units(mean: Unit, std: Unit, count: int = 1, what: str = "channels") -> None:
    """Raise a ValueError for a mean or a standard deviation that cannot normalise `count` channels."""
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
    """Return (values - mean) / std in at least float32; not finite where a value is unknown or overflows."""
    if mean is None and std is None:  # no copy: the input may be large
        return values
    values = precise(values)
    return (values - _unit(mean, 0.0, values)) / _unit(std, 1.0, values)


def known_units(values: Tensor, mean: Unit, std: Unit) -> tuple[Tensor, Bool[Tensor, "*b"]]:
    """Return normalised values, 0 where they are unknown, and True where they are known."""
    known, values = values.isfinite(), normalised(values, mean, std)
    return torch.where(known, values, torch.zeros_like(values)), known


def denormalised(values: Tensor, mean: Unit, std: Unit) -> Tensor:
    """Return values * std + mean in at least float32: next to a large mean, half precision would lose digits."""
    if mean is None and std is None:
        return values
    values = precise(values)
    return values * _unit(std, 1.0, values) + _unit(mean, 0.0, values)


def _unit(unit: Unit, default: float, like: Tensor) -> Tensor | float:
    """Return a mean or a standard deviation for each number of the last axis, where channels may repeat (patches)."""
    if not isinstance(unit, Sequence):
        return default if unit is None else unit
    each = like.new_tensor(unit)
    return each.repeat(like.shape[-1] // len(each)) if len(each) > 1 else each


def pad_sequences(values: Sequence[np.ndarray | None]) -> tuple[Tensor, Tensor]:
    """Pad arrays [n_i, ...] with zeros; return [B, max n, ...] and a mask [B, max n], True for elements of an array.

    None stands for an array without elements.
    """
    known = next(value for value in values if value is not None)
    longest = max(max(0 if value is None else len(value) for value in values), 1)
    batch = np.zeros((len(values), longest, *known.shape[1:]), known.dtype)
    mask = np.zeros(batch.shape[:2], bool)
    for sample, value in enumerate(values):
        if value is not None:
            batch[sample, : len(value)] = value
            mask[sample, : len(value)] = True
    return torch.from_numpy(batch), torch.from_numpy(mask)


def check_subsample(share: tuple[float, float]) -> None:
    """Raise a ValueError unless this is a range of the share of a set that is kept."""
    if not 0 <= share[0] <= share[1] <= 1:
        raise ValueError(f"subsample = {share} must be two rising fractions between 0 and 1")


def random_members(arrays: dict[str, np.ndarray], share: tuple[float, float], rng: np.random.Generator) -> Any:
    """Return a random share of a set's members, at least one, from arrays by name with a member in each place."""
    total = len(next(iter(arrays.values())))
    if share == (1.0, 1.0) or not total:
        return arrays
    chosen = rng.choice(total, max(1, round(rng.uniform(*share) * total)), replace=False)
    return {name: array[chosen] for name, array in arrays.items()}


def rounded(values: Any) -> Any:
    """Return numbers rounded to seven digits, the precision of float32, also in dictionaries; tensors as lists."""
    if isinstance(values, Mapping):
        return {name: rounded(value) for name, value in values.items()}
    plain_values = values.tolist() if isinstance(values, Tensor | np.ndarray) else values
    if isinstance(plain_values, list):
        return [rounded(value) for value in plain_values]
    return float(f"{plain_values:.7g}") if isinstance(plain_values, float) else plain_values


def same_shape(target: Tensor, expected: Sequence[int]) -> Tensor:
    """Return a target as real numbers; ValueError for another shape, which might broadcast to the prediction."""
    if tuple(target.shape) != tuple(expected) or target.is_complex():
        raise ValueError(f"a target of shape {tuple(target.shape)} and {target.dtype}, expected {tuple(expected)}")
    return floats(target)


def shown(raw: Any) -> str:
    """Describe a raw batch in a few words, for an error message."""
    if isinstance(raw, Tensor):
        return f"input of shape {tuple(raw.shape)}"
    return f"a dictionary of {', '.join(map(str, raw))}" if isinstance(raw, Mapping) else f"a {type(raw).__name__}"


def sample_of(batch: Raw, index: int) -> Raw:
    """Return one sample of a raw batch."""
    if isinstance(batch, Mapping):
        return {name: sample_of(value, index) for name, value in batch.items()}
    return batch[index]
