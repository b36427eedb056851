"""Inference of a schema from data: the modality that suits a column of values, its options, and the reason."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from perceivers.media.image_files import image_size
from perceivers.modalities.raw import as_array, as_float32, is_missing, is_picture
from perceivers.modalities.scalars import scalar
from perceivers.modalities.series import Audio
from perceivers.modalities.table_cells import Files, array_file, holds_file, plain

FILES = {
    "image": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"),
    "audio": (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".aiff"),
    "video": (".mp4", ".avi", ".mov", ".mkv", ".webm"),
    "array": (".npy",),
}
"""Suffixes by which a column of files is recognised, by type of file."""

FEW = 50
"""Largest number of different whole numbers in a target column that is still treated as classes."""

SHORT = 16
"""Longest list that is treated as a vector of numbers; a longer one is a series."""

MOST_TOKENS = 1024
"""Largest number of tokens of a picture: the patch size is chosen to stay below."""

LOOKED_AT = 20
"""Number of files of a column that are opened to find their sizes."""

MOST_CHANNELS = 4
"""Longest axis that can be the channels of a picture when deciding whether channels come first."""


class Proposal(NamedTuple):
    """The modality and the options proposed for a column."""

    spec: dict[str, Any]
    """Modality (of a field of a record: number, category or date) and options, as in files; empty: leave it out."""
    why: str
    """The reason: a description of the values."""
    is_doubtful: bool = False
    """True if the values may mean something else; `why` says what."""


def propose(values: Sequence[Any], target: bool = False, files: Files | None = None) -> Proposal:
    """Return a proposal for the values of a column or a batch; `target`: True if the values are to be predicted."""
    known = [plain for value in values if not is_missing(plain := _plain(value))]
    if not known:
        return Proposal({}, "empty")
    proposal = _propose(known, target, files)
    num_missing = len(values) - len(known)
    return proposal._replace(why=f"{proposal.why}; {num_missing} missing" if num_missing else proposal.why)


def _plain(value: Any) -> Any:
    if is_missing(value := scalar(value)):
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return value.tolist()
    if isinstance(value, Tensor | np.ndarray) or is_picture(value):
        return as_array(value)
    if isinstance(value, Decimal):
        return float(value)
    with suppress(ValueError):  # a text may merely begin like a list
        return plain(value)
    return value


def _propose(known: Sequence[Any], target: bool, files: Files | None) -> Proposal:
    first = known[0]
    if files is not None and (proposal := _propose_files(known, files)):
        return proposal
    # Dictionaries: point sets or single records.
    if all(isinstance(value, Mapping) for value in known):
        if all({"coordinates", "values"} <= value.keys() for value in known):
            return _propose_points(known)
        return _propose_records([[value] for value in known])
    # Lists of texts (labels), of dictionaries (records) or of numbers (arrays).
    if all(isinstance(value, list) for value in known):
        items = [item for value in known for item in value]
        if all(isinstance(item, str) for item in items):
            return Proposal({"kind": "labels"}, f"{len(set(items))} labels")
        if all(isinstance(item, Mapping) for item in items):
            return _propose_records(known)
    if all(isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim) for value in known):
        return _propose_array(known)
    # Single values: texts, dates, truth values, numbers.
    if all(isinstance(value, str) for value in known):
        return _propose_text(known, target)
    if all(isinstance(value, date) for value in known):
        return Proposal({"kind": "date"}, f"{min(map(str, known))} to {max(map(str, known))}")
    if target and all(isinstance(value, bool) for value in known):
        return Proposal({"kind": "label"}, "truth values")
    if all(isinstance(value, int | float) for value in known):
        with suppress(OverflowError):
            return _propose_number([float(value) for value in known], target)
        return Proposal({}, "whole numbers beyond the range of float64")
    return Proposal({}, f"values of several types, or of {type(first).__name__}")


def _propose_points(known: Sequence[Mapping[str, Any]]) -> Proposal:
    try:
        shapes = {tuple(as_float32(value[name]).shape for name in ("coordinates", "values")) for value in known}
    except ValueError as error:
        return Proposal({}, f"coordinates and values that are not numbers: {error}")
    shapes -= {((0,), (0,))}  # a set may be empty
    sound = all(len(c) == len(v) == 2 and c[0] == v[0] and c[1] and v[1] for c, v in shapes)
    widths = {(c[1], v[1]) for c, v in shapes} if sound else set()
    if len(widths) != 1:
        return Proposal({}, "coordinates and values that are not lists of points with the same number of numbers each")
    ((axes, channels),) = widths
    return Proposal({"kind": "pointset", "axes": axes, "channels": channels}, f"points of {axes} axes")


def _propose_records(known: Sequence[Sequence[Mapping[str, Any]]]) -> Proposal:
    names = dict.fromkeys(name for value in known for record in value for name in record)
    names.pop("mask", None)  # marks the valid records of a padded set, and is no field
    fields = {name: propose([record.get(name) for value in known for record in value]) for name in names}
    kept = {name: field.spec for name, field in fields.items() if field.spec.get("kind") in ("number", "category")}
    if not kept:
        return Proposal({}, "records without a number or a category")
    return Proposal({"kind": "records", "fields": kept}, f"sets of up to {max(map(len, known))} records")


def _propose_array(known: Sequence[Any]) -> Proposal:
    try:
        shapes = {as_float32(value).shape for value in known}
    except ValueError as error:
        return Proposal({}, f"lists that are not numbers of one shape: {error}")
    longest, axes = max(shapes), {len(shape) for shape in shapes}
    # Arrays that no modality suits.
    if 0 in longest:
        return Proposal({}, f"arrays of shape {longest}: empty")
    if not any(np.isfinite(as_float32(value)).any() for value in known):
        return Proposal({}, f"arrays of shape {longest} without a finite number")
    if any(map(_channels_first, shapes)):
        return Proposal(
            {}, f"arrays of shape {longest}: channels seem to come first, move them last (or give a schema)"
        )
    if len(axes) > 1 or len({shape[1:] for shape in shapes}) > 1:
        return Proposal({}, f"arrays of different shapes, as {longest} and {min(shapes)}")
    # One or two axes: a vector or a series.
    if len(shapes) == 1 and len(longest) == 1 and longest[0] <= SHORT:
        return Proposal({"kind": "numbers", "count": longest[0]}, f"vectors of {longest[0]}")
    if len(longest) <= 2:
        channels = longest[1] if len(longest) == 2 else 1
        size = longest[0]
        spec, why = {"kind": "series", "size": size, "channels": channels}, f"series of up to {size} steps"
        if len(shapes) == 1 and (MOST_CHANNELS < size == channels or min(size, channels) > SHORT):
            return Proposal(spec, f"{why} of {channels} channels; grey pictures need one more axis: [..., None]", True)
        return Proposal(spec, why)
    if len(longest) > 4 or len(shapes) > 1:
        return Proposal({}, f"arrays of shape {longest}")
    # Three or four axes, channels last: a picture or a film.
    kind, (*size, channels) = {3: "image", 4: "video"}[len(longest)], longest
    patch = _patch(size[-2:], MOST_TOKENS)
    steps = patch if kind == "image" else [1, patch, patch]
    spec, why = {"kind": kind, "size": size, "channels": channels, "patch": steps}, f"arrays of shape {longest}"
    if _may_be_first(longest):
        sides = " x ".join(map(str, size))
        return Proposal(spec, f"{kind}s of {sides} with {channels} channels, which come last; if not, move them", True)
    return Proposal(spec, why)


def _channels_first(shape: Sequence[int]) -> bool:
    """Return whether the channels of a sample seem to come first, or right after the time axis of a film."""
    if len(shape) == 2:  # short series of many channels are common
        return shape[0] <= MOST_CHANNELS and shape[1] > SHORT
    if not 2 < len(shape) < 5 or shape[-1] <= MOST_CHANNELS:
        return False
    return min(shape[:-2]) <= MOST_CHANNELS or _is_square_behind(shape)


def _may_be_first(shape: Sequence[int]) -> bool:
    """Return whether the channels of a picture or a film are as likely to come first as last."""
    return _is_square_behind(shape) or (shape[-1] > MOST_CHANNELS and min(shape[:-2]) < min(shape[-2:]))


def _is_square_behind(shape: Sequence[int]) -> bool:
    """Return whether the last two axes seem to be the sides of a square picture."""
    return shape[-1] == shape[-2] != shape[-3]


def _propose_text(known: Sequence[str], target: bool) -> Proposal:
    with suppress(ValueError):
        return _propose_number([float(value) for value in known], target)
    if all(map(_is_date, known)):
        return Proposal({"kind": "date"}, f"{min(known)} to {max(known)}")
    # Texts that repeat are classes.
    counts = Counter(known)
    most_common = ", ".join(f"{_short(value)} {count}" for value, count in counts.most_common(3))
    repeated = len(counts) <= max(0.5 * len(known), 2)
    if repeated or (target and len(counts) <= FEW):
        return Proposal({"kind": "label" if target else "category"}, f"{len(counts)} classes: {most_common}")
    if not any(" " in value for value in known) and len(counts) > 0.9 * len(known):
        return Proposal(
            {}, f"{len(counts)} different words in {len(known)} rows, as {_short(known[0])}: an identifier?"
        )
    # Sentences; their length in bytes, rounded up to a power of two.
    longest = max(len(value.encode("utf-8", "surrogatepass")) for value in known)
    length = 1 << (longest - 1).bit_length() if longest > 1 else 1
    options = {"length": length, "overflow": "truncate"}
    return Proposal({"kind": "text", **options}, f"texts of up to {longest} bytes, as {_short(known[0])}")


def _propose_number(known: Sequence[float], target: bool) -> Proposal:
    different = set(known)
    whole = all(value.is_integer() for value in different)
    if target and whole and len(different) <= max(2, min(FEW, len(known) // 2)):
        return Proposal(
            {"kind": "label"}, f"{len(different)} different whole numbers; for a quantity: {{kind: numbers}}"
        )
    if not target and whole and len(known) > SHORT and _counts_up(known):
        return Proposal({}, "numbers the rows: an identifier?")
    spread = f"{min(known):.4g} to {max(known):.4g}"
    few = f", {len(different)} different; for codes: {{kind: category}}" if whole and len(different) <= FEW else ""
    return Proposal({"kind": "numbers" if target else "number"}, spread + few)


def _propose_files(known: Sequence[Any], files: Files) -> Proposal | None:
    """Return a proposal for cells that name or hold files of one type; None if the cells are something else."""
    suffixes = {_suffix(cell) for cell in known}
    kinds = {
        next((kind for kind, known_suffixes in FILES.items() if suffix in known_suffixes), None) for suffix in suffixes
    }
    if len(kinds) > 1 or None in kinds:
        why = f"files of several kinds, or of an unknown kind: {', '.join(sorted(suffixes))}"
        return Proposal({}, why) if any(map(holds_file, known)) else None
    with ExitStack() as opened:
        paths = [opened.enter_context(files.file(cell)) for cell in known[:LOOKED_AT]]
        return _propose_media(str(kinds.pop()), paths)


def _suffix(cell: Any) -> str:
    """Return the suffix of the file that a cell names or holds; "" if it does neither."""
    name = cell.get("path") or "" if holds_file(cell) else cell
    return PurePath(name).suffix.lower() if isinstance(name, str) else ""


def _propose_media(kind: str, paths: Sequence[Path]) -> Proposal:
    if kind == "array":
        proposal = _propose_array([array_file(path) for path in paths])
        return Proposal(proposal.spec, f"files of {proposal.why}")
    if kind == "image":
        shape = image_size(paths[0])
        height, width = (max(8, min(64, side // 8 * 8)) for side in shape)
        patch = 4 if max(height, width) <= 32 else 8
        return Proposal({"kind": "image", "size": [height, width], "patch": patch}, f"pictures, the first {shape}")
    if kind == "audio":
        lengths, rates = zip(*(Audio.file_length(path) for path in paths), strict=True)
        rate, patch = min(8000, *rates), 64
        size = max(round(n * rate / file_rate) for n, file_rate in zip(lengths, rates, strict=True))
        size = min(-(-size // patch) * patch, MOST_TOKENS * patch)
        return Proposal({"kind": "audio", "size": size, "patch": patch, "rate": rate}, f"sounds at {max(rates)} Hz")
    return Proposal({"kind": "video", "size": [8, 32, 32], "patch": [2, 8, 8]}, "films")


def _patch(size: Sequence[int], most: int) -> int:
    """Return the smallest patch that divides a picture into at most `most` tokens, or the largest that divides it."""
    fits = [p for p in (1, 2, 4, 8, 16) if all(n % p == 0 for n in size)]
    return next((p for p in fits if np.prod(size) / p**2 <= most), fits[-1])


def _is_date(text: str) -> bool:
    with suppress(ValueError):
        return bool(datetime.fromisoformat(text))
    return False


def _counts_up(known: Sequence[float]) -> bool:
    return {later - earlier for earlier, later in pairwise(known)} == {1.0}


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:21]}..."
