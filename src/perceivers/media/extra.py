"""Libraries of the extra `media`, imported when they are needed."""

from importlib import import_module
from typing import Any


def library(name: str) -> Any:
    """Return a module of the extra `media`; ImportError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}): pip install perceivers[media]") from None
