"""Published models have the published sizes."""

import pytest
import torch

from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.systems import PRESETS


@pytest.fixture(params=PRESETS)
def name(request):
    return request.param


def count(name):
    return sum(parameter.numel() for parameter in PRESETS[name].preset().build("meta").parameters())


def test_parameters_are_exact(name):
    published, counted = PRESETS[name], count(name)
    assert published.parameters in (None, counted)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("perceiver-conv", 42.34),
        ("audioset-512", 24.92),
        ("audioset-1024", 86.57),
        ("audioset-perceiver-512", 20.97),
    ],
)
def test_parameters_are_right_to_the_digits_that_are_known(name, millions):
    assert round(count(name) / 1e6, 2) == millions


def test_schemas_survive_files(name):
    schema = PRESETS[name].preset().schema
    assert from_plain(Schema, to_plain(schema)) == schema


def test_six_models_are_released():
    assert sum(published.released for published in PRESETS.values()) == 6


@pytest.mark.slow
def test_full_size_makes_a_forward_pass(name):
    """Random weights through every published model, with outputs decoded in chunks."""
    preset = PRESETS[name].preset()
    model = preset.build().eval()
    raw = {name: spec.dummy_input(1, torch.device("cpu")) for name, spec in preset.schema.inputs.items()}
    with torch.no_grad():
        outputs = model.decode(model.encode(raw), memory_limit=1 << 30)
    assert outputs.keys() == preset.schema.outputs.keys()
    assert all(output.isfinite().all() for output in outputs.values())
