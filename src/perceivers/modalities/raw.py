"""Conversion of raw values of any library to tensors or arrays of real numbers, else a ValueError of one line."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from perceivers.core.arguments import check_batches, has_values, near, require

NUMBERS = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
"""Types that torch calculates with."""

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Types of whole numbers that torch can store but not calculate with."""


def may_hold(conditions: Bool[Tensor, " n"]) -> bool:
    """Return whether any condition holds; True if the values cannot be looked at (`has_values`)."""
    return not has_values(conditions) or bool(conditions.any())


def check_numbers(x: Tensor) -> Tensor:
    """Return a dense tensor of real numbers, unsigned 16 to 64 bits as int64; ValueError for any other tensor."""
    if x.layout != torch.strided or x.is_nested or x.dtype not in (*NUMBERS, *UNSIGNED):
        what = f"a nested tensor of type {x.dtype}" if x.is_nested else f"a tensor of type {x.dtype} and {x.layout}"
        raise ValueError(f"{what}, expected a dense one of real numbers that torch calculates with, as of .float()")
    if x.dtype not in UNSIGNED:
        return x
    whole = x.to(torch.int64)  # torch cannot calculate with these
    if x.numel():
        require((whole >= 0).all(), lambda: f"{int(whole.min()) + 2**64} is beyond the whole numbers of 64 bits")
    return whole


def finite(x: Tensor) -> Tensor:
    """Replace NaN and infinite numbers, which stand for unknown ones, by 0."""
    return torch.where(x.isfinite(), x, torch.zeros_like(x))


def given(value: Any, device: torch.device | None) -> Any:
    """Return the raw value of an input or target as a tensor, or a dictionary of tensors, of at least one sample."""
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
    """Raise a ValueError for a tensor that has a shape but no values."""
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
    # Lists may hold tensors and pictures.
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
    """Return real numbers as an array of float32; raise a ValueError for one beyond its range."""
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
    """Return whether a single value is unknown: None, NaN, infinite, masked, or NA and NaT of pandas and NumPy."""
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    return isinstance(value, numbers.Number) and (value != value or value in (math.inf, -math.inf))


def is_picture(value: Any) -> bool:
    """Return whether a value is a picture of Pillow, without importing Pillow."""
    return hasattr(value, "__array_interface__") and hasattr(value, "getbands") and hasattr(value, "convert")


def check_index(index: Tensor, count: int, what: str, of: str) -> None:
    """Raise a ValueError for a number outside of 0 to count - 1."""
    if index.numel():
        inside = (index >= 0) & (index < count)
        require(inside.all(), lambda: f"{what} {int(index[~inside][0])} is outside the {count} {of}, from 0")


def check_keys(raw: Mapping[str, Any], needed: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Raise a ValueError for a dictionary that lacks a needed array, or has an unknown one."""
    known = [*needed, *allowed]
    for name in raw:
        if name not in known:
            raise ValueError(f"unknown {name!r}: give {', '.join(known)}{near(str(name), known)}")
    if missing := [name for name in needed if name not in raw]:
        raise ValueError(f"the input has no {', '.join(missing)}: give all of {', '.join(needed)}")


def as_mask(mask: Tensor) -> Bool[Tensor, "*b"]:
    """Return a mask as booleans; whole numbers must be 0 or 1, as tokenizers give them."""
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point():
        raise ValueError(f"a mask of type {mask.dtype}, expected booleans, True where valid, or 0 and 1")
    low_or_high = (mask == 0) | (mask == 1)
    require(low_or_high.all(), lambda: f"a mask holds {int(mask[~low_or_high][0])}, expected booleans, or 0 and 1")
    return mask.bool()


def _with_mask(parts: dict[str, Any]) -> dict[str, Any]:
    """Return a dictionary with its mask as booleans; raise a ValueError if the mask does not fit the other arrays."""
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
    """Return the pixels of a picture of Pillow: [H, W, 1] shades of grey or [H, W, 3] colours."""
    if picture.mode not in ("L", "RGB"):
        raise ValueError(f"a picture of mode {picture.mode}: convert it to RGB or L first")
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _of_objects(array: np.ndarray) -> np.ndarray:
    """Return an array of objects, real numbers or None (NaN), as float64."""
    known = np.array([not is_missing(value) for value in array.flat], bool).reshape(array.shape)
    for value in array[known]:
        imaginary = isinstance(value, numbers.Complex) and not isinstance(value, numbers.Real)
        if imaginary or not isinstance(value, numbers.Number):
            raise ValueError(f"a value of type {type(value).__name__}, expected real numbers in lists of equal length")
    try:
        return np.where(known, array, np.nan).astype(np.float64)
    except OverflowError:
        raise ValueError("a number beyond those of float64: scale the data") from None
