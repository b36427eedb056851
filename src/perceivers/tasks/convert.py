"""Checkpoint files of others to model folders, and back to Hugging Face's."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from safetensors.torch import save_file

from perceivers.core.joining import check_names
from perceivers.core.perceiver import PerceiverIO
from perceivers.preset import Preset
from perceivers.pretrained.convert import (
    from_haiku,
    from_huggingface,
    from_krasserm,
    huggingface_options,
    to_huggingface,
)
from perceivers.pretrained.foreign import read_torch
from perceivers.pretrained.hub import fetched
from perceivers.pretrained.unpickle import read_haiku
from perceivers.schema import Schema, with_settings
from perceivers.storage import DESCRIPTION, WEIGHTS, read_json, write_folder
from perceivers.tasks.presets import PRESETS
from perceivers.tasks.recipe import data_of, find_model

THEIR_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model.bin"]
"""What is fetched of a repository of Hugging Face's or krasserm's."""

PICKLES = (".pickle", ".pystate", ".pkl")


def read_checkpoint(
    source: Path, model: str, settings: Iterable[str] = (), as_huggingface: bool = False
) -> PerceiverIO:
    """The model of a DeepMind pickle, or of a folder of Hugging Face's or krasserm's; `model` names the preset.

    `settings` change of it what arrays do not tell ("config.processor.num_heads=4"). `as_huggingface`: computes as
    transformers does, not as DeepMind's code.
    """
    check_names("model", [model], PRESETS)
    preset = with_settings(PRESETS[model].preset(), settings)
    if as_huggingface:
        preset = huggingface_options(preset)
    if source.suffix in PICKLES:
        preset, weights = from_haiku(preset, *read_haiku(source))
    else:
        preset, weights = _from_folder(preset, source if source.exists() else fetched(str(source), THEIR_FILES))
    built = preset.build("meta")
    built.load_state_dict(weights, assign=True)
    return built.eval()


def write_huggingface(model: PerceiverIO, folder: Path) -> None:
    """A folder that transformers loads, whole or not at all; ValueError for what its classes cannot express."""
    weights, config = to_huggingface(Preset(cast(Schema, model.schema), model.config), model.state_dict())

    def write(fresh: Path) -> None:
        plain = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(plain, fresh / WEIGHTS, {"format": "pt"})
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    write_folder(folder, write)


def read_own(source: Path) -> PerceiverIO | None:
    """The model of a run, or of a folder in our own format; None for any other source."""
    return find_model(str(source)) if (source / DESCRIPTION).is_file() or data_of(source) else None


def _from_folder(preset: Preset, source: Path) -> tuple[Preset, dict]:
    config = read_json(source / "config.json") if (source / "config.json").is_file() else None
    if config is not None and not isinstance(config, dict):
        raise ValueError(f"{source / 'config.json'}: not an object")
    weights = read_torch(source)
    if str((config or {}).get("model_type", "")).startswith("perceiver-io"):
        return from_krasserm(preset, weights)
    return from_huggingface(preset, weights, config)
