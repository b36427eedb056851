"""Spikes: the simulation by hand, the baselines on data that they fit exactly, both models, runs and reports."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers import Coordinates, PerceiverIO, PointSet
from perceivers.core.config import LatentAxis
from perceivers.data import SpikeTrains
from perceivers.data.spike_trains import GRID, REFRACTORY, WORKSPACE, Tuning, reaches
from perceivers.modalities.fields import CategoryField, DateField, NumberField
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.systems.spikes.baselines import Part, baseline_scores, given_tuning, lagged, parts_of, ridge
from perceivers.systems.spikes.model import CONFIG
from perceivers.systems.spikes.recipes import RECIPES
from perceivers.systems.spikes.report import preferred_directions, report

TINY = SpikeTrains(
    num_sessions=3, training_seconds=5, held_out_seconds=2, session_seconds=7, num_units=(5, 11), num_samples=20
)


def tuning_of(baseline, preferred, depth, gain, latency):
    return Tuning(*(np.array(each) for each in (baseline, preferred, depth, gain, latency)))


def test_rates_by_hand():
    """At 20 cm/s the speed counts as tanh 1: ahead 1 + 0.5 times this above log 3, across 0.5, behind -1 + 0.5."""
    tuning = tuning_of([3.0], [0.0], [1.0], [0.5], [20])
    found = tuning.log_rates(np.array([[20.0, 0.0], [0.0, 20.0], [-20.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found[:, 0], np.log(3) + np.tanh(1) * np.array([1.5, 0.5, -0.5, 0.0]))


def test_slopes_are_gradients_of_the_rates():
    tuning = tuning_of([3.0, 5.0], [0.3, -2.0], [1.0, 0.7], [0.5, 0.0], [20, 20])
    velocity, step = np.array([[7.0, -3.0], [-40.0, 1.0]]), 1e-5
    for side in range(2):
        moved = velocity.copy()
        moved[:, side] += step
        slope = (tuning.log_rates(moved) - tuning.log_rates(velocity)) / step
        np.testing.assert_allclose(tuning.slopes(velocity)[..., side], slope, atol=1e-6)


def test_a_hand_stays_in_its_workspace_and_rests():
    velocity = reaches(np.random.default_rng(0), 20_000)
    place = velocity.cumsum(0) * GRID
    assert WORKSPACE * 0.8 < np.abs(place).max() < WORKSPACE * 1.01
    resting = (velocity == 0).all(1).mean()  # the mean pause is 0.15 s, the mean reach 0.75 s
    assert 0.1 < resting < 0.25


def test_the_begin_of_a_session_does_not_depend_on_its_length():
    short, long = (replace(TINY, session_seconds=seconds) for seconds in (7, 13))
    for one, other in zip(short.training(), long.training(), strict=True):
        assert one["session"] == other["session"]
        for name in ("unit", "kind", "time"):
            np.testing.assert_array_equal(one["spikes"][name], other["spikes"][name])
        np.testing.assert_allclose(one["velocity"]["values"], other["velocity"]["values"])
    assert not np.array_equal(short.held_out()[0]["velocity"]["values"], long.held_out()[0]["velocity"]["values"])
    assert short.training()[0]["spikes"]["time"].size != replace(TINY, seed=1).training()[0]["spikes"]["time"].size


def test_a_session_depends_on_its_number_alone():
    one, other = TINY.session(2), replace(TINY, num_sessions=1, first_session=2).session(0)
    np.testing.assert_array_equal(one.times, other.times)
    assert one.name == other.name == "session 2"
    units = [set(session.units) for session in TINY.sessions()]
    assert not units[0] & units[1]
    assert all(5 <= len(each) <= 11 for each in units)


def test_spikes_follow_the_rates_and_the_refractory_period():
    session = SpikeTrains(num_sessions=1, session_seconds=400).session(0)
    for unit in range(len(session.units)):
        assert np.diff(session.times[session.numbers == unit]).min() >= REFRACTORY
    # The refractory period takes a few percent of the expected number of spikes.
    rates = np.exp(session.tuning.log_rates(session.velocity))
    counts = np.bincount(session.numbers, minlength=len(session.units))
    np.testing.assert_allclose(counts / (rates.sum(0) * GRID), 1, atol=0.15)
    assert 0.9 < counts.sum() / (rates.sum() * GRID) < 1


def test_spikes_precede_the_movement_by_the_latency():
    """The correlation of counts with the rate at later velocities is largest at the true latency."""
    session = SpikeTrains(num_sessions=1, session_seconds=400).session(0)
    unit = int(session.tuning.depth.argmax())
    counts = np.histogram(session.times[session.numbers == unit], np.arange(80_001) * GRID)[0]
    rates = np.exp(session.tuning.log_rates(session.velocity))[:, unit]
    length = 80_000 - 60
    found = max(range(60), key=lambda lag: np.corrcoef(counts[:length], rates[lag : lag + length])[0, 1])
    assert abs(found - session.tuning.latency[unit]) <= 2


def test_a_window_has_its_spikes_and_the_ends_of_every_unit():
    session = TINY.session(0)
    record = session.window(2.0, 4)
    spikes = record["spikes"]
    inside = (session.times >= 2) & (session.times < 3)
    assert (spikes["kind"] == "spike").sum() == inside.sum() > 0
    np.testing.assert_allclose(spikes["time"][spikes["kind"] == "spike"], session.times[inside] - 2)
    for kind, time in (("start", 0), ("end", 1)):
        assert spikes["unit"][spikes["kind"] == kind].tolist() == session.units.tolist()
        assert set(spikes["time"][spikes["kind"] == kind]) == {time}
    np.testing.assert_allclose(record["velocity"]["coordinates"][:, 0], [0.125, 0.375, 0.625, 0.875])
    np.testing.assert_allclose(record["velocity"]["values"], session.velocity[[425, 475, 525, 575]])


def test_held_out_windows_are_later_and_records_go_round_the_sessions():
    training, held_out = TINY.training(), TINY.held_out()
    assert (len(training), len(held_out), len(TINY.apart().training())) == (3 * 17, 3 * 2, 3 * 5)
    assert [record["session"] for record in training[:4]] == ["session 0", "session 1", "session 2", "session 0"]
    last, first = (part[-1]["velocity"]["values"] for part in (training, held_out[:3]))
    np.testing.assert_allclose(last, TINY.session(2).window(4.0, 20)["velocity"]["values"])
    np.testing.assert_allclose(first, TINY.session(2).window(5.0, 20)["velocity"]["values"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_sessions": 0}, "num_sessions = 0 must be at least 1"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"training_seconds": 6}, "= 8 must be at most session_seconds = 7"),
        ({"num_units": (11, 5)}, r"num_units = \(11, 5\) must be"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **settings)


def test_lags_by_hand():
    """Counts 1, 2, 3 give those before, at and after each time, with 0 outside."""
    counts = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    assert lagged(counts, (-1, 1))[0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0]]


def test_ridge_regression_finds_a_linear_code():
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (31, 23, 3)).astype(float)
    velocities = lagged(counts, (-2, 0)) @ rng.normal(size=(9, 2)) + 5
    found = ridge(Part(counts[:29], velocities[:29]), counts[29:])
    np.testing.assert_allclose(found, velocities[29:], atol=0.05)


def test_the_decoder_with_tuning_finds_the_velocity_of_exact_counts():
    """Counts are the expected ones of units with high rates, so that the prior has little weight."""
    session, bins = TINY.session(0), 20
    tuning = replace(session.tuning, baseline=np.full(len(session.units), 1e5), latency=session.tuning.latency * 0 + 20)
    steps = ((np.arange(2 * bins) + 0.5) / bins / GRID).astype(int)
    velocity = session.velocity[steps + 200]
    counts = np.exp(tuning.log_rates(velocity)) / bins
    # The latency of 20 steps is two bins: counts of bin t tell about the velocity in bin t + 2.
    found = given_tuning(tuning, counts[2 : 2 + bins][None])[0]
    np.testing.assert_allclose(found[2:], velocity[2:bins], atol=0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a run of two steps of each of both models on tiny data."""
    runs = {}
    for name in ("spikes", "spikes-fourier"):
        recipe = RECIPES[name]()
        schedule = replace(recipe.training.schedule, warmup_steps=0)
        training = replace(recipe.training, num_steps=2, batch_size=5, schedule=schedule)
        runs[name] = run_recipe(replace(recipe, data=TINY, training=training), tmp_path_factory.mktemp("runs") / name)
    return runs


@pytest.mark.parametrize("name", ["spikes", "spikes-fourier"])
def test_a_run_is_scored_beside_its_baselines_and_reported(runs, name):
    run = Run(runs[name].folder)
    scores = evaluate_run(run) | baseline_scores(run)
    assert list(scores) == [
        *("held out", "mean velocity", "ridge regression per session", "decoder that is given the tuning")
    ]
    assert scores["decoder that is given the tuning"]["velocity"]["r2"] > scores["mean velocity"]["velocity"]["r2"]
    keep_scores(run.folder, scores)
    page = report(run).read_text()
    assert page.count("<img") == 2
    assert "decoder that is given the tuning" in page


def test_baselines_see_the_same_windows_as_the_model(runs):
    parts = parts_of(runs["spikes"].held_out, {session.name: session for session in TINY.sessions()})
    for number, part in enumerate(parts.values()):
        session = TINY.session(number)
        inside = session.times >= 5
        assert part.counts.sum() == inside.sum()
        np.testing.assert_array_equal(
            part.counts.sum((0, 1)), np.bincount(session.numbers[inside], minlength=len(session.units))
        )


def test_the_unit_embeddings_of_the_tuned_units_are_found(runs):
    true, found = preferred_directions(runs["spikes"].model, TINY)
    tuned = np.concatenate([session.tuning.preferred[session.tuning.tuned] for session in TINY.sessions()])
    np.testing.assert_allclose(true, tuned)
    assert found.shape == true.shape
    # An embedding that holds the direction gives it back.
    run, sessions = runs["spikes"], TINY.sessions()
    table = run.model.input_adapter.adapters["spikes"].encodings.fields[0].embedding.weight
    kept = table.detach().clone()
    numbers = run.recipe.schema.inputs["spikes"].fields["unit"].preprocess(np.concatenate([s.units for s in sessions]))
    with torch.no_grad():
        table.zero_()
        table[1 + numbers, :2] = torch.from_numpy(np.concatenate([s.tuning.directions for s in sessions])).float()
    again = preferred_directions(runs["spikes"].model, TINY)[1]
    with torch.no_grad():
        table.copy_(kept)
    assert np.abs(np.angle(np.exp(1j * (again - true)))).max() < 0.4


def shifted_windows(name, runs, seconds):
    """Return the velocities of a model whose latents stand `seconds` later, for events and times that do too."""
    run = runs[name]
    schema, model = run.recipe.schema, run.model
    config = replace(
        CONFIG, latents=replace(CONFIG.latents, places=(LatentAxis("time", seconds, 1 + seconds, count=8),))
    )
    moved = PerceiverIO(schema, config).eval()
    moved.load_state_dict(model.state_dict())
    batch = schema.collate([schema.preprocess(run.held_out[0], np.random.default_rng(0), False)])["inputs"]
    batch["spikes"]["time"] = batch["spikes"]["time"] + seconds
    times = torch.tensor([[0.1], [0.7]]) + seconds
    return moved(batch, {"velocity": Coordinates(times)})["velocity"]


def test_only_differences_of_times_matter_to_rotary_positions(runs):
    with torch.no_grad():
        torch.testing.assert_close(
            shifted_windows("spikes", runs, 0.0), shifted_windows("spikes", runs, 0.4), atol=1e-3, rtol=1e-3
        )


def test_the_order_of_events_does_not_matter(runs):
    for run in runs.values():
        schema, record = run.recipe.schema, run.held_out[0]
        order = np.random.default_rng(0).permutation(len(record["spikes"]["time"]))
        other = {**record, "spikes": {name: column[order] for name, column in record["spikes"].items()}}
        batch = schema.collate([schema.preprocess(each, np.random.default_rng(0), False) for each in (record, other)])
        with torch.no_grad():
            one, two = run.model.eval()(batch["inputs"], schema.points(batch["targets"]))["velocity"]
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_numbers_as_fourier_features_by_hand():
    """0.25 in units of 0.5 around 0.5 is -0.5: its number, 1, then -0.5, sin and cos of -pi/2 and of -pi."""
    encoding = NumberField(mean=0.5, std=0.5, positions=Fourier(num_bands=2, spacing="octaves")).build_encoding()
    found = encoding(torch.tensor([[0.25, torch.nan]]))
    assert found.shape == (1, 2, encoding.channels) == (1, 2, 7)
    torch.testing.assert_close(found[0, 0], torch.tensor([-0.5, 1, -0.5, -1, 0, 0, -1]), atol=1e-6, rtol=0)
    assert not found[0, 1].any()
    dates = DateField(mean=0.0, std=1.0, positions=Fourier(num_bands=2, spacing="octaves")).build_encoding()
    assert dates(torch.tensor([[0.25]])).shape == (1, 1, dates.channels) == (1, 1, 13)


def test_columns_of_names_are_numbered_as_lists_are():
    field = CategoryField(classes=("b", "a"))
    names = ["a", "b", "c", "a"]
    assert field.preprocess(np.array(names)).tolist() == field.preprocess(names).tolist() == [1, 0, -1, 1]
    assert field.preprocess(np.array([], str)).dtype == np.int64


def test_r2_of_points_by_hand():
    """The squares of the differences are 1 in all, those from the mean 2."""
    spec = PointSet(axes=1, channels=1)
    metric = spec.metrics()["r2"]
    target = {"values": torch.tensor([1.0, 2.0, 3.0, 9.0]).reshape(1, 4, 1), "mask": torch.arange(4)[None] < 3}
    metric.update(*spec.metric_inputs(torch.tensor([1.0, 2.0, 4.0, 5.0]).reshape(1, 4, 1), target))
    assert float(metric.compute()) == pytest.approx(0.5)


def test_new_sessions_train_their_own_embeddings_alone(runs, tmp_path):
    recipe = RECIPES["spikes-new"]()
    data = replace(TINY, first_session=100, num_sessions=2, num_units=(3, 7))
    schedule = replace(recipe.training.schedule, warmup_steps=0)
    training = replace(recipe.training, num_steps=3, batch_size=5, schedule=schedule)
    known = runs["spikes"]
    new = run_recipe(replace(recipe, data=data, training=training, start_from=str(known.folder)), tmp_path / "new")
    old = known.recipe.schema.inputs["session"].classes
    assert new.recipe.schema.inputs["session"].classes == (*old, "session 100", "session 101")
    before, after = (dict(run.model.named_parameters()) for run in (known, new))
    units = "input_adapter.adapters.spikes.encodings.fields.0.embedding.weight"
    sessions = [f"output_query.alignment.projections.velocity.{part}" for part in ("weight", "bias")]
    changed = {name for name, x in after.items() if x.shape != before[name].shape or not torch.equal(x, before[name])}
    assert changed == {units, *sessions}
    assert torch.equal(after[units][: len(before[units])], before[units])  # known units
    assert len(after[units]) == len(before[units]) + sum(len(session.units) for session in data.sessions())
    assert after[sessions[0]].shape == (64, len(old) + 2)
