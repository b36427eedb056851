"""Synthetic scenes with exact optical flow: textured layers that move in front of one another, as in AutoFlow.

A scene is a pure function of (seed, part, number), so no files are needed. Motions have closed-form inverses, so flow
and occlusion are exact in both directions. Points are (x, y), right and down, in pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch.nn import functional as F

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.media.image_files import read_image
from perceivers.schema import Record

Points = Float[np.ndarray, "p 2"]
Photos = tuple[Float[torch.Tensor, "3 _ _"], ...]

TRAINING, HELD_OUT = 0, 1
"""The parts of the data, which share neither scenes nor textures."""
TRAINING_WIDTH = 0.75
"""Left fraction of each photo, from which training textures are cut; held-out textures are cut from the rest."""


@dataclass(frozen=True)
class FlowScenes(DataSet):
    """Records of "frames" [2, H, W, 3] from -1 to 1, "flow" [H, W, 2] in pixels and "occluded" [H, W].

    In training, motion, deformation, change of light and noise grow from a tenth of their strength to all of it over
    the first `growth` of the records; this assumes that records are taken in order.
    """

    size: tuple[int, int] = (64, 96)
    """Height and width of a frame."""
    num_training: int = 100_000
    """Number of training records."""
    num_held_out: int = 256
    """Number of held-out records."""
    photos: str = ""
    """Folder of pictures to cut textures from; empty: the two pictures that come with scikit-learn."""
    growth: float = 0.0
    """Fraction of the training records over which the difficulty grows."""
    both_ways: bool = False
    """True: each training scene gives two records, one of them with its frames swapped."""
    seed: int = 0
    """Seed of all random numbers."""
    motion: float = 3.0
    """Standard deviation of a layer's displacement along each axis, in pixels."""
    max_objects: int = 6
    """Largest number of layers in front of the background."""
    deformation: float = 1.0
    """Largest amplitude of the waves that deform a layer, in pixels."""
    brightness: float = 0.1
    """Largest change of brightness and contrast between the frames, as a fraction of the range of values."""
    noise: float = 0.02
    """Largest standard deviation of the noise, as a fraction of the range of values."""
    kind: Literal["flow_scenes"] = "flow_scenes"
    """Name in files."""

    def __post_init__(self) -> None:
        if min(self.size) < 2 or min(self.num_training, self.num_held_out) < 1:
            raise ValueError(f"size = {self.size} and numbers of records must be at least 2 x 2 and 1")
        if not 0 <= self.growth <= 1:
            raise ValueError(f"growth = {self.growth} must be from 0 to 1, a part of the training records")

    def training(self) -> Sequence[Record]:
        """Return the training scenes."""
        return LazyRecords(self.num_training, self._training_record)

    def held_out(self) -> Sequence[Record]:
        """Return the held-out scenes."""
        return LazyRecords(self.num_held_out, partial(make_record, self, HELD_OUT))

    def _training_record(self, number: int) -> Record:
        scene, backward = divmod(number, 2) if self.both_ways else (number, 0)
        progress = number / (self.num_training * self.growth) if self.growth else 1.0
        return make_record(self, TRAINING, scene, min(0.1 + 0.9 * progress, 1.0), bool(backward))


def make_record(data: FlowScenes, part: int, scene: int, difficulty: float = 1.0, backward: bool = False) -> Record:
    """Return a scene's frames, the flow from the first to the second, and the pixels that the second does not show."""
    rng = np.random.default_rng((data.seed, part, scene))
    layers = make_layers(rng, data, photos_of(data.photos)[part], difficulty)
    views = [View(layers, data.size, second) for second in ((True, False) if backward else (False, True))]
    flow, occluded = views[0].flow_to(views[1])
    # Render both frames; change the contrast and brightness of each, then add noise.
    frames = np.stack([view.colours() for view in views])
    contrast, brightness = difficulty * rng.uniform(-data.brightness, data.brightness, (2, 2, 1, 1, 1))
    frames = (frames - 0.5) * (1 + contrast) + 0.5 + brightness / 2
    frames = frames + difficulty * rng.uniform(0, data.noise) * rng.normal(size=frames.shape)
    return {"frames": (frames.clip(0, 1) * 2 - 1).astype(np.float32), "flow": flow, "occluded": occluded}


@dataclass(frozen=True)
class Wave:
    """A wave that moves points along a direction by a sine of their coordinate across it; it has an exact inverse."""

    direction: Float[np.ndarray, "2"]
    """Unit vector of the displacement."""
    amplitude: float
    """Amplitude in pixels."""
    frequency: float
    """Frequency in radians per pixel."""
    phase: float
    """Phase in radians."""

    def shift(self, points: Points) -> Points:
        """Return the displacement of points; it is the same for the moved points, hence the exact inverse."""
        across = points @ np.array([-self.direction[1], self.direction[0]])
        return self.amplitude * np.sin(self.frequency * across + self.phase)[:, None] * self.direction


@dataclass(frozen=True)
class Motion:
    """Motion of a layer from the first frame to the second: waves, then a homography."""

    homography: Float[np.ndarray, "3 3"]
    """Homography, applied after the waves."""
    waves: tuple[Wave, ...] = ()
    """Waves, applied one after the other."""

    @cached_property
    def inverse(self) -> Float[np.ndarray, "3 3"]:
        """Inverse of the homography."""
        return np.linalg.inv(self.homography)

    def forward(self, points: Points) -> Points:
        """Move points from the first frame to the second."""
        for wave in self.waves:
            points = points + wave.shift(points)
        return transformed(self.homography, points)

    def backward(self, points: Points) -> Points:
        """Move points from the second frame to the first."""
        points = transformed(self.inverse, points)
        for wave in reversed(self.waves):
            points = points - wave.shift(points)
        return points


@dataclass(frozen=True)
class Shape:
    """A star-shaped polygon around a centre; with many corners, a blob."""

    centre: Float[np.ndarray, "2"]
    """Centre, from which the whole border is visible."""
    angles: Float[np.ndarray, " corners"]
    """Angles of the corners, ascending from -pi to pi."""
    radii: Float[np.ndarray, " corners"]
    """Distances of the corners from the centre."""

    def contains(self, points: Points) -> Bool[np.ndarray, " p"]:
        """Return whether points lie inside."""
        # Only points within the largest radius can be inside.
        offset = points - self.centre
        near = np.flatnonzero(offset[:, 0] ** 2 + offset[:, 1] ** 2 <= self.radii.max() ** 2)
        offset = offset[near]
        # Each point's angle selects the edge in front of it; the cross product tells on which side the point lies.
        corners = self.radii[:, None] * np.stack([np.cos(self.angles), np.sin(self.angles)], axis=1)
        after = np.searchsorted(self.angles, np.arctan2(offset[:, 1], offset[:, 0])) % len(corners)
        start, edge = corners[after - 1], corners[after] - corners[after - 1]
        to_point = offset - start
        inside = np.zeros(len(points), bool)
        inside[near] = edge[:, 0] * to_point[:, 1] - edge[:, 1] * to_point[:, 0] >= 0
        return inside


@dataclass(frozen=True)
class Texture:
    """A picture under an affine map, mirrored beyond its borders."""

    picture: Float[torch.Tensor, "3 _ _"]
    """Picture with values from 0 to 1."""
    affine: Float[np.ndarray, "2 3"]
    """Map from points of the first frame to points of the picture."""
    gain: Float[np.ndarray, "3"]
    """Factor of each channel."""

    def at(self, points: Points) -> Float[np.ndarray, "p 3"]:
        """Return the colours at points of the first frame, interpolated linearly."""
        height, width = self.picture.shape[1:]
        unit = (points @ self.affine[:, :2].T + self.affine[:, 2]) / (np.array([width, height]) - 1) * 2 - 1
        grid = torch.from_numpy(unit.astype(np.float32))[None, None]
        values = F.grid_sample(self.picture[None], grid, padding_mode="reflection", align_corners=True)
        return values[0, :, 0].T.numpy() * self.gain


@dataclass(frozen=True)
class Layer:
    """A moving, textured object, or the background."""

    texture: Texture
    motion: Motion
    shape: Shape | None = None
    """Outline in the first frame; None: the layer covers everything."""

    def contains(self, points: Points) -> Bool[np.ndarray, " p"]:
        """Return whether points of the first frame lie in the layer."""
        return np.ones(len(points), bool) if self.shape is None else self.shape.contains(points)


class View:
    """One of the two frames: the layer that each pixel shows."""

    def __init__(self, layers: Sequence[Layer], size: tuple[int, int], second: bool) -> None:
        self.layers, self.size = layers, size
        # For each layer, the maps of points from the first frame to this one and back.
        self.from_first: list[Callable[[Points], Points]] = [_stay] * len(layers)
        self.to_first: list[Callable[[Points], Points]] = [_stay] * len(layers)
        if second:
            self.from_first = [layer.motion.forward for layer in layers]
            self.to_first = [layer.motion.backward for layer in layers]
        self.points = np.stack(np.meshgrid(*map(np.arange, size[::-1])), axis=-1).reshape(-1, 2).astype(float)
        self.front = self.front_at(self.points)

    def front_at(self, points: Points) -> Int[np.ndarray, " p"]:
        """Return the number of the foremost layer at each point."""
        front = np.zeros(len(points), int)
        for number, layer in enumerate(self.layers):
            front[layer.contains(self.to_first[number](points))] = number
        return front

    def colours(self) -> Float[np.ndarray, "h w 3"]:
        """Render the frame, with values from 0 to 1."""
        colours = np.empty((len(self.points), 3))
        for number in np.unique(self.front):
            shown = self.front == number
            colours[shown] = self.layers[number].texture.at(self.to_first[number](self.points[shown]))
        return colours.reshape(*self.size, 3)

    def flow_to(self, other: "View") -> tuple[Float[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]:
        """Return the displacement of each pixel, and whether the pixel is occluded or outside in the other view."""
        moved = np.empty_like(self.points)
        for number in np.unique(self.front):
            shown = self.front == number
            moved[shown] = other.from_first[number](self.to_first[number](self.points[shown]))
        x, y = moved.T
        outside = (x < 0) | (y < 0) | (x > self.size[1] - 1) | (y > self.size[0] - 1)
        occluded = outside | (other.front_at(moved) > self.front)
        return (moved - self.points).astype(np.float32).reshape(*self.size, 2), occluded.reshape(self.size)


def make_layers(rng: np.random.Generator, data: FlowScenes, photos: Photos, difficulty: float) -> list[Layer]:
    """Draw a background and some objects in front of it."""
    height, width = data.size
    middle, reach = np.array([width - 1, height - 1]) / 2, np.hypot(height, width) / 2
    layers = [Layer(random_texture(rng, photos), random_motion(rng, data, middle, reach, difficulty))]
    for _ in range(rng.integers(0, data.max_objects, endpoint=True)):
        centre, radius = rng.uniform(0, [width, height]), min(height, width) * rng.uniform(0.1, 0.5)
        motion = random_motion(rng, data, centre, radius, difficulty)
        layers.append(Layer(random_texture(rng, photos), motion, random_shape(rng, centre, radius)))
    return layers


def random_motion(
    rng: np.random.Generator, data: FlowScenes, centre: Float[np.ndarray, "2"], reach: float, difficulty: float
) -> Motion:
    """Draw a shift, turn, stretch and tilt about a centre, each with about the same effect at distance `reach`."""
    # A homography around the centre: move the centre to the origin, distort, move back with a random shift.
    size = data.motion * difficulty
    linear = np.eye(2) + rng.normal(0, 0.4 * size / reach, (2, 2))
    homography = np.eye(3)
    homography[:2, :2] = linear
    homography[2, :2] = rng.normal(0, 0.1 * size / reach**2, 2).clip(-0.2 / reach, 0.2 / reach)
    shift = np.eye(3)
    shift[:2, 2] = -centre
    back = np.eye(3)
    back[:2, 2] = centre + rng.normal(0, size, 2)
    # Up to two waves, in random directions.
    waves = []
    for angle in rng.uniform(0, 2 * np.pi, rng.integers(0, 3)):
        length = rng.uniform(1, 3) * reach
        amplitude = rng.uniform(0, min(data.deformation * difficulty, 0.05 * length))  # a steeper wave would fold
        direction = np.array([np.cos(angle), np.sin(angle)])
        waves.append(Wave(direction, amplitude, 2 * np.pi / length, rng.uniform(0, 2 * np.pi)))
    return Motion(back @ homography @ shift, tuple(waves))


def random_shape(rng: np.random.Generator, centre: Float[np.ndarray, "2"], radius: float) -> Shape:
    """Draw a polygon with four to nine corners, or a blob; each edge spans less than half a turn around the centre."""
    if rng.random() < 0.5:
        corners = int(rng.integers(4, 10))
        angles = (np.arange(corners) + rng.uniform(0, 0.8, corners)) / corners
        radii = rng.uniform(0.5, 1, corners)
    else:
        angles = np.arange(48) / 48
        waves = rng.uniform(0, 0.25, 3)[:, None] * np.cos(
            2 * np.pi * (np.arange(2, 5)[:, None] * angles + rng.random((3, 1)))
        )
        radii = (1 + waves.sum(axis=0)) / 1.5
    return Shape(centre, angles * 2 * np.pi - np.pi, radius * radii)


def random_texture(rng: np.random.Generator, photos: Photos) -> Texture:
    """Draw a rotated, stretched and tinted piece of a photo or of a random pattern."""
    picture = photos[rng.integers(len(photos))] if rng.random() < 0.7 else random_pattern(rng)
    angle, flip = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [1, flip]
    linear = turn * np.exp(rng.uniform(-0.5, 0.3, (1, 2)))
    start = rng.uniform(0, picture.shape[:0:-1])
    return Texture(picture, np.concatenate([linear, start[:, None]], axis=1), rng.uniform(0.6, 1.1, 3))


def random_pattern(rng: np.random.Generator, size: int = 64) -> Float[torch.Tensor, "3 h w"]:
    """Draw colour noise at several scales, from 0 to 1."""
    pattern = torch.zeros(1, 3, size, size)
    for cells in (4, 8, 16, 32):
        noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
        pattern += rng.uniform(0, 1) * F.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
    return torch.sigmoid(pattern[0] * 2)


@lru_cache(maxsize=2)
def photos_of(folder: str) -> tuple[Photos, Photos]:
    """Return the photos for training and for held-out scenes, with smaller copies: [3, H, W] from 0 to 1."""
    photos: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for pixels in _read_photos(folder):
        picture = torch.from_numpy(pixels.copy()).movedim(-1, 0).float()[None] / 255
        for shrink in (1, 2, 4):
            if min(picture.shape[2:]) >= 64 * shrink:
                smaller = F.avg_pool2d(picture, shrink)[0]
                border = int(smaller.shape[2] * TRAINING_WIDTH)
                photos[TRAINING].append(smaller[:, :, :border].contiguous())
                photos[HELD_OUT].append(smaller[:, :, border:].contiguous())
    if not photos[TRAINING]:
        raise ValueError(f"{folder}: holds no picture of at least 64 x 64 pixels")
    return tuple(photos[TRAINING]), tuple(photos[HELD_OUT])


def _read_photos(folder: str) -> list[np.ndarray]:
    if not folder:
        from sklearn.datasets import load_sample_images

        return list(load_sample_images().images)
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    return [read_image(path) for path in paths]


def transformed(homography: Float[np.ndarray, "3 3"], points: Points) -> Points:
    """Apply a homography to points."""
    lifted = points @ homography[:, :2].T + homography[:, 2]
    return lifted[:, :2] / lifted[:, 2:]


def _stay(points: Points) -> Points:
    return points
