"""Shapes: .off files, closed meshes, solids with formulas, binary values of points, baselines and the report."""

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers import Config, Coordinates, DecoderConfig, LatentsConfig, PerceiverIO, PointSet, ProcessorConfig, Schema
from perceivers.data import Shapes
from perceivers.data.meshes import Mesh
from perceivers.data.shapes import HELD_OUT, PARAMETRIC, REACH, TRAINING, groups_of, split_meshes, watertight_meshes
from perceivers.data.solids import Box, Capsule, Part, Superquadric, Torus, Union, random_rotation, random_union
from perceivers.media.off_files import read_off
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.results import keep_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.systems import TASKS
from perceivers.systems.shapes.baselines import behind_nearest, in_hull, iou, outward_normals
from perceivers.systems.shapes.report import matched, rendered
from perceivers.training.metrics import evaluate
from perceivers.training.training_config import TrainingConfig

CUBE = """OFF
# a cube from -1 to 1, whose first face is a polygon of four corners
8 7 0
-1 -1 -1
1 -1 -1
1 1 -1
-1 1 -1
-1 -1 1
1 -1 1
1 1 1
-1 1 1
4 4 5 6 7 255 0 0
4 0 3 2 1
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
3 3 0 4
3 3 4 7
"""

BINARY = PointSet(axes=2, channels=1, values="binary", positions=Fourier(num_bands=2, max_resolution=5))


def rng(seed=0):
    return np.random.default_rng(seed)


def cube(path, text=CUBE):
    path.write_text(text)
    return Mesh.of(*read_off(path))


def icosphere(times):
    """Return a sphere of radius 1: an octahedron whose triangles are cut in four `times` times."""
    vertices = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    triangles = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    for _ in range(times):
        a, b, c = vertices[triangles].swapaxes(0, 1)
        ab, bc, ca = (
            (one + other) / np.linalg.norm(one + other, axis=1)[:, None] for one, other in ((a, b), (b, c), (c, a))
        )
        corners = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
        mesh = Mesh.of(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3))
        vertices, triangles = mesh.vertices, mesh.triangles
    return Mesh(vertices, triangles)


def solid_angles(mesh, points):
    """Return winding numbers as sums of solid angles (van Oosterom and Strackee 1983)."""
    a, b, c = (mesh.corners[None, :, corner] - points[:, None] for corner in range(3))
    la, lb, lc = (np.linalg.norm(each, axis=-1) for each in (a, b, c))
    above = (a * np.cross(b, c)).sum(-1)
    below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return np.arctan2(above, below).sum(-1) / (2 * math.pi)


def test_an_off_file_is_read_with_its_polygons_cut_into_triangles(tmp_path):
    mesh = cube(tmp_path / "cube.off")
    assert mesh.vertices.shape == (8, 3)
    assert mesh.triangles.shape == (12, 3)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(8)
    colours = CUBE.replace("OFF\n", "COFF ").replace(
        "# a cube from -1 to 1, whose first face is a polygon of four corners\n", ""
    )
    assert cube(tmp_path / "colours.off", colours.replace("-1 -1 -1\n", "-1 -1 -1 9 9 9 9\n")).volume == mesh.volume


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("OFF\n", "PLY\n", r"off:1: .*expected OFF"),
        ("8 7 0", "8 x 0", r"off:3: .*'x'"),
        ("8 7 0", "8 70 0", r"off: ends before its last vertex and face$"),
        ("8 7 0", "8 0 0", r"off: has no faces$"),
        ("\n1 -1 -1", "\n1 -1", r"off:5: .*expected three coordinates, each below 1e\+18"),
        ("\n1 -1 -1", "\n1 -1 1e999", r"off:5: .*expected three coordinates, each below 1e\+18"),
        ("3 3 4 7", "3 3 4 8", r"off:18: .*a face of 3 corners, expected at least 3, each from 0 to 7$"),
        ("3 3 4 7", "4 3 4 7", r"off:18: .*a face of 4 corners"),
        ("4 4 5 6 7 255 0 0", "4 4 6 5 7", r"off: has a face that is not convex: cut it into triangles$"),
    ],
)
def test_what_is_no_off_file_is_an_error_that_names_the_line(old, new, message, tmp_path):
    (tmp_path / "a.off").write_text(CUBE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_off(tmp_path / "a.off")


def test_a_mesh_with_a_hole_or_a_turned_triangle_is_not_watertight(tmp_path):
    mesh = cube(tmp_path / "cube.off")
    assert not replace(mesh, triangles=mesh.triangles[1:]).is_watertight
    turned = mesh.triangles.copy()
    turned[0] = turned[0, ::-1]
    assert not replace(mesh, triangles=turned).is_watertight
    # Each triangle with vertices of its own is the same mesh.
    assert Mesh.of(mesh.corners.reshape(-1, 3), np.arange(36).reshape(12, 3)).is_watertight


def test_the_inside_of_a_cube_is_exact_also_for_rays_along_its_edges(tmp_path):
    mesh = cube(tmp_path / "cube.off")
    points = rng().uniform(-1.5, 1.5, (997, 3))
    assert np.array_equal(mesh.winding_numbers(points), (np.abs(points).max(axis=1) < 1).astype(int))
    # The ray from the middle meets the diagonal that two triangles share; others stand above, below and beside.
    by_hand = np.array([[0, 0, 0], [0.5, 0.5, 0.999], [0, 0, 1.001], [0, 0, -1.001], [1.001, 0, 0], [7, 7, 0]])
    assert mesh.winding_numbers(by_hand).tolist() == [1, 1, 0, 0, 0, 0]
    inside_out = replace(mesh, triangles=mesh.triangles[:, ::-1])
    assert inside_out.winding_numbers(by_hand).tolist() == [-1, -1, 0, 0, 0, 0]
    assert inside_out.inside(by_hand).tolist() == [True, True, False, False, False, False]


def test_the_inside_of_a_sphere_is_within_its_radius_and_a_cavity_is_outside():
    outer = icosphere(3)
    assert outer.is_watertight
    assert outer.volume == pytest.approx(4 / 3 * math.pi, rel=0.03)
    shell = Mesh(
        np.concatenate([outer.vertices, outer.vertices / 2]),
        np.concatenate([outer.triangles, outer.triangles[:, ::-1] + len(outer.vertices)]),
    )
    points = rng().uniform(-1.2, 1.2, (499, 3))
    radius = np.linalg.norm(points, axis=1)
    clear = (np.abs(radius - 1) > 0.02) & (np.abs(radius - 0.5) > 0.01)  # beyond the difference of facets and sphere
    expected = (radius < 1) & (radius > 0.5)
    assert np.array_equal(shell.inside(points)[clear], expected[clear])


def test_winding_numbers_are_sums_of_solid_angles():
    """Two spheres that overlap, in one mesh: points in both are enclosed twice."""
    one = icosphere(2)
    turned = one.vertices @ random_rotation(rng(1)).T
    both = Mesh(
        np.concatenate([turned, turned + np.array([0.7, 0.2, 0.1])]),
        np.concatenate([one.triangles, one.triangles + len(one.vertices)]),
    )
    points = rng(2).uniform(-1, 1.5, (211, 3))
    exact = solid_angles(both, points)
    np.testing.assert_allclose(both.winding_numbers(points), exact, atol=1e-6)
    assert set(np.rint(exact)) == {0, 1, 2}


def test_surface_points_of_a_mesh_are_uniform(tmp_path):
    points = cube(tmp_path / "cube.off").surface(rng(), 6000)
    np.testing.assert_allclose(np.abs(points).max(axis=1), 1)
    faces = np.stack([np.isclose(points, side).sum(axis=0) for side in (-1, 1)])
    assert abs(faces.sum() - 6000) < 10  # a few points lie on an edge, within rounding
    assert np.abs(faces - 1000).max() < 5 * math.sqrt(1000)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.06)


PRIMITIVES = [
    (Box((0.5, 0.7, 0.3)), 8 * (0.5 * 0.7 + 0.7 * 0.3 + 0.3 * 0.5), 8 * 0.5 * 0.7 * 0.3),
    (Capsule(0.3, 0.5), 4 * math.pi * 0.3 * (0.3 + 0.5), math.pi * 0.09 * (2 * 0.5 + 4 / 3 * 0.3)),
    (Torus(0.7, 0.2), 4 * math.pi**2 * 0.7 * 0.2, 2 * math.pi**2 * 0.7 * 0.04),
    (Superquadric((0.6, 0.6, 0.6), (1.0, 1.0)), 4 * math.pi * 0.36, 4 / 3 * math.pi * 0.216),
    (Superquadric((0.5, 0.7, 0.3), (2.0, 2.0)), None, 4 / 3 * 0.5 * 0.7 * 0.3),  # |x/a| + |y/b| + |z/c| = 1
]


@pytest.mark.parametrize(("primitive", "area", "volume"), PRIMITIVES, ids=lambda value: type(value).__name__)
def test_a_primitive_has_its_area_and_its_volume(primitive, area, volume):
    points, areas = primitive.drawn(rng(), 20_000)
    np.testing.assert_allclose(primitive.level(points), 0, atol=1e-9)
    if area is not None:
        assert areas.sum() == pytest.approx(area, rel=0.01)
    anywhere = rng(1).uniform(-1, 1, (100_000, 3))
    assert (primitive.level(anywhere) < 0).mean() * 8 == pytest.approx(volume, rel=0.06)
    # Divergence theorem on the drawn points: their areas are right at every place, not only in sum.
    step = 1e-5 * np.eye(3)
    gradient = np.stack([primitive.level(points + s) - primitive.level(points - s) for s in step], axis=1)
    normal = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    assert (areas * (points * normal).sum(axis=1)).sum() / 3 == pytest.approx(volume, rel=0.03)


def test_a_union_has_no_surface_inside_its_parts_and_is_where_any_part_is():
    turned = random_rotation(rng(3))
    parts = [Part(Box((0.5, 0.5, 0.5)), np.eye(3), np.zeros(3)), Part(Capsule(0.2, 0.7), turned, np.full(3, 0.4))]
    union = Union(parts)
    points = rng().uniform(-1, 1, (997, 3))
    assert np.array_equal(union.inside(points), (parts[0].level(points) < 0) | (parts[1].level(points) < 0))
    surface = union.surface(rng(), 313)
    assert surface.shape == (313, 3)
    levels = np.stack([part.level(surface) for part in parts])
    np.testing.assert_allclose(levels.min(axis=0), 0, atol=1e-9)
    # A rotation keeps distances, and mirrors nothing.
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turned) == pytest.approx(1)


def test_a_part_that_is_hidden_in_another_adds_nothing():
    hidden = Part(Capsule(0.1, 0.1), np.eye(3), np.zeros(3))
    surface = Union([hidden, Part(Box((0.5, 0.6, 0.7)), np.eye(3), np.zeros(3))]).surface(rng(), 101)
    np.testing.assert_allclose(Box((0.5, 0.6, 0.7)).level(surface), 0, atol=1e-9)
    for seed in range(30):
        assert random_union(rng(seed)).surface(rng(seed), 17).shape == (17, 3)


SMALL = Shapes(num_training=13, num_held_out=7, num_surface=61, num_points=41, num_held_out_points=53, num_solids=5)


def test_a_record_is_a_function_of_seed_part_and_number():
    first, again, other = (
        data.training()[3] for data in (SMALL, replace(SMALL, num_training=5), replace(SMALL, seed=1))
    )
    np.testing.assert_equal(first, again)
    assert (first["surface"] != other["surface"]).all()
    assert (SMALL.held_out()[3]["surface"] != first["surface"]).all()
    assert first["surface"].shape == (61, 3)
    assert first["inside"].shape == (41, 4)
    assert SMALL.held_out()[0]["inside"].shape == (53, 4)
    assert first["source"] == PARAMETRIC


def test_records_hold_the_truth_about_their_shape():
    exact = replace(SMALL, noise=0.0)
    for part, records in ((TRAINING, exact.training()), (HELD_OUT, exact.held_out())):
        shape, record = exact.shape(part, 2), records[2]
        assert np.array_equal(record["inside"][:, 3] == 1, shape.inside(record["inside"][:, :3].astype(float)))
        # A little inwards and outwards from the surface, along the line to the centre of a convex neighbourhood.
        grown = [shape.inside(record["surface"] + step) for step in rng().normal(0, 0.01, (16, 3))]
        assert 0.2 < np.mean(grown) < 0.8
        assert np.abs(record["surface"]).max() == pytest.approx(REACH, abs=0.1)


def folder_of_meshes(folder):
    """Write a cube, the same cube turned and in other triangles, two spheres, an open cube, and a file of points."""
    folder.mkdir()
    cube(folder / "cube.off")
    (folder / "open.off").write_text(CUBE.replace("8 7 0", "8 6 0").replace("3 3 4 7\n", ""))
    (folder / "points.off").write_text("OFF\n1 0 0\n0 0 0\n")
    sphere = icosphere(2)
    flat = sphere.vertices * [1, 1, 0.3]
    finer = cube(folder / "cube.off").vertices[:, [1, 2, 0]] * 3
    for name, vertices, triangles in (
        ("ball", sphere.vertices, sphere.triangles),
        ("disc", flat, sphere.triangles),
        ("turned", finer, cube(folder / "cube.off").triangles),
    ):
        faces = "".join(f"3 {a} {b} {c}\n" for a, b, c in triangles)
        points = "".join(f"{x} {y} {z}\n" for x, y, z in vertices)
        (folder / f"{name}.off").write_text(f"OFF\n{len(vertices)} {len(triangles)} 0\n{points}{faces}")
    return str(folder)


def test_watertight_meshes_are_used_and_copies_of_a_shape_stay_together(tmp_path):
    folder = folder_of_meshes(tmp_path / "meshes")
    with pytest.warns(UserWarning, match=r"2 of 6 \.off files are left out: .*open\.off: not watertight; \.\.\.$"):
        meshes = watertight_meshes(folder)
    assert [*meshes] == ["ball.off", "cube.off", "disc.off", "turned.off"]
    assert groups_of([*meshes.values()]) == [0, 1, 2, 1]
    for seed in range(5):
        training, held_out = ({each.name for each in part} for part in split_meshes(folder, 0.25, seed))
        assert training | held_out == set(meshes)
        assert not training & held_out
        assert len({"cube.off", "turned.off"} & held_out) != 1
    data = replace(SMALL, folder=folder)
    sources = [record["source"] for record in data.training()[:6]]
    assert sources[::2] == [PARAMETRIC] * 3
    training = {each.name for each in split_meshes(folder, data.held_out_fraction, data.seed)[TRAINING]}
    assert set(sources[1::2]) == training
    assert {record["source"] for record in data.held_out()} - {PARAMETRIC} == set(meshes) - training


def test_meshes_without_an_inside_are_left_out(tmp_path):
    """A triangle seen from both sides, and a tetrahedron on a line: each edge is in two triangles all the same."""
    folder = Path(folder_of_meshes(tmp_path / "meshes"))
    (folder / "flat.off").write_text("OFF 3 2 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n3 0 2 1\n")
    points = "".join(f"{n} 0 0\n" for n in range(4))
    (folder / "line.off").write_text(f"OFF 4 4 0\n{points}3 0 2 1\n3 0 1 3\n3 1 2 3\n3 0 3 2\n")
    with pytest.warns(UserWarning, match=r"4 of 8 \.off files are left out: .*flat\.off: encloses no volume; \.\.\.$"):
        assert len(watertight_meshes(str(folder))) == 4


@pytest.mark.parametrize("away", [5e6, 1e9])
def test_a_mesh_far_from_the_origin_is_read_as_one_near_it(away, tmp_path):
    """Maps count in metres from far away: 32 bits tell coordinates of 5,000,000 apart by half a metre."""
    folder = folder_of_meshes(tmp_path / "meshes")
    near = cube(tmp_path / "near.off")
    points = "".join(f"{x} {y} {z}\n" for x, y, z in near.vertices * [1, 2, 3] + away)
    faces = "".join(f"3 {a} {b} {c}\n" for a, b, c in near.triangles)
    (tmp_path / "meshes" / "far.off").write_text(f"OFF\n8 {len(near.triangles)} 0\n{points}{faces}")
    with pytest.warns(UserWarning, match=r"2 of 7 \.off files are left out"):
        np.testing.assert_allclose(watertight_meshes(folder)["far.off"].volume, 48)
    (far,) = [each for part in split_meshes(folder, 0.25, 0) for each in part if each.name == "far.off"]
    assert far.pool.dtype == np.float32
    assert np.abs(far.pool).max(axis=0).tolist() == [1, 2, 3]
    assert len(np.unique(far.pool, axis=0)) > 0.99 * len(far.pool)


def test_too_few_meshes_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.off files$"):
        replace(SMALL, folder=str(tmp_path)).training()
    cube(tmp_path / "cube.off")
    with pytest.raises(ValueError, match=r"1 watertight meshes of 1 shapes are too few to split$"):
        replace(SMALL, folder=str(tmp_path)).training()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_points": 0},
        {"num_surface": 1},
        {"noise": -0.1},
        {"near": math.inf},
        {"held_out_fraction": 1.0},
        {"seed": -1},
    ],
)
def test_settings_without_sense_are_errors(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Shapes(**wrong)


def test_binary_values_have_a_loss_and_metrics_by_hand():
    prediction = torch.tensor([[[0.0], [math.log(3)], [-math.log(3)], [7.0]]])
    target = {
        "coordinates": torch.zeros(1, 4, 2),
        "values": torch.tensor([[[1.0], [1.0], [1.0], [torch.nan]]]),
        "mask": torch.ones(1, 4, dtype=torch.bool),
    }
    # The probabilities of 1 are 1/2, 3/4 and 1/4; the last value is unknown.
    assert BINARY.loss(prediction, target).item() == pytest.approx(-math.log(0.5 * 0.75 * 0.25) / 3)
    target["mask"][0, 2] = False
    assert BINARY.loss(prediction, target).item() == pytest.approx(-math.log(0.5 * 0.75) / 2)
    pairs = BINARY.metric_inputs(
        torch.tensor([[[2.0], [2.0], [-2.0], [-2.0]]]), target | {"mask": torch.ones(1, 4).bool()}
    )
    scores = {name: metric(*pairs).item() for name, metric in BINARY.metrics().items()}
    assert scores == pytest.approx({"iou": 2 / 3, "accuracy": 2 / 3})
    row = BINARY.to_row(torch.tensor([[math.log(3)], [-math.log(3)]]))
    assert row[""] == [[1], [0]]
    np.testing.assert_allclose(row["probabilities"], [[0.75], [0.25]], rtol=1e-6)
    plotted = BINARY.for_plot(torch.zeros(4, 1), {name: x[0] for name, x in target.items()})
    assert plotted["values"].tolist() == [[0.5]] * 4


@pytest.mark.parametrize("value", [-0.5, 2.0])
def test_a_number_that_is_no_probability_is_an_error_for_binary_values(value):
    points = {"coordinates": np.zeros((3, 2)), "values": np.full((3, 1), value)}
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        BINARY.preprocess(points, rng(), training=True)
    with pytest.raises(ValueError, match="is not between 0 and 1"):
        BINARY.loss(torch.zeros(1, 3, 1), {"values": torch.full((1, 3, 1), value), "mask": torch.ones(1, 3).bool()})
    with pytest.raises(ValueError, match="values: binary has no mean and no std"):
        replace(BINARY, mean=(0.5,))


def test_binary_values_are_fitted_saved_and_learned():
    """Points inside a circle, from the values at other points; the prediction is a logit."""
    torch.manual_seed(0)
    coordinates = rng().uniform(-1, 1, (3, 61, 2)).astype(np.float32)
    values = (np.linalg.norm(coordinates, axis=-1, keepdims=True) < 0.7).astype(np.float32)
    records = [{"points": {"coordinates": c, "values": v}} for c, v in zip(coordinates, values, strict=True)]
    schema = Schema({"points": BINARY}, {"points": BINARY}).fit(records)
    spec = schema.outputs["points"]
    assert (spec.mean, spec.std) == (None, None)
    np.testing.assert_allclose(spec.bounds, [[-1, 1], [-1, 1]], atol=0.05)
    assert from_plain(Schema, to_plain(schema)) == schema
    config = Config(LatentsConfig(7, 12), processor=ProcessorConfig(num_heads=2, num_layers=1), decoder=DecoderConfig())
    model = PerceiverIO(schema, config)
    batch = schema.collate([schema.preprocess(record, rng(), training=False) for record in records])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(50):
        loss = sum(schema.losses(model(batch["inputs"], schema.points(batch["targets"])), batch["targets"]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = evaluate(model.eval(), records)["points"]
    assert scores["iou"] > 0.7
    logits = model(batch["inputs"], {"points": Coordinates(torch.tensor([[0.0, 0.0], [0.95, 0.95]]))})["points"]
    assert (logits[:, 0] > 0).all()
    assert (logits[:, 1] < 0).all()


def test_baselines_by_hand(tmp_path):
    mesh = icosphere(3)
    surface, points = mesh.surface(rng(), 256).astype(np.float32), rng(1).uniform(-1, 1, (499, 3))
    inside = np.linalg.norm(points, axis=1) < 1
    assert iou(in_hull(surface, points), inside) > 0.85
    assert iou(behind_nearest(surface, points), inside) > 0.85
    assert ((outward_normals(surface) * surface).sum(axis=1) > 0.9).mean() > 0.95
    # A hull is all inside of a ring; the normals see its hole.
    ring = Torus(0.7, 0.2)
    drawn, areas = ring.drawn(rng(), 1024)
    drawn = drawn[rng().choice(1024, 256, replace=False, p=areas / areas.sum())]
    assert in_hull(drawn, np.zeros((1, 3))).all()
    assert not behind_nearest(drawn, np.zeros((1, 3))).any()
    assert iou(np.array([True, True, False]), np.array([True, False, False])) == 0.5
    assert iou(np.zeros(3, bool), np.zeros(3, bool)) == 1.0


def test_codes_are_matched_and_surfaces_drawn_by_hand():
    codes = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.equal(codes[order][matched(codes, codes[order])], codes)
    picture = rendered(lambda points: 0.5 - np.linalg.norm(points, axis=1))
    # A ball of radius 0.5 in a picture 2.6 wide: white around, bright in the middle, darker at the rim.
    assert (picture < 1).mean() == pytest.approx(math.pi * 0.25 / 2.6**2, rel=0.1)
    middle = len(picture) // 2
    assert picture[0, 0] == 1
    assert picture[middle, middle] > 0.8
    assert picture[middle][picture[middle] < 1][0] < 0.7


@pytest.mark.filterwarnings("ignore:.*left out")
def test_the_recipe_trains_scores_and_reports(tmp_path, monkeypatch):
    module = import_module("perceivers.systems.shapes.report")
    monkeypatch.setattr(module, "SIDE", 7)
    monkeypatch.setattr(module, "FITTED", 5)
    task = TASKS["shapes"]
    recipe = task.recipe()
    assert recipe.schema.fit([]) == recipe.schema
    data = replace(SMALL, folder=folder_of_meshes(tmp_path / "meshes"), num_held_out=4)
    config = replace(recipe.config, latents=replace(recipe.config.latents, num_latents=11))
    training = TrainingConfig(num_steps=2, batch_size=3, log_every=1, accelerator="cpu")
    run_recipe(replace(recipe, data=data, config=config, training=training), tmp_path / "run")
    run = Run(tmp_path / "run")
    scores = evaluate_run(run) | task.baseline_scores(run)
    assert set(scores["held out"]["inside"]) == {"iou", "accuracy"}
    rivals = ("the model", "convex hull", "nearest training shape", "nearest points, estimated normals")
    assert set(scores) - {"held out"} == {f"{subset}, {name}" for subset in ("parametric", "meshes") for name in rivals}
    assert all(0 <= value <= 1 for name in scores for value in scores[name]["inside"].values())
    keep_scores(run.folder, scores)
    page = task.report(run).read_text()
    assert page.count("<img") == 5
    assert "convex hull" in page
