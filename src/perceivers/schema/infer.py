"""Inference of a schema from data: the kind that suits a column of values, its options, and why."""

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
"""Suffixes by which a column of files is told."""

FEW = 50
"""Most classes that a column of whole numbers which is to be predicted is taken for."""

SHORT = 16
"""Longest list that is taken for a vector of numbers instead of a series."""

MOST_TOKENS = 1024
"""Tokens of a picture that a patch is chosen for."""

LOOKED_AT = 20
"""Files of a column that are opened, to see how large they are."""

MOST_CHANNELS = 4
"""Channels that a picture is taken to have, at most, where they might stand first."""


class Proposal(NamedTuple):
    """Modality and options that are proposed for a column."""

    spec: dict[str, Any]
    """Modality (of a field: number, category or date) and few options, as in files; empty: it is to be left out."""
    why: str
    """Reason: what the values look like."""
    is_doubtful: bool = False
    """True if the values may mean something else, which `why` tells."""


def propose(values: Sequence[Any], target: bool = False, files: Files | None = None) -> Proposal:
    """Return what suits these values of a table's column, or of a batch; `target` if they are to be predicted."""
    known = [plain for value in values if not is_missing(plain := _plain(value))]
    if not known:
        return Proposal({}, "empty")
    found = _propose(known, target, files)
    lacking = len(values) - len(known)
    return found._replace(why=f"{found.why}; {lacking} missing" if lacking else found.why)


def _plain(value: Any) -> Any:
    if is_missing(value := scalar(value)):
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return value.tolist()
    if isinstance(value, Tensor | np.ndarray) or is_picture(value):
        return as_array(value)
    if isinstance(value, Decimal):
        return float(value)
    with suppress(ValueError):  # text that only begins like a list is text
        return plain(value)
    return value


def _propose(known: Sequence[Any], target: bool, files: Files | None) -> Proposal:
    first = known[0]
    if files is not None and (found := _propose_files(known, files)):
        return found
    if all(isinstance(value, Mapping) for value in known):
        if all({"coordinates", "values"} <= value.keys() for value in known):
            return _propose_points(known)
        return _propose_records([[value] for value in known])
    if all(isinstance(value, list) for value in known):
        within = [one for value in known for one in value]
        if all(isinstance(one, str) for one in within):
            return Proposal({"kind": "labels"}, f"{len(set(within))} labels")
        if all(isinstance(one, Mapping) for one in within):
            return _propose_records(known)
    if all(isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim) for value in known):
        return _propose_array(known)
    if all(isinstance(value, str) for value in known):
        return _propose_text(known, target)
    if all(isinstance(value, date) for value in known):
        return Proposal({"kind": "date"}, f"{min(map(str, known))} to {max(map(str, known))}")
    if target and all(isinstance(value, bool) for value in known):
        return Proposal({"kind": "label"}, "truth values")
    if all(isinstance(value, int | float) for value in known):
        with suppress(OverflowError):
            return _propose_number([float(value) for value in known], target)
        return Proposal({}, "whole numbers beyond those of float64")
    return Proposal({}, f"values of several types, or of {type(first).__name__}")


def _propose_points(known: Sequence[Mapping[str, Any]]) -> Proposal:
    try:
        shapes = {tuple(as_float32(value[name]).shape for name in ("coordinates", "values")) for value in known}
    except ValueError as error:
        return Proposal({}, f"coordinates and values that are not numbers: {error}")
    shapes -= {((0,), (0,))}  # a set may have no points
    sound = all(len(c) == len(v) == 2 and c[0] == v[0] and c[1] and v[1] for c, v in shapes)
    widths = {(c[1], v[1]) for c, v in shapes} if sound else set()
    if len(widths) != 1:
        return Proposal({}, "coordinates and values that are not lists of points, each a list of as many numbers")
    ((axes, channels),) = widths
    return Proposal({"kind": "pointset", "axes": axes, "channels": channels}, f"points of {axes} axes")


def _propose_records(known: Sequence[Sequence[Mapping[str, Any]]]) -> Proposal:
    names = dict.fromkeys(name for value in known for record in value for name in record)
    names.pop("mask", None)  # says where records are
    fields = {name: propose([record.get(name) for value in known for record in value]) for name in names}
    kept = {name: found.spec for name, found in fields.items() if found.spec.get("kind") in ("number", "category")}
    if not kept:
        return Proposal({}, "records without a number or a category")
    return Proposal({"kind": "records", "fields": kept}, f"sets of up to {max(map(len, known))} records")


def _propose_array(known: Sequence[Any]) -> Proposal:
    try:
        shapes = {as_float32(value).shape for value in known}
    except ValueError as error:
        return Proposal({}, f"lists that are not numbers of one shape: {error}")
    longest, axes = max(shapes), {len(shape) for shape in shapes}
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
    if len(shapes) == 1 and len(longest) == 1 and longest[0] <= SHORT:
        return Proposal({"kind": "numbers", "count": longest[0]}, f"vectors of {longest[0]}")
    if len(longest) <= 2:
        channels = longest[1] if len(longest) == 2 else 1
        size = longest[0]
        spec, why = {"kind": "series", "size": size, "channels": channels}, f"series of up to {size} steps"
        if len(shapes) == 1 and (MOST_CHANNELS < size == channels or min(size, channels) > SHORT):
            return Proposal(spec, f"{why} of {channels} channels; grey pictures have an axis more: [..., None]", True)
        return Proposal(spec, why)
    if len(longest) > 4 or len(shapes) > 1:
        return Proposal({}, f"arrays of shape {longest}")
    kind, (*size, channels) = {3: "image", 4: "video"}[len(longest)], longest
    patch = _patch(size[-2:], MOST_TOKENS)
    steps = patch if kind == "image" else [1, patch, patch]
    spec, why = {"kind": kind, "size": size, "channels": channels, "patch": steps}, f"arrays of shape {longest}"
    if _may_be_first(longest):
        sides = " x ".join(map(str, size))
        return Proposal(spec, f"{kind}s of {sides} with {channels} channels, which come last; if not, move them", True)
    return Proposal(spec, why)


def _channels_first(shape: Sequence[int]) -> bool:
    """Tell whether the channels of one sample seem to come first, or behind the time of a film."""
    if len(shape) == 2:  # short series of many channels are common
        return shape[0] <= MOST_CHANNELS and shape[1] > SHORT
    if not 2 < len(shape) < 5 or shape[-1] <= MOST_CHANNELS:
        return False
    return min(shape[:-2]) <= MOST_CHANNELS or _is_square_behind(shape)


def _may_be_first(shape: Sequence[int]) -> bool:
    """Tell whether the channels of a picture or a film, taken to come last, are as likely to come first."""
    return _is_square_behind(shape) or (shape[-1] > MOST_CHANNELS and min(shape[:-2]) < min(shape[-2:]))


def _is_square_behind(shape: Sequence[int]) -> bool:
    """Tell whether the last two axes seem to be the sides of a square picture."""
    return shape[-1] == shape[-2] != shape[-3]


def _propose_text(known: Sequence[str], target: bool) -> Proposal:
    with suppress(ValueError):
        return _propose_number([float(value) for value in known], target)
    counts = Counter(known)
    if all(map(_is_date, known)):
        return Proposal({"kind": "date"}, f"{min(known)} to {max(known)}")
    often = ", ".join(f"{_short(value)} {count}" for value, count in counts.most_common(3))
    repeated = len(counts) <= max(0.5 * len(known), 2)
    if repeated or (target and len(counts) <= FEW):
        return Proposal({"kind": "label" if target else "category"}, f"{len(counts)} classes: {often}")
    if not any(" " in value for value in known) and len(counts) > 0.9 * len(known):
        return Proposal(
            {}, f"{len(counts)} different words in {len(known)} rows, as {_short(known[0])}: an identifier?"
        )
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
    """Propose a kind for cells that name files or hold them, all of one kind; None if they are something else."""
    suffixes = {_suffix(cell) for cell in known}
    kinds = {next((kind for kind, own in FILES.items() if suffix in own), None) for suffix in suffixes}
    if len(kinds) > 1 or None in kinds:
        why = f"files of several kinds, or of none that is known: {', '.join(sorted(suffixes))}"
        return Proposal({}, why) if any(map(holds_file, known)) else None
    with ExitStack() as opened:
        paths = [opened.enter_context(files.file(cell)) for cell in known[:LOOKED_AT]]
        return _propose_media(str(kinds.pop()), paths)


def _suffix(cell: Any) -> str:
    """Return the suffix of the file that a cell names or holds; empty if it does neither."""
    name = cell.get("path") or "" if holds_file(cell) else cell
    return PurePath(name).suffix.lower() if isinstance(name, str) else ""


def _propose_media(kind: str, paths: Sequence[Path]) -> Proposal:
    if kind == "array":
        found = _propose_array([array_file(path) for path in paths])
        return Proposal(found.spec, f"files of {found.why}")
    if kind == "image":
        shape = image_size(paths[0])
        height, width = (max(8, min(64, side // 8 * 8)) for side in shape)
        patch = 4 if max(height, width) <= 32 else 8
        return Proposal({"kind": "image", "size": [height, width], "patch": patch}, f"pictures, the first {shape}")
    if kind == "audio":
        lengths, rates = zip(*(Audio.file_length(path) for path in paths), strict=True)
        rate, patch = min(8000, *rates), 64
        size = max(round(n * rate / own) for n, own in zip(lengths, rates, strict=True))
        size = min(-(-size // patch) * patch, MOST_TOKENS * patch)
        return Proposal({"kind": "audio", "size": size, "patch": patch, "rate": rate}, f"sounds at {max(rates)} Hz")
    return Proposal({"kind": "video", "size": [8, 32, 32], "patch": [2, 8, 8]}, "films")


def _patch(size: Sequence[int], most: int) -> int:
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
