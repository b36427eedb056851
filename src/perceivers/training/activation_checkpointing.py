"""Activation checkpointing, from outside the architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from perceivers.core.attention import CrossAttention, SelfAttention


@contextmanager
def recomputed(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Make attention blocks keep their inputs alone and run again, with the same dropout, for the gradient.

    Cross-attentions where they are dense; their other orders do so anyway.
    """
    blocks = {CrossAttention: "dense", SelfAttention: "forward"}
    layers = [
        (module, method)
        for module in (model.modules() if enabled else ())
        for block, method in blocks.items()
        if isinstance(module, block)
    ]
    for layer, method in layers:
        setattr(layer, method, partial(checkpoint, getattr(layer, method), use_reentrant=False))
    try:
        yield
    finally:
        for layer, method in layers:
            delattr(layer, method)  # the class's own again
