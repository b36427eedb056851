"""Shards: every record is loaded alone and whole, once per epoch over processes and workers, also after resuming."""

import io
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
import pytest
import yaml

from held_out import accuracy_of
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.formats import webdataset
from perceivers.data.shards import Shards, open_shards
from perceivers.data.validation import read_held_out, read_parts
from perceivers.media.image_files import write_image
from perceivers.modalities import Image, Label, Numbers, Series
from perceivers.modalities.table_cells import WHOLE_ROW
from perceivers.schema import Schema
from perceivers.training.checkpoints import checkpoints
from perceivers.training.logging import read_log
from perceivers.training.loop import split
from perceivers.training.sampler import WINDOW, BatchOrder, training_batches
from perceivers.training.training_config import TrainingConfig
from small_run import trained, weights_of, without_time
from test_weights import CALM

SCHEMA = Schema(
    {"curve": Series(key="npy", size=5, channels=1), "height": Numbers()}, {"kind": Label(key="cls", query_channels=5)}
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def content_of(number):
    """Return the members of a record: a curve of varying length, its class, a JSON object."""
    curve = io.BytesIO()
    np.save(curve, np.linspace(0, number, 3 + number % 3))
    described = {"height": number / 2, "note": "ü" * number}
    return {"npy": curve.getvalue(), "cls": f"{number % 3}\n".encode(), "json": json.dumps(described).encode()}


def write_tar(path, numbers, name="record-{:04d}", kind=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=kind) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number in numbers:
            for suffix, data in content_of(number).items():
                member = tarfile.TarInfo(f"folder/{name.format(number)}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def tars(tmp_path):
    """Write 31 records in shards of 11, 1, 0 and 19."""
    for shard, numbers in enumerate((range(11), range(11, 12), range(0), range(12, 31))):
        write_tar(tmp_path / f"train-{shard}.tar", numbers)
    return str(tmp_path / "train-*.tar")


@pytest.fixture
def parquet(tmp_path):
    """Write 31 records in row groups of 3, in files of 17 and 14."""
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for shard, numbers in enumerate((range(17), range(17, 31))):
        rows = [
            {"npy": np.linspace(0, n, 3 + n % 3).tolist(), "cls": n % 3, "height": n / 2, "note": "ü" * n}
            for n in numbers
        ]
        table = arrow.Table.from_pylist(rows)
        writer.write_table(table, tmp_path / f"train-{shard:05d}-of-00002.parquet", row_group_size=3)
    return str(tmp_path / "train-*.parquet")


@pytest.fixture(params=["tars", "parquet"])
def files(request):
    return request.getfixturevalue(request.param)


def numbers_of(records):
    return [round(2 * float(record["height"])) for record in records]


def test_every_record_is_read_alone(files):
    records = open_shards(files)
    assert len(records) == 31
    for number in np.random.default_rng(0).permutation(31).tolist():
        row = records[number]
        assert row["note"] == "ü" * number
        values = SCHEMA.read(row)
        np.testing.assert_allclose(values["inputs"]["curve"].ravel(), np.linspace(0, number, 3 + number % 3), rtol=1e-6)
        assert values["inputs"]["height"] == [number / 2]
        assert values["targets"]["kind"] == str(number % 3)
        assert len(row[WHOLE_ROW]) == len(row)
    assert numbers_of(records[-3:]) == [28, 29, 30]
    with pytest.raises(IndexError):
        records[31]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_keys(tmp_path, kind):
    name = "{:04d}" + ("x" * (60 if kind == tarfile.USTAR_FORMAT else 200))
    write_tar(tmp_path / "a.tar", range(5), name, kind)
    records = open_shards(str(tmp_path / "a.tar"))
    assert [record["__key__"] for record in records] == ["folder/" + name.format(number) for number in range(5)]
    assert numbers_of(records) == list(range(5))


def test_pictures_are_members_and_cells(tmp_path):
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_image(tmp_path / "a.png", np.full((5, 7, 3), 50, np.uint8))
    data = (tmp_path / "a.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.seg.png")
    writer.write_table(arrow.Table.from_pylist([{"seg.png": {"bytes": data, "path": "a.png"}}]), tmp_path / "a.parquet")
    schema = Schema({"map": Image(key="seg.png", size=(5, 7))}, {"kind": Label(classes=2)})
    for suffix in ("tar", "parquet"):
        (row,) = open_shards(str(tmp_path / f"a.{suffix}"))
        assert schema.read(row)["inputs"]["map"].tolist() == np.full((5, 7, 3), 50.0).tolist()


def test_where_records_begin_is_found_once(tars, tmp_path, monkeypatch):
    expected = numbers_of(open_shards(tars))
    kept = list((tmp_path / "cache").rglob("*.npy"))
    assert len(kept) == 4
    kept[0].write_bytes(b"damaged")
    assert numbers_of(open_shards(tars)) == expected
    with monkeypatch.context() as patch:
        patch.setattr(webdataset, "_found_bounds", None)
        assert numbers_of(open_shards(tars)) == expected
    write_tar(tmp_path / "train-1.tar", range(40, 43))
    assert numbers_of(open_shards(tars))[10:15] == [10, 40, 41, 42, 12]


def test_shards_are_read_without_a_home(tars, monkeypatch):
    """Some container users have no home folder: then nothing is cached."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("~none").expanduser())
    assert numbers_of(open_shards(tars)) == list(range(31))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none-*.tar", "no shard has such a name"),
        ("*.t*", "all .tar or all .parquet, found .tar, .txt"),
        ("zipped.tar", "not a .tar without compression"),
        ("cut.tar", "not a .tar without compression: cut off or damaged at byte 2560"),
        ("odd.parquet", "not a whole Parquet file"),
        ("unknown://a.tar", "unknown"),
    ],
)
def test_what_are_no_shards_is_refused(tmp_path, name, message):
    pytest.importorskip("pyarrow")
    write_tar(tmp_path / "whole.tar", range(3))
    (tmp_path / "note.txt").write_text("note")
    (tmp_path / "odd.parquet").write_text("note")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:3000])
    with tarfile.open(tmp_path / "zipped.tar", "w:gz") as tar:
        tar.add(tmp_path / "note.txt", "a.txt")
    with pytest.raises(ValueError, match=message):
        open_shards(name if "://" in name else str(tmp_path / name))


def test_a_record_that_cannot_be_read_says_which(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.cls", b"1"), ("b.cls", b"\xff"), ("c.json", b"{")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = list(open_shards(str(tmp_path / "a.tar")))
    assert [row.error for row in rows][:2] == ["", "not UTF-8"]
    assert "Expecting property name" in rows[2].error
    assert rows[1].place.endswith("a.tar:2")


def test_shards_are_read_where_they_are(tars, parquet):
    """As from a hub: only the needed bytes are fetched, through any file system of fsspec."""
    memory = fsspec.filesystem("memory")
    for pattern in (tars, parquet):
        for path in fsspec.filesystem("file").glob(pattern):
            memory.pipe_file(f"/{Path(path).name}", Path(path).read_bytes())
        found = open_shards(f"memory://{Path(pattern).name}")
        assert numbers_of(found) == list(range(31))
    assert numbers_of(found[7:9]) == [7, 8]


def test_parts_and_statistics(files):
    data = Shards(files, held_out_fraction=0.3, fitted_to=7)
    training, held_out = data.training(), data.held_out()
    assert sorted(numbers_of(training) + numbers_of(held_out)) == list(range(31))
    assert len(held_out) == 9
    parts = read_parts(data, SCHEMA)
    assert parts.schema.inputs["height"].mean == (np.mean(numbers_of(training[:7])) / 2,)
    assert numbers_of(Shards(files, held_out_files=files).held_out()) == list(range(31))
    with pytest.raises(ValueError, match="did you mean 'height'"):
        read_parts(data, Schema({"hight": Numbers()}, SCHEMA.outputs))


def test_bad_records_are_left_out_and_named(tmp_path):
    """Two of eleven records are bad and two are allowed; no part contains them."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(11):
            data = b"{" if number in (3, 7) else json.dumps({"height": number, "label": number % 2}).encode()
            member = tarfile.TarInfo(f"{number}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    schema = Schema({"height": Numbers()}, {"label": Label()})
    files = str(tmp_path / "a.tar")
    parts = read_parts(Shards(files, max_bad_rows=2), schema)
    assert {row.place.rsplit("/")[-1] for row in parts.unreadable} == {"a.tar:4", "a.tar:8"}
    assert isinstance(parts.training, LazyRecords)
    kept = [*parts.training, *parts.held_out]
    assert sorted(row.cells["height"] for row in kept) == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert [row.cells for row in read_held_out(Shards(files, max_bad_rows=2), parts.schema)] == [
        row.cells for row in parts.held_out
    ]
    with pytest.raises(ValueError, match=r"a.tar:\d: Expecting property name.* max_bad_rows = 1"):
        read_parts(Shards(files, max_bad_rows=1), schema)


def test_validation_does_not_make_the_records(files):
    asked = []
    records = open_shards(files)
    make, records.make = records.make, lambda number: asked.append(number) or make(number)
    learned_from, validation = split(records, TrainingConfig(validation_fraction=0.25))
    assert len(asked) < 15  # inspected by the tests' type checks
    assert sorted(numbers_of(learned_from) + numbers_of(validation)) == list(range(31))
    assert sum(learned_from.groups) == (23 if records.groups else 0)


def test_an_epoch_has_every_record_once_and_few_groups_at_a_time():
    groups = (3,) * 20 + (0, 5)
    drawn = [draw for batch in BatchOrder(0, 65, 13, 0, 10, groups=groups) for draw in batch]
    for epoch in (0, 1):
        assert sorted(number for own, number in drawn if own == epoch) == list(range(65))
    group_of = np.repeat(np.arange(22), groups)
    first = [int(group_of[number]) for _, number in drawn[:65]]
    spans = {group: (first.index(group), 65 - first[::-1].index(group)) for group in set(first)}
    assert max(sum(start <= place < stop for start, stop in spans.values()) for place in range(65)) <= WINDOW
    assert drawn[:65] != drawn[65:130]
    assert first != sorted(first)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_and_workers_share_without_repeats_or_gaps(files, num_workers):
    schema, records = SCHEMA.fit(open_shards(files)), open_shards(files)
    found = []
    for rank in range(2):
        order = BatchOrder(0, 31, 6, 0, 31, rank, 2, groups=records.groups)
        for batch in training_batches(schema, records, order, num_workers):
            found += (2 * batch["inputs"]["height"][:, 0]).round().int().tolist()
    assert sorted(found) == sorted(6 * list(range(31)))  # 31 steps of 6 are 6 epochs


def test_a_resumed_run_goes_on_with_the_same_records(files, tmp_path):
    records = open_shards(files)
    settings = {"schema": SCHEMA, "config": CALM, "num_workers": 2, "validation_fraction": 0.2}
    straight = trained(records, tmp_path / "straight", 7, **settings)
    trained(records, tmp_path / "stopped", 7, checkpoint_every=1, **settings)
    shutil.rmtree(checkpoints(tmp_path / "stopped")[0])
    resumed = trained(open_shards(files), tmp_path / "stopped", 7, **settings)
    assert weights_of(straight) == weights_of(resumed)
    logs = [without_time(read_log(tmp_path / run)) for run in ("straight", "stopped")]
    assert logs[0] == logs[1]


RECIPE = """\
inputs:
  height: {kind: numbers}
outputs:
  kind: {kind: label, key: cls, query_channels: 16}
config:
  latents: {num_latents: 5, channels: 16}
  processor: {num_layers: 1, num_heads: 2}
training: {num_steps: 3, batch_size: 8, log_every: 1, schedule: {kind: constant}}
"""


def test_what_is_proposed_for_shards_trains_as_it_is(command, files, tmp_path):
    """Fields of an object become columns; the object itself and the record's name do not become inputs."""
    code, out, err = command("schema", "propose", files, "--predict", "cls")
    assert code == 0, err
    proposed = yaml.safe_load(out)
    assert proposed["data"] == {"kind": "shards", "files": files}
    assert proposed["inputs"].keys() == {"row", "npy"}
    assert proposed["inputs"]["row"]["fields"].keys() == {"height"}
    assert proposed["inputs"]["npy"] == {"kind": "series", "size": 5, "channels": 1}
    (tmp_path / "mine.yaml").write_text(out)
    quick = ("--set", "training.num_steps=2", "training.schedule.warmup_steps=0", "training.checkpoint_every=1")
    code, _, err = command("train", tmp_path / "mine.yaml", "--out", tmp_path / "run", *quick)
    assert code == 0, err


def test_the_command_learns_from_shards_and_predicts_them(command, tars, tmp_path):
    (tmp_path / "mine.yaml").write_text(RECIPE)
    code, out, err = command("train", tmp_path / "mine.yaml", "--data", tars, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    accuracy = json.loads(out)["held out"]["kind"]["accuracy"]
    assert accuracy == pytest.approx(accuracy_of(tmp_path / "run", "kind"))
    code, _, err = command("predict", tmp_path / "run", tars, "-o", tmp_path / "out.csv", "--keep", "__key__")
    assert code == 0, err
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 32
    assert lines[0] == "__key__,kind,kind.probability"
    assert lines[-1].startswith("folder/record-0030,")


def test_records_that_are_made_when_asked_for_are_not_made_before():
    """A large data set that needs no fitting."""
    made = []

    @dataclass(frozen=True)
    class Large(DataSet):
        def training(self):
            return LazyRecords(10_000, lambda number: made.append(number) or {"x": 0.5, "y": 1.0})

        def held_out(self):
            return LazyRecords(10_000, lambda number: made.append(number) or {"x": 0.5, "y": 1.0})

    fitted = {"mean": (0.0,), "std": (1.0,)}
    parts = read_parts(Large(), Schema({"x": Numbers(**fitted)}, {"y": Numbers(**fitted)}))
    assert len(made) < 20  # inspected by the tests' type checks
    assert len(parts.training) == 10_000
