"""Made-up scenes with exact optical flow: textured layers that move, as AutoFlow's, one in front of the other.

A scene is a pure function of (seed, part, number), so that no file holds it. Motions have closed inverses: flow and
occlusion are exact, in both directions. Places are (x, y): right and down, in pixels.
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

Places = Float[np.ndarray, "p 2"]
Photos = tuple[Float[torch.Tensor, "3 _ _"], ...]

TRAINING, HELD_OUT = 0, 1
"""Parts of the data, which share neither scenes nor texture."""
TRAINING_WIDTH = 0.75
"""The left part of each photo, from which textures of training scenes are cut; held-out ones are cut from the rest."""


@dataclass(frozen=True)
class FlowScenes(DataSet):
    """Records of "frames" [2, H, W, 3] from -1 to 1, "flow" [H, W, 2] in pixels and "occluded" [H, W].

    Motion, deformation, change of light and noise are difficulties: in training they grow from a tenth over the first
    `growth` of the records, for a loop that takes records in their order.
    """

    size: tuple[int, int] = (64, 96)
    """Height and width of a frame."""
    num_training: int = 100_000
    """Records for training."""
    num_held_out: int = 256
    """Records held out."""
    photos: str = ""
    """Folder of pictures to cut textures from; empty: the two that come with scikit-learn."""
    growth: float = 0.0
    """Part of the training records over which difficulties grow."""
    both_ways: bool = False
    """Each training scene makes two records: forward, and with its frames swapped."""
    seed: int = 0
    """Seed of everything."""
    motion: float = 3.0
    """Standard deviation of a layer's displacement along each axis, in pixels."""
    max_objects: int = 6
    """A scene has up to so many layers before its background."""
    deformation: float = 1.0
    """Largest amplitude of a wave through a layer, in pixels."""
    brightness: float = 0.1
    """Largest change of brightness and contrast between the frames, as a part of the whole range."""
    noise: float = 0.02
    """Largest standard deviation of noise, as a part of the whole range."""
    kind: Literal["flow_scenes"] = "flow_scenes"
    """Name in files."""

    def __post_init__(self) -> None:
        if min(self.size) < 2 or min(self.num_training, self.num_held_out) < 1:
            raise ValueError(f"size = {self.size} and numbers of records must be at least 2 x 2 and 1")
        if not 0 <= self.growth <= 1:
            raise ValueError(f"growth = {self.growth} must be from 0 to 1, a part of the training records")

    def training(self) -> Sequence[Record]:
        """Scenes of the first part."""
        return LazyRecords(self.num_training, self._training_record)

    def held_out(self) -> Sequence[Record]:
        """Scenes of the second part."""
        return LazyRecords(self.num_held_out, partial(make_record, self, HELD_OUT))

    def _training_record(self, number: int) -> Record:
        scene, backward = divmod(number, 2) if self.both_ways else (number, 0)
        progress = number / (self.num_training * self.growth) if self.growth else 1.0
        return make_record(self, TRAINING, scene, min(0.1 + 0.9 * progress, 1.0), bool(backward))


def make_record(data: FlowScenes, part: int, scene: int, difficulty: float = 1.0, backward: bool = False) -> Record:
    """A scene's frames, flow from the first to the second, and what of the first the second does not show."""
    rng = np.random.default_rng((data.seed, part, scene))
    layers = make_layers(rng, data, photos_of(data.photos)[part], difficulty)
    views = [View(layers, data.size, second) for second in ((True, False) if backward else (False, True))]
    flow, occluded = views[0].flow_to(views[1])
    frames = np.stack([view.colours() for view in views])
    contrast, brightness = difficulty * rng.uniform(-data.brightness, data.brightness, (2, 2, 1, 1, 1))
    frames = (frames - 0.5) * (1 + contrast) + 0.5 + brightness / 2
    frames = frames + difficulty * rng.uniform(0, data.noise) * rng.normal(size=frames.shape)
    return {"frames": (frames.clip(0, 1) * 2 - 1).astype(np.float32), "flow": flow, "occluded": occluded}


@dataclass(frozen=True)
class Wave:
    """Moves places along a direction by a sine of where they are across it, which has an exact inverse."""

    direction: Float[np.ndarray, "2"]
    """Of length 1."""
    amplitude: float
    """In pixels."""
    frequency: float
    """In radians a pixel."""
    phase: float
    """In radians."""

    def shift(self, places: Places) -> Places:
        """Return how far places move; the same before and after the move."""
        across = places @ np.array([-self.direction[1], self.direction[0]])
        return self.amplitude * np.sin(self.frequency * across + self.phase)[:, None] * self.direction


@dataclass(frozen=True)
class Motion:
    """Motion of a layer from the first frame to the second: waves, then a homography."""

    homography: Float[np.ndarray, "3 3"]
    waves: tuple[Wave, ...] = ()

    @cached_property
    def inverse(self) -> Float[np.ndarray, "3 3"]:
        """Inverse of the homography."""
        return np.linalg.inv(self.homography)

    def forward(self, places: Places) -> Places:
        """Move places from the first frame to the second."""
        for wave in self.waves:
            places = places + wave.shift(places)
        return transformed(self.homography, places)

    def backward(self, places: Places) -> Places:
        """Move places from the second frame to the first."""
        places = transformed(self.inverse, places)
        for wave in reversed(self.waves):
            places = places - wave.shift(places)
        return places


@dataclass(frozen=True)
class Shape:
    """A polygon around a centre that sees all of its border; with many corners, a blob."""

    centre: Float[np.ndarray, "2"]
    angles: Float[np.ndarray, " corners"]
    """Angles of the corners, ascending from -pi to pi."""
    radii: Float[np.ndarray, " corners"]
    """Distances of the corners from the centre."""

    def contains(self, places: Places) -> Bool[np.ndarray, " p"]:
        """Return whether places lie inside."""
        offset = places - self.centre
        near = np.flatnonzero(offset[:, 0] ** 2 + offset[:, 1] ** 2 <= self.radii.max() ** 2)
        offset = offset[near]
        corners = self.radii[:, None] * np.stack([np.cos(self.angles), np.sin(self.angles)], axis=1)
        after = np.searchsorted(self.angles, np.arctan2(offset[:, 1], offset[:, 0])) % len(corners)
        start, edge = corners[after - 1], corners[after] - corners[after - 1]
        to_place = offset - start
        inside = np.zeros(len(places), bool)
        inside[near] = edge[:, 0] * to_place[:, 1] - edge[:, 1] * to_place[:, 0] >= 0
        return inside


@dataclass(frozen=True)
class Texture:
    """A picture under an affine map, mirrored beyond its borders."""

    picture: Float[torch.Tensor, "3 _ _"]
    affine: Float[np.ndarray, "2 3"]
    """From places of the first frame to those of the picture."""
    gain: Float[np.ndarray, "3"]
    """Of each channel."""

    def at(self, places: Places) -> Float[np.ndarray, "p 3"]:
        """Interpolated linearly."""
        height, width = self.picture.shape[1:]
        unit = (places @ self.affine[:, :2].T + self.affine[:, 2]) / (np.array([width, height]) - 1) * 2 - 1
        grid = torch.from_numpy(unit.astype(np.float32))[None, None]
        values = F.grid_sample(self.picture[None], grid, padding_mode="reflection", align_corners=True)
        return values[0, :, 0].T.numpy() * self.gain


@dataclass(frozen=True)
class Layer:
    """A textured piece of the world."""

    texture: Texture
    motion: Motion
    shape: Shape | None = None
    """Its outline in the first frame; None: it is everywhere."""

    def contains(self, places: Places) -> Bool[np.ndarray, " p"]:
        """Return whether places of the first frame belong to it."""
        return np.ones(len(places), bool) if self.shape is None else self.shape.contains(places)


class View:
    """One of the two frames: which layer each pixel shows."""

    def __init__(self, layers: Sequence[Layer], size: tuple[int, int], second: bool) -> None:
        self.layers, self.size = layers, size
        self.from_first: list[Callable[[Places], Places]] = [_stay] * len(layers)
        self.to_first: list[Callable[[Places], Places]] = [_stay] * len(layers)
        if second:
            self.from_first = [layer.motion.forward for layer in layers]
            self.to_first = [layer.motion.backward for layer in layers]
        self.places = np.stack(np.meshgrid(*map(np.arange, size[::-1])), axis=-1).reshape(-1, 2).astype(float)
        self.front = self.front_at(self.places)

    def front_at(self, places: Places) -> Int[np.ndarray, " p"]:
        """Number of the foremost layer at places."""
        front = np.zeros(len(places), int)
        for number, layer in enumerate(self.layers):
            front[layer.contains(self.to_first[number](places))] = number
        return front

    def colours(self) -> Float[np.ndarray, "h w 3"]:
        """Return what the frame shows, from 0 to 1."""
        colours = np.empty((len(self.places), 3))
        for number in np.unique(self.front):
            shown = self.front == number
            colours[shown] = self.layers[number].texture.at(self.to_first[number](self.places[shown]))
        return colours.reshape(*self.size, 3)

    def flow_to(self, other: "View") -> tuple[Float[np.ndarray, "h w 2"], Bool[np.ndarray, "h w"]]:
        """Displacement of each pixel, and whether the other view hides it or has no place for it."""
        there = np.empty_like(self.places)
        for number in np.unique(self.front):
            shown = self.front == number
            there[shown] = other.from_first[number](self.to_first[number](self.places[shown]))
        x, y = there.T
        outside = (x < 0) | (y < 0) | (x > self.size[1] - 1) | (y > self.size[0] - 1)
        occluded = outside | (other.front_at(there) > self.front)
        return (there - self.places).astype(np.float32).reshape(*self.size, 2), occluded.reshape(self.size)


def make_layers(rng: np.random.Generator, data: FlowScenes, photos: Photos, difficulty: float) -> list[Layer]:
    """A background and some objects before it."""
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
    """Shift, turn, stretch and tilt about a centre, each of about the same effect at distance `reach` together."""
    size = data.motion * difficulty
    linear = np.eye(2) + rng.normal(0, 0.4 * size / reach, (2, 2))
    homography = np.eye(3)
    homography[:2, :2] = linear
    homography[2, :2] = rng.normal(0, 0.1 * size / reach**2, 2).clip(-0.2 / reach, 0.2 / reach)
    shift = np.eye(3)
    shift[:2, 2] = -centre
    back = np.eye(3)
    back[:2, 2] = centre + rng.normal(0, size, 2)
    waves = []
    for angle in rng.uniform(0, 2 * np.pi, rng.integers(0, 3)):
        length = rng.uniform(1, 3) * reach
        amplitude = rng.uniform(0, min(data.deformation * difficulty, 0.05 * length))  # steeper ones would fold
        direction = np.array([np.cos(angle), np.sin(angle)])
        waves.append(Wave(direction, amplitude, 2 * np.pi / length, rng.uniform(0, 2 * np.pi)))
    return Motion(back @ homography @ shift, tuple(waves))


def random_shape(rng: np.random.Generator, centre: Float[np.ndarray, "2"], radius: float) -> Shape:
    """A polygon of four to nine corners, or a blob; edges turn by less than half a circle around the centre."""
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
    """A turned, stretched, tinted piece of a photo, or of a made-up pattern."""
    picture = photos[rng.integers(len(photos))] if rng.random() < 0.7 else random_pattern(rng)
    angle, flip = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [1, flip]
    linear = turn * np.exp(rng.uniform(-0.5, 0.3, (1, 2)))
    start = rng.uniform(0, picture.shape[:0:-1])
    return Texture(picture, np.concatenate([linear, start[:, None]], axis=1), rng.uniform(0.6, 1.1, 3))


def random_pattern(rng: np.random.Generator, size: int = 64) -> Float[torch.Tensor, "3 h w"]:
    """Noise of several coarsenesses in a few colours, from 0 to 1."""
    pattern = torch.zeros(1, 3, size, size)
    for cells in (4, 8, 16, 32):
        noise = torch.from_numpy(rng.normal(size=(1, 3, cells, cells)).astype(np.float32))
        pattern += rng.uniform(0, 1) * F.interpolate(noise, (size, size), mode="bilinear", align_corners=False)
    return torch.sigmoid(pattern[0] * 2)


@lru_cache(maxsize=2)
def photos_of(folder: str) -> tuple[Photos, Photos]:
    """For training scenes and for held-out ones: photos and smaller copies, [3, H, W] from 0 to 1."""
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


def transformed(homography: Float[np.ndarray, "3 3"], places: Places) -> Places:
    """Places under a homography."""
    lifted = places @ homography[:, :2].T + homography[:, 2]
    return lifted[:, :2] / lifted[:, 2:]


def _stay(places: Places) -> Places:
    return places
