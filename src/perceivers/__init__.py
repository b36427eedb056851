"""Perceiver IO: declare what goes in and what must come out; get one model that reads it, thinks, and writes it.

The public names are those of `public.py`. They are imported with the first that is used, not with the package: the
command has to be ready for signals and errors before the seconds that torch takes to load.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceivers.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import all public names, and with them the modules of the package; AttributeError if `name` is none."""
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module 'perceivers' has no attribute {name!r}")
    import perceivers.public as public

    found = {known: getattr(public, known) for known in public.__all__}
    globals().update({**found, "__all__": public.__all__})
    try:
        return globals()[name]
    except KeyError:
        raise AttributeError(f"module 'perceivers' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__getattr__("__all__"))
