"""The released models compile in one graph and export with any batch size; encode and decode are separate programs."""

import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves, tree_map

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.modalities.points import Indices
from reference_files import read, relative_error, under
from test_convert import RECORDED, built, converted
from tiers import few

TOLERANCE = 1e-5

Arrays = dict[str, Any]


class Encode(nn.Module):
    """Program from raw inputs to latents."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    def forward(self, raw: Arrays) -> Tensor:
        return self.model.encode(raw).latents


class Decode(nn.Module):
    """Program from latents to raw outputs, some at given positions only, and with raw inputs that serve as queries."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor, asked_with: Arrays, places: dict[str, Tensor]) -> Arrays:
        adapters = self.model.input_adapter.adapters
        sources = {name: adapters[name](raw) for name, raw in asked_with.items()}
        return self.model.decode(Encoded(latents, sources), {name: Indices(index) for name, index in places.items()})


ASKED_WITH = {"mlm": "text", "flow": "frames"}
"""Inputs whose tokens are the queries of an output."""

PLACES = {"mlm": ["restored"], "flow": ["flow"], "video": ["image", "audio"]}
"""Outputs that are decoded at some positions."""


def raw_of(name: str) -> Arrays:
    given = under("in:", read(name))
    match name:
        case "mlm":
            return {"text": {"ids": given["inputs"], "mask": given["input_mask"].bool()}}
        case "flow":
            return {"frames": given["images"]}
        case "video":
            return {"audio": given["audio"], "image": given["images"], "label": given["label"]}
    return {"image": given["images"]}


def programs(name: str, batch: int, asked: int, length: int | None = None) -> list[tuple[nn.Module, tuple[Any, ...]]]:
    """Return encoder and decoder with their arguments; texts have this length."""
    model = built(*converted(name))
    raw = tree_map(lambda x: torch.cat([x] * batch)[:batch], raw_of(name))
    raw = tree_map(lambda x: x[:, :length], raw) if name == "mlm" else raw
    places = {output: torch.arange(asked).flip(0) for output in PLACES.get(name, [])}
    asked_with = {key: value for key, value in raw.items() if key == ASKED_WITH.get(name)}
    with torch.no_grad():
        latents = model.encode(raw).latents
    return [(Encode(model), (raw,)), (Decode(model), (latents, asked_with, places))]


def assert_close(found: Any, expected: Any) -> None:
    for one, two in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        assert relative_error(one, two) <= TOLERANCE


def check_compiled(name: str, backend: str) -> None:
    inductor_config.compile_threads = 1  # no further processes
    for program, given in programs(name, batch=2, asked=3):
        torch.compiler.reset()
        with torch.no_grad():
            torch.manual_seed(0)
            found = torch.compile(program, fullgraph=True, backend=backend)(*given)
            torch.manual_seed(0)
            assert_close(found, program(*given))


def check_exported(name: str) -> None:
    """Check the exported programs: pictures and films keep their size; numbers of text tokens and queries vary."""
    others = programs(name, batch=5, asked=4, length=7)
    for (program, given), (_, other) in zip(programs(name, batch=3, asked=3, length=9), others, strict=True):
        dynamic = tuple(
            tree_map(lambda x: {0: Dim.AUTO, 1: Dim.AUTO} if name == "mlm" and x.ndim == 2 else {0: Dim.AUTO}, part)
            for part in given
        )
        with torch.no_grad():
            exported = export(program, given, dynamic_shapes=dynamic).module()
            for asked in (given, other):
                torch.manual_seed(0)
                found = exported(*asked)
                torch.manual_seed(0)
                assert_close(found, program(*asked))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """Yield a process without jaxtyping's checks of shapes, which compilers cannot trace."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.prints_warnings  # of torch, that its guards are slower on Python 3.13.0
@pytest.mark.parametrize("name", few(RECORDED, ["imagenet_conv"]))
def test_compiled_in_one_graph(name: str, elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(check_compiled, name, "aot_eager").result()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled_by_inductor(elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(check_compiled, "imagenet_fourier", "inductor").result()


@pytest.mark.parametrize("name", few(RECORDED, ["mlm"]))
def test_exported_with_any_batch_and_number_of_inputs_and_queries(name: str, elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(check_exported, name).result()
