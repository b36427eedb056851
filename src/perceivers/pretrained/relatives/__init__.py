"""Models of the same pattern whose weights others publish: a file each, and a line in RELATIVES.

Sizes come from the shapes of the arrays where these tell them, and else from settings, by the names of the original.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from perceivers.core.arguments import check_names
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.resampler import Resampler, ResamplerConfig
from perceivers.files.budgets import read_json
from perceivers.modalities.modality import named
from perceivers.pretrained.foreign import read_state
from perceivers.pretrained.hub import fetched
from perceivers.pretrained.model_folder import load_weights
from perceivers.pretrained.relatives.arrays import Weights
from perceivers.pretrained.relatives.poyo import PoyoSettings, from_poyo
from perceivers.pretrained.relatives.resamplers import (
    FlamingoSettings,
    Idefics2Settings,
    from_flamingo,
    from_idefics2,
)
from perceivers.pretrained.relatives.vecset import VecsetSettings, from_vecset
from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.schema.preset import Preset, only_value_errors
from perceivers.schema.schema_files import with_settings

THEIR_FILES = ["config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model.bin"]
"""Files that are downloaded from a hub repository."""


@dataclass(frozen=True)
class Relative:
    """A model of another library that is one of ours."""

    about: str
    """Description in a few words."""
    needs: str
    """The settings that must be given, in a few words."""
    settings: type
    """Dataclass of what its arrays do not tell."""
    convert: Callable[[Mapping[str, Any], Any], tuple[Schema, Any, Weights] | tuple[ResamplerConfig, Weights]]
    """Function of a state dict and settings that returns schema (not for a resampler), config and weights."""
    file_settings: Callable[[Mapping[str, Any], Path], Any] = lambda around, source: {}
    """Function of the values beside the arrays in a file, and of its path, that returns the settings that they tell."""


def _of_lightning(around: Mapping[str, Any], source: Path) -> Any:
    """Return the settings in the hyperparameters of a checkpoint of torch_brain's trainer."""
    return _at(around, "hyper_parameters", "model")


def _of_config(around: Mapping[str, Any], source: Path) -> Any:
    """Return the settings in the config.json of a resampler, or of a model that has one."""
    path = (source if source.is_dir() else source.parent) / "config.json"
    config = read_json(path) if path.is_file() else None
    return config if _at(config, "model_type") == "idefics2_perceiver" else _at(config, "perceiver_config")


RELATIVES = {
    "poyo": Relative(
        "POYO: spikes to behaviour (torch_brain)",
        "sequence_length and latent_step, in seconds, unless the checkpoint has them",
        PoyoSettings,
        from_poyo,
        _of_lightning,
    ),
    "vecset": Relative(
        "3DShape2VecSet: points to occupancy, with or without KL",
        "num_latents; heads, unless there are 8 of width 64",
        VecsetSettings,
        from_vecset,
    ),
    "flamingo": Relative(
        "PerceiverResampler of flamingo-pytorch",
        "heads, unless there are 8 of width 64",
        FlamingoSettings,
        from_flamingo,
    ),
    "idefics2": Relative(
        "Idefics2PerceiverResampler of transformers",
        "resampler_n_heads, unless there are 16 of width 96, or config.json lies beside the file",
        Idefics2Settings,
        from_idefics2,
        _of_config,
    ),
}
"""All such models, by name."""


def from_state_dict(model: str, state: Any, **settings: Any) -> PerceiverIO | Resampler:
    """Return our model with the weights of another library's: POYO, 3DShape2VecSet, or a resampler.

    `model`: a name of RELATIVES. `state`: names to tensors, also those of a larger model. `settings`: what shapes do
    not tell, e.g. heads=8. ValueError naming the array or the setting that is missing or does not fit.
    """
    check_names("model", [model], RELATIVES)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"a state dict is a dictionary of names to tensors, not {state!r:.99}")
    given: Any = from_plain(RELATIVES[model].settings, to_plain(settings))
    return _built(RELATIVES[model], state, given)


def read_relative(source: Path, model: str, settings: Iterable[str] = ()) -> PerceiverIO | Resampler:
    """Load such a model from a file, a folder or a hub repository, with settings such as "heads=8".

    ValueError for a setting that contradicts the file.
    """
    path = source if source.exists() else fetched(str(source), THEIR_FILES)
    state, around = read_state(path)
    # The settings in the file, then those of the caller.
    relative = RELATIVES[model]
    names = [field.name for field in fields(relative.settings)]
    found = relative.file_settings(around, path)
    known = {name: found[name] for name in names if name in found} if isinstance(found, Mapping) else {}
    settings = list(settings)
    given: Any = with_settings(from_plain(relative.settings, known, str(source)), settings)
    for name in {setting.partition("=")[0] for setting in settings} & known.keys():
        if getattr(given, name) != known[name]:
            raise ValueError(f"set: {name} = {getattr(given, name)!r}, but the file says {known[name]!r:.99}")
    return _built(relative, state, given, str(source))


def _built(relative: Relative, state: Mapping[str, Any], settings: Any, source: str = "") -> PerceiverIO | Resampler:
    """Return the model in evaluation mode."""
    model: PerceiverIO | Resampler
    match named(source, relative.convert, state, settings) if source else relative.convert(state, settings):
        case Schema() as schema, config, weights:
            model = Preset(schema, config).build("meta")
        case ResamplerConfig() as config, weights:
            with torch.device("meta"), only_value_errors():
                model = Resampler(config, config.latents.channels)
    load_weights(model, weights, source or "state", assign=True)
    return model.eval()


def _at(values: Any, *path: str) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values
