"""Loading of .off files (Object File Format): surfaces of polygons, of which many libraries publish their examples."""

import io
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from perceivers.files.messages import one_line
from perceivers.files.opening import read_text

LARGEST_OFF = 2**24
"""Largest .off file in bytes; a mesh of 200,000 triangles takes about ten million."""

_HEADER = re.compile(r"(ST)?C?N?OFF")  # with texture coordinates, colours or normals, which are skipped

LARGEST = 1e18
"""Largest coordinate: areas of such triangles still fit into float32."""

FLAT = 1e-9
"""Largest area of a triangle that counts as none, relative to the largest triangle: it faces no side."""

Words = list[str]


def read_off(path: Path | str) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "t 3"]]:
    """Load vertices, and triangles as numbers of vertices; larger polygons are cut into fans of triangles.

    ValueError naming the file and the line if it is no .off file, or if it does not hold what its header announces. A
    polygon that is not convex is a ValueError too: a fan would cover more than the polygon.
    """
    lines = _lines(read_text(path, LARGEST_OFF))
    number, header = 1, Words()
    try:
        number, header = next(lines)
        if not _HEADER.fullmatch(header.pop(0)):
            raise ValueError("expected OFF, COFF or NOFF")
        if not header:  # the counts may stand on the line of the word OFF
            number, header = next(lines)
        num_vertices, num_faces = map(int, header[:2])
        # Memory grows with the lines that are there, not with the counts that the header announces.
        vertices, triangles, sizes = list[list[float]](), list[tuple[int, int, int]](), list[int]()
        while len(vertices) < num_vertices:
            number, words = next(lines)
            vertices.append(_vertex(words))
        for _ in range(num_faces):
            number, words = next(lines)
            triangles += (fan := _fan(words, num_vertices))
            sizes.append(len(fan))
    except StopIteration:
        raise ValueError(f"{path}: ends before its last vertex and face") from None
    except ValueError as error:
        raise ValueError(f"{path}:{number}: not a line of an .off file: {one_line(error)}") from None
    if not triangles:
        raise ValueError(f"{path}: has no faces")
    corners, faces = np.array(vertices), np.array(triangles)
    if not _are_convex(corners[faces], np.array(sizes)):
        raise ValueError(f"{path}: has a face that is not convex: cut it into triangles")
    return corners, faces


def _lines(text: str) -> Iterator[tuple[int, Words]]:
    """Yield the number and the words of each line that is not empty; comments begin with #."""
    for number, line in enumerate(io.StringIO(text), start=1):
        if words := line.partition("#")[0].split():
            yield number, words


def _vertex(words: Words) -> list[float]:
    """Return the coordinates of a vertex."""
    coordinates = [float(word) for word in words[:3]]
    if len(coordinates) < 3 or not (np.abs(coordinates) < LARGEST).all():
        raise ValueError(f"{' '.join(words[:3])}: expected three coordinates, each below {LARGEST:g}")
    return coordinates


def _fan(words: Words, num_vertices: int) -> list[tuple[int, int, int]]:
    """Return the triangles of a face, which is given by the number and the numbers of its corners."""
    count, corners = int(words[0]), [int(word) for word in words[1 : int(words[0]) + 1]]
    if count < 3 or len(corners) < count or not 0 <= min(corners) <= max(corners) < num_vertices:
        raise ValueError(f"a face of {count} corners, expected at least 3, each from 0 to {num_vertices - 1}")
    return [(corners[0], *pair) for pair in pairwise(corners[1:])]


def _are_convex(corners: Float[np.ndarray, "t 3 3"], sizes: Int[np.ndarray, " f"]) -> bool:
    """Return whether the triangles of each fan, of which there are `sizes`, all face the same side."""
    a, b, c = corners.swapaxes(0, 1)
    normals, face = np.cross(b - a, c - a), np.repeat(np.arange(len(sizes)), sizes)
    whole = np.stack([np.bincount(face, normal) for normal in normals.T], axis=1)
    length = np.linalg.norm(normals, axis=1)
    return bool(((normals * whole[face]).sum(axis=1) > 0)[length > FLAT * length.max()].all())
