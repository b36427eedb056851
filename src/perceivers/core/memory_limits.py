"""Memory limits: a number of bytes, or text such as "200MB" (powers of 1000) or "1.5GiB" (powers of 1024)."""

from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from perceivers.core.checks import is_whole

MemoryLimit = int | str | None
"""Bytes, or a number with its unit in text; None: no limit."""

SIZES = TypeAdapter(ByteSize)
"""Parser of sizes with units."""

SMALLEST_GIVEN = 1000
"""Smallest number accepted without a unit in recipes and flags: a smaller one must be meant in megabytes."""


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


def check_given_limit(limit: MemoryLimit) -> None:
    """Raise a ValueError if a limit from a recipe or a flag is not a size, or must be meant in megabytes."""
    size = limit_in_bytes(limit)
    if size is not None and size < SMALLEST_GIVEN:
        raise ValueError(f"memory_limit = {limit} is in bytes: for megabytes write {size}MB")
