"""The two tiers of the tests: `make test` runs those that are not marked slow, `make proof` runs all."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Return cases for parametrize: those in `fast` run in both tiers, the others only in `make proof`."""
    cases = list(cases)
    assert fast
    assert all(case in cases for case in fast), f"{fast} are not all among {cases}"
    marks = {case: () if case in fast else pytest.mark.slow for case in cases}
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks[case]) for case in cases]
