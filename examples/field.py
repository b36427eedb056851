"""A solid body as a field that can be evaluated at any point: inside or outside of a closed mesh. With baselines.

`prepare MESH.off OUT` samples points, `baselines OUT` prints scores of nearest neighbours, `score OUT` prints scores of
predictions, `draw OUT` draws a slice. docs/field.md is the guide.
"""

from pathlib import Path

import numpy as np
import tyro
from sklearn.neighbors import KNeighborsClassifier

from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import write_rows
from perceivers.media.image_files import write_image

POINTS, NEAR = 1000, 0.03
"""Points of a table row; distance of half of them from the surface (2 sigma), relative to the length of the body."""

SIDE = 256
"""Points along each side of the drawn slice."""


def prepare(mesh: Path, out: Path, /, train: int = 40, test: int = 10) -> None:
    """Write rows of "body" and "inside", points as [[x, y, z, 1 or 0], ...]; in slice.jsonl as [x, y, z] alone."""
    corners = read_off(mesh)
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        points = drawn(corners, count * POINTS, rng)
        rows = np.concatenate([points, inside(points, corners)[:, None]], -1).reshape(count, POINTS, 4)
        write_rows(out / f"{part}.jsonl", [{"body": mesh.stem, "inside": row.round(5).tolist()} for row in rows])
    write_rows(out / "slice.jsonl", [{"body": mesh.stem, "inside": row.tolist()} for row in middle(corners)])


def read_off(path: Path) -> np.ndarray:
    """Read the corners [triangles, 3, 3] of an .off file of triangles."""
    words = path.read_text().split()
    vertices, faces = int(words[1]), int(words[2])
    positions = np.array(words[4 : 4 + 3 * vertices], float).reshape(-1, 3)
    return positions[np.array(words[4 + 3 * vertices :][: 4 * faces], int).reshape(-1, 4)[:, 1:]]


def drawn(corners: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Sample points [count, 3] in random order, half of them in the whole box, half near the surface."""
    low, high = corners.min((0, 1)), corners.max((0, 1))
    margin, length = 0.05 * (high - low), (high - low).max()
    everywhere = rng.uniform(low - margin, high + margin, (count // 2, 3))
    # Uniform points of the surface: a triangle by area, then a random point in it.
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1)
    chosen = corners[rng.choice(len(corners), count - count // 2, p=area / area.sum())]
    surface = np.einsum("pc,pcx->px", rng.dirichlet(np.ones(3), len(chosen)), chosen)
    return rng.permutation(np.concatenate([everywhere, surface + rng.normal(0, NEAR * length / 2, surface.shape)]))


def inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Return 1 for each point inside, where a ray upwards crosses the surface an odd number of times, else 0."""
    return np.concatenate([crossings(part, corners) % 2 for part in np.array_split(points, len(points) // 500 + 1)])


def crossings(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Count the triangles above each point."""
    a, b, c = (corners[None, :, i] - points[:, None] for i in range(3))  # [P, T, 3]
    # Signed areas of the parts of a triangle around the point, seen from above: all of one sign if it lies within.
    sides = [p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0] for p, q in ((b, c), (c, a), (a, b))]
    total = sum(sides)
    within = np.all([side * total > 0 for side in sides], axis=0)
    height = sum(side * corner[..., 2] for side, corner in zip(sides, (a, b, c), strict=True)) * np.sign(total)
    return (within & (height > 0)).sum(-1)


def middle(corners: np.ndarray) -> np.ndarray:
    """Return points [SIDE, SIDE, 3] of the middle plane that is perpendicular to the shortest axis of the body."""
    low, high = corners.min((0, 1)), corners.max((0, 1))
    thin = int((high - low).argmin())
    down, across = (axis for axis in (1, 0, 2) if axis != thin)
    points = np.tile((low + high) / 2, (SIDE, SIDE, 1))
    points[..., down] = np.linspace(high[down], low[down], SIDE)[:, None]
    points[..., across] = np.linspace(low[across], high[across], SIDE)
    return points


def baselines(data: Path, /) -> None:
    """Print scores of the baselines: the nearest, the five and the twenty nearest training points."""
    train, test = (points_of(data / f"{part}.jsonl") for part in ("train", "test"))
    for count in (1, 5, 20):
        model = KNeighborsClassifier(count, weights="distance").fit(train[:, :3], train[:, 3])
        tell(f"{count} nearest points", model.predict(test[:, :3]) > 0.5, test[:, 3] > 0.5)


def score(data: Path, /) -> None:
    """Print scores of predictions.jsonl, from `perceivers predict RUN test.jsonl --out predictions.jsonl`."""
    test, predictions = points_of(data / "test.jsonl"), points_of(data / "predictions.jsonl")
    tell("Perceiver", predictions[:, 0] > 0.5, test[:, 3] > 0.5)


def draw(data: Path, /) -> None:
    """Draw the predictions of slice.predictions.jsonl as slice.png."""
    grey = points_of(data / "slice.predictions.jsonl").reshape(SIDE, SIDE, 1).clip(0, 1) * 255
    write_image(data / "slice.png", np.repeat(grey.astype(np.uint8), 3, axis=-1))


def points_of(path: Path) -> np.ndarray:
    """Return all points of a file."""
    return np.concatenate([np.array(row["inside"]) for row in read_rows(path)])


def tell(name: str, predicted: np.ndarray, true: np.ndarray) -> None:
    """Print the accuracy, and the intersection over union of the predicted and the true body."""
    common = (predicted & true).sum() / (predicted | true).sum()
    print(f"{name}: {(predicted == true).mean():.3f} right, {common:.3f} common")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare, "baselines": baselines, "score": score, "draw": draw})
