"""Optimisers, decay groups and schedules against the arrays recorded from the official JAX code."""

import io
import re
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perceivers.training.optimisers import Lamb, OptimiserConfig, ScheduleConfig, build_optimiser, learning_rate

REFERENCE = np.load(Path(__file__).parent / "reference" / "optim.npz")

# The recordings lack their settings, which were recovered from the numbers. With optax's float32 bias correction
# they agree within 2e-7; a decay of 0.0999 is 2e-6 off, a norm of 5 is 3e-6, no clipping 1e-3.
LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 2e-3, 0.1, 10.0
SCHEDULES = {
    "constant_cosine": ScheduleConfig(kind="constant_cosine"),
    "cosine": ScheduleConfig(kind="cosine", warmup_steps=20),
    "steps": ScheduleConfig(kind="steps"),
}


HAIKU_NAMES = {
    "linear.weight": "m/linear/w",
    "linear.bias": "m/linear/b",
    "norm.weight": "m/layer_norm/scale",
    "norm.bias": "m/layer_norm/offset",
    "positions": "m/trainable_position_encoding/pos_embs",
}


class Recorded(nn.Module):
    """The parameters of the recordings."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.positions = nn.Parameter(torch.zeros(5, 3))
        with torch.no_grad():
            for name, param in self.named_parameters():
                param.copy_(recorded("param0", name))

    def set_gradients(self, step: int) -> None:
        for name, param in self.named_parameters():
            param.grad = recorded(f"grad{step}", name)


class OutputBias(nn.Module):
    """The official EmbeddingDecoder: an output bias, and an embedding shared with the input."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.table = embedding.weight
        self.bias = nn.Parameter(torch.ones(7))


class EveryCase(nn.Module):
    """One parameter for every case that the decay rule distinguishes."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.ones(2, 3))
        self.paddings = nn.ParameterDict({"image": nn.Parameter(torch.ones(1, 5))})
        self.embedding = nn.Embedding(7, 3)
        self.decoder = OutputBias(self.embedding)
        self.layers = nn.ModuleList([nn.Linear(3, 5), nn.Conv1d(5, 2, 3), nn.ConvTranspose2d(2, 3, 5)])
        self.norms = nn.ModuleList([nn.LayerNorm(3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.RMSNorm(3)])
        self.attention = nn.MultiheadAttention(6, 2)


@pytest.fixture
def _untyped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the type checks of the tests, which would refuse an unknown kind first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def recorded(key: str, name: str) -> Tensor:
    array = torch.from_numpy(REFERENCE[f"{key}:{HAIKU_NAMES[name]}"])
    return array.T.clone() if name == "linear.weight" else array


def config(kind: str, decay_positions: bool = True) -> OptimiserConfig:
    return OptimiserConfig(
        kind=kind, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, decay_positions=decay_positions
    )


def train(model: Recorded, optimiser: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        model.set_gradients(step)
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimiser.step()


def names_of(model: nn.Module, group: dict) -> list[str]:
    names = {param: name for name, param in model.named_parameters()}
    return [names[param] for param in group["params"]]


@pytest.mark.parametrize("decay_positions", [True, False])
@pytest.mark.parametrize(("kind", "official"), [("lamb", "lamb"), ("adamw", "adam")])
def test_every_step_equals_the_official_one(kind: str, official: str, decay_positions: bool) -> None:
    model = Recorded()
    optimiser = build_optimiser(model, config(kind, decay_positions))
    for step in range(5):
        train(model, optimiser, range(step, step + 1))
        for name, param in model.named_parameters():
            expected = recorded(f"{official}:decaypos={decay_positions}:step{step}", name)
            # optax's float32 bias correction is 8e-6 of an update, and so of a parameter that started at zero.
            tolerance = 1e-5 if name.endswith("bias") else 2e-6
            assert relative_error(param.detach(), expected) <= tolerance, (step, name)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_equal_the_official_ones(kind: str) -> None:
    optimiser = OptimiserConfig(learning_rate=LEARNING_RATE)
    ours = torch.tensor([learning_rate(step, 100, optimiser, SCHEDULES[kind]) for step in range(101)])
    expected = torch.from_numpy(REFERENCE[f"lr:{kind}"])
    assert relative_error(ours, expected) <= 1e-6


def test_schedules_by_hand() -> None:
    optimiser = OptimiserConfig(learning_rate=2.0)

    def rates(schedule: ScheduleConfig, *steps: int) -> list[float]:
        return [learning_rate(step, 12, optimiser, schedule) for step in steps]

    warm = ScheduleConfig(warmup_steps=4, initial_factor=0.25, final_factor=0.5)
    assert rates(warm, 0, 2, 4, 8, 12, 99) == pytest.approx([0.5, 1.25, 2.0, 1.5, 1.0, 1.0])
    flat = ScheduleConfig(kind="constant_cosine", constant_fraction=1 / 3, final_factor=0.5)
    assert rates(flat, 0, 4, 8, 12, 99) == pytest.approx([2.0, 2.0, 1.5, 1.0, 1.0])
    steps = ScheduleConfig(kind="steps", decay_points=(0.5, 0.8), decay_factor=0.5)
    assert rates(steps, 0, 5, 6, 8, 9, 99) == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]
    assert rates(ScheduleConfig(kind="constant"), 0, 7, 99) == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_decay_groups(kind: str) -> None:
    always = {
        "embedding.weight", "decoder.bias", "layers.0.weight", "layers.1.weight", "layers.2.weight",
        "attention.in_proj_weight", "attention.out_proj.weight",
    }  # fmt: skip
    positions = {"latents", "paddings.image"}
    model = EveryCase()
    for decay_positions in (True, False):
        optimiser = build_optimiser(model, config(kind, decay_positions))
        decayed, exempt = (names_of(model, group) for group in optimiser.param_groups)
        assert [group["weight_decay"] for group in optimiser.param_groups] == [WEIGHT_DECAY, 0.0]
        assert set(decayed) == (always | positions if decay_positions else always)
        # The shared embedding is counted once.
        assert sorted(decayed + exempt) == sorted(name for name, _ in model.named_parameters())


def test_builds_the_configured_optimiser() -> None:
    for kind, cls, epsilon in (("lamb", Lamb, 1e-6), ("adamw", torch.optim.AdamW, 1e-8)):
        given = OptimiserConfig(kind=kind, learning_rate=0.5, betas=(0.25, 0.75), epsilon=0.125)
        for chosen, expected in ((given, 0.125), (OptimiserConfig(kind=kind), epsilon)):
            optimiser = build_optimiser(Recorded(), chosen)
            assert type(optimiser) is cls
            for group in optimiser.param_groups:
                assert (group["lr"], group["betas"], group["eps"]) == (chosen.learning_rate, chosen.betas, expected)


@pytest.mark.parametrize("kind", ["lamb", "adamw", "muon"])
def test_a_saved_state_continues_bitwise(kind: str) -> None:
    straight = Recorded()
    train(straight, build_optimiser(straight, config(kind)), range(5))

    model = Recorded()
    optimiser = build_optimiser(model, config(kind))
    train(model, optimiser, range(2))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = Recorded()
    resumed.load_state_dict(saved["model"])
    optimiser = build_optimiser(resumed, config(kind))
    optimiser.load_state_dict(saved["optimiser"])
    train(resumed, optimiser, range(2, 5))

    for param, expected in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(param, expected)


def test_trust_ratio_by_hand() -> None:
    """The update (0.6, 0.8) + 1 * (3, 4) = (3.6, 4.8) has norm 6, the parameter 5; 5/6 of it at lr 0.6: (1.8, 2.4)."""
    param, zero, still = (nn.Parameter(torch.tensor(value)) for value in ([3.0, 4.0], [0.0, 0.0], [3.0, 4.0]))
    param.grad = zero.grad = torch.tensor([1.5, 4.0])  # first Adam update: g / (|g| + 1)
    still.grad = torch.zeros(2)
    unused = nn.Parameter(torch.ones(2))
    groups = [{"params": [param, zero, unused], "weight_decay": 1.0}, {"params": [still], "weight_decay": 0.0}]
    Lamb(groups, lr=0.6, eps=1.0).step()
    assert relative_error(param.detach(), torch.tensor([1.2, 1.6])) <= 1e-6
    assert relative_error(zero.detach(), torch.tensor([-0.36, -0.48])) <= 1e-6  # zero norm: ratio 1
    assert torch.equal(still, torch.tensor([3.0, 4.0]))  # zero update: ratio 1, and not NaN
    assert torch.equal(unused, torch.ones(2))


def test_lamb_evaluates_a_closure_with_gradients() -> None:
    param = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimiser = Lamb([param], lr=0.5)

    def closure() -> float:
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimiser.step(closure) == 25.0
    assert not torch.equal(param, torch.tensor([3.0, 4.0]))


class Nouns(nn.Module):
    """A model with matrices in every part."""

    def __init__(self) -> None:
        super().__init__()
        self.input_adapter = nn.ModuleDict({"image": nn.Linear(3, 5)})
        self.trunk = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2))
        self.latents = nn.Parameter(torch.randn(2, 7))
        self.output_adapter = nn.ModuleDict({"label": nn.Linear(2, 3)})


def test_muon_changes_inner_matrices_as_torchs_and_adamw_the_rest() -> None:
    model, other = Nouns(), Nouns()
    other.load_state_dict(model.state_dict())
    inner = [other.trunk[0].weight, other.trunk[2].weight]
    rest = [p for p in other.parameters() if not any(p is matrix for matrix in inner)]
    decayed = [p for p in rest if p.ndim > 1]
    settings = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY}
    expected = [
        torch.optim.Muon(inner, adjust_lr_fn="match_rms_adamw", **settings),
        torch.optim.AdamW(decayed, **settings),
        torch.optim.AdamW([p for p in rest if p.ndim == 1], lr=LEARNING_RATE, weight_decay=0.0),
    ]
    ours = build_optimiser(model, config("muon"))
    for _ in range(3):
        for param, twin in zip(model.parameters(), other.parameters(), strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        for optimiser in (ours, *expected):
            optimiser.step()
    for (name, param), twin in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(param, twin), name


def test_frozen_parameters_are_left_out() -> None:
    model = Nouns()
    model.trunk.requires_grad_(False)
    left = {name for group in build_optimiser(model, config("muon")).param_groups for name in names_of(model, group)}
    assert left == {name for name, _ in model.named_parameters() if not name.startswith("trunk")}
    with pytest.raises(ValueError, match="nothing is left to learn"):
        build_optimiser(model.requires_grad_(False), config("lamb"))


@pytest.mark.parametrize("kind", ["lamb", "adamw"])
def test_the_optimiser_does_not_clip(kind: str) -> None:
    model = Recorded()
    model.set_gradients(0)
    optimiser = build_optimiser(model, config(kind))
    optimiser.step()
    for name, param in model.named_parameters():
        assert relative_error(optimiser.state[param]["exp_avg"], 0.1 * recorded("grad0", name)) <= 1e-6


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sgd"}, "kind='sgd' must be one of ('lamb', 'adamw', 'muon')"),
        ({"learning_rate": -1.0}, "learning rate -1.0 must be 0 or more"),
        ({"learning_rate": float("nan")}, "learning rate nan must be 0 or more"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 must be 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas=(0.9, 1.0) must lie in [0, 1)"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be above 0"),
        ({"max_norm": 0.0}, "max_norm=0.0 must be above 0, or None"),
        ({"base_batch_size": 0}, "base_batch_size=0 must be above 0"),
    ],
)
def test_wrong_optimiser_values(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        OptimiserConfig(**fields)


@pytest.mark.usefixtures("_untyped")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "linear"}, "kind='linear' must be one of ('constant', 'constant_cosine', 'cosine', 'steps')"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be 0 or more"),
        ({"initial_factor": -0.5}, "initial_factor=-0.5 must be 0 or more"),
        ({"final_factor": -0.5}, "final_factor=-0.5 must be 0 or more"),
        ({"decay_factor": float("inf")}, "decay_factor=inf must be 0 or more, and finite"),
        ({"constant_fraction": 1.0}, "constant_fraction=1.0 must be in [0, 1)"),
        ({"decay_points": (0.5, 1.5)}, "decay_points=(0.5, 1.5) must lie between 0 and 1"),
    ],
)
def test_wrong_schedule_values(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ScheduleConfig(**fields)


def test_wrong_values_of_a_run() -> None:
    schedule = ScheduleConfig(warmup_steps=10)
    for step, num_steps, message in (
        (0, 10, "warmup_steps=10 must be fewer than the run's num_steps=10"),
        (-1, 11, "step=-1 must be 0 or more"),
        (0, 0, "num_steps=0 must be above 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            learning_rate(step, num_steps, OptimiserConfig(), schedule)
    with pytest.raises(ValueError, match=r"learning rate -1\.0 must be 0 or more"):
        Lamb([torch.ones(2)], lr=-1.0)


def test_a_warm_up_without_effect_warns() -> None:
    with pytest.warns(UserWarning, match="warmup_steps=10 has no effect on 'steps': only 'cosine' warms up"):
        ScheduleConfig(kind="steps", warmup_steps=10)
