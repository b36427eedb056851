"""Every algorithm of a cross-attention gives the outputs and gradients of the dense one, at any block size."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cross_cases import TAILS, Crossing, Make, every_device, largest_error, makes, reading, with_gradients, writing
from perceivers import Config, Flow, FramePair, Image, LatentsConfig, Numbers, PerceiverIO, Schema, Series, Vectors
from perceivers.core.config import DecoderConfig, EncoderConfig
from perceivers.core.fast import algorithms, epilogue, separable_blocks, token_blocks
from perceivers.core.fast.algorithms import Algorithm, _sums
from perceivers.core.fast.linear_maps import Norm
from perceivers.core.fast.token_blocks import Block, TokenBlocks
from perceivers.core.latents import Latents
from perceivers.core.reading import SoftmaxState
from perceivers.core.tokens import Segment
from perceivers.modalities.position_encodings import Fourier
from reference_files import read, relative_error, under
from test_convert import ASK, RECORDED, ask_imagenet, built, converted
from tiers import few

EXACT = 1e-10

many = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)

blocks = st.integers(1, 31)
seeds = st.integers(0, 1000)


def assert_agreement(crossing: Crossing, algorithm: Algorithm, block_size: int) -> None:
    expected = with_gradients(crossing, crossing.dense())
    found = with_gradients(crossing, crossing.computed(algorithm, block_size))
    assert largest_error(found, expected) <= EXACT, algorithm


@every_device
@many
@given(make=makes, block_size=blocks, seed=seeds)
def test_reading_agrees_with_the_dense_path(device: str, make: Make, block_size: int, seed: int) -> None:
    crossing = reading(make, seed).to(torch.float64, device)
    assert {"projected", "absorbed"} <= set(crossing.algorithms)
    for algorithm in crossing.algorithms:
        assert_agreement(crossing, algorithm, block_size)


@every_device
@many
@given(make=makes, tail=st.sampled_from([*TAILS]), block_size=blocks, seed=seeds)
def test_writing_agrees_with_the_dense_path(device: str, make: Make, tail: str, block_size: int, seed: int) -> None:
    crossing = writing(make, tail, seed).to(torch.float64, device)
    for algorithm in crossing.algorithms:
        assert_agreement(crossing, algorithm, block_size)


# Difficult cases: precision, scores of very different size, absent tokens.

GRID = Make(grid=(3, 7), mask="some", batch=3, content_batch=3, padding=2, residual=False)

CASES = {
    "grid": GRID,
    "grid, projected": replace(GRID, projected=True, heads=2, masked=True),
    "vectors": replace(GRID, positions="none", content=7, heads=3, residual=True),
}

every_crossing = pytest.mark.parametrize(
    "crossing",
    [build(make) for build, make in itertools.product((reading, writing), CASES.values())],
    ids=[f"{what}, {name}" for what, name in itertools.product(("reading", "writing"), CASES)],
)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, float]:
    """Return the relative distance of the results, and that of all gradients together."""
    parts = [["result"], [name for name in expected if name != "result"]]

    def length(arrays: dict[str, Tensor], names: list[str]) -> float:
        return float(torch.cat([arrays[name].flatten() for name in names]).norm())

    difference = {name: found[name] - x for name, x in expected.items()}
    one, two = (length(difference, names) / length(expected, names) for names in parts)
    return one, two


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_crossing
def test_errors_are_within_twice_those_of_the_dense_path(crossing: Crossing, dtype: torch.dtype, device: str) -> None:
    low = crossing.to(dtype, device)
    for algorithm in low.algorithms:
        assert_errors_within_twice_those_of_the_dense_path(low, algorithm)


def assert_errors_within_twice_those_of_the_dense_path(
    low: Crossing, algorithm: Algorithm, block_size: int = 5
) -> None:
    exact = low.to(torch.float64)
    expected = with_gradients(exact, exact.dense())
    allowed = distance(with_gradients(low, low.dense()), expected)
    errors = distance(with_gradients(low, low.computed(algorithm, block_size)), expected)
    for error, own in zip(errors, allowed, strict=True):
        assert error <= 2 * max(own, torch.finfo(low.latents.dtype).eps), algorithm


@every_device
def test_writing_agrees_where_biases_are_zero(device: str) -> None:
    """Biases are zero before training; folded maps then lack full rank."""
    crossing = writing(replace(GRID, qk=2, v=2)).to(torch.float64, device)
    torch.nn.init.zeros_(crossing.cross.attention.output.bias)
    assert "separable-folded" in crossing.algorithms
    for algorithm in crossing.algorithms:
        assert_agreement(crossing, algorithm, 5)


class GivenBlocks(TokenBlocks):
    """Blocks with given scores and values."""

    per_token = ("scores", "values")

    def __init__(self, scores: Tensor, values: Tensor) -> None:
        super().__init__(Segment(scores[None]), scores.dtype, Norm())
        self.tensors = {"scores": scores, "values": values}

    def scores(self, tensors: dict[str, Tensor], block: Block) -> tuple[Tensor, Tensor]:
        return tensors["scores"].clone(), tensors["values"]

    def weighted_sums(self, seen: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return weights.sum(-2, keepdim=True), seen.mT @ weights


@every_device
@every_crossing
def test_autocast_costs_no_more_precision_than_on_the_dense_path(crossing: Crossing, device: str) -> None:
    single = crossing.to(torch.float32, device)
    exact = single.to(torch.float64)
    expected = with_gradients(exact, exact.dense())

    def errors(run: Callable[[], Tensor]) -> tuple[float, float]:
        with torch.autocast(device, torch.bfloat16):
            result = run()
        return distance(with_gradients(single, result), expected)

    allowed = errors(single.dense)
    for algorithm in single.algorithms:
        found = errors(lambda algorithm=algorithm: single.computed(algorithm, 5))
        assert all(error <= 2 * own for error, own in zip(found, allowed, strict=True)), algorithm


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("step", [50.0, 5.0, 0.5, -0.5, -5.0, -50.0])
def test_scores_of_any_size(step: float, shift: float) -> None:
    """Scores rise or fall from token to token, and so does max_score from block to block; also far from 0."""
    scores = shift + step * torch.arange(13.0)
    scores = torch.stack([scores, scores.flip(0), torch.full((13,), -torch.inf)], -1)
    scores[:5, 0] = -torch.inf
    scores.requires_grad_()
    values = torch.randn(13, 3)
    expected = values.T @ scores[:, :2].softmax(0)
    (expected_gradient,) = torch.autograd.grad((expected * values[:3, :2]).sum(), scores)
    for block_size in (1, 2, 13):
        reference, total, weighted = _sums(GivenBlocks(scores, values), block_size)
        assert torch.equal(total[:, 2], torch.zeros(1))
        assert torch.equal(weighted[:, 2], torch.zeros(3))
        found = weighted[:, :2] / total[:, :2]
        assert torch.allclose(found, expected, atol=1e-6)
        whole = scores.logsumexp(0)[:2]
        assert torch.allclose(reference[0, :2] + total[0, :2].log(), whole, rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad((found * values[:3, :2]).sum(), scores)
        assert torch.allclose(gradient[:, :2], expected_gradient[:, :2], atol=1e-6)
        assert torch.equal(gradient[:, 2], torch.zeros(13))


def test_a_reference_is_raised_seldom() -> None:
    """Scores slightly above max_score stay in range, so the states of all block sizes are the same numbers."""
    scores = torch.arange(7.0)[:, None]
    assert float(_sums(GivenBlocks(scores, scores), 1)[0]) == 0
    assert float(_sums(GivenBlocks(2 * scores, scores), 1)[0]) == 10


# Bitwise equality.


@every_device
@every_crossing
def test_bits_do_not_depend_on_the_rest_of_the_batch(crossing: Crossing, device: str) -> None:
    """Samples are processed one by one; and repeated runs give the same bits."""
    crossing = crossing.to(torch.float32, device)
    for algorithm in crossing.algorithms:
        whole = parts_of(crossing, algorithm)
        assert all(map(torch.equal, whole, parts_of(crossing, algorithm)))
        if crossing.tail is None and algorithms.is_together(algorithm, crossing.latents.device):
            continue
        for number in range(crossing.segment.batch_size):
            own = parts_of(crossing.sample(number), algorithm)
            assert all(torch.equal(x, all_of[number : number + 1]) for x, all_of in zip(own, whole, strict=True)), (
                algorithm
            )


def parts_of(crossing: Crossing, algorithm: Algorithm) -> tuple[Tensor, ...]:
    """Return the results computed per sample; the maps applied to read latents are products over the whole batch."""
    if crossing.tail is not None:
        return (crossing.computed(algorithm, 5),)
    state = algorithms.read(crossing.cross, Latents(crossing.latents), crossing.segment, algorithm, 5)
    return state.max_score, state.sum_exp, state.weighted_values


@every_device
@every_crossing
def test_block_size_changes_rounding_only(crossing: Crossing, device: str) -> None:
    crossing = crossing.to(torch.float64, device)
    for algorithm in crossing.algorithms:
        one, *others = (crossing.computed(algorithm, block_size) for block_size in (100, 21, 8, 1))
        assert all((one - other).abs().max() <= 1e-13 * one.abs().max() for other in others)


@every_device
@every_crossing
def test_gradients_are_those_of_finite_differences(crossing: Crossing, device: str) -> None:
    """Gradients are right although the backward pass computes the sums again."""
    crossing = crossing.sample(1).to(torch.float64, device)
    leaves = {name: leaf for name, leaf in crossing.leaves.items() if "mlp" not in name}
    for algorithm in crossing.algorithms:
        # gradcheck changes the leaves in place.
        assert torch.autograd.gradcheck(
            lambda *_, algorithm=algorithm: crossing.computed(algorithm, 8), (*leaves.values(),), fast_mode=True
        )


# Whole models.


@every_device
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("algorithm", [algorithm for algorithm in get_args(Algorithm) if algorithm != "dense"])
def test_released_models_agree_in_every_algorithm(name: str, algorithm: Algorithm, device: str) -> None:
    """Where an algorithm is not possible, the plan chooses."""
    model = built(*converted(name)).to(device, torch.float64)
    given = {
        key: x.to(device, torch.float64 if x.is_floating_point() else None)
        for key, x in under("in:", read(name)).items()
    }
    ask = ASK.get(name, ask_imagenet)
    model_of = {chosen: functools.partial(model, algorithm=chosen) for chosen in ("dense", algorithm)}
    with torch.no_grad():
        torch.manual_seed(0)
        expected = ask(model_of["dense"], given)
        torch.manual_seed(0)
        found = ask(model_of[algorithm], given)
    assert expected.keys() == found.keys()
    assert all(relative_error(found[key], x) <= 1e-9 for key, x in expected.items())


# Check of the tests: an error of a thousandth in any part of any algorithm is found.


def scaled(x: Any, part: int | None) -> Any:
    if isinstance(x, Tensor):
        return x * 1.001
    parts = [y * 1.001 if number == part else y for number, y in enumerate(x)]
    return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)


MUTATIONS: list[tuple[Algorithm, str, Any, str, int | None]] = [
    ("projected", "both", token_blocks.ProjectedBlocks, "scores", 0),
    ("projected", "reading", token_blocks.ProjectedBlocks, "weighted_sums", 0),
    ("projected", "reading", token_blocks.ProjectedBlocks, "weighted_sums", 1),
    ("absorbed", "both", token_blocks.AbsorbedBlocks, "scores", 0),
    ("absorbed", "reading", token_blocks.AbsorbedBlocks, "weighted_sums", 0),
    ("absorbed", "reading", token_blocks.AbsorbedBlocks, "weighted_sums", 1),
    ("absorbed", "reading", token_blocks.AbsorbedBlocks, "weighted_tokens", None),
    ("absorbed", "both", algorithms, "_folded", None),
    ("absorbed", "both", algorithms, "_behind_norm", 0),
    ("absorbed", "both", algorithms, "_behind_norm", 1),
    ("separable", "both", separable_blocks.SeparableBlocks, "scores", 0),
    *(("separable", "reading", separable_blocks.SeparableBlocks, "weighted_sums", part) for part in range(5)),
    ("separable", "reading", separable_blocks.SeparableBlocks, "weighted_tokens", None),
    ("separable", "both", separable_blocks.SeparableBlocks, "row_features", None),
    ("separable", "both", separable_blocks.SeparableBlocks, "inverse_deviation", None),
    ("separable", "both", separable_blocks.SeparableBlocks, "_of_projected", None),
    ("absorbed-folded", "writing", epilogue, "_composed", 0),
    ("absorbed-folded", "writing", epilogue, "_composed", 1),
    ("absorbed", "writing", epilogue, "_composed", 0),
    *(("separable", "writing", epilogue, "_last_maps", part) for part in (1, 2)),
    ("separable-folded", "writing", epilogue, "linear_map", 0),
    ("separable-folded", "writing", epilogue, "linear_map", 1),
    ("absorbed-folded", "writing", epilogue, "_aligned", None),
    ("projected", "writing", epilogue, "through", None),
    ("absorbed", "reading", SoftmaxState, "attended", None),
]
"""Algorithm, direction, owner and name of the changed function, and the index of the changed result."""


@pytest.mark.parametrize(("algorithm", "where", "owner", "name", "part"), MUTATIONS)
def test_a_thousandth_more_is_found(
    algorithm: Algorithm, where: str, owner: Any, name: str, part: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = replace(GRID, projected=name == "_of_projected", heads=2, masked=part == 1)
    builds = {"both": [reading, writing], "reading": [reading], "writing": [writing]}[where]
    crossings = [build(make) for build in builds]
    for crossing in crossings:
        assert_agreement(crossing, algorithm, 8)
    exact = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: scaled(exact(*given, **named), part))
    for crossing in crossings:
        with pytest.raises(AssertionError, match=algorithm):
            assert_agreement(crossing, algorithm, 8)


@pytest.mark.parametrize("alignment", ["pad", "project"])
@pytest.mark.parametrize("scale", [1.0, 6e4, 1e6, 1e15])
def test_large_values_are_read_alike_in_half_precision(scale: float, alignment: Any) -> None:
    torch.manual_seed(0)
    positions = Fourier(num_bands=2)
    image = Image(size=(7, 5), channels=2, positions=positions)
    schema = Schema({"image": image}, {"map": Image(size=(5, 3), channels=2, positions=positions)})
    config = Config(
        LatentsConfig(num_latents=11, channels=16, init_std=1.0),
        EncoderConfig(num_heads=2, channel_alignment=alignment),
    )
    model = PerceiverIO(schema, config).eval()
    raw = scale * torch.randn(2, 7, 5, 2)
    with torch.no_grad():
        exact = model(raw)["map"]
        model.half()
        for algorithm in get_args(Algorithm):
            found = model(raw, algorithm=algorithm)["map"].float()
            assert (found - exact).abs().max() <= 0.02 * exact.abs().max(), algorithm


POSITIONS = Fourier(num_bands=2)
READ = {"image": Image(size=(7, 5), channels=2, positions=POSITIONS)}
WRITTEN = {"map": Image(size=(5, 3), channels=2, positions=POSITIONS)}


def small_model(inputs: Any, outputs: Any, alignment: Any = "pad", residual: bool = True) -> PerceiverIO:
    torch.manual_seed(0)
    latents = LatentsConfig(num_latents=11, channels=16, init_std=1.0)
    encoder, decoder = (
        EncoderConfig(num_heads=2, channel_alignment=alignment),
        DecoderConfig(num_heads=1, query_residual=residual),
    )
    return PerceiverIO(Schema(inputs, outputs), Config(latents, encoder, decoder=decoder)).eval()


def by_every_algorithm(run: Any) -> list[Any]:
    with torch.no_grad():
        return [run(algorithm) for algorithm in (None, *get_args(Algorithm))]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e25])
def test_a_query_made_of_what_is_no_number_finds_none(value: float) -> None:
    """If an input's tokens are the queries, a non-finite token gives NaN in every algorithm, and only in its output."""
    pair = FramePair(size=(4, 3), channels=2, embed=None, positions=POSITIONS)
    model = small_model({"frames": pair}, {"flow": Flow()}, residual=False)
    sound = model.encode(torch.randn(2, 2, 4, 3, 2))
    tokens = sound.sources["frames"]
    content = tokens.content.clone()
    content[1, 2, 0] = value
    asked = replace(sound, sources={"frames": replace(tokens, content=content)})
    runs = [
        by_every_algorithm(lambda algorithm, e=e: model.decode(e, algorithm=algorithm)["flow"]) for e in (asked, sound)
    ]
    for found, exact in zip(*runs, strict=True):
        bad = found.isnan().flatten(1, 2)
        assert bad[1, 2].all()
        assert bad.sum() == 2
        assert torch.equal(found[0], exact[0])


@pytest.mark.parametrize("alignment", ["pad", "project"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e25])
def test_what_a_mask_token_hides_does_not_matter(value: float, alignment: Any) -> None:
    masked = {"image": replace(READ["image"], mask_prob=1.0, mask_at_eval=True), "n": Numbers(mean=(0.0,), std=(1.0,))}
    model = small_model(masked, WRITTEN, alignment)
    raw = torch.randn(2, 7, 5, 2)
    hole = raw.clone()
    hole[0, 3, 2] = value
    sound, holed = (
        by_every_algorithm(
            lambda algorithm, x=x: model({"image": x, "n": torch.ones(2, 1)}, algorithm=algorithm)["map"]
        )
        for x in (raw, hole)
    )
    assert all(torch.equal(x, y) for x, y in zip(sound, holed, strict=True))
    model({"image": hole, "n": torch.ones(2, 1)})["map"].sum().backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())


TOO_LARGE = {
    "image": (READ["image"], torch.randn(2, 7, 5, 2)),
    "added": (replace(READ["image"], embed=10, add_positions=True), torch.randn(2, 7, 5, 2)),
    "vectors": (Vectors(channels=66), torch.randn(2, 3, 66)),
    "numbers": (Numbers(count=3, mean=(0.0,), std=(1e-3,)), torch.randn(2, 3)),
    "series": (Series(size=7, mean=(0.0,), std=(1e-3,), positions=POSITIONS), torch.randn(2, 7, 1)),
}


@pytest.mark.parametrize(
    ("name", "alignment"),
    few(itertools.product(TOO_LARGE, ["pad", "project"]), [("image", "pad"), ("numbers", "project")]),
)
def test_values_that_a_norm_cannot_take_make_nan_and_others_are_exact(name: str, alignment: Any) -> None:
    """A sample is either exact or NaN, in every algorithm alike."""
    spec, raw = TOO_LARGE[name]
    model, double = (small_model({"x": spec}, WRITTEN, alignment) for _ in range(2))
    double.double()
    beyond = set()
    for scale in (1e9, 1e14, 1e16, 1e18, 1e19, 1e20, 1e30, 1e37):
        x = scale * raw
        with torch.no_grad():
            exact = double(x.double())["map"]
        found = by_every_algorithm(lambda algorithm, x=x: model(x, algorithm=algorithm)["map"])
        lost = found[0].isnan().flatten(1).any(1)
        beyond |= {scale} if lost.any() else set()
        assert all(torch.equal(y.isnan().flatten(1).all(1), lost) for y in found)
        assert all(((y - exact)[~lost].abs() < 1e-3).all() for y in found)
    assert {1e20, 1e30} <= beyond <= {1e16, 1e18, 1e19, 1e20, 1e30, 1e37}


@pytest.mark.parametrize("alignment", ["pad", "project"])
def test_large_values_are_read_alike_under_autocast(alignment: Any) -> None:
    model = small_model(READ, WRITTEN, alignment)
    raw = 1e6 * torch.randn(2, 7, 5, 2)
    with torch.no_grad():
        exact = model(raw)["map"]
    with torch.autocast("cpu", torch.float16):
        for found in by_every_algorithm(lambda algorithm: model(raw, algorithm=algorithm)["map"]):
            assert (found - exact).abs().max() <= 0.02 * exact.abs().max()
