"""Tables: every format gives the same records, nothing is dropped silently, splits keep groups and order."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from held_out import accuracy_of
from perceivers.data import Table
from perceivers.data.arrays import Arrays
from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import write_rows
from perceivers.data.validation import read_parts
from perceivers.media.audio_files import write_audio
from perceivers.media.image_files import write_image
from perceivers.modalities import Audio, Image, Label, Labels, Numbers, PointSet, Records, Series, Text
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.table_cells import Files, Row, numbers, plain
from perceivers.schema import Schema

HERE = Files(Path("."))

SCHEMA = """\
inputs:
  row:
    kind: records
    key: "*"
    tokens: field
    max_records: 1
    fields: {height: {kind: number}, colour: {kind: category}}
  curve: {kind: series, size: 5, channels: 1}
  note: {kind: text, length: 31, channels: 16}
outputs:
  kind: {kind: label, query_channels: 16}
  weight: {kind: numbers, query_channels: 16}
config:
  latents: {num_latents: 5, channels: 16}
  processor: {num_layers: 1, num_heads: 2}
training: {num_steps: 3, batch_size: 8, log_every: 1, schedule: {kind: constant}}
"""


def rows_of(count=23, seed=0):
    """Return rows with a cell for every modality, some of them missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        rows.append(
            {
                "height": None if number % 7 == 3 else round(float(rng.normal()), 3),
                "colour": None if number % 11 == 5 else str(rng.choice(["red", "blue"])),
                "curve": None if number % 5 == 4 else rng.normal(size=3 + number % 3).round(3).tolist(),
                "note": f'a "quoted" note, number {number}' if number % 3 else None,
                "kind": ["cat", "dog", "eel"][number % 3],
                "weight": number / 2,
                "who": f"person {number % 6}",
                "day": f"2026-01-{number + 1:02d}",
            }
        )
    return rows


@pytest.fixture(params=[".csv", ".tsv", ".jsonl", ".parquet"])
def suffix(request):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return request.param


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mine.csv"
    write_rows(path, rows_of())
    return path


def values_of(path, schema):
    return [schema.read(row) for row in read_rows(path)]


def points(coordinates, values):
    return {"coordinates": coordinates, "values": values}


def small_schema():
    return Schema(
        {"height": Numbers(), "curve": Series(channels=1), "note": Text(length=41)},
        {"kind": Label(), "weight": Numbers()},
    )


def test_every_format_says_the_same(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    assert write_rows(path, rows_of()) == 23
    found = values_of(path, small_schema())
    for row, values in zip(rows_of(), found, strict=True):
        assert values["inputs"]["note"] == row["note"]
        assert values["inputs"]["height"] == (None if row["height"] is None else [row["height"]])
        assert values["targets"] == {"kind": row["kind"], "weight": [row["weight"]]}
        if row["curve"] is None:
            assert values["inputs"]["curve"] is None
        else:
            np.testing.assert_array_equal(values["inputs"]["curve"], np.float32(row["curve"]))


def test_numbers_are_classes_by_name_in_every_format(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    write_rows(path, [{"x": 0.5, "code": code} for code in (7, 11, 7, 1900)])
    data = Table(str(path), held_out_fraction=0.25)
    assert set(read_parts(data, Schema({"x": Numbers()}, {"code": Label()})).schema.outputs["code"].classes) <= {
        "7",
        "11",
        "1900",
    }


def test_whole_numbers_are_the_same_classes_as_floats(tmp_path):
    """A column of whole numbers with a gap becomes floats, as pandas writes it."""
    write_rows(tmp_path / "one.jsonl", [{"code": code, "x": {"code": code}} for code in (7, 11)])
    write_rows(tmp_path / "other.jsonl", [{"code": code, "x": {"code": code}} for code in (11.0, 7.0, None)])
    schema = Schema({"x": Records({"code": CategoryField()})}, {"code": Label()})
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("one", "other")]
    one, other = (read_parts(Table(path, held_out_file=path), schema) for path in paths)
    assert other.schema == one.schema
    assert one.schema.outputs["code"].classes == ("11", "7")
    # A model of an earlier version, which named them as floats.
    rng = np.random.default_rng(0)
    assert Label(classes=("7.0", "11.0")).preprocess("11", rng, False) == 1
    assert CategoryField(classes=("7.0", "11.0")).preprocess(["11", 11.0, "12", "x"]).tolist() == [1, 1, -1, -1]


def test_a_missing_value_is_none_of_the_classes_whatever_their_names():
    found = CategoryField(classes=("None", "nan", "a")).preprocess([None, float("nan"), "None", "nan", "a"])
    assert found.tolist() == [-1, -1, 0, 1, 2]


def test_a_category_means_the_same_in_training_and_later():
    row = Row("here", {"n": "7", "c": 7}, HERE)
    spec = Records({"n": NumberField(), "c": CategoryField(classes=("7", "11"))}, key="*")
    schema = Schema({"row": spec}, {"y": Label(classes=2)})
    assert schema.read(row)["inputs"]["row"] == {"n": [7.0], "c": ["7"]}
    prepared = schema.preprocess(row, np.random.default_rng(0), training=False)
    assert prepared["inputs"]["row"]["c"].tolist() == [0]


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        (Label(), 3, "3"),
        (Label(), True, "True"),
        (Label(), 3.0, "3"),
        (Label(), "3.0", "3.0"),
        (Labels(), [3.0, 0.5], ["3", "0.5"]),
        (Labels(), '["a", "b"]', ["a", "b"]),
        (Labels(), ["a", 2], ["a", "2"]),
        (Labels(), "a", ["a"]),
        (Numbers(), "1e3", [1000.0]),
        (Numbers(count=2), "[1, 2.5]", [1.0, 2.5]),
        (Text(), 12, "12"),
        (Series(channels=2), "[[1, 2], [3, null]]", [[1, 2], [3, np.nan]]),
        (PointSet(axes=1, channels=2), "[[1, 2, 3], [4, 5, 6]]", points([[1], [4]], [[2, 3], [5, 6]])),
        (PointSet(axes=2, channels=1), [[1, 2]], points([[1, 2]], [[np.nan]])),
        (PointSet(axes=2, channels=1), [], points(np.zeros((0, 2)), np.zeros((0, 1)))),
    ],
)
def test_cells_become_values(kind, cell, value):
    np.testing.assert_equal(kind.read(cell, HERE), value)


@pytest.mark.parametrize(
    ("kind", "cell", "message"),
    [
        (Numbers(), "much", "not a number: 'much'"),
        (Series(), "[1, [2]]", "not numbers in lists of equal length"),
        (Series(), "[1, 2", "not JSON"),
        (Series(), "curve.txt", "curve.txt"),
        (PointSet(axes=2), "[[1, 2], [3]]", "not numbers"),
        (Records({"a": NumberField()}), '[{"a": "x"}]', "field 'a': not a number: 'x'"),
        (Records({"a": NumberField()}), "[3]", "a record must be a dictionary"),
    ],
)
def test_wrong_cells_are_named(kind, cell, message, tmp_path):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        kind.read(cell, Files(tmp_path))


def test_plain_leaves_text_alone():
    assert plain("text") == "text"
    assert plain(" [1, 2]") == [1, 2]
    assert plain(3) == 3
    with pytest.raises(ValueError, match="not JSON"):
        plain("[" * 100_000)
    with pytest.raises(ValueError, match="not numbers"):
        numbers("much")


def test_pictures_and_sounds_are_read_beside_the_table(tmp_path):
    rng = np.random.default_rng(0)
    for number, name in enumerate(["a/one.png", "b/two.png"]):
        write_image(tmp_path / name, np.full((12 + 2 * number, 10, 3), 50 * number, np.uint8))
    write_audio(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, (1003, 2)).astype(np.float32), 8000)
    np.save(tmp_path / "curve.npy", np.ones((7, 3)))
    files = Files(tmp_path)
    assert Image(size=5).read("a/one.png", files).shape == (5, 5, 3)
    grey = Image(size=(7, 6), channels=1).read("b/two.png", files)
    np.testing.assert_allclose(grey, np.full((7, 6, 1), 50.0))
    assert Audio(size=2000, patch=20).read("a.wav", files).shape == (1020, 1)
    assert Audio(size=2000, patch=20, rate=4000).read("a.wav", files).shape == (520, 1)
    assert Audio(size=40, patch=20, channels=2).read("a.wav", files).shape == (40, 2)
    assert Series(channels=3).read("curve.npy", files).shape == (7, 3)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/hostname", "link.png", "deep/../../secret.png"])
def test_paths_out_of_the_folder_are_refused(tmp_path, path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_image(tmp_path / "secret.png", np.zeros((3, 3, 3), np.uint8))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match="outside of the table's folder"):
        Image().read(path, Files(folder))
    assert Image(size=3).read("../secret.png", Files(folder, outside=True)).shape == (3, 3, 3)


def test_a_folder_is_a_table_of_files_and_classes(tmp_path):
    for name in ("cat/2.png", "cat/1.png", "dog/3.png", ".hidden/4.png"):
        write_image(tmp_path / name, np.zeros((3, 3, 3), np.uint8))
    assert [dict(row) for row in read_rows(tmp_path)] == [
        {"file": "cat/1.png", "label": "cat"},
        {"file": "cat/2.png", "label": "cat"},
        {"file": "dog/3.png", "label": "dog"},
    ]


def test_rows_that_cannot_be_read_say_where_and_why(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_bytes(b'x,y\n1,a\n2\n3,b,c\n4,\xff\n"5",d\n\n6,"e"f\n7,g\n')
    rows = list(read_rows(path))
    assert [(row.place.rpartition(":")[2], row.error) for row in rows if row.error] == [
        ("3", "1 cells, expected 2"),
        ("4", "3 cells, expected 2"),
        ("5", "not UTF-8"),
        ("8", "',' expected after '\"'"),
    ]
    assert [dict(row) for row in rows if not row.error] == [
        {"x": "1", "y": "a"},
        {"x": "5", "y": "d"},
        {"x": "7", "y": "g"},
    ]


def test_an_open_quote_is_an_error_of_the_whole_file(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('x,y\n1,a\n2,"b\n3,c\n4,d\n')
    with pytest.raises(ValueError, match=r"mine.csv:3: a quote that is opened here is never closed"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n", "not a line of column names"),
        ("a.csv", b"x,x\n", "column name 'x' is there twice"),
        ("a.csv", b"x,\n", "column name '' is empty"),
        ("a.xlsx", b"x", "a table is a file .csv, .tsv, .parquet, .jsonl"),
        ("a.parquet", b"PAR1 no", "not a whole Parquet file"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, message):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_rows(path))


def test_unreadable_rows_are_counted_and_named(tmp_path):
    rows = rows_of()
    rows[4]["weight"] = "heavy"
    rows[9]["curve"] = "[1, "
    path = tmp_path / "mine.csv"
    write_rows(path, rows)
    with pytest.raises(ValueError, match=r"mine.csv:\d+: .* \(2 rows cannot be read; max_bad_rows = 1\)"):
        read_parts(Table(str(path), max_bad_rows=1), small_schema())
    parts = read_parts(Table(str(path), max_bad_rows=2), small_schema())
    assert len(parts.training) + len(parts.held_out) == 21
    assert sorted(row.place.rpartition(":")[2] for row in parts.unreadable) == ["11", "6"]


def test_a_class_that_only_held_out_rows_have_is_a_row_that_cannot_be_used(tmp_path):
    rows = [{"x": number, "y": "new" if number == 9 else "old"} for number in range(10)]
    path = tmp_path / "mine.csv"
    write_rows(path, rows)
    data = Table(str(path), order="x", max_bad_rows=1)
    parts = read_parts(data, Schema({"x": Numbers()}, {"y": Label()}))
    assert [row.reason for row in parts.unreadable] == ["y: class 'new' is not one of old"]


def test_a_wrong_column_gets_the_nearest_name(table):
    for inputs, message in (
        ({"hight": Numbers()}, "unknown column .of hight. 'hight'.*did you mean 'height'"),
        ({"row": Records({"heigt": NumberField()}, key="*")}, "'heigt'.*did you mean 'height'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_parts(Table(str(table)), Schema(inputs, {"kind": Label()}))


def test_random_parts_are_disjoint_and_whole(table):
    data = Table(str(table))
    places = [{row.place for row in part} for part in (data.training(), data.held_out())]
    assert [len(part) for part in places] == [18, 5]
    assert not places[0] & places[1]
    again, other = Table(str(table)), Table(str(table), seed=1)
    assert {row.place for row in again.held_out()} == places[1] != {row.place for row in other.held_out()}


def test_stratified_parts_have_the_same_frequencies(tmp_path):
    path = tmp_path / "mine.csv"
    write_rows(path, [{"y": "rare" if number % 10 == 0 else "often"} for number in range(50)] + [{"y": "once"}])
    held_out = [row["y"] for row in Table(str(path), stratify="y").held_out()]
    assert sorted(held_out) == ["often"] * 9 + ["rare"]


def test_groups_stay_together(table):
    data = Table(str(table), group="who", held_out_fraction=0.3)
    training, held_out = ({row["who"] for row in part} for part in (data.training(), data.held_out()))
    assert not training & held_out
    assert 7 <= len(data.held_out()) <= 11


def test_the_last_rows_in_time_are_held_out(tmp_path):
    rows = rows_of()
    path = tmp_path / "mine.csv"
    write_rows(path, [rows[number] for number in np.random.default_rng(0).permutation(23)])
    data = Table(str(path), order="day")
    assert max(row["day"] for row in data.training()) < min(row["day"] for row in data.held_out())
    assert max(float(row["weight"]) for row in Table(str(path), order="weight").training()) == 8.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stratify": "kind", "group": "who"}, "stratify and group exclude one another"),
        ({"order": "day", "held_out_file": "x"}, "order has no effect with held_out_file"),
        ({"held_out_fraction": 1.0}, "must be between 0 and 1"),
    ],
)
def test_wrong_splits_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Table("x.csv", **settings)


def test_a_split_by_a_column_that_is_not_there(table):
    with pytest.raises(ValueError, match="no row has a column 'patient'"):
        Table(str(table), group="patient").training()


def test_unknown_values_in_series_and_points_are_masked_not_learned():
    series = Series(channels=1).fit([np.array([1.0, np.nan, 3.0])])
    assert (series.mean, series.std) == ((2.0,), (1.0,))
    batch = series.collate([series.preprocess([1.0, np.nan, 3.0], np.random.default_rng(0), training=False)])
    assert batch["mask"].tolist() == [[True, False, True]]
    half_known = points(np.array([[0.0], [1.0]]), np.array([[np.nan], [4.0]]))
    spec, rng = PointSet(axes=1).fit([half_known]), np.random.default_rng(0)
    assert spec.mean == (4.0,)
    target = spec.collate([spec.preprocess(half_known, rng, training=False)])
    prediction = torch.tensor([[[9.0], [5.0]]], requires_grad=True)
    loss = spec.loss(prediction, target)
    loss.backward()
    assert loss == 1.0
    assert prediction.grad.flatten().tolist() == [0.0, 2.0]


def test_series_come_in_whole_patches_and_are_written_at_one_length():
    spec, rng = Series(size=9, channels=1, patch=3), np.random.default_rng(0)
    batch = spec.collate([spec.preprocess(np.ones(n), rng, training=False) for n in (4, 7)])
    assert batch["values"].shape == (2, 9, 1)
    assert batch["mask"].sum(1).tolist() == [4, 7]
    target = spec.collate([spec.target(np.ones(n), rng, {}, training=True) for n in (4, 7)])
    assert spec.loss(torch.zeros(2, 9, 1), target) == 1.0
    with pytest.raises(ValueError, match="10 steps are more than size = 9"):
        spec.target(np.ones(10), rng, {}, training=False)


def test_points_may_be_arrays():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 5, 3)).astype(np.float32)
    halves = [{"coordinates": value[:, :2], "values": value[:, 2:]} for value in values]
    assert PointSet().fit(values) == PointSet().fit(halves)
    whole, half = (PointSet().preprocess(one, rng, training=False) for one in (values[0], halves[0]))
    assert all((whole[name] == half[name]).all() for name in half)
    with pytest.raises(ValueError, match=r"points of shape \(5,\)"):
        PointSet().preprocess(np.ones(5), rng, training=False)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ('{"values": [[1.0]]}', "points without coordinates"),
        ('{"coordinates": null, "values": [[1.0]]}', r"coordinates of shape \(\), expected \(1, 1\)"),
        ('{"coordinates": [[1.0]], "values": [1.0]}', r"values of shape \(1,\), expected \(1, 1\)"),
    ],
)
def test_a_cell_of_points_that_lacks_something_is_one_line(tmp_path, cell, message):
    path = tmp_path / "own.jsonl"
    write_rows(path, [{"points": cell, "y": 1.0}])
    (row,) = read_rows(path)
    schema = Schema({"points": PointSet(axes=1, channels=1)}, {"y": Numbers()})
    with pytest.raises(ValueError, match=f"^points: {message}"):
        schema.preprocess(row, np.random.default_rng(0), training=False)


def test_arrays_are_read_from_safetensors_and_split(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.arange(14.0).reshape(7, 2), "y": np.arange(7)}, tmp_path / "mine.safetensors")
    data = Arrays(str(tmp_path / "mine.safetensors"), held_out_fraction=0.3)
    assert sorted(record["y"] for part in (data.training(), data.held_out()) for record in part) == list(range(7))
    assert len(data.held_out()) == 2
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"bad.safetensors: not a .safetensors file"):
        Arrays(str(tmp_path / "bad.safetensors")).training()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run of SCHEMA on a table with two bad rows, made by the command's functions."""
    from perceivers.runs.evaluate import evaluate_run
    from perceivers.runs.run import Run
    from perceivers.runs.schema_file import read_schema_file
    from perceivers.runs.train import run_recipe

    folder = tmp_path_factory.mktemp("own")
    rows = rows_of(41)
    rows[7]["weight"] = rows[19]["weight"] = "heavy"
    write_rows(folder / "mine.csv", rows)
    text = SCHEMA + "data: {kind: table, max_bad_rows: 2, group: who}\n"
    (folder / "mine.yaml").write_text(text)
    recipe = read_schema_file(folder / "mine.yaml", str(folder / "mine.csv"))
    run_recipe(recipe, folder / "run")
    return folder, evaluate_run(Run(folder / "run"))


def test_training_on_a_table_leaves_a_run_that_lists_its_bad_rows(run):
    folder, scores = run
    assert scores["held out"]["weight"]["mae"] > 0
    assert scores["held out"]["kind"]["accuracy"] == pytest.approx(accuracy_of(folder / "run", "kind"))
    listed = [json.loads(line) for line in (folder / "run" / "unreadable.jsonl").read_text().splitlines()]
    assert sorted(row["place"].rpartition(":")[2] for row in listed) == ["21", "9"]
    assert all(row["reason"] == "weight: not a number: 'heavy'" for row in listed)
    assert "max_bad_rows: 2" in (folder / "run" / "recipe.yaml").read_text()


@pytest.mark.parametrize("out", ["out.csv", "out.jsonl", "out.parquet"])
def test_predictions_do_not_depend_on_the_batch(command, run, tmp_path, out):
    if out.endswith("parquet"):
        pytest.importorskip("pyarrow")
    folder, _ = run
    found = []
    for size in (1, 7, 100):
        path = tmp_path / str(size) / out
        arguments = ("-o", path, "--batch-size", size, "--keep", "day", "kind")
        code, _, _ = command("predict", folder / "run", folder / "mine.csv", *arguments)
        assert code == 0
        found.append([dict(row) for row in read_rows(path)])
    assert [row["day"] for row in found[0]] == [row["day"] for row in rows_of(41)]
    assert [row["kind.given"] for row in found[0]] == [row["kind"] for row in rows_of(41)]
    for other in found[1:]:
        assert [row["kind"] for row in other] == [row["kind"] for row in found[0]]
        for column in ("weight", "kind.probability"):
            numbers_of = [[float(row[column]) for row in rows] for rows in (found[0], other)]
            np.testing.assert_allclose(*numbers_of, rtol=1e-4)


def test_rows_that_cannot_be_predicted_keep_their_place(command, run, tmp_path):
    folder, _ = run
    rows = [{**row, "curve": "[1" if number == 2 else row["curve"]} for number, row in enumerate(rows_of(5))]
    write_rows(tmp_path / "new.csv", rows)
    code, _, err = command("predict", folder / "run", tmp_path / "new.csv", "-o", tmp_path / "out.csv")
    assert code == 2
    assert "new.csv:4: curve: not JSON: '[1'" in err
    assert not (tmp_path / "out.csv").exists()
    arguments = ("-o", tmp_path / "out.csv", "--max-bad-rows", 1)
    assert command("predict", folder / "run", tmp_path / "new.csv", *arguments)[0] == 0
    with (tmp_path / "out.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [bool(row["weight"]) for row in found] == [True, True, False, True, True]
    assert "not JSON" in found[2]["unreadable"]


def test_new_data_needs_no_targets_and_may_have_new_categories(command, run, tmp_path):
    folder, _ = run
    rows = [{"height": 1.5, "colour": "green", "curve": None, "note": None} for _ in range(2)]
    write_rows(tmp_path / "new.jsonl", rows)
    assert command("predict", folder / "run", tmp_path / "new.jsonl", "-o", tmp_path / "out.jsonl")[0] == 0
    first, second = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert first == second
    assert set(first) == {"kind", "kind.probability", "weight"}


def test_scores_by_group_add_up(command, run):
    folder, _ = run
    code, out, _ = command("evaluate", folder / "run", "--by", "kind", "--json")
    assert code == 0
    scores = json.loads(out)
    groups = {name: own for name, own in scores.items() if name != "held out"}
    counts = [own[""]["records"] for own in groups.values()]
    right = [own[""]["records"] * own["kind"]["accuracy"] for own in groups.values()]
    assert sum(right) / sum(counts) == pytest.approx(scores["held out"]["kind"]["accuracy"])
    code, _, err = command("evaluate", folder / "run", "--by", "knd")
    assert code == 2
    assert "did you mean 'kind'" in err
