"""What a caller gives a model: raw inputs by name, whole or in parts, and points; converted to tensors and checked."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.core.checks import about, check_names
from perceivers.modalities.points import Part, Points, given_points
from perceivers.modalities.raw import given, is_picture


def as_tensors(specs: Mapping[str, Any], raw: Any, device: torch.device) -> dict[str, Any]:
    """Return the inputs that are given, by name: tensors must be on the device, arrays, lists and pictures go there.

    `raw` is a dictionary, in which None is an input that is not given, or the only input as it is.
    """
    if not isinstance(raw, Mapping):
        if len(specs) != 1:
            raise ValueError(f"several inputs: give a dictionary of {', '.join(specs)}")
        raw = {next(iter(specs)): raw}
    check_names("input", raw, specs)
    present = {name: value for name, value in raw.items() if value is not None}
    return {name: about("input", name, _as_tensors, specs[name], value, device) for name, value in present.items()}


def _as_tensors(spec: Any, value: Any, device: torch.device) -> Any:
    if not isinstance(value, Part):
        return given(value, device)
    if not spec.reads_parts:
        raise ValueError("it is no grid of independent tokens: give it whole, not as a Part")
    return replace(value, values=given(value.values, device))


def as_points(specs: Mapping[str, Any], points: Any, device: torch.device) -> dict[str, Points | None]:
    """Return the points of outputs by name, as tensors on the device; None: everywhere, in all outputs or in one."""
    points = {} if points is None else points
    if not isinstance(points, Mapping):
        raise ValueError(f"points of type {type(points).__name__}: give a dictionary of {', '.join(specs)}")
    check_names("output", points, specs)
    asked = {name: value for name, value in points.items() if value is not None}
    return {name: about("output", name, given_points, value, device) for name, value in asked.items()}


def comes_in_parts(raw: Any) -> bool:
    """Return whether inputs come chunk after chunk: an iterable of what would be read by itself."""
    if isinstance(raw, Mapping | Tensor | np.ndarray | str) or is_picture(raw) or not isinstance(raw, Iterable):
        return False
    return not isinstance(raw, list | tuple) or all(isinstance(chunk, Mapping | Tensor) for chunk in raw)
