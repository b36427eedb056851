"""Learned loss weights: gradients by hand, their limits, resuming, processes, the log and the report."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers.core.config import EncoderConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Label, Numbers, ProbabilisticRegression
from perceivers.schema import Schema
from perceivers.training.checkpoints import checkpoints
from perceivers.training.logging import read_log
from perceivers.training.losses import Objective
from perceivers.training.optimisers import OptimiserConfig
from perceivers.training.training_config import TrainingConfig
from small_run import CONFIG, SCHEMA, small_records, trained, weights_of, without_time

CALM = replace(CONFIG, encoder=EncoderConfig(), processor=ProcessorConfig(num_layers=1, num_heads=2))
"""A config without dropout."""
LEARNED = {"weights": "learned", "optimiser": OptimiserConfig(kind="adamw", learning_rate=0.05)}
OUTPUTS = {
    "label": Label(classes=3, query_channels=5, weight=0.5),
    "n": Numbers(query_channels=5, weight=2.0),
    "sure": ProbabilisticRegression(query_channels=5),
}


def objective_at(values):
    torch.manual_seed(0)
    objective = Objective(PerceiverIO(Schema({"x": Numbers(count=2)}, OUTPUTS), CONFIG), "learned").eval()
    with torch.no_grad():
        objective.log_variances.copy_(torch.tensor(values))
    return objective


def batch(**left_out):
    targets = {"label": torch.tensor([0, 2, 1]), "n": torch.tensor([[1.0], [3.0], [-2.0]]), "sure": torch.ones(3, 1)}
    given = {name: target for name, target in targets.items() if name not in left_out}
    return {"inputs": {"x": torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])}, "targets": given}


def test_gradients_by_hand():
    objective = objective_at([0.3, -0.7])
    plain = Objective(objective.model).eval()(batch())
    losses = objective(batch())
    expected = {"label": math.exp(-0.3) * plain["label"] + 0.5 * 0.3, "n": math.exp(0.7) * plain["n"] - 2.0 * 0.7}
    torch.testing.assert_close(losses, {**expected, "sure": plain["sure"]})
    sum(losses.values()).backward()
    plain = {name: loss.item() for name, loss in plain.items()}
    by_hand = [0.5 - math.exp(-0.3) * plain["label"], 2.0 - math.exp(0.7) * plain["n"]]
    torch.testing.assert_close(objective.log_variances.grad, torch.tensor(by_hand))
    weights = objective.weights()
    assert weights == pytest.approx({"label": math.exp(-0.3), "n": math.exp(0.7)})
    found = objective.unweighed({name: loss.item() for name, loss in losses.items()}, weights)
    assert found == pytest.approx(plain, rel=1e-5)


def test_an_output_without_a_target_keeps_its_weight():
    objective = objective_at([0.3, -0.7])
    sum(objective(batch(label=True)).values()).backward()
    assert objective.log_variances.grad[0] == 0
    assert objective.log_variances.grad[1] != 0


def test_before_the_first_step_they_are_the_fixed_ones():
    objective = objective_at([0.0, 0.0])
    torch.testing.assert_close(objective(batch()), Objective(objective.model).eval()(batch()))


def test_weights_become_what_the_losses_were(tmp_path):
    """The best exp(s) is the loss; two numbers of pure noise, one three times as wide as its unit."""
    rng = np.random.default_rng(0)
    records = [{"x": 0.0, "narrow": rng.normal(), "wide": 3 * rng.normal()} for _ in range(24)]
    unit = {"mean": (0.0,), "std": (1.0,), "query_channels": 5}
    schema = Schema({"x": Numbers(**unit)}, {"narrow": Numbers(**unit), "wide": Numbers(**unit)})
    trained(records, tmp_path, 80, schema, CALM, batch_size=24, checkpoint_every=80, log_every=80, **LEARNED)
    last = read_log(tmp_path)[-1]
    assert last["weights"]["narrow"] * last["losses"]["narrow"] == pytest.approx(1.0, abs=0.3)
    assert last["weights"]["wide"] * last["losses"]["wide"] == pytest.approx(1.0, abs=0.3)
    assert last["losses"]["wide"] > 5


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_resumed_run_makes_the_same_steps(tmp_path, kind):
    records = small_records()
    settings = {"weights": "learned", "optimiser": OptimiserConfig(kind=kind, learning_rate=0.05), "average_decay": 0.9}
    straight = trained(records, tmp_path / "straight", 8, **settings)
    trained(records, tmp_path / "stopped", 8, checkpoint_every=1, **settings)
    shutil.rmtree(checkpoints(tmp_path / "stopped")[0])  # as if the run had been killed after step 7
    resumed = trained(records, tmp_path / "stopped", 8, **settings)
    assert weights_of(straight) == weights_of(resumed)
    logs = [without_time(read_log(tmp_path / run)) for run in ("straight", "stopped")]
    assert logs[0] == logs[1]
    assert len({line["weights"]["label"] for line in logs[0]}) == 8
    fixed = trained(records, tmp_path / "fixed", 8, **settings | {"weights": "fixed"})
    assert weights_of(fixed) != weights_of(straight)
    assert "weights" not in read_log(tmp_path / "fixed")[0]


def test_parts_of_a_batch_learn_what_the_whole_does(tmp_path):
    settings = LEARNED | {"precision": "64-true"}
    schema = SCHEMA.changed("image", num_points=None)
    for name, parts in (("whole", 1), ("parts", 4)):
        trained(small_records(), tmp_path / name, 4, schema, CALM, accumulate=parts, **settings)
    lines = [read_log(tmp_path / name)[-1] for name in ("whole", "parts")]
    assert lines[0]["weights"] == pytest.approx(lines[1]["weights"], rel=1e-9)
    assert lines[0]["losses"] == pytest.approx(lines[1]["losses"], rel=1e-9)


def test_what_has_no_effect_is_said():
    with pytest.raises(ValueError, match="learned needs the optimiser adamw or muon"):
        TrainingConfig(weights="learned", optimiser=OptimiserConfig(kind="lamb"))
    model = PerceiverIO(Schema({"x": Numbers(count=2)}, {"n": Numbers()}), CONFIG)
    with pytest.warns(UserWarning, match="weights = learned has no effect"):
        Objective(model, "learned")
