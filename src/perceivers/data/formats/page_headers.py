"""Headers of the pages of a Parquet file, in Thrift's compact protocol."""

from collections.abc import Iterator
from typing import Any

I32, STRUCT = 5, 12
"""Two types of fields, as the format numbers them."""

BOOLEANS, LENGTHS = (1, 2), {1: 1, 2: 1, 3: 1, 7: 8, 13: 16}
"""Types of fields that are true or false, and bytes of values of one length."""

KINDS = {*LENGTHS, 4, I32, 6, 8, 9, 10, 11, STRUCT}
"""Types of values: also numbers of 16 to 64 bits, texts, lists, sets, maps."""

MOST_DEPTH = 64
"""Structures in one another in the header of a page."""

Header = dict[tuple[int, int], Any]
"""Numbers of 32 bits and structures of a structure, by number and type of the field."""


def page_headers(pages: bytes) -> Iterator[Header]:
    """Yield the headers of the pages of a column, to the first that is broken: Arrow reads no further either."""
    at = 0
    while at < len(pages):
        try:
            header, at = _structure(pages, at)
        except (IndexError, ValueError):
            return
        yield header
        at += max(header.get((3, I32), 0), 0)


def _structure(data: bytes, at: int, depth: int = 0) -> tuple[Header, int]:
    """Return a structure of Thrift's compact protocol and where it ends, as Thrift's own reader takes it."""
    found: Header = {}
    field = 0
    while kind := data[at] & 15:
        step, at = data[at] >> 4, at + 1
        if not step:
            field, at = _signed(data, at)
        field = (field + step + 2**15) % 2**16 - 2**15
        if kind in BOOLEANS:
            continue  # the kind is the value
        value, at = _value(data, at, kind, depth + 1)
        if kind in (I32, STRUCT):
            found[field, kind] = value
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value, None for those that no one asks for, and where it ends."""
    if at >= len(data) or depth > MOST_DEPTH or kind not in KINDS:
        raise ValueError("not a header")
    if kind == STRUCT:
        return _structure(data, at, depth)
    if kind in (4, I32, 6):
        return _signed(data, at)
    if kind in LENGTHS:
        return None, at + LENGTHS[kind]
    if kind == 8:
        length, at = _unsigned(data, at)
        return None, at + length
    if kind == 11:
        count, at = _unsigned(data, at)
        kinds = [data[at] >> 4, data[at] & 15] if count else []
        at += 1 if count else 0
    else:
        count, kinds, at = data[at] >> 4, [data[at] & 15], at + 1
        if count == 15:
            count, at = _unsigned(data, at)
    for _ in range(count):
        for item in kinds:
            _, at = _value(data, at, item, depth + 1)
    return None, at


def _signed(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 32 bits, or the lower ones of a longer one, and where it ends."""
    value = 0
    for place in range(10):
        value |= (data[at + place] & 127) << 7 * place
        if data[at + place] < 128:
            return value % 2**32, at + place + 1
    raise ValueError("not a number")
