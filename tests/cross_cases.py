"""Cross-attentions between latents and tokens of every make, for tests of the algorithms that compute them."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from perceivers.core.attention import Mask
from perceivers.core.block_config import BlockConfig
from perceivers.core.blocks import CrossAttention
from perceivers.core.fast import algorithms
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.cost_model import CostModel
from perceivers.core.fast.token_blocks import blocks_of, sample_of
from perceivers.core.latents import Latents
from perceivers.core.positions import AxisTables
from perceivers.core.tokens import Segment

LATENTS, LATENT_CHANNELS = 5, 11

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])


@dataclass(frozen=True)
class GivenAxis:
    """Arbitrary features for the positions of an axis: an `AxisTable`."""

    features: Tensor

    @property
    def device(self) -> torch.device:
        return self.features.device

    def __len__(self) -> int:
        return len(self.features)

    def part(self, first: int, last: int) -> "GivenAxis":
        return GivenAxis(self.features[first:last])

    def at(self, places: Tensor) -> Tensor:
        return self.features[places]

    def parts(self, dtype: torch.dtype) -> Iterator[Tensor]:
        yield from self.features.to(dtype).split(3)

    def to(self, device: torch.device) -> "GivenAxis":
        return GivenAxis(self.features.to(device))


@dataclass(frozen=True)
class Make:
    """Properties of the latents, the tokens and the attention block between them."""

    grid: tuple[int, ...] = (3, 7)
    positions: Literal["none", "tables", "array", "array of each", "added"] = "tables"
    content: int = 3
    padding: int = 0
    projected: bool = False
    masked: bool = False
    mask: Literal["none", "some", "dead"] = "none"
    batch: int = 2
    content_batch: int = 2
    latents_batch: int = 1
    heads: int = 1
    qk: int = 5
    v: int = 3
    widening: int = 1
    activation: Literal["gelu_tanh", "gelu_erf"] = "gelu_tanh"
    residual: bool = False
    sharpness: float = 1.0
    """Factor by which scores are larger than usual."""

    def __post_init__(self) -> None:
        if not self.content and self.positions in ("none", "added"):
            object.__setattr__(self, "content", 3)

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


makes = st.builds(
    Make,
    grid=st.sampled_from([(7,), (3, 7), (7, 2), (2, 3, 5)]),
    positions=st.sampled_from(["none", "tables", "tables", "tables", "array", "array of each", "added"]),
    content=st.sampled_from([0, 1, 3]),
    padding=st.sampled_from([0, 2]),
    projected=st.booleans(),
    masked=st.booleans(),
    mask=st.sampled_from(["none", "some", "dead"]),
    batch=st.sampled_from([1, 3]),
    content_batch=st.sampled_from([1, 3]),
    latents_batch=st.sampled_from([1, 3]),
    heads=st.sampled_from([1, 2, 3]),
    qk=st.sampled_from([1, 5]),
    v=st.sampled_from([2, 3]),
    widening=st.sampled_from([1, 2]),
    activation=st.sampled_from(["gelu_tanh", "gelu_erf"]),
    residual=st.booleans(),
    sharpness=st.sampled_from([1.0, 1.0, 30.0]),
)


@dataclass(frozen=True)
class Crossing:
    """Latents, tokens and the block between them; when writing, also the tail that follows."""

    cross: CrossAttention
    latents: Tensor
    segment: Segment
    tail: tuple[nn.Module, ...] | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Return all tensors that gradients flow to."""
        segment, positions = self.segment, self.segment.positions
        leaves = {"latents": self.latents, **dict(self.cross.named_parameters())}
        for number, module in enumerate(self.tail or ()):
            leaves |= {f"tail.{number}.{name}": parameter for name, parameter in module.named_parameters()}
        weight, bias = segment.projection or (None, None)
        parts = {"content": segment.content, "padding": segment.padding, "mask_token": segment.mask_token}
        parts |= {"weight": weight, "bias": bias, "positions": positions if isinstance(positions, Tensor) else None}
        return leaves | {name: part for name, part in parts.items() if part is not None}

    def to(self, dtype: torch.dtype, device: str | None = None) -> "Crossing":
        """Return a copy in another dtype; tables of Fourier features keep the precision that they are made in."""
        segment, place = self.segment, self.latents.device if device is None else torch.device(device)

        def leaf(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(place, dtype, copy=True).requires_grad_()

        positions: Any = segment.positions
        if isinstance(positions, AxisTables):
            positions = replace(positions, tables=tuple(table.to(place) for table in positions.tables))
        else:
            positions = leaf(positions)
        mask, masked = (None if x is None else x.to(place) for x in (segment.mask, segment.masked))
        changed = replace(
            segment,
            content=leaf(segment.content),
            positions=positions,
            padding=leaf(segment.padding),
            projection=None if segment.projection is None else tuple(leaf(x) for x in segment.projection),
            mask_token=leaf(segment.mask_token),
            mask=mask,
            masked=masked,
        )
        tail = None if self.tail is None else tuple(copy.deepcopy(module).to(place, dtype) for module in self.tail)
        latents = leaf(self.latents)
        assert latents is not None
        return Crossing(copy.deepcopy(self.cross).to(place, dtype), latents, changed, tail)

    def sample(self, number: int) -> "Crossing":
        latents = self.latents[number : number + 1] if len(self.latents) > 1 else self.latents
        return replace(self, latents=latents, segment=sample_of(self.segment, number))

    @property
    def algorithms(self) -> list[Algorithm]:
        """Return all possible algorithms except the dense one; a test over an empty list would show nothing."""
        possible = CostModel(self.cross, self.latents, self.segment, self.tail).costs()
        found = [algorithm for algorithm in possible if algorithm != "dense"]
        assert found
        return found

    def dense(self) -> Tensor:
        """Compute the result as attention.py does."""
        array, mask = self.segment.dense(self.latents.dtype), self.segment.mask
        array = array.expand(self.segment.batch_size, -1, -1)
        if self.tail is None:
            return self.cross(self.latents, array, Mask(keys=mask))
        return through(self.tail, self.cross(array, self.latents, Mask(queries=mask)))

    def computed(self, algorithm: Algorithm, block_size: int) -> Tensor:
        """Compute the result as algorithms.py does."""
        if self.tail is not None:
            return algorithms.write(self.cross, self.segment, Latents(self.latents), self.tail, algorithm, block_size)
        state = algorithms.read(self.cross, Latents(self.latents), self.segment, algorithm, block_size)
        found = self.cross.attention.output(state.attended().to(self.latents.dtype))
        return self.cross.finish(self.latents, found)


def watched_blocks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record (number of tokens, number of blocks) of every segment that is computed in blocks from now on."""
    seen = []

    def watched(tokens: Any, block_size: int) -> Any:
        blocks = blocks_of(tokens, block_size)
        seen.append((tokens.segment.num_tokens, len(blocks)))
        return blocks

    monkeypatch.setattr(algorithms, "blocks_of", watched)
    return seen


def least_limit(call: Callable[[int], Any]) -> int:
    """Return the smallest memory limit that a call works with, to a hundredth, as its error message states it."""
    with pytest.raises(ValueError, match="this needs at least") as refused:
        call(1)
    return int(1.01e6 * float(str(refused.value).split()[-2]))


def through(modules: tuple[nn.Module, ...], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def reading(make: Make, seed: int = 0) -> Crossing:
    """Return a case in which latents attend to tokens."""
    generator = torch.Generator().manual_seed(seed)
    segment = segment_of(make, generator)
    cross = block_between(LATENT_CHANNELS, width_of(segment), make, generator)
    latents = normal(generator, make.latents_batch, LATENTS, LATENT_CHANNELS)
    return Crossing(cross, latents, segment).to(torch.float64)


def writing(make: Make, tail: str = "linear", seed: int = 0) -> Crossing:
    """Return a case in which tokens, as queries, attend to latents."""
    generator = torch.Generator().manual_seed(seed)
    segment = segment_of(make, generator)
    width = width_of(segment)
    cross = block_between(width, LATENT_CHANNELS, make, generator)
    latents = normal(generator, make.latents_batch, LATENTS, LATENT_CHANNELS)
    modules = tuple(randomised(module, generator) for module in TAILS[tail](width))
    return Crossing(cross, latents, segment, modules).to(torch.float64)


TAILS: dict[str, Callable[[int], tuple[nn.Module, ...]]] = {
    "none": lambda width: (nn.Identity(), nn.Identity()),
    "linear": lambda width: (nn.Identity(), nn.Linear(width, 2)),
    "linear twice": lambda width: (nn.Linear(width, 13), nn.Linear(13, 7)),
    "not linear": lambda width: (nn.Linear(width, 13), nn.Sequential(nn.Linear(13, 3), nn.Tanh())),
}
"""Modules that may follow the attention when writing."""


def segment_of(make: Make, generator: torch.Generator) -> Segment:
    count, batch = make.tokens, make.batch
    # Content, positions and padding.
    content_batch = min(make.content_batch, batch)
    content = normal(generator, content_batch, count, make.content) if make.content else None
    positions: Any = None
    match make.positions:
        case "tables":
            widths = [2 + axis for axis in range(len(make.grid))]
            shuffled = torch.randperm(sum(widths), generator=generator).split(widths)
            tables = tuple(GivenAxis(normal(generator, n, width)) for n, width in zip(make.grid, widths, strict=True))
            positions = AxisTables(tables, tuple(tuple(place.tolist()) for place in shuffled))
        case "array":
            positions = normal(generator, count, 5)
        case "array of each":
            positions = normal(generator, batch, count, 5)
        case "added":
            positions = normal(generator, count, make.content)
    padding = normal(generator, make.padding) if make.padding else None
    segment = Segment(content, positions, make.positions == "added", padding)
    # Projection, masked tokens and absent tokens.
    if make.projected:
        own = segment.raw_channels
        segment = replace(segment, projection=(normal(generator, 7, own) / math.sqrt(own), normal(generator, 7)))
    if make.masked and content is not None:
        masked = torch.rand(content_batch, count, generator=generator) < 0.4
        segment = replace(segment, masked=masked, mask_token=normal(generator, width_of(segment)))
    if make.mask != "none":
        mask = torch.rand(batch, count, generator=generator) < 0.6
        mask[0] &= make.mask != "dead"
        segment = replace(segment, mask=mask)
    return segment


def width_of(segment: Segment) -> int:
    return segment.raw_channels if segment.projection is None else len(segment.projection[0])


def block_between(queries: int, tokens: int, make: Make, generator: torch.Generator) -> CrossAttention:
    config = BlockConfig(
        num_heads=make.heads,
        qk_channels=make.heads * make.qk,
        v_channels=make.heads * make.v,
        widening_factor=make.widening,
        activation=make.activation,
    )
    cross = randomised(CrossAttention(queries, tokens, config, make.residual), generator)
    with torch.no_grad():
        cross.attention.query.weight.mul_(make.sharpness)
    return cross


def randomised(module: Any, generator: torch.Generator) -> Any:
    """Make every parameter random, in float64: zeros and ones would conceal a forgotten term."""
    module = module.double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = normal(generator, *parameter.shape)
            if parameter.ndim > 1:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
            else:
                parameter.copy_(0.3 * noise + ("norm.weight" in name))
    return module


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_gradients(crossing: Crossing, result: Tensor) -> dict[str, Tensor]:
    """Return a result and the gradients of a weighted sum of it, in float64; every leaf must have one, be it 0."""
    generator = torch.Generator().manual_seed(7)
    leaves = crossing.leaves
    total = (result.double() * normal(generator, *result.shape).to(result.device)).sum()
    gradients = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
    return {name: x.detach().cpu().double() for name, x in {"result": result, **gradients}.items()}


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the worst difference, relative to the largest number of its array or a thousandth of the largest one."""
    largest = max(float(x.abs().max()) for name, x in expected.items() if name != "result")
    worst = 0.0
    for name, x in expected.items():
        assert found[name].shape == x.shape, name
        assert found[name].isfinite().all(), name
        scale = float(x.abs().max()) if name == "result" else max(float(x.abs().max()), 1e-3 * largest)
        worst = max(worst, float((found[name] - x).abs().max()) / scale)
    return worst
