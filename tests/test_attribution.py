"""Attributions: a part left out is treated as missing, and the attributions of a known function are recovered."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.core.config import Config, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import write_rows
from perceivers.files.durable_folder import write_folder
from perceivers.modalities import (
    Image,
    Label,
    Labels,
    Numbers,
    PointSet,
    ProbabilisticRegression,
    Records,
    Series,
    Text,
    Video,
)
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.table_cells import Files, Row
from perceivers.pretrained.model_folder import save_model
from perceivers.runs.attention_report import attention
from perceivers.runs.prediction import output_columns, predict_rows
from perceivers.schema import Schema

HERE = Files(Path("."))
LATENTS = LatentsConfig(num_latents=5, channels=16)
SUM = Config(latents=LATENTS, processor=ProcessorConfig(num_layers=1, num_heads=2))
TWICE = Config(
    latents=LATENTS,
    encoder=EncoderConfig(num_reads=2),
    processor=ProcessorConfig(num_layers=1, num_heads=2, num_blocks=2),
)
UNIT = Records({"type": CategoryField(classes=("probe", "zealot")), "health": NumberField(mean=40.0, std=20.0)})
SCHEMA = Schema(
    {
        "row": Records(
            {"height": NumberField(mean=0.0, std=1.0), "colour": CategoryField(classes=("blue", "red"))},
            key="*",
            tokens="field",
        ),
        "curve": Series(size=5, channels=1, mean=(0.0,), std=(1.0,), mask_prob=0.0),
        "units": UNIT,
    },
    {
        "kind": Label(classes=("cat", "dog", "eel"), query_channels=16),
        "weight": Numbers(query_channels=16),
        "again": Records({"type": CategoryField(classes=("probe", "zealot"))}, of="units", key="units"),
    },
)


def rows_of(count=7):
    rng = np.random.default_rng(0)
    unit = lambda: {"type": str(rng.choice(["probe", "zealot"])), "health": float(rng.integers(80))}  # noqa: E731
    return [
        {
            "height": None if number == 3 else float(rng.normal()),
            "colour": str(rng.choice(["red", "blue"])),
            "curve": None if number == 2 else rng.normal(size=5).tolist(),
            "units": None if number == 4 else [unit() for _ in range(number % 3)],
        }
        for number in range(count)
    ]


def predicted(model, rows, attribution=False):
    records = [Row(f"row {number}", cells, HERE) for number, cells in enumerate(rows)]
    return list(predict_rows(model, records, 7, attribution=attribution))


def model_of(schema, config):
    torch.manual_seed(3)
    model = PerceiverIO(schema, config).eval()
    for parameter in model.parameters():  # weights that start at 0 would conceal everything
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


@pytest.mark.parametrize("config", [SUM, TWICE], ids=["read once", "read twice"])
@pytest.mark.parametrize("left", ["curve", "row.height", "row.colour", "units", "units.each"])
def test_what_is_left_out_is_as_if_it_had_been_missing(config, left):
    model, rows = model_of(SCHEMA, config), rows_of()
    found = predicted(model, rows, attribution=True)
    assert [{name: row[name] for name in output_columns(model)} for row in found] == predicted(model, rows)
    checked = 0
    for number, (row, own) in enumerate(zip(rows, found, strict=True)):
        column = left.rpartition(".")[2] if left.startswith("row") else left.partition(".")[0]
        there = row[column] is not None
        if left == "units.each":
            without = [row[column][:k] + row[column][k + 1 :] for k in range(len(row[column] or []))]
            attributions = own[f"weight.from.{left}"] or []
            assert (own[f"weight.from.{left}"] is not None) == bool(row[column])
        else:
            without, attributions = [None] * there, [own[f"weight.from.{left}"]] * there
            assert (own[f"weight.from.{left}"] is not None) == there
        for attribution, cell in zip(attributions, without, strict=True):
            changed = [{**other, column: cell} if other is row else other for other in rows]
            expected = predicted(model, changed)[number]
            assert attribution == pytest.approx(own["weight"] - expected["weight"], abs=1e-5)
            checked += 1
    assert checked > 3


def test_the_log_probability_of_what_is_predicted_is_explained():
    model, rows = model_of(SCHEMA, SUM), rows_of()
    found = predicted(model, rows, attribution=True)
    changed = predicted(model, [{**row, "colour": None} for row in rows])
    same = 0
    for own, other in zip(found, changed, strict=True):
        if own["kind"] == other["kind"]:
            expected = math.log(own["kind.probability"]) - math.log(other["kind.probability"])
            assert own["kind.from.row.colour"] == pytest.approx(expected, abs=1e-5)
            same += abs(expected) > 1e-4
    assert same > 2


def test_an_output_that_asks_with_an_input_does_not_owe_it_anything():
    columns = output_columns(model_of(SCHEMA, SUM), attribution=True)
    assert "again.type.from.row.height" in columns
    assert not any(column.startswith("again") and ".from.units" in column for column in columns)
    found = predicted(model_of(SCHEMA, SUM), rows_of(), attribution=True)
    assert [len(row["again.type.from.curve"] or []) for row in found] == [0, 1, 0, 0, 0, 2, 0]


def test_of_one_input_alone_the_fields_contribute():
    schema = Schema({"row": SCHEMA.inputs["row"]}, {"weight": Numbers(query_channels=16)})
    model = model_of(schema, SUM)
    assert output_columns(model, attribution=True) == ["weight", "weight.from.row.height", "weight.from.row.colour"]
    row = predicted(model, rows_of(1), attribution=True)[0]
    assert abs(row["weight.from.row.height"]) > 1e-4


@pytest.mark.slow
def test_a_known_function_is_found():
    """With y = 3 a and an unused input b, the attribution to a is three times its value, to b nothing."""
    schema = Schema(
        {"a": Numbers(mean=(0.0,), std=(1.0,)), "b": Numbers(mean=(0.0,), std=(1.0,))},
        {"y": Numbers(query_channels=16)},
    )
    model = PerceiverIO(schema, SUM)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        a, b = torch.rand(2, 64, 1) * 2 - 1
        given = a.masked_fill(torch.rand(64, 1) < 0.2, torch.nan), b.masked_fill(torch.rand(64, 1) < 0.2, torch.nan)
        optimiser.zero_grad()
        (model(dict(zip("ab", given, strict=True)))["y"] - 3 * a).square().mean().backward()
        optimiser.step()
    rows = [{"a": x, "b": y} for x in (-0.8, -0.3, 0.4, 0.9) for y in (-0.7, 0.6)]
    found = predicted(model.eval(), rows, attribution=True)
    np.testing.assert_allclose([row["y.from.a"] for row in found], [3 * row["a"] for row in rows], atol=0.4)
    np.testing.assert_allclose([row["y.from.b"] for row in found], 0.0, atol=0.4)


@pytest.mark.parametrize(
    ("kind", "whole", "without", "expected"),
    [
        (Label(classes=2), [0.0, math.log(3)], [0.0, 0.0], {"": math.log(0.75 / 0.5)}),
        (Labels(classes=2), [math.log(3), -math.log(3)], [0.0, 0.0], {"": 2 * math.log(0.75 / 0.5)}),
        (Numbers(), [7.0], [4.5], {"": 2.5}),
        (Numbers(count=2), [7.0, 1.0], [4.5, 2.0], {"": [2.5, -1.0]}),
        (ProbabilisticRegression(), [[7.0, 1.0]], [[4.0, 5.0]], {"": 3.0}),
        (ProbabilisticRegression(quantiles=(0.1, 0.5)), [[7.0, 9.0]], [[4.0, 5.0]], {"": 4.0}),
        (Series(size=2), [[3.0], [1.0]], [[0.0], [5.0]], {"": math.sqrt(12.5)}),
        (PointSet(), [[3.0]], [[5.0]], {"": 2.0}),
        (PointSet(values="binary"), [[math.log(3)], [0.0]], [[0.0], [0.0]], {"": math.log(0.75 / 0.5) / 2}),
        (
            Records({"n": NumberField(), "c": CategoryField(classes=2)}),
            {"n": [3.0], "c": [[0.0, math.log(3)]]},
            {"n": [5.0], "c": [[0.0, 0.0]]},
            {"n": -2.0, "c": math.log(0.75 / 0.5)},
        ),
        (
            Records({"n": NumberField()}, max_records=2),
            {"n": [3.0, 1.0]},
            {"n": [5.0, 1.0]},
            {"n": [-2.0, 0.0]},
        ),
    ],
)
def test_attributions_by_hand(kind, whole, without, expected):
    tensors = [
        {name: torch.tensor(value) for name, value in side.items()} if isinstance(side, dict) else torch.tensor(side)
        for side in (whole, without)
    ]
    found = kind.attribution(*tensors)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_a_text_is_explained_up_to_its_end():
    logits = torch.zeros(3, 262)
    logits[0, 70], logits[1, 0], logits[2, 80] = 5.0, 5.0, 5.0
    change = logits[0].log_softmax(-1)[70] - math.log(1 / 262)
    assert Text(length=3).attribution(logits, torch.zeros(3, 262))[""] == pytest.approx(float(change), rel=1e-5)


def test_the_command_explains(command, tmp_path):
    write_folder(tmp_path / "model", lambda folder: save_model(model_of(SCHEMA, SUM), folder))
    write_rows(tmp_path / "new.csv", rows_of())
    code, _, _ = command(
        "predict", tmp_path / "model", tmp_path / "new.csv", "-o", tmp_path / "out.csv", "--attribution"
    )
    assert code == 0
    rows = list(read_rows(tmp_path / "out.csv"))
    assert len(rows) == 7
    assert float(rows[0]["kind.from.curve"])
    assert [len(json.loads(row["weight.from.units.each"] or "[]")) for row in rows] == [0, 1, 2, 0, 0, 2, 0]


def test_attention_is_drawn_where_it_is(command, tmp_path):
    """Attention is drawn over a picture of 2 x 3 tokens, a film and a series; an unreadable row is reported."""
    inputs = {
        "image": Image(size=(4, 6), patch=2, channels=1),
        "film": Video(size=(4, 4, 6), patch=(2, 2, 2), channels=1),
        "curve": Series(size=5, channels=1),
        "n": Numbers(),
    }
    model = model_of(Schema(inputs, {"y": Numbers(query_channels=16)}), SUM)
    raw = {name: spec.dummy_input(2, torch.device("cpu")) for name, spec in inputs.items()}
    found = attention(model, raw)
    assert {name: tuple(weights.shape) for name, weights in found.items()} == {
        "image": (2, 6),
        "film": (2, 12),
        "curve": (2, 5),
        "n": (2, 1),
    }
    torch.testing.assert_close(sum(weights.sum(dim=1) for weights in found.values()), torch.ones(2))
    # Draw the page of three rows, one of them unreadable.
    rng = np.random.default_rng(0)
    row = {
        "image": rng.normal(size=(4, 6, 1)).tolist(),
        "film": rng.normal(size=(4, 4, 6, 1)).tolist(),
        "curve": [1.0, 2.0, None],
    }
    write_rows(tmp_path / "new.jsonl", [{**row, "n": 3.0}, {**row, "n": None}, {**row, "n": "much"}])
    write_folder(tmp_path / "model", lambda folder: save_model(model, folder))
    arguments = ("-o", tmp_path / "out.csv", "--attention", tmp_path / "page.html", "--max-bad-rows", 1)
    code, _, err = command("predict", tmp_path / "model", tmp_path / "new.jsonl", *arguments)
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "n: not a number: &#x27;much&#x27;" in page


def test_heat_lies_where_the_token_lies():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    weights = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    Image(size=(4, 6), patch=2, channels=1).attention_picture(axes, torch.zeros(4, 6, 1), weights)
    picture, heat = axes.get_images()
    assert heat.get_array().tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    assert heat.get_extent() == picture.get_extent()
