"""Dataclasses to and from the plain values that files hold; errors name the place that is wrong."""

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
"""Characters that are said of a file that is wrong; names in it may be any text."""


def to_plain(value: Any) -> Any:
    """Dataclasses as the dictionaries, lists, numbers and names that files hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_plain(kind: type[T], plain: Any, source: str = "", lines: Mapping[tuple[str, ...], int] | None = None) -> T:
    """A dataclass from plain values; ValueError naming the place (and the line) of the first thing that is wrong."""
    if wild := next(_wild_numbers(plain, source), ""):
        raise ValueError(wild)
    found: T = checked(kind, plain, source, lines)
    return found


def checked(
    kind: Any, plain: Any, source: str, lines: Mapping[tuple[str, ...], int] | None = None, strict: bool = False
) -> Any:
    """Return plain values as the type that declares them; ValueError naming the first place that is otherwise.

    `strict`: a text is no number, a truth value neither.
    """
    try:
        return _adapter(kind).validate_python([plain], strict=strict or None)[0]
    except ValidationError as error:
        raise ValueError(_message(kind, plain, error, source, lines or {})) from None


@functools.cache
def _adapter(kind: Any) -> Any:
    # Inside a list the dataclasses take the adapter's configuration: unknown fields are errors.
    return TypeAdapter(list[kind], config=ConfigDict(extra="forbid"))


def _wild_numbers(plain: Any, place: str) -> Iterator[str]:
    """Yield what is wrong with each number that no computation takes: NaN, beyond float32, beyond 64 bits."""
    if isinstance(plain, Mapping | list | tuple):
        items = plain.items() if isinstance(plain, Mapping) else enumerate(plain)
        for key, value in items:
            yield from _wild_numbers(value, f"{place}.{key}" if place else str(key))
    elif isinstance(plain, float) and (math.isnan(plain) or float(np.finfo(np.float32).max) < abs(plain) < math.inf):
        yield f"{place}: {plain} must be a number up to {np.finfo(np.float32).max:.3g}"
    elif isinstance(plain, int) and not -(2**63) <= plain < 2**63:
        yield f"{place}: a number of {plain.bit_length()} bits must fit into 64"


def json_schema(kind: Any) -> dict[str, Any]:
    """JSON schema of a dataclass, for editors that check what they write."""
    full = _adapter(kind).json_schema()
    return {**full["items"], "$defs": full.get("$defs", {})}


def _message(kind: Any, plain: Any, error: ValidationError, source: str, lines: Mapping[Any, int]) -> str:
    errors = error.errors(include_url=False)
    first = _relevant(errors)
    place = _place(first, plain)
    known = place
    while known and known not in lines:
        known = known[:-1]
    where = ":".join(filter(None, [source, str(lines[known]) if known in lines else ""]))
    what = _explain(kind, first)
    if first["type"] == "literal_error" and place[-1:] == ("kind",):
        expected = [e["ctx"]["expected"] for e in errors if "expected" in e.get("ctx", ()) and e["loc"][-1] == "kind"]
        what = _unknown_kind(str(first["input"]), [kind for text in expected for kind in re.findall("'(.*?)'", text)])
    return one_line(": ".join(filter(None, [where, ".".join(place), what])), LONGEST_COMPLAINT)


_LAST = ("dataclass_type", "none_required")
"""Errors of the branches of a union that tell least: what else is wrong comes first."""


def _relevant(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    # A union without a discriminator reports every branch; those whose `kind` is another one are noise.
    other = {error["loc"][:-1] for error in errors if error["type"] == "literal_error" and error["loc"][-1] == "kind"}
    wanted = [error for error in errors if error["loc"][:-1] not in other]
    return min(wanted or errors, key=lambda error: _LAST.index(error["type"]) if error["type"] in _LAST else -1)


def _place(error: ErrorDetails, plain: Any) -> tuple[str, ...]:
    # Between the keys of the file stand names of classes and kinds that were tried: follow the file.
    place: list[str] = []
    node: Any = [plain]
    for part in error["loc"]:
        inside = part in node if isinstance(node, Mapping) else isinstance(node, list) and part in range(len(node))
        if inside or (error["type"].startswith("missing") and part == error["loc"][-1]):
            place.append(str(part))
            node = node[part] if inside else None
    return tuple(place[1:])


def _explain(kind: Any, error: ErrorDetails) -> str:
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        name, known = str(error["loc"][-1]), _field_names(json_schema(kind))
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
    return near(name, set(known) - {name})  # a field of another kind may have that name


def _kind_names() -> list[str]:
    return [kind_name(kind) for kind in MODALITIES]


def _field_names(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_field_names, schema))
    if not isinstance(schema, Mapping):
        return set()
    return set(schema.get("properties", ())).union(*map(_field_names, schema.values()))
