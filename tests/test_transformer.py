"""The Transformer trunk, to which Perceiver IO is compared, on the same inputs and outputs."""

from dataclasses import replace

import pytest
import torch

from perceivers import Config, Label, LatentsConfig, Numbers, PerceiverIO, PointSet, ProcessorConfig, Schema
from perceivers.core.config import DecoderConfig, EncoderConfig
from perceivers.core.fast.plan_report import attention_plan
from perceivers.core.resampler import Resampler, as_tokens
from perceivers.core.trunk import Transformer
from perceivers.runs.flops import costs
from perceivers.runs.summary import describe
from perceivers.schema.preset import Preset

B = 2
CONFIG = Config(LatentsConfig(channels=12), processor=ProcessorConfig(num_heads=3, num_layers=2), trunk="transformer")
SCHEMA = Schema(
    inputs={"points": PointSet(axes=2, channels=1), "weather": Numbers(count=3)},
    outputs={"label": Label(classes=5), "next": Numbers(count=2)},
)


@pytest.fixture(params=["query", "average"])
def model(request):
    torch.manual_seed(0)
    if request.param == "query":
        return PerceiverIO(SCHEMA, CONFIG).eval()
    config = replace(CONFIG, decoder=DecoderConfig(kind="average"))
    model = PerceiverIO(Schema(SCHEMA.inputs, {"label": Label(classes=5)}), config)
    torch.nn.init.normal_(model.output_adapter.adapters["label"].head.weight)
    return model.eval()


def raw(count):
    generator = torch.Generator().manual_seed(1)
    points = {
        "coordinates": torch.rand(B, 11, 2, generator=generator)[:, :count],
        "values": torch.rand(B, 11, 1, generator=generator)[:, :count],
        "mask": (torch.arange(11) < torch.tensor([[7], [5]]))[:, :count],
    }
    return {"points": points, "weather": torch.rand(B, 3, generator=generator)}


def test_each_token_is_a_latent(model):
    encoded = model.encode(raw(11))
    assert encoded.latents.shape == (B, 12, 12)
    assert encoded.mask.sum(-1).tolist() == [8, 6]


def test_what_does_not_exist_counts_nowhere(model):
    """The content and number of absent tokens have no effect."""
    changed = raw(11)
    changed["points"]["values"][~changed["points"]["mask"]] = 1e3
    whole, other, shorter = (model(inputs) for inputs in (raw(11), changed, raw(7)))
    for found in (other, shorter):
        torch.testing.assert_close(found["label"], whole["label"])


def test_tokens_see_one_another():
    torch.manual_seed(0)
    trunk = Transformer(CONFIG, 5).eval()
    tokens = torch.randn(1, 7, 5)
    changed = tokens.clone()
    changed[:, 3] += 1
    before, after = (trunk(as_tokens(x, None, 5, x.device)).array for x in (tokens, changed))
    moved = (before - after).abs().amax(-1)
    assert (moved > 0).all()


def test_it_cannot_do_what_only_latents_can():
    model = PerceiverIO(SCHEMA, CONFIG).eval()
    for call in (
        lambda: model.encode(raw(11), memory_limit=10**9),
        lambda: model.encode(raw(11), algorithm="projected"),
        lambda: model.read(raw(11)),
        lambda: attention_plan(model, raw(11)),
    ):
        with pytest.raises(ValueError, match="a transformer"):
            call()


def test_attention_maps_are_the_decoders_alone():
    maps = PerceiverIO(SCHEMA, CONFIG).eval().attention_maps(raw(11))
    assert list(maps) == ["decoder"]
    label = maps["decoder"]["label"]
    assert label.shape == (B, 1, 1, 12)
    assert (label[0, 0, 0, 7:11] == 0).all()


def test_its_cost_is_counted():
    preset = Preset(SCHEMA, CONFIG)
    found = describe(preset, 1)
    assert found.latents == (sum(rows.size for rows in found.inputs.values()), 12)
    assert sum(parameters for parameters, _ in costs(preset).stages.values()) == costs(preset).parameters


@pytest.mark.parametrize(
    "config",
    [
        lambda: Config(LatentsConfig(num_latents=7), trunk="transformer"),
        lambda: Config(encoder=EncoderConfig(num_heads=2), trunk="transformer"),
        lambda: Resampler(Config(decoder=DecoderConfig(num_heads=2)), 5),
    ],
    ids=["latents", "encoder", "decoder"],
)
def test_settings_without_effect_warn(config):
    with pytest.warns(UserWarning, match="no effect"):
        config()


def test_settings_with_an_effect_do_not_warn():
    Config(LatentsConfig(channels=24), EncoderConfig(channel_alignment="pad", min_padding=3), trunk="transformer")
    Resampler(Config(LatentsConfig(7, 8), EncoderConfig(num_heads=2), ProcessorConfig(num_heads=2)), 6)
