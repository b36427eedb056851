"""Positions: tables of axes against features at every coordinate, other grids, interpolation, precision."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cross_cases import GivenAxis
from perceivers.core.positions import AxisTables
from perceivers.modalities.position_encodings import (
    Fourier,
    FourierPositions,
    GridPositions,
    Learned,
    LearnedPositions,
    Positions,
    fourier_features,
    to_unit,
)
from perceivers.runs.flops import PeakMemory
from reference_files import relative_error

GRIDS = [(11,), (5, 7), (2, 5, 3)]
SETTINGS = [
    Fourier(num_bands=3),
    Fourier(num_bands=3, sine_only=True),
    Fourier(num_bands=3, with_coordinates=False),
    Fourier(num_bands=3, max_resolution=13),
]

every_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)


def fourier(grid: tuple[int, ...], config: Fourier = SETTINGS[0]) -> FourierPositions:
    return FourierPositions(len(grid), grid, config)


def learned(grid: tuple[int, ...], channels: int = 13) -> LearnedPositions:
    positions = LearnedPositions(grid, channels)
    nn.init.normal_(positions.table)
    return positions


def every_place(grid: tuple[int, ...]) -> Tensor:
    """Return all coordinates of a grid, written out in loops, row-major."""
    axes = [[-1 + 2 * i / (n - 1) if n > 1 else -1.0 for i in range(n)] for n in grid]
    return torch.tensor(list(itertools.product(*axes)), dtype=torch.float64)


def test_bands_by_hand() -> None:
    """Two bands up to half of 8 are 1 and 4: phases pi/2 and 2 pi at a half, 3 pi / 2 and 6 pi at one and a half."""
    config = Fourier(num_bands=2, max_resolution=8)
    half, beyond = FourierPositions(1, None, config).at(torch.tensor([[0.5], [1.5]], dtype=torch.float64))
    assert torch.allclose(half, torch.tensor([0.5, 1, 0, 0, 1], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(beyond, torch.tensor([1.5, -1, 0, 0, 1], dtype=torch.float64), atol=1e-12)


def test_order_of_features_by_hand() -> None:
    """Coordinates first, then sines axis by axis, then cosines axis by axis."""
    y, x = 0.25, -0.75
    config = Fourier(num_bands=2, max_resolution=(4, 10))  # bands 1 and 2; 1 and 5
    sines, cosines = ([f(math.pi * c * b) for c, b in ((y, 1), (y, 2), (x, 1), (x, 5))] for f in (math.sin, math.cos))
    features = FourierPositions(2, None, config).at(torch.tensor([y, x], dtype=torch.float64))
    assert torch.allclose(features, torch.tensor([y, x, *sines, *cosines], dtype=torch.float64))


@every_grid
def test_coordinates_of_a_grid(grid: tuple[int, ...]) -> None:
    assert torch.allclose(GridPositions(grid).coordinates(), every_place(grid), atol=1e-15)


def test_coordinate_rules_by_hand() -> None:
    for rule, expected in (("inclusive", [-1, -1 / 3, 1 / 3, 1]), ("exclusive", [-1, -0.5, 0, 0.5])):
        assert torch.allclose(GridPositions((4,), rule=rule).axes()[0], torch.tensor(expected, dtype=torch.float64))
    for rule in ("inclusive", "exclusive"):
        assert GridPositions((1,), rule=rule).axes()[0].tolist() == [-1]


def test_a_span_keeps_the_length_of_a_step() -> None:
    short, trained, long = (GridPositions((n,), span=(7,)).axes()[0] for n in (3, 7, 11))
    assert trained.tolist() == pytest.approx([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1])
    assert torch.equal(short, trained[:3])
    assert torch.equal(long[:7], trained)
    assert long[-1].item() == pytest.approx(1 + 4 / 3)


def test_fractions_of_places_have_coordinates() -> None:
    assert to_unit(torch.tensor([0.5, 2.0]), 5).tolist() == [-0.75, 0.0]
    assert to_unit(torch.tensor([0.5, 2.0]), 4, "exclusive").tolist() == [-0.75, 0.0]


@every_grid
@pytest.mark.parametrize("config", SETTINGS)
def test_tables_equal_features_at_every_coordinate(grid: tuple[int, ...], config: Fourier) -> None:
    positions = fourier(grid, config)
    expected = fourier_features(every_place(grid), positions.max_resolution, config)
    tables = positions.on_grid(GridPositions(grid))
    assert tables.grid == grid
    assert tables.num_channels == positions.channels == expected.shape[-1]
    assert relative_error(tables.dense(torch.float64), expected) <= 1e-12
    assert relative_error(positions.at(every_place(grid)), expected) <= 1e-12


@every_grid
@pytest.mark.parametrize("config", SETTINGS)
def test_rows_are_rows_of_the_dense_array(grid: tuple[int, ...], config: Fourier) -> None:
    tables = fourier(grid, config).on_grid(GridPositions(grid))
    dense = tables.dense(torch.float64)
    for index in (torch.tensor([3, 0, math.prod(grid) - 1, 3]), torch.randint(math.prod(grid), (2, 5))):
        assert torch.equal(tables.at(index), dense[index])


def test_a_long_axis_is_made_in_parts() -> None:
    count, config = 10_000, Fourier(num_bands=16)
    places = GridPositions((count,))
    tables = fourier((count,), config).on_grid(places)
    table = tables.dense(torch.float32)
    assert torch.equal(table, fourier_features(places.coordinates(), [count], config).float())
    assert torch.equal(torch.cat([*tables.tables[0].part(700, 1000).parts(torch.float32)]), table[700:1000])
    with PeakMemory() as some:
        tables.at(torch.arange(100))
    assert some.peak < table.nbytes / 10
    with PeakMemory() as parts:
        for _ in tables.tables[0].parts(torch.float32):
            pass
    assert parts.peak < table.nbytes / 4


def test_tables_by_hand() -> None:
    """Each axis has its own channels."""
    tables = AxisTables(
        (GivenAxis(torch.tensor([[1.0], [2.0]])), GivenAxis(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))), ((1,), (2, 0))
    )
    assert tables.dense(torch.float32).tolist() == [[4, 1, 3], [6, 1, 5], [4, 2, 3], [6, 2, 5]]
    assert tables.at(torch.tensor([2, 1])).tolist() == [[4, 2, 3], [6, 1, 5]]


@pytest.mark.parametrize("other", [(3, 11), (7, 5), (1, 2)], ids=str)
def test_on_another_grid_the_bands_stay(other: tuple[int, int]) -> None:
    positions = fourier((5, 7))
    tables = positions.on_grid(GridPositions(other))
    expected = fourier_features(every_place(other), (5, 7), positions.config)
    assert relative_error(tables.dense(torch.float64), expected) <= 1e-12


@pytest.mark.parametrize(
    ("axes", "grid", "config", "channels"),
    [
        (2, (5, 7), Fourier(num_bands=3), 14),
        (2, (5, 7), Fourier(num_bands=3, sine_only=True), 8),
        (2, (5, 7), Fourier(num_bands=3, with_coordinates=False), 12),
        (3, None, Fourier(num_bands=2, max_resolution=7), 15),
        (1, (11,), Fourier(num_bands=3, project=5), 5),
        (1, (11,), Fourier(num_bands=3, num_residual_layers=2), 7),
        (2, (5, 7), Learned(channels=11), 11),
        (2, (5, 7), Learned(channels=11, project=3, num_residual_layers=1), 3),
    ],
)
def test_widths(axes: int, grid: tuple[int, ...] | None, config: Fourier | Learned, channels: int) -> None:
    positions = Positions(axes, grid, config)
    assert positions.channels == channels
    assert positions.at(torch.rand(2, 5, axes)).shape == (2, 5, channels)
    features = positions.on_grid(GridPositions((2,) * axes))
    dense = features if isinstance(features, Tensor) else features.dense(torch.float32)
    assert dense.shape == (2**axes, channels)


@pytest.mark.parametrize(
    ("axes", "grid", "config", "message"),
    [
        (2, None, Fourier(), "without a grid need max_resolution"),
        (2, None, Learned(), "learned positions need a grid"),
        (2, (5, 7), Fourier(max_resolution=(5, 7, 11)), "one number for each of 2 axes"),
    ],
)
def test_settings_that_do_not_fit(
    axes: int, grid: tuple[int, ...] | None, config: Fourier | Learned, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Positions(axes, grid, config)


@pytest.mark.parametrize("config", [Fourier(num_bands=3), Learned(channels=11)])
def test_projection_and_residual_layers_by_hand(config: Fourier | Learned) -> None:
    """A linear map, then x + L1(x), then ReLU(x) + L2(ReLU(x)): the ReLU precedes all layers but the first."""
    bare, positions = (
        Positions(1, (7,), c) for c in (config, type(config)(**vars(config) | {"project": 5, "num_residual_layers": 2}))
    )
    for layer in positions.residual_layers:
        nn.init.normal_(layer.bias)
    if isinstance(config, Learned):
        bare.load_state_dict({"source.table": positions.source.table})
    coordinates = 2 * torch.rand(3, 1) - 1
    first, second = positions.residual_layers
    x = positions.projection(bare.at(coordinates))
    x = (x + first(x)).relu()
    assert relative_error(positions.at(coordinates), x + second(x)) <= 1e-6


@every_grid
def test_learned_positions_are_exact_at_their_own_places(grid: tuple[int, ...]) -> None:
    positions = learned(grid)
    assert positions.on_grid(GridPositions(grid)) is positions.table
    assert relative_error(positions.at(every_place(grid)), positions.table) <= 1e-6


def test_learned_positions_are_linear_between_places_and_constant_beyond() -> None:
    line = LearnedPositions((3,), 2)
    line.table.data = torch.tensor([[0.0, 8.0], [4.0, 0.0], [6.0, 2.0]])
    between = line.at(torch.tensor([[-0.75], [-0.5], [0.5], [-7.0], [7.0]]))
    assert between.tolist() == [[1, 6], [2, 4], [5, 1], [0, 8], [6, 2]]
    square = LearnedPositions((2, 2), 1)
    square.table.data = torch.tensor([[0.0], [8.0], [16.0], [40.0]])
    assert square.at(torch.tensor([[0.0, -1.0], [-1.0, 0.5], [0.0, 0.0]])).flatten().tolist() == [8, 6, 16]


@pytest.mark.parametrize(
    ("grid", "other", "mode"),
    [
        ((11,), (7,), "linear"),
        ((5, 7), (3, 13), "bilinear"),
        ((5, 7), (7, 5), "bilinear"),
        ((2, 5, 3), (3, 2, 7), "trilinear"),
    ],
)
def test_learned_positions_on_another_grid(grid: tuple[int, ...], other: tuple[int, ...], mode: str) -> None:
    """The same as PyTorch's resizing of a picture with aligned corners."""
    positions = learned(grid)
    picture = positions.table.detach().T.unflatten(1, grid)[None]
    expected = functional.interpolate(picture, other, mode=mode, align_corners=True)[0].flatten(1).T
    assert relative_error(positions.on_grid(GridPositions(other)), expected) <= 1e-6


def test_learned_positions_pass_gradients_to_the_places_around() -> None:
    positions = learned((5,), channels=1)
    positions.at(torch.tensor([[-0.875]])).sum().backward()  # a quarter of the way from the first one to the second
    assert positions.table.grad.flatten().tolist() == [0.75, 0.25, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_phases_of_half_coordinates_are_computed_in_float32(dtype: torch.dtype) -> None:
    positions = FourierPositions(1, None, Fourier(num_bands=5, max_resolution=30720))
    coordinates = (2 * torch.rand(13, 1) - 1).to(dtype)
    features = positions.at(coordinates)
    assert features.dtype == torch.float32
    assert torch.equal(features, positions.at(coordinates.float()))
    assert positions.at(coordinates.double()).dtype == torch.float64


def test_half_coordinates_find_their_place_among_many() -> None:
    """The spacing of 997 positions is smaller than that of bfloat16's numbers near 1."""
    positions = learned((997,), channels=1)
    coordinates = (2 * torch.rand(13, 1) - 1).bfloat16()
    assert torch.equal(positions.at(coordinates), positions.at(coordinates.float()))


@pytest.mark.parametrize(("dtype", "precision"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_features_on_a_grid_are_exact_to_the_last_place_of_any_type(dtype: torch.dtype, precision: float) -> None:
    """Half a unit in the last place of 1, though phases reach 48,000 radians; also in a model of that dtype."""
    positions = Positions(1, (1920,), Fourier(num_bands=5, max_resolution=30720)).to(dtype)
    tables = positions.on_grid(GridPositions((1920,)))
    truth = fourier_features(every_place((1920,)), (30720,), positions.source.config)
    for features in (tables.dense(dtype), tables.at(torch.arange(1920)).to(dtype)):
        assert (features.double() - truth).abs().max() <= precision


@pytest.mark.parametrize("config", [Fourier(num_bands=3, project=5), Learned(channels=11)])
def test_positions_with_parameters_come_in_the_models_type(config: Fourier | Learned) -> None:
    positions = Positions(1, (7,), config).to(torch.bfloat16)
    precise = Positions(1, (7,), config)
    precise.load_state_dict(positions.state_dict())
    for size in (7, 11):
        features, expected = (p.on_grid(GridPositions((size,))) for p in (positions, precise))
        assert features.dtype == torch.bfloat16
        assert relative_error(features.float(), expected) <= 0.02


def test_a_part_as_large_as_the_trained_grid_has_the_positions_of_its_place() -> None:
    """The whole may be larger than the trained grid; then positions are interpolated, for its parts too."""
    positions = learned((3, 2))
    whole = positions.on_grid(GridPositions((6, 2))).unflatten(0, (6, 2))
    for start in (0, 3):
        part = positions.on_grid(GridPositions((3, 2), (6, 2), (start, 0)))
        torch.testing.assert_close(part, whole[start : start + 3].flatten(0, 1))
