"""Optical flow between two frames of any size, in tiles and from coarse to fine."""

from collections.abc import Callable, Iterable, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional as F

from perceivers.core.arguments import check_positive
from perceivers.core.perceiver import PerceiverIO
from perceivers.media.resampling import resize
from perceivers.modalities import Flow, FramePair
from perceivers.modalities.patches import as_sizes
from perceivers.schema import find_modality
from perceivers.training.metrics import inference

OVERLAP = 20
"""Minimum overlap of neighbouring tiles in pixels (official notebook)."""

Origins = Iterable[tuple[int, int]]


def estimate_flow(
    model: PerceiverIO,
    first: UInt8[np.ndarray, "h w 3"],
    second: UInt8[np.ndarray, "_ _ 3"],
    track: Callable[[Origins], Origins] = iter,
    levels: int | None = 1,
) -> Float[np.ndarray, "h w 2"]:
    """Predict the displacement (right, down) of each pixel of the first frame, in tiles of the model's frame size.

        flow = coarse + model(first, warp(second, coarse)),  coarse = the flow of the halved frames, enlarged

    With `levels` > 1, the flow of frames of half the size is estimated first, with one level less. The second frame is
    warped back along that flow, and the model predicts the remaining motion. So displacements may be 2^(levels - 1)
    times as large as in training. None: as many levels as keep frames at least as large as the training frames.
    `track` may show progress over the tiles of a level.
    """
    if first.shape != second.shape:
        raise ValueError(f"frames of different sizes: {first.shape[:2]} and {second.shape[:2]}")
    levels = levels_for(first.shape[:2], trained_size(model)) if levels is None else levels
    check_positive("levels", levels)
    if levels == 1:
        return tiled_flow(model, first, second, track)
    # Estimate the flow of frames of half the size, and enlarge it: its vectors grow with the frame.
    half = ((first.shape[0] + 1) // 2, (first.shape[1] + 1) // 2)
    if min(half) < 2:
        raise ValueError(f"frames of {first.shape[0]} x {first.shape[1]} pixels cannot be halved: use fewer levels")
    half_first, half_second = (np.rint(resize(frame, half, "area")).astype(np.uint8) for frame in (first, second))
    coarse = estimate_flow(model, half_first, half_second, track, levels - 1)
    scale = np.array([first.shape[1] / half[1], first.shape[0] / half[0]], np.float32)
    flow = resize(coarse, first.shape[:2], "bilinear") * scale
    # Add the motion that remains after warping.
    return flow + tiled_flow(model, first, fetched_back(second, flow), track)


def fetched_back(second: UInt8[np.ndarray, "h w 3"], flow: Float[np.ndarray, "h w 2"]) -> UInt8[np.ndarray, "h w 3"]:
    """Warp the second frame back along the flow, with bilinear interpolation; outside, border pixels are repeated."""
    height, width = flow.shape[:2]
    targets = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + flow
    unit = torch.from_numpy((targets / np.array([width - 1, height - 1]) * 2 - 1).astype(np.float32))[None]
    image = torch.from_numpy(second.astype(np.float32)).movedim(-1, 0)[None]
    warped = F.grid_sample(image, unit, padding_mode="border", align_corners=True)
    return warped[0].movedim(0, -1).round().to(torch.uint8).numpy()


def trained_size(model: PerceiverIO) -> tuple[int, ...]:
    """Return height and width of the frames that a model was trained on."""
    return as_sizes(find_modality(model.schema.inputs, FramePair)[1].size, 2, "size")


def levels_for(size: Sequence[int], trained: Sequence[int]) -> int:
    """Return the largest number of levels at which the smallest frame is no smaller than the training frames."""
    return 1 + max(0, int(np.log2(min(n / trained_n for n, trained_n in zip(size, trained, strict=True)))))


def tiled_flow(
    model: PerceiverIO,
    first: UInt8[np.ndarray, "h w 3"],
    second: UInt8[np.ndarray, "_ _ 3"],
    track: Callable[[Origins], Origins] = iter,
) -> Float[np.ndarray, "h w 2"]:
    """Predict one level of `estimate_flow`.

    Tiles lie as in the official notebook, none twice; each pixel is weighted by its distance from the tile's border.
    """
    name, _ = find_modality(model.schema.inputs, FramePair)
    output, _ = find_modality(model.schema.outputs, Flow)
    height, width = trained_size(model)
    size = first.shape[:2]
    # Pad frames that are smaller than a tile; scale bytes to -1 to 1.
    padding = [(0, max(tile - n, 0)) for tile, n in zip((height, width), size, strict=True)]
    frames = np.pad(np.stack([first, second]), [(0, 0), *padding, (0, 0)], mode="edge").astype(np.float32) / 255 * 2 - 1
    parameter = next(model.parameters())
    # Sum weighted flows, and in the last channel the weights.
    weight = blend_weights(height, width)
    total = np.zeros((*frames.shape[1:3], 3))
    origins = list(product(tile_origins(frames.shape[1], height), tile_origins(frames.shape[2], width)))
    for top, left in track(origins):
        window = np.s_[top : top + height, left : left + width]
        tile = torch.from_numpy(frames[:, *window])[None].to(parameter)
        with inference(model):
            flow = model({name: tile})[output][0].double().cpu().numpy()
        total[window] += np.concatenate([flow * weight, weight], axis=-1)
    blended = total[..., :2] / total[..., 2:]
    return blended[: size[0], : size[1]].astype(np.float32)


def tile_origins(length: int, tile: int, overlap: int = OVERLAP) -> list[int]:
    """Return the starts of tiles along an axis: every `tile - overlap` pixels, plus one tile that ends at the end."""
    return sorted({origin for origin in range(0, length, tile - overlap) if origin + tile <= length} | {length - tile})


def blend_weights(height: int, width: int) -> Float[np.ndarray, "h w 1"]:
    """Return the distance of each pixel of a tile from its nearest border."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    down = np.minimum(rows + 1, height - rows)
    across = np.minimum(columns + 1, width - columns)
    return np.minimum(down, across)[..., None].astype(float)
