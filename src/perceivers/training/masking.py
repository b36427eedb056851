"""Random masking of tokens in evaluations."""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor


class Masking(NamedTuple):
    """Random masks that depend on seed, record, input and token alone, not on the batch."""

    probs: Mapping[str, float]
    """Probability that a token is masked, by input; 0 for other inputs."""
    seed: int = 0
    """Seed of the evaluation."""
    first: int = 0
    """Number of the record that is the first sample of the batch."""
    numbers: Sequence[int] = ()
    """Numbers of the batch's records; empty: consecutive ones from `first`."""

    @torch.compiler.disable
    def __call__(self, name: str, shape: tuple[int, int], device: torch.device) -> Bool[Tensor, "b m"]:
        """Return a mask of an input's tokens, `shape` [B, M]: True where the mask token replaces the token."""
        key = zlib.crc32(name.encode())
        numbers = self.numbers or range(self.first, self.first + shape[0])
        draws = [np.random.default_rng((self.seed, number, key)).random(shape[1]) for number in numbers]
        return (torch.from_numpy(np.stack(draws)) < self.probs.get(name, 0.0)).to(device)
