"""Activation checkpointing, from outside the architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from perceivers.core.attention import CrossAttention, SelfAttention


@contextmanager
def recomputed(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Within: attention blocks keep only what goes in and run again, with the same dropout, for the gradient.

    Cross-attentions where they are dense; their other orders do so anyway.
    """
    blocks = (CrossAttention, SelfAttention)
    layers = [module for module in model.modules() if isinstance(module, blocks)] if enabled else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own again
