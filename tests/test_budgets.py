"""Small files that announce gigabytes or endless work are refused in one line within little memory; honest ones load.

Each case is a few bytes that mean far more, in a file of another kind. All are read by processes of little memory.
"""

import dataclasses
import io
import json
import os
import pickle
import struct
import tarfile
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fuzz import case as changed_file
from fuzz import readers
from hostile import archive, program
from perceivers import Image, Label, PerceiverIO, Schema
from perceivers.core.arguments import near
from perceivers.core.config import Config, LatentsConfig, ProcessorConfig
from perceivers.data.formats.readers import read_rows
from perceivers.data.shards import open_shards
from perceivers.data.validation import check_columns
from perceivers.files.budgets import from_json, from_yaml
from perceivers.modalities import Records, Text
from perceivers.modalities.fields import NumberField
from perceivers.pretrained.model_folder import save_model
from perceivers.runs.infer_schema import _new_name
from perceivers.runs.prediction import predict_rows
from perceivers.schema.preset import Preset
from perceivers.training.sampler import BatchOrder, evaluation_batches, training_batches
from small_memory import SECONDS, read_all

CASES = {}


def case(reader, name, *needed):
    """Register a writer of a hostile file, which may return the path to read; `needed` must be in the message."""

    def note(make):
        CASES[make.__name__.removeprefix("_")] = (reader, name, make, needed)
        return make

    return note


def aliases(depth=9, width=9, first="[x, x]"):
    """Return YAML of nested lists, each with several references to the one before: width ** depth values."""
    lines = [f"a0: &a0 {first}"]
    for level in range(1, depth + 1):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]")
    return "\n".join(lines)


@case("plain", "x.yaml", "x.yaml:7", "values")
def _yaml_aliases(path):
    path.write_text(aliases())


@case("declaration", "x.yaml", "x.yaml:", "values")
def _yaml_aliases_in_a_schema(path):
    path.write_text("inputs:\n  x: {kind: image, size: *a9}\noutputs: {}\n".replace("*a9", "8") + aliases())


@case("plain", "x.yaml", "values")
def _yaml_merges(path):
    rows = ["a0: &a0 {" + ", ".join(f"k{number}: 1" for number in range(99)) + "}"]
    rows += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 5)}]}}" for n in range(1, 9)]
    path.write_text("\n".join(rows))


@case("plain", "x.yaml", "x.yaml:1", "within what it names")
def _yaml_that_holds_itself(path):
    path.write_text("a: &a [*a]\n")


@case("plain", "x.yaml", "64 deep")
def _yaml_aliases_in_depth(path):
    rows = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 900))]
    path.write_text("\n".join(rows))


@case("plain", "x.yaml", "64 deep")
def _yaml_lists_in_lists(path):
    path.write_text("[" * 10**6)


@case("plain", "x.yaml", "64 deep")
def _yaml_objects_in_lists(path):
    path.write_text("{a: [" * 10**5)


@case("plain", "x.yaml", "64 deep")
def _yaml_lists_by_dashes(path):
    path.write_text("- " * 10**5 + "x")


@case("plain", "x.yaml", "values")
def _yaml_of_many_values(path):
    path.write_text("- \n" * 600_000)


@case("plain", "x.yaml", "x.yaml:2", "100,000 characters")
def _yaml_of_a_long_number(path):
    path.write_text("b: 1\na: " + "9" * 10**5)


@case("plain", "x.yaml", "characters")
def _yaml_of_a_number_of_sixties(path):
    path.write_text("a: 1" + ":59" * 10**6)


@case("plain", "x.yaml", "a key must be a text")
def _yaml_of_a_key_of_lists(path):
    path.write_text("? " + "[" * 60 + "]" * 60 + "\n: 1")


@case("plain", "x.yaml", "the key 'a' is there twice")
def _yaml_of_a_key_twice(path):
    path.write_text("a: 1\nb: 2\na: 3\n")


@case("plain", "x.yaml", "bytes")
def _yaml_of_a_gigabyte(path):
    with path.open("wb") as file:
        file.truncate(10**9)


@case("plain", "x.yaml", "not a file")
def _yaml_from_a_pipe(path):
    os.mkfifo(path)


@case("plain", "x.yaml", "not a file")
def _yaml_from_a_device(path):
    path.symlink_to("/dev/zero")


@case("setting", "x", "values")
def _setting_of_aliases(path):
    rows = "{" + ", ".join(aliases().splitlines()).replace("]\n", "],\n") + "}"
    path.write_text(f"seed={rows}")


@case("setting", "x", "characters")
def _setting_of_a_long_number(path):
    path.write_text("seed=" + "9" * 10**6)


@case("json", "x.json", "64 deep")
def _json_lists_in_lists(path):
    path.write_text("[" * 900 + "]" * 900)


@case("json", "x.json", "values")
def _json_of_many_values(path):
    path.write_text("[" + "{}," * 10**6 + "{}]")


@case("json", "x.json", "x.json")
def _json_of_a_long_number(path):
    path.write_text("9" * 10**6)


@case("json", "x.json", "not a file")
def _json_from_a_pipe(path):
    os.mkfifo(path)


def model_folder(path, schema=None, config=None, **changes):
    """Write a small model's folder with a changed description: values by path, as config__latents__channels."""
    small = Config(LatentsConfig(num_latents=5, channels=8), processor=ProcessorConfig(num_heads=2, num_layers=1))
    model = PerceiverIO(schema or Schema({"image": Image(size=7)}, {"label": Label(classes=3)}), config or small)
    path.mkdir()
    save_model(model, path)
    description = json.loads((path / "model.json").read_text())
    for place, value in changes.items():
        node, (*parents, last) = description, place.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    (path / "model.json").write_text(json.dumps(description))


@case("model", "m", "model.json", "4001 attention blocks", "arrays in all")
def _model_of_many_layers(path):
    model_folder(path, config__processor__num_layers=4000)


for field, value in {
    "config__processor__num_layers": 10**9,
    "config__processor__num_blocks": 10**9,
    "config__latents__num_latents": 10**12,
    "config__latents__channels": 10**9,
    "config__latents__num_latents ": 0,
    "config__latents__channels ": -8,
    "config__encoder__input_channels": 0,
    "schema__inputs__image__channels ": 0,
    "schema__inputs__image__mask_prob": 2.0,
    "schema__outputs__label__weight": -1.0,
    "config__encoder__num_reads": 10**9,
    "config__encoder__widening_factor": 10**12,
    "schema__outputs__label__classes": 10**12,
    "schema__outputs__label__query_channels": 10**12,
    "schema__inputs__image__channels": 10**12,
    "schema__inputs__image__positions__num_bands": 10**9,
    "schema__inputs__image__positions__num_residual_layers": 10**6,
}.items():

    def _absurd_size(path, field=field, value=value):
        model_folder(path, **{field.strip(): value})

    _absurd_size.__name__ = f"model_with_absurd_{field}"
    case("model", "m", "model.")(_absurd_size)


@case("model", "m", "model.json", "not a file")
def _model_described_by_a_pipe(path):
    model_folder(path)
    (path / "model.json").unlink()
    os.mkfifo(path / "model.json")


@case("model", "m", "model.safetensors", "not a file")
def _model_with_weights_from_a_pipe(path):
    model_folder(path)
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


@case("model", "m", "manifest.json", "not a file")
def _model_with_a_manifest_from_a_pipe(path):
    model_folder(path)
    os.mkfifo(path / "manifest.json")


@case("torch", "x.safetensors", "more than 200,000 arrays")
def _many_empty_arrays(path):
    header = json.dumps({f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(200_001)})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


@case("model", "m", "shard")
def _model_in_a_billion_shards(path):
    model_folder(path)
    (path / "model.safetensors").rename(path / "model-00001-of-99999999999999999.safetensors")


@case("arrays", "x.safetensors", "more than 200,000 arrays")
def _many_empty_arrays_with_spelled_names(path):
    about = '{"dtype": "F32", "shape": [0], "data_off\\u0073ets": [0, 0]}'
    header = "{" + ", ".join(f'"t{number}": {about}' for number in range(200_001)) + "}"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


@case("torch", "x.safetensors", "too many axes")
def _array_of_many_axes(path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))


def shards_of_weights(path, first, second):
    model_folder(path)
    (path / "model.safetensors").unlink()
    save_file(first, path / "model-00001-of-00002.safetensors")
    save_file(second, path / "model-00002-of-00002.safetensors")


@case("model", "m", "do not fit together")
def _shards_of_other_axes(path):
    shards_of_weights(path, {"a": torch.zeros(3)}, {"a": torch.zeros(3, 5)})


@case("model", "m", "extra is not in the model")
def _shards_of_which_the_second_has_more(path):
    model_folder(path)
    weights = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    save_file(weights, path / "model-00001-of-00002.safetensors")
    save_file({"extra": torch.zeros(3)}, path / "model-00002-of-00002.safetensors")


@case("model", "m", "model.safetensors: ")
def _shards_that_are_not_numbered(path):
    model_folder(path)
    (path / "model.safetensors").rename(path / "model-00001-of-0x02.safetensors")


for dtype in (torch.int64, torch.complex64, torch.float8_e4m3fn):

    @case("model", "m", f"is of {dtype}, the model's of torch.float32")
    def _weights(path, dtype=dtype):
        model_folder(path)
        weights = load_file(path / "model.safetensors")
        save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, path / "model.safetensors")

    CASES[f"weights_of_{dtype}"] = CASES.pop("weights")


@case("haiku", "x.pystate", "too many names")
def _one_array_under_many_names(path):
    large = np.zeros(10**6, "u1")
    path.write_bytes(pickle.dumps({"a": {f"w{number}": large for number in range(5000)}}, 4))


@case("torch", "x.bin", "x.bin")
def _checkpoint_of_nested_keys(path):
    path.write_bytes(archive(program(b"}" + b")" + b"q\0h\0\x86" * 40 + b"Ns", protocol=2)))


@case("torch", "x.bin", "not a file")
def _checkpoint_from_a_pipe(path):
    os.mkfifo(path)


@case("haiku", "x.pystate", "not a file")
def _pickle_from_a_pipe(path):
    os.mkfifo(path)


MANY = "1000000000"

RECIPE = "inputs: {image: {kind: image, size: 8}}\noutputs: {label: {kind: label, classes: 3}}\n"

for name, text, said in (
    (
        "latents",
        RECIPE + "config: {latents: {num_latents: 1000000000, channels: 128}}",
        "num_latents = 1000000000 must be from 1 to 1048576",
    ),
    ("layers", RECIPE + "config: {processor: {num_layers: 1000000}}", "at most 4096"),
    ("blocks", RECIPE + "config: {processor: {num_blocks: 100000000}}", "at most 4096"),
    (
        "bands",
        RECIPE.replace("size: 8", "size: 8, positions: {kind: fourier, num_bands: 1000000000}"),
        "at most 100000",
    ),
    (
        "names",
        "inputs:\n" + "".join(f"  x{n}: {{kind: numbers}}\n" for n in range(2000)) + "outputs: {y: {kind: label}}\n",
        "inputs: 2,000 names, at most 1,024",
    ),
    (
        "evaluations",
        RECIPE + "evaluations:\n" + "".join(f"  e{n}: {{image: {{}}}}\n" for n in range(2000)),
        "evaluations: 2,000, at most 256",
    ),
    ("pixels", RECIPE.replace("size: 8", "size: [1000000, 1000000]"), "GB"),
    (
        "records",
        RECIPE.replace("image, size: 8", "records, max_records: 1000000000000, fields: {a: {kind: number}}"),
        "GB",
    ),
    ("classes", RECIPE.replace("classes: 3", "classes: 100000000000"), "GB"),
    ("wrong_classes", RECIPE.replace("classes: 3", f"classes: [{', '.join(['1'] * 50_000)}]"), "x.yaml:2"),
    ("batches", RECIPE + "training: {batch_size: 1000000000000}", "batch_size = 1000000000000"),
    ("steps", RECIPE + f"training: {{num_steps: {10**30}}}", "num_steps: a number of 100 bits"),
    ("workers", RECIPE + "training: {num_workers: 1000000}", "num_workers = 1000000"),
):

    def _absurd_recipe(path, text=text):
        path.write_text(text)

    _absurd_recipe.__name__ = f"recipe_of_many_{name}"
    case("declaration", "x.yaml", said)(_absurd_recipe)


# Tables.


@case("strict", "x.csv", "longer than length = 16")
def _cell_of_many_megabytes(path):
    path.write_text("text,label\n" + "x " * 10**7 + ",1\n")


@case("few", "x.jsonl", "values")
def _cell_of_many_numbers(path):
    path.write_text('{"text": [' + "1," * (11 * 10**6) + '1], "label": 1}\n')


@case("rows", "x.csv", "a line of more than")
def _csv_of_one_endless_line(path):
    path.write_text("a,b\n")
    os.truncate(path, 2**27 + 99)


@case("rows", "x.jsonl", "a line of more than")
def _json_lines_of_one_endless_line(path):
    path.write_text("{")
    os.truncate(path, 2**27 + 99)


@case("few", "x.jsonl", "64 deep")
def _json_lines_of_lists_in_lists(path):
    path.write_text('{"text": ' + "[" * 500 + "]" * 500 + ', "label": 1}\n')


@case("rows", "x.csv", "not a file")
def _csv_from_a_pipe(path):
    os.mkfifo(path)


@case("rows", "x.parquet", "not a file")
def _parquet_from_a_device(path):
    path.symlink_to("/dev/zero")


@case("tokenizer", "x.json", "not a file")
def _tokenizer_from_a_pipe(path):
    os.mkfifo(path)


def parquet(path, columns, **options):
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns(arrow)), path, **options)


for reader in ("table", "shards"):

    @case(reader, "x.parquet", "bytes hold 60,000,000 rows; refused")
    def _parquet_of_many_rows(path):
        parquet(path, lambda arrow: {"a": arrow.nulls(6 * 10**7)})

    @case(reader, "x.parquet", "bytes; refused")
    def _parquet_of_zeros(path):
        zeros = [b"\0" * 2**26] * 9
        parquet(path, lambda arrow: {"a": zeros}, compression="zstd", use_dictionary=False)

    @case(reader, "x.parquet", "bytes; refused")
    def _parquet_of_zeros_with_another_size_in_its_footer(path):
        parquet(path, lambda arrow: {"a": [b"\0" * 2**26] * 3}, compression="zstd", use_dictionary=False)
        about = pytest.importorskip("pyarrow.parquet").read_metadata(path)
        number, said = about.row_group(0).column(0).total_uncompressed_size * 2, []
        while number:
            said.append(number & 127 | 128)
            number >>= 7
        said[-1] &= 127
        good = path.read_bytes()
        changed = good.replace(bytes(said), b"\x80" * (len(said) - 1) + b"\1")
        assert changed != good
        path.write_bytes(changed)

    @case(reader, "x.parquet", "bytes of texts; refused")
    def _parquet_of_texts_that_begin_alike(path):
        encoding = {"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}, "compression": "zstd"}
        parquet(path, lambda arrow: {"a": ["x" * 10**6] * 300}, **encoding)

    @case(reader, "x.parquet", "bytes; refused")
    def _parquet_of_lists_of_texts_that_begin_alike(path):
        encoding = {"use_dictionary": False, "column_encoding": {"a.list.element": "DELTA_BYTE_ARRAY"}}
        parquet(path, lambda arrow: {"a": [["x" * 10**6] * 150]}, compression="zstd", **encoding)

    @case(reader, "x.parquet", "bytes; refused")
    def _parquet_of_repeated_values_of_a_fixed_length(path):
        parquet(path, lambda arrow: {"a": arrow.array([b"x" * 10**6] * 150, arrow.binary(10**6))})

    @case(reader, "x.parquet", "cells; refused")
    def _parquet_of_nothing_in_many_columns(path):
        parquet(path, lambda arrow: {f"c{number}": arrow.nulls(290_000) for number in range(40)})

    @case(reader, "x.parquet", "values; refused")
    def _parquet_of_a_long_list(path):
        values = np.zeros(11 * 10**6, "i1")
        parquet(path, lambda arrow: {"a": arrow.ListArray.from_arrays([0, len(values)], arrow.array(values))})

    @case(reader, "x.parquet", "row group 0 cannot be read")
    def _parquet_of_a_column_with_statistics_of_another_type(path):
        """A column with statistics of another type, whose description would make pyarrow end the process."""
        (written,) = (reader for reader in readers() if reader.name == "parquet")
        written.write(path)
        shards = dataclasses.replace(written, name="parquet-shards")
        path.write_bytes(changed_file(shards, path.read_bytes(), 300_306))

    CASES |= {f"{reader}_{name}": CASES.pop(name) for name in list(CASES) if name.startswith("parquet_of")}


# Shards.


def tar(path, *members, kind=tarfile.PAX_FORMAT):
    """Write a .tar of (name, content, further fields of its header)."""
    with tarfile.open(path, "w", format=kind) as file:
        for name, content, fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            file.addfile(member, io.BytesIO(content))


def changed_header(path, place, content, at=0):
    """Change the content of the header at byte `at` of a .tar, and correct its checksum."""
    data = bytearray(path.read_bytes())
    data[at + place : at + place + len(content)] = content
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    path.write_bytes(data)


@case("shards", "x.tar", "sparse")
def _sparse_member(path):
    tar(path, ("a.bin", b"x" * 512, {}), kind=tarfile.GNU_FORMAT)
    changed_header(path, 156, b"S")
    changed_header(path, 386, b"%011o\0%011o\0" % (0, 512) + b"\0" * 72 + b"\0" + b"%011o\0" % (2**33 - 1))


@case("shards", "x.tar", "sparse")
def _sparse_member_of_pax(path):
    fields = {"GNU.sparse.size": str(2**33), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,512"}
    tar(path, ("a.bin", b"x" * 512, {"pax_headers": fields}))


@case("shards", "x.tar", "x.tar")
def _sparse_member_with_an_endless_map(path):
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**33)}
    tar(path, ("a.bin", b"9" * 9 + b"\n0\n", {"pax_headers": fields}))


@case("shards", "x.tar", "header this long")
def _long_header(path):
    tar(path, ("a" * 200 + ".bin", b"x", {}))
    changed_header(path, 124, b"\x80\0\0\0\0\0\0\1\0\0\0\0")  # 4 GB


@case("shards", "x.tar", "header this long")
def _long_name(path):
    tar(path, ("a" * 10**7 + ".bin", b"x", {}), kind=tarfile.GNU_FORMAT)


@case("shards", "x.tar", "x.tar")
def _member_that_is_cut_off(path):
    tar(path, ("a.bin", b"x", {}))
    changed_header(path, 124, b"\x80\0\0\0\0\0\0\1\0\0\0\0")


@case("shards", "x.tar", "64 deep")
def _member_of_lists_in_lists(path):
    tar(path, ("a.json", b"[" * 900 + b"]" * 900, {}))


@case("shards", "x.tar", "maximum recursion depth")
def _long_name_for_a_long_name(path):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 3
    path.write_bytes((name.tobuf(tarfile.GNU_FORMAT) + b"abc".ljust(512, b"\0")) * 9000)


@case("shards", "x.tar", "a.txt is there twice")
def _two_members_of_one_name(path):
    tar(path, ("a.txt", b"x", {}), ("a.txt", b"y", {}))


@case("shards", "x.tar", "global headers of 1")
def _global_headers_of_many_keys(path):
    """Each member would be compared with all of the global headers."""
    keys = {f"k{number}": "" for number in range(101)}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=keys) as file:
        file.addfile(tarfile.TarInfo("a.txt"))


for kind, said in ((tarfile.LNKTYPE, "a link"), (tarfile.SYMTYPE, "a link"), (tarfile.FIFOTYPE, "not a file")):

    def _member_that_is_no_file(path, kind=kind):
        """An earlier version left such members out silently."""
        tar(path, ("a.txt", b"words", {}), ("b.cls", b"1", {}), ("b.txt", b"", {"type": kind, "linkname": "a.txt"}))

    CASES[f"member_of_type_{kind.decode()}"] = ("shards", "x.tar", _member_that_is_no_file, ["x.tar", "b.txt", said])


@case("shards", "x.tar", "not a file")
def _shard_from_a_pipe(path):
    os.mkfifo(path)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Return the report of each case."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    jobs = {}
    for name, (reader, file, make, _) in CASES.items():
        path = tmp_path_factory.mktemp(name) / file
        jobs[name] = (reader, make(path) or path)
    yield read_all(jobs)
    patch.undo()


@pytest.mark.parametrize("name", CASES)
def test_what_would_never_end_is_one_line(name, reports):
    report = reports[name]
    assert report.outcome == "refused", report
    assert report.message.isprintable()
    assert len(report.message) < 1000
    assert report.seconds < SECONDS / 2
    assert all(part in report.message for part in CASES[name][-1]), report.message


def test_honest_yaml_and_json_read():
    text = "base: &base {size: 8, steps: [1, 2]}\nimage: {<<: *base, steps: [3]}\ntwice: [*base, *base]\n"
    plain, lines = from_yaml(text, "x")
    base = {"size": 8, "steps": [1, 2]}
    assert plain == {"base": base, "image": {"size": 8, "steps": [3]}, "twice": [base, base]}
    assert (lines["image",], lines["twice", "1", "steps"]) == (2, 1)
    names = [f"class {number}, also called {number}" for number in range(30_000)]
    assert from_yaml(json.dumps(names), "x")[0] == names
    assert from_json(json.dumps([names])) == [names]
    assert from_yaml("", "x") == (None, {})


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 3}', '[{"x": {"a": 1, "a": 1}}]'])
def test_a_key_that_is_there_twice_is_an_error(tmp_path, text):
    """JSON's standard parser would silently take the last value."""
    with pytest.raises(ValueError, match="the key 'a' is there twice"):
        from_json(text)


@pytest.mark.parametrize("text", ["2026-99-99", "!!int x", "!!bool x", "!!timestamp x", "0b_", "=", "!!float x", "\0"])
def test_values_that_only_look_like_yaml_are_one_line(text):
    with pytest.raises(ValueError, match=r"^here(:1)?: not YAML: ") as caught:
        from_yaml(text, "here")
    assert str(caught.value).isprintable()


# Honest files, large ones too.


def test_a_wide_table_is_linear_in_its_columns(tmp_path):
    """A table of 50,000 columns: quadratic work would take minutes."""
    names = [f"c{number}" for number in range(50_000)]
    path = tmp_path / "wide.csv"
    path.write_text("\n".join([",".join(names), *(",".join(str((n * k) % 7) for n in range(50_000)) for k in (3, 5))]))
    start = time.process_time()
    rows = list(read_rows(path))
    schema = Schema({"row": Records({name: NumberField() for name in names[1:]}, key="*")}, {"kind": Label(key="c0")})
    check_columns(schema, rows)
    assert time.process_time() - start < 10
    with pytest.raises(ValueError, match="unknown column"):
        check_columns(Schema(schema.inputs, {"kind": Label(key="c" * 10**6)}), rows)
    taken = {}
    assert len({_new_name(chr(number), taken) for number in range(10_000, 15_000)}) == 5000
    assert time.process_time() - start < 20


def test_texts_are_read_no_further_than_their_length(tmp_path):
    whole, rng = "Grüße aus Köln " * 10_000, np.random.default_rng(0)
    short = Text(length=17, overflow="truncate", mask_words=0.5)
    prepared = short.preprocess(whole, rng, training=True)
    assert prepared["characters"] == 17 * 64
    target = Text(length=17, of="text").target(whole, rng, {"text": prepared}, training=True)
    assert bytes((target["ids"] - 6).tolist()) == whole.encode()[:17]
    cropped = Text(length=17, overflow="crop").preprocess(whole, np.random.default_rng(1), training=True)
    assert bytes((cropped["ids"] - 6).tolist()) == whole.encode()[cropped["start"] :][:17]
    assert cropped["start"] > 17 * 64
    long = Text(length=400_000).preprocess(whole, rng, training=False)
    assert bytes((long["ids"] - 6).tolist()) == whole.encode()
    with pytest.raises(ValueError, match="a text of 150,000 characters is longer than length = 17 tokens: raise"):
        Text(length=17).preprocess(whole, rng, training=False)
    with pytest.raises(ValueError, match="too long to crop"):
        Text(length=17, overflow="crop").preprocess("x" * (2**24 + 1), rng, training=False)


def test_rows_of_parquet_that_python_cannot_hold_are_rows_that_say_so(tmp_path):
    """A day beyond Python's calendar, a text that is not UTF-8; and of two columns with one name neither is dropped."""
    arrow = pytest.importorskip("pyarrow")
    path, texts = tmp_path / "x.parquet", [arrow.py_buffer(np.array([0, 1, 2, 3], "i4")), arrow.py_buffer(b"a\xffb")]
    broken = arrow.Array.from_buffers(arrow.string(), 3, [None, *texts])
    parquet(path, lambda arrow: {"day": arrow.array([1, 2, 2**30], arrow.date32()), "text": broken})
    for rows in (list(read_rows(path)), [*open_shards(str(path))]):
        assert [bool(row.error) for row in rows] == [False, True, True]
        assert rows[0]["text"] == "a"
    twice = arrow.Table.from_arrays([arrow.array([1]), arrow.array([2])], names=["a", "a"])
    pytest.importorskip("pyarrow.parquet").write_table(twice, path)
    with pytest.raises(ValueError, match="'a' is there twice"):
        list(read_rows(path))


def test_texts_that_parquet_repeats_are_held_once(tmp_path):
    """Repeated texts are stored once, also within lists and structures."""
    names, path = ["x" * 10**6, None, "y"] * 20, tmp_path / "a.parquet"
    columns = {"name": names, "list": [[name] for name in names], "parts": [{"of": {"it": name}} for name in names]}
    parquet(path, lambda arrow: columns, row_group_size=40)
    rows = [dict(row) for row in read_rows(path)]
    assert {name: [row[name] for row in rows] for name in columns} == columns
    assert [dict(row) for row in open_shards(str(path))] == rows
    assert len({id(name) for row in rows for name in (row["name"], row["list"][0], row["parts"]["of"]["it"])}) == 3


KINDS_OF_PARQUET = [
    {},
    {"compression": "zstd", "data_page_version": "2.0"},
    {"dictionary_pagesize_limit": 100, "data_page_size": 300},
    {"use_dictionary": False},
    *(
        {"use_dictionary": False, "column_encoding": {"text": kind, "list.list.element": kind}}
        for kind in ("DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")
    ),
]


@pytest.mark.parametrize("options", KINDS_OF_PARQUET)
def test_parquet_is_read_as_arrow_reads_it(tmp_path, options):
    """Several groups, dictionaries that end within one, empty lists and maps; pictures as hubs store them."""
    arrow, path = pytest.importorskip("pyarrow"), tmp_path / "a.parquet"
    texts = [None if number % 7 == 0 else f"{number % 11}" * (number % 13 + 1) for number in range(131)]
    lists = [None if number % 5 == 0 else texts[number : number + number % 4] for number in range(131)]
    columns = {
        "text": texts,
        "list": lists,
        "picture": [None if text is None else {"bytes": text.encode() * 9, "path": text} for text in texts],
        "map": arrow.array([each and [("k", text) for text in each] for each in lists], arrow.map_("str", "str")),
        "pair": arrow.array([text and [text, None] for text in texts], arrow.list_(arrow.string(), 2)),
        "fixed": arrow.array([text and bytes(40) for text in texts], arrow.binary(40)),
        "json": arrow.array(["{}"] * 131, arrow.json_()),
        "number": arrow.array([text and float(text) for text in texts]),
    }
    parquet(path, lambda arrow: columns, row_group_size=50, **options)
    expected = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    assert [dict(row) for row in read_rows(path)] == expected
    assert [dict(row) for row in open_shards(str(path))] == expected


def test_a_parquet_file_that_changed_is_read_again(tmp_path):
    for text in ("one", "two"):
        parquet(tmp_path / "a.parquet", lambda arrow, text=text: {"a": [text] * len(text)})
        assert [row["a"] for row in open_shards(str(tmp_path / "a.parquet"))] == [text] * 3


def test_batches_end_with_the_records():
    schema = Schema({"image": Image(size=3, channels=1)}, {"label": Label(classes=2)})
    records = [{"image": np.zeros((3, 3)), "label": 1}] * 5
    (batch,) = evaluation_batches(schema, records, 10**12)
    assert len(batch["targets"]["label"]) == 5
    rows = list(predict_rows(Preset(schema, Config(LatentsConfig(channels=8))).build(), records, 10**30))
    assert len(rows) == 5
    order = BatchOrder(0, len(records), 10**12, 0, 1)
    with pytest.raises(ValueError, match=r"^batch_size = 1000000000000: the inputs take 36,000.0 GB, there are "):
        training_batches(schema, records, order)


def test_sizes_that_a_machine_holds_are_built():
    preset = Preset(Schema({"image": Image(size=7)}, {"label": Label(classes=3)}), Config(LatentsConfig(channels=8)))
    torch.manual_seed(0)
    checked = preset.build()
    torch.manual_seed(0)
    plain = PerceiverIO(preset.schema, preset.config)
    assert all(torch.equal(one, other) for one, other in zip(checked.parameters(), plain.parameters(), strict=True))


def test_a_wrong_name_is_compared_with_few_and_short_ones():
    known = [f"{'x' * 10**4}{number}" for number in range(10**4)]
    assert near("x" * 10**6, known) == near("label", known) == ""
    assert near("lable", [*known, "label"]) == "; did you mean 'label'?"
