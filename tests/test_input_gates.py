"""Inputs with a gate: added to a trained model, they change nothing until training opens the gate."""

from dataclasses import replace

import pytest
import torch

from perceivers import (
    Config,
    DecoderConfig,
    EncoderConfig,
    Image,
    Label,
    LatentsConfig,
    Numbers,
    Part,
    PerceiverIO,
    ProcessorConfig,
    Schema,
    Series,
)
from perceivers.schema.adapters import CLOSED, log_weight

SERIES = Series(size=11, channels=3, mean=(0.0,), std=(1.0,))
IMAGE = Image(size=(5, 7), channels=2, mean=(0.0,), std=(1.0,), value_range=(0.0, 1.0))
OUTPUTS = {"label": Label(classes=5), "numbers": Numbers(count=3, mean=(0.0,), std=(1.0,))}
SIZES = Config(
    LatentsConfig(num_latents=7, channels=12),
    EncoderConfig(num_heads=2),
    ProcessorConfig(num_layers=2, num_heads=3),
    DecoderConfig(num_heads=2),
)
READS_TWICE = replace(
    SIZES, encoder=replace(SIZES.encoder, num_reads=2), processor=replace(SIZES.processor, num_blocks=2)
)


def built(gate, config=SIZES, **inputs):
    """Return a model of a series and a gated picture, in float64."""
    torch.manual_seed(0)
    schema = Schema({"series": SERIES, "image": replace(IMAGE, gate=gate), **inputs}, OUTPUTS)
    return PerceiverIO(schema, config).eval().double()


def without_image(model):
    """Return a model that never had the picture, with the same weights."""
    schema = Schema({"series": SERIES}, OUTPUTS)
    alone = PerceiverIO(schema, model.config).eval().to(next(model.parameters()).dtype)
    alone.load_state_dict({name: x for name, x in model.state_dict().items() if name in alone.state_dict()})
    return alone


def raw(scale=1.0):
    """Return two samples of both inputs."""
    torch.manual_seed(1)
    return {"series": torch.randn(2, 11, 3).double(), "image": scale * torch.randn(2, 5, 7, 2).double()}


def assert_equal(found, expected):
    """Compare outputs by name within 1e-12 of the largest number."""
    for name, x in expected.items():
        assert (found[name] - x).abs().max() <= 1e-12 * x.abs().max()


@pytest.mark.parametrize("config", [SIZES, READS_TWICE, replace(SIZES, encoder=EncoderConfig(attend_latents=True))])
def test_a_closed_gate_changes_nothing(config):
    model, given = built(True, config), raw(scale=100.0)
    with torch.no_grad():
        expected = without_image(model)({"series": given["series"]})
        assert_equal(model(given), expected)
        assert_equal(model({"series": given["series"]}), expected)
        if config is not READS_TWICE:
            parts = [{"series": given["series"]}, {"image": Part(given["image"][:, :2], start=(0, 0))}]
            parts += [{"image": Part(given["image"][:, 2:], start=(2, 0))}]
            assert_equal(model.decode(model.encode(parts)), expected)


def test_a_closed_gate_changes_nothing_in_float32():
    model, given = built(True).float(), {name: x.float() for name, x in raw().items()}
    with torch.no_grad():
        expected = without_image(model)({"series": given["series"]})
        for name, found in model(given).items():
            torch.testing.assert_close(found, expected[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["dense", "projected", "absorbed", "separable"])
def test_every_algorithm_reads_through_a_gate(algorithm):
    model, given = built(True), raw()
    with torch.no_grad():
        model.input_adapter.gates["image"].fill_(0.7)
        assert_equal(model(given, algorithm=algorithm), model(given))


def test_an_open_gate_is_none():
    gated, plain = built(True), built(False)
    with torch.no_grad():
        gated.input_adapter.gates["image"].fill_(1.0 - CLOSED)
        plain.load_state_dict({name: x for name, x in gated.state_dict().items() if "gates" not in name})
        assert_equal(gated(raw()), plain(raw()))


def test_an_input_behind_a_closed_gate_is_read_where_there_is_no_other():
    gated, given = built(True), {"image": raw()["image"]}
    plain = built(False)
    plain.load_state_dict({name: x for name, x in gated.state_dict().items() if "gates" not in name})
    with torch.no_grad():
        assert_equal(gated(given), plain(given))


def test_training_opens_a_gate():
    torch.manual_seed(0)
    model, given = built(True).float().train(), {name: x.float() for name, x in raw().items()}
    gate = model.input_adapter.gates["image"]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        loss = (model(given)["numbers"] - given["image"].mean((1, 2, 3), keepdim=True)[..., 0, 0]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert gate.grad.isfinite()
        optimiser.step()
    assert log_weight(gate).exp() > 1e-3


def test_shares_and_maps_count_the_gate():
    model, given = built(True), raw()
    with torch.no_grad():
        model.input_adapter.gates["image"].fill_(0.5)  # a token of the picture counts as a quarter of one
        shares = model.read(given).shares()
        maps = model.attention_maps(given)["encoder"]
        plain = built(False)
        plain.load_state_dict({name: x for name, x in model.state_dict().items() if "gates" not in name})
        full = plain.attention_maps(given)["encoder"]
    total = full["series"].sum(-1) + 0.25 * full["image"].sum(-1)
    for name, weight in (("series", 1.0), ("image", 0.25)):
        torch.testing.assert_close(maps[name], weight * full[name] / total[..., None])
        torch.testing.assert_close(shares[name], maps[name].sum(-1))


def test_gates_that_nothing_reads_through_are_refused():
    with pytest.raises(ValueError, match="gate has no effect with role: query"):
        built(False, of=Label(classes=3, role="query", gate=True))
    for name, value in (("gate", True), ("role", "query")):
        with pytest.raises(ValueError, match=f"^outputs.label: {name} is for inputs: leave it out$"):
            Schema({"image": IMAGE}, {"label": Label(classes=3, **{name: value})})
    with pytest.raises(ValueError, match="not for trunk: transformer"):
        PerceiverIO(Schema({"image": replace(IMAGE, gate=True)}, OUTPUTS), Config(trunk="transformer"))


def test_a_hook_that_a_gate_would_bypass_is_an_error():
    model = built(True)
    attention = model.trunk.encoder[0].cross_attention.attention
    hook = attention.register_forward_hook(lambda module, given, found: None)
    with pytest.raises(ValueError, match="a hook on Attention needs all that it is given"):
        model(raw())
    hook.remove()
    model(raw())
