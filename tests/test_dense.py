"""The dense model alone: its number of lines, and that it needs nothing of core/fast."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from closure import SRC, closure
from perceivers.core import layers
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.image import Image
from perceivers.modalities.label import Label
from perceivers.modalities.points import Indices, Part
from perceivers.modalities.text import Text
from perceivers.modalities.vectors import Vectors
from perceivers.schema import Schema
from reference_files import relative_error

TESTS = Path(__file__).parent


def test_the_dense_model_is_read_in_an_hour() -> None:
    lines = closure()
    assert sum(lines.values()) <= 2200
    assert len(lines) <= 16
    assert max(lines.values()) <= 300
    assert not any("fast" in name for name in lines)


def test_the_dense_tests_pass_without_the_fast_folder(tmp_path: Path) -> None:
    """Run units, recorded models, tokens and the tests below on a copy of the package without core/fast."""
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("fast", "__pycache__"))
    files = [str(TESTS / name) for name in ("test_units.py", "test_models.py", "test_tokens.py", "test_dense.py")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not without_the_fast_folder",
        *files,
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "WITHOUT_FAST": "1"}
    result = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "[100%]" in result.stdout


def test_the_folder_is_there_or_not() -> None:
    assert (layers.fast is None) == ("WITHOUT_FAST" in os.environ)


@pytest.fixture
def model() -> PerceiverIO:
    torch.manual_seed(0)
    inputs = {"image": Image(size=(8, 5)), "vectors": Vectors(channels=5, query_channels=3), "text": Text(length=7)}
    outputs = {"label": Label(classes=3), "image": Image(size=(8, 5)), "text": Text(length=7, of="text", tied=False)}
    config = Config(
        LatentsConfig(num_latents=11, channels=16, init_std=1.0),
        EncoderConfig(num_heads=2),
        ProcessorConfig(num_heads=2, num_layers=1),
        DecoderConfig(num_heads=2),
    )
    return PerceiverIO(Schema(inputs, outputs), config).eval()


@pytest.fixture
def raw() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "image": torch.randn(2, 8, 5, 3),
        "vectors": torch.randn(2, 13, 5),
        "text": torch.randint(6, 262, (2, 7)),
    }


def test_reading_in_parts_is_reading_the_whole(model, raw) -> None:
    expected = model.encode(raw)
    halves = [{"image": Part(raw["image"][:, top : top + 4], (top, 0), (8, 5))} for top in (0, 4)]
    sets = [{"vectors": raw["vectors"][:, :6]}, {"vectors": raw["vectors"][:, 6:]}, {"text": raw["text"]}]
    found = model.encode([*halves, *sets])
    assert relative_error(found.latents, expected.latents) <= 1e-5
    left_out = model.process(sum((model.read(part) for part in sets[1:]), model.read(sets[0])))
    others = {name: raw[name] for name in ("vectors", "text")}
    assert relative_error(left_out.latents, model.encode(others).latents) <= 1e-5


def test_decoding_at_points_is_a_part_of_the_whole(model, raw) -> None:
    encoded = model.encode(raw)
    whole = model.decode(encoded)
    index = torch.tensor([39, 0, 7])
    some = model.decode(encoded, {"image": Indices(index)})["image"]
    assert relative_error(some, whole["image"].flatten(1, 2)[:, index]) <= 1e-5


def test_attention_maps_add_up_to_1(model, raw) -> None:
    maps = model.attention_maps(raw)
    encoder = torch.cat([*maps["encoder"].values()], -1).sum(-1)
    assert torch.allclose(encoder, torch.ones_like(encoder))
    shares = torch.stack([*model.read(raw).shares().values()]).sum(0)
    assert torch.allclose(shares, torch.ones_like(shares))


def test_it_learns(model, raw) -> None:
    optimiser = torch.optim.SGD(model.train().parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = (model(raw)["image"] - raw["image"]).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "trunk" in name)


@pytest.mark.skipif("WITHOUT_FAST" not in os.environ, reason="with the folder there are limits and algorithms")
def test_what_the_folder_is_needed_for_is_said(model, raw) -> None:
    for options in ({"memory_limit": 10**9}, {"algorithm": "absorbed"}):
        with pytest.raises(ValueError, match="without perceivers/core/fast attention is dense"):
            model(raw, **options)
    model(raw, algorithm="dense")
