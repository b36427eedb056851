"""Weights of POYO, 3DShape2VecSet and two resamplers in our models: as recorded, side by side, and by formulas."""

import argparse
import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from perceivers import Coordinates, PerceiverIO, Resampler, from_pretrained, from_state_dict, save_pretrained
from perceivers.core.config import EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.resampler import ResamplerConfig
from perceivers.files.tensor_files import save_tensors
from perceivers.pretrained.foreign import read_torch
from perceivers.pretrained.relatives import RELATIVES, poyo, read_relative, vecset
from perceivers.runs.run import find_model
from reference_files import read, relative_error, under

TOLERANCE = 1e-5

POYO = {"sequence_length": 1.0, "latent_step": 0.125}
VECSET = {"num_latents": 7, "heads": 2}
SETTINGS = {"poyo": ("poyo", POYO), "vecset": ("vecset", VECSET), "vecset_kl": ("vecset", VECSET)}
"""The model of each recording, and what its arrays do not tell."""

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def converted(name, **changes):
    """Return a recorded model as ours."""
    model, settings = SETTINGS[name]
    return from_state_dict(model, under("param:", read(name)), **settings | changes)


def spikes_of(given):
    names = {"unit": "input_unit_index", "type": "input_token_type", "time": "input_timestamps", "mask": "input_mask"}
    return {name: given[theirs] for name, theirs in names.items()}


def question(name, given):
    """Return raw inputs and points as a user gives them."""
    if name == "poyo":
        raw = {"spikes": spikes_of(given), "session": given["session_index"]}
        return raw, {"readout": Coordinates(given["output_timestamps"][..., None])}
    return {"points": given["points"]}, {"occupancy": Coordinates(given["queries"])}


def ask(name, model, **options):
    """Return our output for the recorded inputs."""
    with torch.no_grad():
        (output,) = model(*question(name, under("in:", read(name))), **options).values()
    return output


def random_state(shapes):
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


# Recordings


@pytest.mark.parametrize(
    "options",
    [{}, *({"algorithm": name} for name in ("dense", "projected", "absorbed")), {"memory_limit": "80KB"}],
    ids=str,
)
@pytest.mark.parametrize("name", SETTINGS)
def test_recorded_models_compute_what_was_recorded(name, options):
    model = converted(name)
    assert relative_error(ask(name, model, **options), read(name)["out:y"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["vecset", "vecset_kl"])
def test_the_folded_algorithm_and_chosen_points_too(name):
    model, recorded = converted(name), read(name)
    chosen = recorded["in:chosen"]
    for options in ({"algorithm": "absorbed-folded"}, {"latents": chosen}):
        assert relative_error(ask(name, model, **options), recorded["out:y"]) <= TOLERANCE
    other = ask(name, model, latents=chosen.flip(1).roll(1, 0))
    assert relative_error(other, recorded["out:y"]) > 1e-3


def test_latents_of_points_before_the_tower():
    model, recorded = converted("vecset"), read("vecset")
    tokens = model.tokens({"points": recorded["in:points"]})[0]
    with torch.no_grad():
        latents = model.trunk.encoder[0](model.trunk.start(tokens), tokens)
    assert relative_error(latents.array, recorded["out:latents"]) <= TOLERANCE


def test_the_bottleneck_is_the_recorded_one():
    model, recorded = converted("vecset_kl"), read("vecset_kl")
    with torch.no_grad():
        posterior = model.encode({"points": recorded["in:points"]}).posterior
    found = {"mean": posterior.mean, "logvar": posterior.log_variance, "kl": posterior.kl()}
    for name, x in found.items():
        assert relative_error(x, recorded[f"out:{name}"]) <= TOLERANCE, name


def test_the_frequencies_are_the_recorded_bits():
    model, omega = converted("poyo"), read("poyo")["param:rotary_emb.omega"]
    found = [x for name, x in model.named_buffers() if name.endswith("rotary.frequencies")]
    assert len(found) == 4
    assert all(torch.equal(x, omega[None, :4]) for x in found)
    (axis,) = model.config.encoder.rotary.axes
    assert (axis.min_wavelength, axis.max_wavelength) == (1e-4, 2.0627)
    assert model.trunk.start().coordinates["time"][0].unique().tolist() == [0.125 * (k + 0.5) for k in range(8)]


@pytest.mark.parametrize("options", [{}, {"algorithm": "dense"}])
def test_a_sample_alone_is_the_sample_in_a_padded_batch(options):
    model, given = converted("poyo"), under("in:", read("poyo"))
    whole = ask("poyo", model, **options)
    for sample, count in enumerate(given["input_mask"].sum(1)):
        one = {name: x[sample : sample + 1] for name, x in given.items()}
        one |= {name: x[:, :count] for name, x in one.items() if name.startswith("input_")}
        with torch.no_grad():
            (found,) = model(*question("poyo", one), **options).values()
        torch.testing.assert_close(found, whole[sample : sample + 1], **CLOSE)


@pytest.mark.parametrize("name", ["vecset", "vecset_kl"])
def test_a_cloud_alone_is_the_cloud_in_a_padded_batch(name):
    model, given = converted(name), under("in:", read(name))
    mask = torch.arange(29) < torch.tensor([[29], [19]])
    padded = torch.where(mask[..., None], given["points"], torch.nan)
    points = {"occupancy": Coordinates(given["queries"])}
    with torch.no_grad():
        whole = model({"points": {"coordinates": padded, "mask": mask}}, points)["occupancy"]
        alone = model({"points": given["points"][1:, :19]}, {"occupancy": Coordinates(given["queries"][1:])})
    torch.testing.assert_close(whole[1:], alone["occupancy"], **CLOSE)
    torch.testing.assert_close(whole[:1], ask(name, model)[:1], **CLOSE)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_parameter_has_a_gradient(name):
    model = converted(name).train()
    raw, points = question(name, under("in:", read(name)))
    encoded = model.encode(raw)
    (output,) = model.decode(encoded, points).values()
    loss = output.square().sum() + (0 if encoded.posterior is None else encoded.posterior.kl().sum())
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", ["poyo", "vecset_kl"])
def test_tables_and_plans_of_converted_models(command, name, tmp_path):
    save_pretrained(converted(name), tmp_path / "model")
    code, out, _ = command("plan", tmp_path / "model", "--json")
    plans = json.loads(out)
    assert code == 0
    assert plans[0]["name"] == ("read spikes" if name == "poyo" else "read points")
    assert len(plans) == 2  # the session is not read
    rows = {
        "poyo": {"spikes": [{"unit": 3, "type": 0, "time": 0.2}], "session": 2, "readout": [[0.5], [0.7], [0.9]]},
        "vecset_kl": {"points": [[0.5, 0.1, 0.2], [0.7, -0.1, 0.1]], "occupancy": [[0.5, 0.1, 0.2]]},
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[name]) + "\n")
    code, _, _ = command("predict", tmp_path / "model", tmp_path / "a.jsonl", "--out", tmp_path / "b.jsonl")
    found = json.loads((tmp_path / "b.jsonl").read_text())
    assert code == 0
    assert np.shape(next(iter(found.values()))) == ((3, 3) if name == "poyo" else (1, 1))


# Other sizes, by formulas


def attended(q, k, v, heads, mask=None):
    """Return the attention of queries [B, T, H d] to keys and values [B, S, H d]."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    scores = scores if mask is None else scores.masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)


def turned(x, times, omega, heads):
    """Return channels [B, T, H d] of which pairs are complex numbers, times exp(i time omega)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (heads, -1, 2)).contiguous())
    angles = torch.exp(1j * times[..., None, None] * omega)
    return torch.view_as_real(pairs * angles).flatten(-3)


class Theirs:
    """Functions of a state dict."""

    def __init__(self, state):
        self.state = state

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def mlp(self, norm, first, last, x):
        values, gates = self.linear(first, self.norm(norm, x)).chunk(2, -1)
        return self.linear(last, values * F.gelu(gates))


FOURS = dict.fromkeys(("encoder", "processor", "decoder"), 4)
OTHERS = {"encoder": 3, "processor": 4, "decoder": 2}


def poyo_by_hand(state, given, steps, heads):
    """Return the output of a POYO from its formulas; `heads` of reading, processing and writing."""
    theirs, omega = Theirs(state), state["rotary_emb.omega"]
    batch = len(given["session_index"])

    def cross(name, x, tokens, x_times, times, heads, values, mask=None):
        q = theirs.linear(f"{name}_atn.to_q", theirs.norm(f"{name}_atn.norm", x))
        k, v = theirs.linear(f"{name}_atn.to_kv", theirs.norm(f"{name}_atn.norm_context", tokens)).chunk(2, -1)
        q, k = turned(q, x_times, omega, heads), turned(k, times, omega, heads)
        found = attended(q, k, turned(v, times, omega, heads) if values else v, heads, mask)
        x = x + theirs.linear(f"{name}_atn.to_out", turned(found, -x_times, omega, heads) if values else found)
        return x + theirs.mlp(f"{name}_ffn.0", f"{name}_ffn.1.net.0", f"{name}_ffn.1.net.3", x)

    per_step = len(state["latent_emb.weight"])
    latents = state["latent_emb.weight"].repeat(len(steps), 1).expand(batch, -1, -1)
    places = steps.repeat_interleave(per_step).expand(batch, -1)
    tokens = state["unit_emb.weight"][given["input_unit_index"]]
    tokens = tokens + state["token_type_emb.weight"][given["input_token_type"]]
    x = cross("enc", latents, tokens, places, given["input_timestamps"], heads[0], True, given["input_mask"])
    for layer in range(sum(name.endswith("to_qkv.weight") for name in state)):
        name = f"proc_layers.{layer}"
        q, k, v = theirs.linear(f"{name}.0.to_qkv", theirs.norm(f"{name}.0.norm", x)).chunk(3, -1)
        found = attended(*(turned(part, places, omega, heads[1]) for part in (q, k, v)), heads[1])
        x = x + theirs.linear(f"{name}.0.to_out", turned(found, -places, omega, heads[1]))
        x = x + theirs.mlp(f"{name}.1.0", f"{name}.1.1.net.0", f"{name}.1.1.net.3", x)
    times = given["output_timestamps"]
    queries = state["session_emb.weight"][given["session_index"]][:, None].expand(-1, times.shape[1], -1)
    return theirs.linear("readout", cross("dec", queries, x, times, places, heads[2], False))


POYOS = {
    "more heads": (poyo.Sizes(30, 2, {}, 1, 20, {"encoder": 40, "processor": 60, "decoder": 20}, FOURS, 3), 5),
    "fewer pairs": (poyo.Sizes(16, 3, {}, 5, 14, {"encoder": 14, "processor": 42, "decoder": 28}, OTHERS, 1), 3),
    "no tower": (poyo.Sizes(6, 1, {}, 2, 4, {"encoder": 4, "processor": 4, "decoder": 8}, FOURS, 0), 1),
}
"""Sizes of a POYO, and how many pairs of a head's channels are rotated."""


@pytest.mark.parametrize("name", POYOS)
def test_poyos_of_other_sizes(name):
    sizes, pairs = POYOS[name]
    rows = {"unit_emb.weight": 11, "session_emb.weight": 41, "token_type_emb.weight": 5}
    sizes = replace(sizes, rows=rows)
    state = random_state(poyo.poyo_shapes(sizes))
    periods = torch.logspace(-2, 1, pairs)
    state["rotary_emb.omega"] = F.pad(2 * torch.pi / periods, (0, sizes.head // 2 - pairs))
    given = {
        "input_unit_index": torch.randint(11, (2, 13)),
        "input_token_type": torch.randint(5, (2, 13)),
        "input_timestamps": 1.7 * torch.rand(2, 13),
        "input_mask": torch.arange(13) < torch.tensor([[13], [7]]),
        "session_index": torch.tensor([40, 3]),
        "output_timestamps": 1.7 * torch.rand(2, 5),
    }
    heads = [width // sizes.head for width in sizes.inner.values()]
    steps = torch.tensor([0.25, 0.75, 1.25, 1.75])  # of a window of 1.7 s
    expected = poyo_by_hand(state, given, steps, heads)
    model = from_state_dict("poyo", state, sequence_length=1.7, latent_step=0.5)
    config = model.config
    assert [config.encoder.num_heads, config.processor.num_heads, config.decoder.num_heads] == heads
    assert config.encoder.rotary.axes[0].min_wavelength == 0.01
    for options in ({}, {"algorithm": "dense"}):
        with torch.no_grad():
            (found,) = model(*question("poyo", given), **options).values()
        assert relative_error(found, expected) <= TOLERANCE


def vecset_by_hand(state, points, chosen, queries, heads):
    """Return mean, log-variance (None without a bottleneck) and output of a 3DShape2VecSet from its formulas."""
    theirs = Theirs(state)

    def embedded(x):
        angles = x @ state["point_embed.basis"]
        return theirs.linear("point_embed.mlp", torch.cat([angles.sin(), angles.cos(), x], -1))

    def attend(name, x, tokens, heads):
        k, v = theirs.linear(f"{name}.fn.to_kv", tokens).chunk(2, -1)
        q = theirs.linear(f"{name}.fn.to_q", theirs.norm(f"{name}.norm", x))
        return theirs.linear(f"{name}.fn.to_out", attended(q, k, v, heads))

    def mlp(name, x):
        return theirs.mlp(f"{name}.norm", f"{name}.fn.net.0", f"{name}.fn.net.2", x)

    x, mean, log_variance = embedded(points.gather(1, chosen[..., None].expand(-1, -1, points.shape[-1]))), None, None
    read, written = "cross_attend_blocks", "decoder_cross_attn"
    x = x + attend(f"{read}.0", x, theirs.norm(f"{read}.0.norm_context", embedded(points)), 1)
    x = x + mlp(f"{read}.1", x)
    if "mean_fc.weight" in state:
        mean, log_variance = theirs.linear("mean_fc", x), theirs.linear("logvar_fc", x)
        x = theirs.linear("proj", mean)
    for layer in range(sum(name.startswith("layers.") and name.endswith("to_q.weight") for name in state)):
        x = x + attend(f"layers.{layer}.0", x, theirs.norm(f"layers.{layer}.0.norm", x), heads)
        x = x + mlp(f"layers.{layer}.1", x)
    y = attend(written, embedded(queries), theirs.norm(f"{written}.norm_context", x), 1)
    y = y + mlp("decoder_ff", y) if "decoder_ff.norm.weight" in state else y
    return mean, log_variance, theirs.linear("to_outputs", y)


def octaves(axes, bands):
    return torch.block_diag(*[torch.pi * 2.0 ** torch.arange(bands)[None]] * axes)


VECSETS = {
    "plane, KL": (vecset.Sizes(2, 5, 20, 3, 1, 42, (4, 4, 4), 3), {"heads": 3}),
    "space, wide": (vecset.Sizes(3, 7, 26, 1, 3, 33, (4, 4, 0), None), {"dim_head": 11}),
    "line, other MLPs": (vecset.Sizes(1, 3, 10, 2, 2, 10, (2, 3, 1), 13), {"heads": 5, "dim_head": 2}),
    "no tower": (vecset.Sizes(3, 1, 6, 1, 0, 6, (4, 0, 4), None), {}),
}


@pytest.mark.parametrize("name", VECSETS)
def test_vecsets_of_other_sizes(name):
    sizes, settings = VECSETS[name]
    state = random_state(vecset.vecset_shapes(sizes)) | {"point_embed.basis": octaves(sizes.axes, sizes.bands)}
    points, queries = 2 * torch.rand(2, 23, sizes.axes) - 1, 2 * torch.rand(2, 5, sizes.axes) - 1
    chosen = torch.stack([torch.randperm(23)[:11] for _ in range(2)])
    model = from_state_dict("vecset", state, num_latents=11, **settings)
    heads = model.config.processor.num_heads
    mean, log_variance, expected = vecset_by_hand(state, points, chosen, queries, heads)
    with torch.no_grad():
        encoded = model.encode({"points": points}, latents=chosen)
        output = model.decode(encoded, {"occupancy": Coordinates(queries)})["occupancy"]
    assert relative_error(output, expected) <= TOLERANCE
    if mean is not None:
        assert relative_error(encoded.posterior.mean, mean) <= TOLERANCE
        assert relative_error(encoded.posterior.log_variance, log_variance) <= TOLERANCE


def test_tied_layers_are_read_as_copies():
    state = under("param:", read("vecset"))
    tied = {name.replace("layers.0.", "layers.1."): x for name, x in state.items() if name.startswith("layers.0.")}
    model = from_state_dict("vecset", state | tied, **VECSET)
    one, two = model.trunk.processor[0].layers
    assert torch.equal(one.attention.query.weight, two.attention.query.weight)
    assert one.attention.query.weight.data_ptr() != two.attention.query.weight.data_ptr()


# Resamplers

IDEFICS = {
    "grouped heads": {"hidden_size": 24, "resampler_n_latents": 7, "resampler_depth": 3, "resampler_n_heads": 4}
    | {"resampler_head_dim": 6, "num_key_value_heads": 2},
    "one layer": {"hidden_size": 14, "resampler_n_latents": 1, "resampler_depth": 1, "resampler_n_heads": 3}
    | {"resampler_head_dim": 5, "num_key_value_heads": 3, "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-2},
    "one head of keys": {"hidden_size": 10, "resampler_n_latents": 11, "resampler_depth": 2, "resampler_n_heads": 5}
    | {"resampler_head_dim": 7, "num_key_value_heads": 1, "hidden_act": "relu"},
}


def their_idefics2(sizes):
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
    from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

    config = Idefics2PerceiverConfig(**sizes)
    config._attn_implementation = "eager"
    model = Idefics2PerceiverResampler(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model


def settings_of(sizes):
    """Return what shapes do not tell of these sizes."""
    names = ("resampler_n_heads", "hidden_act", "rms_norm_eps")
    return {name: sizes[name] for name in names if name in sizes}


@pytest.mark.prints_warnings  # torchao, which transformers imports, warns of deprecations
@pytest.mark.parametrize("prefix", ["", "model.connector.perceiver_resampler."])
@pytest.mark.parametrize("name", IDEFICS)
def test_idefics2_side_by_side(name, prefix):
    sizes = IDEFICS[name]
    theirs = their_idefics2(sizes)
    state = {prefix + key: x for key, x in theirs.state_dict().items()}
    state |= {"model.text_model.layers.0.input_layernorm.weight": torch.ones(3)} if prefix else {}
    ours = from_state_dict("idefics2", state, **settings_of(sizes))
    assert isinstance(ours, Resampler)
    tokens, mask = torch.randn(3, 13, sizes["hidden_size"]), torch.rand(3, 13) > 0.4
    mask[2] = False  # only the latents remain
    with torch.no_grad():
        for given in (mask, torch.ones(3, 13).bool()):
            expected = theirs(tokens, given.long())
            assert relative_error(ours(tokens, given), expected) <= TOLERANCE
            assert relative_error(ours(tokens, given.long()), expected) <= TOLERANCE
        assert relative_error(ours(tokens), expected) <= TOLERANCE


FLAMINGOS = {
    "small": {"dim": 24, "depth": 2, "dim_head": 5, "heads": 3, "num_latents": 7, "num_media_embeds": 4},
    "deep": {"dim": 10, "depth": 5, "dim_head": 7, "heads": 1, "num_latents": 3, "num_media_embeds": 2, "ff_mult": 3},
    "defaults": {"dim": 13, "depth": 1},
}


def their_flamingo(sizes):
    from flamingo_pytorch import PerceiverResampler

    model = PerceiverResampler(**sizes).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return model


def heads_of(sizes):
    return {"heads": sizes["heads"]} if "heads" in sizes else {}


@pytest.mark.parametrize("prefix", ["", "perceiver_resampler."])
@pytest.mark.parametrize("name", FLAMINGOS)
def test_flamingo_side_by_side(name, prefix):
    sizes = FLAMINGOS[name]
    theirs = their_flamingo(sizes)
    state = {prefix + key: x for key, x in theirs.state_dict().items()}
    state |= {"lm.layers.0.0.to_q.weight": torch.ones(3)} if prefix else {}
    ours = from_state_dict("flamingo", state, **heads_of(sizes))
    times = sizes.get("num_media_embeds", 4)
    with torch.no_grad():
        for count in (times, 1):
            tokens = torch.randn(2, count, 11, sizes["dim"])
            assert relative_error(ours(tokens), theirs(tokens)) <= TOLERANCE
        picture = torch.randn(2, 11, sizes["dim"])
        assert relative_error(ours(picture), theirs(picture)[:, 0]) <= TOLERANCE
    with pytest.raises(ValueError, match=f"{times + 1} times are more than max_times = {times}"):
        ours(torch.zeros(1, times + 1, 2, sizes["dim"]))


def test_a_mask_of_a_flamingo_is_as_if_the_tokens_were_not_there():
    sizes = FLAMINGOS["small"]
    ours = from_state_dict("flamingo", their_flamingo(sizes).state_dict(), heads=3)
    tokens, mask = torch.randn(2, 3, 11, 24), torch.rand(2, 3, 11) > 0.4
    with torch.no_grad():
        whole = ours(torch.where(mask[..., None], tokens, torch.nan), mask)
        for sample in range(2):
            alone = ours(tokens[sample : sample + 1, :1, mask[sample, 0]])
            torch.testing.assert_close(whole[sample : sample + 1, :1], alone, **CLOSE)


# Files


def saved_state(name):
    """Return arrays and settings of each model, small and random."""
    if name == "flamingo":
        return their_flamingo(FLAMINGOS["small"]).state_dict(), {"heads": 3}
    if name == "idefics2":
        return their_idefics2(IDEFICS["grouped heads"]).state_dict(), {"resampler_n_heads": 4}
    return under("param:", read(name)), SETTINGS[name][1]


def assert_same(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in one.state_dict().items())
    assert one.config == other.config


@pytest.mark.prints_warnings  # torchao's, as above
@pytest.mark.parametrize("model", RELATIVES)
def test_convert_writes_a_folder_that_loads(command, model, tmp_path):
    state, settings = saved_state(model)
    expected = from_state_dict(model, state, **settings)
    torch.save(dict(state), tmp_path / "a.pt")
    save_tensors(tmp_path / "b.safetensors", state)
    torch.save({"model": OrderedDict(state), "epoch": 3}, tmp_path / "c.ckpt")
    (tmp_path / "d").mkdir()
    torch.save(state, tmp_path / "d" / "pytorch_model.bin")
    given = [f"{name}={value}" for name, value in settings.items()]
    for source in ("a.pt", "b.safetensors", "c.ckpt", "d"):
        dest = tmp_path / f"of-{source}"
        code, out, err = command("convert", tmp_path / source, dest, "--model", model, "--set", *given)
        assert (code, err) == (0, "")
        assert out == f"Written: {dest}, {sum(x.numel() for x in expected.parameters()):,} parameters\n"
        loaded = from_pretrained(dest)
        assert not loaded.training
        assert_same(loaded, expected)
    if isinstance(expected, PerceiverIO):
        assert loaded.schema == expected.schema
        assert find_model(str(dest)).config == expected.config


def training_checkpoint(state, prefix=""):
    """Return what a trainer saves: weights, an optimiser of two groups, arguments, plain values."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    groups = [{"params": [parameters[0]], "weight_decay": 0.0}, {"params": [parameters[1]], "lr": 0.1}]
    optimiser = torch.optim.AdamW(groups)
    sum(x.sum() for x in parameters).backward()
    optimiser.step()
    return {
        "state_dict": OrderedDict((prefix + name, x) for name, x in state.items()),
        "epoch": 3,
        "optimizer_states": [optimiser.state_dict()],
        "args": argparse.Namespace(batch_size=7, betas=(0.9, 0.95), output_dir="x", lr=None),
        "callbacks": {"best": {"score": torch.tensor(0.5), "paths": ["a", "b"]}},
    }


def test_a_checkpoint_of_training_is_read(tmp_path):
    state = under("param:", read("vecset"))
    torch.save(training_checkpoint(state, "module."), tmp_path / "a.pth")
    found = read_relative(tmp_path / "a.pth", "vecset", ["num_latents=7", "heads=2"])
    assert_same(found, converted("vecset"))
    with pytest.raises(ValueError, match=r"a\.pth: names argparse\.Namespace, which has no place"):
        read_torch(tmp_path / "a.pth")


def vocabulary(*names):
    return OrderedDict(zip(names, range(len(names)), strict=True))


def test_a_checkpoint_of_poyo_gives_names_and_settings(tmp_path):
    state = under("param:", read("poyo"))
    units = vocabulary("NA", *(f"unit {number}" for number in range(11)))
    sessions = OrderedDict([("c", 3), ("NA", 0), ("a", 1), ("b", 2)])
    state |= {"unit_emb.vocab": units, "session_emb.vocab": sessions}
    checkpoint = training_checkpoint(state, "model.") | {"hyper_parameters": {"model": {**POYO, "dim": 32}}}
    torch.save(checkpoint, tmp_path / "a.ckpt")
    model = read_relative(tmp_path / "a.ckpt", "poyo")
    assert model.schema.inputs["session"].classes == ("NA", "a", "b", "c")
    assert model.schema.inputs["spikes"].fields["unit"].classes == tuple(units)
    assert relative_error(ask("poyo", model), read("poyo")["out:y"]) <= TOLERANCE
    # Names in a record are rows of the embeddings; an unknown name is POYO's "NA".
    spikes = [{"unit": "unit 4", "type": 1, "time": 0.3}, {"unit": "new", "type": 0, "time": 0.7}]
    record = {"spikes": spikes, "session": "b", "readout": {"coordinates": [[0.5]], "values": [[0.0] * 3]}}
    sample = model.schema.preprocess(record, np.random.default_rng(0), training=False)
    named = model.schema.collate([sample])
    rows = {"unit": torch.tensor([[5, 0]]), "type": torch.tensor([[1, 0]]), "time": torch.tensor([[0.3, 0.7]])}
    points = {"readout": Coordinates(torch.tensor([[0.5]]))}
    with torch.no_grad():
        found = model(named["inputs"], points)["readout"]
        torch.testing.assert_close(found, model({"spikes": rows, "session": torch.tensor([2])}, points)["readout"])
    with pytest.raises(ValueError, match=r"set: latent_step = 0\.25, but the file says 0\.125"):
        read_relative(tmp_path / "a.ckpt", "poyo", ["latent_step=0.25"])
    assert read_relative(tmp_path / "a.ckpt", "poyo", ["latent_step=0.125"]).config == model.config


@pytest.mark.prints_warnings  # torchao's, as above
def test_config_json_beside_an_idefics2_gives_its_settings(tmp_path):
    sizes = IDEFICS["one layer"]
    theirs = their_idefics2(sizes)
    save_tensors(tmp_path / "model.safetensors", theirs.state_dict())
    config = {"model_type": "idefics2", "num_key_value_heads": 8, "perceiver_config": {"x": 1, **sizes}}
    expected = from_state_dict("idefics2", theirs.state_dict(), **settings_of(sizes))
    for content in (config, {"model_type": "idefics2_perceiver", **sizes}):
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert_same(read_relative(tmp_path, "idefics2"), expected)
        assert_same(read_relative(tmp_path / "model.safetensors", "idefics2"), expected)
    with pytest.raises(ValueError, match="set: hidden_act = 'relu', but the file says 'gelu_pytorch_tanh'"):
        read_relative(tmp_path, "idefics2", ["hidden_act=relu"])
    (tmp_path / "config.json").write_text(json.dumps(config | {"perceiver_config": {}}))
    with pytest.raises(ValueError, match="resampler_n_heads is missing"):
        read_relative(tmp_path, "idefics2")


# Resamplers as model folders


def small_resampler():
    encoder = EncoderConfig(num_heads=3, qk_channels=15, input_channels=12, attend_latents=True)
    processor = ProcessorConfig(num_heads=3, num_layers=2, final_norm=True)
    config = ResamplerConfig(LatentsConfig(5, 12), encoder, processor, max_times=2, output_channels=7)
    return Resampler(config, 11).eval()


def test_a_resampler_is_saved_and_loaded(tmp_path):
    model, tokens = small_resampler(), torch.randn(2, 13, 11)
    save_pretrained(model, tmp_path / "a")
    again = from_pretrained(tmp_path / "a")
    assert isinstance(again, Resampler)
    assert again.input_channels == 11
    assert_same(again, model)
    assert torch.equal(again(tokens), model(tokens))
    description = json.loads((tmp_path / "a" / "model.json").read_text())
    assert description.keys() == {"format", "perceivers", "resampler"}
    assert description["resampler"]["input_channels"] == 11
    assert "A resampler of" in (tmp_path / "a" / "README.md").read_text()
    compiled = torch.compile(model, backend="eager")
    save_pretrained(compiled, tmp_path / "b")
    assert_same(from_pretrained(tmp_path / "b"), model)
    with torch.no_grad():
        model.latents[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^model: latents is not finite"):
        save_pretrained(model, tmp_path / "c")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("input_channels",), 0, "input_channels = 0 must be a whole number, at least 1"),
        (("input_channels",), 13, r"projection\.weight is \[12, 11\], the model's is \[12, 13\]"),
        (("input_channels",), 10**14, "projection.weight is"),
        (("config", "latents", "num_latents"), "many", "config.latents.num_latents"),
        (("config", "processor", "num_layers"), 4000, "4001 attention blocks"),
        (("config", "encoder", "num_heads"), 4, "qk_channels = 15 is not a multiple of num_heads = 4"),
        (("config", "max_times"), None, "times is not in the model"),
        (("config", "decoder"), {}, "unknown field"),
        (("config",), 3, "config"),
    ],
)
def test_a_wrong_description_of_a_resampler_is_one_line(path, value, message, tmp_path):
    save_pretrained(small_resampler(), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    *parents, last = path
    node = description["resampler"]
    for name in parents:
        node = node[name]
    node[last] = value
    (tmp_path / "model.json").write_text(json.dumps(description))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=message) as error:
        from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "verb",
    [
        ["predict", "MODEL", "TABLE", "--out", "OUT.csv"],
        ["plan", "MODEL"],
        ["convert", "MODEL", "OUT"],
        ["evaluate", "MODEL", "--on", "DATA"],
    ],
    ids=lambda verb: verb[0],
)
def test_verbs_that_need_a_schema_say_what_it_is(command, verb, tmp_path):
    save_pretrained(small_resampler(), tmp_path / "model")
    (tmp_path / "a.csv").write_text("x\n1\n")
    (tmp_path / "data.yaml").write_text(f"data: {{a: {{kind: table, file: {tmp_path / 'a.csv'}}}}}\n")
    places = {"MODEL": "model", "TABLE": "a.csv", "OUT": "out", "OUT.csv": "out.csv", "DATA": "data.yaml"}
    code, _, err = command(*(tmp_path / places[word] if word in places else word for word in verb))
    assert code == 2
    assert f"{tmp_path / 'model'} is a resampler, which has no schema: use it in Python" in err
    assert len(err.strip().splitlines()) == 1


# Wrong files, wrong settings


def changed(name, **changes):
    """Return the arrays of a recording without some (None), or with others."""
    state = under("param:", read(name)) | {key.replace("__", "."): x for key, x in changes.items()}
    return {key: x for key, x in state.items() if x is not None}


def zeros(*shape):
    return torch.zeros(shape)


OMEGA = read("poyo")["param:rotary_emb.omega"]

WRONG = {
    "a missing array": (
        "poyo",
        changed("poyo", proc_layers__1__0__norm__bias=None),
        r"^proc_layers\.1\.0\.norm\.bias is mi",
    ),
    "a missing layer": (
        "poyo",
        changed("poyo", proc_layers__7__0__x=zeros(2)),
        r"^proc_layers\.2\.0\.to_qkv\.weight is m",
    ),
    "the mark": ("poyo", changed("poyo", latent_emb__weight=None), r"^latent_emb\.weight is missing: POYO has it$"),
    "no frequencies": ("poyo", changed("poyo", rotary_emb__omega=None), r"^rotary_emb\.omega is missing: POYO has it$"),
    "left over": (
        "poyo",
        changed("poyo", extra__weight=zeros(2)),
        r"^extra\.weight is left over: POYO has no place for it",
    ),
    "a wrong width": (
        "poyo",
        changed("poyo", session_emb__weight=zeros(4, 31)),
        r"^session_emb\.weight has shape \[4, 31\]; with the sizes of the other arrays it should be \[4, 32\]$",
    ),
    "a wrong vector": (
        "poyo",
        changed("poyo", dec_ffn__1__net__0__bias=zeros(2)),
        r"^dec_ffn\.1\.net\.0\.bias has shape \[2\];",
    ),
    "a wrong latent": (
        "poyo",
        changed("poyo", latent_emb__weight=zeros(4, 31)),
        r"^enc_ffn\.1\.net\.3\.weight: 128 channels are no multiple of the 31 channels of latent_emb\.weight$",
    ),
    "a wrong head": (
        "poyo",
        changed("poyo", rotary_emb__omega=OMEGA[:6]),
        r"^enc_atn\.to_out\.weight: 32 channels are no multiple of the 12 channels of a head, two for each of rotary",
    ),
    "too few axes": (
        "poyo",
        changed("poyo", readout__weight=zeros(3)),
        r"^readout\.weight has shape \[3\]; it should have 2",
    ),
    "an empty axis": (
        "poyo",
        changed("poyo", readout__weight=zeros(0, 32)),
        r"^readout\.weight has shape \[0, 32\]; it sh",
    ),
    "whole numbers": (
        "poyo",
        changed("poyo", readout__bias=zeros(3).int()),
        r"^readout\.bias is of torch\.int32: it should",
    ),
    "no tensor": ("poyo", changed("poyo", readout__bias=[1, 2, 3]), r"^readout\.bias is a list: it should be a tensor"),
    "no rotated pair": (
        "poyo",
        changed("poyo", rotary_emb__omega=zeros(8)),
        r"^rotary_emb\.omega: \[0\.0, .* should be numbers",
    ),
    "turned frequencies": (
        "poyo",
        changed("poyo", rotary_emb__omega=OMEGA.flip(0)),
        r"^rotary_emb\.omega: .* should be num",
    ),
    "frequencies of NaN": (
        "poyo",
        changed("poyo", rotary_emb__omega=OMEGA / 0),
        r"^rotary_emb\.omega: .* should be num",
    ),
    "a short vocabulary": (
        "poyo",
        changed("poyo", unit_emb__vocab={"a": 0}),
        r"^unit_emb\.vocab should be a table of names to",
    ),
    "names twice": (
        "poyo",
        {f"{prefix}.{key}": x for key, x in changed("poyo").items() for prefix in "ab"},
        r"^prefix is missing: there are 2 such models, at 'a\.', 'b\.': give one of these$",
    ),
    "outside of the prefix": (
        "poyo",
        {f"model.{key}": x for key, x in changed("poyo").items()} | {"other": zeros(2)},
        r"^other is left over: the names of POYO begin with 'model\.' here$",
    ),
    "another model": ("vecset", changed("poyo"), r"^point_embed\.basis is missing: 3DShape2VecSet has it$"),
    "half a bottleneck": (
        "vecset",
        changed("vecset_kl", proj__bias=None),
        r"^proj\.bias is missing: 3DShape2VecSet has it$",
    ),
    "half an MLP": (
        "vecset",
        changed("vecset", decoder_ff__fn__net__2__weight=None),
        r"^decoder_ff\.fn\.net\.2\.weight is mi",
    ),
    "other frequencies": (
        "vecset",
        changed("vecset", point_embed__basis=2 * read("vecset")["param:point_embed.basis"]),
        r"^point_embed\.basis should be pi times 1, 2, 4, \.\.\. along each axis, and 0 elsewhere$",
    ),
    "mixed axes": (
        "vecset",
        changed("vecset", point_embed__basis=zeros(3, 24) + 1),
        r"^point_embed\.basis should be pi times",
    ),
    "axes that do not fit": (
        "vecset",
        changed("vecset", point_embed__basis=zeros(3, 25)),
        r"^point_embed\.basis: 25 channels are no multiple of the 3 axes of point_embed\.basis$",
    ),
    "a wrong map of values": (
        "vecset",
        changed("vecset", layers__1__0__fn__to_kv__weight=zeros(60, 32)),
        r"^layers\.1\.0\.fn\.to",
    ),
    "a list": ("poyo", [1], r"^a state dict is a dictionary of names to tensors, not \[1\]$"),
    "numbers as names": ("poyo", {3: 4}, r"^a state dict is a dictionary of names to tensors, not \{3: 4\}$"),
    "nothing": ("flamingo", {}, r"^media_pos_emb is missing: a resampler of Flamingo has it$"),
    "nothing of Idefics2": (
        "idefics2",
        {},
        r"^layers\.0\.input_latents_norm\.weight is missing: a resampler of Idefics2 has",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_state_is_one_line_that_names_the_array(case):
    model, state, message = WRONG[case]
    settings = {"poyo": POYO, "vecset": VECSET}.get(model, {})
    with pytest.raises(ValueError, match=message) as error:
        from_state_dict(model, state, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("poyo", {"latent_step": 0.1}, "^sequence_length is missing: the arrays do not tell it"),
        ("poyo", {"sequence_length": 1.0}, "^latent_step is missing: the arrays do not tell it"),
        ("poyo", {**POYO, "latent_step": 0.0}, "^latent_step = 0.0 must be a number of seconds above 0$"),
        ("poyo", {**POYO, "latent_step": "x"}, "^latent_step: Input should be a valid number"),
        ("poyo", {**POYO, "heads": 3}, "^heads: unknown field"),
        ("poyo", {**POYO, "prefix": "model."}, "is left over: the names of POYO begin with 'model.' here$"),
        ("vecset", {"heads": 2}, "^num_latents is missing: the arrays do not tell it"),
        (
            "vecset",
            {"num_latents": 7},
            "^heads is missing: layers.0.0.fn.to_q.weight gives only 32, the channels of all",
        ),
        ("vecset", {**VECSET, "heads": 3}, "^heads = 3 must divide the 32 channels of layers.0.0.fn.to_q.weight$"),
        ("vecset", {**VECSET, "dim_head": 8}, "^heads = 2 of dim_head = 8 are not the 32 of layers.0.0.fn.to_q"),
        ("vecset", {**VECSET, "num_latents": 0}, "^num_latents = 0 must be"),
        ("poy", {}, "^unknown model 'poy'; there are poyo, vecset, flamingo, idefics2; did you mean 'poyo'"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(model, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        from_state_dict(model, under("param:", read("vecset" if model == "vecset" else "poyo")), **settings)
    assert "\n" not in str(error.value)


@pytest.mark.prints_warnings  # torchao's, as above
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {},
            "^resampler_n_heads is missing: layers.0.self_attn.q_proj.weight gives only 24, the channels of all heads",
        ),
        ({"resampler_n_heads": 5}, "^resampler_n_heads = 5 must divide the 24 channels"),
        ({"resampler_n_heads": 3}, "^layers.0.self_attn.k_proj.weight: 12 channels are 1.5 heads of 8, beside 3 heads"),
        (
            {"resampler_n_heads": 4, "num_key_value_heads": 4},
            "^num_key_value_heads = 4, but .* 12 channels are 2 heads",
        ),
        ({"resampler_n_heads": 4, "hidden_act": "tanh"}, "^hidden_act = 'tanh' must be one of silu, swish"),
        ({"resampler_n_heads": 4, "rms_norm_eps": 0.0}, "^norm_epsilon = 0.0 must be above 0$"),
    ],
)
def test_a_wrong_setting_of_idefics2_is_one_line_that_names_it(settings, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict("idefics2", their_idefics2(IDEFICS["grouped heads"]).state_dict(), **settings)


@pytest.mark.prints_warnings  # torchao's, as above
@pytest.mark.parametrize("settings", [{"resampler_head_dim": 6}, {"num_key_value_heads": 2}, {"resampler_n_heads": 4}])
def test_any_setting_that_tells_the_heads_of_idefics2_is_enough(settings):
    model = from_state_dict("idefics2", their_idefics2(IDEFICS["grouped heads"]).state_dict(), **settings)
    encoder = model.config.encoder
    assert (encoder.num_heads, encoder.num_kv_heads, encoder.qk_channels) == (4, 2, 24)


def test_the_default_heads_are_those_of_the_constructor():
    state = their_flamingo(FLAMINGOS["defaults"]).state_dict()
    assert from_state_dict("flamingo", state).config.encoder.num_heads == 8
    assert from_state_dict("flamingo", state, heads=4).config.encoder.num_heads == 4
    other = their_flamingo(FLAMINGOS["small"]).state_dict()
    with pytest.raises(ValueError, match=r"^heads is missing: layers\.0\.0\.to_q\.weight gives only 15"):
        from_state_dict("flamingo", other)
    del other["layers.1.0.norm_media.bias"]
    with pytest.raises(
        ValueError, match=r"^layers\.1\.0\.norm_media\.bias is missing: a resampler of Flamingo has it$"
    ):
        from_state_dict("flamingo", other, heads=3)
    sizes = vecset.Sizes(3, 8, 32, 1, 1, 512, (4, 4, 4), None)
    state = random_state(vecset.vecset_shapes(sizes)) | {"point_embed.basis": octaves(3, 8)}
    assert from_state_dict("vecset", state, num_latents=2).config.processor.num_heads == 8


def test_the_command_says_in_one_line_what_is_wrong(command, tmp_path):
    torch.save(changed("vecset"), tmp_path / "a.pt")
    cases = {
        ("--model", "vecset"): f"{tmp_path / 'a.pt'}: num_latents is missing",
        ("--model", "poyo"): f"{tmp_path / 'a.pt'}: latent_emb.weight is missing: POYO has it",
        ("--model", "vecse"): "did you mean 'vecset'?",
        ("--model", "vecset", "--numbers", "deepmind"): "vecset has one kind of numbers",
        ("--model", "vecset", "--to", "huggingface"): "leave out numbers and to",
        ("--model", "vecset", "--set", "config.processor.num_heads=2"): "there is no config",
    }
    for arguments, message in cases.items():
        code, out, err = command("convert", tmp_path / "a.pt", tmp_path / "out", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_info_knows_them(command):
    code, out, _ = command("info", "vecset")
    assert code == 0
    assert "num_latents" in out
    code, out, _ = command("info", "poyo", "--json")
    assert json.loads(out)["settings"] == {"sequence_length": None, "latent_step": None, "prefix": None}
