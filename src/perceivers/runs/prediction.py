"""Predictions of a model on tables, row by row, and scores group by group."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from perceivers.core.arguments import check_names
from perceivers.core.perceiver import PerceiverIO
from perceivers.data.formats.readers import column_names
from perceivers.data.formats.writers import PlainRow
from perceivers.data.validation import read_held_out
from perceivers.files.tensor_files import is_finite
from perceivers.modalities.modality import Modality, rounded, sample_of
from perceivers.modalities.table_cells import Row, holds_file
from perceivers.runs.attribution import Sample, attribution_columns, attributions, own_part
from perceivers.runs.recipe import load_run
from perceivers.schema import Record, Schema
from perceivers.training.devices import device_of
from perceivers.training.metrics import Scores, evaluate, inference

MOST_ROWS = 2**16
"""Rows that are predicted at once, whatever is asked for: more are no faster."""

REASON = "unreadable"
"""Column that says why a row has no prediction; there where such rows are allowed."""


def predict_rows(
    model: PerceiverIO,
    records: Iterable[Record],
    batch_size: int,
    keep: Sequence[str] = (),
    max_bad_rows: int = 0,
    attribution: bool = False,
    first: int = 0,
) -> Iterator[PlainRow]:
    """Yield a row of plain values for each record, in their order.

    ValueError past `max_bad_rows` records that cannot be read, or of which something is predicted that is not finite.
    `attribution` adds what each input contributes to each output; `first` is the number of the first record.
    """
    columns, asking, bad, stream = (
        output_columns(model, attribution),
        asking_outputs(cast(Schema, model.schema)),
        0,
        iter(records),
    )
    while batch := list(islice(stream, min(batch_size, MOST_ROWS))):
        samples = [attempt(model, record, asking) for record in batch]
        predicted = iter(
            _predict(model, [sample for sample in samples if not isinstance(sample, str)], asking, attribution)
        )
        for number, (record, sample) in enumerate(zip(batch, samples, strict=True), start=first + 1):
            cells = sample if isinstance(sample, str) else next(predicted)
            reason = f"{_place(record, number)}: {cells}" if isinstance(cells, str) else None
            bad += reason is not None
            if reason and bad > max_bad_rows:
                raise too_many(reason, bad, max_bad_rows)
            row = {f"{name}.given" if name in columns else name: _kept(record, name) for name in keep}
            row |= {column: None if isinstance(cells, str) else cells.get(column) for column in columns}
            yield row | ({REASON: reason} if max_bad_rows else {})
        first += len(batch)


def too_many(reason: str, bad: int, allowed: int) -> ValueError:
    """Return the error for a row without a prediction that is one too many."""
    return ValueError(f"{reason} (row {bad} that cannot be read; max_bad_rows = {allowed})")


def output_columns(model: PerceiverIO, attribution: bool = False) -> list[str]:
    """Return the columns of the predictions, and of the contributions to them."""
    schema = cast(Schema, model.schema)
    raw, points = schema.dummy_input(1, device_of(model))
    with inference(model):
        outputs = model(raw, points)
    own = [column for name in outputs for column in _cells(name, schema.outputs[name], sample_of(outputs[name], 0))]
    return own + (attribution_columns(model, raw, outputs) if attribution else [])


def group_scores(run: Path, column: str) -> dict[str, Scores]:
    """Return scores of a run's held-out records, and their number, by value of a column; groups of one are merged."""
    recipe, model = load_run(run)
    rows = [row for row in read_held_out(recipe.data, recipe.schema) if isinstance(row, Row)]
    if not rows:
        raise ValueError(f"{run}: the data has no columns to group by: it is no table")
    check_names("column", [column], column_names(rows))
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(f"{column} = {row.cells.get(column)}", []).append(row)
    alone = [own[0] for own in groups.values() if len(own) == 1]
    groups = {name: own for name, own in sorted(groups.items()) if len(own) > 1}
    if len(alone) > 1:
        groups[f"other {column}"] = alone
    return {
        name: {"": {"records": float(len(own))}, **evaluate(model, own, recipe.schema)} for name, own in groups.items()
    }


def attempt(model: PerceiverIO, record: Record, asking: Sequence[str]) -> Sample | str:
    """Return a record as a sample, with the targets that hold queries only; or the reason why it cannot be one."""
    schema = cast(Schema, model.schema)
    try:
        sample = schema.uncorrupted.preprocess(record, np.random.default_rng(0), training=False, outputs=asking)
        if all(value is None for value in sample["inputs"].values()):
            raise ValueError(f"none of {', '.join(schema.inputs)} is known")
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


def asking_outputs(schema: Schema) -> list[str]:
    """Return the outputs that have no whole: their targets say where they are queried."""
    _, points = schema.dummy_input(1, torch.device("meta"))
    return list(points)


def _predict(
    model: PerceiverIO, samples: Sequence[Sample], asking: Sequence[str], attribution: bool
) -> list[dict[str, Any] | str]:
    """Return the cells of each sample by column, or what is wrong with them."""
    if not samples:
        return []
    schema, device = cast(Schema, model.schema), device_of(model)
    batch = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, schema.collate(samples))
    points = schema.points(batch["targets"])
    names = [name for name in schema.outputs if name in points or name not in asking]
    with inference(model):
        encoded = model.encode(batch["inputs"])
        names = [name for name in names if schema.outputs[name].of in (None, *encoded.sources)]
        outputs = model.decode(encoded, points, outputs=names)
    rows = attributions(model, samples, batch, points, outputs) if attribution else [dict[str, Any]() for _ in samples]
    for name, prediction in outputs.items():
        spec = schema.outputs[name]
        for number, row in enumerate(rows):
            sample = own_part(name, spec, prediction, batch, samples, number)
            if sample is not None:
                # What cells are made of is looked at too: there is a most probable class among any numbers.
                row |= _cells(name, spec, sample) if is_finite(tree_leaves(sample)) else {name: math.nan}
    return [_unsound(row) or row for row in rows]


def _unsound(row: Mapping[str, Any]) -> str:
    """Return what is wrong with the cells of a row; "" if all are finite."""
    bad = [column for column, value in row.items() if not _is_finite(value)]
    return f"{bad[0]}: what is predicted is not finite" if bad else ""


def _is_finite(value: Any) -> bool:
    """Return whether a cell, with all that its lists and dictionaries hold, is free of NaN and infinite numbers."""
    values = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(values, list):
        return all(map(_is_finite, values))
    return not isinstance(values, float) or math.isfinite(values)


def _cells(name: str, spec: Modality, sample: Any) -> dict[str, Any]:
    return {f"{name}.{part}" if part else name: value for part, value in spec.to_row(sample).items()}
