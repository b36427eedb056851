"""Normalisation of pixels, which transformers leaves to an image processor and which our models include."""

import math
from collections.abc import Mapping
from typing import Any

from perceivers.modalities.patches import as_sizes
from perceivers.modalities.position_encodings import Learned
from perceivers.pretrained.huggingface import LARGEST
from perceivers.pretrained.sizes import INPUT, changed, value_at
from perceivers.schema.preset import Preset

PREPROCESSOR = "preprocessor_config.json"
"""File of the image processor, next to config.json."""

IMAGE = f"{INPUT}image"

SCALE, MEAN, STD = 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Defaults of the processor: the factor of pixels, and the mean and deviation by which they are normalised."""

SIZE = 224
"""Default of its `size`."""

LARGEST_PIXEL, LARGEST_NUMBER = 255, 1e30
"""Largest pixel, and largest number that normalisation may use or produce (float32 ends at 3e38)."""

BORDER = 32
"""Pixels by which the central crop is larger than the image that it is resized to."""


def takes_pictures(preset: Preset) -> bool:
    """Return True if transformers has an image processor for the model: for those of ImageNet."""
    return preset.schema.inputs.keys() == {"image"}


def with_normalisation(preset: Preset, config: Mapping[str, Any]) -> Preset:
    """Return the preset with a processor's mean, standard deviation and size; values that are equal stay unchanged.

    The shape of trained positions determines the size. do_resize, do_center_crop, crop_size and resample describe how
    a file becomes an image of that size, which is left to the reader of the file.
    """
    # Read the statistics.
    _check_type(config)
    scale = _values(config, "rescale_factor", SCALE)[0] if _flag(config, "do_rescale") else 1.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if _flag(config, "do_normalize"):
        mean, std = _values(config, "image_mean", MEAN), _values(config, "image_std", STD)
    if min(std) <= 0 or scale <= 0:
        raise ValueError(f"{PREPROCESSOR}: image_std = {std} and rescale_factor = {scale} must be above 0")
    if _largest(mean, std, scale) > LARGEST_NUMBER:
        given = f"image_mean = {mean}, image_std = {std} and rescale_factor = {scale}"
        raise ValueError(f"{PREPROCESSOR}: {given} make numbers above {LARGEST_NUMBER:g}, which no model can take")
    # Change what differs. The preset takes pixels from 0 to 255, so its statistics are not scaled.
    for path, statistic in ((f"{IMAGE}.mean", mean), (f"{IMAGE}.std", std)):
        values, current = tuple(x / scale for x in statistic), value_at(preset, path)
        if current is None or len(current) != len(values) or not all(map(math.isclose, current, values)):
            preset = changed(preset, {path: values})
    size, current_size = _size(config), as_sizes(value_at(preset, f"{IMAGE}.size"), 2, "size")
    trained = isinstance(value_at(preset, f"{IMAGE}.positions"), Learned)
    return preset if trained or size == current_size else changed(preset, {f"{IMAGE}.size": size})


def written_normalisation(preset: Preset) -> dict[str, Any]:
    """Return the content of the processor's file; it takes images in the same units as the model."""
    height, width = as_sizes(value_at(preset, f"{IMAGE}.size"), 2, f"{IMAGE}.size")
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "size": {"height": height, "width": width},
        "crop_size": {"height": height + BORDER, "width": width + BORDER},
        "rescale_factor": SCALE,
        "image_mean": _scaled(preset, "mean", 0.0),
        "image_std": _scaled(preset, "std", 1.0),
    }


def _scaled(preset: Preset, name: str, default: float) -> list[float]:
    values, channels = value_at(preset, f"{IMAGE}.{name}") or (default,), value_at(preset, f"{IMAGE}.channels")
    return [x * SCALE for x in (values * channels if len(values) == 1 else values)]


def _check_type(config: Mapping[str, Any]) -> None:
    """Raise a ValueError for the processor of another model, whose defaults differ."""
    for key in ("image_processor_type", "feature_extractor_type"):
        name = config.get(key) or "Perceiver"
        if not isinstance(name, str) or not name.startswith("Perceiver"):
            raise ValueError(
                f"{PREPROCESSOR}: {key} = {name!r:.99} is not PerceiverImageProcessor, nor an older name of it"
            )


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key, True)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{PREPROCESSOR}: {key} = {value!r:.99} is not true or false")
    return bool(value)


def _largest(mean: tuple[float, ...], std: tuple[float, ...], scale: float) -> float:
    """Return the largest number that normalisation would use, or make of a pixel."""
    means, stds = ([x / scale for x in values] for values in (mean, std))
    if not min(stds):
        return math.inf
    return max(abs(x) for m in means for s in stds for x in (m, s, m / s, LARGEST_PIXEL / s))


def _size(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width, from a dictionary, a list, or one number for both, as in older files."""
    size = config.get("size", SIZE)
    sides: Any = size if isinstance(size, list | tuple) else (size, size)
    if isinstance(size, Mapping):
        sides = size.get("height"), size.get("width")
    if len(sides) != 2 or not all(type(x) is int and 0 < x < LARGEST for x in sides):
        raise ValueError(f"{PREPROCESSOR}: size = {size!r:.99} is not a height and a width, nor one number for both")
    return sides[0], sides[1]


def _values(config: Mapping[str, Any], key: str, default: Any) -> tuple[float, ...]:
    value = config.get(key, default)
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(values) not in (1, 3) or not all(type(x) in (int, float) and math.isfinite(x) for x in values):
        raise ValueError(f"{PREPROCESSOR}: {key} = {value!r:.99} is not a number, or one for each of 3 channels")
    return tuple(map(float, values))
