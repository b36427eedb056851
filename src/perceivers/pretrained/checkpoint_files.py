"""Reading of models from checkpoint files of other libraries, and writing of folders that transformers loads."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file

from perceivers.core.perceiver import PerceiverIO
from perceivers.files.budgets import read_json
from perceivers.files.durable_folder import write_folder
from perceivers.pretrained.conversion import (
    Converted,
    from_haiku,
    from_huggingface,
    from_krasserm,
    huggingface_options,
    to_huggingface,
)
from perceivers.pretrained.foreign import read_torch
from perceivers.pretrained.hub import fetched
from perceivers.pretrained.model_folder import WEIGHTS, savable, with_schema
from perceivers.pretrained.normalisation import PREPROCESSOR, takes_pictures, with_normalisation, written_normalisation
from perceivers.pretrained.sizes import STAGES, value_at
from perceivers.pretrained.unpickle import read_haiku
from perceivers.schema import Schema
from perceivers.schema.preset import Preset
from perceivers.schema.schema_files import with_settings

THEIR_FILES = ["config.json", PREPROCESSOR, "*.safetensors", "*.safetensors.index.json", "pytorch_model.bin"]
"""Files that are downloaded from a repository of Hugging Face or krasserm."""

KRASSERM_LATENTS = "0.latent_provider._query"
"""Suffix of the name of the latents in every model of krasserm."""

PICKLES = (".pickle", ".pystate", ".pkl")

NOT_IN_SHAPES = [f"config.{stage}.num_heads" for stage in STAGES] + ["config.processor.num_blocks"]
"""Settings that the shapes of arrays do not determine."""


def read_checkpoint(
    source: Path, preset: Preset, settings: Iterable[str] = (), as_huggingface: bool | None = None
) -> PerceiverIO:
    """Load a model of the preset's family from a DeepMind pickle, or a folder of Hugging Face or krasserm.

    `settings` ("config.processor.num_heads=4") give what the files do not determine. `as_huggingface`: the model
    computes as transformers does (krasserm's: as his package does) instead of DeepMind's code; None: `is_theirs`.
    ValueError for a setting that contradicts the files, and if neither gives the number of heads or blocks.
    """
    # Change the preset by the settings.
    as_huggingface = is_theirs(source) if as_huggingface is None else as_huggingface
    settings = list(settings)
    paths = [setting.partition("=")[0] for setting in settings]
    preset = with_settings(huggingface_options(preset) if as_huggingface else preset, settings)
    # Read the arrays, and fill in the sizes that they determine.
    pickled = source.suffix in PICKLES
    if pickled:
        config, (converted, weights) = None, from_haiku(preset, *read_haiku(source))
    else:
        config, (converted, weights) = _from_folder(preset, source, as_huggingface, paths)
    if config is None and (pickled or not as_huggingface) and converted != preset:
        # The preset gives these only for DeepMind's model, and the sizes show that this is another one.
        _check_given([path for path in NOT_IN_SHAPES if value_at(preset, path) != 1], paths)
    # Refuse settings that the files contradict, and build the model.
    for path in paths:
        expected, actual = value_at(preset, path), value_at(converted, path)
        if actual != expected:
            raise ValueError(f"set: {path} = {expected!r}, but the files say {actual!r}")
    built = converted.build("meta")
    built.load_state_dict(weights, assign=True)
    return built.eval()


def is_theirs(source: Path) -> bool:
    """Return True if the library that wrote the file also trained the weights, False for weights of DeepMind."""
    deepminds = any(part.startswith("models--deepmind--") for part in source.parts)  # in the hub's cache
    return source.suffix not in PICKLES and not deepminds and (source.exists() or source.parts[0] != "deepmind")


def write_huggingface(model: PerceiverIO, folder: Path, as_huggingface: bool = False) -> None:
    """Write a folder that transformers loads, atomically; ValueError for a model that its classes cannot express.

    `as_huggingface`: accept that the class computes some things differently from the model.
    """
    model = with_schema(savable(model), "model")
    preset = Preset(cast(Schema, model.schema), model.config)
    preset = huggingface_options(preset, activation=None) if as_huggingface else preset
    weights, config = to_huggingface(preset, model.state_dict())

    def write(fresh: Path) -> None:
        plain = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(plain, fresh / WEIGHTS, {"format": "pt"})
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if takes_pictures(preset):
            (fresh / PREPROCESSOR).write_text(json.dumps(written_normalisation(preset), indent=2) + "\n")

    write_folder(folder, write)


def _from_folder(
    preset: Preset, source: Path, as_huggingface: bool, paths: list[str]
) -> tuple[dict[str, Any] | None, Converted]:
    """Return the content of config.json (None if there is none) and the model."""
    folder = source if source.exists() else fetched(str(source), THEIR_FILES)
    config = _read_config(folder / "config.json" if folder.is_dir() else folder.parent / "config.json")
    weights = read_torch(folder)
    # Krasserm's format, by its configuration.
    kind = "" if config is None else str(config.get("model_type", ""))
    # Without a configuration, the names of the arrays tell the format.
    if kind.startswith("perceiver-io") or (not kind and any(name.endswith(KRASSERM_LATENTS) for name in weights)):
        if config is None and as_huggingface:
            _check_given([*NOT_IN_SHAPES, "config.encoder.num_reads"], paths)
        return config, from_krasserm(preset, weights, config, as_huggingface)
    # Hugging Face's format.
    if config is None and as_huggingface:
        raise ValueError(f"{folder}: config.json is missing: it says how many heads and blocks there are")
    converted, state = from_huggingface(preset, weights, config, as_huggingface=as_huggingface)
    processor = _read_config((folder if folder.is_dir() else folder.parent) / PREPROCESSOR)
    if processor is not None and as_huggingface and takes_pictures(converted):
        converted = with_normalisation(converted, processor)
    return config, (converted, state)


def _read_config(path: Path) -> dict[str, Any] | None:
    config = read_json(path) if path.is_file() else None
    if config is not None and not isinstance(config, dict):
        raise ValueError(f"{path}: not an object")
    return config


def _check_given(needed: Iterable[str], paths: Collection[str]) -> None:
    """Raise a ValueError naming the first setting in `needed` that is not in `paths`, those that were given."""
    for path in needed:
        if path not in paths:
            raise ValueError(f"nothing in the files says {path}: give it with --set {path}=NUMBER")
