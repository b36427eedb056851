"""Attribution of predictions to inputs by ablation: the prediction minus the one without an input, or a part of it.

The part is treated as missing: an input that is not given, an empty cell, a set with one element fewer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded, Reading
from perceivers.core.trunk import Trunk
from perceivers.modalities.modality import Ablation, Modality, Raw, lacks_source, sample_of
from perceivers.modalities.points import Points
from perceivers.modalities.single_query import SingleQueryModality
from perceivers.schema import Batch, Schema
from perceivers.training.metrics import inference

Sample = Mapping[str, Mapping[str, Any]]
"""A preprocessed record: {"inputs", "targets"}, with None for missing values."""


def attributions(
    model: PerceiverIO,
    samples: Sequence[Sample],
    batch: Batch,
    points: Mapping[str, Points],
    whole: Mapping[str, Raw],
) -> list[dict[str, Any]]:
    """Return the attributions of each sample of a batch, by column; `whole` is the model's prediction of the batch.

    The only input of a sample gets no attribution, nor does an input whose tokens are the queries of the output.
    """
    schema, inputs = cast(Schema, model.schema), batch["inputs"]
    rows = [dict[str, Any]() for _ in samples]
    with inference(model):
        encode = _encoder(model, inputs)
        for source, part, ablation, is_member in _ablations(schema, inputs, samples):
            if not ablation.there.any():
                continue
            # Decode the batch without this part, all outputs but those that are queried with this input.
            names = [name for name in whole if not _queried_with(schema, name, source)]
            without = model.decode(encode(source, ablation.raw), points, names)
            # Collect the change in each sample that had the part; a column lists the changes for all members of a set.
            for number in ablation.there.nonzero()[:, 0].tolist():
                for (output, piece), change in _changes(schema, whole, without, batch, samples, number).items():
                    column = _column(output, piece, source, part)
                    if is_member:
                        rows[number].setdefault(column, []).append(change)
                    else:
                        rows[number][column] = change
    return rows


def _ablations(
    schema: Schema, inputs: Mapping[str, Raw], samples: Sequence[Sample]
) -> Iterator[tuple[str, str, Ablation, bool]]:
    """Yield all ablations of a batch, each with its input, its part ("": all of it), and True for a member of a set."""
    for source, raw in inputs.items():
        if schema.inputs[source].role == "query":
            continue
        parts = {"": _whole(schema, source, samples), **schema.inputs[source].ablations(raw)}
        for part, ablations in parts.items():
            is_set = isinstance(ablations, list)
            for ablation in ablations if isinstance(ablations, list) else [ablations]:
                yield source, part, ablation, is_set


def attribution_columns(model: PerceiverIO, blank: Mapping[str, Raw], outputs: Mapping[str, Raw]) -> list[str]:
    """Return the columns that attributions may have, from dummy inputs and their predictions."""
    schema, columns = cast(Schema, model.schema), []
    for name, prediction in outputs.items():
        sample = sample_of(prediction, 0)
        for piece in schema.outputs[name].attribution(sample, sample):
            for source, spec in schema.inputs.items():
                if not _queried_with(schema, name, source):
                    parts = [*([""] if len(schema.inputs) > 1 else []), *spec.ablations(blank[source])]
                    columns += [_column(name, piece, source, part) for part in parts]
    return columns


def unpadded_sample(
    name: str, spec: Modality, prediction: Raw, batch: Batch, samples: Sequence[Sample], number: int
) -> Raw | None:
    """Return a sample of a prediction without the padding of its batch; None if the sample has no queries."""
    if lacks_source(spec, samples[number]["inputs"]):
        return None
    if isinstance(spec, SingleQueryModality):
        return sample_of(prediction, number)
    # The queries come with the targets, or from the input that the output is queried with; so does their mask.
    queries = batch["targets"].get(name, batch["inputs"].get(spec.of or ""))
    mask = queries.get("mask") if isinstance(queries, Mapping) else None
    sample = sample_of(prediction, number)
    if mask is None or mask.ndim != 2:
        return sample
    count = int(mask[number].sum())
    return _first(sample, count) if count else None


def _changes(
    schema: Schema,
    whole: Mapping[str, Raw],
    without: Mapping[str, Raw],
    batch: Batch,
    samples: Sequence[Sample],
    number: int,
) -> dict[tuple[str, str], Any]:
    """Return the attributions of a sample, by output and column of the output."""
    changes: dict[tuple[str, str], Any] = {}
    for name, prediction in without.items():
        spec = schema.outputs[name]
        before, after = (
            unpadded_sample(name, spec, side, batch, samples, number) for side in (whole[name], prediction)
        )
        if before is not None:
            changes |= {(name, piece): change for piece, change in spec.attribution(before, after).items()}
    return changes


def _first(sample: Raw, count: int) -> Raw:
    if isinstance(sample, Mapping):
        return {name: _first(value, count) for name, value in sample.items()}
    return sample[:count]


def _encoder(model: PerceiverIO, inputs: Mapping[str, Raw]) -> Callable[[str, Raw | None], Encoded]:
    """Return a function that encodes the inputs with one of them replaced (None: left out).

    A read is a sum over inputs: if it is the model's only one, each input is read once for all ablations, unless the
    latents that read depend on the inputs.
    """
    masked, reading = model.input_adapter.mask_probs, None
    if isinstance(model.trunk, Trunk) and model.config.encoder.num_reads == 1:
        reading = model.read({**dict.fromkeys(masked), **inputs})
    if reading is None or reading.start is not None:
        return lambda name, raw: model.encode({**inputs, name: raw})

    def encode(name: str, raw: Raw | None) -> Encoded:
        if raw is None and name not in masked:
            return model.process(reading.without(name))
        other = model.read({name: raw})
        return model.process(Reading({**reading.states, **other.states}, {**reading.sources, **other.sources}))

    return encode


def _whole(schema: Schema, name: str, samples: Sequence[Sample]) -> Ablation:
    """Return the ablation of an input in the samples that have it, and another one that is read."""
    others = [other for other, spec in schema.inputs.items() if other != name and spec.role == "read"]
    given = [{other for other, value in sample["inputs"].items() if value is not None} for sample in samples]
    return Ablation(None, torch.tensor([name in names and not names.isdisjoint(others) for names in given]))


def _queried_with(schema: Schema, output: str, source: str) -> bool:
    return schema.outputs[output].of == source or schema.inputs[source].role == "query"


def _column(output: str, piece: str, source: str, part: str) -> str:
    return ".".join(filter(None, [output, piece, "from", source, part]))
