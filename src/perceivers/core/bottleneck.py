"""The variational bottleneck: each latent becomes a normal distribution over a few channels, and a sample of it.

    mean, log_variance = two linear maps of the latent;   z = mean + exp(log_variance / 2) noise;   latent = a map of z
    kl = mean over latents and channels of (mean^2 + exp(log_variance) - 1 - log_variance) / 2

Source: Zhang et al. 2023 (arXiv:2301.11445), `KLAutoEncoder` and `DiagonalGaussianDistribution`.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perceivers.core.config import BottleneckConfig
from perceivers.core.latents import Latents
from perceivers.core.layers import apply_linear, plain_linear

KL = "kl"
"""Name of the loss of the bottleneck, beside those of the outputs."""

LOG_VARIANCES = (-30.0, 20.0)
"""Range to which log-variances are limited, so that variances are finite and not 0."""


@dataclass(frozen=True)
class Posterior:
    """A normal distribution of each channel of each latent."""

    mean: Float[Tensor, "b n z"]
    """Means."""
    log_variance: Float[Tensor, "b n z"]
    """Natural logarithms of the variances."""
    mask: Bool[Tensor, "#b n"] | None = None
    """True where a latent exists; None: all do."""

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b n z"]:
        """Return a random sample."""
        mean = self.mean
        return self.at(torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype))

    def at(self, noise: Float[Tensor, "#b n z"]) -> Float[Tensor, "#b n z"]:
        """Return the sample that these numbers make, which are normal with mean 0 and variance 1."""
        return self.mean + (self.log_variance / 2).exp() * noise.to(self.mean.dtype)

    def kl(self, free_bits: float = 0.0) -> Float[Tensor, " b"]:
        """Return the divergence of each sample from a unit normal, in nats, as a mean over latents and channels.

        The divergence of a channel below `free_bits` counts as `free_bits`, so that it has no gradient.
        """
        each = (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance) / 2
        each = each.clamp(min=free_bits * math.log(2)).mean(-1)
        if self.mask is None:
            return each.mean(-1)
        return torch.where(self.mask, each, 0).sum(-1) / self.mask.sum(-1).clamp(min=1)


class Bottleneck(nn.Module):
    """A stage: the latents pass through a distribution over fewer channels."""

    def __init__(self, channels: int, config: BottleneckConfig) -> None:
        super().__init__()
        self.config = config
        self.mean, self.log_variance = plain_linear(channels, config.channels), plain_linear(channels, config.channels)
        self.output = plain_linear(config.channels, channels)

    def forward(self, latents: Latents) -> Latents:
        """Return the latents decoded from samples, or from means, with their posterior.

        The latents' noise makes the samples. Without it, samples are random in training, and means elsewhere.
        """
        mean, log_variance = (apply_linear(module, latents.array) for module in (self.mean, self.log_variance))
        # In at least float32: exponentials.
        dtype = torch.promote_types(mean.dtype, torch.float32)
        posterior = Posterior(mean.to(dtype), log_variance.to(dtype).clamp(*LOG_VARIANCES), latents.mask)
        draws = self.training and self.config.sample
        chosen = posterior.sample if draws else lambda: posterior.mean
        drawn = chosen() if latents.noise is None else posterior.at(latents.noise)
        return self.decoded(replace(latents, posterior=posterior, noise=None), drawn)

    def decoded(self, latents: Latents, drawn: Float[Tensor, "b n z"]) -> Latents:
        """Return the latents decoded from a sample."""
        return replace(latents, array=apply_linear(self.output, drawn.to(latents.array.dtype)))
