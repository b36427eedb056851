"""Results: targets reached or missed, one dated file of numbers and one of tables."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measuring import Machine, Ratio, log_slope, paired_ratio, relative_difference
from benchmarks.processes import Report
from benchmarks.workloads import Row, Target


@dataclass
class Measured:
    """Measurements of one contender in one row."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of each turn."""
    memory_bytes: int | None = None
    """Peak memory above the process with its model and inputs."""
    result_bytes: int = 0
    """Part of this memory that the results take."""
    difference: float | None = None
    """Largest relative difference of its outputs from the first contender's; None: not comparable."""
    flops: int = 0
    """Operations of the work as written."""
    note: str = ""
    """Remark for readers, or the reason why the contender could not be measured."""

    @property
    def median(self) -> float | None:
        """Median of the seconds."""
        return float(np.median(self.seconds)) if self.seconds else None


@dataclass
class RowResult:
    """Results of one row."""

    name: str
    """Name of the row."""
    gemm_rate: float
    """Operations a second of a large matrix product, measured in the same run."""
    contenders: dict[str, Measured] = field(default_factory=dict)
    """Measurements by contender."""
    targets: list["Judged"] = field(default_factory=list)
    """Targets, reached or missed."""

    def share(self, name: str) -> float | None:
        """Return operations as written a second, over the rate of matrix products; above 1 if fewer were executed."""
        measured = self.contenders[name]
        return None if measured.median is None else measured.flops / measured.median / self.gemm_rate


@dataclass
class Judged:
    """A target and its measurement."""

    wanted: str
    """The target in words."""
    seen: str
    """The measurement in words."""
    reached: bool | None
    """True if the target was reached; None: it could not be measured."""


def differences(reports: Mapping[str, Report]) -> dict[str, float]:
    """Return the relative difference of each contender from the first, over the outputs that both have."""
    first, *others = reports
    result = {}
    for name in others:
        pairs = [
            _common(reports[name].outputs[key], x)
            for key, x in reports[first].outputs.items()
            if key in reports[name].outputs
        ]
        if pairs:
            result[name] = max(relative_difference(x, reference) for x, reference in pairs)
    return result


def _common(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut two outputs [B, ...] to their common length: a contender may have decoded only the first chunks."""
    x, y = (a.reshape(len(a), -1) for a in (x, y))
    width = min(x.shape[1], y.shape[1])
    return x[:, :width], y[:, :width]


def judge(target: Target, row: Row, result: RowResult) -> Judged:
    """Return a target with its measurement, and whether it was reached."""
    seen, shown = JUDGES[target.measure](target, row, result)
    return Judged(wanted(target), shown, None if seen is None else seen <= target.at_most)


def wanted(target: Target) -> str:
    """Return a target in words."""
    if target.measure == "slope":
        return f"log-log slope of time at most {target.at_most}"
    if target.measure == "growth":
        return f"memory beyond the results grows by at most {megabytes(target.at_most)}"
    if target.measure == "memory":
        amount = megabytes(target.at_most) if target.against is None else f"{target.at_most:.2g} of {target.against}"
        return f"{target.of}: memory at most {amount}"
    if target.within_noise:
        return f"{target.of}: not slower than {target.against}, within noise"
    if target.at_most < 1:
        return f"{target.of}: {1 / target.at_most:.2g} times as fast as {target.against}"
    return f"{target.of}: at most {target.at_most:.2g} times the time of {target.against}"


Seen = tuple[float | None, str]


def _time(target: Target, row: Row, result: RowResult) -> Seen:
    ratio = ratio_of(result, target.of, target.against or "")
    if ratio is None:
        return None, "not measured"
    faster = f"{1 / ratio.median:.2f} times as fast (quartiles {1 / ratio.high:.2f} to {1 / ratio.low:.2f})"
    slower = f"{ratio.median:.2f} times the time (quartiles {ratio.low:.2f} to {ratio.high:.2f})"
    return ratio.low if target.within_noise else ratio.median, faster if target.at_most <= 1 else slower


def _memory(target: Target, row: Row, result: RowResult) -> Seen:
    of, against = (result.contenders.get(name or "", Measured()).memory_bytes for name in (target.of, target.against))
    if of is None or (target.against and against is None):
        return None, "not measured"
    if not target.against or against is None:
        return of, megabytes(of)
    return of / max(against, 1), f"{of / max(against, 1):.2f}: {megabytes(of)} of {megabytes(against)}"


def _slope(target: Target, row: Row, result: RowResult) -> Seen:
    times = {size: result.contenders[name].median for name, size in row.sizes.items()}
    known = {size: seconds for size, seconds in times.items() if seconds}
    if len(known) < len(times):
        return None, "not measured at all sizes"
    slope = log_slope([*known], [*known.values()])
    return slope, f"{slope:.3f}"


def _growth(target: Target, row: Row, result: RowResult) -> Seen:
    known = [result.contenders[name] for name in row.sizes]
    beyond = [m.memory_bytes - m.result_bytes for m in known if m.memory_bytes is not None]
    if len(beyond) < len(known):
        return None, "not measured at all sizes"
    return beyond[-1] - beyond[0], ", ".join(map(megabytes, beyond))


JUDGES: dict[str, Callable[[Target, Row, RowResult], Seen]] = {
    "time": _time,
    "memory": _memory,
    "slope": _slope,
    "growth": _growth,
}
"""Functions that return each measure as a number and in words."""


def ratio_of(result: RowResult, of: str, against: str) -> Ratio | None:
    """Return the ratio of the seconds of two contenders; None unless both ran in every turn."""
    seconds = [result.contenders.get(name, Measured()).seconds for name in (of, against)]
    return paired_ratio(*seconds) if seconds[0] and len(seconds[0]) == len(seconds[1]) else None


def megabytes(count: float) -> str:
    """Format a number of bytes in the unit of the tables."""
    return f"{count / 1e6:,.0f} MB"


def write(
    folder: Path, name: str, machine: Machine, results: Mapping[str, RowResult], titles: Mapping[str, str]
) -> Path:
    """Write a file of JSON and one of tables, named by date and `name`; rows of today on this processor are kept."""
    # Merge with the rows measured earlier today; new results replace old ones.
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{date.today()}-{name}"
    numbers, tables = path.with_suffix(".json"), path.with_suffix(".md")
    earlier = json.loads(numbers.read_text()) if numbers.exists() else {}
    kept = earlier.get("rows", {}) if earlier.get("machine", {}).get("processor") == machine.processor else {}
    rows = {key: _loaded(row) for key, row in kept.items()} | dict(results)
    rows = {key: rows[key] for key in titles if key in rows}
    plain = {"machine": asdict(machine), "rows": {key: asdict(row) for key, row in rows.items()}}
    numbers.write_text(json.dumps(plain, indent=1) + "\n")
    tables.write_text(markdown(machine, rows, titles))
    return tables


def _loaded(plain: Mapping[str, Any]) -> RowResult:
    contenders = {name: Measured(**measured) for name, measured in plain["contenders"].items()}
    targets = [Judged(**judged) for judged in plain["targets"]]
    return RowResult(**{**plain, "contenders": contenders, "targets": targets})


METHODS = {
    "cpu": "One thread, seconds are medians of the process's CPU seconds",
    "cuda": "Seconds are medians of the time between two events on the GPU, memory is what torch allocated there",
}
"""Method of measurement in words, by device."""


def markdown(machine: Machine, results: Mapping[str, RowResult], titles: Mapping[str, str]) -> str:
    """Return the tables and targets of all rows in Markdown."""
    versions = ", ".join(f"{package} {version}" for package, version in machine.versions.items())
    lines = [
        f"# Benchmarks, {date.today()}",
        "",
        f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB; {versions}. "
        f"{METHODS[machine.device]}; load of the machine at the start: {machine.load:.1f}. "
        "Ratios are medians of the ratios of each turn; memory is the peak above the process with model and inputs. "
        "GFLOP are those of the model as written; the share is of the rate of a large matrix product in the same run, "
        "above 100 % where an attention algorithm needs fewer. Weights are random, the same for all; the "
        "difference is the largest from the outputs of the first contender, relative to their largest.",
    ]
    for name, result in results.items():
        lines += ["", section(titles[name], result)]
    return "\n".join(lines) + "\n"


def section(title: str, result: RowResult) -> str:
    """Return the table and targets of a row in Markdown."""
    return "\n".join([f"## {title}", "", *_table(result), "", *_targets(result)]).rstrip()


def _table(result: RowResult) -> list[str]:
    head = [
        f"`{result.name}`; matrix products run at {result.gemm_rate / 1e9:,.0f} GFLOP/s.",
        "",
        "| | GFLOP | seconds | ratio to the first | share | memory | difference | note |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    first = next(iter(result.contenders))
    return head + [_line(result, name, first) for name in result.contenders]


def _line(result: RowResult, name: str, first: str) -> str:
    measured, ratio, share = result.contenders[name], ratio_of(result, name, first), result.share(name)
    cells = [
        name,
        f"{measured.flops / 1e9:,.0f}",
        "" if measured.median is None else f"{measured.median:.3g}",
        "" if ratio is None else f"{ratio.median:.2f}",
        "" if share is None else f"{share:.0%}",
        "" if measured.memory_bytes is None else megabytes(measured.memory_bytes),
        "" if measured.difference is None else f"{measured.difference:.1e}",
        measured.note,
    ]
    return f"| {' | '.join(cells)} |"


def _targets(result: RowResult) -> list[str]:
    words = {True: "reached", False: "**missed**", None: "not measured"}
    return [f"- {judged.wanted}: {words[judged.reached]} ({judged.seen})" for judged in result.targets]
