"""Each input is loaded once: a cell is parsed once, a picture decoded once for each use, a command reads data once."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from torch.utils._pytree import tree_leaves

from perceivers.data import Table, table
from perceivers.data.validation import read_parts
from perceivers.media.image_files import write_image
from perceivers.modalities import MODALITIES, Image, Label, Labels, Numbers, PointSet, Text, image
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.label import class_number
from perceivers.modalities.modality import Modality
from perceivers.modalities.records import Records
from perceivers.runs import run, train
from perceivers.schema import Schema
from perceivers.training.plots import SHOWN

ROOT = Path(__file__).parent.parent


@pytest.fixture
def calls(monkeypatch):
    """Return a counter of function calls: `calls(owner, name)` starts counting, `calls[name]` is the count."""

    class Calls(Counter):
        def __call__(self, owner, name):
            function = getattr(owner, name)

            def counting(*arguments, **options):
                self[name] += 1
                return function(*arguments, **options)

            monkeypatch.setattr(owner, name, counting)

    return Calls()


@pytest.fixture
def parsed(monkeypatch):
    """Record the cells that `read` of each modality parses, by modality."""
    seen = {}
    for modality in (Label, Labels, Numbers, PointSet, Records, Text):
        read, seen[modality.__name__] = modality.read, []

        def noting(self, cell, files, read=read, cells=seen[modality.__name__]):
            cells.append(cell)
            return read(self, cell, files)

        monkeypatch.setattr(modality, "read", noting)
    return seen


def rows_of(count=20):
    """Return rows with a cell for every modality."""
    return [
        {
            "x": f"{number}.5",
            "text": f"the text of row {number}",
            "tags": json.dumps([f"tag {number % 2}"]),
            "points": json.dumps([[0.1 * number, 1.0], [0.2, number]]),
            "set": json.dumps([{"size": number, "name": f"n{number % 3}"}]),
            "y": f"class {number % 3}",
        }
        for number in range(count)
    ]


def write_table(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_cell_is_parsed_once_before_training(tmp_path, parsed):
    """One parse serves the check, the statistics and the vocabularies, for an input, an output, or both."""
    rows = rows_of()
    fields = {"size": NumberField(), "name": CategoryField()}
    schema = Schema(
        {
            **{"x": Numbers(), "text": Text(length=32), "points": PointSet(axes=1), "set": Records(fields=fields)},
            "again": Numbers(key="x"),
        },
        {"same": Text(length=32, key="text", of="text"), "tags": Labels(), "y": Label()},
    )
    data = Table(str(write_table(tmp_path / "own.jsonl", rows)))
    parts = read_parts(data, schema)
    assert len(parts.training) + len(parts.held_out) == len(rows)
    assert parts.schema.inputs["x"].mean is not None
    assert len(parts.schema.outputs["y"].classes) == 3
    assert {modality: len(cells) for modality, cells in parsed.items()} == dict.fromkeys(parsed, len(rows))


def test_inputs_that_read_a_cell_differently_each_get_their_own(tmp_path):
    write_image(tmp_path / "a.png", np.random.default_rng(0).uniform(size=(8, 8, 3)))
    schema = Schema({"small": Image(size=2, key="file"), "grey": Image(size=4, channels=1, key="file")}, {"y": Label()})
    rows = [{"file": "a.png", "y": "yes"}] * 5
    values = schema.read(Table(str(write_table(tmp_path / "own.jsonl", rows))).training()[0])["inputs"]
    assert (values["small"].shape, values["grey"].shape) == ((2, 2, 3), (4, 4, 1))


@pytest.fixture
def pictures(tmp_path):
    """Write a table of ten pictures with classes."""
    rng = np.random.default_rng(0)
    for number in range(10):
        write_image(tmp_path / f"{number}.png", rng.uniform(size=(6, 6, 3)))
    return write_table(tmp_path / "own.jsonl", [{"file": f"{n}.png", "y": "ab"[n % 2]} for n in range(10)])


@pytest.mark.parametrize("fitted", [False, True])
def test_a_picture_is_decoded_once_for_each_use(pictures, calls, fitted):
    """An input and an output of one column share the picture; so do the check and the statistics."""
    calls(image, "read_image")
    statistics = {"mean": (0.0,), "std": (1.0,), "value_range": (0.0, 255.0)} if fitted else {}
    schema = Schema(
        {"file": Image(size=4, **statistics)},
        {"y": Label(), "rebuilt": Image(size=4, key="file", num_points=2, **statistics)},
    )
    parts = read_parts(Table(str(pictures)), schema)
    assert calls["read_image"] == 10
    parts.schema.preprocess(parts.training[0], np.random.default_rng(0), training=True)
    assert calls["read_image"] == 11


STEPS, BATCH = 3, 4


def test_a_command_reads_its_data_and_its_model_once(pictures, calls, command, tmp_path):
    """One command trains, evaluates and reports; each step then loads a picture only where it is used."""
    (tmp_path / "own.yaml").write_text(
        f"data: {{kind: table, file: {pictures}}}\n"
        "schema: {inputs: {file: {kind: image, size: 4}}, outputs: {y: {kind: label}}}\n"
        f"training: {{num_steps: {STEPS}, batch_size: {BATCH}, log_every: 1, accelerator: cpu}}\n"
    )
    calls(image, "read_image")
    calls(table, "read_rows")
    calls(run, "load_model")
    calls(run, "from_file")
    calls(train, "fingerprint")
    code, _, err = command("train", tmp_path / "own.yaml", "--out", tmp_path / "run")
    assert code == 0, err
    assert calls["read_rows"] == calls["load_model"] == 1
    assert calls["fingerprint"] == 2  # of the training part and of the held-out part
    held_out = 2
    assert calls["read_image"] == 10 + STEPS * BATCH + held_out + min(held_out, SHOWN)
    assert (tmp_path / "run" / "report.html").exists()
    # Evaluation alone reads the data again, once.
    assert command("evaluate", tmp_path / "run", "--by", "y")[0] == 0
    assert calls["read_rows"] == calls["load_model"] == 2


@dataclass(frozen=True)
class Codes(Modality):
    """A user's modality, whose values have no meaning before it is fitted."""

    names: tuple[str, ...] = ()

    def fit(self, values):
        return Codes(tuple(sorted(set(values))))

    def preprocess(self, value, rng, training):
        return class_number(value, self.names)

    def collate(self, values):
        return np.array(values)

    @classmethod
    def example(cls, rng):
        return cls(("a",)), ["a", None]


def test_a_modality_that_must_be_fitted_first_is_not_checked_before(tmp_path):
    rows = [{"code": "abc"[number % 3], "y": number} for number in range(9)]
    data = Table(str(write_table(tmp_path / "own.jsonl", rows)))
    parts = read_parts(data, Schema({"code": Codes()}, {"y": Numbers()}))
    assert parts.schema.inputs["code"].names == ("a", "b", "c")
    assert not parts.unreadable


@pytest.mark.parametrize("modality", [m for m in MODALITIES if not m.preprocess_needs_fit], ids=lambda m: m.__name__)
def test_a_value_is_checked_before_the_fit_as_after_it(modality):
    spec, values = modality.example(np.random.default_rng(0))
    fitted = spec.fit([spec.summary(value) for value in values if value is not None])
    assert fitted == spec.fit([value for value in values if value is not None])
    for value in values:
        for prepared in ("preprocess", "target") if value is not None else ():
            more = ({},) if prepared == "target" else ()
            before, after = (
                getattr(one, prepared)(value, np.random.default_rng(1), *more, training=False) for one in (spec, fitted)
            )
            for one, other in zip(tree_leaves(before), tree_leaves(after), strict=True):
                np.testing.assert_array_equal(one, other)


def test_masked_values_of_records_are_checked_before_the_fit(tmp_path):
    """Which of them are known is known after it."""
    fields = {"name": CategoryField()}
    units = Records(fields=fields, field_mask_prob={"name": 0.5}, key="units")
    schema = Schema({"units": units}, {"masked": Records(fields=fields, key="units", of="units", masked_only=True)})
    rows = [{"units": [{"name": "ab"[number % 2]}] * (number + 1)} for number in range(9)]
    parts = read_parts(Table(str(write_table(tmp_path / "own.jsonl", rows))), schema)
    assert parts.schema.outputs["masked"].fields["name"].classes == ("a", "b")
    target = parts.schema.preprocess(parts.training[0], np.random.default_rng(0), training=False)["targets"]["masked"]
    assert set(target["name"]) == {-1}  # nothing is masked in this evaluation


def test_a_row_that_cannot_be_used_does_not_count_in_statistics(tmp_path):
    """The row's number is valid, but its list is not."""
    rows = [{"x": 1000.0 if n == 3 else 1.0 + n % 2, "z": [1.0] if n == 3 else [1.0, 2.0]} for n in range(10)]
    data = Table(str(write_table(tmp_path / "own.jsonl", rows)), max_bad_rows=1)
    parts = read_parts(data, Schema({"x": Numbers()}, {"z": Numbers(count=2, mean=(0.0,), std=(1.0,))}))
    assert len(parts.unreadable) == 1
    assert parts.schema.inputs["x"].mean[0] < 2.1


@pytest.mark.slow
@pytest.mark.parametrize(("what", "most"), [("flow", 20), ("train", 26)])
def test_data_pass_few_files_and_the_readme_lists_them(what, most):
    script = [sys.executable, ROOT / "tests" / "dataflow.py", what]  # a process without the tests' type checks
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    passed = re.findall(r"^(\S+\.py)", printed, re.MULTILINE)
    assert 10 < len(passed) <= most
    readme = (ROOT / "README.md").read_text()
    (listed,) = re.findall(rf"<!-- dataflow {what} -->\n```text\n(.*?)```", readme, re.DOTALL)
    assert re.findall(r"^(\S+\.py)", listed, re.MULTILINE) == passed
