"""The arrays recorded from the official code: loading them, and copying haiku parameters into our modules."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REFERENCE = Path(__file__).parent / "reference"

Arrays = dict[str, Tensor]

ATTENTION_AND_MLP = {
    "attention/linear": "attention.query",
    "attention/linear_1": "attention.key",
    "attention/linear_2": "attention.value",
    "attention/linear_3": "attention.output",
    "mlp/linear": "mlp.hidden",
    "mlp/linear_1": "mlp.output",
}
CROSS_ATTENTION = ATTENTION_AND_MLP | {
    "layer_norm": "query_norm",
    "layer_norm_1": "token_norm",
    "layer_norm_2": "mlp_norm",
}
SELF_ATTENTION = ATTENTION_AND_MLP | {"layer_norm": "norm", "layer_norm_1": "mlp_norm"}


def relative_error(a: Tensor, b: Tensor) -> float:
    """Return max|a - b| / max|b| over all elements; shapes must be equal, not just broadcastable."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return ((a - b).abs().max() / b.abs().max()).item()


def read(name: str) -> Arrays:
    """Load every numeric array of a file."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if key != "cfg"}


def read_config(name: str) -> dict[str, Any]:
    """Load the sizes of a model file."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        return json.loads(str(file["cfg"]))


def under(prefix: str, arrays: Mapping[str, Tensor]) -> Arrays:
    """Return the arrays whose names begin with a prefix, without that prefix."""
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def block(table: Mapping[str, str], haiku: str, ours: str) -> dict[str, str]:
    """Return a table of the module names of a whole attention block."""
    return {f"{haiku}/{there}": f"{ours}{here}" for there, here in table.items()}


def copy_haiku(
    model: nn.Module, parameters: Mapping[str, Tensor], names: Mapping[str, str], state: Mapping[str, Tensor] = {}
) -> None:
    """Set each parameter and statistic of a model exactly once, by {haiku module: our module or parameter}.

    AssertionError unless both sides are used up.
    """
    targets = dict(model.named_parameters())
    targets |= {name: x for name, x in model.named_buffers() if x.is_floating_point()}
    set_ones: list[str] = []
    used: list[str] = []
    for haiku, ours in names.items():
        for key, target, array in converted(model, haiku, ours, {**parameters, **state}):
            assert targets[target].shape == array.shape, (key, target, targets[target].shape, array.shape)
            with torch.no_grad():
                targets[target].copy_(array)
            set_ones.append(target)
            used.append(key)
    averages = {key for key in state if key.endswith("/average")}  # of a running mean, only the average is ever used
    assert sorted(set_ones) == sorted(targets), set(targets) ^ set(set_ones)
    assert sorted(used) == sorted(parameters.keys() | averages), (parameters.keys() | averages) ^ set(used)


def converted(
    model: nn.Module, haiku: str, ours: str, arrays: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (haiku name, our parameter, array in our layout) of one haiku module."""
    if ours in dict(model.named_parameters()):
        key = f"{haiku}/pos_embs"
        shape = model.get_parameter(ours).shape
        yield key, ours, arrays[key][0] if len(shape) == 1 else arrays[key]
        return
    for name, key, array in converted_layer(model.get_submodule(ours), haiku, arrays):
        yield key, f"{ours}.{name}" if ours else name, array


def converted_layer(layer: nn.Module, haiku: str, arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (our name, haiku name, array in our layout) of each array of a layer."""
    match layer:
        case nn.Linear():  # a 1x1 convolution is a linear layer too
            weight, bias = f"{haiku}/w", f"{haiku}/b"
            yield "weight", weight, arrays[weight].flatten(0, -2).T
            yield "bias", bias, arrays[bias]
        case nn.LayerNorm():
            yield "weight", f"{haiku}/scale", arrays[f"{haiku}/scale"]
            yield "bias", f"{haiku}/offset", arrays[f"{haiku}/offset"]
        case nn.BatchNorm2d():
            for name, there in (
                ("weight", "scale"),
                ("bias", "offset"),
                ("running_mean", "~/mean_ema/average"),
                ("running_var", "~/var_ema/average"),
            ):
                yield name, f"{haiku}/{there}", arrays[f"{haiku}/{there}"].flatten()
        case nn.Conv2d():
            yield "weight", f"{haiku}/w", arrays[f"{haiku}/w"].movedim((-1, -2), (0, 1))
        case nn.ConvTranspose2d() | nn.ConvTranspose3d():  # haiku correlates where PyTorch convolves: flip the kernel
            kernel = arrays[f"{haiku}/w"]
            axes = tuple(range(kernel.ndim - 2))
            yield "weight", f"{haiku}/w", kernel.flip(axes).movedim((-1, -2), (0, 1))
            yield "bias", f"{haiku}/b", arrays[f"{haiku}/b"]
        case _:
            raise AssertionError(f"{haiku}: no rule for {type(layer).__name__}")
