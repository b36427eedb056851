"""Schemas and configs in files: round trips, and errors that give the position."""

import json
import re

import numpy as np
import pytest
import yaml

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import BottleneckConfig, Config, EncoderConfig
from perceivers.modalities import Flow, Image, Label, PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain, json_schema, to_plain
from perceivers.schema.schema_files import from_file, to_yaml, with_settings
from perceivers.systems import TASKS

TEXT = """\
inputs:
  pixels: {kind: pointset, axes: 2, channels: 1, bounds: [[0, 7], [0, 7]], subsample: [0.1, 1]}
  image:
    kind: image
    size: 8
    positions: {kind: fourier, num_bands: 4}
outputs:
  label: {kind: label, classes: 10}
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "schema.yaml"
    file.write_text(TEXT)
    return file


def test_yaml_means_what_python_means(path):
    assert from_file(Schema, path) == Schema(
        inputs={
            "pixels": PointSet(axes=2, channels=1, bounds=((0.0, 7.0), (0.0, 7.0)), subsample=(0.1, 1.0)),
            "image": Image(size=8, positions=Fourier(num_bands=4)),
        },
        outputs={"label": Label(classes=10)},
    )


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("num_bands", "num_bans", ":6: inputs.image.positions.num_bans: unknown field; did you mean 'num_bands'?"),
        ("kind: image", "kind: imag", ":3: inputs.image: unknown kind 'imag'; did you mean 'image'?"),
        ("size: 8", "size: [1, 2, 3]", ":3: inputs.image: size = (1, 2, 3) must be one positive number, or 2 of them"),
        ("num_bands: 4", "num_bands: many", ":6: inputs.image.positions.num_bands: Input should be a valid integer"),
        (
            "kind: fourier",
            "kind: fury",
            ":6: inputs.image.positions.kind: unknown kind 'fury'; there are fourier, learned",
        ),
        ("classes: 10", "classes: [a, 7]", ":8: outputs.label.classes.1: Input should be a valid string, not 7"),
        ("classes: 10", "classes: [yes, no]", ":8: outputs.label.classes.0: Input should be a valid string, not True"),
        ("outputs:", "output:", ":1: outputs: Field required"),
        ("kind: label, ", "", ":8: outputs.label: needs a kind: one of image"),
        ("[0.1, 1]", "[1, 0.1]", ":2: inputs.pixels: subsample = (1.0, 0.1) must be two rising fractions"),
        ("[0.1, 1]", "[1, 0.1", ": not YAML"),
        ("[0.1, 1]", "[1]", ":2: inputs.pixels.subsample.1: Field required"),
        ("{kind: label, classes: 10}", "!!python/object/apply:os.system ['true']", ": not YAML"),
    ],
)
def test_wrong_files_name_the_place(path, right, wrong, message):
    path.write_text(TEXT.replace(right, wrong))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        from_file(Schema, path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.yaml: No such file"):
        from_file(Schema, tmp_path / "none.yaml")


def test_config_errors_name_the_place():
    with pytest.raises(ValueError, match=r"encoder\.num_head: unknown field; did you mean 'num_heads'"):
        from_plain(Config, {"encoder": {"num_head": 2}})
    with pytest.raises(ValueError, match="no effect under channel_alignment: pad"):
        Config(encoder=EncoderConfig(channel_alignment="pad", input_channels=5))


NESTED = Config(
    encoder=EncoderConfig(rotary=Rotary((Axis("x"), Axis("time", 2.0, 30.0)), share=0.25)),
    bottleneck=BottleneckConfig(channels=3, weight=0.25, free_bits=0.5, warmup_steps=7, sample=False),
)
"""A config with options that are dataclasses of their own, one of them with a tuple of dataclasses."""


@pytest.mark.parametrize("write", [to_yaml, lambda config: json.dumps(to_plain(config))], ids=["yaml", "json"])
def test_nested_options_that_are_written_and_read_are_the_same(tmp_path, write):
    (tmp_path / "config.yaml").write_text(write(NESTED))
    assert from_file(Config, tmp_path / "config.yaml") == NESTED
    assert to_plain(Config())["bottleneck"] is to_plain(Config())["encoder"]["rotary"] is None


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("free_bits", "free_bit", "bottleneck.free_bit: unknown field; did you mean 'free_bits'?"),
        ("share: 0.25", "shares: 0.25", "encoder.rotary.shares: unknown field; did you mean 'share'?"),
        ("max_wavelength: 30", "max_wave: 30", "encoder.rotary.axes.1.max_wave: unknown field"),
        ("channels: 3", "channels: 0", "bottleneck: channels = 0 must be at least 1"),
        ("sample: false", "sample: perhaps", "bottleneck.sample: Input should be a valid boolean"),
        (
            "name: time",
            "name: x",
            "encoder.rotary: rotary.axes = ['x', 'x'] must name at least one",
        ),
    ],
)
def test_wrong_nested_options_are_named(right, wrong, message):
    """In a config, and in a recipe, where the config may also be the word "auto"."""
    text = to_yaml(NESTED)
    assert right in text
    plain = yaml.safe_load(text.replace(right, wrong))
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        from_plain(Config, plain)
    with pytest.raises(ValueError, match=rf"^config\.{re.escape(message)}"):
        from_plain(Recipe, to_plain(TASKS["digits"].recipe()) | {"config": plain})


def test_a_nested_option_of_another_type_is_named():
    recipe = to_plain(TASKS["digits"].recipe())
    with pytest.raises(ValueError, match=r"^config\.bottleneck: Input should be a dictionary .*, not 5$"):
        from_plain(Recipe, recipe | {"config": {"bottleneck": 5}})


def test_settings_reach_nested_options():
    settings = ["bottleneck={channels: 3}", "bottleneck.warmup_steps=7", "encoder.rotary={axes: [{name: x}]}"]
    config = with_settings(Config(), [*settings, "encoder.rotary.values=true"])
    assert config.bottleneck == BottleneckConfig(channels=3, warmup_steps=7)
    assert config.encoder.rotary == Rotary((Axis("x"),), values=True)
    assert with_settings(config, ["bottleneck=null"]).bottleneck is None
    message = r"setting 'bottleneck\.channels=3': bottleneck is null, set all of it: bottleneck=\{channels: 3\}"
    with pytest.raises(ValueError, match=message):
        with_settings(Config(), ["bottleneck.channels=3"])
    with pytest.raises(ValueError, match=r"there is no botleneck$"):
        with_settings(Config(), ["botleneck.channels=3"])


def test_json_schema_lists_every_modality():
    text = json.dumps(json_schema(Schema))
    assert all(f'"{kind}"' in text for kind in ("image", "pointset", "records", "text", "flow", "vectors"))


def test_an_output_must_name_an_input_that_exists():
    with pytest.raises(ValueError, match="'frame'; there are frames; did you mean 'frames'"):
        Schema({"frames": Image()}, {"flow": Flow(of="frame")})


def test_names_must_be_identifiers():
    with pytest.raises(ValueError, match="must be letters, digits and underscores"):
        Schema({"a.b": Image()}, {"label": Label(classes=2)})


def test_key_lets_input_and_target_read_one_field():
    """Super-resolution, denoising and autoencoding are schemas: two entries read the same field."""
    spec = Image(size=5, channels=1, noise=0.5)
    copy = Image(size=5, channels=1, key="noisy")
    schema = Schema({"noisy": spec, "also": copy}, {"clean": copy})
    image = np.arange(25.0).reshape(5, 5)
    prepared = schema.preprocess({"noisy": image}, np.random.default_rng(0), training=True)
    np.testing.assert_array_equal(prepared["targets"]["clean"][..., 0], image)
    np.testing.assert_array_equal(prepared["inputs"]["also"], prepared["targets"]["clean"])


def test_dropped_inputs_are_drawn_for_each_record():
    schema = Schema({"a": Image(3, 1, drop_prob=0.5), "b": Image(3, 1)}, {"label": Label(classes=2)})
    record = {"a": np.ones((3, 3)), "b": np.ones((3, 3)), "label": 1}
    dropped = [schema.preprocess(record, np.random.default_rng(n), True)["inputs"]["a"] is None for n in range(200)]
    assert 60 < sum(dropped) < 140
    assert not any(schema.preprocess(record, np.random.default_rng(n), False)["inputs"]["a"] is None for n in range(20))


def test_weights_scale_losses():
    schema = Schema({"x": Image(3, 1)}, {"y": Label(classes=3, weight=1.0)})
    import torch

    logits, target = {"y": torch.tensor([[1.0, 2.0, 0.5]])}, {"y": torch.tensor([1])}
    single = schema.losses(logits, target)["y"]
    assert schema.changed("y", weight=0.25).losses(logits, target)["y"] == 0.25 * single


def test_plain_values_are_plain():
    json.dumps(to_plain(TASKS["digits"].recipe()))
