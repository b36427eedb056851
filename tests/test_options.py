"""Every option of blocks, latents and decoders, in pairs: each algorithm, and reading in parts, equals the dense model.

Float64, forward and gradients, within 1e-10. `python tests/test_options.py` prints the coverage.
"""

import dataclasses
import operator
from functools import cache, reduce
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from cross_cases import GivenAxis
from pairwise import Case, coverage, pairwise
from perceivers.core.attention import plan_attention
from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import (
    BottleneckConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentAxis,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.core.decoder import Decoder
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.cost_model import CostModel
from perceivers.core.fast.options import OPTIONS, READING, WRITING
from perceivers.core.latents import Latents
from perceivers.core.positions import AxisTables, GridCoordinates
from perceivers.core.tokens import Segment, Tokens
from perceivers.core.trunk import Read, Trunk

B, N, D, QUERIES, E = 2, 6, 12, 5, 3

AXES = {"time": Axis("time", 0.3, 9.0), "x": Axis("x", 0.5, 4.0)}

FACTORS: dict[str, tuple[Any, ...]] = {
    # Blocks, the same in all stages.
    "norm": ("layer", "rms"),
    "norm_epsilon": (1e-5, 1e-2),
    "qk_norm": (False, True),
    "rotary": (None, ("time",), ("time", "x")),
    "turned": ("keys", "keys and values"),
    "num_kv_heads": (None, 1, 2),
    "qk_channels": (None, 24),
    "mlp": ("gelu_tanh", "gated gelu_erf", "gated silu", "squared_relu", "none"),
    "qkv_bias": (True, False),
    "output_bias": (True, False),
    "mlp_bias": (True, False),
    "layer_scale": (None, 0.3),
    "conditioned": (False, True),
    "stochastic_depth": (0.0, 0.4),
    "final_norm": (False, True),
    # Stages.
    "latents": ("learned", "places", "per place", "last", "strided", "random", "farthest", "by index", "given"),
    "reads": ("one", "two", "no processor"),
    "attend_latents": (False, True),
    "encoder_residual": (True, False),
    "bottleneck": (False, True),
    "layers": (1, 2),
    "decoder_residual": (False, True),
    "self_attention": (False, True),
    # Tokens.
    "second": ("none", "same axes", "no axes"),
    "mask": ("none", "some", "sample"),
    "tokens": ("array", "grid", "masked and projected"),
    # How it is computed.
    "algorithm": (*(name for name in get_args(Algorithm) if name != "dense"), "limit", "parts"),
}

TAKEN = ("last", "strided", "random", "farthest", "by index")

BLOCK = ("norm", "norm_epsilon", "qk_norm", "num_kv_heads", "qk_channels", "qkv_bias", "output_bias", "mlp_bias")
BLOCK += ("layer_scale", "conditioned", "stochastic_depth")


def possible(case: Case) -> bool:
    """Return whether these values may occur together."""
    get = case.get
    if get("algorithm") == "parts" and get("reads") == "two":
        return False  # refused by name
    if get("algorithm") == "limit" and get("self_attention"):
        return False  # refused by name
    if get("rotary") is None and "rotary" in case and get("turned") == "keys and values":
        return False  # nothing is turned
    # With a limit, each block of queries draws by itself which samples skip a branch.
    return not (get("algorithm") == "limit" and get("layers") == 2 and get("stochastic_depth"))


@cache
def cases() -> list[Case]:
    return pairwise(FACTORS, possible)


def config_of(case: Case) -> Config:
    """Return the config of a case."""
    gated, _, activation = case["mlp"].rpartition(" ")
    block: dict[str, Any] = {name: case[name] for name in BLOCK}
    block |= {"num_heads": 2, "gated": bool(gated), "widening_factor": 0 if activation == "none" else 2}
    block |= {} if activation == "none" else {"activation": activation}
    if case["rotary"]:
        axes = tuple(AXES[name] for name in case["rotary"])
        block["rotary"] = Rotary(axes, share=1.0, values=case["turned"] == "keys and values")
    places = (LatentAxis("time", 0.0, 3.0, 3),) if case["latents"] in ("places", "per place") else ()
    taken = case["latents"].replace("by index", "last") if case["latents"] in TAKEN else None
    return Config(
        LatentsConfig(
            N,
            D,
            init_std=1.0,
            places=places,
            per_place=2 if case["latents"] == "per place" else None,
            **({} if taken is None else {"taken_from": "one", "rule": taken, "token_map": case["layers"] == 2}),
        ),
        EncoderConfig(
            num_reads={"one": 1, "two": 2, "no processor": 1}[case["reads"]],
            query_residual=case["encoder_residual"],
            attend_latents=case["attend_latents"],
            **block,
        ),
        ProcessorConfig(
            num_layers=0 if case["reads"] == "no processor" else 1,
            num_blocks=2 if case["reads"] == "two" else 1,
            final_norm=case["final_norm"],
            **block,
        ),
        DecoderConfig(
            num_layers=case["layers"],
            query_residual=case["decoder_residual"],
            self_attention=case["self_attention"],
            final_norm=case["final_norm"],
            **block,
        ),
        bottleneck=BottleneckConfig(channels=5, sample=False) if case["bottleneck"] else None,
    )


class Model(nn.Module):
    """The trunk and the decoder of a case, with its tokens and queries as parameters."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, config = case, config_of(case)
        self.trunk, self.decoder = Trunk(config, D), Decoder(config, D)
        self.heads = nn.ModuleDict({"out": nn.Linear(D, E), "other": nn.Linear(D, 2)})
        for parameter in self.parameters():  # no bias, scale or map keeps its neutral value
            nn.init.normal_(parameter, std=0.4)
        raw = 4 if case["tokens"] == "masked and projected" else D
        self.one = nn.Parameter(torch.randn(B, 15, raw - (3 if case["tokens"] == "grid" else 0)))
        self.two, self.queries = nn.Parameter(torch.randn(1, 7, D)), nn.Parameter(torch.randn(B, QUERIES, D))
        self.map = nn.Linear(4, D) if raw == 4 else None
        self.mask_token, self.condition = nn.Parameter(torch.randn(D)), nn.Parameter(torch.randn(B, D))
        self.given = nn.Parameter(torch.randn(B, N, D))

    def tokens(self) -> Tokens:
        """Return the tokens of one or two inputs."""
        case, count = self.case, self.one.shape[1]
        place = torch.linspace(0, 3, count, dtype=torch.float64)
        along: Any = {"time": place[None], "x": (place * 7 % 2).expand(B, -1)}
        mask = None
        if case["mask"] != "none":
            mask = torch.ones(B, count, dtype=torch.bool)
            mask[0, 3:9], mask[1, :5] = False, False
            if case["mask"] == "sample":
                mask[1] = False
        segment = Segment(self.one, mask=mask, coordinates=along)
        if case["tokens"] == "grid":
            torch.manual_seed(5)
            features = tuple(GivenAxis(torch.randn(n, c, dtype=torch.float64)) for n, c in ((3, 2), (5, 1)))
            middles = tuple(torch.arange(n, dtype=torch.float64) + 0.5 for n in (3, 5))
            tables = AxisTables(features, ((0, 2), (1,)))
            places = GridCoordinates(("time", "x"), middles)
            segment = dataclasses.replace(segment, positions=tables, coordinates=places, grid=(3, 5))
        if self.map is not None:
            masked = torch.zeros(B, count, dtype=torch.bool)
            masked[:, ::4] = True
            segment = dataclasses.replace(
                segment, projection=(self.map.weight, self.map.bias), mask_token=self.mask_token, masked=masked
            )
        segments = {"one": segment}
        if case["second"] != "none":
            axes = (
                {"time": torch.linspace(0, 2, 7, dtype=torch.float64)[None]} if case["second"] == "same axes" else None
            )
            segments["two"] = Segment(self.two, coordinates=axes)
        return Tokens(segments)

    def asked(self) -> Tokens:
        """Return the queries of two outputs, of which one has no coordinates."""
        place = torch.linspace(0, 3, QUERIES, dtype=torch.float64)
        queries = Segment(self.queries, coordinates={"time": place[None], "x": place[None] ** 2})
        return Tokens({"out": queries, "other": Segment(self.queries[:1, :3])})

    def forward(self, algorithm: str) -> dict[str, Tensor]:
        """Return latents and outputs, computed by an algorithm, under a limit, or in parts."""
        torch.manual_seed(7)  # stochastic depth
        tokens, limit, parts = self.tokens(), None, algorithm == "parts"
        index = torch.tensor([[9, 0, 14, 11, 10, 12]])
        start = self.trunk.start(tokens, {"given": self.given, "by index": index}.get(self.case["latents"]))
        start = dataclasses.replace(start, condition=self.condition)
        if algorithm == "limit":
            limit = smallest_limit(self, tokens, start)
        plan = plan_attention(limit, None if algorithm in ("limit", "parts") else algorithm)
        if parts:
            states = [self.trunk.read(Tokens({name: x}), plan, start)[name] for name, x in tokens.segments.items()]
            latents = self.trunk.process(reduce(operator.add, states), start)
        else:
            latents = self.trunk(tokens, plan, start)
        return {"latents": latents.array, **self.decoder(self.asked(), latents, dict(self.heads.items()), plan)}


def smallest_limit(model: Model, tokens: Tokens, start: Latents) -> int:
    """Return a limit in bytes with which every cross-attention has to work in blocks, if it can."""
    cross = [stage.cross_attention for stage in model.trunk.stages if isinstance(stage, Read)]
    sides = [(block, segment, None) for block in cross for segment in tokens.segments.values()]
    for name, segment in model.asked().segments.items():
        tail = (*model.decoder.tail, model.heads[name])
        sides += [(block, segment, tail) for block in (*model.decoder.earlier, model.decoder.cross_attention)]
    needed = []
    for block, segment, tail in sides:
        costs = CostModel(block, start.array, segment, tail).costs()
        needed.append(min(cost.bytes(cost.unit) for name, cost in costs.items() if name != "dense" or len(costs) == 1))
    return 3 * max(needed)  # several segments, and the gradient of a layer


def with_gradients(model: Model, algorithm: str) -> dict[str, Tensor]:
    """Return latents, outputs and the gradients of all parameters."""
    model.zero_grad()
    found = model(algorithm)
    weights = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=weights, dtype=x.dtype)).sum() for x in found.values())
    assert isinstance(total, Tensor)
    total.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: x.detach() for name, x in found.items()}, **gradients}


def name_of(case: Case) -> str:
    return "-".join(str(value).replace(" ", "_") for value in case.values())[:60]


@pytest.mark.parametrize("number", range(len(cases())))
def test_every_pair_of_options_in_every_algorithm(number: int) -> None:
    torch.manual_seed(number)
    check(cases()[number])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 12))
def test_other_designs_of_pairs_hold_other_triples(seed: int) -> None:
    for case in pairwise(FACTORS, possible, seed):
        check(case)


def check(case: Case) -> None:
    """Check that an algorithm gives the outputs and gradients of the dense one."""
    model = Model(case).double().train(case["stochastic_depth"] > 0)
    expected, found = with_gradients(model, "dense"), with_gradients(model, case["algorithm"])
    scale = max(float(x.abs().max()) for x in expected.values())
    for name, x in expected.items():
        error = float((found[name] - x).abs().max()) / max(float(x.abs().max()), 1e-3 * scale) if name in found else 0.0
        assert name in found or not x.any(), (name, case)
        assert error <= 1e-10, (name, error, case)
    assert scale < 1e6


def test_every_possible_pair_is_covered() -> None:
    covered, total = coverage(cases(), FACTORS)
    impossible = total - covered
    assert covered > 0.97 * total, f"{covered} of {total} pairs"
    assert impossible < 40


def test_every_option_of_the_table_occurs() -> None:
    used = set()
    for number, case in enumerate(cases()):
        torch.manual_seed(number)
        model = Model(case).double().train(case["stochastic_depth"] > 0)
        read, write = model.trunk.encoder[0].cross_attention, model.decoder.cross_attention
        for cross, tokens in ((read, model.tokens()), (write, model.asked())):
            used |= {option.name for option in OPTIONS for x in tokens.segments.values() if option.is_used(cross, x)}
    elsewhere = {"dropout, in training", "attention_dropout, in training", "rotary, gradients of coordinates"}
    assert used | elsewhere == {option.name for option in OPTIONS}
    assert {name for option in OPTIONS for name in (*option.reading, *option.writing)} == {*READING, *WRITING}


if __name__ == "__main__":
    covered, total = coverage(cases(), FACTORS)
    print(f"{len(cases())} cases of {len(FACTORS)} factors cover {covered:,} of {total:,} pairs; the others exclude")
