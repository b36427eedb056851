"""Model folders: schema and sizes as JSON, weights as safetensors; for a resampler, which has no schema, its sizes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from perceivers.core.arguments import check_positive
from perceivers.core.config import Config, TrunkConfig, shared
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.resampler import Resampler, ResamplerConfig
from perceivers.files.budgets import read_json
from perceivers.files.durable_folder import DESCRIPTION, current
from perceivers.files.tensor_files import is_finite, load_shards, save_tensors
from perceivers.modalities.modality import named
from perceivers.schema import Schema
from perceivers.schema.format_1 import renamed_description, renamed_weights
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.schema.preset import Preset, only_value_errors

FORMAT = 2
"""Number of the format of model folders that this version writes. It reads those of format 1 too."""

WEIGHTS = "model.safetensors"
"""File of the weights of a model."""

RESAMPLER = "resampler"
"""Key of a description that holds a resampler, in place of schema and config."""

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Dtypes that weights may have: a model runs in the dtype in which it is stored."""

UNWRAP = "merge adapters (merge_and_unload), remove pruning and parametrisations, unwrap .module, before it is saved"


@dataclass(frozen=True)
class Sizes:
    """Description of a resampler: its config and the width of its tokens."""

    config: ResamplerConfig
    """Sizes."""
    input_channels: int
    """Width of the tokens given."""

    def __post_init__(self) -> None:
        check_positive("input_channels", self.input_channels)

    def build(self, device: str) -> Resampler:
        """Build the resampler, newly initialised; ValueError if none can have these sizes."""
        with torch.device(device), only_value_errors():
            return Resampler(self.config, self.input_channels)


def made_of(model: PerceiverIO | Resampler) -> Preset | Sizes:
    """Return what makes a model but for its weights."""
    if isinstance(model, Resampler):
        return Sizes(cast(ResamplerConfig, model.config), model.input_channels)
    return Preset(cast(Schema, model.schema), model.config)


def savable(model: object) -> PerceiverIO | Resampler:
    """Return a model that can be saved and loaded, unwrapped from torch.compile; ValueError naming what prevents it.

    Its arrays must be those that its schema and config build: plain, finite, and not shared.
    """
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, PerceiverIO | Resampler):
        raise ValueError(f"model is a {type(model).__name__}, not a PerceiverIO or a Resampler: {UNWRAP}")
    arrays, names = model.state_dict(), dict[int, str]()
    built = named("model", made_of(model).build, "meta").state_dict()
    for name in (*arrays, *built):
        if name not in built:
            raise ValueError(f"model: {name} is none of the arrays that its schema and config build: {UNWRAP}")
        if name not in arrays:
            raise ValueError(f"model: {name} is missing, which its schema and config build: {UNWRAP}")
        _check_array(name, arrays[name], built[name])
        if arrays[name].numel() and (other := names.setdefault(arrays[name].data_ptr(), name)) != name:
            raise ValueError(f"model: {name} and {other} are one tensor, which would load as two: clone one of them")
    return model


def _check_array(name: str, array: Tensor, built: Tensor) -> None:
    """Raise a ValueError unless an array can be saved, and loaded where the model builds one."""
    if type(array) is not Tensor or array.layout != torch.strided:
        raise ValueError(f"model: {name} is a {type(array).__name__}, not a plain tensor: {UNWRAP}")
    if array.is_meta:
        raise ValueError(f"model: {name} is on the device meta, where it has no numbers: load or build it elsewhere")
    if array.shape != built.shape:
        raise ValueError(f"model: {name} is {list(array.shape)}, its schema and config build {list(built.shape)}")
    if array.dtype != built.dtype and not (array.dtype in FLOATS and built.dtype in FLOATS):
        raise ValueError(f"model: {name} is of {array.dtype}, its schema and config build {built.dtype}")
    if not is_finite([array]):
        raise ValueError(f"model: {name} is not finite: it holds NaN or an infinite number")


def with_schema(model: PerceiverIO | Resampler, source: object) -> PerceiverIO:
    """Return a model of a schema; ValueError for a resampler."""
    if isinstance(model, Resampler):
        raise ValueError(f"{source} is a resampler, which has no schema: use it in Python, from_pretrained loads it")
    return model


def save_model(model: PerceiverIO | Resampler, folder: Path) -> None:
    """Write weights, schema and config as files into an existing folder."""
    save_description(model, folder)
    save_tensors(folder / WEIGHTS, model.state_dict())


def save_description(model: PerceiverIO | Resampler, folder: Path) -> None:
    """Write schema and config, or the sizes of a resampler, as a file into an existing folder."""
    made: Any = to_plain(made_of(model))
    made = {RESAMPLER: made} if isinstance(model, Resampler) else made
    description = {"format": FORMAT, "perceivers": version("perceivers"), **made}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


def load_model(folder: Path) -> PerceiverIO:
    """Load the model of a folder, in evaluation mode; ValueError naming what is wrong with the folder."""
    return with_schema(load_folder(folder), folder)


def load_folder(folder: Path) -> PerceiverIO | Resampler:
    """Load the model or the resampler of a folder, in evaluation mode; ValueError naming what is wrong with it."""
    # Read the description, of either format.
    folder = current(folder)
    description = read_json(folder / DESCRIPTION)
    written = description.get("format") if isinstance(description, dict) else None
    if written not in (1, FORMAT) or isinstance(written, bool):
        raise ValueError(f"{folder / DESCRIPTION}: format {written!r}, this version reads 1 and {FORMAT}")
    description = renamed_description(description) if written == 1 else description
    source = str(folder / DESCRIPTION)
    made = _described(description, source)
    # Read the weights, and build the model that takes them.
    weights = load_shards(folder / WEIGHTS)
    weights = renamed_weights(weights) if written == 1 else weights
    blocks = num_attention_blocks(made.config)
    if blocks > len(weights):
        raise ValueError(f"{source}: {blocks} attention blocks, but {WEIGHTS} has {len(weights)} arrays in all")
    # Build on the meta device: a description must not allocate memory before it is checked against the weights.
    model = cast(PerceiverIO | Resampler, named(source, made.build, "meta"))
    load_weights(model, weights, str(folder / WEIGHTS), assign=True)
    return model.eval()


def _described(description: Mapping[str, Any], source: str) -> Preset | Sizes:
    """Return what a description says that makes the model."""
    if RESAMPLER in description:
        return from_plain(Sizes, description[RESAMPLER], f"{source}: {RESAMPLER}")
    schema = from_plain(Schema, description.get("schema"), source)
    return Preset(schema, from_plain(Config, description.get("config"), source))


def num_attention_blocks(config: TrunkConfig) -> int:
    """Return the number of attention blocks that do not share weights, without the decoder's."""
    encoder, processor = config.encoder, config.processor
    is_transformer = isinstance(config, Config) and config.trunk == "transformer"
    reads = 0 if is_transformer else 1 + shared(encoder.num_reads - 1, encoder.share_reads)
    return reads + processor.num_layers * (1 + shared(processor.num_blocks - 1, processor.share_blocks))


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Load weights into a model; ValueError naming the first that is missing, left over, or of another shape or dtype.

    They are copied into the tensors of the model or, with `assign`, replace them, as for a model on the meta device.
    """
    current = model.state_dict()
    for name, tensor in current.items():
        if name not in weights:
            raise ValueError(f"{source}: {name} is missing")
        dtype = weights[name].dtype
        if dtype != tensor.dtype and not (dtype in FLOATS and tensor.dtype in FLOATS):
            raise ValueError(f"{source}: {name} is of {dtype}, the model's of {tensor.dtype}")
        if weights[name].shape != tensor.shape:
            raise ValueError(f"{source}: {name} is {list(weights[name].shape)}, the model's is {list(tensor.shape)}")
    if extra := sorted(set(weights) - set(current)):
        raise ValueError(f"{source}: {extra[0]} is not in the model")
    # Clone, to align tensors as torch does: with another alignment, matrix products differ in the last bit.
    model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=assign)
