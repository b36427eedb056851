"""The examples of docs/: their data, from tiny files in the published formats, and training on their schema files."""

import gzip
import importlib
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from perceivers.data import StarCraft, Table
from perceivers.data.formats.readers import read_rows
from perceivers.data.published import starcraft_replays
from perceivers.media.audio_files import write_audio
from perceivers.media.image_files import write_image
from perceivers.runs.evaluate import DataSets, evaluate_run
from perceivers.runs.run import Run
from perceivers.runs.schema_file import read_schema_file
from perceivers.runs.train import run_recipe
from perceivers.schema.schema_files import from_file, with_settings
from perceivers.systems import PRESETS
from test_starcraft import some_game
from tiers import few

EXAMPLES = Path(__file__).parent.parent / "examples"

QUICK = (
    "training.num_steps=2",
    "training.batch_size=3",
    "training.schedule.warmup_steps=0",
    "config.processor.num_layers=1",
)


@pytest.fixture
def example(monkeypatch):
    """Return a function that imports an example's script."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module


def write_ts(path, rng, channels, lengths):
    series = (rng.normal(size=(channels, length)).round(3) for length in lengths)
    lines = [":".join(",".join(map(str, one)) for one in many) + f":{number % 2}" for number, many in enumerate(series)]
    path.write_text("\n".join(["# about", "@problemName x", "@data", *lines]))


def make_series(example, name, channels):
    rng, source = np.random.default_rng(0), Path("source")
    source.mkdir()
    for part in ("TRAIN", "TEST"):
        write_ts(source / f"Name_{part}.ts", rng, channels, (13, 7, 19, 11, 23))
    example("series").prepare(source, Path(name))


def make_co2(example):
    times = [f"{year}{month:02d}11,{300 + year - 1986 + month}" for year in range(1986, 1994) for month in range(1, 13)]
    times[7] = "19860811,"
    Path("co2.csv").write_text("\n".join(["date,co2", *times]))
    example("forecasting").prepare(Path("co2.csv"), Path("co2"))


def make_sunspots(example):
    years = [f"{year},{50 + 50 * np.sin(2 * np.pi * year / 11)}" for year in range(1880, 2000)]
    Path("sunspots.csv").write_text("\n".join(['"YEAR","SUNACTIVITY"', *years]))
    example("forecasting").prepare(Path("sunspots.csv"), Path("sunspots"))


def make_weather(example):
    rng = np.random.default_rng(0)
    lines = ["origin,temp,dewp,humid,wind_speed,pressure,visib,time_hour"]
    for hour in range(24 * 75):
        values = ",".join(map(str, rng.normal(size=5).round(2)))
        when = (datetime(2013, 1, 1) + timedelta(hours=hour)).isoformat() + "Z"
        lines.append(f"{'EWR' if hour % 7 else 'JFK'},{values},NA,{when}")
    Path("weather.csv").write_text("\n".join(lines))
    example("events").prepare(Path("weather.csv"), Path("weather"))


def idx(array):
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes())


def make_fashion(example):
    rng, source = np.random.default_rng(0), Path("source")
    source.mkdir()
    for part in ("train", "t10k"):
        images, labels = rng.integers(0, 256, (7, 5, 3), np.uint8), np.arange(7, dtype=np.uint8)
        (source / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (source / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    example("points").prepare(source, Path("fashion"))


def make_spoken(example):
    source = Path("source")
    source.mkdir()
    for number in range(7):
        path = source / f"{number % 3}_{'ab'[number % 2]}_{number + 2}.wav"
        write_audio(path, np.sin(np.arange(700 + 113 * number) / 5, dtype=np.float32)[:, None], 8000)
    example("spoken").prepare(source, Path("spoken"))


TETRAHEDRON = "OFF\n4 4 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


def make_cow(example):
    Path("cow.off").write_text(TETRAHEDRON)
    example("field").prepare(Path("cow.off"), Path("cow"), train=3, test=2)


def make_units(example):
    example("starcraft").prepare(Path("replays"), Path("units"), every=1)


MAKERS = {
    "vowels": lambda example: make_series(example, "vowels", 12),
    "motions": lambda example: make_series(example, "motions", 6),
    "plaid": lambda example: make_series(example, "plaid", 1),
    "co2": make_co2,
    "sunspots": make_sunspots,
    "weather": make_weather,
    "fashion": make_fashion,
    "spoken": make_spoken,
    "cow": make_cow,
    "units": make_units,
    "finetuned": make_spoken,
}


@pytest.fixture
def _replays(monkeypatch):
    games = tuple(tuple(starcraft_replays.snapshots_of(some_game(number))) for number in range(5))
    monkeypatch.setattr(starcraft_replays, "replays", lambda folder: games)


def test_every_schema_file_has_its_data_here():
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == MAKERS.keys()


@pytest.mark.parametrize("name", few(MAKERS, ["sunspots"]))
@pytest.mark.usefixtures("_replays")
def test_a_schema_file_checks_and_trains(name, example, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MAKERS[name](example)
    file = EXAMPLES / f"{name}.yaml"
    assert command("schema", "check", file)[0] == 0
    recipe = with_settings(read_schema_file(file), [*QUICK, *narrow(file)])
    run_recipe(recipe, Path("run"))
    assert evaluate_run(Run(Path("run"))).keys() == {"held out", *recipe.evaluations}
    if isinstance(recipe.data, Table):
        code, _, errors = command("predict", "run", recipe.data.held_out_file, "--out", "out.jsonl")
        assert code == 0, errors


def narrow(file):
    """Make the model of a schema file small."""
    return ("config.latents.channels=64",) if "channels: 512}" in file.read_text() else ()


def test_the_finetuned_example_has_the_processor_of_the_model_it_starts_from():
    ours, theirs = read_schema_file(EXAMPLES / "finetuned.yaml").config, PRESETS["multimodal"].preset().config
    assert ours.processor == theirs.processor
    assert ours.latents.channels == theirs.latents.channels


def test_baselines_of_series_by_hand(example):
    series = example("series")
    near, far = np.array([[0.0], [1.0], [1.0]]), np.array([[5.0], [5.0]])
    slow = np.array([[0.0], [0.0], [0.0], [1.0], [1.0]])
    assert series.nearest_warped([far, near], [slow]).tolist() == [1]
    assert series.warped(slow, series.padded([far, near]), np.array([2, 3])).tolist() == [25 * 3 + 16 * 2, 0.0]
    assert series.nearest_euclidean([far, near], [near, far]).tolist() == [1, 0]


def test_baselines_of_forecasts_by_hand(example):
    forecasting = example("forecasting")
    past = np.array([[-1.0, 3.0], [-0.5, 5.0], [0.0, 4.0]])
    plan = forecasting.Plan(past=1.5, future=1.0, season=1.0, split=0.0, relative=False)
    assert forecasting.at(past, np.array([-0.75])).tolist() == [4.0]
    assert forecasting.drifted(past, np.array([0.5, 1.0]), plan).tolist() == [6.0, 5.0]


def test_baselines_of_events_by_hand(example):
    events = example("events")
    times, values = np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 3.0])
    past, mean = {"temp": (times, values)}, {"temp": 7.0, "dewp": 5.0}
    asked = np.array([29.0, 44.0])
    guesses = {name: guess("temp", past, asked).tolist() for name, guess in events.rules(mean).items()}
    assert guesses == {
        "mean of the variable": [7.0, 7.0],
        "mean of the window": [2.0, 2.0],
        "last value": [3.0, 3.0],
        "value a day ago": [1.5, 3.0],
    }
    assert events.rules(mean)["last value"]("dewp", past, asked).tolist() == [5.0, 5.0]


def test_no_window_of_weather_crosses_into_another_block(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_weather(example)
    days = {
        part: {int(row["window"].split()[1]) for row in read_rows(Path(f"weather/{part}.csv"))}
        for part in ("train", "test")
    }
    assert days["test"] == set(range(60, 73))
    assert days["train"] == {day for day in range(60) if day % 15 <= 12}


def test_no_window_that_is_learned_from_sees_what_is_held_out(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_co2(example)
    data = Table("co2/train.jsonl", held_out_file="co2/test.jsonl")
    assert max(row["now"] + max(time for time, _ in row["future"]) for row in data.training()) < 1990
    assert min(row["now"] for row in data.held_out()) >= 1990


def test_what_lies_inside_a_tetrahedron(example, tmp_path):
    field = example("field")
    (tmp_path / "body.off").write_text(TETRAHEDRON)
    corners = field.read_off(tmp_path / "body.off")
    points = np.random.default_rng(0).uniform(-0.2, 1.0, (997, 3))
    expected = (points > 0).all(-1) & (points.sum(-1) < 1)
    assert (field.inside(points, corners) == expected).all()
    assert 0 < expected.sum() < len(points)


def test_the_nearest_picture_counts_known_pixels_alone(example):
    points = example("points")
    train, test = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32), np.array([[0.9, 1.0]], np.float32)
    assert points.nearest(train, test, np.array([[True, False]])).tolist() == [1]
    assert points.nearest(train, test, np.array([[False, True]])).tolist() == [0]


@pytest.mark.usefixtures("_replays")
def test_exported_snapshots_are_those_of_the_replays(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_units(example)
    rows = Table("units/train.jsonl", held_out_file="units/test.jsonl").training()
    snapshots = StarCraft().training()
    assert [row["time"] for row in rows] == [snapshot["time"] for snapshot in snapshots]
    assert rows[0]["units"]["type"] == snapshots[0]["units"]["type"].tolist()


def test_photographed_pairs_have_the_flow_of_their_disparity_and_of_their_plane(example, tmp_path):
    rng, source = np.random.default_rng(0), tmp_path / "source"
    for name in ("motorcycle_left.png", "motorcycle_right.png", "aloeL.jpg", "aloeR.jpg", "graf1.png", "graf3.png"):
        write_image(source / name, rng.integers(0, 256, (5, 7, 3), np.uint8))
    disparity = rng.uniform(1, 3, (5, 7)).astype(np.float32)
    disparity[1, 2] = np.inf
    np.savez(source / "motorcycle_disp.npz", disparity)
    write_image(source / "aloeGT.png", np.arange(35, dtype=np.uint8).reshape(5, 7))
    # The point (x, y) appears at (2 x + 1, y - 1) / 2.
    (source / "H1to3p.xml").write_text(
        "<opencv_storage><data>\n 2. 0. 1.\n 0. 1. -1. 0. 0. 2. </data></opencv_storage>"
    )
    example("flow_pairs").prepare(source, source, tmp_path / "pairs")

    sets = from_file(DataSets, tmp_path / "pairs" / "pairs.yaml").data
    flows = {name: next(iter(data.held_out()))["flow"] for name, data in sets.items()}
    known = np.isfinite(disparity)
    np.testing.assert_array_equal(
        flows["motorcycle"][known], np.stack([-disparity, np.zeros_like(disparity)], -1)[known]
    )
    assert np.isnan(flows["motorcycle"][1, 2]).all()
    np.testing.assert_array_equal(flows["aloe"][2, 3], [-17, 0])
    assert np.isnan(flows["aloe"][0, 0]).all()
    np.testing.assert_allclose(flows["wall"][3, 4], [0.5, -2])
    assert np.isnan(flows["wall"][0]).all()  # appears above the second picture
