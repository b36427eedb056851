"""The cost model: which algorithms a cross-attention can take for a segment, and the work and memory of each.

The costs depend on shapes and the type of device alone; op_counts.py counts the operations.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.core.attention import Attention
from perceivers.core.blocks import MLP, CrossAttention
from perceivers.core.fast.algorithms import Algorithm, is_together, kernels_for
from perceivers.core.fast.epilogue import is_linear, is_shorter_composed, modules_behind, modules_of
from perceivers.core.fast.hooks import is_hooked
from perceivers.core.fast.linear_maps import (
    has_plain_tensors,
    is_linear_map,
    is_plain_norm,
    is_row_wise,
    linear_shape,
)
from perceivers.core.fast.op_counts import HALF, RATES, AttentionShape, Cost, DeviceRates, OpCount
from perceivers.core.fast.options import computing, drops_weights
from perceivers.core.interfaces import BoundHead
from perceivers.core.positions import AxisTables
from perceivers.core.tokens import Segment

NONE = type(None)
"""Class of the MLP of a block without one."""

ONE_HOT = 8
"""Approximate number of grid rows in a separable block; their one-hot code is a factor of a product."""

GRADIENT = 3
"""Memory of a block that is computed again for its gradient, as a multiple of the block's memory."""


@dataclass(frozen=True)
class CostModel:
    """Costs of a cross-attention between latents and a segment of tokens (reading) or of queries (writing)."""

    cross: CrossAttention
    """The block."""
    latents: Tensor
    """The latents; only their shape matters."""
    segment: Segment
    """Tokens or queries; only their shapes matter."""
    tail: Sequence[Any] | None
    """Maps behind the block when writing (`epilogue.Tail`); None: reading."""

    def costs(self) -> dict[Algorithm, Cost]:
        """Return the cost of each algorithm that is possible."""
        if not self.is_transparent:
            return {"dense": self._cost("dense")}
        algorithms = computing(self.cross, self.segment, self.tail is not None)
        if not self.width:
            algorithms = [name for name in algorithms if not name.startswith("separable")]
        if self.tail is not None and not is_linear(self.tail):
            algorithms = [name for name in algorithms if not name.endswith("folded")]
        return {algorithm: self._cost(algorithm) for algorithm in algorithms}

    @property
    def drops_weights(self) -> bool:
        """True if attention weights are dropped at random, which only the dense algorithm does."""
        return drops_weights(self.cross)

    @cached_property
    def is_transparent(self) -> bool:
        """True if the weights of all modules that block-wise algorithms bypass are known, and calls do nothing else."""
        cross = self.cross
        attention, mlp = cross.attention, cross.mlp
        norms: list[Any] = [cross.query_norm, cross.token_norm]
        heads = (attention.query_head_norm, attention.key_head_norm)
        maps = [attention.query, attention.key, attention.value, attention.output]
        called: list[Any] = [attention, cross.dropout, attention.rotary, cross.modulation_map, *norms, *heads]
        if (type(attention), type(cross.dropout), type(mlp)) not in [(Attention, nn.Dropout, x) for x in (MLP, NONE)]:
            return False
        if mlp is not None:
            if type(mlp.dropout) is not nn.Dropout:
                return False
            called += [mlp, mlp.dropout]
            maps += [mlp.hidden, mlp.output]
            norms.append(cross.mlp_norm)
        return (
            not is_hooked(cross, sharding=False)
            and not is_hooked(*(module for module in called if module is not None))
            and all(map(is_linear_map, maps))
            and all(map(is_plain_norm, [*norms, *(norm for norm in heads if norm is not None)]))
            and (self.tail is None or self._is_behind_known(self.tail))
        )

    def _is_behind_known(self, tail: Sequence[Any]) -> bool:
        """Return whether the modules behind the scores can be called block by block, and again for the gradient."""
        cross, behind = self.cross, [*modules_of(tail)]
        shared = [module for one in tail if isinstance(one, BoundHead) for module in one.shared]
        parameters = [x for module in shared for x in module.parameters()]
        called = modules_of((cross.attention.output, *modules_behind(cross, tail)))
        trained = itertools.chain(*(module.parameters(recurse=False) for module in called))
        return (
            not is_hooked(*(module for module in behind if module not in shared))
            and all(map(is_row_wise, tail))
            and all(map(has_plain_tensors, behind))
            and all(x.is_leaf and type(x) is nn.Parameter for x in parameters)
            and not any(x._backward_hooks for x in trained)  # these would run for each block, and again for their sum
        )

    @property
    def width(self) -> int:
        """Number of columns of the grid if tokens are sums of functions of row and column, else 0."""
        positions = self.segment.positions
        if not isinstance(positions, AxisTables) or self.segment.positions_added or len(positions.tables) < 2:
            return 0
        return len(positions.tables[-1])

    def default_block(self, algorithm: Algorithm) -> int:
        """Return the number of tokens in a block where no limit requires fewer."""
        numbers, row = self.rates.numbers, self.query_columns + self.channels
        if self.tail is not None:  # fewer passes over scores, and more arrays as wide as a query
            numbers, row = 2 * numbers, row + 3 * self.channels
        size = max(numbers // row // self.together(algorithm), 1)
        coded = algorithm.startswith("separable") and not self.is_fused(algorithm)
        return min(size, max(ONE_HOT * self.width, size // 16)) if coded else size

    @property
    def rates(self) -> DeviceRates:
        """Rates of the device."""
        return RATES.get(self.latents.device.type, RATES["cpu"])

    @property
    def samples(self) -> int:
        """Number of samples in the batch."""
        return max(len(self.latents), self.segment.batch_size)

    def together(self, algorithm: Algorithm) -> int:
        """Return the number of samples that are processed at once, block by block."""
        return self.samples if self.tail is None and is_together(algorithm, self.latents.device) else 1

    def is_fused(self, algorithm: Algorithm) -> bool:
        """Return whether a kernel runs without materialised scores; gradients of our own kernel need them."""
        if self.rates.score is None or self.latents.dtype == torch.float64:
            return False
        return algorithm == "dense" or (self.kernels_for(algorithm) is not None and not torch.is_grad_enabled())

    def kernels_for(self, algorithm: Algorithm) -> ModuleType | None:
        """Return our own kernels if they run in this algorithm, else None."""
        dtype = torch.promote_types(self.latents.dtype, torch.float32)
        possible = self.tail is None and algorithm == "separable" and self.width
        return kernels_for(self.segment, dtype) if possible else None

    @property
    def query_columns(self) -> int:
        """Number of columns of scores: heads times latents."""
        return self.cross.attention.num_heads * self.latents.shape[-2]

    @property
    def channels(self) -> int:
        """Width of the tokens."""
        attention = self.cross.attention
        return attention.token_channels if self.tail is None else attention.query_channels

    @cached_property
    def shape(self) -> AttentionShape:
        """Sizes of the attention and the segment."""
        attention, segment = self.cross.attention, self.segment
        content = 0 if segment.content is None else segment.content.shape[-1]
        return AttentionShape(
            samples=self.samples,
            latents=self.latents.shape[-2],
            query_columns=self.query_columns,
            qk=attention.qk_channels,
            v=attention.v_channels,
            token_qk=self._token_widths[0],
            token_v=self._token_widths[1],
            head_steps=self._head_steps(),
            channels=self.channels,
            raw_channels=segment.raw_channels,
            content=content,
            position_channels=segment.positions.num_channels if isinstance(segment.positions, AxisTables) else 0,
            compact_channels=content + 2 + self._coded_rows(),
            width=self.width,
            is_projected=segment.projection is not None,
        )

    @property
    def _token_widths(self) -> tuple[int, int]:
        """Widths of a token's keys and values when reading; when writing, of a query and of what it attends to."""
        attention = self.cross.attention
        heads = attention.num_heads if self.tail is not None else attention.num_kv_heads
        return attention.qk_channels // attention.num_heads * heads, attention.v_channels // attention.num_heads * heads

    def _head_steps(self) -> int:
        """Return the numbers held per token for what follows the maps to heads (`token_blocks.HeadSteps`)."""
        attention, (qk, v) = self.cross.attention, self._token_widths
        rotary = None if self.segment.coordinates is None else attention.rotary
        is_normed, held = attention.key_head_norm is not None, 0
        is_shared = self.tail is None and attention.num_heads != attention.num_kv_heads
        # Behind a bias there is a second copy of the heads; a norm, and a rotation, hold two more of what they change.
        if rotary is not None or is_normed or is_shared:
            held += qk + (v if self.tail is None else 0)
        if is_normed:
            held += 2 * qk
        if rotary is not None:
            angles = 2 * attention.qk_channels // attention.num_heads
            held += 2 * (qk + (v if rotary.values else 0)) + angles
        return held + (attention.qk_channels + attention.v_channels if is_shared else 0)

    def _coded_rows(self) -> int:
        """Return the number of grid rows that a separable block codes one-hot; 0 without a grid or with a kernel."""
        if not self.width or self.is_fused("separable"):
            return 0
        return min(self.default_block("separable"), self.segment.num_tokens) // self.width

    @property
    def latent_bytes(self) -> int:
        """Memory of what a dense block makes of the latents when writing: normed, as keys and values, in heads."""
        attention, item = self.cross.attention, max(self.latents.dtype.itemsize, 4)
        widths = 2 * attention.token_channels + 3 * (attention.qk_channels + attention.v_channels)
        return item * self.samples * self.latents.shape[-2] * widths

    @property
    def written_bytes(self) -> int:
        """Memory of the result when writing, which is held twice where it is joined from blocks."""
        maps = [linear_shape(module) for module in self.tail or () if is_linear_map(module)]
        width = maps[-1][0] if maps else self.channels
        return max(self.latents.dtype.itemsize, 4) * self.samples * self.segment.num_tokens * width

    def _cost(self, algorithm: Algorithm) -> Cost:
        shape, samples, rates, fused = self.shape, self.samples, self.rates, self.is_fused(algorithm)
        count = shape.scoring(algorithm) + self._after_scores(algorithm)
        tokens, item = self.segment.num_tokens, max(self.latents.dtype.itemsize, 4)
        multiply_adds = samples * (tokens * count.products + count.fixed)
        # Work: products, passes over tokens, and operations on each score.
        if fused and rates.score is not None:
            faster = rates.half if self.latents.dtype in HALF else 1
            work, score, stored = multiply_adds // faster, rates.score, 0
        else:
            work, score, stored = multiply_adds, rates.element * count.visits + rates.exponential, count.stored
        work += samples * tokens * (rates.element * count.passes + score * shape.query_columns)
        if algorithm == "dense":
            held = count.held + stored * shape.query_columns
            return Cost(work, multiply_adds, item * samples * held, 0, tokens)
        # Block by block: the overhead of all blocks, the memory of one block, and the memory that all share.
        together, at_once, kernels = (
            self.together(algorithm),
            self.default_block(algorithm),
            self.kernels_for(algorithm),
        )
        if kernels is not None:
            needed, least = kernels.numbers(self.width, shape.content)
            count += OpCount(held=(kernels.BLOCKS - 1) * count.held, kept=least * shape.query_columns)
            at_once, stored = at_once * (kernels.BLOCKS if fused else 1), max(stored, needed)
        work += samples // together * rates.block * -(-tokens // at_once)
        item *= GRADIENT if torch.is_grad_enabled() else 1
        held = together * (count.held + stored * shape.query_columns)
        kept = shape.maps + together * (count.kept - shape.maps)
        unit = self.width if algorithm.startswith("separable") else 1
        return Cost(work, multiply_adds, item * held, item * kept + self.content_gradient, unit)

    def _after_scores(self, algorithm: Algorithm) -> OpCount:
        """Return the count of what follows the scores: sums of values, or the epilogue."""
        if self.tail is None:
            return self.shape.reading(algorithm)
        # An MLP of another class may lack its width; a gated one has two values for each that leaves the activation.
        mlp = self.cross.mlp
        activated = 0 if mlp is None else getattr(mlp, "hidden_channels", self.channels)
        hidden = activated * (2 if getattr(mlp, "gated", False) else 1), activated
        maps = [linear_shape(module) for module in self.tail if is_linear_map(module)]
        absorbed = algorithm in ("absorbed", "separable")  # irrelevant to other epilogues
        composed = absorbed and is_shorter_composed(self.cross, self.tail)
        return self.shape.writing(algorithm, self.segment.num_tokens, hidden, maps, composed)

    @property
    def content_gradient(self) -> int:
        """Bytes of the content's gradient, which is assembled from the gradients of its samples, or its blocks."""
        content = self.segment.content
        if content is None or not torch.is_grad_enabled() or not content.requires_grad:
            return 0
        return 2 * content.nbytes
