"""The plan's counts are those of the computation, keep to the limits, and depend on shapes alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cross_cases import Crossing, Make, every_device, reading, writing
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig
from perceivers.core.fast import algorithms
from perceivers.core.fast.cost_model import CostModel
from perceivers.core.fast.plan_report import attention_plan
from perceivers.core.fast.planner import Choice, Plan, choose
from perceivers.core.latents import Latents
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.positions import AxisTables
from perceivers.modalities.image import Image, Video
from perceivers.modalities.label import Label
from perceivers.modalities.position_encodings import Fourier
from perceivers.modalities.vectors import Vectors
from perceivers.runs.flops import CPU_ATTENTION, PeakMemory
from perceivers.schema import Schema

LARGE = Make(grid=(31, 41), content=3, padding=5, qk=37, v=41, batch=2, content_batch=2)

MAKES = {
    "grid": LARGE,
    "masked": replace(LARGE, mask="some", masked=True),
    "projected": replace(LARGE, projected=True, batch=1),
    "vectors": replace(LARGE, positions="none", content=43, heads=3, qk=11, v=13, residual=True),
    "film": replace(LARGE, grid=(5, 11, 23), content=0, widening=2),
}

every_crossing = pytest.mark.parametrize(
    "crossing",
    [build(make).to(torch.float32) for build in (reading, writing) for make in MAKES.values()],
    ids=[f"{what}, {name}" for what in ("reading", "writing") for name in MAKES],
)


def case_of(crossing: Crossing) -> CostModel:
    return CostModel(crossing.cross, crossing.latents, crossing.segment, crossing.tail)


def run(crossing: Crossing, choice: Choice) -> tuple[Tensor, ...]:
    """Return the results of a single attention."""
    if crossing.tail is not None:
        return (crossing.computed(choice.algorithm, choice.block_size),)
    state = algorithms.read(
        crossing.cross, Latents(crossing.latents), crossing.segment, choice.algorithm, choice.block_size
    )
    return state.max_score, state.sum_exp, state.weighted_values


@every_crossing
def test_multiply_adds_are_those_that_are_made(crossing: Crossing) -> None:
    for algorithm in case_of(crossing).costs():
        choice = choose(case_of(crossing), Plan(algorithm=algorithm), dense=True)
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        with torch.no_grad(), counter:
            crossing.dense() if algorithm == "dense" else run(crossing, choice)
        made = counter.get_total_flops() / 2
        assert choice.cost.multiply_adds == pytest.approx(made, rel=0.06), algorithm


def size_of(x: Tensor | None) -> int:
    return 0 if x is None else x.numel() * x.element_size()


def peak(crossing: Crossing, choice: Choice) -> int:
    """Return the peak bytes in addition to inputs, parameters, results and gradients."""
    memory, segment = PeakMemory(), crossing.segment
    axes: Any = segment.positions.tables if isinstance(segment.positions, AxisTables) else ()
    memory.hold([*crossing.leaves.values(), *(axis.features for axis in axes), segment.mask, segment.masked])
    with memory:
        before = memory.alive
        results = run(crossing, choice)
        own = sum(map(size_of, results))
        forward = memory.peak - before - own
        if not torch.is_grad_enabled():
            return forward
        memory.peak = memory.alive
        sums = [x.square().sum() for x in results if x.requires_grad]
        gradients = torch.autograd.grad(sums, list(crossing.leaves.values()), allow_unused=True)
        return max(forward, memory.peak - before - own - sum(map(size_of, gradients)))


@every_device
@pytest.mark.parametrize("gradient", [False, pytest.param(True, marks=pytest.mark.slow)])
@every_crossing
def test_memory_stays_within_the_limit(crossing: Crossing, gradient: bool, device: str) -> None:
    crossing = crossing.to(torch.float32, device)
    with torch.set_grad_enabled(gradient):
        for algorithm, cost in case_of(crossing).costs().items():
            if algorithm == "dense":
                continue
            for tokens in (211, 701):
                limit = cost.bytes(tokens)
                choice = choose(case_of(crossing), Plan(limit, algorithm), dense=True)
                assert (choice.algorithm, choice.bytes <= limit) == (algorithm, True)
                assert peak(crossing, choice) <= limit, (algorithm, tokens)


@every_crossing
def test_too_small_a_limit_is_one_error_that_names_the_least(crossing: Crossing) -> None:
    case = case_of(crossing)
    least = min(cost.bytes(cost.unit) for cost in case.costs().values())
    assert choose(case, Plan(least), dense=True).bytes == least
    with pytest.raises(ValueError, match=rf"memory limit of .* MB: this needs at least {least / 1e6:.3g} MB$"):
        choose(case, Plan(least - 1), dense=True)


@every_crossing
def test_algorithms_can_be_forced(crossing: Crossing) -> None:
    case = case_of(crossing)
    for algorithm in case.costs():
        assert choose(case, Plan(algorithm=algorithm), dense=True).algorithm == algorithm
    cheapest = min(case.costs().items(), key=lambda item: item[1].work)[0]
    assert choose(case, Plan(), dense=True).algorithm == cheapest


@every_crossing
def test_dropout_of_weights_leaves_the_dense_algorithm_alone(crossing: Crossing) -> None:
    dropping = crossing.to(torch.float32)
    dropping.cross.attention.dropout = 0.1
    dropping.cross.train()
    assert not {"projected", "absorbed", "separable"} & set(case_of(dropping).costs())
    dropping.cross.eval()
    assert case_of(dropping).costs() == case_of(crossing).costs()


# Whole models.

WIDE = Config(latents=LatentsConfig(num_latents=32, channels=64), decoder=DecoderConfig(query_channels=128))
FOURIER = Fourier(num_bands=16)

SCHEMAS: dict[str, tuple[Schema, dict[str, Any], str]] = {
    "a thousand sensors, each with a history": (
        Schema({"sensors": Vectors(channels=499)}, {"state": Label(classes=3)}),
        {"sensors": torch.empty(2, 9973, 499, device="meta")},
        "read sensors",
    ),
    "a film in false colours": (
        Schema({"film": Video(size=(11, 61, 67), channels=5, positions=FOURIER)}, {"kind": Label(classes=3)}),
        {"film": torch.empty(2, 11, 61, 67, 5, device="meta")},
        "read film",
    ),
    "a picture from a few measurements": (
        Schema({"measured": Vectors(channels=7)}, {"picture": Image(size=(211, 223), positions=FOURIER)}),
        {"measured": torch.empty(2, 13, 7, device="meta")},
        "write picture",
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_other_algorithms_are_taken_where_they_are_cheaper(name: str) -> None:
    schema, raw, where = SCHEMAS[name]
    config = replace(WIDE, encoder=EncoderConfig(channel_alignment="pad")) if "read" in where else WIDE
    with torch.device("meta"):
        model = PerceiverIO(schema, config).eval()
    found = {one.name: one for one in attention_plan(model, raw)}[where]
    taken, dense = found.costs[found.algorithm], found.costs["dense"]
    assert found.algorithm != "dense"
    assert 2 * taken.multiply_adds < dense.multiply_adds
    assert taken.work == min(cost.work for cost in found.costs.values())


def test_plans_depend_on_shapes_alone() -> None:
    schema = Schema({"image": Image(size=(13, 17))}, {"image": Image(size=(13, 17)), "label": Label(classes=3)})
    plans = []
    for device, fill in (("meta", 0.0), ("cpu", 0.0), ("cpu", 3.0)):
        with torch.device(device):
            model = PerceiverIO(schema, WIDE).eval()
        plans.append(attention_plan(model, torch.full((2, 13, 17, 3), fill, device=device), memory_limit=3_000_000))
    assert plans[0] == plans[1] == plans[2]


def test_dropout_in_training_is_dense_and_says_what_cannot_be_read() -> None:
    schema = Schema({"vectors": Vectors(channels=3)}, {"label": Label(classes=3)})
    model = PerceiverIO(schema, replace(WIDE, encoder=EncoderConfig(attention_dropout=0.1)))
    raw = {"vectors": torch.randn(2, 7, 3)}
    assert attention_plan(model, raw)[0].algorithm == "dense"
    with pytest.raises(ValueError, match="dropout of attention weights in training"):
        model.read(raw)
    model.eval().read(raw)


def test_a_limit_is_respected_by_models_or_refused() -> None:
    schema = Schema({"image": Image(size=(13, 17))}, {"image": Image(size=(13, 17))})
    model = PerceiverIO(schema, WIDE).double().eval()
    image = torch.randn(2, 13, 17, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = model(image, algorithm="dense")["image"]
        for limit in (1_500_000, 5_000_000):
            found = model(image, memory_limit=limit)["image"]
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
            assert torch.equal(found, model(image, memory_limit=limit)["image"])
        with pytest.raises(ValueError, match=r"memory limit of 0\.001 MB: this needs at least"):
            model(image, memory_limit=1000)


def test_limits_that_are_none_are_refused() -> None:
    model = PerceiverIO(Schema({"image": Image(size=3)}, {"label": Label(classes=2)}))
    with pytest.raises(ValueError, match="memory_limit = 0 must be"):
        model(torch.zeros(1, 3, 3, 3), memory_limit=0)
