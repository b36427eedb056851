"""The rules by which records are chosen to be held out from training."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def check_held_out_fraction(fraction: float) -> None:
    """Raise a ValueError for a fraction that leaves no training records, or holds none out."""
    if not 0 < fraction < 1:
        raise ValueError(f"held_out_fraction = {fraction} must be between 0 and 1")


def random_split(count: int, num_held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the indices 0 to `count` - 1 at random into training and `num_held_out` held out, each ascending."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def is_held_out(number: int | np.ndarray, every: int) -> Any:
    """Return whether a record is held out if every n-th one is; numbers (or arrays of numbers) count from 1."""
    return number % every == 0


def is_held_out_by_name(name: str, fraction: float) -> bool:
    """Return whether a file is held out, by a hash of its name, so that new files move no others between the parts."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < fraction


def last_in_order(keys: Sequence[Any], count: int) -> frozenset[int]:
    """Return the indices of the `count` largest keys; among equal keys, the later ones."""
    return frozenset(sorted(range(len(keys)), key=keys.__getitem__)[len(keys) - count :])


def whole_groups(keys: Sequence[Hashable], count: int, seed: int) -> frozenset[int]:
    """Return the indices of random whole groups of equal keys, at least `count` indices."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    chosen: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(groups)):
        if len(chosen) < count:
            chosen += list(groups.values())[number]
    return frozenset(chosen)


def part_of_each_class(keys: Sequence[Hashable], fraction: float, seed: int) -> frozenset[int]:
    """Return the indices of a random part of each key's members; a key with one member is never held out."""
    members: dict[Hashable, list[int]] = {}
    for index in np.random.default_rng(seed).permutation(len(keys)).tolist():
        members.setdefault(keys[index], []).append(index)
    return frozenset(
        index for group in members.values() for index in group[: round(fraction * len(group)) if len(group) > 1 else 0]
    )
