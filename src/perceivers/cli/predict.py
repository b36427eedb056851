"""The verb `predict`: apply a model to a table."""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro

from perceivers.cli.model_choice import ModelChoice
from perceivers.core.arguments import check_names, check_positive
from perceivers.data import Shards, Table
from perceivers.data.arrays import ARRAY_FILES, read_arrays
from perceivers.data.formats.readers import reader_of
from perceivers.data.formats.writers import check_writable, write_rows
from perceivers.data.long_form import LongForm, long_rows
from perceivers.data.shards import is_shards, open_shards
from perceivers.files.outputs import check_outputs
from perceivers.modalities import Events
from perceivers.modalities.table_cells import Row
from perceivers.runs.attention_report import PAGE_ROWS, attention_page
from perceivers.runs.prediction import predict_rows
from perceivers.runs.ray_predict import predict_over_cluster
from perceivers.runs.run import data_of, files_of
from perceivers.schema import Record


@dataclass(frozen=True)
class Machines:
    """Device and processes that a model runs on."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to run on."""
    workers: int = 0
    """Number of processes of a Ray cluster (at RAY_ADDRESS, else on this machine); 0: predict in this process."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers = {self.workers} must be 0 or more")


HERE = Machines()


def predict(
    model: Annotated[str, tyro.conf.Positional],
    data: Annotated[str, tyro.conf.Positional],
    /,
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    batch_size: int = 128,
    keep: tuple[str, ...] = (),
    max_bad_rows: int = 0,
    attribution: bool = False,
    attention: Path | None = None,
    where: Annotated[Machines, tyro.conf.OmitArgPrefixes] = HERE,
) -> None:
    """Predict the outputs for every row of a table, and write them as a table, in batches and in the same order.

    Args:
        model: Folder of a run or of a model, or a hub repository owner/name.
        data: Table (.csv, .tsv, .parquet, .jsonl), folder of files, arrays (.npz, .safetensors), shards (.tar,
            a pattern or a URL).
        out: Table to write (.csv, .tsv, .parquet, .jsonl).
        batch_size: Rows that are predicted at once; a larger batch is faster and takes more memory.
        keep: Columns of the data to copy; if the model writes a column of that name too, the copy is called NAME.given.
        max_bad_rows: Unreadable rows to tolerate; each stays in the table, with the reason in the column "unreadable".
        attribution: Add columns OUTPUT.from.INPUT (and .FIELD): the prediction minus the one without that part.
        attention: HTML page to write: the parts of pictures and series that the model attends to, in the first rows.
        where: Device and number of processes.
    """
    # Check the arguments before any work is done.
    check_positive("batch_size", batch_size)
    if max_bad_rows < 0:
        raise ValueError(f"max_bad_rows = {max_bad_rows} must be 0 or more")
    check_writable(out)
    check_outputs([out, attention], [*_files(data), *files_of(Path(model))])
    # Read rows only as they are needed: a table may be larger than the memory.
    records, form = _records(data, model), _form_of(data, model)
    chosen = ModelChoice(model=model, device=where.device).load("")
    records = _in_order(chosen.schema.stream, _with_columns(keep, records, data) if keep else records, data, model)
    # Samples of a table of long form are named, and events are written one by one.
    events = [name for name, spec in chosen.schema.outputs.items() if isinstance(spec, Events)]
    if form is not None:
        records, keep = list(records), (form.sample, *(name for name in keep if name != form.sample))
    if where.workers:
        options = {"keep": keep, "attribution": attribution}
        rows = predict_over_cluster(
            chosen,
            records if isinstance(records, Sequence) else list(records),
            where.workers,
            batch_size,
            max_bad_rows,
            **options,
        )
    else:
        rows = predict_rows(chosen, records, batch_size, keep, max_bad_rows, attribution)
    if form is not None and len(events) == 1 and not attribution:
        rows = long_rows(form, events[0], cast(Sequence[Row], records), rows)
    count = write_rows(out, rows)
    print(f"Written: {count} rows to {out}", file=sys.stderr)
    if attention is not None:
        first = list(islice(_records(data, model), PAGE_ROWS))
        print(f"Attention: {attention_page(chosen, first, attention)}", file=sys.stderr)


def _with_columns(names: Collection[str], records: Iterable[Record], data: str) -> Iterator[Record]:
    """Yield the records; raise a ValueError that names a column which no record has.

    In JSON Lines each record may have other columns, so only the end of the data shows that a column is missing.
    """
    seen, wanted = dict[str, None](), set(names)
    for record in records:
        yield record
        if not wanted <= seen.keys():
            seen.update(dict.fromkeys(record.cells if isinstance(record, Row) else record))
            if seen and not data.endswith(".jsonl"):
                check_names("column (keep)", names, seen)
    if seen:
        check_names("column (keep)", names, seen)


def _in_order(stream: str | None, records: Iterable[Record], data: str, model: str) -> Iterable[Record]:
    """Return the records; if they are a stream, rows that are not in the order of time raise a ValueError.

    The order is known if the model's data name the column of the time.
    """
    trained_on = data_of(Path(model))
    if stream is None or not isinstance(trained_on, Table) or not _is_table(data):
        return records
    return trained_on.in_order(cast(Iterable[Row], records), stream)


def _files(data: str) -> list[Path | str]:
    return Shards(files=data).source_files() if is_shards(data) else [data]


def _form_of(data: str, model: str) -> LongForm | None:
    """Return the columns of events in the data, if the model was trained on a table of long form."""
    trained_on = data_of(Path(model))
    return trained_on.long if isinstance(trained_on, Table) and _is_table(data) else None


def _is_table(data: str) -> bool:
    return not data.endswith(ARRAY_FILES) and not is_shards(data)


def _records(data: str, model: str) -> Iterable[Record]:
    if data.endswith(ARRAY_FILES):
        return read_arrays(data)
    if is_shards(data):
        return open_shards(data)
    reader_of(Path(data))
    trained_on = data_of(Path(model)) or Table()
    return trained_on.read_table(Path(data))
