"""What the orders of a cross-attention cost: work and memory of each token and score, counted from shapes."""

from dataclasses import astuple, dataclass

import torch

from perceivers.core.orders import Order


@dataclass(frozen=True)
class Rates:
    """What things cost on a kind of device, in multiply-adds of a float32 product that take as long."""

    element: int
    """A pass over a number in memory."""
    exponential: int
    """One, where scores are in memory."""
    block: int
    """A block, beside its work."""
    numbers: int
    """Scores and channels of a block where no limit asks for fewer: so many stay in a cache, or fill a device."""
    score: int | None = None
    """All but the products of a score that a fused kernel never writes down; None: there are no such kernels."""
    half: int = 1
    """How many times as fast the products of a fused kernel are in half precision."""


RATES = {
    "cpu": Rates(element=30, exponential=60, block=10_000_000, numbers=1 << 21),
    "cuda": Rates(element=80, exponential=80, block=5_000_000_000, numbers=1 << 26, score=30, half=15),
}
"""CPU: measured. CUDA: reckoned from an H100's data sheet (33e12 multiply-adds and 3.3e12 bytes a second, 5 us for each
of a block's 30 launches), not measured yet."""

HALF = (torch.bfloat16, torch.float16)
"""Half precision."""


@dataclass(frozen=True)
class Cost:
    """What an order takes for one segment."""

    work: int
    """Multiply-adds of its products, and everything else as the multiply-adds that take as long."""
    multiply_adds: int
    """Those of its products alone."""
    token_bytes: int
    """Memory of a token of a block."""
    fixed_bytes: int
    """Memory that does not depend on the block."""
    unit: int
    """Tokens of the smallest block."""

    def bytes(self, block_size: int) -> int:
        """Memory beside inputs and outputs."""
        return self.fixed_bytes + max(block_size, self.unit) * self.token_bytes


@dataclass(frozen=True)
class Count:
    """Of each token: multiply-adds, passes over numbers, numbers held. Of each score: passes over it, numbers held.

    Once: multiply-adds, numbers kept.
    """

    products: int = 0
    passes: int = 0
    held: int = 0
    visits: int = 0
    stored: int = 0
    fixed: int = 0
    kept: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Sizes:
    """Of a cross-attention and a segment: samples, latents, heads times latents, widths; of a token, own and in common.

    Of a token's own channels, `content` vary freely, and `located` are features of its place in a table.
    """

    samples: int
    latents: int
    questions: int
    qk: int
    v: int
    channels: int
    own: int
    content: int
    located: int
    varying: int
    width: int
    projected: bool

    def asking(self, order: Order) -> Count:
        """Tokens and their scores, softmax included."""
        softmax = Count(visits=3, stored=2)
        if order.startswith("separable"):
            return softmax + Count(
                products=self.questions * self.varying + self.channels * self.content * self.projected,
                passes=3 * self.varying + (3 * self.channels if self.projected else 0),
                visits=2,
                held=3 * self.varying + 3 * self.channels * self.projected,
                fixed=self.channels * self.latents * self.qk + self.questions * self.own * self.width,
                kept=self.maps + self.questions * (5 * self.own + 3 * self.width + 2 * self.channels * self.projected),
            )
        made = Count(
            products=self.own * self.channels if self.projected else 0,
            passes=4 * self.channels,
            # Features are looked up in float64, and converted.
            held=3 * self.channels + 4 * self.located + (self.own if self.projected else 0),
        )
        if order.startswith("absorbed"):
            folded = self.questions * self.channels
            asked = Count(products=folded, fixed=self.channels * self.latents * self.qk, kept=self.maps + folded)
        else:
            asked = Count(products=(self.channels + self.latents) * self.qk, held=self.qk + self.v, kept=self.maps)
        return softmax + made + asked

    @property
    def maps(self) -> int:
        """Numbers of keys', values' and queries' maps with the norms folded in, and of what they make of latents."""
        return (self.qk + self.v) * (self.channels + 2 * self.samples * self.latents)

    def reading(self, order: Order) -> Count:
        """What follows the scores when reading: sums of values."""
        if order in ("dense", "projected"):
            return Count(products=(self.channels + self.latents) * self.v, kept=2 * self.latents * self.v)
        after = Count(fixed=self.channels * self.latents * self.v)
        if order == "separable":
            return after + Count(products=self.questions * self.varying, visits=2)
        return after + Count(products=self.questions * self.channels, kept=2 * self.questions * self.channels)
