"""The weather data set, its baselines, and the systems of lead times and of streams, on a small made-up year."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers import PerceiverIO
from perceivers.core.config import LatentsConfig
from perceivers.data import SensorStreams, WeatherLeads
from perceivers.data.published.nyc_weather import AIRPORTS, COLUMNS, last_known, read_weather
from perceivers.runs.results import keep_scores
from perceivers.runs.train import run_recipe
from perceivers.systems import leads, streams
from perceivers.systems.leads.baselines import (
    MODEL,
    changes,
    condition,
    errors,
    held_out_hours,
    model_forecast,
    ridge_forecast,
)
from perceivers.systems.leads.model import LEADS
from perceivers.systems.streams.baselines import average_forecast, by_sensor, moving_average
from perceivers.training.metrics import inference

HOURS = 419


def rows(hours=HOURS):
    """Yield rows of the file: 24 degrees per day and 1 per hour, at each airport a little more; pressure is noise."""
    rng = np.random.default_rng(0)
    for airport, code in enumerate(AIRPORTS):
        for hour in range(hours):
            time = np.datetime64("2013-01-01T06", "h") + hour
            degrees = 10 * math.sin(2 * math.pi * (hour + 6) / 24) + airport + 50
            small = rng.normal(size=4) / 100
            numbers = (degrees + small[0], degrees - 7 + small[1], 90 + small[2], 10 + small[3], 1000 + rng.normal())
            yield {"origin": code, "time_hour": f"{time}:00:00Z"} | dict(zip(COLUMNS[2:], numbers, strict=True))


def written(path, table):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    return str(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return written(tmp_path_factory.mktemp("weather") / "weather.csv", rows())


def small_leads(file):
    return WeatherLeads(file=file, past=7, training_leads=5, leads=(1, 3, 5), gap=11)


# The file.


def test_rows_become_hours_by_hand(tmp_path):
    """Winds blow towards where they do not come from; gaps, NA and impossible winds are unknown."""
    table = [
        ("JFK", "2013-01-01T06:00:00Z", 40.0, 30.0, 90, 10.0, 1000.0),  # from the east
        ("EWR", "2013-01-01T08:00:00Z", 41.0, "NA", 180, 20.0, "NA"),  # from the south
        ("EWR", "2013-01-01T06:00:00Z", 42.0, 31.0, "NA", 0.0, 1001.0),  # calm
        ("LGA", "2013-01-01T06:00:00Z", 43.0, 32.0, "NA", 5.0, 1002.0),  # from anywhere
        ("LGA", "2013-01-01T08:00:00Z", 44.0, 33.0, 90, 1048.4, 1003.0),  # an error of the file
    ]
    path = written(tmp_path / "w.csv", [dict(zip(COLUMNS, row, strict=True)) for row in table])
    weather, nan = read_weather(path), math.nan
    assert str(weather.start) == "2013-01-01T06"
    expected = [
        [[42, 31, 0, 0, 1001], [40, 30, -10, 0, 1000], [43, 32, nan, nan, 1002]],
        [[nan] * 5] * 3,
        [[41, nan, 0, 20, nan], [nan] * 5, [44, 33, nan, nan, 1003]],
    ]
    np.testing.assert_allclose(weather.values, expected, atol=1e-12)
    np.testing.assert_allclose(weather.wave(np.array([0, 6, 18])), [[1, 0], [0, -1], [0, 1]], atol=1e-12)


def test_last_known_by_hand():
    values = np.array([[math.nan, 1.0], [2.0, math.nan], [math.nan, 3.0]])
    filled, known = last_known(values)
    assert filled.tolist() == [[2.0, 1.0], [2.0, 1.0], [2.0, 3.0]]
    assert known.tolist() == [[0, 1], [1, 0], [0, 1]]
    with pytest.raises(ValueError, match="variable 2 of 2 has no known value"):
        last_known(np.array([[1.0, math.nan]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": "BOS"}, "origin 'BOS' is none of EWR, JFK, LGA"),
        ({"time_hour": "noon"}, "time_hour 'noon' is no time from 1900 to 2100, such as 2013-01-01T06:00:00Z"),
        ({"time_hour": "NaT"}, "time_hour 'NaT' is no time"),
        ({"time_hour": "5"}, "time_hour '5' is no time"),
        ({"time_hour": "9999-01-01T00:00:00Z"}, "time_hour '9999-01-01T00:00:00Z' is no time"),
        ({"temp": "warm"}, r"w\.csv:2: temp: not a number: 'warm'"),
        ({"time_hour": "2013-01-01T07:00:00Z"}, "a second row of EWR at 2013-01-01T07:00:00Z"),
    ],
)
def test_a_wrong_row_is_one_line(change, message, tmp_path):
    table = [*rows(3)]
    path = written(tmp_path / "w.csv", [table[0] | change, *table[1:]])
    with pytest.raises(ValueError, match=message):
        WeatherLeads(file=path).training()


@pytest.mark.parametrize("wrong", [{"leads": ()}, {"leads": (3, 0)}, {"past": 0}])
def test_lead_times_without_sense_are_one_line(wrong):
    with pytest.raises(ValueError, match=r"one or more lead times, .* must be 1 hour or more"):
        WeatherLeads(**wrong)


def test_parts_are_split_by_time_with_a_gap(file):
    data = small_leads(file)
    training, held_out = data.part(False), data.part(True)
    assert (training.start, training.stop, held_out.start, held_out.stop) == (0, 419 - 63, 419 - 63 + 11, 419)
    assert data.nows(False, 7, 5).tolist() == list(range(6, 351))
    assert data.nows(True, 7, 5)[[0, -1]].tolist() == [367 + 6, 413]
    shorter = replace(data, end=0.5)
    assert shorter.part(True).stop == 209
    with pytest.raises(ValueError, match=r"52 hours hold no window of 60 \+ 5"):
        replace(data, past=60).held_out()
    for wrong, message in (({"gap": -1}, "gap = -1"), ({"end": 0.0}, "end = 0.0"), ({"past": 0}, "past = 0")):
        with pytest.raises(ValueError, match=message):
            replace(data, **wrong)


def test_a_record_has_the_past_and_the_change_until_the_lead_time(file):
    data = small_leads(file)
    records, values = data.training(), data.weather().values
    values = values - data.seasonal_means().reshape(values.shape)
    assert len(records) == 345 * 5
    record = records[5 * 4 + 2]  # the fifth hour (10), three hours ahead
    assert record["lead_time"] == [3.0]
    np.testing.assert_allclose(record["past"][:, :15], values[4:11].reshape(7, 15))
    assert (record["past"][:, 15:] == 1).all()
    np.testing.assert_allclose(record["change"], (values[13] - values[10]).ravel())
    np.testing.assert_allclose(record["lead_clock"], data.weather().wave(13))
    assert len(data.held_out()) == 41 * 3
    assert [record["lead_time"] for record in data.held_out()[:4]] == [[1.0], [3.0], [5.0], [1.0]]


def test_windows_of_a_sensor_follow_one_another():
    """Readings 5 to 7 are the third window's past; what follows is the fourth's past and more."""
    data = SensorStreams(3, 5, training_sensors=2, training_windows=7, held_out_sensors=3, held_out_windows=11)
    records, (readings, signal) = data.training(), data.readings(1, 7 * 3 + 5)
    assert [record["sensor"] for record in records] == ["sensor 1"] * 7 + ["sensor 2"] * 7
    record = records[7 + 2]
    np.testing.assert_array_equal(record["past"], readings[6:9])
    np.testing.assert_array_equal(record["later"], readings[9:14])
    np.testing.assert_array_equal(record["signal"], signal[9:14])
    assert len(data.held_out()) == 33
    assert data.held_out()[0]["sensor"] == "sensor 3"
    with pytest.raises(ValueError, match="the field that names the streams of these data is sensor"):
        data.check_streams("airport")
    for settings, message in (
        ({"periods": (9.0, 3.0)}, r"periods = \(9.0, 3.0\)"),
        ({"periods": (9.0, math.inf)}, r"periods = \(9.0, inf\) must be finite"),
        ({"noise": math.inf}, "noise = inf must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            SensorStreams(**settings)


def test_a_sensor_turns_at_its_own_speed():
    """Without drift and noise the phase advances by the same angle at each reading, between the two periods."""
    data = SensorStreams(drift=0.0, noise=0.0, periods=(20.0, 80.0))
    speeds = []
    for sensor in range(3):
        readings, signal = data.readings(sensor, 13)
        np.testing.assert_array_equal(readings, signal)
        np.testing.assert_allclose((signal**2).sum(1), 1)
        angles = np.diff(np.unwrap(np.arctan2(signal[:, 0], signal[:, 1])))
        np.testing.assert_allclose(angles, angles[0])
        speeds.append(angles[0])
    assert 2 * np.pi / 80 <= min(speeds) < max(speeds) <= 2 * np.pi / 20


# Baselines.


def test_errors_by_hand(file):
    """Two hours, one lead time: one of 4 known temperatures is wrong by 3, and so is one of 28 known values."""
    truth = np.zeros((2, 1, 15))
    truth[0, 0, 5], truth[:, :, 0] = 3.0, math.nan
    data = small_leads(file)
    found = errors(np.zeros((2, 1, 15)), truth, ["1 h"], data)
    assert math.isclose(found["temperature, °F"]["1 h"], math.sqrt(9 / 4))
    assert found["pressure, mb"]["1 h"] == 0
    std = np.std(data.weather().values[:356, 1, 0])
    assert math.isclose(found["all, in std"]["1 h"], math.sqrt(9 / 28) / std, rel_tol=1e-9)


def test_baselines_find_a_daily_wave(file):
    data = small_leads(file)
    hours = held_out_hours(data)
    truth = changes(data.weather(), hours, data.leads)
    means = data.seasonal_means().reshape(-1, 3, 5)
    np.testing.assert_allclose(means[..., 0], data.weather().values[..., 0], atol=0.1)
    ridge = ridge_forecast(data, hours, data.leads)
    assert np.abs(ridge - truth)[..., [0, 5, 10]].max() < 0.2
    assert np.abs(truth)[..., 0].max() > 5


def test_moving_averages_by_hand():
    """Two windows of two readings; half of what was counts after one reading."""
    past = np.array([4.0, 8.0, 6.0, 0.0]).reshape(1, 2, 2, 1)
    assert moving_average(past, 1.0).ravel().tolist() == [6.0, 3.0]
    assert moving_average(past, 0.0).ravel().tolist() == [8.0, 0.0]


def test_the_moving_average_suits_the_step_ahead():
    """A constant under noise: an average of many readings is much better than the last one."""
    still = SensorStreams(3, 2, 5, 30, 2, 30, periods=(1e9, 1e9), drift=0.0, noise=1.0)
    past = by_sensor(still.held_out(), "past")
    found, truth = average_forecast(still.training(), past), by_sensor(still.held_out(), "signal")
    assert found.shape == (2, 30, 2, 2)
    assert np.square(found - truth).mean() < 0.3 * np.square(past[:, :, -1:] - truth).mean()


# The models.


def test_one_encoding_at_many_lead_times_is_what_the_records_say(file):
    data = small_leads(file)
    torch.manual_seed(0)
    sizes = replace(LEADS, latents=LatentsConfig(num_latents=3, channels=8))
    schema = leads.model.leads(data).fit(data.training()[:50])
    model = PerceiverIO(schema, sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    hours = held_out_hours(data)[:7]
    means, later = data.seasonal_means(), hours[:, None] + np.array(data.leads)
    found = model_forecast(model, data, hours, data.leads) - (means[later] - means[hours, None])
    for number, record in enumerate(data.held_out()[: 7 * 3]):
        with inference(model):
            raw = {name: np.asarray(record[name], np.float32)[None] for name in schema.inputs}
            expected = model(raw)["change"][0].numpy()
        np.testing.assert_allclose(found[number // 3, number % 3], expected, rtol=1e-3, atol=1e-4)
    assert np.abs(found[:, 0] - found[:, 2]).max() > 1e-3
    assert condition(data.weather(), hours, 3)["lead_time"].tolist() == [[3.0]] * 7


@pytest.mark.parametrize("name", ["leads", "streams", "streams-stateless"])
def test_a_recipe_trains_is_scored_and_reported(name, file, tmp_path):
    system = leads if name == "leads" else streams
    recipe = system.RECIPES[name]()
    if system is leads:
        data: WeatherLeads | SensorStreams = small_leads(file)
        schema, model, output = leads.model.leads(data), MODEL, "all, in std"
        names = ["1 h", "3 h", "5 h"]
    else:
        data = SensorStreams(3, 5, 5, 20, 2, 11)
        schema, model, output = streams.model.schema(data, name == "streams"), streams.baselines.MODEL, "signal"
        names = ["1 ahead", "2 ahead", "4 ahead"]
    sizes = replace(recipe.config, latents=LatentsConfig(num_latents=3, channels=8))
    schedule = replace(recipe.training.schedule, warmup_steps=1)
    training = replace(recipe.training, num_steps=2, batch_size=4, schedule=schedule)
    recipe = replace(recipe, data=data, schema=schema, config=sizes, training=training)
    run = run_recipe(recipe, tmp_path / "run")
    scores = system.baseline_scores(run)
    assert {"persistence", model} <= {*scores}
    for each in scores.values():
        assert all(math.isfinite(value) for value in each[output].values())
        assert [*each[output]] == names
    keep_scores(run.folder, {"held out": {}} | scores)
    assert system.report(run).stat().st_size > 20_000
