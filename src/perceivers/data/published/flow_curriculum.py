"""The curriculum for optical flow: first pairs forward and backward, then pairs with growing augmentation as in RAFT.

The paper (section H) trains with AutoFlow's curriculum of growing augmentation, after a phase without augmentation in
which each pair is seen forward and backward. It gives no lengths of the phases; these are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from perceivers.data.dataset import LazyRecords
from perceivers.media.resampling import resize
from perceivers.schema import Record

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class FlowCurriculum:
    """The settings of the curriculum, for training in the order of the records. Augmentation has RAFT's numbers."""

    size: tuple[int, int] = (368, 496)
    """Height and width of the crops."""
    num_records: int = 480 * 400_000
    """Number of records of a run, in passes over the pairs (paper: 480 epochs of 400,000)."""
    plain_part: float = 0.1
    """Fraction of the records without augmentation, each pair forward and backward (length: ours)."""
    growth_part: float = 0.4
    """Fraction of the records thereafter over which augmentation grows to full strength (length: ours)."""
    scale: tuple[float, float] = (-0.1, 1.0)
    """Smallest and largest binary logarithm of the magnification."""
    stretch: float = 0.2
    """Largest binary logarithm of a further factor of each axis."""
    spatial_prob: float = 0.8
    """Probability of magnifying, and then of stretching."""
    flip_prob: tuple[float, float] = (0.5, 0.1)
    """Probabilities of mirroring left-right and up-down."""
    jitter: float = 0.4
    """Largest relative change of brightness, contrast and saturation."""
    asymmetric_prob: float = 0.2
    """Probability that the two frames change differently."""
    erase_prob: float = 0.5
    """Probability that one or two rectangles of the second frame are erased."""
    erase_size: tuple[int, int] = (50, 100)
    """Smallest and largest side of a rectangle, in pixels."""
    seed: int = 0
    """Seed of order, crops and augmentation."""

    def strength(self, progress: float) -> float:
        """Return the strength of the augmentation, 0 to 1, after this fraction of the records."""
        return float(np.clip((progress - self.plain_part) / max(self.growth_part, 1e-9), 0, 1))


def learned_pairs(pairs: Sequence[Record], curriculum: FlowCurriculum) -> Sequence[Record]:
    """Return all records of a curriculum over some pairs, in order; each is a function of its number alone."""
    count = curriculum.num_records

    def make(number: int) -> Record:
        # Choose the pair; in the plain phase two consecutive records use the same one.
        rng = np.random.default_rng((curriculum.seed, number))
        plain = number < curriculum.plain_part * count
        passes, offset = divmod(number // 2 if plain else number, len(pairs))
        pair = pairs[int(_permutation(curriculum.seed, passes, len(pairs))[offset])]
        # Reverse or augment it, then crop.
        frames, flow = pair["frames"], pair["flow"]
        if plain and number % 2:
            frames, flow = frames[::-1], reversed_flow(flow)
        if not plain:
            strength = curriculum.strength(number / count)
            frames = recoloured(rng, frames, curriculum, strength)
            frames, flow = magnified(rng, frames, flow, curriculum, strength)
            frames, flow = mirrored(rng, frames, flow, curriculum, strength)
        frames, flow = cropped(rng, frames, flow, curriculum.size)
        return {"frames": np.ascontiguousarray(frames, np.float32), "flow": np.ascontiguousarray(flow, np.float32)}

    return LazyRecords(count, make)


def reversed_flow(flow: Float[np.ndarray, "h w 2"]) -> Float[np.ndarray, "h w 2"]:
    """Return the backward flow: minus the mean of all flows that end at a pixel, NaN where none does (section H)."""
    # Find the pixel where each known flow ends.
    height, width = flow.shape[:2]
    start = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    known = np.isfinite(flow).all(axis=-1)
    ends = np.rint(start[known] + flow[known]).astype(int)
    inside = ((ends >= 0) & (ends < [width, height])).all(axis=-1)
    # Average the flows that end at each pixel.
    pixel = ends[inside, 1] * width + ends[inside, 0]
    count = np.bincount(pixel, minlength=height * width)
    total = [np.bincount(pixel, flow[known][inside, axis], height * width) for axis in range(2)]
    mean = np.stack(total, axis=-1) / np.where(count, count, np.nan)[:, None]
    return -mean.reshape(height, width, 2).astype(np.float32)


def recoloured(
    rng: np.random.Generator, frames: Float[np.ndarray, "2 h w c"], curriculum: FlowCurriculum, strength: float
) -> Float[np.ndarray, "2 h w c"]:
    """Change brightness, contrast and saturation, then fill rectangles of the second frame with its mean colour."""
    asymmetric = rng.random() < strength * curriculum.asymmetric_prob
    change = 1 + strength * rng.uniform(-curriculum.jitter, curriculum.jitter, (3, 2 if asymmetric else 1, 1, 1, 1))
    brightness, contrast, saturation = change
    lit = (frames + 1) / 2 * brightness
    grey = (lit @ LUMA)[..., None]
    lit = grey + (lit - grey) * saturation
    mean = grey.mean(axis=(1, 2, 3), keepdims=True)
    frames = (mean + (lit - mean) * contrast).clip(0, 1) * 2 - 1
    if rng.random() < strength * curriculum.erase_prob:
        colour = frames[1].mean(axis=(0, 1))
        for _ in range(rng.integers(1, 3)):
            top, left = rng.integers(0, frames.shape[1:3])
            height, width = rng.integers(*curriculum.erase_size, 2)
            frames[1, top : top + height, left : left + width] = colour
    return frames


def magnified(
    rng: np.random.Generator,
    frames: Float[np.ndarray, "2 h w c"],
    flow: Float[np.ndarray, "h w 2"],
    curriculum: FlowCurriculum,
    strength: float,
) -> tuple[Float[np.ndarray, "2 _ _ c"], Float[np.ndarray, "_ _ 2"]]:
    """Resize frames and flow with some probability, each axis by a different factor, never below the crop."""
    if rng.random() >= curriculum.spatial_prob:
        return frames, flow
    size = np.array(flow.shape[:2])
    power = np.full(2, rng.uniform(*curriculum.scale))
    if rng.random() < curriculum.spatial_prob:
        power += rng.uniform(-curriculum.stretch, curriculum.stretch, 2)
    new = np.maximum(np.rint(size * 2 ** (strength * power)), curriculum.size).astype(int)
    height, width = int(new[0]), int(new[1])
    frames = np.stack([resize(frame, (height, width), "bilinear") for frame in frames])
    return frames, resize(flow, (height, width), "bilinear") * (new / size)[::-1].astype(np.float32)


def mirrored(
    rng: np.random.Generator,
    frames: Float[np.ndarray, "2 h w c"],
    flow: Float[np.ndarray, "h w 2"],
    curriculum: FlowCurriculum,
    strength: float,
) -> tuple[Float[np.ndarray, "2 h w c"], Float[np.ndarray, "h w 2"]]:
    """Mirror frames and flow with some probability, left-right and up-down."""
    across, down = rng.random(2) < strength * np.array(curriculum.flip_prob)
    if across:
        frames, flow = frames[:, :, ::-1], flow[:, ::-1] * [-1, 1]
    if down:
        frames, flow = frames[:, ::-1], flow[::-1] * [1, -1]
    return frames, flow


def cropped(
    rng: np.random.Generator,
    frames: Float[np.ndarray, "2 h w c"],
    flow: Float[np.ndarray, "h w 2"],
    size: Sequence[int],
) -> tuple[Float[np.ndarray, "2 _ _ c"], Float[np.ndarray, "_ _ 2"]]:
    """Return a random crop of this size; ValueError for smaller frames."""
    room = np.subtract(flow.shape[:2], size)
    if room.min() < 0:
        raise ValueError(f"frames of {flow.shape[0]} x {flow.shape[1]} are smaller than crops of {size[0]} x {size[1]}")
    top, left = (int(rng.integers(0, free + 1)) for free in room)
    window = np.s_[top : top + size[0], left : left + size[1]]
    return frames[:, *window], flow[window]


@lru_cache(maxsize=2)
def _permutation(seed: int, passes: int, count: int) -> np.ndarray:
    """Return the random order of the pairs in a pass over them."""
    return np.random.default_rng((seed, passes)).permutation(count)
