"""The two tiers of the tests: `make test` runs what is not marked slow, `make proof` all of it."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Cases to parametrise a test with: those that are named in both tiers, the others in `make proof` alone."""
    cases = list(cases)
    assert fast
    assert all(case in cases for case in fast), f"{fast} are not all among {cases}"
    marks = {case: () if case in fast else pytest.mark.slow for case in cases}
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=marks[case]) for case in cases]
