"""Files that are broken in any way give one line that names the file, and nothing else."""

import copy
import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data import Table
from perceivers.data.arrays import read_arrays
from perceivers.data.formats.writers import write_rows
from perceivers.data.validation import read_parts
from perceivers.modalities import MODALITIES, FramePair, Label, Numbers, PointSet, Records, Series, Text
from perceivers.modalities.fields import CategoryField, DateField, NumberField
from perceivers.runs.recipe import preset_of
from perceivers.runs.results import read_scores, score_of
from perceivers.runs.schema_file import read_schema_file
from perceivers.runs.train import kept_data
from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.systems.digits.recipes import EVERYTHING
from perceivers.training.checkpoints import read_state
from perceivers.training.logging import LOG, LONGEST_LOG_LINE, MOST_LOG_BYTES, read_log
from tiers import few

SMALL = Config(LatentsConfig(num_latents=5, channels=12), processor=ProcessorConfig(num_heads=2, num_layers=1))

COUNTS = [50, pytest.param(500, marks=pytest.mark.slow)]

DECLARATION = """\
inputs:
  row:
    kind: records
    key: "*"
    tokens: field
    max_records: 1
    fields: {height: {kind: number}, colour: {kind: category, classes: [red, blue], channels: 3}, when: {kind: date}}
  curve: {kind: series, size: 16, patch: 4, channels: 2, positions: {kind: fourier, num_bands: 3}}
  points: {kind: pointset, axes: 2, channels: 1, subsample: [0.5, 1.0]}
outputs:
  kind: {kind: label, classes: 5, weight: 0.5}
  price: {kind: probabilistic_regression, count: 2, quantiles: [0.1, 0.9]}
config:
  latents: {num_latents: 8, channels: 16}
  encoder: {num_heads: 2, dropout: 0.1}
  processor: {num_layers: 2, num_heads: 4}
training: {num_steps: 10, batch_size: 4, optimiser: {kind: adamw, learning_rate: 0.001}}
data: {kind: table, file: mine.csv, stratify: kind, missing: ["", "NA"]}
"""

VALUES = (
    *("0", "-1", "1e999", ".nan", "99999999999999999999", "true", "null", "''", "x", "'*'"),
    *("[]", "{}", "[1, 2]", "[1, ", "{a: b}", "!!python/object:os.system", "&a", "*a"),
)

BYTES = [
    *(b"", b"\0", b"\xff\xfe", b"\xed\xa0\x80", b'"', b"'", b",", b"\n", b"{", b"}"),
    *(b"[" * 2000, b"9" * 400, b"NaN", b"1e999"),
]


def broken_text(text, rng):
    """Return a schema file with a few lines or values changed."""
    lines = text.splitlines()
    for _ in range(rng.integers(1, 4)):
        place = rng.integers(len(lines))
        line = lines[place]
        what = rng.integers(6)
        if what == 0:
            lines[place] = ""
        elif what == 1:
            lines.insert(place, line)
        elif what == 2:
            lines[place] = " " * rng.integers(1, 4) + line
        elif what == 3 and ":" in line:
            head, _, _ = line.rpartition(":")
            lines[place] = f"{head}: {rng.choice(VALUES)}"
        elif what == 4:
            cut = rng.integers(len(line) + 1)
            lines[place] = line[:cut]
        else:
            words = line.split()
            lines[place] = line.replace(str(rng.choice(words or ["x"])), str(rng.choice(VALUES)), 1)
    return "\n".join(lines)


def broken_bytes(data, rng):
    """Return a file with a few bytes changed, inserted or removed, or its end cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data) + 1))
        what = rng.integers(4)
        if what == 0:
            data = data[:place]
        elif what == 1 and place < len(data):
            data[place] ^= 1 << int(rng.integers(8))
        elif what == 2:
            data[place:place] = BYTES[rng.integers(len(BYTES))]
        else:
            data[place : place + int(rng.integers(1, 20))] = b""
    return bytes(data)


def failures(count, make, attempt):
    """Count how often an attempt is refused; anything but a ValueError fails the test and shows the file."""
    refused = 0
    for seed in range(count):
        content = make(np.random.default_rng(seed))
        try:
            attempt(content)
        except ValueError as error:
            refused += bool(str(error).strip())
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}\n{content!r}") from error
    return refused


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.filterwarnings("ignore:.*has no effect")
def test_broken_declarations_are_refused_or_mean_a_model(count, tmp_path):
    path = tmp_path / "mine.yaml"

    def attempt(text):
        path.write_text(text)
        preset_of(read_schema_file(path)).build("meta")

    attempt(DECLARATION)
    assert failures(count, lambda rng: broken_text(DECLARATION, rng), attempt) > count // 2


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_broken_tables_are_refused_or_read(count, suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    rows = [
        {
            "height": float(rng.normal()),
            "colour": str(rng.choice(["red", "blue"])),
            "when": f"2026-01-{number + 1:02d}",
            "curve": rng.normal(size=(3, 2)).round(2).tolist(),
            "points": rng.normal(size=(2, 3)).round(2).tolist(),
            "note": "some words",
            "kind": str(number % 2),
        }
        for number in range(12)
    ]
    # Write the table, and read damaged copies of it.
    path = tmp_path / f"mine{suffix}"
    write_rows(path, rows)
    whole = path.read_bytes()
    fields = {"height": NumberField(), "colour": CategoryField(channels=3), "when": DateField()}
    inputs = {
        "row": Records(fields, key="*"),
        "curve": Series(channels=2),
        "points": PointSet(axes=2),
        "note": Text(length=64),
    }
    schema = Schema(inputs, {"kind": Label(), "height": Numbers()})

    def attempt(content):
        path.write_bytes(content)
        parts = read_parts(Table(str(path), max_bad_rows=4), schema)
        parts.schema.collate([parts.schema.preprocess(row, rng, training=True) for row in parts.training])

    attempt(whole)
    assert failures(count, lambda rng: broken_bytes(whole, rng), attempt) > 0


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_broken_arrays_are_refused_or_read(count, suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    arrays = {"x": np.arange(12.0).reshape(6, 2), "y": np.arange(6)}
    np.savez(path, **arrays) if suffix == ".npz" else save_file(arrays, path)
    whole = path.read_bytes()

    def attempt(content):
        path.write_bytes(content)
        read_arrays(str(path))

    attempt(whole)
    assert failures(count, lambda rng: broken_bytes(whole, rng), attempt) > count // 3


def test_the_command_says_one_line(command, tmp_path):
    """A few files of each type through the whole command: exit code 2, one line, nothing written."""
    declaration, table = tmp_path / "mine.yaml", tmp_path / "mine.jsonl"
    wrong = DECLARATION.replace("kind: series", "kind: serie")
    for seed in range(6):
        declaration.write_text(broken_text(wrong, np.random.default_rng(seed)))
        table.write_text(json.dumps({"a": 1})[: seed + 1] + "\n")
        for arguments in (
            ("schema", "check", declaration),
            ("train", declaration, "--data", table, "--out", tmp_path / "run"),
            ("schema", "propose", table),
        ):
            code, out, err = command(*arguments)
            assert (code, out) == (2, "")
            assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


GOOD_LINE = '{"step": 1, "losses": {"y": 0.5}, "rate": 0.1}\n'


def read_data(run):
    return kept_data(run, {"training": {"records": 3}}, 1, accept=True)


@pytest.mark.parametrize(
    ("read", "file", "text", "message"),
    [
        (read_log, LOG, "3\n", ":1: Input should be a valid dictionary, not 3"),
        (read_log, LOG, "[]\n", ":1: Input should be a valid dictionary"),
        (read_log, LOG, "{}\n", ":1: step: Field required"),
        (read_log, LOG, '{"step": null, "losses": {}}\n', ":1: step: Input should be a valid integer, not None"),
        (read_log, LOG, '{"step": -1, "losses": {}}\n', ":1: step: Input should be greater"),
        (read_log, LOG, '{"step": true, "losses": {}}\n', ":1: step: Input should be a valid integer, not True"),
        (read_log, LOG, '{"step": 9223372036854775808, "losses": {}}\n', ":1: step: Input should be less"),
        (read_log, LOG, GOOD_LINE + '{"step": 2}\n', ":2: losses: Field required"),
        (
            read_log,
            LOG,
            GOOD_LINE + '{"step": 2, "losses": {"y": "x"}}\n',
            ":2: losses.y: Input should be a valid number",
        ),
        (read_log, LOG, GOOD_LINE + '{"step": 2, "lo\n' + GOOD_LINE, ":2: not JSON"),
        (read_log, LOG, GOOD_LINE + "\n" + GOOD_LINE, ":2: not JSON"),
        (read_log, LOG, GOOD_LINE + "\udcff\n" + GOOD_LINE, ":2: not JSON"),
        (read_log, LOG, " " * (LONGEST_LOG_LINE + 1), ":1: a line of more than"),
        (read_scores, "metrics.json", "null", ": Input should be a valid dictionary, not None"),
        (read_scores, "metrics.json", '{"held out": 3}', ": held out: Input should be a valid dictionary, not 3"),
        (read_scores, "metrics.json", '{"held out": {"b": 3}}', ": held out.b: Input should be a valid dictionary"),
        (read_scores, "metrics.json", '{"a": {"b": {"c": "x"}}}', ": a.b.c: Input should be a valid number, not 'x'"),
        (read_state, "state.json", "[]", ": Input should be a valid dictionary"),
        (read_state, "state.json", '{"seconds": 1, "scale": {}}', ": step: Field required"),
        (read_state, "state.json", '{"step": 1, "seconds": null, "scale": {}}', ": seconds: Input should be a valid"),
        (read_state, "state.json", '{"step": 1, "seconds": Infinity, "scale": {}}', ": seconds: Input should be a fin"),
        (read_state, "state.json", '{"step": 1, "seconds": 1, "scale": {"a": "x"}}', ": scale.a"),
        (read_data, "data.json", '{"parts": {}, "accepted": 1}', ": accepted: Input should be a valid list, not 1"),
        (read_data, "data.json", '{"parts": {"training": {"records": null}}}', ": parts.training.records"),
    ],
)
def test_a_broken_file_of_a_run_names_its_line_and_place(tmp_path, read, file, text, message):
    (tmp_path / file).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / file}{message}")) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_a_log_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / LOG).open("w") as file:
        file.write(GOOD_LINE)
        file.truncate(MOST_LOG_BYTES + 1)
    with pytest.raises(ValueError, match=r"log.jsonl: .* bytes, more than the .* that are read"):
        read_log(tmp_path)


def test_a_score_that_is_not_there_is_told(tmp_path):
    (tmp_path / "metrics.json").write_text('{"held out": {}}')
    with pytest.raises(ValueError, match=f"metrics.json: has no score .* of {EVERYTHING}: evaluate the run"):
        score_of(tmp_path, EVERYTHING, "label", "accuracy")


@pytest.mark.parametrize(("file", "text"), [(LOG, "{}\n"), ("metrics.json", "{}"), ("metrics.json", '{"a": 1}')])
def test_a_report_of_a_broken_run_is_one_line_or_a_report(command, tmp_path, monkeypatch, file, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,y\n" + "1,x\n2,z\n" * 9)
    sizes = "latents: {num_latents: 3, channels: 8}, processor: {num_layers: 1, num_heads: 1}"
    (tmp_path / "r.yaml").write_text(
        "data: {kind: table, file: t.csv}\ninputs: {a: {kind: numbers}}\noutputs: {y: {kind: label}}\n"
        f"config: {{{sizes}}}\ntraining: {{num_steps: 1, batch_size: 4, log_every: 1, accelerator: cpu}}\n"
    )
    assert command("train", "r.yaml", "--out", "run")[0] == 0
    (tmp_path / "run" / file).write_text(text)
    for verb in (("report", "run"), ("convert", "run", "model")):
        code, _, err = command(*verb)
        assert code in (0, 2)
        assert len(err.splitlines()) == 1 or code == 0
        assert "Traceback" not in err


WRONG = (
    *(None, "", [], {}, [1], [None], [1, 2, 3, 4, 5], ["x", "x"], [[1]], [{}], [0.5], -1, 0, 1.5, math.inf, math.nan),
    *("x", {"a": 1}, {"kind": "fourier"}, True, 2**70, {1: 2}, "0" * 5000),
)
"""Values, each of which is wrong at most positions of a file."""


def places_of(plain, at=()):
    """Yield the path of each value of a parsed file."""
    yield at
    for key in plain if isinstance(plain, dict) else range(len(plain)) if isinstance(plain, list) else ():
        yield from places_of(plain[key], (*at, key))


def changed_at(plain, place, value):
    """Return a parsed file with another value at a path."""
    if not place:
        return value
    changed = copy.copy(plain)
    changed[place[0]] = changed_at(plain[place[0]], place[1:], value)
    return changed


def other_inputs(spec):
    """Return the inputs that a schema of this spec needs as well."""
    return {"frames": FramePair(size=(5, 7))} if getattr(spec, "of", None) == "frames" else {"x": Numbers(count=2)}


@pytest.mark.parametrize("kind", MODALITIES)
@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_wrong_value_at_any_place_of_a_schema_is_one_line(kind, side):
    spec, _ = kind.example(np.random.default_rng(0))
    sides = {"inputs": other_inputs(spec), "outputs": {"x": Numbers(count=2)}}
    plain = to_plain(Schema(**{**sides, side: {"it": spec, **sides[side]}}))
    refused = 0
    for place, value in itertools.product(places_of(plain[side]["it"]), WRONG):
        try:
            PerceiverIO(from_plain(Schema, changed_at(plain, (side, "it", *place), value)), SMALL)
        except ValueError as error:
            assert len(str(error).splitlines()) == 1, place  # noqa: PT017
            assert len(str(error)) < 1100, place  # noqa: PT017
            refused += 1
    assert refused > len(WRONG)


CONFIGS = {
    "perceiver": SMALL,
    "repeated": Config(
        LatentsConfig(4, 8),
        EncoderConfig(num_reads=2, channel_alignment="pad"),
        ProcessorConfig(num_layers=1, num_blocks=3, share_blocks="none"),
        DecoderConfig(channel_alignment="pad", kind="average"),
    ),
    "transformer": Config(LatentsConfig(channels=8), processor=ProcessorConfig(num_layers=1), trunk="transformer"),
}


@pytest.mark.filterwarnings("ignore:trunk. transformer reads no latents")
@pytest.mark.parametrize("name", few(CONFIGS, ["perceiver"]))
def test_a_wrong_value_at_any_place_of_a_config_is_one_line(name):
    """A config that is accepted gives a model that runs, here on the meta device."""
    schema, plain = Schema({"x": Numbers(count=2)}, {"y": Label(classes=3)}), to_plain(CONFIGS[name])
    refused = 0
    for place, value in itertools.product(places_of(plain), WRONG):
        try:
            changed = from_plain(Config, changed_at(plain, place, value))
            with torch.device("meta"):
                assert PerceiverIO(schema, changed)(torch.zeros(2, 2))["y"].shape == (2, 3)
        except ValueError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, place  # noqa: PT017
    assert refused > len(WRONG)
