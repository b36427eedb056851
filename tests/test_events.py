"""Events at irregular times: encodings and losses by hand; tables of long form, from proposals to predictions."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from perceivers import (
    Axis,
    Config,
    Coordinates,
    Events,
    Fourier,
    LatentAxis,
    LatentsConfig,
    PerceiverIO,
    Rotary,
    Schema,
    Series,
    Vectors,
)
from perceivers.core.config import DecoderConfig, EncoderConfig, ProcessorConfig
from perceivers.core.reading import Encoded
from perceivers.data import Table
from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import write_rows
from perceivers.data.long_form import LongForm
from perceivers.data.validation import read_parts
from perceivers.modalities.modality import sample_of
from perceivers.runs.infer_schema import proposed_recipe

OCTAVES = Fourier(num_bands=2, spacing="octaves")
LABS = Events(
    classes=("lactate", "pulse"), channels=5, bounds=(0.0, 8.0), positions=OCTAVES, mean=(2.0, 80.0), std=(0.5, 10.0)
)
SMALL = Config(
    LatentsConfig(num_latents=7, channels=12),
    EncoderConfig(num_heads=3),
    ProcessorConfig(num_heads=2, num_layers=1),
    DecoderConfig(num_heads=1),
)
NOTHING = Encoded(torch.zeros(1, 1, 1))
QUICK = ("--set", "training.num_steps=2", "training.batch_size=5", "training.schedule.warmup_steps=0")


def prepared(spec, value):
    return spec.preprocess(value, np.random.default_rng(0), training=False)


def batch(spec, *values):
    return spec.collate([None if value is None else prepared(spec, value) for value in values])


EVENTS = [[4.0, "pulse", 95.0], [8.0, "lactate", None], [2.0, "creatinine", 7.0]]


@pytest.mark.parametrize(
    "value",
    [
        EVENTS,
        [dict(zip(("time", "type", "value"), event, strict=True)) for event in EVENTS],
        dict(zip(("time", "type", "value"), zip(*EVENTS, strict=True), strict=True)),
        {"time": torch.tensor([4.0, 8.0, 2.0]), "type": np.array(["pulse", "lactate", "x"]), "value": [95, None, "7"]},
    ],
)
def test_all_forms_of_events_are_the_same(value):
    found = prepared(LABS, value)
    assert found["time"].tolist() == [4.0, 8.0, 2.0]
    assert found["type"].tolist() == [1, 0, -1]
    np.testing.assert_array_equal(found["value"], np.array([95.0, np.nan, 7.0], np.float32))
    assert {name: x.dtype for name, x in found.items()} == {"time": np.float32, "type": np.int64, "value": np.float32}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[None, "pulse", 1.0]], "the time of event 1 is unknown"),
        ([["2026-01-02", "pulse", 1.0]], "time: not a number: '2026-01-02'; for dates, set dates: true"),
        ([[1.0, "pulse", "high"]], "value: not a number: 'high'"),
        ([[1.0, "pulse", 2.0, 3.0]], r"an event must be \{time, type, value\}"),
        ({"time": [1.0], "type": ["pulse", "pulse"]}, "columns must be equally long"),
        ({"time": [1.0]}, "events without type"),
        ("pulse", "events must come in a list, or in columns, not as str"),
        ([3], r"an event must be \{time, type, value\}"),
    ],
)
def test_what_is_no_event_is_an_error(value, message):
    with pytest.raises(ValueError, match=message):
        prepared(LABS, value)


def test_no_event_is_an_empty_set():
    assert batch(LABS, [], EVENTS)["mask"].tolist() == [[False] * 3, [True] * 3]
    assert {name: len(x) for name, x in prepared(LABS, []).items()} == {"time": 0, "type": 0, "value": 0}


def test_statistics_are_those_of_each_type():
    """Lactate 1 and 3: mean 2, std 1. A constant type and a type without values are divided by 1."""
    value = [[1, "lactate", 1.0], [5, "lactate", 3.0], *([7, "bag", 0.1] for _ in range(7)), [9, "none", None]]
    fitted = Events().fit([value, [[3, "lactate", None]]])
    assert fitted.classes == ("bag", "lactate", "none")
    assert fitted.bounds == (1.0, 9.0)
    np.testing.assert_allclose(fitted.mean, [0.1, 2.0, 0.0])
    assert fitted.std == (1.0, 1.0, 1.0)
    assert replace(fitted, std=None).fit([value[:2]]).std == (1.0, 1.0, 1.0)
    assert Events(marks=False).fit([value]).mean is None
    with pytest.raises(ValueError, match="the type of all events is unknown"):
        Events().fit([[[1.0, None, 2.0]]])


def test_a_token_is_made_of_type_value_and_time():
    adapter = LABS.build_input()
    segment = adapter(batch(LABS, EVENTS))
    table = adapter.encoding.types.embedding.weight
    # The pulse of 95 is 1.5 standard deviations above its mean; the lactate is unknown; creatinine has no units.
    for row, (number, value, known) in enumerate([(2, 1.5, 1.0), (1, 0.0, 0.0), (0, 0.0, 0.0)]):
        e = table[number]
        expected = torch.cat([e, e * value, torch.tensor([value, known])])
        torch.testing.assert_close(segment.content[0, row], expected)
    # Time 2 of 0 to 8 is -0.5: sines and cosines of pi / 2 and pi, negative.
    expected = [-0.5, -1.0, 0.0, 0.0, -1.0]
    torch.testing.assert_close(segment.positions[0, 2], torch.tensor(expected), rtol=0, atol=1e-6)
    assert adapter.channels == segment.raw_channels == 5 + 5 + 2 + 5
    spikes = replace(LABS, marks=False).build_input()
    assert spikes(batch(replace(LABS, marks=False), EVENTS)).raw_channels == spikes.channels == 5 + 5


def test_times_are_coordinates_on_the_axis_of_a_series():
    spec = replace(LABS, positions=None, axis_names=("hours",), origin=1.0)
    segment = spec.build_input()(batch(spec, EVENTS, EVENTS[:1]))
    assert segment.coordinates["hours"].tolist() == [[3.0, 7.0, 1.0], [3.0, 0.0, 0.0]]
    query = spec.build_query({})(NOTHING, spec.at([3.0, 5.0], "pulse"))
    assert query.coordinates["hours"].tolist() == [[2.0, 4.0]]
    with pytest.raises(ValueError, match="events without positions"):
        Events(positions=None)


def test_rotary_positions_see_only_differences_of_times():
    """A series and events on one axis, and latents along it: moving all by the same time changes nothing."""
    rotary = Rotary((Axis("hours", 2.0, 40.0),), share=1.0)
    places = LatentsConfig(num_latents=7, channels=12, places=(LatentAxis("hours", 0.0, 8.0, 7),))
    config = Config(
        places,
        EncoderConfig(rotary=rotary),
        ProcessorConfig(num_heads=1, num_layers=1, rotary=rotary),
        DecoderConfig(rotary=rotary),
    )
    spec = replace(LABS, positions=None, axis_names=("hours",))
    wave = Series(size=3, channels=2, axis_names=("hours",), step=2.0, positions=None)
    model = PerceiverIO(Schema({"wave": wave, "past": spec}, {"future": spec}), config).eval()
    raw = {"wave": torch.randn(2, 3, 2), "past": batch(spec, EVENTS, EVENTS[:2])}
    asked = spec.at([7.0, 7.5], ["pulse", "lactate"])
    found = model(raw, {"future": asked})["future"]["value"]
    assert found.shape == (2, 2)
    later = {**raw, "past": {**raw["past"], "time": raw["past"]["time"] + 1}}
    assert (model(later, {"future": asked})["future"]["value"] - found).abs().max() > 1e-4


def test_the_answer_is_in_the_units_of_the_type():
    output = LABS.build_output(3, {})
    with torch.no_grad():
        output.head.weight.zero_()
        output.head.bias.fill_(1.0)
    points = LABS.at([1.0, 2.5, 8.0], ["pulse", "lactate", "pulse"])
    query = LABS.build_query({})(NOTHING, points)
    found = output(output.head(torch.zeros(2, 3, 3)), query)
    # One standard deviation above the mean.
    assert found["value"].tolist() == [[90.0, 2.5, 90.0]] * 2
    assert found["type"].tolist() == [[1, 0, 1]] * 2
    assert found["time"].tolist() == [[1.0, 2.5, 8.0]] * 2
    row = LABS.to_row(sample_of(found, 0))[""]
    assert row[1] == {"time": 2.5, "type": "lactate", "value": 2.5}
    unknown = Coordinates(torch.tensor([[1.0, -1.0]]))
    assert output(output.head(torch.zeros(2, 1, 3)), LABS.build_query({})(NOTHING, unknown))["value"].isnan().all()


def test_loss_and_metrics_by_hand():
    """Errors of 5 and 10 beats are 0.5 and 1 std; the value of 0.25 mmol is 0.5; others are unknown."""
    spec = replace(LABS, score_types=True)
    value = [[1, "pulse", 90], [2, "pulse", 80], [3, "lactate", 2.0], [4, "lactate", None], [5, "other", 3.0]]
    target = batch(spec, value, value[:1])
    guess = torch.tensor([[95.0, 90.0, 2.25, 7.0, 1e6], [90.0, 1e6, 1e6, 1e6, 1e6]])
    prediction = {"time": target["time"], "type": target["type"], "value": guess}
    assert float(spec.loss(prediction, target)) == pytest.approx((0.25 + 1 + 0.25 + 0) / 4)
    assert int(spec.num_terms(target)) == 4
    found = {}
    for name, metric in spec.metrics().items():
        metric.update(*spec.metric_inputs(prediction, target))
        found[name] = float(metric.compute())
    expected = {"rmse": math.sqrt(1.5 / 4), "rmse lactate": 0.25, "rmse pulse": math.sqrt((25 + 100) / 3)}
    assert found == pytest.approx(expected)


def test_a_type_without_any_value_has_no_score():
    spec = replace(LABS, score_types=True)
    target = batch(spec, [[1, "pulse", 90.0]])
    pair = spec.metric_inputs({"value": torch.tensor([[80.0]])}, target)
    metrics = spec.metrics()
    for metric in metrics.values():
        metric.update(*pair)
    assert math.isnan(metrics["rmse lactate"].compute())
    assert float(metrics["rmse pulse"].compute()) == 10.0


def test_an_event_of_an_unknown_type_is_written_without_a_value():
    model = PerceiverIO(Schema({"x": Vectors(channels=3)}, {"labs": LABS}), SMALL).eval()
    target = batch(LABS, EVENTS)
    found = model(torch.randn(1, 2, 3), {"labs": LABS.points(target)})["labs"]
    assert all(x.float().isfinite().all() for x in found.values())
    row = LABS.to_row(sample_of(found, 0))[""]
    assert [event["time"] for event in row] == [4.0, 8.0, 2.0]
    assert [event["type"] for event in row] == ["pulse", "lactate", None]
    assert [event["value"] is None for event in row] == [False, False, True]


def test_points_by_name():
    found = LABS.at([[1.0, 2.0], [3.0, 4.0]], "pulse")
    assert found.coordinates.tolist() == [[[1, 1], [2, 1]], [[3, 1], [4, 1]]]
    assert replace(LABS, origin=1.0, dates=True).at("2000-01-03", ["lactate"]).coordinates.tolist() == [[1.0, 0.0]]
    with pytest.raises(ValueError, match=r"type 'plus' is not one of lactate, pulse; did you mean 'pulse'\?"):
        LABS.at(1.0, "plus")
    query = LABS.build_query({})
    for points, message in (
        (None, "events have no whole"),
        (Coordinates(torch.tensor([[1.0, 0.5]])), r"type 0\.5, expected the number of a type"),
        (Coordinates(torch.tensor([[1.0, 2.0]])), "class 2 is not one of 0 to 1"),
        (Coordinates(torch.tensor([[1.0]])), "expected 2 of them"),
        (Coordinates(torch.tensor([[math.nan, 1.0]])), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            query(NOTHING, points)


def test_read_in_parts_and_in_any_order_is_the_whole():
    model = PerceiverIO(Schema({"past": LABS}, {"future": LABS}), SMALL).eval()
    raw = batch(LABS, EVENTS, EVENTS[:2])
    whole = model.encode({"past": raw}).latents
    parts = [{name: x[:, at] for name, x in raw.items()} for at in (slice(2, 3), slice(0, 2))]
    torch.testing.assert_close(model.encode({"past": part} for part in parts).latents, whole)
    each = LABS.ablations(raw)["each"]
    assert [ablation.there.tolist() for ablation in each] == [[True, True], [True, True], [True, False]]
    without = model.encode({"past": each[1].raw}).latents
    alone = model.encode({"past": batch(LABS, [EVENTS[0], EVENTS[2]], EVENTS[:1])}).latents
    torch.testing.assert_close(without, alone)


def test_large_times_keep_their_precision_or_are_refused():
    """32 bits tell unix seconds 128 s apart."""
    start = 1_700_000_000.0
    value = [[start + 60 * n, "pulse", 60.0 + n] for n in range(7)]
    with pytest.raises(ValueError, match=r"give origin, the time from which to count, e\.g\. origin: 1700000000"):
        Events().fit([value])
    fitted = Events(origin=start).fit([value])
    assert prepared(fitted, value)["time"].tolist() == [60.0 * n for n in range(7)]
    assert fitted.bounds == (0.0, 360.0)
    assert fitted.at(start + 61, ["pulse"]).coordinates.tolist() == [[61.0, 0.0]]
    row = fitted.to_row({"time": torch.tensor([61.0]), "type": torch.tensor([0]), "value": torch.tensor([1.0])})
    assert row[""][0]["time"] == start + 61


def test_dates_are_days():
    spec = Events(dates=True).fit([[["2000-01-02", "pulse", 1.0], ["2000-01-04T12:00", "pulse", 3.0]]])
    assert spec.bounds == (1.0, 3.5)
    row = spec.to_row({"time": torch.tensor([3.5]), "type": torch.tensor([0]), "value": torch.tensor([1.0])})
    assert row[""][0]["time"] == "2000-01-04T12:00:00"


def test_a_random_share_of_events_in_training_alone():
    spec = replace(LABS, subsample=(0.5, 0.5))
    value = [[n, "pulse", n] for n in range(20)]
    kept = spec.preprocess(value, np.random.default_rng(0), training=True)
    assert len(kept["time"]) == 10
    assert kept["time"].tolist() == kept["value"].tolist()
    assert len(prepared(spec, value)["time"]) == 20
    assert len(spec.target(value, np.random.default_rng(0), {}, training=True)["time"]) == 20


def test_outputs_without_values_are_refused():
    with pytest.raises(ValueError, match="marks = false: an output is the value of events"):
        replace(LABS, marks=False).build_output(3, {})


# Tables of long form.

FORM = LongForm("patient", "hours", "variable", "value")
FORECAST = replace(FORM, forecast=0.25)


def long_rows_of(count=23, seed=0):
    """Return shuffled rows of patients with a pulse (near 80) and a lactate (near 2), an age and an outcome."""
    rng, rows = np.random.default_rng(seed), []
    for patient in range(count):
        for number in range(rng.integers(5, 12)):
            kind = ("pulse", "lactate")[number % 2]
            value = round(float(rng.normal(*{"pulse": (80, 10), "lactate": (2, 0.5)}[kind])), 3)
            hours = round(float(rng.uniform(0, 48)), 3)
            row = {"patient": f"p{patient}", "hours": hours, "variable": kind, "value": value}
            rows.append({**row, "age": 20 + patient, "outcome": ("home", "ward")[patient % 2]})
    random.Random(seed).shuffle(rows)
    return rows


@pytest.fixture
def long_csv(tmp_path):
    write_rows(tmp_path / "long.csv", long_rows_of())
    return tmp_path / "long.csv"


def write_lines(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_rows_become_samples_in_the_order_of_time(tmp_path):
    path = write_lines(
        tmp_path / "long.csv",
        "patient,hours,variable,value,age,bed",
        "a,3,pulse,90,61,1",
        "b,0,pulse,70,,2",
        "a,1,lactate,,,1",
        "a,9,pulse,95,61,3",
    )
    with pytest.warns(UserWarning, match="left out, since they change within a sample: bed"):
        first, second = Table(path, long=FORM).read_table(tmp_path / "long.csv")
    assert first.place == f"{path}:2"
    assert {name: first[name] for name in ("patient", "age")} == {"patient": "a", "age": "61"}
    assert second["age"] is None
    assert "bed" not in first
    events = {name: column.tolist() for name, column in first["events"].items()}
    assert events["time"] == [1.0, 3.0, 9.0]
    assert events["type"] == ["lactate", "pulse", "pulse"]
    np.testing.assert_array_equal(events["value"], [np.nan, 90.0, 95.0])


def test_the_last_quarter_is_the_future_or_what_lacks_a_value(tmp_path):
    rows = [{"patient": 7, "hours": n, "variable": "pulse", "value": 60 + n} for n in (0, 4, 6, 7, 8)]
    write_rows(tmp_path / "long.jsonl", rows)
    table = Table(str(tmp_path / "long.jsonl"), long=FORECAST)
    (sample,) = table.read_table(tmp_path / "long.jsonl")
    assert sample["past"]["time"].tolist() == [0.0, 4.0, 6.0]
    assert sample["future"]["time"].tolist() == [7.0, 8.0]
    # Two events are asked for, one of them in the past of the others.
    write_rows(
        tmp_path / "asked.jsonl",
        [*rows[:2], {**rows[0], "hours": 20.5, "value": None}, {**rows[0], "hours": 1, "value": None}],
    )
    (sample,) = table.read_table(tmp_path / "asked.jsonl")
    assert sample["past"]["time"].tolist() == [0.0, 4.0]
    assert sample["future"]["time"].tolist() == [1.0, 20.5]


def test_times_may_count_from_the_first_event(tmp_path):
    path = write_lines(
        tmp_path / "long.csv",
        "patient,when,variable,value",
        "a,2026-01-02T12:00,pulse,90",
        "a,2026-01-01,pulse,80",
        "b,2026-03-01,pulse,70",
    )
    form = LongForm("patient", "when", "variable", "value", from_start=True)
    first, second = Table(path, long=form).read_table(tmp_path / "long.csv")
    assert first["events"]["time"].tolist() == [0.0, 1.5]
    assert first["when.start"] == "2026-01-01T00:00:00"
    assert second["events"]["time"].tolist() == [0.0]


def test_types_that_are_numbers_are_the_same_in_all_files(tmp_path):
    """Whole numbers become floats in files of columns with unknown cells."""
    write_lines(tmp_path / "long.csv", "patient,hours,variable,value", "a,0,7,1", "a,1,7.5,1")
    write_rows(
        tmp_path / "long.jsonl",
        [{"patient": "a", "hours": n, "variable": kind, "value": 1} for n, kind in enumerate((7.0, 7.5, 7))],
    )
    for name, types in (("long.csv", ["7", "7.5"]), ("long.jsonl", ["7", "7.5", "7"])):
        (sample,) = Table(str(tmp_path / name), long=FORM).read_table(tmp_path / name)
        assert sample["events"]["type"].tolist() == types


def test_nan_is_unknown_in_files_that_can_hold_it(tmp_path):
    rows = [{"patient": 7, "hours": n, "variable": "pulse", "value": 60 + n, "age": math.nan} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "hours": 9, "value": math.nan}])
    (tmp_path / "long.jsonl").write_text(text)
    (sample,) = Table(str(tmp_path / "long.jsonl"), long=FORECAST).read_table(tmp_path / "long.jsonl")
    assert sample["age"] is None
    assert [sample[name]["time"].tolist() for name in ("past", "future")] == [[0.0, 1.0, 2.0], [9.0]]


def test_samples_without_any_future_are_one_line(tmp_path):
    path = write_lines(tmp_path / "long.csv", "patient,hours,variable,value", *[f"p{n},{n},pulse,1" for n in range(9)])
    with pytest.raises(ValueError, match=r"long\.csv: no sample has events at two times, .* is 'patient' the column"):
        Table(path, long=FORECAST).training()
    assert len([*Table(path, long=FORECAST).read_table(tmp_path / "long.csv")]) == 9


def test_no_sample_is_split(long_csv):
    table = Table(str(long_csv), long=FORM, held_out_fraction=0.3, stratify="outcome")
    parts = [{row["patient"] for row in part} for part in (table.training(), table.held_out())]
    assert parts[0].isdisjoint(parts[1])
    assert len(parts[0] | parts[1]) == 23
    count = sum(len(row["events"]["time"]) for part in (table.training(), table.held_out()) for row in part)
    assert count == len(long_rows_of())


def test_rows_that_cannot_be_read_are_counted_and_named(tmp_path):
    lines = [f"p{n % 5},{n},pulse,{n}" for n in range(20)]
    bad = ["p1,soon,pulse,1", ",1,pulse,1", "p1,1,,1", "p1,1,pulse,high", "p1,,pulse,1", "p1,inf,pulse,1"]
    path = write_lines(tmp_path / "long.csv", "patient,hours,variable,value", *lines, *bad)
    schema = Schema({"past": Events()}, {"future": Events()})
    table = Table(path, long=FORECAST, max_bad_rows=6)
    parts = read_parts(table, schema)
    assert sorted(bad.place for bad in parts.unreadable) == [f"{path}:{n}" for n in range(22, 28)]
    reasons = " ".join(bad.reason for bad in parts.unreadable)
    for reason in (
        "hours: not a number: 'soon'",
        "no patient",
        "no variable",
        "value: not a number: 'high'",
        "no hours",
    ):
        assert reason in reasons
    assert parts.schema.inputs["past"].classes == ("pulse",)
    with pytest.raises(ValueError, match=r"6 rows cannot be read; max_bad_rows = 5"):
        read_parts(replace(table, max_bad_rows=5), schema)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "hours"}, "must be different columns"),
        ({"forecast": 1.0}, "must be between 0 and 1"),
        ({"forecast": 0.5, "value": None}, "events without a value have no forecast"),
        ({"time": "hour"}, r"unknown column \(long\): 'hour'; .*; did you mean 'hours'\?"),
        ({"sample": "events"}, "unknown column"),
    ],
)
def test_a_wrong_form_is_one_line(change, message, long_csv):
    with pytest.raises(ValueError, match=message):
        Table(str(long_csv), long=replace(FORM, **change)).training()


def test_a_table_of_long_form_is_recognised(long_csv):
    recipe = yaml.safe_load(proposed_recipe(str(long_csv)))
    form = {"sample": "patient", "time": "hours", "type": "variable", "value": "value"}
    assert recipe["data"]["long"] == {**form, "forecast": 0.25}
    assert recipe["inputs"]["past"] == {"kind": "events"}
    assert list(recipe["inputs"]["row"]["fields"]) == ["age", "outcome"]
    assert recipe["outputs"] == {"future": {"kind": "events", "score_types": True}}
    outcome = yaml.safe_load(proposed_recipe(str(long_csv), ["outcome"]))
    assert outcome["data"]["long"] == form
    assert outcome["data"]["stratify"] == "outcome"
    assert list(outcome["inputs"]) == ["row", "events"]
    assert outcome["outputs"] == {"outcome": {"kind": "label"}}
    both = yaml.safe_load(proposed_recipe(str(long_csv), ["value", "outcome"]))
    assert list(both["outputs"]) == ["future", "outcome"]
    with pytest.raises(ValueError, match="unknown column 'hours'; there are value, age, outcome"):
        proposed_recipe(str(long_csv), ["hours"])


def test_long_tables_with_dates_count_from_the_first_event(tmp_path):
    rows = [
        {**row, "hours": f"2026-01-{1 + int(row['hours'] / 2):02d}T{int(1000 * row['hours']) % 24:02d}:00"}
        for row in long_rows_of()
    ]
    write_rows(tmp_path / "long.csv", [{("when" if n == "hours" else n): x for n, x in row.items()} for row in rows])
    recipe = yaml.safe_load(proposed_recipe(str(tmp_path / "long.csv")))
    assert recipe["data"]["long"]["from_start"] is True


@pytest.mark.parametrize("column", ["patient", "hours", "variable", "value"])
def test_a_table_without_one_of_the_columns_has_another_form(column, tmp_path):
    rows = [{name: cell for name, cell in row.items() if name not in (column, "age")} for row in long_rows_of()]
    write_rows(tmp_path / "long.csv", rows)
    assert "long" not in yaml.safe_load(proposed_recipe(str(tmp_path / "long.csv")))["data"]


def test_a_column_that_varies_within_samples_makes_another_form(tmp_path):
    rows = [{**row, "by": f"nurse {number % 3}"} for number, row in enumerate(long_rows_of())]
    write_rows(tmp_path / "long.csv", rows)
    assert "long" not in yaml.safe_load(proposed_recipe(str(tmp_path / "long.csv")))["data"]


@pytest.mark.parametrize(
    "names", [("age", "height", "sex", "weight"), ("rooms", "area", "district", "price"), ("car", "km", "fuel", "eur")]
)
def test_a_wide_table_of_two_numbers_and_classes_is_not_of_long_form(names, tmp_path):
    rng = np.random.default_rng(0)
    columns = rng.integers(20, 60, 300), rng.normal(170, 10, 300), rng.choice(list("abc"), 300), rng.normal(70, 9, 300)
    first = [f"m{n}" for n in columns[0]] if names[0] == "car" else columns[0].tolist()
    columns = first, *(column.tolist() for column in columns[1:])
    write_rows(tmp_path / "wide.csv", [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])
    recipe = yaml.safe_load(proposed_recipe(str(tmp_path / "wide.csv")))
    assert "long" not in recipe["data"]
    assert list(recipe["outputs"]) == [names[3]]


@pytest.mark.parametrize("time", ["t", "charttime", "timeStamp", "year", "offset_min"])
def test_usual_names_of_times_are_recognised(time, tmp_path):
    renamed = {"patient": "who", "hours": time, "variable": "analyte", "value": "conc"}
    rows = [{renamed[n]: row[n] for n in renamed} for row in long_rows_of()]
    write_rows(tmp_path / "long.csv", rows)
    assert yaml.safe_load(proposed_recipe(str(tmp_path / "long.csv")))["data"]["long"]["time"] == time


def test_a_time_of_any_name_is_recognised_beside_usual_names(tmp_path):
    rows = [{"phase" if name == "hours" else name: cell for name, cell in row.items()} for row in long_rows_of()]
    write_rows(tmp_path / "long.csv", rows)
    assert yaml.safe_load(proposed_recipe(str(tmp_path / "long.csv")))["data"]["long"]["time"] == "phase"


def write_recipe(path, result):
    """Write what `schema propose` printed, with a small model."""
    code, recipe, _ = result
    assert code == 0
    assert "config: auto" in recipe
    sizes = "{latents: {num_latents: 5, channels: 16}, processor: {num_layers: 1, num_heads: 2}}"
    path.write_text(recipe.replace("config: auto", f"config: {sizes}"))


def test_from_a_long_table_to_predictions_in_long_form(command, long_csv, tmp_path):
    write_recipe(tmp_path / "recipe.yaml", command("schema", "propose", long_csv))
    run = tmp_path / "run"
    code, out, errors = command("train", tmp_path / "recipe.yaml", "--out", run, *QUICK)
    assert code == 0, errors
    assert "rmse lactate" in out
    code, _, errors = command("evaluate", run)
    assert code == 0, errors
    # Two questions about one patient, one about another, and a type that the model does not know.
    asked = write_lines(
        tmp_path / "asked.csv",
        "patient,hours,variable,value",
        "new,1,pulse,80",
        "new,30,lactate,",
        "new,12.345,pulse,",
        "old,5,lactate,2",
        "old,6,urea,",
    )
    code, _, errors = command("predict", run, asked, "-o", tmp_path / "out.csv")
    assert code == 0, errors
    rows = [dict(row) for row in read_rows(tmp_path / "out.csv")]
    assert [list(row.values())[:3] for row in rows] == [
        ["new", "12.345", "pulse"],
        ["new", "30.0", "lactate"],
        ["old", "6.0", "urea"],
    ]
    assert list(rows[0]) == ["patient", "hours", "variable", "value"]
    assert abs(float(rows[0]["value"]) - 80) < 60
    assert abs(float(rows[1]["value"]) - 2) < 3
    assert rows[2]["value"] is None
    # Attributions come in a row for each patient.
    code, _, errors = command("predict", run, asked, "-o", tmp_path / "why.jsonl", "--attribution")
    assert code == 0, errors
    rows = list(read_rows(tmp_path / "why.jsonl"))
    assert [row["patient"] for row in rows] == ["new", "old"]
    assert len(rows[0]["future.from.past.each"][0]) == 2


@pytest.mark.parametrize("from_start", ["true", "false"])
def test_predictions_have_the_dates_that_were_asked_for(command, from_start, tmp_path):
    """Dates with fractions of a second and with time zones come back as they are, and in the order of time."""
    lines = [f"p{n % 12},2026-01-{1 + n // 3:02d}T0{n % 3}:00,pulse,{60 + n}" for n in range(72)]
    path = write_lines(tmp_path / "long.csv", "patient,when,variable,value", *lines)
    form = f"{{sample: patient, time: when, type: variable, value: value, forecast: 0.25, from_start: {from_start}}}"
    since = "" if from_start == "true" else ", origin: 9497"
    (tmp_path / "mine.yaml").write_text(
        f"data: {{kind: table, file: {path}, long: {form}}}\n"
        f"inputs: {{past: {{kind: events{since}}}}}\noutputs: {{future: {{kind: events{since}}}}}\n"
        "config: {latents: {num_latents: 3, channels: 8}, processor: {num_layers: 1, num_heads: 2}}\n"
    )
    assert command("train", tmp_path / "mine.yaml", "--out", tmp_path / "run", *QUICK)[0] == 0
    asked = ["2026-01-03T08:00:00.5", "2026-01-03T10:00+02:00", "2026-01-03T08:00:01"]
    given = [f"p,{when},pulse," for when in asked]
    known = "p,2026-01-01T00:00:00.75,pulse,80"
    table = write_lines(tmp_path / "asked.csv", "patient,when,variable,value", known, *given)
    assert command("predict", tmp_path / "run", table, "-o", tmp_path / "out.csv")[0] == 0
    assert [row["when"] for row in read_rows(tmp_path / "out.csv")] == [asked[1], asked[0], asked[2]]


def test_a_label_of_long_samples_is_a_row_for_each(command, long_csv, tmp_path):
    write_recipe(tmp_path / "recipe.yaml", command("schema", "propose", long_csv, "--predict", "outcome"))
    code, _, errors = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run", *QUICK)
    assert code == 0, errors
    code, _, errors = command("predict", tmp_path / "run", long_csv, "-o", tmp_path / "out.csv", "--keep", "age")
    assert code == 0, errors
    rows = [dict(row) for row in read_rows(tmp_path / "out.csv")]
    assert list(rows[0]) == ["patient", "age", "outcome", "outcome.probability"]
    assert len(rows) == 23
