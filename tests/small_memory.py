"""A process with little memory that reads files made to need a lot of it, and reports the outcome of each.

The process may take a gigabyte more than at its start, and a few seconds for each file.
"""

import json
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MORE_MEMORY, SECONDS = 2**30, 20


@dataclass(frozen=True)
class Report:
    """Result of reading one file."""

    outcome: str
    """`refused`, `read`, the name of another exception, or `died`."""
    message: str
    seconds: float
    """CPU time."""


def read_all(jobs, timeout=300):
    """Read each file with the reader that `jobs` names, and return reports by name. A process that dies is replaced."""
    left, reports = list(jobs), {}
    while left:
        listed = [[name, jobs[name][0], str(jobs[name][1])] for name in left]
        ran = subprocess.run(
            [sys.executable, __file__],
            input=json.dumps(listed),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        reported = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
        reports |= {name: Report(**report) for name, report in zip(left, reported, strict=False)}
        if len(reported) < len(left):
            reports[left[len(reported)]] = Report("died", f"{ran.returncode}: {ran.stderr[-500:]}", SECONDS)
        left = left[len(reported) + 1 :]
    return reports


def _readers():
    from perceivers.data.arrays import read_arrays
    from perceivers.data.formats.readers import read_rows
    from perceivers.data.shards import open_shards
    from perceivers.data.table import Table
    from perceivers.data.validation import preprocessing
    from perceivers.files.budgets import read_json
    from perceivers.modalities import Label, Numbers, Text
    from perceivers.modalities.tokenizers import tokenizer_of
    from perceivers.pretrained.foreign import read_torch
    from perceivers.pretrained.hub import from_pretrained
    from perceivers.pretrained.unpickle import read_haiku
    from perceivers.runs.recipe import preset_of
    from perceivers.runs.schema_file import read_schema_file
    from perceivers.schema import Schema
    from perceivers.schema.schema_files import read_plain, with_settings
    from perceivers.training.training_config import TrainingConfig

    short = Schema({"text": Text(length=16, overflow="truncate")}, {"label": Label(classes=2)})
    strict = Schema({"text": Text(length=16)}, {"label": Label(classes=2)})
    few = Schema({"text": Numbers(count=3)}, {"label": Label(classes=2)})

    def prepared(schema):
        return lambda path: [preprocessing(schema)(row) for row in read_rows(path)]

    def whole(rows):
        for row in rows:
            if row.error:
                raise ValueError(row.error)

    return {
        "arrays": lambda path: read_arrays(str(path)),
        "plain": read_plain,
        "setting": lambda path: with_settings(TrainingConfig(), [path.read_text()]),
        "declaration": lambda path: preset_of(read_schema_file(path)).build(),
        "json": read_json,
        "model": from_pretrained,
        "haiku": read_haiku,
        "torch": read_torch,
        "rows": lambda path: whole(read_rows(path)),
        "table": lambda path: Table(str(path)).training(),
        "short": prepared(short),
        "strict": prepared(strict),
        "few": prepared(few),
        "tokenizer": lambda path: tokenizer_of(str(path)),
        "shards": lambda path: whole(open_shards(str(path))),
    }


def _main():
    jobs, readers = json.load(sys.stdin), _readers()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for _, reader, path in jobs:
        message, start = "", time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process, also within a C library
        try:
            readers[reader](Path(path))
            outcome = "read"
        except ValueError as error:
            outcome, message = "refused", str(error)
        except BaseException as error:
            outcome, message = type(error).__name__, str(error)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps({"outcome": outcome, "message": message, "seconds": time.process_time() - start}), flush=True)


if __name__ == "__main__":
    _main()
