"""Perceiver IO: declare the inputs and outputs; get one model that encodes, processes and decodes them.

The public names are those of `public.py`. They are imported when the first one is used, not with the package: torch
takes seconds to load, and before that the command must be ready to handle signals and errors.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceivers.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Import all public names, and with them the modules of the package; AttributeError if `name` is not public."""
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"module 'perceivers' has no attribute {name!r}")
    import perceivers.public as public

    names = {public_name: getattr(public, public_name) for public_name in public.__all__}
    globals().update({**names, "__all__": public.__all__})
    try:
        return globals()[name]
    except KeyError:
        raise AttributeError(f"module 'perceivers' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """Return the public names."""
    return list(__getattr__("__all__"))
