"""Options in whole models: decoders of several layers, precisions, checkpointing, what starts as the identity."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from perceivers.core.block_config import Axis, BlockConfig, Rotary
from perceivers.core.blocks import Block, CrossAttention, SelfAttention
from perceivers.core.config import (
    BottleneckConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentAxis,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.core.coordinates import RotaryEmbedding
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.tokens import Segment
from perceivers.modalities.image import Image
from perceivers.modalities.label import Label
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.points import Coordinates, Indices
from perceivers.modalities.pointset import PointSet
from perceivers.modalities.position_encodings import Fourier
from perceivers.modalities.series import Series
from perceivers.modalities.vectors import Vectors
from perceivers.schema import Schema
from perceivers.training.activation_checkpointing import recomputed
from reference_files import relative_error
from test_streams import BASE, PLACES, B, D, N, asked, built, close, raw_of

pytestmark = pytest.mark.filterwarnings("ignore:.*rotary. axis .* has no effect")

ALGORITHMS = get_args(Algorithm)
PLACED = replace(BASE, latents=replace(BASE.latents, places=PLACES))
DEEP = replace(PLACED, decoder=replace(BASE.decoder, num_layers=3, query_residual=True, final_norm=True))
MIXING = replace(PLACED, decoder=replace(BASE.decoder, num_layers=2, self_attention=True))

# Decoders of several layers.


def pictured(config: Config) -> tuple[PerceiverIO, Any]:
    """Return a model with a picture and points as outputs, and the encoded inputs of three samples."""
    torch.manual_seed(0)
    image = Image(size=(5, 7), positions=Fourier(num_bands=3), axis_names=("y", "x"))
    points = PointSet(axes=2, channels=3, positions=Fourier(num_bands=3, spacing="octaves"), axis_names=("y", "x"))
    latents = replace(config.latents, places=(LatentAxis("y", 0.0, 5.0, 5),))
    model = PerceiverIO(Schema({"image": image}, {"image": image, "points": points}), replace(config, latents=latents))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model = model.eval().double()
    return model, model.encode(torch.randn(B, 5, 7, 3, dtype=torch.float64))


@pytest.mark.parametrize("limit", [None, "200kB", "1MB"])
@pytest.mark.parametrize("algorithm", [None, "dense", "projected"])
def test_chunks_of_several_layers_are_the_whole(algorithm: Algorithm | None, limit: str | None) -> None:
    model, encoded = pictured(DEEP)
    where = torch.randn(B, 11, 2, dtype=torch.float64)
    points = Coordinates(where, torch.arange(11) < torch.tensor([[11], [0], [5]]))
    expected = model.decode(encoded, {"points": points})
    if (limit, algorithm) != ("200kB", "dense"):  # the last layer is dense for all queries of a block at once
        found = model.decode(encoded, {"points": points}, algorithm=algorithm, memory_limit=limit)
        for name, whole in expected.items():
            close(found[name], whole)
    options: dict[str, Any] = {"algorithm": algorithm, "memory_limit": limit if algorithm != "dense" else None}
    pixels = expected["image"].flatten(1, 2)
    for index in torch.randperm(35).split(11):
        found = model.decode(encoded, {"image": Indices(index)}, outputs=["image"], **options)["image"]
        close(found, pixels[:, index])
    for part in (slice(0, 4), slice(4, 11)):
        chunk = Coordinates(where[:, part], points.mask[:, part])
        found = model.decode(encoded, {"points": chunk}, outputs=["points"], **options)["points"]
        close(found, expected["points"][:, part])
    shares = [model.decode(encoded, {"points": points}, share=(rank, 2), **options) for rank in range(2)]
    for name, whole in expected.items():
        close(torch.cat([share[name] for share in shares], 1), whole)
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            nothing = model.decode(encoded, {"points": Coordinates(where[:, :0])}, outputs=["points"], **options)
            assert nothing["points"].shape == (B, 0, 3)


def test_a_limit_changes_no_gradient_of_several_layers() -> None:
    model, encoded = pictured(DEEP)
    found = []
    for limit in (None, "150kB"):
        latents = replace(encoded, around=replace(encoded.around, array=encoded.latents.detach().requires_grad_()))
        outputs = model.decode(latents, memory_limit=limit, outputs=["image"])
        loss = outputs["image"].sin().sum()
        weights = [x for x in model.decoder.parameters() if x.requires_grad]
        found.append(torch.autograd.grad(loss, [latents.around.array, *weights]))
    for one, two in zip(*found, strict=True):
        close(one, two)


def test_too_small_a_limit_for_several_layers_names_the_least() -> None:
    model, encoded = pictured(DEEP)
    expected = model.decode(encoded, outputs=["image"])["image"]
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient):
            with pytest.raises(ValueError, match="this needs at least") as refused:
                model.decode(encoded, outputs=["image"], memory_limit=1000)
            least = int(1.01e6 * float(str(refused.value).split()[-2]))
            close(model.decode(encoded, outputs=["image"], memory_limit=least)["image"], expected)


def test_self_attention_of_queries_is_among_those_of_an_output() -> None:
    model, encoded = pictured(MIXING)
    where = Coordinates(torch.randn(B, 11, 2, dtype=torch.float64))
    both = model.decode(encoded, {"points": where})
    for name, points in (("image", {}), ("points", {"points": where})):
        close(model.decode(encoded, points, outputs=[name])[name], both[name])
    some = model.decode(encoded, {"image": Indices(torch.arange(3))}, outputs=["image"])["image"]
    assert not torch.allclose(some, both["image"].flatten(1, 2)[:, :3], rtol=1e-3)
    masked = Coordinates(where.coordinates, torch.arange(11).expand(B, -1) < 5)
    fewer = model.decode(encoded, {"points": Coordinates(where.coordinates[:, :5])}, outputs=["points"])["points"]
    close(model.decode(encoded, {"points": masked}, outputs=["points"])["points"][:, :5], fewer)
    with pytest.raises(ValueError, match=r"^decoder\.self_attention: .*: give no share$"):
        model.decode(encoded, {"points": where}, share=(0, 2))
    with pytest.raises(ValueError, match=r"^decoder\.self_attention: .*: give no memory limit$"):
        model.decode(encoded, {"points": where}, memory_limit="1GB")
    model.memory_limit = "1GB"
    with pytest.raises(ValueError, match=r"^decoder\.self_attention: .*: give no memory limit$"):
        model.decode(encoded, {"points": where})


# Outputs that are the latents.


def test_outputs_that_are_the_latents() -> None:
    """A head acts on each latent; latents that do not exist have no effect on a mean."""
    outputs = {"series": Series(size=N, channels=2), "image": Image(size=(1, 5), channels=1)}
    config = Config(BASE.latents, processor=ProcessorConfig(1, num_layers=1), decoder=DecoderConfig(kind="latents"))
    torch.manual_seed(0)
    model = PerceiverIO(Schema({"vectors": Vectors(channels=5)}, outputs), config).eval()
    encoded = model.encode(torch.randn(B, 7, 5))
    found = model.decode(encoded)
    heads = model.output_adapter.adapters
    torch.testing.assert_close(found["series"], heads["series"].head(encoded.latents))
    assert found["image"].shape == (B, 1, 5, 1)
    index = torch.tensor([4, 0])
    torch.testing.assert_close(model.decode(encoded, {"series": Indices(index)})["series"], found["series"][:, index])
    assert list(model.decoder.parameters()) == list(model.output_query.parameters()) == []
    with pytest.raises(
        ValueError, match=r"output 'series': decoder.kind gives a query for each of 5 latents, but .* 7"
    ):
        PerceiverIO(Schema({"vectors": Vectors(channels=5)}, {"series": Series(size=7)}), config)
    with pytest.raises(ValueError, match=r"output 'asked': .* it needs decoder\.kind: query"):
        PerceiverIO(Schema({"vectors": Vectors(channels=5)}, {"asked": PointSet()}), config)


def test_a_mean_of_latents_leaves_out_those_that_do_not_exist() -> None:
    latents = LatentsConfig(num_latents=N, channels=5, taken_from="vectors")
    config = Config(latents, EncoderConfig(), ProcessorConfig(1, num_layers=1), DecoderConfig(kind="average"))
    torch.manual_seed(0)
    model = PerceiverIO(Schema({"vectors": Vectors(channels=5)}, {"label": Label(classes=3)}), config).eval()
    torch.nn.init.normal_(model.output_adapter.adapters["label"].head.weight)
    short = torch.randn(1, 3, 5)
    encoded = model.encode(short)
    assert encoded.mask is not None
    assert encoded.mask.tolist() == [[False, False, True, True, True]]
    by_hand = model.output_adapter.adapters["label"].head(encoded.latents[:, 2:].mean(1))
    torch.testing.assert_close(model.decode(encoded)["label"], by_hand)


# One condition.


def conditioned(**stages: bool) -> tuple[PerceiverIO, dict[str, Any]]:
    """Return a model of which some stages are conditioned by hours, with inputs."""
    config = replace(DEEP, **{name: replace(getattr(DEEP, name), conditioned=True) for name in stages})
    model = built(config, hours=Numbers(mean=(0.0,), std=(24.0,), role="condition"))
    return model, {**raw_of(model), "hours": torch.tensor([[6.0], [24.0], [72.0]])}


def test_one_encoded_sample_is_decoded_under_several_conditions() -> None:
    model, raw = conditioned(decoder=True)
    whole = model.encode(raw)
    plain = model.encode({name: value for name, value in raw.items() if name != "hours"})
    close(plain.latents, whole.latents)
    where = {"asked": Coordinates(torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2))}
    expected = model.decode(whole, where)
    first = model.encode({name: sample(value) for name, value in raw.items() if name != "hours"})
    for options in ({}, {"algorithm": "projected"}, {"memory_limit": "200kB"}):
        found = model.decode(plain, where, condition={"hours": raw["hours"]}, **options)
        several = model.decode(first, where, condition={"hours": raw["hours"]}, **options)
        for name, output in expected.items():
            close(found[name], output)
            close(several[name][:1], output[:1])
            assert len(several[name]) == 3
            assert not torch.allclose(several[name][1], several[name][0], rtol=1e-3)


def sample(value: Any) -> Any:
    return {name: x[:1] for name, x in value.items()} if isinstance(value, dict) else value[:1]


def test_a_condition_that_cannot_be_is_refused() -> None:
    model, raw = conditioned(decoder=True)
    encoded, hours = model.encode(raw), {"hours": raw["hours"]}
    for condition, message in (
        ({"vectors": raw["vectors"]}, "unknown input in condition: 'vectors'; there are hours"),
        ({}, "no input given"),
        ({"hours": raw["hours"][:2]}, "what was encoded has 3 samples, condition has 2 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            model.decode(encoded, condition=condition, outputs=["label"])
    both, raw = conditioned(processor=True, decoder=True)
    with pytest.raises(ValueError, match="condition: the processor is conditioned too: encode the inputs again"):
        both.decode(both.encode(raw), condition=hours, outputs=["label"])
    without = built(DEEP)
    with pytest.raises(ValueError, match="condition: no stage of the model is conditioned: leave it out"):
        without.decode(without.encode(raw_of(without)), condition=hours, outputs=["label"])


# The identity at the start.


def test_conditioning_starts_as_the_identity() -> None:
    """With the weights of an unconditioned model, outputs are the same."""
    plain = built(DEEP)
    torch.manual_seed(1)
    names = ("encoder", "processor", "decoder")
    config = replace(DEEP, **{name: replace(getattr(DEEP, name), conditioned=True) for name in names})
    inputs = {**plain.schema.inputs, "hours": Numbers(role="condition")}
    model = PerceiverIO(Schema(inputs, plain.schema.outputs), config).eval().double()
    found = model.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert all("modulation_map" in name or "conditioning" in name or "hours" in name for name in found.missing_keys)
    raw = raw_of(plain)
    with_hours = raw | {"hours": torch.tensor([[1.0], [-2.0], [3.0]])}
    for algorithm in ("dense", "projected"):
        one, two = plain.encode(raw, algorithm=algorithm), model.encode(with_hours, algorithm=algorithm)
        close(one.latents, two.latents)
        close(asked(plain, one), asked(model, two))
    # A step of training changes that.
    asked(model, model.encode(with_hours)).square().sum().backward()
    gradients = {name: x.grad for name, x in model.named_parameters() if "modulation_map.weight" in name}
    assert all(bool(x.any()) for x in gradients.values())
    assert len(gradients) == 1 + 1 + 3


BLOCK = BlockConfig(num_heads=2, widening_factor=0)


def test_layer_scale_scales_each_channel_of_a_branch() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 7, 12)
    block = SelfAttention(12, replace(BLOCK, layer_scale=0.25, widening_factor=2))
    plain = SelfAttention(12, replace(BLOCK, widening_factor=2))
    plain.load_state_dict(block.state_dict(), strict=False)
    normed = plain.norm(x)
    scales = torch.linspace(-1, 1, 12)
    with torch.no_grad():
        assert torch.equal(block.attention_scale, torch.full((12,), 0.25))
        block.attention_scale.copy_(scales)
        block.mlp_scale.copy_(scales.flip(0))
    y = x + scales * plain.attention(normed, normed)
    torch.testing.assert_close(block(x), y + scales.flip(0) * plain.mlp(plain.mlp_norm(y)))
    nothing = SelfAttention(12, replace(BLOCK, layer_scale=0.0))
    assert torch.equal(nothing(x), x)


@pytest.mark.parametrize("prob", [0.25, 0.5])
def test_stochastic_depth_skips_samples_and_keeps_the_mean(prob: float) -> None:
    torch.manual_seed(0)
    block = SelfAttention(12, replace(BLOCK, stochastic_depth=prob)).train()
    x = torch.randn(1, 3, 12).expand(4001, -1, -1)
    found = block(x) - x
    branch = block.eval()(x)[0] - x[0]
    kept = found.flatten(1).abs().amax(1) > 0
    torch.testing.assert_close(found[kept], (branch / (1 - prob)).expand_as(found[kept]), rtol=1e-4, atol=1e-5)
    assert kept.float().mean().item() == pytest.approx(1 - prob, abs=0.03)
    torch.testing.assert_close(found.mean(0), branch, rtol=0.1, atol=1e-3)


def test_stochastic_depth_keeps_what_has_no_residual() -> None:
    """Without a residual from the queries, a skipped attention would leave nothing of them."""
    torch.manual_seed(0)
    block = CrossAttention(12, 5, replace(BLOCK, qk_channels=4, stochastic_depth=0.9), query_residual=False).train()
    queries, tokens = torch.randn(53, 3, 12), torch.randn(53, 7, 5)
    torch.testing.assert_close(block(queries, tokens), block.eval()(queries, tokens))


# Memory and precision.


RICH = Config(
    replace(BASE.latents, taken_from="points", rule="farthest", token_map=True),
    replace(BASE.encoder, attend_latents=True, gated=True, norm="rms", qk_norm=True),
    replace(BASE.processor, gated=True, num_kv_heads=1),
    replace(BASE.decoder, num_layers=2, layer_scale=0.5),
    bottleneck=BottleneckConfig(channels=3, sample=False),
)
CONFIGS = {"rich": RICH, "mixing": MIXING, "deep": DEEP}


# Self-attention among queries ("mixing") takes no limit.
@pytest.mark.parametrize(("name", "limit"), [*((name, None) for name in CONFIGS), ("rich", "500kB"), ("deep", "500kB")])
def test_checkpointed_activations_change_no_gradient(name: str, limit: str | None) -> None:
    """With stochastic depth and dropout, which are drawn again; a condition goes through as well."""
    config = CONFIGS[name]
    dropping = {"dropout": 0.1, "stochastic_depth": 0.1 if limit is None else 0.0}
    config = replace(config, processor=replace(config.processor, **dropping))
    model = built(config, conditioned=True).train()
    raw, found = raw_of(model), []
    for recompute in (False, True):
        model.zero_grad()
        torch.manual_seed(5)
        with recomputed(model, recompute):
            model.memory_limit = limit
            loss = asked(model, model.encode(raw)).square().sum()
            loss.backward()
        found.append({name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_algorithm_decodes_what_the_dense_one_does(name: str) -> None:
    """An output without coordinates beside one with them, under rotary positions and biases."""
    model = built(CONFIGS[name])
    encoded = model.encode(raw_of(model))
    where = {"asked": Coordinates(torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2))}
    expected = model.decode(encoded, where, algorithm="dense")
    for algorithm in ALGORITHMS:
        close(model.encode(raw_of(model), algorithm=algorithm).latents, encoded.latents)
        for output, found in model.decode(encoded, where, algorithm=algorithm).items():
            close(found, expected[output])


HALVES = [torch.bfloat16, "autocast"]


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", [*CONFIGS, "coordinates of thousands"])
def test_half_precision_is_as_near_as_the_dense_algorithm(name: str, half: Any) -> None:
    """Also far from the origin, where angles rounded to half precision would be arbitrary."""
    config = CONFIGS.get(name, PLACED)
    model, far = built(config).float(), 4000.0 if name not in CONFIGS else 0.0
    if far:
        config = replace(config, latents=replace(config.latents, places=(LatentAxis("y", far, far + 9, 5),)))
        model = built(config).float()
    raw = {"points": dict(raw_of(model)["points"]), "vectors": raw_of(model)["vectors"].float()}
    raw["points"] |= {"coordinates": raw["points"]["coordinates"].float() + far}
    raw["points"]["values"] = raw["points"]["values"].float()
    where = {"asked": Coordinates(torch.linspace(-1, 1, 14).view(7, 2) + far)}

    def outputs(algorithm: str | None) -> Tensor:
        found = model.decode(model.encode(raw, algorithm=algorithm), where, algorithm=algorithm)
        return torch.cat([x.float().flatten() for x in found.values()])

    with torch.no_grad():
        expected = outputs("dense")
        if half is not torch.bfloat16:
            with torch.autocast("cpu", torch.bfloat16):
                errors = {algorithm: relative_error(outputs(algorithm), expected) for algorithm in ALGORITHMS}
        else:
            model.bfloat16()
            errors = {algorithm: relative_error(outputs(algorithm), expected) for algorithm in ALGORITHMS}
    assert 1e-4 < errors["dense"] < 0.1
    for algorithm, error in errors.items():
        assert error <= 2 * errors["dense"], errors | {"": algorithm}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_angles_stay_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    embedding = RotaryEmbedding(Rotary((Axis("y", 0.3, 9.0),)), 16)
    before = embedding.frequencies.clone()
    for changed in (embedding.to(dtype), embedding.to(torch.device("cpu"), dtype)):
        assert changed.frequencies.dtype == torch.float32
        assert torch.equal(changed.frequencies, before)
    here, there = (Segment(torch.zeros(1, 1, D), coordinates={"y": torch.tensor([[x]])}) for x in (3.0, 1000.5))
    turn: Any = embedding.between(here.located(["y"]), there.located(["y"]), dtype).keys
    expected = (1000.5 * before.double()).cos().flatten()
    torch.testing.assert_close(turn.cos.flatten().double(), expected, rtol=0, atol=3e-3)
    assert turn.cos.dtype == torch.promote_types(dtype, torch.float32)
    state = built(PLACED).to(dtype).state_dict()
    found = {name: x.dtype for name, x in state.items() if name.endswith("frequencies")}
    assert len(found) == 3
    assert {*found.values()} == {torch.float32}


def test_every_block_has_its_options() -> None:
    """The rich config reaches all blocks: a test above would pass on a plain model too."""
    blocks = [x for x in built(RICH, conditioned=True).modules() if isinstance(x, Block)]
    assert len(blocks) == 1 + 1 + 2
    assert all(x.attention.rotary is not None and x.modulation_map is not None for x in blocks)
