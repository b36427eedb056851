"""Baselines that see the same noisy points: their convex hull, the nearest training shape, and estimated normals."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float

from perceivers.core.perceiver import PerceiverIO
from perceivers.data import Shapes
from perceivers.data.shapes import PARAMETRIC, TRAINING
from perceivers.modalities.points import Coordinates
from perceivers.progress import tracked
from perceivers.runs.run import Run
from perceivers.schema import Record
from perceivers.training.devices import device_of
from perceivers.training.metrics import Scores, inference

Surface = Float[np.ndarray, "m 3"]
Points = Float[np.ndarray, "p 3"]
Inside = Bool[np.ndarray, " p"]
Guess = Callable[[Surface, Points], Inside]
"""Function of the points of a surface and of other points: which of the latter are inside."""

NUM_COMPARED = 1024
"""Number of training shapes that a surface is compared with."""

NEIGHBOURS = 12
"""Number of points of the surface that a normal is estimated from."""

NEAREST = 4
"""Number of points of the surface whose normals decide together whether a point is inside."""

MINUTE = 1e-6
"""Cost that is added to each edge of a graph, since sparse matrices hold no edges of 0."""


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return IoU and accuracy, as means over shapes, of the model and of the baselines; meshes apart from the rest."""
    data = run.recipe.data
    assert isinstance(data, Shapes)
    guesses: dict[str, Guess] = {
        "the model": partial(by_model, run.model),
        "convex hull": in_hull,
        "nearest training shape": NearestShape(data),
        "nearest points, estimated normals": behind_nearest,
    }
    return scores_of(guesses, run.held_out)


def scores_of(guesses: dict[str, Guess], records: Sequence[Record]) -> dict[str, Scores]:
    """Return the scores of each guess on the parametric shapes and on the meshes, as means over shapes."""
    found = defaultdict[str, list[tuple[float, float]]](list)
    for record in tracked(records, "baselines"):
        subset = "parametric" if record["source"] == PARAMETRIC else "meshes"
        points, inside = record["inside"][:, :3], record["inside"][:, 3] > 0.5
        for name, guess in guesses.items():
            guessed = guess(record["surface"], points)
            found[f"{subset}, {name}"].append((iou(guessed, inside), float((guessed == inside).mean())))
    means = {name: np.mean(values, axis=0).tolist() for name, values in sorted(found.items(), reverse=True)}
    return {name: {"inside": {"mean iou": mean[0], "mean accuracy": mean[1]}} for name, mean in means.items()}


def iou(one: Inside, other: Inside) -> float:
    """Return the intersection of two sets of points over their union; 1 if both are empty."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def by_model(model: PerceiverIO, surface: Surface, points: Points) -> Inside:
    """Return the points that the model holds for more probably inside than not."""
    return logits_at(model, surface, points) > 0


def logits_at(model: PerceiverIO, surface: Surface, points: Points) -> Float[np.ndarray, " p"]:
    """Return the model's logits of being inside at points, from the points of a surface."""
    with inference(model):
        given = {"surface": torch.from_numpy(surface)[None].to(device_of(model))}
        return model(given, {"inside": Coordinates(points)})["inside"][0, :, 0].cpu().numpy()


def in_hull(surface: Surface, points: Points) -> Inside:
    """Return the points in the convex hull of the surface."""
    from scipy.spatial import ConvexHull

    planes = ConvexHull(surface).equations
    return (points @ planes[:, :3].T + planes[:, 3] <= 0).all(axis=1)


class NearestShape:
    """The training shape, of the first NUM_COMPARED, whose noisy points are nearest (chamfer distance)."""

    def __init__(self, data: Shapes) -> None:
        self.data, training = data, data.training()
        count = min(NUM_COMPARED, len(training))
        self.surfaces = torch.from_numpy(np.stack([training[number]["surface"] for number in range(count)]))

    def __call__(self, surface: Surface, points: Points) -> Inside:
        """Return the points inside the nearest shape."""
        distances = torch.cdist(torch.from_numpy(surface)[None], self.surfaces)
        chamfer = distances.amin(dim=1).mean(dim=1) + distances.amin(dim=2).mean(dim=1)
        return self.data.shape(TRAINING, int(chamfer.argmin())).inside(points)


def behind_nearest(surface: Surface, points: Points) -> Inside:
    """Return the points in the hull that lie behind their nearest points of the surface, as seen along the normals."""
    from scipy.spatial import cKDTree

    nearest = cKDTree(surface).query(points, min(NEAREST, len(surface)))[1].reshape(len(points), -1)
    distances = ((points[:, None] - surface[nearest]) * outward_normals(surface)[nearest]).sum(axis=-1)
    return (distances.mean(axis=1) < 0) & in_hull(surface, points)


def outward_normals(surface: Surface) -> Surface:
    """Return the normal of each point from its neighbours' principal axes, with signs as in Hoppe et al. (1992).

    Points of the convex hull face the way its triangles do. Signs spread from these along the spanning tree whose
    neighbours have the most parallel normals.
    """
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
    from scipy.spatial import ConvexHull, cKDTree

    # The direction in which the neighbours of each point vary the least.
    count = len(surface)
    neighbours = cKDTree(surface).query(surface, min(NEIGHBOURS, count))[1]
    offsets = surface[neighbours] - surface[neighbours].mean(axis=1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("pni,pnj->pij", offsets, offsets))[1][..., 0]
    # The graph of neighbours; others cost more, so that it is connected. Costs of 0 would be no edges.
    near = np.zeros((count, count), bool)
    near[np.arange(count)[:, None], neighbours] = True
    far = np.where(near | near.T, 0.0, 1 + np.linalg.norm(surface[:, None] - surface, axis=-1))
    cost = np.zeros((count + 1, count + 1))
    cost[:count, :count] = 1 - np.abs(normals @ normals.T) + far + MINUTE
    # The root, beside the points: its edges lead to the points of the hull.
    hull, facing = ConvexHull(surface), np.zeros((count, 3))
    for corner in hull.simplices.T:
        np.add.at(facing, corner, hull.equations[:, :3])
    on = hull.vertices
    facing[on] /= np.linalg.norm(facing[on], axis=1, keepdims=True)
    cost[count, on] = 1 - np.abs((normals[on] * facing[on]).sum(axis=1)) + MINUTE
    order, parent = breadth_first_order(minimum_spanning_tree(np.maximum(cost, cost.T)), count, directed=False)
    for point in order[1:]:
        before = facing[point] if parent[point] == count else normals[parent[point]]
        normals[point] *= np.copysign(1.0, normals[point] @ before)
    return normals
