"""Solids with closed formulas: boxes, capsules, tori, superquadrics, and unions of these.

A solid says which points it encloses, exactly, and draws points of its surface. Points are (x, y, z), P their number.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

Points = Float[np.ndarray, "p 3"]
Areas = Float[np.ndarray, " p"]
Rotation = Float[np.ndarray, "3 3"]

ODDS = 2
"""Number of points that are drawn for each that is kept, so that those that are kept can be uniform."""


class Solid(ABC):
    """Anything with an inside and a surface."""

    @abstractmethod
    def inside(self, points: Points) -> Bool[np.ndarray, " p"]:
        """Return whether points are inside."""

    @abstractmethod
    def surface(self, rng: np.random.Generator, count: int) -> Points:
        """Draw points of the surface."""


class Primitive(ABC):
    """A solid around the origin, with a formula."""

    @abstractmethod
    def level(self, points: Points) -> Float[np.ndarray, " p"]:
        """Return a function of points that is negative inside, 0 on the surface and positive outside."""

    @abstractmethod
    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Points, Areas]:
        """Draw points of the surface, and return them with the area that each stands for."""


@dataclass(frozen=True)
class Box(Primitive):
    """A box."""

    half: tuple[float, float, float]
    """Half of its sides."""

    def level(self, points: Points) -> Float[np.ndarray, " p"]:
        """Return the largest excess over a half side."""
        return (np.abs(points) - self.half).max(axis=1)

    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Points, Areas]:
        """Draw a pair of faces by area, then one of the two and a point of it."""
        half = np.array(self.half)
        areas = 8 * half.prod() / half  # of both faces across each axis
        across = rng.choice(3, count, p=areas / areas.sum())
        points = rng.uniform(-half, half, (count, 3))
        points[np.arange(count), across] = half[across] * rng.choice([-1, 1], count)
        return points, np.full(count, areas.sum() / count)


@dataclass(frozen=True)
class Capsule(Primitive):
    """A cylinder along z with half spheres at its ends."""

    radius: float
    """Radius of the cylinder and of the spheres."""
    half_length: float
    """Half of the cylinder's length."""

    def level(self, points: Points) -> Float[np.ndarray, " p"]:
        """Return the distance to the surface."""
        beyond = points[:, 2] - points[:, 2].clip(-self.half_length, self.half_length)
        return np.sqrt(points[:, 0] ** 2 + points[:, 1] ** 2 + beyond**2) - self.radius

    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Points, Areas]:
        """Draw points of a sphere, cut in two, and of the cylinder between."""
        around, ends = 4 * math.pi * self.radius * self.half_length, 4 * math.pi * self.radius**2
        on_side = rng.random(count) < around / (around + ends)
        points = self.radius * directions(rng, count)
        shift = np.where(on_side, rng.uniform(-self.half_length, self.half_length, count), self.half_length)
        # A point of a sphere, moved outwards to the cylinder around it, is uniform on that cylinder (Archimedes).
        flat = np.maximum(np.hypot(points[:, 0], points[:, 1]), np.finfo(float).tiny)
        points[on_side, :2] *= (self.radius / flat[on_side])[:, None]
        points[:, 2] = np.where(on_side, shift, points[:, 2] + np.copysign(shift, points[:, 2]))
        return points, np.full(count, (around + ends) / count)


@dataclass(frozen=True)
class Torus(Primitive):
    """A ring around z."""

    radius: float
    """Radius of the circle in its middle."""
    thickness: float
    """Radius of the tube around that circle, at most `radius`."""

    def level(self, points: Points) -> Float[np.ndarray, " p"]:
        """Return the distance to the surface."""
        return np.hypot(np.hypot(points[:, 0], points[:, 1]) - self.radius, points[:, 2]) - self.thickness

    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Points, Areas]:
        """Draw both angles uniformly; the outer side of the ring has more area."""
        around, across = rng.uniform(0, 2 * math.pi, (2, count))
        distance = self.radius + self.thickness * np.cos(across)
        points = np.stack([distance * np.cos(around), distance * np.sin(around), self.thickness * np.sin(across)], 1)
        return points, 4 * math.pi**2 * self.thickness * distance / count


@dataclass(frozen=True)
class Superquadric(Primitive):
    """A superellipsoid (Barr 1981): ellipsoid, cylinder, octahedron, or anything between these and a box.

    Its surface is where (|x / a|^(2 / e) + |y / b|^(2 / e))^(e / s) + |z / c|^(2 / s) = 1.
    """

    half: tuple[float, float, float]
    """Half axes a, b, c."""
    flatness: tuple[float, float]
    """Exponents e (around z) and s (along z), from 0 (square) over 1 (round) to 2 (pointed)."""

    def level(self, points: Points) -> Float[np.ndarray, " p"]:
        """Return the factor by which the solid must grow to reach each point, minus 1."""
        return self._parts(points)[0] - 1

    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Points, Areas]:
        """Draw points of an ellipsoid, and move them along their direction to the surface."""
        half, (e, s) = np.array(self.half), self.flatness
        ball = directions(rng, count)
        toward = ball * half
        growth, around = self._parts(toward)
        points = toward / growth[:, None]
        around = np.maximum(around / growth ** (2 / e), np.finfo(float).tiny)  # of the points on the surface
        # The gradient of the growth there. A direction's solid angle is stretched by the ellipsoid, then by distance.
        unit = np.abs(points) / half
        gradient = np.stack(
            [
                around ** (e / s - 1) * unit[:, 0] ** (2 / e - 1) / half[0],
                around ** (e / s - 1) * unit[:, 1] ** (2 / e - 1) / half[1],
                unit[:, 2] ** (2 / s - 1) / half[2],
            ],
            axis=1,
        )
        solid_angle = 4 * math.pi / count * half.prod() / np.linalg.norm(toward, axis=1) ** 3
        return points, solid_angle * np.linalg.norm(points, axis=1) ** 3 * np.linalg.norm(gradient, axis=1)

    def _parts(self, points: Points) -> tuple[Float[np.ndarray, " p"], Float[np.ndarray, " p"]]:
        """Return the growth that reaches each point, and the sum |x / a|^(2 / e) + |y / b|^(2 / e)."""
        (e, s), unit = self.flatness, np.abs(points) / self.half
        around = unit[:, 0] ** (2 / e) + unit[:, 1] ** (2 / e)
        return (around ** (e / s) + unit[:, 2] ** (2 / s)) ** (s / 2), around


@dataclass(frozen=True, eq=False)
class Part(Primitive):
    """A primitive, turned and then moved."""

    primitive: Primitive
    rotation: Rotation
    centre: Float[np.ndarray, "3"]

    def level(self, points: Points) -> Float[np.ndarray, " p"]:
        """Return the primitive's function of points: negative inside, 0 on the surface and positive outside."""
        return self.primitive.level((points - self.centre) @ self.rotation)

    def drawn(self, rng: np.random.Generator, count: int) -> tuple[Points, Areas]:
        """Draw points of the surface, and return them with the area that each stands for."""
        points, areas = self.primitive.drawn(rng, count)
        return points @ self.rotation.T + self.centre, areas


@dataclass(frozen=True, eq=False)
class Union(Solid):
    """Union of several solids."""

    parts: Sequence[Part]

    def inside(self, points: Points) -> Bool[np.ndarray, " p"]:
        """Return whether points are inside any part."""
        return np.any([part.level(points) < 0 for part in self.parts], axis=0)

    def surface(self, rng: np.random.Generator, count: int) -> Points:
        """Draw points of the surface, about uniform over its area."""
        points, areas = np.empty((0, 3)), np.empty(0)
        while len(points) < count:
            for part in self.parts:
                drawn, each = part.drawn(rng, ODDS * count)
                # What is inside another part is no surface of the union.
                others = [other.level(drawn) >= 0 for other in self.parts if other is not part]
                kept = np.all(others, axis=0) if others else np.ones(len(drawn), bool)
                points, areas = np.concatenate([points, drawn[kept]]), np.concatenate([areas, each[kept]])
        # Without replacement, by area: the first arrivals of processes with these rates (Efraimidis and Spirakis 2006).
        arrival = rng.exponential(size=len(points)) / np.maximum(areas, np.finfo(float).tiny)
        return points[np.argsort(arrival)[:count]]


def directions(rng: np.random.Generator, count: int) -> Points:
    """Draw points of the unit sphere."""
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def random_rotation(rng: np.random.Generator) -> Rotation:
    """Draw a rotation, all of them alike probable (the orthogonal factor of normal numbers)."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)  # of three axes, an odd number of mirrors is undone by mirroring all


def random_union(rng: np.random.Generator, most_parts: int = 5) -> Union:
    """Draw parts of random kinds and sizes; each stands with its centre on the surface of those before."""
    parts = [Part(random_primitive(rng, 1.0), random_rotation(rng), np.zeros(3))]
    for _ in range(int(rng.integers(most_parts))):
        centre = Union(parts).surface(rng, 1)[0]
        parts.append(Part(random_primitive(rng, 0.7), random_rotation(rng), centre))
    return Union(parts)


def random_primitive(rng: np.random.Generator, size: float) -> Primitive:
    """Draw a primitive of any kind, whose longest half axis is about `size`."""
    kinds: list[Callable[[], Primitive]] = [
        lambda: Box(_three(rng, size)),
        lambda: Capsule(size * rng.uniform(0.1, 0.4), size * rng.uniform(0.2, 1.0)),
        lambda: _torus(rng, size),
        lambda: Superquadric(_three(rng, size), (rng.uniform(0.2, 1.8), rng.uniform(0.2, 1.8))),
    ]
    return kinds[int(rng.integers(len(kinds)))]()


def _three(rng: np.random.Generator, size: float) -> tuple[float, float, float]:
    a, b, c = (size * np.exp(rng.uniform(math.log(0.2), 0.0, 3))).tolist()
    return a, b, c


def _torus(rng: np.random.Generator, size: float) -> Torus:
    thickness = size * rng.uniform(0.1, 0.35)
    return Torus(size - thickness, thickness)
