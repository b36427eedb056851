"""Schema files: the summary of a model, the sizes that `auto` chooses, and the JSON schema for editors."""

import json

import pytest
import torch

from perceivers import (
    Config,
    Image,
    Label,
    LatentsConfig,
    PerceiverIO,
    PointSet,
    ProcessorConfig,
    Records,
    Schema,
    Text,
)
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.runs.flops import costs, training_bytes
from perceivers.runs.schema_file import schema_file_format
from perceivers.schema.preset import Preset, auto_config, token_shapes

FILE = """\
inputs:
  row: {kind: records, tokens: field, max_records: 1, fields: {a: {kind: number}, b: {kind: category, classes: 5}}}
  points: {kind: pointset, axes: 3, channels: 2}
outputs:
  label: {kind: label, classes: 3}
  field: {kind: pointset, axes: 2, channels: 1, weight: 0.5}
training: {batch_size: 7}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(FILE)
    return path


def schema_with(**inputs):
    return Schema(inputs, {"label": Label(classes=3)})


def test_the_summary_counts_tokens_and_queries():
    fields = {"a": NumberField(), "b": CategoryField(classes=3), "c": NumberField()}
    inputs = {
        "image": Image(size=(6, 10), patch=2, positions=None),
        "row": Records(fields, tokens="field", max_records=5, channels=11),
        "text": Text(length=13, channels=17),
    }
    outputs = {"label": Label(classes=3, query_channels=7), "image": Image(size=(6, 10), positions=None)}
    outputs["image"] = Text(length=13, of="text", query_channels=19)
    tokens, queries = token_shapes(Schema(inputs, outputs))
    assert tokens == {"image": (15, 12), "row": (15, 11), "text": (13, 17)}
    assert queries == {"label": (1, 7), "image": (13, 19)}


@pytest.mark.parametrize(
    ("side", "latents", "channels"), [(1, 16, 128), (7, 32, 128), (8, 32, 128), (22, 256, 128), (23, 256, 256)]
)
def test_auto_sizes_follow_the_tokens(side, latents, channels):
    config = auto_config(schema_with(image=Image(size=side)))
    assert (config.latents.num_latents, config.latents.channels) == (latents, channels)


def test_auto_sizes_fit_a_text_that_is_restored():
    schema = Schema({"text": Text(length=5, channels=24)}, {"same": Text(length=5, of="text", key="text")})
    model = PerceiverIO(schema, auto_config(schema))
    assert model(torch.zeros(2, 5, dtype=torch.long))["same"].shape == (2, 5, 262)


def test_a_training_step_takes_more_memory_the_more_samples_it_has():
    schema = schema_with(points=PointSet(axes=3, channels=2))
    preset = Preset(schema, auto_config(schema))
    one, seven = training_bytes(preset, 1), training_bytes(preset, 7)
    # The memory of weights, gradients and two moments does not depend on the batch.
    assert 16 * costs(preset).parameters < one < seven < 7 * one


def test_a_training_step_in_blocks_is_counted():
    """One head over many positions is read in blocks; content has no values here, so none may be used."""
    config = Config(LatentsConfig(num_latents=64, channels=64), processor=ProcessorConfig(num_heads=4))
    preset = Preset(schema_with(image=Image(size=257)), config)
    assert 16 * costs(preset).parameters < training_bytes(preset, 3)


def test_check_prints_the_summary(command, file, tmp_path):
    picture = tmp_path / "wiring.svg"
    code, out, _ = command("schema", "check", file, "--json", "--picture", picture)
    assert code == 0
    found = json.loads(out)
    assert found["inputs"]["row"] == {"tokens": 2, "channels": 64}
    assert found["outputs"]["label"] == {"queries": 1, "channels": 256}
    assert found["latents"] == {"count": 64, "channels": 128}
    assert found["batch_size"] == 7
    assert picture.read_text().startswith("<?xml")
    code, out, _ = command("schema", "check", file)
    assert f"Parameters: {found['parameters']:,}" in out


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("kind: pointset", "kind: pointse", ":3: inputs.points: unknown kind 'pointse'; did you mean 'pointset'?"),
        ("weight: 0.5", "weigth: 0.5", ":6: outputs.field.weigth: unknown field; did you mean 'weight'?"),
        ("classes: 3", "classes: x", ":5: outputs.label.classes: Input should be a valid integer"),
        ("training:", "config: atuo\ntraining:", ":7: config: Input should be 'auto', not 'atuo'"),
        ("training:", "trainig:", ":7: trainig: unknown field; did you mean 'training'?"),
        ("outputs:", "output:", ":1: outputs: Field required"),
        ("batch_size: 7", "optimiser: {kind: adm}", "did you mean 'adamw'?; there are lamb, adamw, muon"),
        ("batch_size: 7", "batch_size: 0", ":7: training: batch_size = 0 must be at least 1"),
        (", classes: 3", "", "a label without classes: give classes=, or fit the schema to data first"),
    ],
)
def test_a_wrong_file_gets_one_line(command, file, right, wrong, message):
    file.write_text(FILE.replace(right, wrong))
    code, out, err = command("schema", "check", file)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_picture_of_another_kind_is_refused(command, file, tmp_path):
    code, _, err = command("schema", "check", file, "--picture", tmp_path / "wiring.txt")
    assert code == 2
    assert "written as .png, .svg, .pdf" in err


def test_editors_get_a_json_schema(command):
    code, out, _ = command("schema", "json")
    assert code == 0
    found = json.loads(out)
    assert found == schema_file_format()
    flat, nested = found["anyOf"]
    assert flat["required"] == ["inputs", "outputs"]
    assert "schema" in nested["properties"]
    label = found["$defs"]["Label"]
    assert label["additionalProperties"] is False
    names = set(found["$defs"])
    references = {part.split('"')[0] for part in out.split('"#/$defs/')[1:]}
    assert references <= names
