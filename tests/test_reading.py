"""The states of a reading add up: in any order, over inputs, chunks and processes."""

import functools
import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map

from cross_cases import NO_GPU, Make, every_device, reading
from perceivers.core.config import Config, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.fast import algorithms
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.token_blocks import sample_of
from perceivers.core.latents import Latents
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import NO_SCORE, Reading, SoftmaxState
from perceivers.modalities.flow import Flow, FramePair
from perceivers.modalities.image import Image
from perceivers.modalities.label import Label
from perceivers.modalities.points import Part
from perceivers.modalities.position_encodings import Fourier, Learned, PositionConfig
from perceivers.modalities.series import Series
from perceivers.modalities.vectors import Vectors
from test_algorithms import many
from test_perceiver import build

EXACT = 1e-12

# Parts.


@pytest.mark.parametrize("length", [8, 22])
@pytest.mark.parametrize("positions", [Fourier(num_bands=3), Learned(channels=5)], ids=["fourier", "learned"])
def test_a_sample_that_lacks_an_input_in_all_of_its_parts_has_its_mask_tokens(
    length: int, positions: PositionConfig
) -> None:
    spec = Series(size=11, channels=2, positions=positions, mask_prob=0.0)
    model = build({"series": spec, "vectors": Vectors(channels=5)}, {"label": Label(classes=3)})
    values, vectors = torch.randn(3, length, 2), torch.randn(3, 2, 5)
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1], mask[2, 3:] = False, False
    expected = model({"series": {"values": values, "mask": mask}, "vectors": vectors})["label"]
    torch.testing.assert_close(expected[1:2], model({"vectors": vectors[1:2]})["label"])
    parts = [
        {"series": Part({"values": values[:, half], "mask": mask[:, half]}, (half.start,), (length,))}
        for half in (slice(0, length // 2), slice(length // 2, length))
    ]
    torch.testing.assert_close(model.decode(model.encode(iter([*parts, {"vectors": vectors}])))["label"], expected)
    reading = model.read(parts[1] | {"vectors": vectors}) + model.read(parts[0])
    torch.testing.assert_close(model.decode(model.process(reading))["label"], expected)


def test_a_part_as_large_as_what_was_trained_on_has_its_own_learned_positions() -> None:
    model = build({"image": Image(size=(4, 5), positions=Learned(channels=5))}, {"label": Label(classes=3)})
    pixels = torch.randn(2, 8, 5, 3)
    parts = [{"image": Part(pixels[:, top : top + 4], (top, 0), (8, 5))} for top in (0, 4)]
    found = model.decode(model.encode(iter(parts)))["label"]
    torch.testing.assert_close(found, model({"image": pixels})["label"])


# States.


def state_of(scores: Tensor, values: Tensor, reference: float) -> SoftmaxState:
    """Return the state of one latent, by definition."""
    weights = (scores - reference).exp()
    shape = torch.full((1, 1, 1), reference, dtype=scores.dtype)
    return SoftmaxState(shape, weights.sum().expand(1, 1, 1), (weights @ values).expand(1, 1, 1, -1))


def nothing(channels: int) -> SoftmaxState:
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    return SoftmaxState(zero + NO_SCORE, zero, zero[..., None].expand(-1, -1, -1, channels))


@many
@given(
    sizes=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    spread=st.sampled_from([1.0, 30.0, 300.0]),
    shuffle=st.permutations(range(5)),
    seed=st.integers(0, 1000),
)
def test_states_add_up_in_any_order_and_grouping(sizes: list[int], spread: float, shuffle: Any, seed: int) -> None:
    torch.manual_seed(seed)
    scores = spread * torch.randn(sum(sizes), dtype=torch.float64)
    values = torch.randn(sum(sizes), 3, dtype=torch.float64)
    parts = [
        state_of(own, of, float(own.max()) - 3.0) if len(own) else nothing(3)
        for own, of in zip(scores.split(sizes), values.split(sizes), strict=True)
    ]
    expected = (scores.softmax(0) @ values).expand(1, 1, 3)
    shuffled = [parts[place] for place in shuffle if place < len(parts)]
    left = total_of(parts)
    right = parts[-1] if len(parts) == 1 else parts[0] + total_of(parts[1:])
    for state in (
        left,
        right,
        total_of(shuffled),
        total_of([nothing(3), *shuffled]),
        left + nothing(3),
    ):
        assert torch.allclose(state.attended(), expected, rtol=EXACT, atol=EXACT)
    assert torch.equal((nothing(3) + nothing(3)).attended(), torch.zeros(1, 1, 3))


def total_of(states: list[SoftmaxState]) -> SoftmaxState:
    return functools.reduce(operator.add, states)


@every_device
@pytest.mark.parametrize("algorithm", ["projected", "absorbed", "separable"])
def test_what_is_masked_altogether_is_nothing(algorithm: Algorithm, device: str) -> None:
    crossing = reading(Make(mask="dead", batch=2, heads=2)).to(torch.float64, device)
    state = algorithms.read(crossing.cross, Latents(crossing.latents), crossing.segment, algorithm, 5)
    assert torch.equal(state.attended()[0], torch.zeros_like(state.attended()[0]))
    assert bool((state.attended()[1] != 0).all())
    none = algorithms.read(crossing.cross, Latents(crossing.latents), sample_of(crossing.segment, 1), algorithm, 5)
    dead = algorithms.read(crossing.cross, Latents(crossing.latents), sample_of(crossing.segment, 0), algorithm, 5)
    assert torch.equal((none + dead).attended(), none.attended())


def test_no_tokens_at_all_are_nothing() -> None:
    crossing = reading(Make(positions="none", content=3))
    empty = replace(crossing.segment, content=torch.zeros(2, 0, 3, dtype=torch.float64))
    state = algorithms.read(crossing.cross, Latents(crossing.latents), empty, "absorbed", 5)
    assert torch.equal(state.attended(), torch.zeros(2, *state.attended().shape[1:]))
    assert state.weighted_values.requires_grad
    assert state.sum_exp.requires_grad


# Inputs and chunks.

CONFIG = Config(
    latents=LatentsConfig(num_latents=5, channels=14),
    encoder=EncoderConfig(num_heads=2, input_channels=22),
    processor=ProcessorConfig(num_heads=7, num_layers=2),
)
INPUTS = {
    "image": Image(size=(5, 7), positions=Fourier(num_bands=3)),
    "vectors": Vectors(channels=5),
    "frames": FramePair(size=(5, 7), embed=11, positions=Fourier(num_bands=3)),
}
OUTPUTS = {"label": Label(classes=3, query_channels=13), "flow": Flow(of="frames")}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def model(request: pytest.FixtureRequest) -> PerceiverIO:
    return build(INPUTS, OUTPUTS, CONFIG).to(request.param, torch.float64)


def inputs(model: PerceiverIO) -> dict[str, Any]:
    """Return inputs on the device of the model."""
    torch.manual_seed(2)
    vectors = torch.randn(3, 11, 5, dtype=torch.float64)
    raw = {
        "image": torch.randn(3, 5, 7, 3, dtype=torch.float64),
        "vectors": {"values": vectors, "mask": torch.arange(11) < torch.tensor([[11], [0], [5]])},
        "frames": torch.randn(3, 2, 5, 7, 3, dtype=torch.float64),
    }
    return tree_map(lambda x: x.to(model.trunk.latents.device), raw)


def close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-10, atol=1e-12)


def test_inputs_read_one_by_one_are_what_they_are_together(model: PerceiverIO) -> None:
    raw = inputs(model)
    expected = model.encode(raw, algorithm="dense")
    parts = [model.read({name: value}) for name, value in raw.items()]
    together = sum(reversed(parts), Reading())
    encoded = model.process(together)
    assert close(encoded.latents, expected.latents)
    assert close(model.decode(encoded)["flow"], model.decode(expected)["flow"])


def test_inputs_are_left_out_and_replaced(model: PerceiverIO) -> None:
    raw = inputs(model)
    read = model.read(raw)
    kept = {name: value for name, value in raw.items() if name != "image"}
    assert close(model.process(read.without("image")).latents, model.encode(kept).latents)
    other = {"image": raw["image"].flip(1)}
    replaced = model.process(read.without("image") + model.read(other))
    assert close(replaced.latents, model.encode(raw | other).latents)
    assert set(model.process(read.without("frames")).sources) == set()
    with pytest.raises(ValueError, match="sound was not read; there are image, vectors, frames"):
        read.without("sound")
    with pytest.raises(ValueError, match="the tokens of frames are an output's queries: read that input in one piece"):
        read + read
    with pytest.raises(ValueError, match="nothing was read"):
        model.process(Reading())


def test_shares_are_the_mass_of_attention_maps(model: PerceiverIO) -> None:
    raw = inputs(model)
    shares, maps = model.read(raw).shares(), model.attention_maps(raw)["encoder"]
    assert shares.keys() == maps.keys()
    for name, share in shares.items():
        assert close(share, maps[name].sum(-1)), name
    whole = sum(shares.values())
    assert close(whole, torch.ones_like(whole))
    assert not shares["vectors"][1].any()


def test_shares_of_nothing_are_zero(model: PerceiverIO) -> None:
    device = model.trunk.latents.device
    mask = torch.zeros(2, 7, dtype=torch.bool, device=device)
    vectors = {"values": torch.zeros(2, 7, 5, dtype=torch.float64, device=device), "mask": mask}
    share = model.read({"vectors": vectors}).shares()["vectors"]
    assert torch.equal(share, torch.zeros_like(share))


@pytest.mark.parametrize("algorithm", [None, "projected", "absorbed"])
def test_chunks_are_what_they_are_together(model: PerceiverIO, algorithm: Algorithm | None) -> None:
    raw = inputs(model)
    vectors = raw["vectors"]
    chunks = [
        {"vectors": {name: part[:, start : start + 4] for name, part in vectors.items()}} for start in range(0, 11, 4)
    ]
    rest = {name: value for name, value in raw.items() if name != "vectors"}
    encoded = model.encode(iter([*chunks, rest]), algorithm=algorithm)
    assert close(encoded.latents, model.encode(raw).latents)


def test_chunks_have_gradients(model: PerceiverIO) -> None:
    vectors = inputs(model)["vectors"]["values"].requires_grad_()
    whole = torch.autograd.grad(model.encode({"vectors": vectors}).latents.square().sum(), vectors)[0]
    chunks = ({"vectors": part} for part in vectors.split(3, dim=1))
    assert close(torch.autograd.grad(model.encode(chunks).latents.square().sum(), vectors)[0], whole)
