"""Clips in the form that video models take: square frames at 25 frames a second, and one channel of sound."""

from fractions import Fraction

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8

from perceivers.media.audio_files import to_mono, to_rate
from perceivers.media.resampling import centre_crop, resize
from perceivers.media.video_files import Clip

FPS = 25
"""Frames a second of the training data of the published models."""


def standard_frames(clip: Clip, side: int) -> UInt8[np.ndarray, "t side side 3"]:
    """Return the frames of a clip at 25 frames a second (the nearest in time), as squares."""
    count = max(round(len(clip.frames) * FPS / clip.fps), 1)
    return squares_at(clip, np.arange(count) / FPS, side)


def standard_sound(clip: Clip, rate: Fraction) -> Float[np.ndarray, "n 1"]:
    """Return one channel of sound at the model's rate in Hz; zeros for a clip without sound."""
    whole_rate = int(rate)
    if clip.sound is None or clip.rate is None:
        return np.zeros((round(len(clip.frames) / clip.fps * whole_rate), 1), np.float32)
    return to_rate(rearrange(to_mono(clip.sound), "... -> (...) 1"), clip.rate, whole_rate).astype(np.float32)


def squares_at(clip: Clip, times: Float[np.ndarray, " t"], side: int) -> UInt8[np.ndarray, "t side side 3"]:
    """Return the frames nearest to `times` in seconds, the centre square of each resized (official notebook)."""
    nearest = np.minimum(np.round(times * clip.fps).astype(int), len(clip.frames) - 1)
    cut = centre_crop(clip.frames, rounding="down")
    small = {n: np.clip(np.round(resize(cut[n], (side, side), "bilinear")), 0, 255) for n in np.unique(nearest)}
    return np.stack([small[n] for n in nearest]).astype(np.uint8)


def window(
    clip: Clip, position: float, size: tuple[int, int], samples: int
) -> tuple[Float[np.ndarray, "t s s 3"], Float[np.ndarray, "n 1"]]:
    """Cut a window out of a clip: T frames [T, S, S, 3] from 0 to 1, `size` = (T, S), and `samples` samples of sound.

    `position` of the window is from 0, the beginning of the clip, to 1, its end. A clip that is shorter than
    the window is padded: its last frame is repeated, in silence.
    """
    # The frames.
    frames, side = size
    seconds = frames / FPS
    start = position * max(len(clip.frames) / clip.fps - seconds, 0.0)
    pictures = squares_at(clip, start + np.arange(frames) / FPS, side).astype(np.float32) / 255
    if clip.sound is None or clip.rate is None:
        return pictures, np.zeros((samples, 1), np.float32)
    # The sound of the same time.
    first = round(start * clip.rate)
    heard = Clip(clip.frames, clip.fps, clip.sound[first : first + round(seconds * clip.rate)], clip.rate)
    sound = standard_sound(heard, Fraction(samples * FPS, frames))[:samples]
    return pictures, np.pad(sound, ((0, samples - len(sound)), (0, 0)))
