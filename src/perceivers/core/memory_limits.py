"""Memory limits: a number of bytes, or text such as "200MB" (powers of 1000) or "1.5GiB" (powers of 1024)."""

from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from perceivers.core.checks import is_whole

SIZES = TypeAdapter(ByteSize)
"""Parser of sizes with units."""

SMALLEST_PLAIN = 1_000_000
"""Smallest number accepted without a unit in recipes and flags: smaller ones were megabytes in earlier versions."""


def limit_in_bytes(limit: Any) -> int | None:
    """Return a limit in bytes, at least 1; ValueError for anything that is not a size."""
    size = limit
    if isinstance(limit, str):
        try:
            size = int(SIZES.validate_python(limit))
        except ValidationError:
            size = 0
    if size is not None and (not is_whole(size) or size < 1):
        raise ValueError(
            f"memory_limit = {limit!r:.99} must be a whole number of bytes, at least 1, text such as '200MB', or None"
        )
    return size


def check_given_limit(limit: int | str | None) -> None:
    """Raise a ValueError if a limit from a recipe or a flag is not a size, or seems to be meant in megabytes."""
    size = limit_in_bytes(limit)
    if size is not None and size < SMALLEST_PLAIN and str(limit).strip().isdigit():
        raise ValueError(f"memory_limit = {limit} is in bytes: write {size}MB for megabytes, {size}B for bytes")
