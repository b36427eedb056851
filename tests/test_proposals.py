"""Proposals: the modality chosen for a column, recipes that train unchanged, models from an example."""

import json
import math
import random
from datetime import date, datetime

import numpy as np
import pytest
import torch
import yaml

from perceivers import DateField, Image, Label, Numbers, Records, Series, from_example
from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import write_rows
from perceivers.media.audio_files import write_audio
from perceivers.media.image_files import write_image
from perceivers.modalities.table_cells import Files
from perceivers.runs.infer_schema import proposed_recipe
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.schema.infer import propose
from perceivers.schema.plain_values import from_plain

QUICK = ("--set", "training.num_steps=2", "training.batch_size=5", "training.schedule.warmup_steps=0")


@pytest.mark.parametrize(
    ("values", "target", "spec"),
    [
        (["1.5", "2", None, "-3e2"], False, {"kind": "number"}),
        (["1.5", "2", "-3e2"], True, {"kind": "numbers"}),
        ([1, 0, 1, 1, 0, 1], True, {"kind": "label"}),
        (list(range(0, 300, 3)), True, {"kind": "numbers"}),
        (list(range(5, 40)), False, {}),
        (["red", "blue", "red", "red"], False, {"kind": "category"}),
        (["red", "blue", "red", "red"], True, {"kind": "label"}),
        ([f"id-{n}" for n in range(30)], False, {}),
        (["a small house", "the other one", "nothing at all"], False, {"kind": "text", "length": 16}),
        (["2026-01-02", "2026-01-03T11:00"], False, {"kind": "date"}),
        ([date(2026, 1, 2), datetime(2026, 1, 3)], False, {"kind": "date"}),
        (["[1, 2, 3]", "[4, 5, 6]"], False, {"kind": "numbers", "count": 3}),
        (["[1, 2, 3]", "[4, 5]"], False, {"kind": "series", "size": 3, "channels": 1}),
        ([[[1, 2], [3, 4], [5, 6]], [[1, 2]]], False, {"kind": "series", "size": 3, "channels": 2}),
        ([["a"], ["b", "a"]], True, {"kind": "labels"}),
        (['[{"x": 1, "y": "a"}]', '[{"x": 2, "y": "a"}]'], False, {"kind": "records"}),
        ([{"coordinates": [[1, 2, 3]], "values": [[1]]}], False, {"kind": "pointset", "axes": 3, "channels": 1}),
        ([None, None], False, {}),
        ([b"bytes"], False, {}),
        (["[not a list", "[nor this", "[nor that"], False, {"kind": "text"}),
        ([np.zeros((7, 5, 3))] * 2, False, {"kind": "image", "size": [7, 5], "channels": 3, "patch": 1}),
        ([np.zeros((2, 96, 64, 3))], False, {"kind": "video", "size": [2, 96, 64], "patch": [1, 4, 4]}),
        ([[1, [2]]], False, {}),
        ([{"coordinates": 1, "values": 2}], False, {}),
        ([{"coordinates": [[1]], "values": [[1]]}, {"coordinates": [[1, 2]], "values": [[1]]}], False, {}),
        (
            [{"coordinates": [], "values": []}, {"coordinates": [[1, 2]], "values": [[1]]}],
            False,
            {"kind": "pointset", "axes": 2, "channels": 1},
        ),
        ([[{"b": 1}], [2]], False, {}),
        ([[{"b": 1}, 3]], False, {}),
        ([{"b": 1}, "x"], False, {}),
        ([{"mask": 1, "b": 1}], False, {"kind": "records", "fields": {"b": {"kind": "number"}}}),
        ([10**400], False, {}),
        ([[10**400]], False, {}),
    ],
)
def test_what_a_column_is_taken_for(values, target, spec):
    found = propose(values, target)
    assert {name: found.spec.get(name) for name in spec} == spec
    assert bool(found.spec) == bool(spec)
    assert found.why


SCALARS = (
    *(None, True, False, 0, 1, -3, 2.5, math.nan, math.inf, 10**400, 2**64, b"x"),
    *("x", "1", "a b", "2026-01-02", "[1, 2]", '{"a": 1}', "\ud800", "", " ", "1e999"),
)


def any_value(rng, depth=0):
    """Return a random nested value of JSON."""
    if depth == 4 or rng.random() < 0.5:
        return rng.choice(SCALARS)
    if rng.random() < 0.5:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    names = rng.choice([["coordinates", "values"], ["a", "b"], ["path", "bytes"], ["mask", "a", "values"], [""]])
    return {name: any_value(rng, depth + 1) for name in names}


def test_any_values_are_proposed_as_what_a_schema_may_hold():
    for seed in range(1000):
        rng = random.Random(seed)
        values = [any_value(rng) for _ in range(rng.randrange(1, 4))]
        for target in (False, True):
            spec = propose(values, target).spec
            if spec.get("kind") in ("number", "category", "date"):
                spec = {"kind": "records", "fields": {"a": spec}}
            if spec:
                from_plain(Schema, {"inputs": {"a": spec}, "outputs": {"b": spec}})


def test_files_are_told_by_their_suffix_and_their_content(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((30, 50, 3), np.uint8))
    write_audio(tmp_path / "a.wav", np.zeros((1000, 1), np.float32), 16000)
    np.save(tmp_path / "a.npy", np.zeros((17, 3)))
    files = Files(tmp_path)
    assert propose(["a.npy"], files=files).spec == {"kind": "series", "size": 17, "channels": 3}
    assert propose(["a.png"], files=files).spec == {"kind": "image", "size": [24, 48], "patch": 8}
    assert propose(["a.wav"], files=files).spec == {"kind": "audio", "size": 512, "patch": 64, "rate": 8000}


def table(tmp_path, count=40):
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": number,
            "size in cm": None if number % 7 == 0 else float(rng.normal()),
            "on": str(rng.choice(["yes", "no"])),
            "when": f"2026-02-{1 + number % 28:02d}",
            "curve": rng.normal(size=3 + number % 2).tolist(),
            "curve!": "a note # with: signs" if number % 2 else "another 'note'",
            "label": ["x", "y"][number % 2],
            "price": float(number) ** 1.5,
        }
        for number in range(count)
    ]
    write_rows(tmp_path / "mine.csv", rows)
    return tmp_path / "mine.csv"


def test_a_proposed_recipe_says_what_was_seen_and_trains_as_it_is(command, tmp_path):
    path = table(tmp_path)
    code, text, _ = command("schema", "propose", path, "--predict", "label", "price")
    assert code == 0
    plain = yaml.safe_load(text)
    assert plain["data"] == {"kind": "table", "file": str(path), "stratify": "label"}
    assert plain["inputs"]["row"]["fields"] == {
        "size in cm": {"kind": "number"},
        "on": {"kind": "category"},
        "when": {"kind": "date"},
        "curve!": {"kind": "category"},
    }
    assert plain["inputs"]["curve"]["kind"] == "series"
    assert plain["outputs"] == {"label": {"kind": "label"}, "price": {"kind": "numbers"}}
    assert "# id is left out: numbers the rows: an identifier?" in text
    assert "6 missing" in text
    (tmp_path / "mine.yaml").write_text(text)
    code, out, err = command("train", tmp_path / "mine.yaml", "--out", tmp_path / "run", *QUICK, "--json")
    assert code == 0, err
    assert set(json.loads(out)["held out"]) == {"label", "price"}
    assert command("predict", tmp_path / "run", path, "-o", tmp_path / "out.csv")[0] == 0
    predicted = [dict(row) for row in read_rows(tmp_path / "out.csv")]
    assert len(predicted) == 40
    assert all(row["label"] in ("x", "y") and float(row["price"]) for row in predicted)


def test_a_folder_of_pictures_is_proposed_by_its_classes(tmp_path):
    for name in ("cat/1.png", "dog/2.png", "cat/3.png"):
        write_image(tmp_path / name, np.zeros((16, 16, 3), np.uint8))
    plain = yaml.safe_load(proposed_recipe(str(tmp_path)))
    assert plain["inputs"] == {"file": {"kind": "image", "size": [16, 16], "patch": 4}}
    assert plain["outputs"] == {"label": {"kind": "label"}}


def test_arrays_are_proposed_by_their_shapes(tmp_path):
    np.savez(tmp_path / "mine.npz", x=np.zeros((9, 20, 2)), y=np.arange(9) % 3)
    plain = yaml.safe_load(proposed_recipe(str(tmp_path / "mine.npz")))
    assert plain["inputs"] == {"x": {"kind": "series", "size": 20, "channels": 2}}
    assert plain["data"]["training_file"].endswith("mine.npz")
    sides = {side: plain.pop(side) for side in ("inputs", "outputs")}
    assert from_plain(Recipe, {**plain, "schema": sides}).schema.outputs["y"] == Label()


@pytest.mark.parametrize(
    ("rows", "predict", "message"),
    [
        ([{"a": 1, "b": 2}], ["c"], "unknown column 'c'; there are a, b"),
        ([{"a": 1}], ["a"], "no column is left to predict a from"),
        ([{"a": "2026-01-01", "b": 1.5}], ["a"], "column 'a' cannot be predicted"),
        ([{"a": None, "b": 1.5}], ["a"], "column 'a' cannot be predicted: empty"),
    ],
)
def test_what_cannot_be_proposed_is_said(command, tmp_path, rows, predict, message):
    write_rows(tmp_path / "mine.jsonl", rows)
    code, out, err = command("schema", "propose", tmp_path / "mine.jsonl", "--predict", *predict)
    assert (code, out) == (2, "")
    assert message in err


def test_a_model_from_an_example():
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.normal(size=(13, 6, 4, 1)), dtype=torch.float32)
    inputs = {"image": images, "curve": rng.normal(size=(13, 11, 2)), "colour": ["red", "blue"] * 6 + ["red"]}
    targets = {"kind": np.arange(13) % 3, "speed": rng.normal(size=13), "image": images}
    model = from_example(inputs, targets)
    schema = model.schema
    assert isinstance(schema.inputs["image"], Image)
    assert schema.inputs["image"].size == (6, 4)
    assert schema.inputs["curve"].mean is not None
    assert isinstance(schema.inputs["curve"], Series)
    assert schema.inputs["colour"] == Label(classes=("blue", "red"))
    assert schema.outputs["kind"] == Label(classes=3)
    assert isinstance(schema.outputs["speed"], Numbers)
    outputs = model({"image": images, "colour": torch.zeros(13, dtype=torch.long)})
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "kind": (13, 3),
        "speed": (13, 1),
        "image": (13, 6, 4, 1),
    }


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ({"x": [1.0, 2.0]}, {"y": [1.0]}, "the same number of values for each name, found {'x': 2, 'y': 1}"),
        ({"x": [1.0, 2.0]}, {"x": [1.0, 3.0]}, "'x' is an input and a target with different values"),
        ({"x": [None, None]}, {"y": [1.0, 2.5]}, "x: no modality suits these values: empty"),
    ],
)
def test_examples_that_say_too_little(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        from_example(inputs, targets)


def test_dates_are_days_and_their_cycles():
    spec = DateField()
    assert spec.read("2000-01-02") == 1.0
    assert spec.read("2000-01-01T12:00+12:00") == 0.0
    assert spec.read(date(2000, 2, 1)) == 31.0
    assert spec.read(2.5) == 2.5
    assert spec.show(torch.tensor(1.25)) == "2000-01-02T06:00:00"
    assert spec.show(torch.tensor(float("nan"))) == "?"
    with pytest.raises(ValueError, match="not a date as in 2026-11-22"):
        spec.read("soon")
    fitted = spec.fit(["2000-01-01", "2000-01-03"])
    assert (fitted.mean, fitted.std) == (1.0, 1.0)
    values = torch.from_numpy(fitted.preprocess(["2000-01-08T06:00", None]))[None]
    known, unknown = fitted.build_encoding()(values)[0]
    year = 2 * np.pi * 7.25 / 365.2425
    week = 2 * np.pi * 0.25 / 7
    expected = [6.25, 1, np.sin(year), np.cos(year), np.sin(week), np.cos(week), 1, 0]
    torch.testing.assert_close(known, torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5)
    assert unknown.tolist() == [0.0] * 8


def test_dates_survive_files():
    from perceivers.schema import Schema
    from perceivers.schema.plain_values import to_plain

    schema = Schema({"row": Records({"when": DateField(mean=1.0, std=2.0)}, key="*")}, {"y": Label(classes=2)})
    assert from_plain(Schema, to_plain(schema)) == schema
