"""The verb `vocabulary`."""

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, cast

import tyro

from perceivers.cli.tables import show
from perceivers.core.arguments import check_names
from perceivers.files.opening import read_text
from perceivers.files.outputs import check_outputs
from perceivers.modalities.class_rows import Classes, class_names
from perceivers.pretrained.hub import save_pretrained
from perceivers.pretrained.new_classes import counts, with_classes
from perceivers.runs.changed_run import write_changed_run
from perceivers.runs.run import RECIPE, data_of, files_of, find_model, read_recipe
from perceivers.schema import Schema
from perceivers.schema.vocabularies import extended, reduced, vocabularies, with_vocabularies
from perceivers.training.checkpoints import best_checkpoint, is_place_of_checkpoint

SHOWN = 5
"""Number of classes that a line of the table shows."""


def vocabulary(
    model: Annotated[str, tyro.conf.Positional],
    /,
    extend: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=CLASS,CLASS")] = (),
    drop: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=CLASS,CLASS")] = (),
    names: Path | None = None,
    out: Path | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUE")] = (),  # noqa: A002
    json: bool = False,
) -> None:
    """Show the classes that a model knows; or write a copy of the model, or of its run, that knows other ones.

    Known classes keep their rows of weights, averages and moments of the optimiser, so predictions for them do not
    change. New ones start at the mean of the others. The copy of a run continues where its newest checkpoint stands.

    Args:
        model: Folder of a model or a run, or hub repository.
        extend: Classes to add after the known ones, e.g. inputs.spikes.unit=a,b.
        drop: Classes to forget, e.g. outputs.label=eel.
        names: Text file with a class on each line, for an --extend or --drop without "=".
        out: New folder for the changed model or run; the old one never changes.
        set: Settings of the changed run, e.g. data.file=new.csv training.num_steps=900.
        json: Print as JSON.
    """
    if not (extend or drop):
        if out is not None or names is not None or set:
            raise ValueError("nothing is to change: name classes with --extend or --drop")
        show_vocabularies(_schema_of(model), json)
        return
    if out is None:
        raise ValueError("a model is never changed in place: give --out FOLDER for the changed one")
    _check_out(out, model, names)
    before = _schema_of(model)
    classes = _changed(before, extend, drop, _lines(names, [*extend, *drop]))
    if data_of(Path(model)) is None:
        if set:
            raise ValueError(f"{model} is no run: --set has no effect on a model alone, leave it out")
        save_pretrained(with_classes(find_model(model), classes), out)
        again = ""
    else:
        again = _continued(Path(model), out, write_changed_run(Path(model), out, classes, set))
    changes = {name: counts(vocabularies(before)[name], now) for name, now in classes.items()}
    show(changes, json, ["vocabulary", "classes"], list(changes.items()))
    if not json:
        print(f"Written: {out}{again}")


def show_vocabularies(schema: Schema, as_json: bool) -> None:
    """Print the vocabularies of a schema: name, number of classes, the first of them."""
    classes = {name: class_names(each) for name, each in vocabularies(schema).items()}
    rows = [
        (name, f"{len(each):,}", ", ".join(each[:SHOWN]) + ", ..." * (len(each) > SHOWN))
        for name, each in classes.items()
    ]
    show({name: list(each) for name, each in classes.items()}, as_json, ["vocabulary", "number", "classes"], rows)


def _schema_of(model: str) -> Schema:
    folder = Path(model)
    return read_recipe(folder).schema if (folder / RECIPE).is_file() else cast(Schema, find_model(model).schema)


def _check_out(out: Path, model: str, names: Path | None) -> None:
    """Raise a ValueError unless the changed model or run may be written there."""
    if os.path.lexists(out):
        raise ValueError(f"{out} exists: choose another folder, or remove it")
    if is_place_of_checkpoint(Path(os.path.realpath(out))):
        raise ValueError(f"{out}: a run keeps its checkpoints there, not models: choose another folder")
    check_outputs([out], [*files_of(Path(model)), *([] if names is None else [names])])


def _changed(schema: Schema, extend: Iterable[str], drop: Iterable[str], listed: list[str]) -> Mapping[str, Classes]:
    """Return the vocabularies that change, with their classes afterwards."""
    known = vocabularies(schema)
    lost, new = (_parsed(each, known, listed) for each in (drop, extend))
    for name in lost.keys() & new.keys():
        if both := {*new[name]} & {*lost[name]}:
            raise ValueError(f"{name}: {min(both)!r:.99} is to be added and dropped: leave one of them out")
    dropped = reduced(schema, lost)
    return {**dropped, **extended(with_vocabularies(schema, dropped), new)}


def _parsed(texts: Iterable[str], known: Mapping[str, Classes], listed: list[str]) -> dict[str, list[str]]:
    """Return the classes of each vocabulary that is named in texts such as NAME=CLASS,CLASS; NAME: those listed.

    Spaces around a class are left out, unless a known class has them.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        # The name of a field may hold "=" itself.
        name = max((one for one in known if text == one or text.startswith(f"{one}=")), key=len, default="")
        name = name or check_names("vocabulary", [text.partition("=")[0]], known)[0]
        before = {*class_names(known[name])}
        given = text[len(name) + 1 :].split(",") if text != name else listed
        classes = [one if one in before else one.strip() for one in given]
        if not all(classes) or not classes:
            raise ValueError(f"{text!r:.99}: name classes, as in {name}=a,b, or a file with --names")
        found.setdefault(name, []).extend(classes)
    return found


def _lines(names: Path | None, changes: Iterable[str]) -> list[str]:
    """Return the lines of the file of names; ValueError if the file has none, or if no change takes them."""
    if names is None:
        return []
    text = read_text(names).removeprefix("\ufeff")  # the byte order mark that some editors write
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{names}: no class stands in it, one on each line")
    if all("=" in change for change in changes):
        raise ValueError(f"--names {names} has no effect: an --extend or --drop that takes its classes has no '='")
    return lines


def _continued(run: Path, out: Path, checkpoint: str) -> str:
    """Return where a changed run stands, and how it continues."""
    best = best_checkpoint(run)
    other = f" ({run} predicts with {best.name}, which validated better)" if best and best.name != checkpoint else ""
    command = shlex.join(["perceivers", "train", str(out / RECIPE), "--out", str(out)])
    return f", at {checkpoint}{other}. Continue: {command} (with other data: --accept-changed-data)"
