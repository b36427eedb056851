"""The verb `convert`."""

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

from perceivers.core.arguments import check_names
from perceivers.files.outputs import check_outputs
from perceivers.pretrained.checkpoint_files import is_theirs, read_checkpoint, write_huggingface
from perceivers.pretrained.hub import save_pretrained
from perceivers.runs.recipe import data_of, own_files, read_own
from perceivers.runs.results import run_card
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
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PLACE=VALUE")] = (),  # noqa: A002
) -> None:
    """A released checkpoint, or a run, to a model folder, or to one that transformers loads. Nothing in it is run.

    Args:
        source: DeepMind pickle, folder or hub name of Hugging Face's or krasserm's model, or a model or run of ours.
        dest: Folder to write; it must not exist. That of a run has its command and scores on its card.
        model: Name of the published model (see info); not needed for what is ours.
        to: Format to write.
        numbers: Whose numbers the model computes: DeepMind's code, or transformers' (other GELU, padding, residual); by
            default those of the library that wrote the files, and DeepMind's for what its repositories hold. deepmind:
            a copy of weights that DeepMind trained. With a model of ours: huggingface lets transformers' class compute
            otherwise than the model does.
        set: What the files do not tell, e.g. config.processor.num_heads=4 schema.inputs.image.size=12.
    """
    if os.path.lexists(dest):
        raise ValueError(f"{dest} exists: choose another folder, or remove it")
    if is_place_of_checkpoint(Path(os.path.realpath(dest))):
        raise ValueError(f"{dest}: a run has its checkpoints there, and a model alone is none: choose another folder")
    check_outputs([dest], own_files(source))
    theirs = is_theirs(source) if numbers is None else numbers == "huggingface"
    own = read_own(source)
    if own is not None and (model or set or (numbers and (to, numbers) != ("huggingface", "huggingface"))):
        raise ValueError(f"{source} is a model of ours: model, set and numbers have no effect on it; leave them out")
    converted = own or read_checkpoint(source, _preset(model), set, theirs)
    if to == "huggingface":
        write_huggingface(converted, dest, numbers == "huggingface")
    else:
        save_pretrained(converted, dest, run_card(source) if data_of(source) else "")
    count = sum(parameter.numel() for parameter in converted.parameters())
    whose = "" if own else f", computing as {'transformers does' if theirs else 'DeepMind does'} (--numbers)"
    print(f"Written: {dest}, {count:,} parameters{whose}")


def _preset(model: str) -> Preset:
    """Return the preset of a published model; ValueError for another name."""
    check_names("model", [model], PRESETS)
    return PRESETS[model].preset()
