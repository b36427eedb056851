"""Headers of the pages of a Parquet file, in Thrift's compact protocol.

A structure is a sequence of fields, ended by a zero byte. The first byte of a field holds its type in the lower half,
and in the upper half the increment of the field number (0: the number follows instead). Integers are zigzag varints.
"""

from collections.abc import Iterator
from typing import Any

I32, STRUCT = 5, 12
"""Types of fields that are returned, as the format numbers them."""

BOOLEANS, LENGTHS = (1, 2), {1: 1, 2: 1, 3: 1, 7: 8, 13: 16}
"""Types of truth values, and the size in bytes of types of fixed size."""

KINDS = {*LENGTHS, 4, I32, 6, 8, 9, 10, 11, STRUCT}
"""All types: also integers of 16 (4) and 64 (6) bits, texts (8), lists (9), sets (10) and maps (11)."""

MOST_DEPTH = 64
"""Largest nesting of structures in a page header."""

Header = dict[tuple[int, int], Any]
"""The 32-bit integers and the structures of a structure, by number and type of the field."""


def page_headers(pages: bytes) -> Iterator[Header]:
    """Yield the headers of the pages of a column, up to the first damaged one, where Arrow stops too."""
    at = 0
    while at < len(pages):
        try:
            header, at = _structure(pages, at)
        except (IndexError, ValueError):
            return
        yield header
        at += max(header.get((3, I32), 0), 0)


def _structure(data: bytes, at: int, depth: int = 0) -> tuple[Header, int]:
    """Return a structure and its end, parsed as Thrift's own reader does; `at` is its start."""
    fields: Header = {}
    field = 0
    while kind := data[at] & 15:
        step, at = data[at] >> 4, at + 1
        if not step:
            field, at = _signed(data, at)
        field = (field + step + 2**15) % 2**16 - 2**15
        if kind in BOOLEANS:
            continue  # the type is the value: there is no payload
        value, at = _value(data, at, kind, depth + 1)
        if kind in (I32, STRUCT):
            fields[field, kind] = value
    return fields, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Return a value and its end; None for all values but 32-bit integers and structures, which are skipped."""
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
    # Maps, lists and sets: the number of items and the types of an item, then the items.
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
    """Return a zigzag integer and its end."""
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    """Return a varint, or the lower 32 bits of a longer one, and its end."""
    value = 0
    for offset in range(10):
        value |= (data[at + offset] & 127) << 7 * offset
        if data[at + offset] < 128:
            return value % 2**32, at + offset + 1
    raise ValueError("not a number")
