"""Conversion of dataclasses to and from the plain values of files; errors name the field that is wrong."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from perceivers.core.arguments import near
from perceivers.files.messages import one_line
from perceivers.modalities import MODALITIES
from perceivers.schema import format_1, kind_name

T = TypeVar("T")

LONGEST_COMPLAINT = 900
"""Largest number of characters of an error message about a file; names in the file may be of any length."""


def to_plain(value: Any) -> Any:
    """Convert dataclasses to dictionaries, lists, numbers and texts, as files hold them.

    A field that is None is left out if its metadata have `only_if_given`, so that files without it are as before it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {f.name: to_plain(x) for f, x in fields if x is not None or "only_if_given" not in f.metadata}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(
    target_type: type[T], plain: Any, source: str = "", lines: Mapping[tuple[str, ...], int] | None = None
) -> T:
    """Convert plain values to a dataclass; ValueError naming the first field (and its line) that is wrong."""
    if complaint := next(_wild_numbers(plain, source), ""):
        raise ValueError(complaint)
    value: T = checked(target_type, plain, source, lines)
    return value


def checked(
    target_type: Any, plain: Any, source: str, lines: Mapping[tuple[str, ...], int] | None = None, strict: bool = False
) -> Any:
    """Convert plain values to a type; ValueError naming the first field that does not fit.

    `strict`: texts and truth values are not accepted as numbers.
    """
    try:
        return _adapter(target_type).validate_python([plain], strict=strict or None)[0]
    except ValidationError as error:
        raise ValueError(_message(target_type, plain, error, source, lines or {})) from None


@functools.cache
def _adapter(target_type: Any) -> Any:
    # pydantic applies the adapter's config to a dataclass only inside another type, here a list.
    return TypeAdapter(list[target_type], config=ConfigDict(extra="forbid"))


def _wild_numbers(plain: Any, path: str) -> Iterator[str]:
    """Yield an error message for each unusable number: NaN, beyond float32, or beyond 64 bits."""
    if isinstance(plain, Mapping | list | tuple):
        items = plain.items() if isinstance(plain, Mapping) else enumerate(plain)
        for key, value in items:
            yield from _wild_numbers(value, f"{path}.{key}" if path else str(key))
    elif isinstance(plain, float) and (math.isnan(plain) or float(np.finfo(np.float32).max) < abs(plain) < math.inf):
        yield f"{path}: {plain} must be a number up to {np.finfo(np.float32).max:.3g}"
    elif isinstance(plain, int) and not -(2**63) <= plain < 2**63:
        yield f"{path}: a number of {plain.bit_length()} bits must fit into 64"


def json_schema(target_type: Any) -> dict[str, Any]:
    """Return the JSON schema of a dataclass, with which editors can check a file."""
    full = _adapter(target_type).json_schema()
    return {**full["items"], "$defs": full.get("$defs", {})}


def _message(target_type: Any, plain: Any, error: ValidationError, source: str, lines: Mapping[Any, int]) -> str:
    """Return an error of pydantic as one line: file, line number, field, what is wrong."""
    errors = error.errors(include_url=False)
    first = _relevant(errors)
    # The line of the field, or of the nearest field around it whose line is known.
    path = _field_path(first, plain)
    known = path
    while known and known not in lines:
        known = known[:-1]
    where = ":".join(filter(None, [source, str(lines[known]) if known in lines else ""]))
    what = _explain(target_type, first)
    # A wrong `kind` among the branches of a union without a discriminator: name the kinds of all branches.
    if first["type"] == "literal_error" and path[-1:] == ("kind",):
        expected = [e["ctx"]["expected"] for e in errors if "expected" in e.get("ctx", ()) and e["loc"][-1] == "kind"]
        what = _unknown_kind(str(first["input"]), [kind for text in expected for kind in re.findall("'(.*?)'", text)])
    return one_line(": ".join(filter(None, [where, ".".join(path), what])), LONGEST_COMPLAINT)


_LAST = ("dataclass_type", "none_required")
"""The least informative errors of the branches of a union: any other error is reported first."""


def _relevant(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    # A union without a discriminator reports errors of every branch; branches of another `kind` are irrelevant.
    other = {error["loc"][:-1] for error in errors if error["type"] == "literal_error" and error["loc"][-1] == "kind"}
    wanted = [error for error in errors if error["loc"][:-1] not in other]
    wanted = wanted or list(errors)
    # A list with a wrong item: branches that take no list at all are irrelevant.
    items = {error["loc"][:-2] for error in wanted if isinstance(error["loc"][-1], int)}
    wanted = [e for e in wanted if not (isinstance(e["input"], list) and e["loc"][:-1] in items)] or wanted
    # An error deeper than those of other branches is informative, whatever its type.
    top = min(len(error["loc"]) for error in wanted)
    last = [_LAST.index(e["type"]) if e["type"] in _LAST and len(e["loc"]) == top else -1 for e in wanted]
    return wanted[last.index(min(last))]


def _field_path(error: ErrorDetails, plain: Any) -> tuple[str, ...]:
    # pydantic's location mixes keys of the file with names of the classes and kinds it tried: keep the keys.
    path: list[str] = []
    node: Any = [plain]
    for part in error["loc"]:
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))
        if inside or (error["type"].startswith("missing") and part == error["loc"][-1]):
            path.append(str(part))
            node = node[part] if inside else None
    return tuple(path[1:])


def _explain(target_type: Any, error: ErrorDetails) -> str:
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        name, known = str(error["loc"][-1]), _field_names(json_schema(target_type))
        if format_1.FIELDS.get(name) in known:
            return f"unknown field; it is called {format_1.FIELDS[name]!r} now"
        return f"unknown field{_near(name, known)}"
    if error["type"] == "union_tag_invalid":
        return _unknown_kind(error["ctx"]["tag"], _kind_names())
    if error["type"] == "union_tag_not_found":
        return f"needs a kind: one of {', '.join(_kind_names())}"
    message = error["msg"].removeprefix("Value error, ")
    return message if isinstance(error["input"], Mapping) else f"{message}, not {error['input']!r:.99}"


def _unknown_kind(tag: str, kinds: Sequence[str]) -> str:
    if format_1.MODALITIES.get(tag) in kinds:
        return f"unknown kind {tag!r}; it is called {format_1.MODALITIES[tag]!r} now"
    return f"unknown kind {tag!r}{_near(tag, kinds)}; there are {', '.join(kinds)}"


def _near(name: str, known: Iterable[str]) -> str:
    return near(name, set(known) - {name})  # a field of another modality may have this very name


def _kind_names() -> list[str]:
    return [kind_name(kind) for kind in MODALITIES]


def _field_names(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_field_names, schema))
    if not isinstance(schema, Mapping):
        return set()
    return set(schema.get("properties", ())).union(*map(_field_names, schema.values()))
