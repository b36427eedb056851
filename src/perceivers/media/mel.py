"""Log-mel spectrograms, log(max(bank |stft|^2, FLOOR)) with `bank` [bands, frequencies], |stft|^2 [frequencies, steps].

The mel scale is HTK's, 2595 log10(1 + f / 700); the bands are triangles of height 1, linear in Hz.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FLOOR = 1e-6
"""Smallest power in the logarithm; full scale is near a quarter of the squared length of the window."""


def log_mel(
    samples: Float[np.ndarray, " n"], rate: int, num_bands: int, hop: int, window: int
) -> Float[np.ndarray, "steps bands"]:
    """Return the natural logarithm of the power of Hann windows in each band, from 0 Hz to half the rate.

    Step k has `window` samples around the middle of the samples from k `hop` to (k + 1) `hop`; beyond the ends there
    is silence.
    """
    if not 1 <= hop <= window:
        raise ValueError(f"hop = {hop} must be from 1 to window = {window}, or samples would be left out")
    if len(samples) < hop:
        raise ValueError(f"{len(samples)} samples are less than one hop of {hop}")
    before = (window - hop) // 2
    padded = np.pad(samples, (before, window - hop - before))
    hann = torch.hann_window(window)
    waves = torch.stft(torch.from_numpy(padded), window, hop, window=hann, center=False, return_complex=True)
    power = waves.abs() ** 2
    return (mel_bank(rate, num_bands, window) @ power).clamp(min=FLOOR).log().T.contiguous().numpy()


@lru_cache
def mel_bank(rate: int, num_bands: int, window: int) -> Float[Tensor, "bands frequencies"]:
    """Return the weights of the frequencies of a Fourier transform in each band; ValueError for an empty band."""
    corners = hertz(np.linspace(0, mels(rate / 2), num_bands + 2))
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    frequencies = np.arange(window // 2 + 1) * rate / window
    bank = np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)).clip(min=0)
    if not bank.any(axis=1).all():
        raise ValueError(f"{num_bands} bands are too many for windows of {window} samples at {rate} Hz: some are empty")
    return torch.from_numpy(bank.astype(np.float32))


def mels(frequency: float) -> float:
    """Convert Hz to mels."""
    return 2595 * math.log10(1 + frequency / 700)


def hertz(mel: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Convert mels to Hz."""
    return 700 * (10 ** (mel / 2595) - 1)
