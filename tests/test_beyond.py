"""The page docs/beyond.md: its code runs, its schema file trains, and its table is the one of the code."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from option_table import PAGE, ROWS, shown, table
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.fast.options import OPTIONS
from perceivers.modalities import PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.schema import Schema

TEXT = PAGE.read_text()
SHARED, *BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
SHAPES = {
    0: {"found": (2, 50, 2)},
    1: {"inside": (2, 500, 1), "other": (2, 500, 1)},
    2: {"frames": (2, 3, 64, 128)},
    3: {"found": (2, 64, 128)},
    4: {"later": (3, 16, 32, 3)},
    5: {"state": (2, 3)},
}


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(SHARED + block, names)
    return names


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_runs(number: int) -> None:
    """Each block runs by itself after the imports, gives what its comments say, and is short."""
    found = run(BLOCKS[number])
    for name, shape in SHAPES[number].items():
        assert tuple(found[name].shape) == shape
        assert f"[{', '.join(map(str, shape))}]" in BLOCKS[number]
    config = re.match(r".*?^(?:model|resampler) =", BLOCKS[number], re.DOTALL | re.MULTILINE)
    assert config is not None
    assert config.group(0).count("\n") <= 13


def test_what_the_page_says_of_its_models() -> None:
    shapes, weather = run(BLOCKS[1]), run(BLOCKS[4])
    assert not torch.allclose(shapes["inside"], shapes["other"])
    assert shapes["encoded"].posterior.mean.shape == (2, 32, 8)
    model, state = weather["model"], torch.rand(1, 16, 32, 3)
    for hours in weather["hours"]:
        whole = model({"now": state, "lead_time": hours[None]})["later"]
        later = model.decode(model.encode({"now": state}), condition={"lead_time": hours[None]})["later"]
        torch.testing.assert_close(later, whole, rtol=1e-4, atol=1e-5)


def test_the_schema_file_is_checked_and_trains(command, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = re.search(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert file is not None
    (tmp_path / "shapes.yaml").write_text(file.group(1))
    rng = np.random.default_rng(0)
    rows = []
    for number in range(7):
        surface, points = rng.normal(size=(40 + number, 3)), rng.normal(size=(30, 3))
        inside = np.linalg.norm(points, axis=-1, keepdims=True) < 1
        rows.append({"surface": surface.tolist(), "inside": np.concatenate([points, inside], -1).tolist()})
    (tmp_path / "shapes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    commands = re.findall(r"^    perceivers (.*)$", TEXT, re.MULTILINE)
    assert commands[0].startswith("schema check")
    quick = [
        "--set",
        "training.num_steps=2",
        "training.log_every=1",
        "training.batch_size=3",
        "training.schedule.warmup_steps=0",
    ]
    for line in commands:
        code, _, errors = command(*line.split(), *(quick if line.startswith("train") else []))
        assert code == 0, errors
    assert any("kl" in line for line in (tmp_path / "runs" / "shapes" / "log.jsonl").read_text().splitlines())


def test_the_table_is_that_of_the_code() -> None:
    """`python tests/option_table.py --write` puts it into the page."""
    assert shown() == table()


PAPER = {
    *(
        "num_latents",
        "channels",
        "init_std",
        "sinusoidal_length",
        "num_heads",
        "qk_channels",
        "v_channels",
        "num_reads",
    ),
    *("qk_init_gain", "channel_alignment", "input_channels", "min_padding", "share_reads", "num_blocks"),
    *("share_blocks", "query_channels", "output_channels"),
}
"""Fields of the config that the paper's models have."""


def test_the_table_has_every_option() -> None:
    kinds = (LatentsConfig, EncoderConfig, ProcessorConfig, DecoderConfig, Config)
    sections = {"latents", "encoder", "processor", "decoder", "trunk"}
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)} - PAPER - sections
    named = {name.split(".")[-1].split(":")[0] for row in ROWS for name in re.findall(r"`([^`]*)`", row.fields)}
    assert fields <= named
    assert {row.name for row in ROWS} - {None} == {option.name for option in OPTIONS}


# Points without values, which the page introduces.


def test_points_without_values_are_an_input() -> None:
    spec = PointSet(axes=2, channels=0, positions=Fourier(num_bands=2, max_resolution=5))
    values = [np.ones((3, 2)), {"coordinates": np.zeros((5, 2))}, None]
    fitted = spec.fit(values[:2])
    assert fitted.is_fitted
    assert fitted.bounds == ((0.0, 1.0), (0.0, 1.0))
    rng = np.random.default_rng(0)
    batch = fitted.collate([None if value is None else fitted.preprocess(value, rng, True) for value in values])
    assert batch["values"].shape == (3, 5, 0)
    segment = fitted.build_input()(batch)
    assert torch.equal(
        segment.dense(torch.float32), fitted.build_input()({**batch, "values": batch["values"]}).dense(torch.float32)
    )
    del batch["values"]
    assert torch.equal(fitted.build_input()(batch).dense(torch.float32), segment.dense(torch.float32))
    assert segment.mask.sum(1).tolist() == [3, 5, 0]
    with pytest.raises(ValueError, match=r"channels = 0: points without values are inputs; an output needs at least 1"):
        spec.build_output(7, {})
    with pytest.raises(ValueError, match="channels = -1 must be at least 0"):
        PointSet(channels=-1)
    with pytest.raises(ValueError, match="have nothing else to make tokens of"):
        Schema({"x": PointSet(channels=0, positions=None)}, {"x": PointSet()}).inputs["x"].build_input()
