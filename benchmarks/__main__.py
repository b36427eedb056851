"""The command `python -m benchmarks`: measures rows of the table in workloads.py and writes the results."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from benchmarks.measuring import gemm_rate, machine
from benchmarks.processes import Failed, Report, Setting, Worker
from benchmarks.results import Measured, RowResult, differences, judge, section, write
from benchmarks.workloads import GPU_BATCHES, ROWS, Row
from perceivers.core.arguments import check_names

FOLDER = Path("docs/benchmarks")


def benchmark(
    rows: tuple[str, ...] = (),
    repeats: int = 5,
    quick: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    batch: int | None = None,
    limit: float = 3600.0,
    longest: float = 300.0,
    out: Path | None = None,
) -> None:
    """Measure speed and memory of this library and of the other implementations that are installed.

    Args:
        rows: Names of rows; by default all, on a GPU those of GPU_BATCHES.
        repeats: Number of turns of all contenders of a row.
        quick: Tiny sizes and one turn, to see that everything runs.
        device: Device to run on.
        dtype: Precision of weights and inputs; by default float32, on a GPU bfloat16.
        batch: Batch size; by default that of the row, on a GPU several.
        limit: Seconds that one run of a contender may take, including the construction of its model.
        longest: Seconds; work in pieces that would take longer is extrapolated from a few pieces.
        out: Folder of the dated files; by default docs/benchmarks, or none with --quick.
    """
    # Check the arguments.
    names = check_names("row", rows or (GPU_BATCHES if device == "cuda" else ROWS), ROWS)
    if repeats < 1 or (batch is not None and batch < 1):
        raise ValueError(f"repeats = {repeats} and batch = {batch} must be at least 1")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU")
    # Measure row after row; the file is written after each, so that a stopped run keeps its results.
    torch.set_num_threads(1)
    precision = getattr(torch, dtype or ("bfloat16" if device == "cuda" else "float32"))
    setting = Setting(device, precision, batch, quick, longest)
    here, results = machine(device), {}
    titles = {job.name: job.title for job in jobs(list(ROWS), setting)}
    for job in jobs(names, setting):
        results[job.name] = run_row(job.name, job.row, job.setting, 1 if quick else repeats, limit)
        print(section(job.title, results[job.name]), end="\n\n", flush=True)
        if out or not quick:
            path = write(out or FOLDER, "-".join(_labels(setting)), here, results, titles)
    if out or not quick:
        print(f"written: {path}")


@dataclass(frozen=True)
class Job:
    """A row to measure in a setting."""

    name: str
    """Key in the file of results."""
    title: str
    """Title in the tables."""
    row: Row
    """Row of workloads.py."""
    setting: Setting
    """Device, precision and batch size."""


def jobs(names: Sequence[str], setting: Setting) -> list[Job]:
    """Return a job for each row; on a GPU for each batch size of a row, without targets: these are for a CPU."""
    if setting.device == "cpu":
        return [Job(name, ROWS[name].title, ROWS[name], setting) for name in names]
    batches = {name: (setting.batch,) if setting.batch else GPU_BATCHES.get(name, (1,)) for name in names}
    return [
        Job(
            f"{name}-batch-{batch}",
            f"{ROWS[name].title.partition(', batch')[0]}, batch {batch}",
            replace(ROWS[name], targets=[]),
            replace(setting, batch=batch),
        )
        for name in names
        for batch in batches[name]
    ]


def _labels(setting: Setting) -> list[str]:
    """Return the parts of a file name that tell the files of one day apart."""
    usual = setting.dtype == torch.float32
    dtype = [] if usual else [str(setting.dtype).removeprefix("torch.")]
    return [setting.device, *dtype, *([f"batch-{setting.batch}"] if setting.batch else []), *["quick"] * setting.quick]


def run_row(name: str, row: Row, setting: Setting, repeats: int, limit: float) -> RowResult:
    """Measure a row: each contender in its process, all in turn, `repeats` times."""
    result = RowResult(name, gemm_rate(setting.device, setting.dtype))
    counts = {contender: row.counts.get(contender, row.count) for contender in row.contenders}
    flops = {count: count.flops(setting) for count in set(counts.values())}
    workers: dict[str, Worker] = {}
    # Start the contenders one by one: a first run gives memory and outputs. Then take turns for the seconds.
    try:
        for contender, build in row.contenders.items():
            result.contenders[contender] = Measured(flops=flops[counts[contender]])
            try:
                workers[contender] = Worker(build, setting, limit)
            except Failed as failed:
                result.contenders[contender].note = str(failed)
        _note_reports(result, {contender: worker.report for contender, worker in workers.items()})
        for _ in range(repeats):
            _take_turns(result, workers)
    finally:
        for worker in workers.values():
            worker.stop()
    result.targets = [judge(target, row, result) for target in row.targets]
    return result


def _note_reports(result: RowResult, reports: Mapping[str, Report]) -> None:
    """Copy memory, notes and differences of the first runs into the result."""
    difference = differences(reports)
    for contender, report in reports.items():
        measured = result.contenders[contender]
        measured.memory_bytes, measured.result_bytes = report.memory_bytes, report.result_bytes
        measured.note, measured.difference = report.note, difference.get(contender)


def _take_turns(result: RowResult, workers: Mapping[str, Worker]) -> None:
    """Run each contender once. One that fails loses all its seconds, so that the turns of all others stay aligned."""
    for contender, worker in workers.items():
        measured = result.contenders[contender]
        if worker.report.seconds is None or worker.failed:
            continue
        try:
            measured.seconds.append(worker.seconds())
        except Failed as failed:
            measured.seconds, measured.note = [], str(failed)


def main() -> None:
    """Run the command; a wrong argument gives one line and exit code 2."""
    try:
        tyro.cli(benchmark, prog="benchmarks")
    except ValueError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
