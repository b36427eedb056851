"""What each input contributes to each output: how a prediction changes when the input is left out.

Left out means as if it were missing: an input that is not there, a cell that is empty, a record that its set lacks.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded, Reading
from perceivers.core.trunk import Trunk
from perceivers.modalities.modality import Ablation, Modality, Raw, asks_in_vain, sample_of
from perceivers.modalities.points import Points
from perceivers.modalities.row import RowModality
from perceivers.schema import Batch, Schema
from perceivers.training.metrics import inference

Sample = Mapping[str, Mapping[str, Any]]
"""A prepared record: {"inputs", "targets"}, None for what it lacks."""


def attributions(
    model: PerceiverIO,
    samples: Sequence[Sample],
    batch: Batch,
    points: Mapping[str, Points],
    whole: Mapping[str, Raw],
) -> list[dict[str, Any]]:
    """Return the contributions to each sample of a batch by column; `whole` is the model's prediction of the batch.

    Without a value: an input that is the only one, and an input with which the output asks.
    """
    schema, inputs = cast(Schema, model.schema), batch["inputs"]
    rows = [dict[str, Any]() for _ in samples]
    with inference(model):
        encode = _encoder(model, inputs)
        for source in inputs:
            asked = [name for name in whole if not _asks_with(schema, name, source)]
            for part, cases in {"": _whole(source, samples), **schema.inputs[source].ablations(inputs[source])}.items():
                for case in cases if isinstance(cases, list) else [cases]:
                    without = model.decode(encode(source, case.raw), points, asked) if case.there.any() else {}
                    for number in case.there.nonzero()[:, 0].tolist():
                        for (name, own), change in _changes(schema, whole, without, batch, samples, number).items():
                            column = _column(name, own, source, part)
                            before = rows[number].get(column, [])
                            rows[number][column] = [*before, change] if isinstance(cases, list) else change
    return rows


def attribution_columns(model: PerceiverIO, blank: Mapping[str, Raw], outputs: Mapping[str, Raw]) -> list[str]:
    """Return the columns that contributions may have, from blank inputs and their predictions."""
    schema, columns = cast(Schema, model.schema), []
    for name, prediction in outputs.items():
        sample = sample_of(prediction, 0)
        for own in schema.outputs[name].attribution(sample, sample):
            for source, spec in schema.inputs.items():
                parts = [*([""] if len(schema.inputs) > 1 else []), *spec.ablations(blank[source])]
                columns += [_column(name, own, source, part) for part in parts if not _asks_with(schema, name, source)]
    return columns


def own_part(
    name: str, spec: Modality, prediction: Raw, batch: Batch, samples: Sequence[Sample], number: int
) -> Raw | None:
    """Return a sample of a prediction without the padding of its batch; None where it was not queried."""
    if asks_in_vain(spec, samples[number]["inputs"]):
        return None
    if isinstance(spec, RowModality):
        return sample_of(prediction, number)
    asked_by = batch["targets"].get(name, batch["inputs"].get(spec.of or ""))
    mask = asked_by.get("mask") if isinstance(asked_by, Mapping) else None
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
    """Return the contributions to a sample by output and part of the output."""
    found: dict[tuple[str, str], Any] = {}
    for name, prediction in without.items():
        spec = schema.outputs[name]
        before, after = (own_part(name, spec, side, batch, samples, number) for side in (whole[name], prediction))
        if before is not None:
            found |= {(name, own): change for own, change in spec.attribution(before, after).items()}
    return found


def _first(sample: Raw, count: int) -> Raw:
    if isinstance(sample, Mapping):
        return {name: _first(value, count) for name, value in sample.items()}
    return sample[:count]


def _encoder(model: PerceiverIO, inputs: Mapping[str, Raw]) -> Callable[[str, Raw | None], Encoded]:
    """Return a function that encodes with one input replaced (None: left out); the others are read once if possible."""
    if not isinstance(model.trunk, Trunk) or model.config.encoder.num_reads > 1:
        return lambda name, raw: model.encode({**inputs, name: raw})
    masked = model.input_adapter.mask_probs
    reading = model.read({**dict.fromkeys(masked), **inputs})

    def encode(name: str, raw: Raw | None) -> Encoded:
        if raw is None and name not in masked:
            return model.process(reading.without(name))
        own = model.read({name: raw})
        return model.process(Reading({**reading.states, **own.states}, {**reading.sources, **own.sources}))

    return encode


def _whole(name: str, samples: Sequence[Sample]) -> Ablation:
    """Leave this input out, in samples that have it and another one too."""
    known = [[other for other, value in sample["inputs"].items() if value is not None] for sample in samples]
    return Ablation(None, torch.tensor([name in own and len(own) > 1 for own in known]))


def _asks_with(schema: Schema, output: str, source: str) -> bool:
    return schema.outputs[output].of == source


def _column(output: str, own: str, source: str, part: str) -> str:
    return ".".join(filter(None, [output, own, "from", source, part]))
