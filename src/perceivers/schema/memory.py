"""Checks of the memory that arrays need against the memory of this process, before anything is allocated."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def check_memory(what: str, size: int) -> None:
    """Raise a ValueError if `size` bytes are more than this process can have."""
    available = memory()
    if size > available:
        raise ValueError(f"{what} take {size / 1e9:,.1f} GB, there are {available / 1e9:,.1f}: choose smaller sizes")


def memory() -> int:
    """Return the memory of this process in bytes: the machine's, or the limit of its container or shell."""
    limits = [sys.maxsize]
    with suppress(AttributeError, ValueError, OSError):  # not available on Windows
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(ImportError):
        import resource

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    return min(limits)


def num_bytes(tensors: Any) -> int:
    """Return the size in bytes of all tensors in nested dictionaries and lists."""
    leaves = tree_leaves(tensors)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
