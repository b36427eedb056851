"""Costs of a model, counted without running it: parameters, floating-point operations, memory."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from perceivers.core.perceiver import PerceiverIO
from perceivers.schema.preset import Preset

CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}
"""Operation counts of fused kernels that torch's counter lacks."""

BOTTLENECK = "trunk.bottleneck"
STAGES = ("input_adapter", "trunk.encoder", BOTTLENECK, "trunk.processor", "output_query", "decoder", "output_adapter")


@dataclass(frozen=True)
class Costs:
    """Costs of one forward pass over one sample of the trained size."""

    parameters: int
    """Number of trained scalars; shared ones are counted once."""
    flops: int
    """Floating-point operations of matrix products, two for each multiply-add."""
    peak_bytes: int
    """Largest memory held at once in float32 on a CPU, weights included."""
    stages: dict[str, tuple[int, int]]
    """Parameters and operations of each part of the model, by name."""


def costs(preset: Preset) -> Costs:
    """Count the costs of a model on tensors that have shapes but no content."""
    # FakeTensorMode makes torch choose the kernels that it would choose on a CPU.
    model = preset.build("meta").eval().requires_grad_(False)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model.to_empty(device="cpu")
        raw, points = preset.schema.dummy_input(1, torch.device("cpu"))
        counter, memory = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION), PeakMemory()
        memory.hold([*model.parameters(), *tree_leaves(raw)])
        with memory, counter:
            model(raw, points, algorithm="dense")
    flops = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    has_bottleneck = getattr(model.trunk, "bottleneck", None) is not None
    names = [name for name in STAGES if name != BOTTLENECK or has_bottleneck]
    stages = {name: _stage(name, model.get_submodule(name), flops) for name in names}
    latents = sum(parameter.numel() for parameter in model.trunk.parameters(recurse=False))
    stages = {"trunk.latents": (latents, 0), **stages}
    return Costs(count_parameters(model), counter.get_total_flops(), memory.peak, stages)


def training_bytes(preset: Preset, batch_size: int) -> int:
    """Return the peak memory of a training step in float32 on a CPU: weights, gradients, moments, activations."""
    model = preset.build("meta")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        raw, points = preset.schema.dummy_input(batch_size, torch.device("cpu"))
        moments = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(2)]
        memory = PeakMemory()
        memory.hold([*model.parameters(), *tree_leaves(raw), *moments])
        with memory:
            outputs = tree_leaves(model(raw, points))
            torch.stack([output.sum() for output in outputs]).sum().backward()  # any loss takes this memory
    return memory.peak


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters; shared ones are counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _stage(name: str, module: nn.Module, flops: dict[str, int]) -> tuple[int, int]:
    # The counter has only modules that were called: the members of a ModuleList, but not the list itself.
    prefix = f"{PerceiverIO.__name__}.{name}"
    inside = [f"{prefix}.{child}" for child, _ in module.named_children()] if isinstance(module, nn.ModuleList) else []
    return count_parameters(module), sum(flops.get(key, 0) for key in inside or [prefix])


class PeakMemory(TorchDispatchMode):
    """Tracker of the tensors that are alive within the context; `peak` is the largest sum of their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and track the tensors that it makes."""
        result = function(*args, **(kwargs or {}))
        self.hold(tree_leaves(result))
        return result

    def hold(self, values: list[Any]) -> None:
        """Count the storages of these tensors until they are freed."""
        for value in values:
            if isinstance(value, Tensor):
                self._hold(value.untyped_storage())

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size
