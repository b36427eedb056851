"""The plan's counts hold for blocks with options: products are those that are made, and memory keeps to the limit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, TrunkConfig
from perceivers.core.decoder import Decoder
from perceivers.core.fast.cost_model import CostModel
from perceivers.core.fast.planner import Plan
from perceivers.core.fast.token_blocks import keep_heap
from perceivers.core.latents import Latents
from perceivers.core.tokens import Segment, Tokens
from perceivers.core.trunk import Read
from perceivers.runs.flops import CPU_ATTENTION, PeakMemory

B, N, D, C, COUNT = 2, 29, 48, 40, 1409
TURNED = Rotary((Axis("y", 0.3, 9.0), Axis("x")), share=1.0)
BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary": TURNED},
    "rotary values": {"rotary": replace(TURNED, values=True)},
    "wide rotary values": {"rotary": replace(TURNED, values=True), "qk_channels": 256},
    "q-k norm": {"qk_norm": True, "qk_channels": 256},
    "groups": {"num_kv_heads": 1, "qk_channels": 64},
    "groups and rotary values": {"num_kv_heads": 2, "rotary": replace(TURNED, values=True), "qk_channels": 128},
    "gated": {"gated": True, "widening_factor": 4, "norm": "rms"},
    "conditioned": {"conditioned": True},
    "no mlp": {"widening_factor": 0},
}
LAYERS = ["plain", "rotary values", "gated", "conditioned"]


def size_of(tensors: Iterable[Any]) -> int:
    return sum(x.nbytes for x in tensors if x is not None)


@dataclass(frozen=True)
class Case:
    """A cross-attention with its tokens (or queries) and latents, and a function that runs it under a plan."""

    cross: Any
    model: CostModel
    tensors: list[Tensor]
    leaves: list[Tensor]
    run: Callable[[Plan], tuple[Tensor, ...]]

    def peak(self, plan: Plan) -> int:
        """Return the peak bytes in addition to inputs, parameters, results and gradients."""
        keep_heap()  # one array that is never touched
        memory = PeakMemory()
        memory.hold([*self.tensors, *self.leaves])
        with memory:
            before = memory.alive
            results = self.run(plan)
            own = size_of(results)
            forward = memory.peak - before - own
            if not torch.is_grad_enabled():
                return forward
            memory.peak = memory.alive
            total = sum(x.square().sum() for x in results)
            gradients = torch.autograd.grad(total, self.leaves, allow_unused=True)
            return max(forward, memory.peak - before - own - size_of(gradients))


def segment_of(channels: int, axes: tuple[str, ...] = ("y", "x"), count: int = COUNT) -> Segment:
    content = torch.randn(B, count, channels, requires_grad=True)
    return Segment(content, coordinates={axis: torch.rand(1, count) for axis in axes})


def latents_of(conditioned: bool, axes: tuple[str, ...] = ("y", "x")) -> Latents:
    places = {axis: torch.rand(1, N) for axis in axes}
    condition = torch.randn(B, D) if conditioned else None
    return Latents(torch.randn(B, N, D, requires_grad=True), places, condition=condition)


def case_of(module: nn.Module, cross: Any, segment: Segment, latents: Latents, tail: Any, run: Any) -> Case:
    assert latents.coordinates is not None
    tensors = [*module.buffers(), *segment.coordinates.values(), *latents.coordinates.values()]
    tensors += [] if latents.condition is None else [latents.condition]
    leaves = [*module.parameters(), segment.content, latents.array]
    return Case(cross, CostModel(cross, latents.array, segment, tail), tensors, leaves, run)


def reading(name: str, axes: tuple[str, ...] = ("y", "x"), attend_latents: bool = False) -> Case:
    channels = D if attend_latents else C
    encoder = EncoderConfig(num_heads=4, attend_latents=attend_latents, **BLOCKS[name])
    read = Read(TrunkConfig(LatentsConfig(N, D), encoder), channels).eval()
    cross, segment, latents = read.cross_attention, segment_of(channels), latents_of(name == "conditioned", axes)
    tokens = Tokens({"x": segment})
    run = lambda plan: (cross(latents, tokens, compute=plan.read),)  # noqa: E731
    return case_of(cross, cross, segment, latents, None, run)


def writing(name: str, num_layers: int = 1) -> Case:
    sizes = DecoderConfig(num_heads=4, num_layers=num_layers, **BLOCKS[name])
    decoder, head = Decoder(Config(LatentsConfig(N, D), decoder=sizes), C).eval(), nn.Linear(C, 3)
    segment, latents = segment_of(C), latents_of(name == "conditioned")
    queries = Tokens({"x": segment})
    run = lambda plan: tuple(decoder(queries, latents, {"x": head}, plan).values())  # noqa: E731
    tail = (*decoder.tail, head)
    return case_of(nn.ModuleList([decoder, head]), decoder.cross_attention, segment, latents, tail, run)


CASES: dict[str, Callable[[], Case]] = {
    **{f"reading, {name}": lambda name=name: reading(name) for name in BLOCKS},
    "reading, mixed axes": lambda: reading("wide rotary values", ("y",)),
    "reading, keys over latents": lambda: reading("plain", attend_latents=True),
    "reading, keys over latents and rotary": lambda: reading("rotary values", attend_latents=True),
    **{f"writing, {name}": lambda name=name: writing(name) for name in BLOCKS},
}


gradients = pytest.mark.parametrize("gradient", [False, pytest.param(True, marks=pytest.mark.slow)])


@gradients
@pytest.mark.parametrize("name", CASES)
def test_memory_stays_within_the_limit(name: str, gradient: bool) -> None:
    case = CASES[name]()
    with torch.set_grad_enabled(gradient):
        costs = {algorithm: cost for algorithm, cost in case.model.costs().items() if algorithm != "dense"}
        assert costs
        for algorithm, cost in costs.items():
            for block in (211, 701):
                limit = cost.bytes(block)
                peak = case.peak(Plan(limit, algorithm))
                assert limit / 8 < peak <= limit, (algorithm, block, peak / limit)


@gradients
@pytest.mark.parametrize("name", LAYERS)
def test_several_decoder_layers_stay_within_the_limit(name: str, gradient: bool) -> None:
    """In training they hold the queries between two layers, and their gradient."""
    case = writing(name, num_layers=3)
    between = 2 * B * COUNT * C * 4 if gradient else 0
    with torch.set_grad_enabled(gradient), pytest.raises(ValueError, match="this needs at least") as refused:
        case.run(Plan(1))
    least = int(1.01e6 * float(str(refused.value).split()[-2]))
    with torch.set_grad_enabled(gradient):
        for limit in (11 * least, 101 * least):
            assert case.peak(Plan(limit)) <= limit + between, limit / least


@pytest.mark.parametrize("name", CASES)
def test_multiply_adds_are_those_that_are_made(name: str) -> None:
    case = CASES[name]()
    # The plan leaves out what does not depend on the tokens: when reading, the MLP of the latents.
    mlp = [x for x in case.cross.mlp.parameters() if x.ndim == 2] if "reading" in name and case.cross.mlp else []
    left_out = B * N * sum(x.numel() for x in mlp)
    for algorithm, cost in case.model.costs().items():
        counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
        with torch.no_grad(), counter:
            case.run(Plan(None, algorithm))
        made = counter.get_total_flops() / 2 - left_out
        assert cost.multiply_adds == pytest.approx(made, rel=0.08), algorithm
