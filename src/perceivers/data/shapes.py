"""Solid shapes as noisy points of their surface, and points that are inside or outside.

Shapes are unions of formulas (`solids`), drawn from a seed, and the watertight meshes of a folder. A record is a pure
function of (seed, part, number).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.meshes import Mesh
from perceivers.data.solids import Points, Solid, random_rotation, random_union
from perceivers.data.splits import check_held_out_fraction, whole_groups
from perceivers.media.off_files import read_off
from perceivers.progress import tracked
from perceivers.schema import Record

TRAINING, HELD_OUT = 0, 1
"""The parts of the data, which have no shape in common."""

REACH = 0.9
"""Largest coordinate of a shape, which is centred in the cube from -1 to 1."""

STRETCH = 0.3
"""Largest natural logarithm of the factor by which a training shape is stretched along each axis."""

POOL, MOST_KEPT = 2048, 8192
"""Number of points of a solid's surface that records choose from; largest number of solids that stay in memory."""

SIGNED_BY, ALIKE = 50_000, 0.0125
"""Number of points of a mesh's signature; signatures that differ by less are of the same shape.

Of the meshes of CGAL 5.5, copies differ by at most 0.0101, different shapes by at least 0.0154.
"""

FURTHEST = 1000
"""Largest coordinate of a mesh, in units of its longest side, for which it stays where it is."""

THINNEST = 1e-9
"""Largest volume, in units of the area to the power 1.5, that counts as none: a folded sheet has no inside."""

PARAMETRIC = "parametric"
"""Source of a shape that is no mesh."""


@dataclass(frozen=True, eq=False)
class Posed:
    """A solid under an affine map, centred and scaled to REACH."""

    solid: Solid
    source: str
    """File name of a mesh, or PARAMETRIC."""
    linear: Float[np.ndarray, "3 3"]
    """Linear map, applied first."""
    shift: Float[np.ndarray, "3"]
    """Shift, applied last."""

    def inside(self, points: Points) -> Bool[np.ndarray, " p"]:
        """Return whether points are inside."""
        return self.solid.inside((points - self.shift) @ np.linalg.inv(self.linear).T)


class Source(NamedTuple):
    """A solid, of which records are made."""

    solid: Solid
    pool: Float[np.ndarray, "p 3"]
    """Points of its surface."""
    name: str
    """File name of a mesh, or PARAMETRIC."""


@dataclass(frozen=True)
class Shapes(DataSet):
    """Records of "surface" [M, 3], noisy points; "inside" [P, 4], points and whether they are inside; and "source".

    Half of the training points are uniform in the cube from -1 to 1, half near the surface; all held-out points are
    uniform. Every second shape is a mesh if there is a folder. Each is turned at random, and stretched in training.
    """

    folder: str = ""
    """Folder of .off files, of which those that are watertight are used; empty: there are no meshes."""
    num_training: int = 100_000
    """Number of training records."""
    num_held_out: int = 256
    """Number of held-out records."""
    num_solids: int = 4096
    """Number of different solids with formulas; a training record turns and stretches one of them."""
    num_surface: int = 256
    """Number of surface points of a record."""
    noise: float = 0.02
    """Standard deviation of the noise of surface points, along each axis."""
    num_points: int = 512
    """Number of points of a training record that are inside or outside."""
    num_held_out_points: int = 4096
    """Number of points of a held-out record that are inside or outside."""
    near: float = 0.05
    """Standard deviation of the distance from the surface of half of the training points, along each axis."""
    held_out_fraction: float = 0.25
    """Fraction of the meshes that are held out; meshes of the same shape stay together."""
    seed: int = 0
    """Seed of all random numbers, and of the split of the meshes."""
    kind: Literal["shapes"] = "shapes"
    """Name in files."""

    def __post_init__(self) -> None:
        check_held_out_fraction(self.held_out_fraction)
        counts = ("num_training", "num_held_out", "num_solids", "num_surface", "num_points", "num_held_out_points")
        # A shape is scaled by the box around its points, of which one has no size.
        leasts = {**dict.fromkeys(counts, 1), "num_surface": 2, "noise": 0, "near": 0, "seed": 0}
        for name, least in leasts.items():
            if not least <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}, and finite")

    def training(self) -> Sequence[Record]:
        """Return the training records; ValueError for a folder of too few meshes."""
        self._check_folder()
        return LazyRecords(self.num_training, partial(self._record, TRAINING))

    def held_out(self) -> Sequence[Record]:
        """Return the held-out records; ValueError for a folder of too few meshes."""
        self._check_folder()
        return LazyRecords(self.num_held_out, partial(self._record, HELD_OUT))

    def record_files(self) -> Sequence[Path]:
        """Return the files of the meshes."""
        return off_files(self.folder) if self.folder else []

    def shape(self, part: int, number: int) -> "Posed":
        """Return the shape of a record."""
        return self._drawn(np.random.default_rng((self.seed, part, number)), part, number)[0]

    def _check_folder(self) -> None:
        """Load the meshes, so that a mistake is found before any record is made."""
        if self.folder:
            split_meshes(self.folder, self.held_out_fraction, self.seed)

    def _record(self, part: int, number: int) -> Record:
        rng = np.random.default_rng((self.seed, part, number))
        shape, drawn = self._drawn(rng, part, number)
        close = noisy(drawn[self.num_surface :], self.near, rng) if part == TRAINING else drawn[:0]
        count = self.num_points if part == TRAINING else self.num_held_out_points
        points = np.concatenate([close, rng.uniform(-1, 1, (count - len(close), 3))])
        values = {
            "surface": noisy(drawn[: self.num_surface], self.noise, rng),
            "inside": np.concatenate([points, shape.inside(points)[:, None]], axis=1),
        }
        return {name: value.astype(np.float32) for name, value in values.items()} | {"source": shape.source}

    def _drawn(self, rng: np.random.Generator, part: int, number: int) -> tuple["Posed", Points]:
        """Draw the shape of a record, and points of its surface."""
        solid, pool, source = self._source(part, number)
        linear = random_rotation(rng)
        if part == TRAINING:
            linear = linear * np.exp(rng.uniform(-STRETCH, STRETCH, 3))
        # Centre and scale it so that its longest side spans -REACH to REACH.
        count = self.num_surface + self.num_points // 2
        points = pool[rng.choice(len(pool), count, replace=len(pool) < count)] @ linear.T
        low, high = points.min(axis=0), points.max(axis=0)
        scale = 2 * REACH / (high - low).max()
        shape = Posed(solid, source, scale * linear, -scale * (low + high) / 2)
        return shape, scale * points + shape.shift

    def _source(self, part: int, number: int) -> "Source":
        """Return the solid of a record: of even numbers, formulas in turn, of odd numbers meshes, if there are any."""
        number, is_mesh = divmod(number, 2) if self.folder else (number, 0)
        if not is_mesh:
            return parametric_source(self.seed, part, number % self.num_solids)
        meshes = split_meshes(self.folder, self.held_out_fraction, self.seed)[part]
        return meshes[number % len(meshes)]


def noisy(points: Points, noise: float, rng: np.random.Generator) -> Points:
    """Return points moved by normal noise."""
    return points + rng.normal(0, noise, points.shape)


def off_files(folder: str) -> list[Path]:
    """Return the .off files of a folder, by name; ValueError if there are none."""
    paths = sorted(Path(folder).glob("*.off"))
    if not paths:
        raise ValueError(f"{folder}: holds no .off files")
    return paths


@lru_cache(maxsize=MOST_KEPT)
def parametric_source(seed: int, part: int, number: int) -> Source:
    """Return a random solid with a formula."""
    rng = np.random.default_rng((seed, part, number))
    solid = random_union(rng)
    return Source(solid, solid.surface(rng, POOL).astype(np.float32), PARAMETRIC)


@lru_cache(maxsize=2)
def split_meshes(folder: str, held_out_fraction: float, seed: int) -> tuple[list[Source], list[Source]]:
    """Return the watertight meshes of a folder, those for training and those held out; ValueError for too few."""
    meshes = watertight_meshes(folder)
    groups = groups_of(list(meshes.values()))
    held_out = whole_groups(groups, round(held_out_fraction * len(meshes)), seed)
    parts: tuple[list[Source], list[Source]] = ([], [])
    for number, (name, mesh) in enumerate(meshes.items()):
        pool = mesh.surface(np.random.default_rng((seed, number)), 4 * POOL).astype(np.float32)
        parts[HELD_OUT if number in held_out else TRAINING].append(Source(mesh, pool, name))
    if not all(parts):
        raise ValueError(f"{folder}: {len(meshes)} watertight meshes of {len(set(groups))} shapes are too few to split")
    return parts


@lru_cache(maxsize=2)
def watertight_meshes(folder: str) -> dict[str, Mesh]:
    """Return the watertight meshes of a folder by file name; warn of the other files, which are left out."""
    meshes, complaints = dict[str, Mesh](), list[str]()
    for path in tracked(off_files(folder), "meshes"):
        try:
            mesh = Mesh.of(*_near_origin(*read_off(path)))
        except ValueError as error:  # folders of examples hold bare points and broken files too
            complaints.append(str(error))
            continue
        if not mesh.is_watertight:
            complaints.append(f"{path}: not watertight")
        elif not abs(mesh.volume) > THINNEST * np.linalg.norm(mesh.area_vectors, axis=1).sum() ** 1.5:
            complaints.append(f"{path}: encloses no volume")
        else:
            meshes[path.name] = mesh
    if complaints:
        what = f"{len(complaints)} of {len(complaints) + len(meshes)} .off files are left out"
        warnings.warn(f"{folder}: {what}: {complaints[0]}{'; ...' if complaints[1:] else ''}", stacklevel=2)
    return meshes


def _near_origin(
    vertices: Float[np.ndarray, "v 3"], triangles: Int[np.ndarray, "t 3"]
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "t 3"]]:
    """Return a mesh moved to the origin if it is far from it: 32 bits would round the points of its surface."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    is_far = np.abs(vertices).max() > FURTHEST * (high - low).max()
    return (vertices - (low + high) / 2 if is_far else vertices), triangles


def groups_of(meshes: Sequence[Mesh]) -> list[int]:
    """Return for each mesh the number of the first mesh of the same shape, directly or through others between."""
    signatures = [signature(mesh) for mesh in meshes]
    groups = list(range(len(meshes)))
    for later in range(len(meshes)):
        for earlier in range(later):
            if np.abs(signatures[later] - signatures[earlier]).max() < ALIKE:
                old, new = sorted((groups[later], groups[earlier]), reverse=True)
                groups = [new if group == old else group for group in groups]
    return groups


def signature(mesh: Mesh) -> Float[np.ndarray, " s"]:
    """Return numbers that do not depend on pose, size and triangulation, up to the noise of sampling.

    They are quantiles of distances between random points of the surface (Osada et al. 2002) and to their centre, in
    units of the root of the area, and the volume.
    """
    rng = np.random.default_rng(0)
    one, other = mesh.surface(rng, SIGNED_BY), mesh.surface(rng, SIGNED_BY)
    area, steps = np.linalg.norm(mesh.area_vectors, axis=1).sum(), np.linspace(0.02, 0.98, 25)
    distances = [np.linalg.norm(one - end, axis=1) / np.sqrt(area) for end in (other, one.mean(axis=0))]
    return np.concatenate([*(np.quantile(each, steps) for each in distances), [abs(mesh.volume) / area**1.5]])
