"""The verb `convert`."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from perceivers.core.arguments import check_names
from perceivers.files.outputs import check_outputs
from perceivers.pretrained.checkpoint_files import is_theirs, read_checkpoint, write_huggingface
from perceivers.pretrained.hub import save_pretrained
from perceivers.pretrained.relatives import RELATIVES, read_relative
from perceivers.runs.results import run_card
from perceivers.runs.run import data_of, files_of, load_local
from perceivers.schema.preset import Preset
from perceivers.systems import PRESETS
from perceivers.training.checkpoints import is_place_of_checkpoint


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    dest: Annotated[Path, tyro.conf.Positional],
    /,
    model: str = "",
    to: Literal["perceivers", "huggingface"] = "perceivers",
    numbers: Literal["deepmind", "huggingface"] | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUE")] = (),  # noqa: A002
) -> None:
    """Convert a released checkpoint or a run to a model folder, ours or one that transformers loads.

    Code inside the checkpoint is never executed. The models of other libraries, poyo, vecset, flamingo and idefics2
    (the last two are resamplers), are read from .pt, .ckpt and .safetensors, also out of training checkpoints.

    Args:
        source: DeepMind pickle; folder or hub name of a model of Hugging Face or krasserm; checkpoint of another
            library; model or run of perceivers.
        dest: Folder to write; it must not exist. The model card of a converted run shows its command and scores.
        model: Name of the published model or of the model of another library (see info); not needed for a model of
            perceivers.
        to: Format to write.
        numbers: Implementation whose numbers the model reproduces: deepmind (DeepMind's code) or huggingface
            (transformers: another GELU, padding and residual). Default: the library that wrote the files, but DeepMind
            for files from its hub repositories. Choose deepmind for a copy of weights that DeepMind trained. For a
            model of perceivers, huggingface accepts that transformers computes other numbers than the model.
        set: Settings that the files do not contain, e.g. config.processor.num_heads=4 schema.inputs.image.size=12; of
            models of other libraries by the names that they have there (perceivers info vecset lists them).
    """
    # Refuse a destination that would damage existing files.
    if os.path.lexists(dest):
        raise ValueError(f"{dest} exists: choose another folder, or remove it")
    if is_place_of_checkpoint(Path(os.path.realpath(dest))):
        raise ValueError(f"{dest}: a run keeps its checkpoints there, not models: choose another folder")
    check_outputs([dest], files_of(source))
    # Read the model: one of perceivers as it is, a foreign checkpoint with a preset and settings.
    theirs = is_theirs(source) if numbers is None else numbers == "huggingface"
    ours = load_local(source)
    if ours is not None and (model or set or (numbers and (to, numbers) != ("huggingface", "huggingface"))):
        raise ValueError(f"{source} is a model of ours: model, set and numbers have no effect on it; leave them out")
    relative = model in RELATIVES
    if relative and (numbers or to != "perceivers"):
        raise ValueError(
            f"{model} has one kind of numbers and becomes a model folder of ours: leave out numbers and to"
        )
    converted: Any = ours
    if ours is None:
        read = read_relative(source, model, set) if relative else None
        converted = read or read_checkpoint(source, _preset(model), set, theirs)
    if to == "huggingface":
        write_huggingface(converted, dest, numbers == "huggingface")
    else:
        save_pretrained(converted, dest, run_card(source) if data_of(source) else "")
    count = sum(parameter.numel() for parameter in converted.parameters())
    whose = (
        "" if ours or relative else f", computing as {'transformers does' if theirs else 'DeepMind does'} (--numbers)"
    )
    print(f"Written: {dest}, {count:,} parameters{whose}")


def _preset(model: str) -> Preset:
    """Return the preset of a published model; ValueError for another name."""
    check_names("model", [model], [*PRESETS, *RELATIVES])
    return PRESETS[model].preset()
