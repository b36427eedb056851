"""A model at work on tables: predictions row by row, scores group by group."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from perceivers.core.joining import check_names
from perceivers.core.perceiver import PerceiverIO
from perceivers.data.rows import column_names
from perceivers.data.sifting import read_held_out
from perceivers.data.writing import PlainRow
from perceivers.modalities.cells import Row
from perceivers.modalities.kind import Kind, rounded, sample_of
from perceivers.modalities.row import RowKind
from perceivers.schema import Record, Schema
from perceivers.tasks.recipe import load_run
from perceivers.training.evaluation import Scores, evaluate

REASON = "unreadable"
"""Column that says why a row has no prediction; there where such rows are allowed."""

Sample = Mapping[str, Mapping[str, Any]]


def predict_rows(
    model: PerceiverIO, records: Iterable[Record], batch_size: int, keep: Sequence[str] = (), max_bad_rows: int = 0
) -> Iterator[PlainRow]:
    """A row of plain values for each record, in their order; ValueError past `max_bad_rows` that cannot be read."""
    columns, asking, bad, stream = output_columns(model), _asking(cast(Schema, model.schema)), 0, iter(records)
    while batch := list(islice(stream, batch_size)):
        samples = [_attempt(model, record, asking) for record in batch]
        predicted = iter(_predict(model, [sample for sample in samples if not isinstance(sample, str)], asking))
        for record, sample in zip(batch, samples, strict=True):
            reason = sample if isinstance(sample, str) else None
            bad += reason is not None
            if bad > max_bad_rows:
                raise ValueError(f"{reason} (row {bad} that cannot be read; max_bad_rows = {max_bad_rows})")
            cells = {} if reason else next(predicted)
            row = {f"{name}.given" if name in columns else name: _kept(record, name) for name in keep}
            row |= {column: cells.get(column) for column in columns}
            yield row | ({REASON: reason} if max_bad_rows else {})


@torch.no_grad()
def output_columns(model: PerceiverIO) -> list[str]:
    """Columns of the predictions."""
    schema = cast(Schema, model.schema)
    raw, points = schema.blank(1, _device(model))
    outputs = model(raw, points)
    return [column for name in outputs for column in _cells(name, schema.outputs[name], sample_of(outputs[name], 0))]


def group_scores(run: Path, column: str) -> dict[str, Scores]:
    """Scores of a run's held-out records for each value of a column, with their number; groups of one together."""
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


def _attempt(model: PerceiverIO, record: Record, asking: Sequence[str]) -> Sample | str:
    """A record as a sample, its targets only where they say what to ask for; or why it is none."""
    schema = cast(Schema, model.schema)
    try:
        sample = schema.prepare(record, np.random.default_rng(0), training=False, outputs=asking)
        if all(value is None for value in sample["inputs"].values()):
            raise ValueError(f"none of {', '.join(schema.inputs)} is known")
        return sample
    except ValueError as error:
        return f"{record.place}: {error}" if isinstance(record, Row) else str(error)


def _kept(record: Record, name: str) -> Any:
    return record.cells.get(name) if isinstance(record, Row) else rounded(record.get(name))


def _asking(schema: Schema) -> list[str]:
    """Outputs that have no whole: their targets say where they are asked."""
    _, points = schema.blank(1, torch.device("meta"))
    return list(points)


@torch.no_grad()
def _predict(model: PerceiverIO, samples: Sequence[Sample], asking: Sequence[str]) -> list[dict[str, Any]]:
    if not samples:
        return []
    schema, device = cast(Schema, model.schema), _device(model)
    batch = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, schema.collate(samples))
    encoded, points = model.encode(batch["inputs"]), schema.points(batch["targets"])
    names = [name for name in schema.outputs if name in points or name not in asking]
    names = [name for name in names if getattr(schema.outputs[name], "of", None) in (None, *encoded.sources)]
    outputs = model.decode(encoded, points, outputs=names)
    rows: list[dict[str, Any]] = [{} for _ in samples]
    for name, prediction in outputs.items():
        spec = schema.outputs[name]
        for number, row in enumerate(rows):
            count = _count(name, spec, batch, number)
            if count != 0:
                row |= _cells(name, spec, _first(sample_of(prediction, number), count))
    return rows


def _count(name: str, spec: Kind, batch: Mapping[str, Any], number: int) -> int | None:
    """How many rows of a prediction a sample has, where samples of a batch differ in that; None: all."""
    if isinstance(spec, RowKind):
        return None
    asked_by = batch["targets"].get(name, batch["inputs"].get(getattr(spec, "of", None)))
    mask = asked_by.get("mask") if isinstance(asked_by, Mapping) else None
    return None if mask is None or mask.ndim != 2 else int(mask[number].sum())


def _first(prediction: Any, count: int | None) -> Any:
    if isinstance(prediction, Mapping):
        return {name: _first(value, count) for name, value in prediction.items()}
    return prediction[:count] if count is not None else prediction


def _cells(name: str, spec: Kind, sample: Any) -> dict[str, Any]:
    return {f"{name}.{part}" if part else name: value for part, value in spec.cells(sample).items()}


def _device(model: PerceiverIO) -> torch.device:
    return next(model.parameters()).device
