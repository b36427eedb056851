"""Work and memory of a cross-attention's algorithms, counted from shapes: per token, per score and per call.

    multiply_adds = samples (tokens products + fixed)
    work          = multiply_adds + samples tokens (element passes + (element visits + exponential) query_columns)
    bytes         = item samples (held tokens_of_a_block + stored scores_of_a_block + kept)

A pass reads or writes one number of a token; a visit reads or writes one score. Rates (`element`, `exponential`) are
given as the multiply-adds that take as long. The names are the fields of `OpCount` and `AttentionShape`.
"""

from dataclasses import astuple, dataclass

import torch

from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.epilogue import COLUMN_MULTIPLE


@dataclass(frozen=True)
class DeviceRates:
    """Time that operations take on a type of device, as the float32 multiply-adds that take as long."""

    element: int
    """Time of a pass over a number in memory."""
    exponential: int
    """Time of an exponential, where scores are in memory."""
    block: int
    """Time of a block's overhead."""
    numbers: int
    """Scores and channels of a block where no limit requires fewer: they fit into a cache, or fill a device."""
    score: int | None = None
    """Time of a score, products aside, in a fused kernel, which does not store it; None: no such kernels."""
    half: int = 1
    """Speed of a fused kernel's products in half precision, relative to float32."""


RATES = {
    "cpu": DeviceRates(element=30, exponential=60, block=45_000_000, numbers=1 << 21),
    "cuda": DeviceRates(element=80, exponential=80, block=5_000_000_000, numbers=1 << 26, score=30, half=15),
}
"""CPU: measured. CUDA: estimated from an H100's data sheet (33e12 multiply-adds and 3.3e12 bytes a second, 5 us for
each of a block's 30 launches), not measured yet."""

HALF = (torch.bfloat16, torch.float16)
"""Half precision."""


@dataclass(frozen=True)
class Cost:
    """Work and memory of an algorithm for one segment."""

    work: int
    """Multiply-adds of its products, and everything else as the multiply-adds that take as long."""
    multiply_adds: int
    """Multiply-adds of its products alone."""
    token_bytes: int
    """Memory per token of a block, in bytes."""
    fixed_bytes: int
    """Memory that does not depend on the block, in bytes."""
    unit: int
    """Number of tokens in the smallest block."""

    def bytes(self, block_size: int) -> int:
        """Return the memory taken in addition to inputs and outputs."""
        return self.fixed_bytes + max(block_size, self.unit) * self.token_bytes


@dataclass(frozen=True)
class OpCount:
    """Operations of one sample, and numbers held in memory."""

    products: int = 0
    """Multiply-adds per token."""
    passes: int = 0
    """Numbers read or written per token."""
    held: int = 0
    """Numbers held per token of a block."""
    visits: int = 0
    """Reads and writes of each score."""
    stored: int = 0
    """Numbers held per score of a block."""
    fixed: int = 0
    """Multiply-adds that do not depend on the tokens."""
    kept: int = 0
    """Numbers held that do not depend on the block."""

    def __add__(self, other: "OpCount") -> "OpCount":
        return OpCount(*(one + two for one, two in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of a cross-attention and a segment."""

    samples: int
    """Number of samples in the batch."""
    latents: int
    """Number of latents."""
    query_columns: int
    """Number of columns of scores: heads times latents."""
    qk: int
    """Width of queries and keys, all heads."""
    v: int
    """Width of values, all heads."""
    token_qk: int
    """Width of a token's keys (reading) or queries (writing); fewer heads of keys than of queries are narrower."""
    token_v: int
    """Width of a token's values when reading; when writing, of what a query attends to."""
    head_steps: int
    """Numbers held per token for what follows the maps to heads: norms, rotations, copies for groups of heads."""
    channels: int
    """Width of a token."""
    raw_channels: int
    """Width of a token before a projection."""
    content: int
    """Number of content channels of a token."""
    position_channels: int
    """Number of channels of a token that are looked up in the tables of a grid's axes."""
    compact_channels: int
    """Width of a token in the compact factor of the separable algorithm."""
    width: int
    """Number of columns of the grid in the separable algorithm; 0 without a grid."""
    is_projected: bool
    """True if tokens are projected."""

    def scoring(self, algorithm: Algorithm) -> OpCount:
        """Return the count of assembling tokens and computing their scores and softmax."""
        softmax = OpCount(visits=3, stored=2)
        if algorithm.startswith("separable"):
            return softmax + self._separable_scoring()
        dense_tokens = OpCount(
            products=self.raw_channels * self.channels if self.is_projected else 0,
            passes=4 * self.channels,
            # Features are looked up in float64, then converted.
            held=3 * self.channels + 4 * self.position_channels + (self.raw_channels if self.is_projected else 0),
        )
        if algorithm.startswith("absorbed"):
            products = self.query_columns * self.channels
            fixed = self.channels * self.latents * self.qk
            scores = OpCount(products=products, fixed=fixed, kept=self.maps + products)
        else:
            products = self.channels * self.token_qk + self.latents * self.qk
            held = self.token_qk + self.token_v + self.head_steps
            scores = OpCount(products=products, held=held, kept=self.maps)
        return softmax + dense_tokens + scores

    def _separable_scoring(self) -> OpCount:
        projected, compact = self.channels * self.is_projected, self.compact_channels
        per_query = 5 * self.raw_channels + 3 * self.width + 2 * projected
        return OpCount(
            products=self.query_columns * compact + projected * self.content,
            passes=3 * compact + 3 * projected,
            visits=2,
            held=3 * compact + 3 * projected,
            fixed=self.channels * self.latents * self.qk + self.query_columns * self.raw_channels * self.width,
            kept=self.maps + self.query_columns * per_query,
        )

    @property
    def maps(self) -> int:
        """Numbers held for the maps with the norms folded in, and for the results of these maps on the latents."""
        return (self.qk + self.v) * (self.channels + 2 * self.samples * self.latents)

    def reading(self, algorithm: Algorithm) -> OpCount:
        """Return the count of the sums of values, which follow the scores when reading."""
        if algorithm in ("dense", "projected"):
            products = self.channels * self.token_v + self.latents * self.v
            return OpCount(products=products, kept=2 * self.latents * self.v)
        value_map = OpCount(fixed=self.channels * self.latents * self.v)
        if algorithm == "separable":
            return value_map + OpCount(products=self.query_columns * self.compact_channels, visits=2)
        sums = self.query_columns * self.channels
        return value_map + OpCount(products=sums, kept=2 * sums)

    def writing(
        self, algorithm: Algorithm, tokens: int, hidden: tuple[int, int], tail: list[tuple[int, int]], composed: bool
    ) -> OpCount:
        """Return the count of the epilogue (epilogue.py), which follows the scores when writing `tokens` queries.

        `hidden`: hidden width of the MLP before and behind its activation, which a gate halves; `tail`: (outputs,
        inputs) of the linear maps behind it; `composed`: True if these maps and the MLP's second map are multiplied
        out.
        """
        written = tail[-1][0] if tail else self.channels
        # The results of several samples are stacked, so they are held twice.
        softmax = OpCount(stored=2, kept=self.samples * tokens * written if self.samples > 1 else 0)
        if algorithm.endswith("folded"):
            return softmax + self._folded_epilogue(hidden, written)
        # The MLP and the tail, for each query.
        inner, activated = hidden
        held = 4 * self.channels + _activation_held(inner, activated) + written
        mlp = OpCount(products=self.channels * inner, passes=8 * self.channels, held=held)
        behind = OpCount(products=self.channels * activated + sum(outputs * inputs for outputs, inputs in tail))
        # Sums of values, then the output map; or the output map on the values, then sums.
        if algorithm in ("dense", "projected"):
            values = OpCount(products=(self.latents + self.channels) * self.v)
        else:
            columns = self.query_columns * self.channels
            values = OpCount(products=columns, fixed=self.latents * self.v * self.channels, kept=2 * columns)
            if composed:
                products = (self.channels + activated) * written
                fixed, kept = self.channels * products, 2 * products
                behind = OpCount(products=products, passes=-2 * self.channels, fixed=fixed, kept=kept)
        return softmax + mlp + behind + values

    def _folded_epilogue(self, hidden: tuple[int, int], written: int) -> OpCount:
        inner, activated = hidden
        columns = inner + min(self.channels, self.v + 1) * (inner > 0) + written  # without an MLP there is no norm
        columns += -columns % COLUMN_MULTIPLE
        return OpCount(
            products=self.query_columns * columns + activated * written,
            held=columns + _activation_held(inner, activated) + written,
            fixed=self.channels * self.v**2 + self.latents * self.v * columns,
            kept=2 * self.query_columns * columns
            + 2 * (columns + self.channels) * (self.v + 1)
            + self.channels * (self.channels + inner)
            + activated * written,
        )


def _activation_held(inner: int, activated: int) -> int:
    """Return the numbers held per query for the hidden values of an MLP, before and behind its activation."""
    return inner + activated * (2 if inner > activated else 1)
