"""StarCraft II: units followed through events by hand, masked types, the entity encoder, and the baselines."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceivers.core.config import Config, LatentsConfig, ProcessorConfig
from perceivers.data import StarCraft
from perceivers.data.published import starcraft_replays
from perceivers.data.published.starcraft_replays import STATISTICS, events_of, snapshots_of
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.flops import CPU_ATTENTION
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.systems.starcraft.baselines import baseline_scores, baselines, time_means, type_counts
from perceivers.systems.starcraft.model import EntityEncoder, PerceiverEntities, TransformerEntities, schema
from perceivers.systems.starcraft.recipes import small
from perceivers.systems.starcraft.report import report
from perceivers.training.loop import TrainingConfig

ONE = ProcessorConfig(num_heads=2, num_layers=1)
TINY = Config(LatentsConfig(num_latents=3, channels=16), processor=ONE)


def born(second, index, name, owner, x, y, kind="UnitBornEvent"):
    event = {"name": kind, "second": second, "unit_id_index": index, "unit_type_name": name, "control_pid": owner}
    return SimpleNamespace(**event, x=x, y=y)


def player_stats(second, pid, workers):
    statistics = dict.fromkeys(STATISTICS.values(), 0) | {"workers_active_count": workers}
    return SimpleNamespace(name="PlayerStatsEvent", second=second, pid=pid, **statistics)


def some_game(number):
    """Return two snapshots: a drone that becomes an egg, moves and dies, a probe, a mineral field and a beacon."""
    return [
        born(0, 0, "MineralField", 0, 5, 6),
        born(0, 1, "BeaconArmy", 1, 0, 0),
        born(0, 2, "Drone", 1, 10 + number, 20),
        born(4, 3, "Probe", 2, 30, 40),
        player_stats(10, 1, 12),
        player_stats(10, 2, 13),
        SimpleNamespace(name="UnitTypeChangeEvent", second=11, unit_id_index=2, unit_type_name="Egg"),
        SimpleNamespace(name="UnitPositionsEvent", second=12, positions=[(2, (11, 21)), (99, (1, 1))]),
        born(13, 5, "Gateway", 2, 31, 41, kind="UnitInitEvent"),
        SimpleNamespace(name="UnitOwnerChangeEvent", second=14, unit_id_index=3, control_pid=1),
        player_stats(20, 1, 14),
        player_stats(20, 2, 15),
        SimpleNamespace(name="UnitDiedEvent", second=21, unit_id_index=2),
        born(22, 2, "Zergling", 2, 1, 2),
        player_stats(30, 1, 16),
        player_stats(30, 2, 17),
    ]


@pytest.fixture
def games(monkeypatch):
    """Return the data set of six games."""
    monkeypatch.setattr(
        starcraft_replays,
        "replays",
        lambda folder: tuple(tuple(snapshots_of(some_game(number))) for number in range(6)),
    )
    return StarCraft(held_out_every=3)


def columns(snapshot):
    units = snapshot["units"]
    return list(zip(*(units[name].tolist() for name in ("type", "owner", "x", "y", "age")), strict=True))


def test_units_are_followed_through_events():
    first, second, third = snapshots_of(some_game(0))
    assert columns(first) == [("Drone", 1, 10, 20, 10), ("Probe", 2, 30, 40, 6)]
    assert columns(second) == [("Egg", 1, 11, 21, 20), ("Probe", 1, 30, 40, 16), ("Gateway", 2, 31, 41, 7)]
    assert [row[0] for row in columns(third)] == ["Probe", "Gateway", "Zergling"]
    assert [snapshot["time"] for snapshot in (first, second, third)] == [10, 20, 30]
    assert (second["statistics"]["workers_1"], second["statistics"]["workers_2"]) == (14, 15)


def test_what_is_hidden_is_told_once_only(games):
    """A type is either in the input or in the target; others are masked each time, about the requested share."""
    records = games.training()
    fitted = schema().fit(records)
    hidden = []
    for seed in range(50):
        sample = fitted.preprocess(records[1], np.random.default_rng(seed), training=True)
        shown, target = sample["inputs"]["units"]["type"], sample["targets"]["hidden"]["type"]
        assert ((shown == -1) != (target == -1)).all()
        truth = np.where(shown == -1, target, shown)
        assert [fitted.outputs["hidden"].fields["type"].classes[n] for n in truth] == ["Egg", "Probe", "Gateway"]
        hidden.append(shown == -1)
    assert 0.08 < np.mean(hidden) < 0.25
    assert len({tuple(one) for one in hidden}) > 2


def test_games_are_apart(games):
    """The drone's position identifies the game: every third one is held out."""
    places = [{record["units"]["x"][0] for record in part[::3]} for part in (games.training(), games.held_out())]
    assert places == [{10, 11, 13, 14}, {12, 15}]


def test_the_oldest_units_are_kept(games):
    record = replace(games, max_units=2).held_out()[1]
    assert record["units"]["type"].tolist() == ["Egg", "Probe"]


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.SC2Replay files"):
        StarCraft(folder=str(tmp_path)).training()
    with pytest.raises(ValueError, match="at least 2"):
        StarCraft(held_out_every=1)


def test_a_damaged_replay_is_refused(tmp_path):
    pytest.importorskip("sc2reader")
    (tmp_path / "a.SC2Replay").write_bytes(b"MPQ\x1b" + bytes(100))
    with pytest.raises(ValueError, match="not a replay"):
        events_of(tmp_path / "a.SC2Replay")


@pytest.mark.parametrize("trunk", [lambda: PerceiverEntities(TINY), lambda: TransformerEntities(ONE)])
def test_empty_slots_count_nowhere(trunk):
    """The content and number of empty slots have no effect."""
    torch.manual_seed(0)
    encoder = EntityEncoder(trunk()).eval()
    entities = torch.randn(2, 7, 256)
    mask = torch.arange(7).expand(2, 7) < torch.tensor([[5], [3]])
    each, every = encoder(entities, mask)
    assert each.shape == (2, 7, 256)
    assert every.shape == (2, 256)
    assert not each[~mask].any()
    other = torch.where(mask[..., None], entities, 1e3)
    torch.testing.assert_close(encoder(other, mask), (each, every))
    alone = encoder(entities[1:, :3], mask[1:, :3])
    torch.testing.assert_close(alone[0], each[1:, :3])
    torch.testing.assert_close(alone[1], every[1:])


@pytest.mark.parametrize("trunk", [lambda: PerceiverEntities(TINY), lambda: TransformerEntities(ONE)])
def test_entities_are_a_set(trunk):
    torch.manual_seed(0)
    encoder = EntityEncoder(trunk()).eval()
    entities, mask, order = torch.randn(1, 5, 256), torch.ones(1, 5).bool(), torch.tensor([3, 0, 4, 1, 2])
    each, every = encoder(entities, mask)
    turned = encoder(entities[:, order], mask)
    torch.testing.assert_close(turned[0], each[:, order])
    torch.testing.assert_close(turned[1], every)


def test_operations_of_both_encoders():
    """Table 9 of the paper: 3.3 billion for the Transformer, about 3.5 times as many as for Perceiver IO."""
    flops = []
    for trunk in (PerceiverEntities, TransformerEntities):
        encoder = EntityEncoder(trunk()).eval()
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            encoder(torch.zeros(1, 512, 256), torch.ones(1, 512).bool())
        flops.append(counter.get_total_flops())
    assert flops[1] == pytest.approx(3.3e9, rel=0.01)
    assert 3.3 < flops[1] / flops[0] < 5.5


def test_a_run_from_end_to_end(games, tmp_path):
    """Train, evaluate and compare with baselines on the same records; with a single type, the baseline never errs."""
    recipe = replace(
        small(), data=games, config=TINY, training=TrainingConfig(num_steps=2, batch_size=4, accelerator="cpu")
    )
    run_recipe(recipe, tmp_path)
    guesses = baseline_scores(Run(tmp_path))
    keep_scores(tmp_path, evaluate_run(Run(tmp_path)) | guesses)
    scores = evaluate_run(Run(tmp_path))["held out"]
    assert 0 <= scores["hidden"]["accuracy"] <= 1
    assert scores["statistics"]["rmse"] > 0
    assert 0 <= guesses["most frequent type of the player's others"]["hidden"]["accuracy"] <= 1
    assert guesses["means at the same time"]["statistics"]["rmse"] == pytest.approx(0)  # all games are equal
    page = report(Run(tmp_path)).read_text()
    assert "means at the same time" in page
    assert "Snapshot 6" in page


def test_guesses_by_hand(games):
    """The three snapshots of a game contain a drone, an egg, two gateways, three probes and a zergling."""
    training = games.training()[:3]
    fitted = schema().fit(training)
    counts = dict(zip(fitted.outputs["hidden"].fields["type"].classes, type_counts(fitted, training), strict=True))
    assert counts == {"Drone": 1, "Egg": 1, "Gateway": 2, "Probe": 3, "Zergling": 1}
    assert time_means(training * 2)[20.0]["workers_2"] == 15


def test_the_others_of_a_player_tell(games):
    """Ten probes of player 1, nine gateways of player 2: the other units of a player give the masked type."""
    units = {"type": np.array(["Probe"] * 10 + ["Gateway"] * 9, object), "owner": np.array([1] * 10 + [2] * 9)}
    units |= {name: np.zeros(19, np.float32) for name in ("x", "y", "age")}
    records = [{**games.training()[0], "units": units}] * 5
    scores = baselines(schema().fit(records), records, records)
    assert scores["most frequent type of the player's others"]["hidden"]["accuracy"] == 1
    assert scores["most frequent type"]["hidden"]["accuracy"] < 1
