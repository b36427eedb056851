"""A disk that fails at any call of a command: one line reports it, existing files stay, and the next start goes on."""

import errno
import itertools
import json
import os
import re
import shutil
import sys
import traceback
from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow.parquet  # noqa: F401 - imports, so that children need not
import pytest

import kills
import perceivers.cli.verbs  # noqa: F401
from perceivers.__main__ import main
from perceivers.training.checkpoints import latest_checkpoint
from perceivers.training.distributed import launch
from perceivers.training.logging import read_log
from perceivers.training.training_config import TrainingConfig
from proof import table, write_section
from small_run import without_time

ERRORS = ("ENOSPC", "EIO", "EDQUOT")
FAILING = re.compile(r"(open|openat|creat|mkdir|mkdirat|p?write(64|v)?|ftruncate|f(data)?sync|rename(at2?)?)$")
"""System calls that can find a disk full or broken, including opening a file to read it."""

EACH = 3
"""One in this number of the calls that open a file to read it fails: there are many, and they are alike."""

NEVER = 65_535
"""Number of a call that no run reaches."""

RECIPE = """
data: {kind: table, file: TABLE, held_out_fraction: 0.2, max_bad_rows: 1}
inputs:
  point: {kind: numbers, count: 3}
outputs:
  label: {kind: label, classes: 2}
config: {latents: {num_latents: 5, channels: 8}, processor: {num_layers: 1}}
training:
  num_steps: 4
  batch_size: 4
  checkpoint_every: 2
  log_every: 1
  validation_fraction: 0.2
  average_decay: 0.9
  accelerator: cpu
  schedule: {warmup_steps: 1}
"""

TEXT = """By `tests/test_disk.py` on {date}. `train` (with validation, averages and a row that cannot be read),
`predict` to three formats of table, and `convert` run under strace. One after another, each of their system calls that
can find a disk full or broken fails, with ENOSPC, EIO and EDQUOT in turn; of the calls that open a file for reading,
every third one.

TABLE

A fault is an exit code other than 2 (or 0, where another way led to the same result), more or less than one line that
gives the reason of the system, a saved checkpoint that is lost, an older prediction that is neither kept nor replaced,
or a difference from the undisturbed result when the same commands run again on a working disk.
"""


@dataclass
class Ended:
    """Result of running the commands."""

    code: int
    errors: list[str]
    """Lines of the error stream."""
    saved: int
    """The last step whose save had returned."""


class Work:
    """Folder in which commands write: a run, its report, predictions, a model."""

    def __init__(self, folder):
        launch(TrainingConfig(accelerator="cpu"))  # this also imports what a run needs
        self.given, self.folder = folder / "given", folder / "work"
        self.run, self.trace, self.told = self.folder / "run", folder / "trace", folder / "told"
        self.given.mkdir(parents=True)
        points = np.random.default_rng(0).normal(size=(23, 3)).round(3).tolist()
        lines = [json.dumps({"point": point, "label": int(sum(point) > 0)}) for point in points]
        (self.given / "table.jsonl").write_text("\n".join(["{damaged", *lines]) + "\n")
        (self.given / "mine.yaml").write_text(RECIPE.replace("TABLE", str(self.given / "table.jsonl")))

    def commands(self):
        predicted = ["predict", self.run, self.given / "table.jsonl", "--max-bad-rows", "1"]
        yield ["train", self.given / "mine.yaml", "--out", self.run]
        yield from ([*predicted, "-o", self.folder / f"predicted.{kind}"] for kind in ("csv", "jsonl", "parquet"))
        yield ["convert", self.run, self.folder / "model"]

    def start(self, inject=None):
        """Run the commands until one does not end well; `inject` is strace's expression for what fails."""
        child = kills.Child(self.run, stopped=inject is not None, work=partial(perform, self.commands(), self.told))
        tracer = inject and kills.strace(child, self.trace, inject)
        code = child.wait()
        if tracer:
            tracer.wait()
        return Ended(code, self.told.read_text().splitlines(), child.saved)

    def calls(self):
        """Return (name, number among the calls of its name) of all calls of a whole run here that can fail."""
        self.clear()
        assert self.start(f"trace={kills.MUTATING}").code == 0, self.told.read_text()
        lines = self.lines()
        first = lines[0].split()[0]  # calls of other threads are numbered separately
        numbers, found, readings = Counter(), [], itertools.count()
        for line in lines:
            thread, call = re.match(r"(\d+) +(\w*)", line).groups()
            if thread == first and FAILING.match(call):
                numbers[call] += 1
                inside = str(self.folder) in line
                if inside and ("O_RDONLY" not in line or next(readings) % EACH == 0):
                    found.append((call, numbers[call]))
        return found

    def lines(self):
        """Return the lines of the last run's trace."""
        return self.trace.read_text().splitlines()

    def clear(self):
        """Leave an older prediction, and nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "predicted.csv").write_text("old\n")

    def result(self):
        """Return all that the commands leave, without times."""
        assert not list(self.folder.rglob("*.unfinished*")), "what a writer left was not removed"
        checkpoint = {path.name: path.read_bytes() for path in latest_checkpoint(self.run).glob("*.safetensors")}
        files = ["run/recipe.yaml", "run/metrics.json", "run/unreadable.jsonl", "model/model.safetensors"]
        files += [f"predicted.{kind}" for kind in ("csv", "jsonl", "parquet")]
        report = (self.run / "report.html").stat().st_size > 0
        return checkpoint, without_time(read_log(self.run)), report, [(self.folder / f).read_bytes() for f in files]


def perform(commands, told):
    """Run commands in turn, as a shell would; the messages of the last one go to a file."""
    sys.stdout = sys.stderr = told.open("w")
    for arguments in commands:
        sys.stderr.truncate(0)
        sys.stderr.seek(0)
        sys.argv, code = ["perceivers", *map(str, arguments)], 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            sys.stderr.write(traceback.format_exc())
            code = 1
        sys.stderr.flush()
        if code:
            os._exit(code)


def fail(work, call, number, error, reference):
    """Let a call fail, and return descriptions of the faults."""
    work.clear()
    ended = work.start(f"inject={call}:error={error}:when={number}")
    faults = [] if ended.code in (0, 2) else [f"exit code {ended.code}: {ended.errors[-1:]}"]
    complaints = [line for line in ended.errors if line.startswith("perceivers: ")]
    reasons = (os.strerror(getattr(errno, error)), "safetensors: cannot be read")  # the library omits the reason
    if ended.code == 2 and (len(complaints) != 1 or not any(reason in complaints[0] for reason in reasons)):
        faults.append(f"said {ended.errors}")
    tally = kills.Tally()
    kills.check(work.run, ended.saved, tally)
    if tally.lost:
        faults.append(f"the checkpoint of step {ended.saved} is lost")
    older = (work.folder / "predicted.csv").read_bytes()
    if older not in (b"old\n", reference[-1][-3]):
        faults.append("the older prediction is neither there nor replaced")
    if number != NEVER and not any("(INJECTED)" in line and str(work.folder) in line for line in work.lines()):
        faults.append("another call failed: the numbers of calls have shifted")
    again = work.start() if ended.code else ended  # after an injected failure, a command may succeed in another way
    if again.code:
        faults.append(f"then it does not go on: {again.errors}")
    elif work.result() != reference:
        faults.append("then it ends otherwise")
    return [f"{call} {number} {error}: {fault}" for fault in faults]


def failures(folder, number=None, errors=ERRORS):
    """Let all (or a number of) calls fail, and return descriptions of the faults and the number of failed calls."""
    work = Work(folder)
    # The first run writes compiled sources, and this process imports modules and begins to check types: both shift the
    # numbers of later calls.
    work.calls()
    fail(work, "openat", NEVER, errors[0], work.result())
    points = work.calls()
    reference = work.result()
    if number is not None:
        points = [points[place * len(points) // number] for place in range(number)]
    cases = [(*point, errors[place % len(errors)]) for place, point in enumerate(points)]
    return [fault for case in cases for fault in fail(work, *case, reference)], len(cases)


@pytest.mark.slow
def test_a_disk_that_fails_at_some_calls(tmp_path):
    found, number = failures(tmp_path, 3)
    assert (found, number) == ([], 3)


@pytest.mark.slow
def test_a_disk_that_fails_at_any_call(tmp_path):
    """Test training, its report, predictions as CSV, JSON Lines and Parquet, a model folder; write docs/proof.md."""
    found, number = failures(tmp_path)
    write_section(
        "A disk that fails", TEXT.replace("TABLE", table(["calls that failed", "faults"], [[number, len(found)]]))
    )
    assert (found, number > 100) == ([], True)
