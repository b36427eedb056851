"""Vocabularies of models that grow and shrink: the rows of known classes stay, new ones start at the mean."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

from torch import Tensor, nn

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.resampler import Resampler
from perceivers.modalities.class_rows import Classes, ClassRows, class_names, resized
from perceivers.pretrained.model_folder import load_weights, savable, with_schema
from perceivers.schema import Schema
from perceivers.schema.preset import Preset
from perceivers.schema.vocabularies import (
    class_rows,
    extended,
    is_of_input,
    padded_classes,
    reduced,
    vocabularies,
    with_vocabularies,
)


def extend_vocabulary(model: PerceiverIO, names: Mapping[str, Iterable[str | int]]) -> PerceiverIO:
    """Return a model that knows further classes, e.g. {"inputs.spikes.unit": ["a", "b"]}, at the end of a vocabulary.

    Predictions for known classes, and their logits, do not change. A new class starts at the mean of the others.
    """
    model = _plain_model(model)
    return with_classes(model, extended(cast(Schema, model.schema), names))


def reduce_vocabulary(model: PerceiverIO, names: Mapping[str, Iterable[str | int]]) -> PerceiverIO:
    """Return a model that has forgotten these classes, e.g. {"outputs.label": ["eel"]}; the others keep their rows."""
    model = _plain_model(model)
    return with_classes(model, reduced(cast(Schema, model.schema), names))


def with_classes(model: PerceiverIO, classes: Mapping[str, Classes]) -> PerceiverIO:
    """Return a model with other classes in some vocabularies, whose rows go by name; ValueError where they cannot."""
    if fixed := [name for name in padded_classes(model) if name in classes]:
        raise ValueError(
            f"{fixed[0]}: under channel_alignment: pad its classes share channels with all other inputs, and cannot "
            "change alone; those of a model with channel_alignment: project can"
        )
    schema = with_vocabularies(cast(Schema, model.schema), classes)
    changed = Preset(schema, model.config).build("meta")
    arrays = resized_arrays(model.state_dict(), class_rows(model), class_rows(changed))
    load_weights(changed, arrays, "the changed model", assign=True)
    for name, parameter in changed.named_parameters():
        parameter.requires_grad_(model.get_parameter(name).requires_grad)
    changed.memory_limit = model.memory_limit
    return changed.train(model.training)


def resized_arrays(
    arrays: Mapping[str, Tensor], old: Mapping[str, ClassRows], new: Mapping[str, ClassRows]
) -> dict[str, Tensor]:
    """Return arrays by name of their parameter, those with rows of classes resized."""
    return {name: resized(x, old[name], new[name]) if name in old else x for name, x in arrays.items()}


def arrays_by_name(model: nn.Module, source: nn.Module) -> dict[str, Tensor]:
    """Return the arrays of a source with the rows of classes where a model has them; none for other vocabularies."""
    arrays = source.state_dict()
    if not (isinstance(model, PerceiverIO) and isinstance(source, PerceiverIO)):
        return arrays
    old, new = class_rows(source), class_rows(model)
    for name in old.keys() & new.keys() & arrays.keys():  # a layer with an adapter has other names
        kinship = _kinship(old[name], new[name])
        if kinship == "names":
            arrays[name] = resized(arrays[name], old[name], new[name])
        elif kinship == "none":
            del arrays[name]
    return arrays


def vocabulary_lines(model: PerceiverIO, source: PerceiverIO) -> list[str]:
    """Return a line for each vocabulary that a model has in common with its source: what became of the classes."""
    arrays, shapes = arrays_by_name(model, source), {name: x.shape for name, x in model.state_dict().items()}
    before, after = (vocabularies(cast(Schema, each.schema)) for each in (source, model))
    carried, fresh = set[str](), set[str]()
    for name, rows in class_rows(model).items():
        fits = name in arrays and arrays[name].shape == shapes[name]
        (carried if fits else fresh).update(group.vocabulary for group in rows.groups if group.names)
    lines = []
    for name in before.keys() & after.keys():
        if name in fresh:
            lines.append(f"{name}: starts fresh, its classes or its layer are others")
        elif isinstance(before[name], int) != isinstance(after[name], int):
            lines.append(f"{name}: classes keep their numbers, since only one of the models names them")
        elif name in carried:
            lines.append(f"{name}: {counts(before[name], after[name])}")
        elif before[name] != after[name]:
            lines.append(f"{name}: classes keep their numbers, not their names (channel_alignment: pad)")
    return sorted(lines)


def counts(before: Classes, after: Classes) -> str:
    """Return how many classes are known, new and dropped, in words."""
    old, new = dict.fromkeys(class_names(before)), dict.fromkeys(class_names(after))
    known = sum(name in old for name in new)
    return f"{known:,} known, {len(new) - known:,} new, {len(old) - known:,} dropped"


def _plain_model(model: Any) -> PerceiverIO:
    """Return a model whose arrays are those of its schema and config; ValueError naming what else there is."""
    found: PerceiverIO | Resampler = savable(model)
    return with_schema(found, "model")


def _kinship(old: ClassRows, new: ClassRows) -> str:
    """Return how rows of a source find their places: by "names", by "position", or not at all ("none").

    Classes that are numbered here and named there say nothing about their names: they keep their positions. Fewer
    numbered classes than before are other classes.
    """
    pairs = [(a.classes, b.classes) for a, b in zip(old.groups, new.groups, strict=False)]
    if not old.fits(new):
        return "none"
    mixed = [isinstance(a, int) != isinstance(b, int) for a, b in pairs]
    if any(mixed):
        others_equal = all(each or a == b for each, (a, b) in zip(mixed, pairs, strict=True))
        return "position" if others_equal else "none"
    for group, (a, b) in zip(old.groups, pairs, strict=True):
        if isinstance(a, int) and isinstance(b, int):
            related = a <= b
        else:
            related = is_of_input(group.vocabulary) or bool(set(class_names(a)) & set(class_names(b)))
        if not related:
            return "none"
    return "names"
