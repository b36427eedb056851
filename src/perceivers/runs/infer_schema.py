"""Proposal of a commented recipe for given data, which `perceivers train` accepts without changes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

from perceivers.core.arguments import check_names, check_new_name
from perceivers.data.arrays import ARRAY_FILES, read_arrays
from perceivers.data.formats.readers import FOLDER, column_names, read_rows
from perceivers.data.formats.webdataset import KEY
from perceivers.data.long_form import EVENTS, FUTURE, PAST, LongForm, samples_of
from perceivers.data.shards import is_shards, open_shards
from perceivers.modalities.table_cells import WHOLE_ROW, Files, Row
from perceivers.runs.infer_long_form import recognise
from perceivers.schema import Record
from perceivers.schema.example import WHOLE_VALUE_KINDS
from perceivers.schema.infer import Proposal, propose
from perceivers.schema.schema_files import yaml_text

LOOKED_AT = 10_000
"""Number of rows that a proposal is made from."""

FEW_ROWS = 10_000
"""Number of rows below which a model may overfit in 50 epochs, so that a validation part is proposed."""

USUAL = ("label", "target", "class", "y")
"""Names of columns that are predicted by default; in a table without such a column, the last one is."""

ROWS_OF_EVENTS = 200_000
"""Number of rows that are looked at in a table that may have a row for each event."""

FEW_COLUMNS = 16
"""Largest number of columns of a table of which so many rows are looked at."""

FORECAST = 0.25
"""Proposed share of each sample's time span whose events are to be predicted."""

FEW_TYPES = 20
"""Largest number of types of events whose errors are proposed as metrics of their own."""

ROW = "row"
"""Name of the input that combines all columns of numbers, categories and dates."""


def proposed_recipe(data: str, predict: Sequence[str] = ()) -> str:
    """Return a recipe as commented YAML; ValueError if nothing in the data can be read or predicted."""
    # Read the columns, and propose a modality for each.
    records, files = _records(data)
    names = column_names([record for record in records if isinstance(record, Row)]) or list(records[0])
    columns = {name: [_cell(record, name) for record in records] for name in names if name != KEY}
    if Path(data).is_file() and (form := _long_form(data, columns)) is not None:
        return _recipe_of_events(data, form, predict)
    predict = check_names("column", predict, names) or [_usual(names)]
    proposals = {name: propose(values, name in predict, files) for name, values in columns.items()}
    # Split them into outputs, inputs and columns that are left out.
    outputs = {name: proposals[name] for name in predict}
    check_predictable(outputs)
    inputs = {name: proposal for name, proposal in proposals.items() if name not in predict and proposal.spec}
    if not inputs:
        raise ValueError(f"{data}: no column is left to predict {', '.join(predict)} from")
    left_out = {name: p for name, p in proposals.items() if name not in predict and not p.spec}
    # Write the recipe.
    seen = "" if len(records) < LOOKED_AT else " looked at"
    lines = [
        _comment(f"# Proposed from {data}, {len(records)} rows{seen}. Change what you know better."),
        f"data: {_flow(_data(data, outputs))}",
        *_inputs(inputs, isinstance(records[0], Row)),
        "outputs:",
        *_specs(outputs),
        *_end(left_out, len(records)),
    ]
    return "\n".join(lines) + "\n"


def _long_form(data: str, columns: Mapping[str, Sequence[Any]]) -> LongForm | None:
    """Return the columns of events, if a table has a row for each event."""
    found = recognise(columns)
    if found is not None or len(columns) > FEW_COLUMNS or len(next(iter(columns.values()))) < LOOKED_AT:
        return found
    # The rows of a sample may be far apart: look at more of them.
    rows = [row.cells for row in islice(read_rows(Path(data)), ROWS_OF_EVENTS) if not row.error]
    return recognise({name: [cells.get(name) for cells in rows] for name in columns})


def _recipe_of_events(data: str, form: LongForm, predict: Sequence[str]) -> str:
    """Return a recipe for a table of long form, which predicts constant columns of samples, or values to come."""
    samples = [row for row in samples_of(Path(data), read_rows(Path(data)), form) if not row.error]
    constant = [name for name in column_names(samples) if name not in (form.sample, *form.made)]
    usual = [name for name in constant if name.lower() in USUAL][:1]
    names = check_names("column", predict, [str(form.value), *constant]) or usual or [str(form.value)]
    form = replace(form, forecast=FORECAST) if form.value in names else form
    # The columns that are constant within samples, as those of any table; then the events.
    proposals = {name: propose([row.cells.get(name) for row in samples], name in names) for name in constant}
    targets = {name: proposals[name] for name in names if name != form.value}
    check_predictable(targets)
    inputs = {name: p for name, p in proposals.items() if name not in names and p.spec}
    events = [row.cells[EVENTS] for row in samples]
    kinds, times = {kind for each in events for kind in each["type"].tolist()}, [each["time"] for each in events]
    about = f"{len(kinds)} types, up to {max(map(len, times))} events, times to {max(t[-1] for t in times):.4g}"
    asked = f"values at any time, of any type; trained on the last {FORECAST:.0%} of each sample's time"
    score = {"score_types": True} if len(kinds) <= FEW_TYPES else {}
    left_out = {name: p for name, p in proposals.items() if not p.spec}
    since = ", counted from the sample's first event" if form.from_start else ""
    lines = [
        _comment(
            f"# Proposed from {data}, {sum(map(len, times))} rows of {len(samples)} samples: each row is an event."
        ),
        f"data: {_flow({**_data(data, targets), 'long': _without_defaults(form)})}",
        *_inputs(inputs, table=True),
        f"  {EVENTS if form.forecast is None else PAST}: {_flow({'kind': 'events'})}  # {about}{since}",
        "outputs:",
        *([] if form.forecast is None else [f"  {FUTURE}: {_flow({'kind': 'events', **score})}  # {asked}"]),
        *_specs(targets),
        *_end(left_out, len(samples)),
    ]
    return "\n".join(lines) + "\n"


def _without_defaults(form: LongForm) -> dict[str, Any]:
    return {f.name: getattr(form, f.name) for f in fields(form) if getattr(form, f.name) != f.default}


def check_predictable(outputs: Mapping[str, Proposal]) -> None:
    """Raise a ValueError for a column that cannot be an output."""
    for name, proposal in outputs.items():
        if not proposal.spec or proposal.spec["kind"] == "date":
            raise ValueError(f"column {name!r} cannot be predicted: {proposal.why}; name another with --predict")


def _end(left_out: Mapping[str, Proposal], count: int) -> list[str]:
    """Return the last lines of a recipe for this number of records."""
    return [
        *(_comment(f"# {name} is left out: {proposal.why}") for name, proposal in left_out.items()),
        "config: auto  # sizes that suit the schema: see perceivers schema check",
        f"training: {_flow(_training(count))}",
    ]


def _records(data: str) -> tuple[list[Record], Files | None]:
    if data.endswith(ARRAY_FILES):
        return list(read_arrays(data)[:LOOKED_AT]), None
    stream = open_shards(data) if is_shards(data) else read_rows(Path(data))
    rows = [row for row in islice(stream, LOOKED_AT) if isinstance(row, Row) and not row.error]
    if not rows:
        raise ValueError(f"{data}: no row can be read")
    return list(rows), rows[0].files


def _cell(record: Record, name: str) -> Any:
    return record.cells.get(name) if isinstance(record, Row) else record[name]


def _usual(names: Sequence[str]) -> str:
    return next((name for name in names if name.lower() in (*USUAL, FOLDER)), names[-1])


def _data(data: str, outputs: Mapping[str, Proposal]) -> dict[str, Any]:
    if data.endswith(ARRAY_FILES):
        return {"kind": "arrays", "training_file": data}
    if is_shards(data):
        return {"kind": "shards", "files": data}
    classes = [name for name, proposal in outputs.items() if proposal.spec["kind"] == "label"]
    return {"kind": "table", "file": data, **({"stratify": classes[0]} if classes else {})}


def _inputs(inputs: Mapping[str, Proposal], table: bool) -> list[str]:
    """Return YAML lines: one input for all numbers, categories and dates (a token each), one per other column."""
    fields = {
        n: p for n, p in inputs.items() if table and p.spec["kind"] in (*WHOLE_VALUE_KINDS, "date") and n != "mask"
    }
    lines = ["inputs:"]
    if fields:
        options = {"kind": "records", "key": WHOLE_ROW, "tokens": "field", "max_records": 1}
        lines += [f"  {ROW}:  # the columns that are single values, a token for each"]
        lines += [*(f"    {option}: {_flow(value)}" for option, value in options.items()), "    fields:"]
        lines += [f"      {_flow(name)}: {_flow(p.spec)}  # {_comment(p.why)}" for name, p in fields.items()]
    return lines + _specs({name: proposal for name, proposal in inputs.items() if name not in fields})


def _specs(proposals: Mapping[str, Proposal]) -> list[str]:
    lines, taken = [], dict.fromkeys((ROW, EVENTS, PAST, FUTURE), 0)
    for column, proposal in proposals.items():
        name = _new_name(column, taken)
        key = {} if name == column else {"key": column}
        kind = WHOLE_VALUE_KINDS.get(proposal.spec["kind"], proposal.spec["kind"])
        lines.append(f"  {name}: {_flow({**proposal.spec, 'kind': kind, **key})}  # {_comment(proposal.why)}")
    return lines


def _new_name(column: str, taken: dict[str, int]) -> str:
    name = re.sub(r"\W+", "_", column, flags=re.ASCII).strip("_") or "column"
    name = f"_{name}" if name[0].isdigit() else name
    try:
        check_new_name("", name)
    except ValueError:
        name += "_"
    first, number = name, taken.get(name, 0)
    while name in taken:  # many columns may get one name, e.g. all without ASCII letters: `taken` holds its last number
        number += 1
        name = f"{first}_{number}"
    taken[first] = number
    taken[name] = 0
    return name


def _training(num_rows: int) -> dict[str, Any]:
    """Return options for about 50 epochs; if there are few rows, a tenth is for validation, against overfitting."""
    batch_size = max(8, min(64, 1 << (num_rows // 10).bit_length() >> 1))
    steps = min(max(50 * num_rows // batch_size, 300), 5000)
    return {
        "num_steps": steps,
        "batch_size": batch_size,
        "optimiser": {"kind": "adamw", "learning_rate": 0.001, "weight_decay": 0.05, "max_norm": 1.0},
        "schedule": {"kind": "cosine", "warmup_steps": steps // 20},
        **({"validation_fraction": 0.1, "checkpoint_every": steps // 20} if num_rows < FEW_ROWS else {}),
    }


def _flow(value: Any) -> str:
    text = yaml_text(value, default_flow_style=True, width=10**9)
    return text.strip().removesuffix("...").strip()


def _comment(text: str) -> str:
    return " ".join(text.split())
