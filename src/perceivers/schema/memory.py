"""The memory that arrays take and that this process may have, compared before any is taken."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def check_memory(what: str, size: int) -> None:
    """Raise a ValueError for more bytes than this process may ever have."""
    there = memory()
    if size > there:
        raise ValueError(f"{what} take {size / 1e9:,.1f} GB, there are {there / 1e9:,.1f}: choose smaller sizes")


def memory() -> int:
    """Return the bytes of memory that this process may have: the machine's, or the limit of its container or shell."""
    limits = [sys.maxsize]
    with suppress(AttributeError, ValueError, OSError):  # a system that does not say (Windows)
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with suppress(ImportError):
        import resource

        limits += [limit for limit in resource.getrlimit(resource.RLIMIT_AS) if limit != resource.RLIM_INFINITY]
    return min(limits)


def num_bytes(tensors: Any) -> int:
    """Return the bytes of all tensors of nested dictionaries and lists."""
    leaves = tree_leaves(tensors)
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves if isinstance(leaf, Tensor))
