"""Predictions of a model as rows of a table, and scores by groups of records."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from perceivers.core.arguments import check_names
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.data.formats.readers import column_names
from perceivers.data.formats.writers import PlainRow
from perceivers.files.tensor_files import is_finite
from perceivers.modalities.modality import Modality, rounded, sample_of
from perceivers.modalities.table_cells import Row, holds_file
from perceivers.runs.attribution import Sample, attribution_columns, attributions, unpadded_sample
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema
from perceivers.training.devices import device_of
from perceivers.training.metrics import Scores, evaluate, inference
from perceivers.training.streams import StreamStates, predict_in_turn, stream_names

MOST_ROWS = 2**16
"""Upper bound of the number of records in a batch: larger batches are no faster."""

REASON = "unreadable"
"""Column with the reason why a row has no prediction; only written where such rows are allowed."""


def predict_rows(
    model: PerceiverIO,
    records: Iterable[Record],
    batch_size: int,
    keep: Sequence[str] = (),
    max_bad_rows: int = 0,
    attribution: bool = False,
    first: int = 0,
) -> Iterator[PlainRow]:
    """Yield a row of plain values for each record, in order: the columns in `keep`, predictions, attributions.

    ValueError if more than `max_bad_rows` records cannot be read or have a prediction that is not finite.
    `attribution` adds the attributions of each output to each input; `first` is the number of the first record.
    Records of a stream come in order of time: each carries on from the one before that could be read.
    """
    schema = cast(Schema, model.schema)
    columns, query_outputs = output_columns(model, attribution), outputs_at_points(schema)
    check_stateless(model, "attribution", attribution)
    bad_rows, stream, states = 0, iter(records), StreamStates()
    while batch := list(islice(stream, min(batch_size, MOST_ROWS))):
        # Preprocess a batch of records and predict those that can be read. A string says why a record has no cells.
        samples = [attempt(model, record, query_outputs) for record in batch]
        readable = [sample for sample in samples if not isinstance(sample, str)]
        pairs = zip(batch, samples, strict=True)
        streams = stream_names([record for record, sample in pairs if not isinstance(sample, str)], schema)
        predictions = iter(_predict(model, readable, query_outputs, attribution, (streams, states)))
        for number, (record, sample) in enumerate(zip(batch, samples, strict=True), start=first + 1):
            result = sample if isinstance(sample, str) else next(predictions)
            # Count the records without a prediction.
            cells: Mapping[str, Any] = {} if isinstance(result, str) else result
            reason = f"{_place(record, number)}: {result}" if isinstance(result, str) else None
            bad_rows += reason is not None
            if reason is not None and bad_rows > max_bad_rows:
                raise too_many(reason, bad_rows, max_bad_rows)
            # Write the row; a column that is kept under the name of a predicted one gets another name.
            row = {f"{name}.given" if name in columns else name: _kept(record, name) for name in keep}
            row |= {column: cells.get(column) for column in columns}
            yield row | ({REASON: reason} if max_bad_rows else {})
        first += len(batch)


def check_stateless(model: PerceiverIO, what: str, wanted: bool = True) -> None:
    """Raise a ValueError if something is wanted that a model cannot have that carries states on."""
    stream = cast(Schema, model.schema).stream
    if wanted and stream is not None:
        raise ValueError(f"{what}: the model carries a state on within a stream ({stream}): leave it out")


def too_many(reason: str, bad: int, allowed: int) -> ValueError:
    """Return the error for more rows without a prediction than are allowed."""
    return ValueError(f"{reason} (row {bad} that cannot be read; max_bad_rows = {allowed})")


def output_columns(model: PerceiverIO, attribution: bool = False) -> list[str]:
    """Return the columns of the predictions, and of their attributions."""
    schema = cast(Schema, model.schema)
    raw, points = schema.dummy_input(1, device_of(model))
    with inference(model):
        outputs = model(raw, points)
    columns = [column for name in outputs for column in _cells(name, schema.outputs[name], sample_of(outputs[name], 0))]
    return columns + (attribution_columns(model, raw, outputs) if attribution else [])


def group_scores(run: Run, column: str) -> dict[str, Scores]:
    """Return scores of a run's held-out records and their number, by value of a column; groups of one are merged."""
    rows = [row for row in run.held_out if isinstance(row, Row)]
    if not rows:
        raise ValueError(f"{run.folder}: the data has no columns to group by: it is no table")
    check_names("column", [column], column_names(rows))
    check_groups(rows, column, run.recipe.schema)
    # Group the records by value, and merge the groups of one record.
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(f"{column} = {row.cells.get(column)}", []).append(row)
    single = [group[0] for group in groups.values() if len(group) == 1]
    groups = {name: group for name, group in sorted(groups.items()) if len(group) > 1}
    if len(single) > 1:
        groups[f"other {column}"] = single
    return {
        name: {"": {"records": float(len(group))}, **evaluate(run.model, group, run.recipe.schema)}
        for name, group in groups.items()
    }


def check_groups(rows: Sequence[Row], column: str, schema: Schema) -> None:
    """Raise a ValueError if rows of one stream have different values in a column: no group would have its states."""
    groups: dict[str, str] = {}
    for name, row in zip(stream_names(rows, schema), rows, strict=False):  # without streams there are no names
        value = str(row.cells.get(column))
        if groups.setdefault(name, value) != value:
            text = f"stream {name!r} is in groups {groups[name]!r} and {value!r}"
            raise ValueError(f"{column}: {text}, but its state is carried on: name a column that is constant in each")


def attempt(model: PerceiverIO, record: Record, outputs: Sequence[str]) -> Sample | str:
    """Preprocess a record, with the targets of these outputs alone; return a sample, or the reason why it has none."""
    schema = cast(Schema, model.schema)
    try:
        sample = schema.uncorrupted.preprocess(record, np.random.default_rng(0), training=False, outputs=outputs)
        if all(value is None for value in sample["inputs"].values()):
            raise ValueError(f"none of {', '.join(schema.inputs)} is known")
        stream_names([record], schema)
        return sample
    except ValueError as error:
        return str(error)


def _place(record: Record, number: int) -> str:
    return record.place if isinstance(record, Row) else f"record {number}"


def _kept(record: Record, name: str) -> Any:
    cell = record.cells.get(name) if isinstance(record, Row) else rounded(record.get(name))
    if holds_file(cell):
        raise ValueError(f"keep: {name} holds files, which a table of predictions cannot: leave it out")
    if isinstance(cell, float) and math.isnan(cell):
        return None
    return cell.isoformat() if isinstance(cell, date | time) else str(cell) if isinstance(cell, Decimal) else cell


def outputs_at_points(schema: Schema) -> list[str]:
    """Return the outputs that are decoded only at the points of their targets."""
    _, points = schema.dummy_input(1, torch.device("meta"))
    return list(points)


def _predict(
    model: PerceiverIO,
    samples: Sequence[Sample],
    query_outputs: Sequence[str],
    attribution: bool,
    carried: tuple[Sequence[str], StreamStates],
) -> list[dict[str, Any] | str]:
    """Return the cells of each sample by column, or the error of a sample whose prediction is not finite.

    `query_outputs` are decoded only where the samples hold their points. `carried` has the stream of each sample, and
    what the streams have reached.
    """
    if not samples:
        return []
    schema, device = cast(Schema, model.schema), device_of(model)
    # Collate the samples, and decode all outputs for which there are queries in the batch.
    batch = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, schema.collate(samples))
    points = schema.points(batch["targets"])

    def decode(encoded: Encoded, part: Any) -> dict[str, Any]:
        at = schema.points(part["targets"])
        names = [name for name in schema.outputs if name in at or name not in query_outputs]
        names = [name for name in names if schema.outputs[name].of in (None, *encoded.sources)]
        return model.decode(encoded, at, outputs=names)

    streams, states = carried
    with inference(model):
        if streams:
            outputs = predict_in_turn(model, batch, streams, states, decode=decode)
        else:
            outputs = decode(model.encode(batch["inputs"]), batch)
    # Fill the rows: attributions, then the cells of each output.
    rows = attributions(model, samples, batch, points, outputs) if attribution else [dict[str, Any]() for _ in samples]
    for name, prediction in outputs.items():
        spec = schema.outputs[name]
        for number, row in enumerate(rows):
            sample = unpadded_sample(name, spec, prediction, batch, samples, number)
            if sample is not None:
                # Check the raw prediction, not its cells: NaN has an argmax too, and so a most probable class.
                row |= _cells(name, spec, sample) if is_finite(tree_leaves(sample)) else {name: math.nan}
    return [_unsound(row) or row for row in rows]


def _unsound(row: Mapping[str, Any]) -> str:
    """Return the error of a row with a cell that is not finite; "" if all are finite."""
    bad = [column for column, value in row.items() if not _is_finite(value)]
    return f"{bad[0]}: the prediction is not finite" if bad else ""


def _is_finite(value: Any) -> bool:
    """Return True if a cell holds no NaN or infinite number, not even within lists and dictionaries."""
    values = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(values, list):
        return all(map(_is_finite, values))
    return not isinstance(values, float) or math.isfinite(values)


def _cells(name: str, spec: Modality, sample: Any) -> dict[str, Any]:
    return {f"{name}.{part}" if part else name: value for part, value in spec.to_row(sample).items()}
