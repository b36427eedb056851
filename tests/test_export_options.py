"""Models with the options beyond the paper compile in one graph, and export with any batch and number of tokens."""

import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves, tree_map

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
from perceivers.core.latents import Latents
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.image import Image
from perceivers.modalities.label import Label
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.points import Coordinates
from perceivers.modalities.pointset import PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.modalities.records import Records
from perceivers.modalities.vectors import Vectors
from perceivers.schema import Schema
from test_export import TOLERANCE, assert_close, elsewhere  # noqa: F401  # a fixture
from tiers import few

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary. axis .* has no effect")

Arrays = dict[str, Any]
Case = tuple[Schema, Config, Callable[[int, int], Arrays]]
"""A schema and a config, and a function of batch and number of tokens to raw inputs."""


class Encode(nn.Module):
    """Program from raw inputs to latents, with what the decoder needs to know of them."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Arrays) -> Arrays:
        around = self.model.encode(raw).around
        found = {"array": around.array, "mask": around.mask, "condition": around.condition}
        return {name: x for name, x in found.items() if x is not None} | {"coordinates": around.coordinates or {}}


def assert_same(found: Any, expected: Any) -> None:
    """Check masks bit by bit, and numbers up to rounding."""
    for one, two in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if two.dtype == torch.bool:
            assert torch.equal(one, two)
        else:
            assert_close(one, two)


class Decode(nn.Module):
    """Program from latents to raw outputs at points."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Arrays, points: dict[str, Tensor]) -> Arrays:
        encoded = Encoded.of(Latents(**latents), {})
        return self.model.decode(encoded, {name: Coordinates(x) for name, x in points.items()})


TIME, PLANE = (Axis("time", 0.5, 20.0),), (Axis("y", 0.5, 5.0), Axis("x", 0.5, 5.0))
SHORT = ProcessorConfig(num_heads=2, num_layers=1)
LATENTS = LatentsConfig(num_latents=6, channels=16, init_std=1.0)
POINTS = PointSet(axes=2, channels=3, positions=Fourier(num_bands=3, spacing="octaves"), axis_names=("y", "x"))
VECTORS = Vectors(channels=5)


def point_set(batch: int, count: int) -> Arrays:
    mask = torch.arange(count) < torch.tensor([count, count - 1] + [count] * batch)[:batch, None]
    return {"coordinates": torch.randn(batch, count, 2), "values": torch.randn(batch, count, 3), "mask": mask}


def mixed_axes() -> Case:
    """Return events in time, a picture and a class; each axis acts where both sides have it."""
    fields = {"unit": CategoryField(classes=7, channels=16), "time": NumberField()}
    inputs = {
        "events": Records(fields, combine="sum", coordinate_fields=("time",)),
        "image": Image(size=(4, 5), axis_names=("y", "x"), positions=Fourier(num_bands=2)),
        "label": Label(classes=3),
    }
    rotary = Rotary((*TIME, *PLANE[:1]), share=0.8, values=True)
    config = Config(
        replace(LATENTS, places=(LatentAxis("time", 0.0, 10.0, 3), LatentAxis("y", 0.0, 4.0, 2))),
        EncoderConfig(num_heads=2, rotary=rotary),
        replace(SHORT, rotary=rotary),
        DecoderConfig(num_heads=2, rotary=rotary),
    )

    def raw(batch: int, count: int) -> Arrays:
        events = {"unit": torch.randint(7, (batch, count)), "time": 10 * torch.rand(batch, count)}
        return {"events": events, "image": torch.randn(batch, 4, 5, 3), "label": torch.randint(3, (batch,))}

    return Schema(inputs, {"asked": POINTS, "label": Label(classes=3)}), config, raw


def taken(rule: str) -> Case:
    config = Config(
        replace(LATENTS, taken_from="points", rule=rule, token_map=True),
        EncoderConfig(rotary=Rotary(PLANE), input_channels=12),
        replace(SHORT, rotary=Rotary(PLANE)),
        DecoderConfig(rotary=Rotary(PLANE)),
    )
    return Schema({"points": POINTS}, {"asked": POINTS}), config, lambda *sizes: {"points": point_set(*sizes)}


def conditioned() -> Case:
    inputs = {"points": POINTS, "lead_time": Numbers(role="condition")}
    config = Config(
        LATENTS,
        EncoderConfig(conditioned=True),
        replace(SHORT, conditioned=True, layer_scale=0.1),
        DecoderConfig(conditioned=True),
    )
    return (
        Schema(inputs, {"asked": POINTS}),
        config,
        lambda batch, count: {"points": point_set(batch, count), "lead_time": torch.rand(batch, 1)},
    )


def bottleneck() -> Case:
    config = Config(LATENTS, processor=SHORT, bottleneck=BottleneckConfig(channels=3))
    return Schema({"points": POINTS}, {"asked": POINTS}), config, lambda *sizes: {"points": point_set(*sizes)}


def blocks() -> Case:
    """Return grouped keys, gates, RMS norms, keys over latents too."""
    block: Arrays = {"num_heads": 4, "num_kv_heads": 2, "gated": True, "activation": "silu", "norm": "rms"}
    block |= {"qk_norm": True, "qkv_bias": False, "mlp_bias": False, "layer_scale": 0.5, "widening_factor": 2}
    config = Config(
        LATENTS,
        EncoderConfig(attend_latents=True, **block),
        ProcessorConfig(num_layers=1, final_norm=True, **block),
        DecoderConfig(final_norm=True, **block),
    )
    outputs = {"asked": POINTS, "label": Label(classes=3)}

    def raw(batch: int, count: int) -> Arrays:
        return {"points": point_set(batch, count), "vectors": torch.randn(batch, count + 2, 5)}

    return Schema({"points": POINTS, "vectors": VECTORS}, outputs), config, raw


def layers() -> Case:
    decoder = DecoderConfig(num_heads=2, num_layers=2, self_attention=True, query_residual=True)
    config = Config(LATENTS, processor=SHORT, decoder=decoder)
    return Schema({"points": POINTS}, {"asked": POINTS}), config, lambda *sizes: {"points": point_set(*sizes)}


CASES: dict[str, Callable[[], Case]] = {
    "mixed axes": mixed_axes,
    "last": lambda: taken("last"),
    "strided": lambda: taken("strided"),
    "random": lambda: taken("random"),
    "farthest": lambda: taken("farthest"),
    "conditioned": conditioned,
    "bottleneck": bottleneck,
    "blocks": blocks,
    "layers": layers,
}


def programs(name: str, batch: int, count: int) -> list[tuple[nn.Module, tuple[Any, ...]]]:
    """Return encoder and decoder of a case with their arguments."""
    schema, config, raw_of = CASES[name]()
    torch.manual_seed(0)
    model = PerceiverIO(schema, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        raw = raw_of(batch, count)
        latents = Encode(model)(raw)
    return [(Encode(model), (raw,)), (Decode(model), (latents, {"asked": torch.randn(batch, count, 2)}))]


def check_compiled(name: str, backend: str = "aot_eager") -> None:
    inductor_config.compile_threads = 1  # no further processes
    for program, given in programs(name, batch=2, count=11):
        torch.compiler.reset()
        with torch.no_grad():
            assert_same(torch.compile(program, fullgraph=True, backend=backend)(*given), program(*given))


def check_gradients(name: str) -> None:
    """Check a compiled training step: forward and backward."""
    program, (raw,) = programs(name, batch=2, count=11)[0]
    program.train()
    weights, found = list(program.model.parameters()), []
    for step in (torch.compile(program, fullgraph=True, backend="aot_eager"), program):
        torch.compiler.reset()
        loss = sum(output.square().sum() for output in step(raw).values() if isinstance(output, Tensor))
        found.append([x for x in torch.autograd.grad(loss, weights, allow_unused=True) if x is not None])
    assert len(found[0]) > 10
    for one, two in zip(*found, strict=True):
        assert float((one - two).abs().max()) <= TOLERANCE * max(float(two.abs().max()), 1e-2)


def check_exported(name: str) -> None:
    """Check the exported programs: pictures keep their size; numbers of samples, tokens and queries vary."""
    others = programs(name, batch=5, count=7)
    for (program, given), (_, other) in zip(programs(name, batch=3, count=11), others, strict=True):
        dynamic = tree_map(lambda x, y: {i: Dim.AUTO for i in range(x.ndim) if x.shape[i] != y.shape[i]}, given, other)
        with torch.no_grad():
            exported = export(program, given, dynamic_shapes=dynamic).module()
            for asked in (given, other):
                assert_same(exported(*asked), program(*asked))


@pytest.mark.prints_warnings  # of torch, that its guards are slower on Python 3.13.0
@pytest.mark.parametrize("name", few(CASES, ["mixed axes"]))
def test_compiled_in_one_graph(name: str, elsewhere: ProcessPoolExecutor) -> None:  # noqa: F811
    elsewhere.submit(check_compiled, name).result()


@pytest.mark.slow
@pytest.mark.prints_warnings
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["mixed axes", "random"])
def test_compiled_by_inductor(name: str, elsewhere: ProcessPoolExecutor) -> None:  # noqa: F811
    elsewhere.submit(check_compiled, name, "inductor").result()


@pytest.mark.slow
@pytest.mark.prints_warnings
@pytest.mark.parametrize("name", ["mixed axes", "farthest", "conditioned", "blocks"])
def test_a_compiled_step_has_the_same_gradients(name: str, elsewhere: ProcessPoolExecutor) -> None:  # noqa: F811
    elsewhere.submit(check_gradients, name).result()


@pytest.mark.parametrize("name", few(CASES, ["mixed axes", "random"]))
@pytest.mark.prints_warnings
def test_exported_with_any_batch_and_number_of_tokens_and_queries(
    name: str,
    elsewhere: ProcessPoolExecutor,  # noqa: F811
) -> None:
    elsewhere.submit(check_exported, name).result()
