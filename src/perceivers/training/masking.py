"""Which tokens an evaluation masks at random."""

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor


class Masking(NamedTuple):
    """Random masks that are a function of seed, record, input and token, whatever the batch."""

    probs: Mapping[str, float]
    """Probability of the mask token in each input; 0 where no probability is given."""
    seed: int = 0
    """Seed of the evaluation."""
    first: int = 0
    """Number of the record that is the first sample."""

    @torch.compiler.disable
    def __call__(self, name: str, shape: tuple[int, int], device: torch.device) -> Bool[Tensor, "b m"]:
        """Return which tokens of an input are masked."""
        key = zlib.crc32(name.encode())
        draws = [np.random.default_rng((self.seed, self.first + n, key)).random(shape[1]) for n in range(shape[0])]
        return (torch.from_numpy(np.stack(draws)) < self.probs.get(name, 0.0)).to(device)
