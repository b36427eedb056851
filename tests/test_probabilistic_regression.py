"""Numbers with their uncertainty: losses by hand, and a known noise that is learned."""

import math

import numpy as np
import pytest
import torch

from perceivers import (
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentsConfig,
    Numbers,
    PerceiverIO,
    ProbabilisticRegression,
    Schema,
)
from perceivers.core.config import ProcessorConfig
from perceivers.core.tokens import Segment
from perceivers.training.metrics import evaluate

SMALL = Config(LatentsConfig(5, 16), EncoderConfig(), ProcessorConfig(num_layers=1, num_heads=2), DecoderConfig())


def test_the_likelihood_of_a_normal_distribution():
    spec = ProbabilisticRegression(count=2, mean=(0.0, 0.0), std=(1.0, 2.0))
    prediction = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 1.0], [0.0, 1.0]]])
    target = torch.tensor([[3.0, math.nan], [math.nan, math.nan]])
    assert float(spec.loss(prediction, target)) == pytest.approx(math.log(2.0) + 0.5 * (2 / 2) ** 2)
    # In units of the data's standard deviation, the second number's mean is 1.5 and its standard deviation 2.
    second = spec.loss(prediction, torch.tensor([[math.nan, 5.0], [math.nan, math.nan]]))
    assert float(second) == pytest.approx(math.log(2.0) + 0.5 * (1 / 2) ** 2)


def test_the_pinball_loss():
    spec = ProbabilisticRegression(quantiles=(0.1, 0.9))
    loss = spec.loss(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0]]))
    assert float(loss) == pytest.approx((0.1 * 1 + 0.1 * 1) / 2)


def test_quantiles_rise_and_deviations_are_positive():
    rows = 50 * torch.randn(7, 1, 6)
    for spec in (ProbabilisticRegression(count=2, quantiles=(0.1, 0.5, 0.9)), ProbabilisticRegression(count=3)):
        output = spec.build_output(6, {})
        output.head = torch.nn.Identity()
        found = output(rows, Segment(content=rows))
        assert found.shape == (7, spec.count, len(spec.quantiles) or 2)
        assert (found.diff(dim=-1) >= 0).all() if spec.quantiles else (found[..., 1] > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("quantiles", [(), (0.1587, 0.5, 0.8413)])
def test_known_noise_is_learned(quantiles):
    """The noise grows with x; the predicted standard deviation, or the distance between quantiles, must agree."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.choice([1.0, 4.0], 512).astype(np.float32)
    y = (10 * x + x * rng.normal(size=512)).astype(np.float32)
    records = [{"x": float(a), "y": float(b)} for a, b in zip(x, y, strict=True)]
    schema = Schema({"x": Numbers()}, {"y": ProbabilisticRegression(quantiles=quantiles, query_channels=8)}).fit(
        records
    )
    # Train.
    model = PerceiverIO(schema, SMALL)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    inputs, target = torch.from_numpy(x)[:, None], torch.from_numpy(y)[:, None]
    for _ in range(300):
        loss = schema.losses(model({"x": inputs}), {"y": target})["y"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Compare intervals and metrics with the known noise.
    found = model({"x": torch.tensor([[1.0], [4.0]])})["y"][:, 0].detach()
    low, high = schema.outputs["y"].interval(found)
    torch.testing.assert_close((high - low) / 2, torch.tensor([1.0, 4.0]), rtol=0.25, atol=0.0)
    torch.testing.assert_close((high + low) / 2, torch.tensor([10.0, 40.0]), rtol=0.05, atol=0.0)
    metrics = schema.outputs["y"].metrics()
    for metric in metrics.values():
        metric.update(*schema.outputs["y"].metric_inputs(model({"x": inputs})["y"].detach(), target))
    assert float(metrics["coverage"].compute()) == pytest.approx(0.683, abs=0.06)
    mean_deviation = math.sqrt(2 / math.pi) * x.mean()
    assert float(metrics["mae"].compute()) == pytest.approx(mean_deviation, rel=0.1)


def test_cells_of_a_table():
    assert ProbabilisticRegression().to_row(torch.tensor([[1.5, 0.25]])) == {"": 1.5, "std": 0.25}
    found = ProbabilisticRegression(count=2, quantiles=(0.1, 0.6)).to_row(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert found == {"": [2.0, 4.0], "q0.1": [1.0, 3.0], "q0.6": [2.0, 4.0]}


@pytest.mark.parametrize("quantiles", [(0.5, 0.1), (0.0, 0.5), (0.5, 1.0), (0.5, 0.5)])
def test_quantiles_must_rise(quantiles):
    with pytest.raises(ValueError, match="must rise between 0 and 1"):
        ProbabilisticRegression(quantiles=quantiles)


def test_what_is_estimated_gets_a_score():
    schema = Schema({"x": Numbers()}, {"y": ProbabilisticRegression()})
    records = [{"x": 1.0, "y": float(n)} for n in range(7)]
    model = PerceiverIO(schema.fit(records), SMALL)
    scores = evaluate(model, records)["y"]
    mean, deviation = model({"x": torch.tensor([[1.0]])})["y"][0, 0].tolist()
    distances = [abs(n - mean) for n in range(7)]
    assert scores["coverage"] == pytest.approx(sum(distance <= deviation for distance in distances) / 7)
    assert 0 < scores["coverage"] < 1
    assert scores["mae"] == pytest.approx(sum(distances) / 7, rel=1e-4)
    assert math.isnan(evaluate(PerceiverIO(schema.fit(records), SMALL), [{"x": 1.0}] * 3)["y"]["mae"])
