"""Scores of optical flow on frame pairs of any size: of a model in tiles, and of baselines that need no training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8

from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities import Flow
from perceivers.progress import tracked
from perceivers.runs.run import Run
from perceivers.schema import Record, Schema, find_modality
from perceivers.systems.optical_flow.inference import estimate_flow
from perceivers.training.metrics import Compared, Scores, check_guesses, masking_of, scored

FramesU8 = UInt8[np.ndarray, "2 h w 3"]
Estimator = Callable[[FramesU8], Float[np.ndarray, "h w 2"]]


def score_in_tiles(model: PerceiverIO, records: Sequence[Record], schema: Schema) -> Scores:
    """Return the scores of a model in tiles (paper H), coarse to fine where frames are larger than in training."""
    for name, prob in masking_of(model, schema).probs.items():
        if prob:
            raise ValueError(f"{name}: scoring in tiles takes unmasked pairs: leave mask_prob = {prob} out")
    return scores_of({"tiles": partial(by_model, model)}, records, schema)["tiles"]


def by_model(model: PerceiverIO, frames: FramesU8) -> Float[np.ndarray, "h w 2"]:
    """Return the flow that a model predicts for two frames."""
    first, second = frames
    return estimate_flow(model, first, second, levels=None)


def scores_of(estimators: Mapping[str, Estimator], records: Sequence[Record], schema: Schema) -> dict[str, Scores]:
    """Return the scores of each estimator, which sees the frames alone."""
    output, flow = find_modality(schema.outputs, Flow)

    def guesses(name: str) -> Iterator[tuple[str, Compared]]:
        for number, record in enumerate(tracked(records, name)):
            guess = torch.from_numpy(estimators[name](as_bytes(record["frames"])))
            check_guesses(f"{output}, {name}", guess[None], number)
            yield output, flow.metric_inputs(guess, torch.from_numpy(record["flow"]))

    return {name: scored(schema.outputs, guesses(name)) for name in estimators}


def untrained_baseline_scores(records: Sequence[Record], schema: Schema) -> dict[str, Scores]:
    """Return the scores of all available baselines on these records."""
    return scores_of(baselines(), records, schema)


def no_motion(frames: FramesU8) -> Float[np.ndarray, "h w 2"]:
    """Predict that nothing moves."""
    return np.zeros((*frames.shape[1:3], 2), np.float32)


def farneback(frames: FramesU8) -> Float[np.ndarray, "h w 2"]:
    """Predict by OpenCV's Farneback, with the settings of OpenCV's example."""
    import cv2

    first, second = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    start = np.zeros((*first.shape, 2), np.float32)
    return np.asarray(cv2.calcOpticalFlowFarneback(first, second, start, 0.5, 3, 15, 3, 5, 1.2, 0), np.float32)


def dis(frames: FramesU8) -> Float[np.ndarray, "h w 2"]:
    """Predict by OpenCV's dense inverse search, with its most accurate preset."""
    import cv2

    first, second = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    start = np.zeros((*first.shape, 2), np.float32)
    return np.asarray(search.calc(first, second, start), np.float32)


BASELINES: dict[str, Estimator] = {
    "no motion": no_motion,
    "OpenCV Farneback": farneback,
    "OpenCV DIS": dis,
}
"""Baselines by name; none needs training, and two need opencv-python-headless."""


def baselines() -> dict[str, Estimator]:
    """Return the available baselines, those of OpenCV only if it is installed."""
    try:
        import cv2  # noqa: F401
    except ImportError:
        return {"no motion": no_motion}
    return BASELINES


def as_bytes(frames: Float[np.ndarray, "2 h w 3"]) -> FramesU8:
    """Convert frames with values from -1 to 1 to bytes."""
    return np.rint((frames + 1) * 127.5).clip(0, 255).astype(np.uint8)


def baseline_scores(run: Run) -> dict[str, Scores]:
    """Return the scores of all available baselines on the held-out records of a run."""
    recipe = run.recipe
    return untrained_baseline_scores(run.held_out, recipe.schema)
