"""Closed meshes: points of their surface, and which points they enclose.

V vertices, T triangles, P points.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from perceivers.data.solids import Points, Solid

Vertices = Float[np.ndarray, "v 3"]
Triangles = Int[np.ndarray, "t 3"]
Numbers = Int[np.ndarray, " p"]

MOST_CELLS = 128
"""Largest number of cells of a mesh's index, along each axis."""


class Index(NamedTuple):
    """A grid over the x-y plane, whose cells list the triangles that lie above or below them."""

    low: Float[np.ndarray, "2"]
    """Lowest x and y of the mesh."""
    size: Float[np.ndarray, "2"]
    """Size of a cell."""
    cells: int
    """Number of cells along each axis."""
    offsets: Int[np.ndarray, " cells+1"]
    """Where the list of each cell begins, row-major, and where the last one ends."""
    triangles: Int[np.ndarray, " entries"]
    """The lists, one after the other."""


@dataclass(frozen=True, eq=False)
class Mesh(Solid):
    """A surface of triangles, whose corners run counterclockwise as seen from outside."""

    vertices: Vertices
    triangles: Triangles

    @classmethod
    def of(cls, vertices: Vertices, triangles: Triangles) -> "Mesh":
        """Return a mesh in which equal vertices are one, without triangles that are a line or a point."""
        unique, number = np.unique(vertices, axis=0, return_inverse=True)
        triangles = number.reshape(-1)[triangles]
        a, b, c = triangles.T
        return cls(unique, triangles[(a != b) & (b != c) & (c != a)])

    @property
    def is_watertight(self) -> bool:
        """True if every edge is in exactly two triangles, which run along it in opposite directions."""
        start, end = np.concatenate([self.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])]).T
        edges, backward = start * len(self.vertices) + end, end * len(self.vertices) + start
        return len(edges) > 0 and len(np.unique(edges)) == len(edges) and bool(np.isin(edges, backward).all())

    @cached_property
    def corners(self) -> Float[np.ndarray, "t 3 3"]:
        """Coordinates of each triangle's corners."""
        return self.vertices[self.triangles]

    @cached_property
    def area_vectors(self) -> Float[np.ndarray, "t 3"]:
        """Outward normal of each triangle, as long as its area."""
        a, b, c = self.corners.swapaxes(0, 1)
        return np.cross(b - a, c - a) / 2

    @property
    def volume(self) -> float:
        """Enclosed volume; negative if the triangles run clockwise."""
        return float((self.corners[:, 0] * self.area_vectors).sum() / 3)

    def surface(self, rng: np.random.Generator, count: int) -> Points:
        """Draw points of the surface, uniform over its area."""
        up_to = self._areas_up_to
        chosen = self.corners[np.searchsorted(up_to[:-1], rng.uniform(0, up_to[-1], count), side="right")]
        # Two numbers of a square, folded to the triangle below its diagonal.
        u, v = rng.random((2, count, 1))
        u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
        return chosen[:, 0] + u * (chosen[:, 1] - chosen[:, 0]) + v * (chosen[:, 2] - chosen[:, 0])

    def inside(self, points: Points) -> Bool[np.ndarray, " p"]:
        """Return whether points are enclosed: whether their winding number is not 0."""
        return self.winding_numbers(points) != 0

    def winding_numbers(self, points: Points) -> Int[np.ndarray, " p"]:
        """Return how often a watertight mesh encloses each point: 1 within a simple one, -1 if that is inside out.

        A ray upwards leaves the solid through triangles that face up, and enters it through those that face down.
        """
        # The triangles of each point's cell, as pairs of a point and a triangle.
        index = self._index
        cell = np.floor((points[:, :2] - index.low) / index.size).astype(int)
        over = np.flatnonzero(((cell >= 0) & (cell < index.cells)).all(axis=1))
        flat = cell[over, 0] * index.cells + cell[over, 1]
        first, number = index.offsets[flat], index.offsets[flat + 1] - index.offsets[flat]
        which, triangle = np.repeat(over, number), index.triangles[_ranges(first, number)]
        # Those of them that the point's ray crosses, above the point.
        x, corner = points[which], self.triangles[triangle]
        crossed = np.zeros(len(which), bool)
        for one, other in ((0, 1), (1, 2), (2, 0)):
            crossed ^= self._is_left_of(x, corner[:, one], corner[:, other])
        which, x, triangle = which[crossed], x[crossed], triangle[crossed]
        normal, rise = self.area_vectors[triangle], x - self.corners[triangle, 0]
        facing = np.sign(normal[:, 2])
        is_above = (rise * normal).sum(axis=1) * facing < 0
        return np.bincount(which, facing * is_above, len(points)).astype(int)

    def _is_left_of(
        self, x: Points, one: Int[np.ndarray, " p"], other: Int[np.ndarray, " p"]
    ) -> Bool[np.ndarray, " p"]:
        """Return whether the ray to the right from x, seen from above, crosses the edge between two vertices.

        An edge is computed from its lower vertex number, so both of its triangles get the same rounding: a ray never
        slips between them.
        """
        a, b = self.vertices[np.minimum(one, other), :2], self.vertices[np.maximum(one, other), :2]
        spans = (a[:, 1] > x[:, 1]) != (b[:, 1] > x[:, 1])
        height = np.where(spans, b[:, 1] - a[:, 1], 1.0)
        return spans & (x[:, 0] < a[:, 0] + (x[:, 1] - a[:, 1]) * (b[:, 0] - a[:, 0]) / height)

    @cached_property
    def _areas_up_to(self) -> Float[np.ndarray, " t"]:
        """Area of the first triangles, up to each and with it."""
        return np.linalg.norm(self.area_vectors, axis=1).cumsum()

    @cached_property
    def _index(self) -> Index:
        """The grid that finds the triangles above and below a point."""
        flat = self.corners[..., :2]
        low, high = flat.min(axis=(0, 1)), flat.max(axis=(0, 1))
        cells = int(np.clip(np.sqrt(len(flat)) / 2, 1, MOST_CELLS))
        size = np.maximum((high - low) * (1 + 1e-9), np.finfo(float).tiny) / cells
        # Each triangle is listed in all cells of the box around it.
        first, last = (
            np.floor((edge - low) / size).astype(int).clip(0, cells - 1) for edge in (flat.min(1), flat.max(1))
        )
        width, height = (last - first + 1).T
        triangle = np.repeat(np.arange(len(flat)), width * height)
        place = _ranges(np.zeros(len(flat), int), width * height)
        cell = (first[triangle, 0] + place // height[triangle]) * cells + first[triangle, 1] + place % height[triangle]
        order = np.argsort(cell, kind="stable")
        offsets = np.searchsorted(cell[order], np.arange(cells**2 + 1))
        return Index(low, size, cells, offsets, triangle[order])


def _ranges(first: Int[np.ndarray, " n"], number: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """Return the whole numbers from each first one on, `number` of them, one range after the other."""
    ends = number.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - number - first, number)
