"""How this library is asked for speed and memory; the only file here that must change when that changes.

TODAY there is no `memory_limit`, no order of attention to choose and no checkpointing in the library. When there is:
`encode` and `decode` hand `memory_limit` on, `plain` forces the dense order, `checkpointed` sets the option.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from perceivers import Encoded, PerceiverIO
from perceivers.core.attention import SelfAttention
from perceivers.tasks.multimodal import queries_within

Raw = Mapping[str, Any]


def encode(model: PerceiverIO, raw: Raw, memory_limit: int | None = None) -> Encoded:
    """Read and process; `memory_limit` in bytes."""
    return model.encode(raw)


def decode(model: PerceiverIO, encoded: Encoded, memory_limit: int | None = None) -> dict[str, Any]:
    """Write everything; `memory_limit` in bytes."""
    return model.decode(encoded, chunk_size=None if memory_limit is None else queries_within(model, memory_limit))


def plain(model: PerceiverIO) -> AbstractContextManager[None]:
    """Under it the model takes the dense path, in chunks of queries."""
    return nullcontext()


def checkpointed(model: PerceiverIO) -> None:
    """Let the layers of the processor compute in the backward pass again what they need there."""
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, SelfAttention))
