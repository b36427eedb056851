"""Checks of arguments: a value is converted to what fits, or refused in one line that names it and what would be right.

Conditions on shapes cost nothing. Conditions on values go through `require`, which decides when values are looked at.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

T = TypeVar("T")

Range = tuple[str, Tensor, Tensor | float]
"""A part of tokens by name, and how large its numbers may be."""

SIZE, COUNT, FRACTION = (1.0, math.inf), (0.0, math.inf), (0.0, 1.0)
"""Ranges of the numbers of a configuration: a width or a length; how many; a probability."""

NONE = type(None)
"""Type of an optional field that is not set."""

NUMBERS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
"""Types of numbers that torch calculates with."""

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types of whole numbers that torch can hold, but not calculate with."""

LONGEST_HINT, MOST_HINTS = 100, 2000
"""Characters of a name, and number of names, that a wrong one is compared with: each takes quadratic time."""


def require(holds: Bool[Tensor, ""], message: Callable[[], str]) -> None:
    """Raise a ValueError unless a condition on values holds, where they are looked at (`has_values`).

    On a GPU, a training step does not wait for the answer: there the error is the device's own.
    """
    if not has_values(holds):
        return
    if holds.is_cuda and torch.is_grad_enabled():
        torch._assert_async(holds, "a value of the batch is out of range: run the same batch on the CPU for its name")
    elif not bool(holds):
        raise ValueError(message())


def has_values(x: Tensor) -> bool:
    """Return whether the values of a tensor are there to be looked at; in compiled programs they are not."""
    return not (
        torch.compiler.is_compiling()
        or x.device.type == "meta"
        or isinstance(x, FakeTensor)
        or torch._C._are_functorch_transforms_active()
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )


def within(x: Tensor, limit: Tensor | float) -> Tensor:
    """Return numbers [..., m, c] as they are, but NaN, which is NaN in every algorithm, for those beyond a limit."""
    if has_values(x) and not (x.is_cuda and torch.is_grad_enabled()):  # a training step there does not wait
        peaks = torch.linalg.vector_norm(x.detach(), math.inf, dim=(-2, -1))  # of each sample, without a copy
        if not ((peaks > limit) & peaks.isfinite()).any():
            return x
    return torch.where(x.abs() <= limit, x, torch.nan)


def in_range(segment: Any, dtype: torch.dtype) -> Any:
    """Return a segment of tokens with NaN for numbers that are too large to be normed in this precision."""
    return dataclasses.replace(segment, **{name: within(x, limit) for name, x, limit in segment.ranges(dtype)})


def is_in_range(segment: Any, dtype: torch.dtype) -> Tensor | None:
    """Return which tokens can be normed, in at least float32, [..., m, 1]: no number NaN or too large; None: all."""
    dtype = torch.promote_types(dtype, torch.float32)
    found = [
        torch.linalg.vector_norm(x.detach(), math.inf, dim=-1, keepdim=True) <= limit
        for _, x, limit in segment.ranges(dtype)
    ]
    return functools.reduce(torch.logical_and, found) if found else None


def ranges_of(
    parts: Mapping[str, Any], dtype: torch.dtype, projection: tuple[Tensor, Tensor] | None, added: bool
) -> list[Range]:
    """Return how large numbers of parts may be, so that the squares that a norm adds up do not overflow.

    Parts stand beside one another, or are `added`. Behind a projection: by Cauchy and Schwarz, its output is at most as
    long as its input times the norm of its weight.
    """
    found: list[Range] = []
    first = 0
    for name, x in parts.items():
        if isinstance(x, Tensor) and x.numel():
            columns = slice(first, first + x.shape[-1])
            limit = math.sqrt(torch.finfo(dtype).max / x.shape[-1]) / 2
            reach = 1.0 if projection is None else _norm(projection[0][:, columns]).clamp(min=1)
            found.append((name, x, limit / reach))
            first = 0 if added else columns.stop
    return found


def _norm(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(precise(weight.detach()))


def in_own_range(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which raw values keep their range: autocast to float16, if it is on, is off within."""
    kind = device.type
    is_on = kind != "meta" and torch.is_autocast_enabled(kind)
    return without_autocast(device) if is_on and torch.get_autocast_dtype(kind) == torch.float16 else nullcontext()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off, for sums and statistics; the device meta has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def may_hold(conditions: Bool[Tensor, " n"]) -> bool:
    """Return whether one of the conditions on values holds; True where values are not looked at."""
    return not has_values(conditions) or bool(conditions.any())


def check_numbers(x: Tensor) -> Tensor:
    """Return a dense tensor of real numbers as it is, unsigned ones of 16 bits and more as int64; ValueError else."""
    if x.layout != torch.strided or x.is_nested or x.dtype not in (*NUMBERS, *UNSIGNED):
        what = f"a nested tensor of type {x.dtype}" if x.is_nested else f"a tensor of type {x.dtype} and {x.layout}"
        raise ValueError(f"{what}, expected a dense one of real numbers that torch calculates with, as of .float()")
    if x.dtype not in UNSIGNED:
        return x
    whole = x.to(torch.int64)  # torch cannot calculate with these
    if x.numel():
        require((whole >= 0).all(), lambda: f"{int(whole.min()) + 2**64} is beyond the whole numbers of 64 bits")
    return whole


def floats(x: Tensor) -> Tensor:
    """Return floating-point numbers as they are; whole numbers and booleans become float32."""
    return x if x.is_floating_point() else x.float()


def precise(x: Tensor) -> Tensor:
    """Return floating-point numbers in at least float32: in half precision, what is made of them would overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def finite(x: Tensor) -> Tensor:
    """Put 0 in place of NaN and of infinite numbers, which stand for unknown ones."""
    return torch.where(x.isfinite(), x, torch.zeros_like(x))


def given(value: Any, device: torch.device | None) -> Any:
    """Return what a caller gives for an input as tensors of at least one sample; in a dictionary if it comes in one."""
    if isinstance(value, Mapping):
        return _with_mask({name: as_tensor(part, device) for name, part in value.items() if part is not None})
    x = as_tensor(value, device)
    if not x.ndim or not x.shape[0]:
        raise ValueError(f"shape {tuple(x.shape)}: a batch of at least one sample is needed, the batch comes first")
    return x


def as_tensor(value: Any, device: torch.device | None) -> Tensor:
    """Return numbers as a tensor: arrays, lists and pictures go to the device, a tensor must be there (None: any)."""
    if not isinstance(value, Tensor):
        return tensor_of(value, device)
    if device is not None and value.device != device and device.type != "meta":
        check_values(value)
        raise ValueError(f"a tensor on {value.device}, but the model is on {device}: move it with .to({str(device)!r})")
    return check_numbers(value)


def check_values(x: Tensor) -> None:
    """Raise a ValueError for a tensor that has a shape alone."""
    if x.is_meta:
        raise ValueError("a tensor on the device meta has no values: give one on the device of the model")


def tensor_of(value: Any, device: torch.device | None) -> Tensor:
    """Return numbers of any library as a tensor; a single picture of Pillow is a batch of one."""
    if isinstance(value, Mapping):
        raise ValueError(f"a dictionary of {', '.join(map(str, value))}, expected numbers")
    array = as_array(value)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch cannot calculate with these
        if array.max(initial=0) > np.iinfo(np.int64).max:
            raise ValueError(f"{array.max()} is beyond the whole numbers of 64 bits")
        array = array.astype(np.int64)
    array = array.astype(np.float64) if array.dtype.itemsize > 8 else array.astype(array.dtype.newbyteorder("="))
    return torch.tensor(array[None] if is_picture(value) else array, device=device)


def as_array(value: Any) -> np.ndarray:
    """Return real numbers as an array, NaN where one is masked or None; raise a ValueError for anything else."""
    if isinstance(value, Tensor):
        check_values(value)
        x = check_numbers(value).detach().cpu()
        return x.float().numpy() if x.dtype == torch.bfloat16 else x.numpy()
    if is_picture(value):
        return _of_picture(value)
    if isinstance(value, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(value), np.nan, as_array(value.data))
    if isinstance(value, list | tuple):
        value = [as_array(one) if isinstance(one, Tensor) or is_picture(one) else one for one in value]
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("not numbers in lists of equal length") from None
    if array.dtype == object:
        array = _of_objects(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"values of type {array.dtype}, expected real numbers")
    return array


def as_float32(value: Any) -> np.ndarray:
    """Return real numbers as an array of float32; raise a ValueError for one that float32 does not reach."""
    array = as_array(value)
    if array.dtype.kind != "f" or array.dtype.itemsize <= 4:
        return array.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    beyond = np.isinf(single) & np.isfinite(array)
    if beyond.any():
        raise ValueError(f"{array[beyond][0]:g} is beyond the numbers of float32: scale the data")
    return single


def is_missing(value: Any) -> bool:
    """Tell whether a single value is unknown: None, NaN, infinite, masked, or what pandas and NumPy have for that."""
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, numbers.Number) and (value != value or value in (math.inf, -math.inf))


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number, of Python or of NumPy; a truth value is none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """Raise a ValueError unless an argument is a whole number of at least 1."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name} = {value!r:.99} must be a whole number, at least 1")


def check_ranges(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise a ValueError for a number among the fields of a dataclass that is out of its range; None is no number."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name, None)
        if isinstance(value, int | float) and not low <= value <= high:
            least = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
            raise ValueError(f"{name} = {value} must be {least}")


def is_picture(value: Any) -> bool:
    """Tell whether a value is a picture of Pillow, without importing it."""
    return hasattr(value, "__array_interface__") and hasattr(value, "getbands") and hasattr(value, "convert")


def check_index(index: Tensor, count: int, what: str, of: str) -> None:
    """Raise a ValueError for a number outside of 0 to count - 1."""
    if index.numel():
        inside = (index >= 0) & (index < count)
        require(inside.all(), lambda: f"{what} {int(index[~inside][0])} is outside the {count} {of}, from 0")


def check_batches(what: str, sizes: Mapping[str, int]) -> None:
    """Raise a ValueError where batches differ; a batch of 1 stands for "the same for every sample"."""
    several = [size for size in sizes.values() if size != 1]
    if any(size != several[0] for size in several):
        found = ", ".join(f"{name} has {size} samples" for name, size in sizes.items())
        raise ValueError(f"{what} of one batch must be of as many samples, or of one for all: {found}")


def check_keys(raw: Mapping[str, Any], needed: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Raise a ValueError for a dictionary that lacks an array, or has one that nothing reads."""
    known = [*needed, *allowed]
    for name in raw:
        if name not in known:
            raise ValueError(f"unknown {name!r}: give {', '.join(known)}{near(str(name), known)}")
    if missing := [name for name in needed if name not in raw]:
        raise ValueError(f"the input has no {', '.join(missing)}: give all of {', '.join(needed)}")


def near(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the known name that is nearest to a wrong one, or nothing."""
    short = [other for other in known if len(other) <= LONGEST_HINT][:MOST_HINTS]
    found = difflib.get_close_matches(name, short, n=1) if len(name) <= LONGEST_HINT else []
    return f"; did you mean {found[0]!r}?" if found else ""


def about(what: str, name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function gives; its errors say which input or output they are about."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{what} {name!r}: {error}") from error


def check_fields(config: Any) -> None:
    """Raise a ValueError for a field of a dataclass that is not of its type; unions of types are not checked."""
    kind: Any = type(config)
    hints = _type_hints(kind)
    for name, value in ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config)):
        hint = hints[name]
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if value is None and NONE in kinds:
            continue
        kinds = tuple(kind for kind in kinds if kind is not NONE)
        if typing.get_origin(hint) is typing.Literal:
            sound, right = value in typing.get_args(hint), f"one of {', '.join(typing.get_args(hint))}"
        elif kinds == (int,):
            sound, right = is_whole(value), "a whole number"
        elif kinds == (float,):
            sound, right = _is_number(value), "a finite number"
        elif all(type(kind) is type for kind in kinds) and int not in kinds:
            sound, right = isinstance(value, kinds), f"of type {' or '.join(kind.__name__ for kind in kinds)}"
        else:
            continue
        if not sound:
            raise ValueError(f"{name} = {value!r:.99} must be {right}")


@functools.cache
def _type_hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def comes_in_parts(raw: Any) -> bool:
    """Tell whether inputs come chunk after chunk: an iterable of what would be read by itself."""
    if isinstance(raw, Mapping | Tensor | np.ndarray | str) or is_picture(raw) or not isinstance(raw, Iterable):
        return False
    return not isinstance(raw, list | tuple) or all(isinstance(chunk, Mapping | Tensor) for chunk in raw)


def check_limit(limit: Any) -> None:
    """Raise a ValueError for a limit of memory that is neither a whole number of bytes nor None."""
    if limit is not None and (not is_whole(limit) or limit < 1):
        raise ValueError(f"memory_limit = {limit!r} must be a whole number of bytes, at least 1, or None")


def as_mask(mask: Tensor) -> Bool[Tensor, "*b"]:
    """Return a mask as booleans; whole numbers must be 0 or 1, as tokenizers give them."""
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point():
        raise ValueError(f"a mask of type {mask.dtype}, expected booleans, True where something is, or 0 and 1")
    low_or_high = (mask == 0) | (mask == 1)
    require(low_or_high.all(), lambda: f"a mask holds {int(mask[~low_or_high][0])}, expected booleans, or 0 and 1")
    return mask.bool()


def _with_mask(parts: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary with its mask as booleans; raise a ValueError if it is of other elements than the rest."""
    if empty := [name for name, x in parts.items() if not x.ndim or not x.shape[0]]:
        shape = tuple(parts[empty[0]].shape)
        raise ValueError(f"{empty[0]} of shape {shape}: a batch of at least one sample is needed")
    if "mask" not in parts:
        return parts
    mask = as_mask(parts["mask"])
    for name, x in parts.items():
        shape = tuple(x.shape[: mask.ndim])
        if len(shape) != mask.ndim or shape[1:] != tuple(mask.shape[1:]):
            raise ValueError(f"mask of shape {tuple(mask.shape)}, but {name} of shape {tuple(x.shape)}")
    check_batches("arrays", {name: x.shape[0] for name, x in parts.items()})
    return {**parts, "mask": mask}


def _of_picture(picture: Any) -> np.ndarray:
    """Return [H, W, 1] of shades of grey, [H, W, 3] of colours."""
    if picture.mode not in ("L", "RGB"):
        raise ValueError(f"a picture of mode {picture.mode}: convert it to RGB or L first")
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Return objects that are real numbers or None (NaN) as float64."""
    known = np.array([not is_missing(value) for value in array.flat], bool).reshape(array.shape)
    for value in array[known]:
        imaginary = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
        if imaginary or not isinstance(value, numbers.Number):
            raise ValueError(f"a value of type {type(value).__name__}, expected real numbers in lists of equal length")
    try:
        return np.where(known, array, np.nan).astype(np.float64)
    except OverflowError:
        raise ValueError("a number beyond those of float64: scale the data") from None
