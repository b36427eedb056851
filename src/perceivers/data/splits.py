"""Held-out parts: the rules by which some records are chosen that training never sees."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def check_held_out_fraction(fraction: float) -> None:
    """Raise a ValueError for a part that leaves nothing to learn from, or nothing to test with."""
    if not 0 < fraction < 1:
        raise ValueError(f"held_out_fraction = {fraction} must be between 0 and 1")


def random_split(count: int, num_held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split places from 0 to `count` - 1 at random: those to learn from, and so many held out, each rising."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def is_held_out(number: int | np.ndarray, every: int) -> Any:
    """Return whether the record of a number, from 1, is held out if each `every`-th is; of an array, for each."""
    return number % every == 0


def is_held_out_by_name(name: str, fraction: float) -> bool:
    """Return whether a file is in the held-out part, by a hash of its name: new files move no others."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < fraction


def last_in_order(keys: Sequence[Any], count: int) -> frozenset[int]:
    """Return the places of the `count` largest keys, of equal ones the later."""
    return frozenset(sorted(range(len(keys)), key=keys.__getitem__)[len(keys) - count :])


def whole_groups(keys: Sequence[Hashable], count: int, seed: int) -> frozenset[int]:
    """Return the places of random groups of equal keys, until there are at least `count` of them."""
    groups: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    chosen: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(groups)):
        if len(chosen) < count:
            chosen += list(groups.values())[number]
    return frozenset(chosen)


def part_of_each_class(keys: Sequence[Hashable], fraction: float, seed: int) -> frozenset[int]:
    """Return a random part of the places of each key; a key that is there once is learned from."""
    members: dict[Hashable, list[int]] = {}
    for place in np.random.default_rng(seed).permutation(len(keys)).tolist():
        members.setdefault(keys[place], []).append(place)
    return frozenset(
        place for own in members.values() for place in own[: round(fraction * len(own)) if len(own) > 1 else 0]
    )
