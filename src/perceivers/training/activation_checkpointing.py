"""Activation checkpointing, added to the attention blocks of a model without changing their code."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from perceivers.core.blocks import CrossAttention, SelfAttention


@contextmanager
def recomputed(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Make attention blocks store only their inputs and run again, with the same dropout, in the backward pass.

    In a cross-attention only the dense algorithm is wrapped: the other algorithms recompute their blocks anyway.
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
            delattr(layer, method)  # uncovers the method of the class
