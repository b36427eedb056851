"""The vocabularies of a schema, by name ("inputs.spikes.unit", "outputs.label"): changed, and known from another model.

A vocabulary is the classes of a label, or of a category in records. `class_rows` says which parameters of a model have
a row for each class.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from perceivers.core.arguments import check_names
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.class_rows import Classes, ClassRows, RowGroup, as_classes, class_names, vocabulary_name
from perceivers.modalities.events import Events
from perceivers.modalities.modality import Modality, named
from perceivers.modalities.records import Records
from perceivers.schema import Schema

STATISTICS = {"mean": 0.0, "std": 1.0, "bounds": None}
"""Fitted fields that predictions depend on, each with the value that has no effect (None: there is none)."""


def vocabularies(schema: Schema) -> dict[str, Classes]:
    """Return the classes of all fitted vocabularies, by name."""
    return {
        vocabulary_name(f"{side}.{name}", field): classes
        for side, specs in (("inputs", schema.inputs), ("outputs", schema.outputs))
        for name, spec in specs.items()
        for field, classes in spec.vocabularies.items()
    }


def with_vocabularies(schema: Schema, classes: Mapping[str, Classes]) -> Schema:
    """Return a schema with other classes in some vocabularies; ValueError naming one that the schema lacks."""
    check_names("vocabulary", classes, vocabularies(schema))
    sides: dict[str, dict[str, Modality]] = {"inputs": {**schema.inputs}, "outputs": {**schema.outputs}}
    for side, specs in sides.items():
        for name, spec in specs.items():
            for field in spec.vocabularies:
                vocabulary = vocabulary_name(f"{side}.{name}", field)
                if vocabulary in classes:
                    specs[name] = named(vocabulary, specs[name].with_vocabulary, field, classes[vocabulary])
    return replace(schema, inputs=sides["inputs"], outputs=sides["outputs"])


def extended(schema: Schema, names: Mapping[str, Iterable[str | int]]) -> dict[str, Classes]:
    """Return the vocabularies with new names at their ends; ValueError for a name that is known or no name."""
    found, known = {}, vocabularies(schema)
    for vocabulary in check_names("vocabulary", names, known):
        before = class_names(known[vocabulary])
        new = _checked(vocabulary, names[vocabulary])
        if old := set(before) & set(new):
            raise ValueError(f"{vocabulary}: {min(old)!r:.99} is one of its classes already: leave it out")
        found[vocabulary] = as_classes((*before, *new), known[vocabulary])
    return found


def reduced(schema: Schema, names: Mapping[str, Iterable[str | int]]) -> dict[str, Classes]:
    """Return the vocabularies without some names; ValueError for an unknown name, and if no class would be left."""
    found, known = {}, vocabularies(schema)
    for vocabulary in check_names("vocabulary", names, known):
        before = class_names(known[vocabulary])
        dropped = set(check_names(f"class of {vocabulary}", _checked(vocabulary, names[vocabulary]), before))
        if not (left := [name for name in before if name not in dropped]):
            raise ValueError(f"{vocabulary}: no class would be left of {len(before)}: keep one at least")
        found[vocabulary] = as_classes(left, known[vocabulary])
    return found


def _checked(vocabulary: str, names: Any) -> list[str]:
    """Return names of classes as texts; ValueError for anything else, and for a name that stands twice."""
    if isinstance(names, str | Mapping) or not isinstance(names, Iterable):
        raise ValueError(f"{vocabulary}: names must come in a list, not as {names!r:.99}")
    found = [str(name) if isinstance(name, int) and not isinstance(name, bool) else name for name in names]
    if wrong := [name for name in found if not isinstance(name, str) or not name]:
        raise ValueError(f"{vocabulary}: {wrong[0]!r:.99} is no name of a class: give text, or a whole number")
    if wrong := [name for name in found if any("\ud800" <= letter <= "\udfff" for letter in name)]:
        raise ValueError(f"{vocabulary}: {wrong[0]!r:.99} is not UTF-8, so no recipe can name it")
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise ValueError(f"{vocabulary}: {twice[0]!r:.99} stands there twice: name it once")
    if not found:
        raise ValueError(f"{vocabulary}: no name is given")
    return found


def class_rows(model: PerceiverIO) -> dict[str, ClassRows]:
    """Return the rows of each parameter that has a row for each class of a vocabulary, by name of the parameter."""
    inputs: Any = model.input_adapter.adapters
    outputs: Any = model.output_adapter.adapters
    queries: Any = model.output_query.queries
    found: dict[str, ClassRows] = {}
    for place, path, adapters in (
        ("inputs", "input_adapter.adapters", inputs),
        ("outputs", "output_adapter.adapters", outputs),
        ("outputs", "output_query.queries", queries),
    ):
        for name, adapter in adapters.items():
            for parameter, rows in getattr(adapter, "class_rows", {}).items():
                found[f"{path}.{name}.{parameter}"] = rows.within(f"{place}.{name}")
    # One-hot classes have no parameters of their own: their rows are columns of the maps to the common width.
    for name, path, alignment, others in _one_hot(model):
        if name in alignment.projections:
            rows = inputs[path].token_classes.within(f"inputs.{path}")
            place = "input_adapter" if alignment is model.input_adapter.alignment else "output_query"
            found[f"{place}.alignment.projections.{name}.weight"] = replace(
                rows, groups=(*rows.groups, *([RowGroup(others=others)] if others else []))
            )
    return found


def padded_classes(model: PerceiverIO) -> list[str]:
    """Return the vocabularies whose classes are channels that all inputs or outputs share (`pad`)."""
    return [f"inputs.{source}" for name, source, alignment, _ in _one_hot(model) if name not in alignment.projections]


def _one_hot(model: PerceiverIO) -> list[tuple[str, str, Any, int]]:
    """Return where one-hot classes are aligned: the input or output, their input, the alignment, other channels."""
    inputs: Any = model.input_adapter.adapters
    queries: Any = model.output_query.queries
    roles = {name: spec.role for name, spec in model.schema.inputs.items()}
    labels = {name: adapter for name, adapter in inputs.items() if hasattr(adapter, "token_classes")}
    read = [(name, name, model.input_adapter.alignment, 0) for name in labels if roles[name] != "query"]
    asked = [
        (output, query.source, model.output_query.alignment, query.channels - labels[query.source].channels)
        for output, query in queries.items()
        if query.source in labels
    ]
    return [*read, *asked]


def taken_over(declared: Schema, fitted: Schema, source: Schema) -> tuple[Schema, list[str]]:
    """Return a fitted schema with the statistics and vocabularies of a source, and the places of these statistics.

    Only what the `declared` schema leaves to the data is taken, between inputs and outputs of one name and modality.
    New classes follow those of the source. The fields of records come in the order of the source, by which their
    weights are known.
    """
    sides, places = {}, []
    for side in ("inputs", "outputs"):
        specs = dict(getattr(fitted, side))
        for name, other in getattr(source, side).items():
            if name in specs and type(other) is type(specs[name]):
                taken = named(
                    f"{side}.{name}", _from_spec, getattr(declared, side)[name], specs[name], other, side == "inputs"
                )
                places += [vocabulary_name(f"{side}.{name}", field) for field in _other_statistics(specs[name], taken)]
                specs[name] = taken
        sides[side] = specs
    return replace(fitted, inputs=sides["inputs"], outputs=sides["outputs"]), places


def is_of_input(vocabulary: str) -> bool:
    """Return whether a vocabulary is that of an input, which grows even by names of which none is known."""
    return vocabulary.startswith("inputs.")


def merged(known: Classes, new: Classes, of_input: bool) -> Classes:
    """Return the known classes, followed by the new ones; only the new ones if they are another vocabulary.

    Numbered classes are one vocabulary, and so are the names of an input, since a model may meet entities that are all
    new. An output whose names are all new answers another question. Numbers are no names.
    """
    if not new or (isinstance(known, int) and isinstance(new, int)):
        return max(known, new) if isinstance(known, int) and isinstance(new, int) else known
    if isinstance(known, int) or isinstance(new, int) or not (of_input or set(known) & set(new)):
        return new
    return tuple(dict.fromkeys((*known, *new)))


def _from_spec(declared: Modality, fitted: Modality, source: Modality, of_input: bool) -> Modality:
    """Return a fitted spec with the statistics and classes of the source where `declared` has none."""
    if isinstance(declared, Events) and isinstance(fitted, Events) and isinstance(source, Events):
        fitted = _events_from(declared, fitted, source, of_input)
    else:
        fitted = _with_statistics(declared, fitted, source)
    if isinstance(declared, Records) and isinstance(fitted, Records) and isinstance(source, Records):
        fields = {
            name: _with_statistics(declared.fields[name], field, source.fields[name])
            if type(field) is type(source.fields.get(name))
            else field
            for name, field in fitted.fields.items()
        }
        fitted = replace(fitted, fields={name: fields[name] for name in (source.fields | fields) if name in fields})
    for field, classes in source.vocabularies.items():
        if field in fitted.vocabularies and field not in declared.vocabularies:
            fitted = fitted.with_vocabulary(field, merged(classes, fitted.vocabularies[field], of_input))
    return fitted


def _events_from(declared: Events, fitted: Events, source: Events, of_input: bool) -> Events:
    """Return fitted events with the types and the statistics of the source where `declared` has none."""
    whole = fitted if declared.classes else fitted.with_vocabulary("", merged(source.classes, fitted.classes, of_input))
    units = whole.with_units_of(source)
    return replace(
        whole,
        mean=declared.mean or units.mean,
        std=declared.std or units.std,
        bounds=declared.bounds or source.bounds or whole.bounds,
    )


def _with_statistics(declared: Any, fitted: Any, source: Any) -> Any:
    """Return a modality or a field of records with the statistics of the source, where `declared` has none."""
    found = {}
    for name, neutral in STATISTICS.items():
        value, theirs = getattr(fitted, name, None), getattr(source, name, None)
        if value is None or getattr(declared, name) is not None:
            continue
        if theirs is None and neutral is not None:  # the source computed with the values as they are
            theirs = (neutral,) if isinstance(value, tuple) else neutral
        sizes = [len(x) if isinstance(x, tuple) else 1 for x in (theirs, value)]
        if theirs is not None and sizes[0] in (sizes[1], 1 if neutral is not None else sizes[1]):
            found[name] = theirs
    return replace(fitted, **found) if found else fitted


def _other_statistics(fitted: Modality, taken: Modality) -> list[str]:
    """Return the fields whose statistics differ; "": those of the modality itself."""
    pairs: dict[str, tuple[Any, Any]] = {"": (fitted, taken)}
    if isinstance(fitted, Records) and isinstance(taken, Records):
        pairs |= {name: (field, taken.fields[name]) for name, field in fitted.fields.items()}
    return [
        field
        for field, (one, other) in pairs.items()
        if any(getattr(one, name, None) != getattr(other, name, None) for name in STATISTICS)
    ]
