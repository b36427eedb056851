"""Pairwise designs: few cases in which every pair of values of any two factors occurs together."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Case = dict[str, Any]
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(case: Mapping[str, Any]) -> set[Pair]:
    """Return all pairs of (factor, value) of a case."""
    return set(itertools.combinations(sorted(case.items(), key=lambda item: item[0]), 2))


def pairwise(factors: Mapping[str, Sequence[Any]], possible: Callable[[Case], bool], seed: int = 0) -> list[Case]:
    """Return cases that cover every pair that is possible, by a greedy search.

    `possible` tells of a case, or of a part of one, whether its values may occur together.
    """
    names = sorted(factors)
    rng = random.Random(seed)
    todo = set()
    for one, two in itertools.combinations(names, 2):
        for x, y in itertools.product(factors[one], factors[two]):
            if possible({one: x, two: y}):
                todo.add(((one, x), (two, y)))
    cases = []
    while todo:
        case = dict(min(todo, key=repr))
        others = [name for name in names if name not in case]
        rng.shuffle(others)
        for name in others:
            values = [value for value in factors[name] if possible({**case, name: value})]
            rng.shuffle(values)
            case[name] = max(values, key=lambda value: len(pairs_of({**case, name: value}) & todo))
        found = pairs_of(case) & todo
        assert found, case
        todo -= found
        cases.append(case)
    return cases


def coverage(cases: Sequence[Case], factors: Mapping[str, Sequence[Any]]) -> tuple[int, int]:
    """Return the number of pairs that the cases cover, and the number of pairs of values that there are."""
    covered = set().union(*map(pairs_of, cases))
    sizes = [len(values) for values in factors.values()]
    return len(covered), sum(x * y for x, y in itertools.combinations(sizes, 2))
