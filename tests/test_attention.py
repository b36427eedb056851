"""Attention and its blocks: numbers by hand, masks, gradients, initial weights."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cross_cases import every_device
from perceivers.core.attention import Attention, Mask, attend, attention_weights
from perceivers.core.block_config import BlockConfig
from perceivers.core.blocks import ACTIVATIONS, MLP, CrossAttention, SelfAttention
from perceivers.core.coordinates import UNTURNED
from perceivers.core.fast.fused import padded_attention
from perceivers.core.layers import attention_linear, plain_linear, trained_vector
from perceivers.modalities.convolution import convolution_
from perceivers.runs.flops import PeakMemory
from reference_files import relative_error

B, H, T, S, D, E = 2, 3, 5, 7, 11, 13  # batch, heads, queries, keys, head width, other head width of values
F, C = 17, 19  # widths of queries and tokens


@pytest.fixture(params=["equal widths", "different widths"])
def value_channels(request: pytest.FixtureRequest) -> int:
    """Values as wide as keys use a fused kernel, others the explicit weights."""
    return {"equal widths": D, "different widths": E}[request.param]


@pytest.fixture
def mask() -> Mask:
    """Return a mask without some keys, queries and pairs; query 1 of sample 0 and query 3 of sample 1 have no key."""
    keys = torch.rand(B, S) < 0.7
    keys[:, 0] = True
    queries = torch.ones(B, T, dtype=torch.bool)
    queries[1, 3] = False
    pairs = torch.rand(B, T, S) < 0.7
    pairs[:, :, 0] = True
    pairs[0, 1] = False
    return Mask(keys, queries, pairs)


DEAD = ((0, 1), (1, 3))


def heads(*shape: int) -> Tensor:
    return torch.randn(B, H, *shape)


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def randomised(module: nn.Module) -> nn.Module:
    """Give biases and norms random values."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("width", [4, 3])
def test_attend_by_hand(width: int) -> None:
    """Scores 0 and 2 ln(3) / sqrt(4) = ln 3, so weights 1/4 and 3/4."""
    q = torch.tensor([[[[2.0, 0.0, 0.0, 0.0]]]])
    k = torch.tensor([[[[0.0, 1.0, 2.0, 3.0], [math.log(3), 0.0, 0.0, 5.0]]]])
    v = torch.tensor([[[[4.0, 0.0, -8.0, 8.0], [0.0, 8.0, 8.0, 0.0]]]])[..., :width]
    expected = torch.tensor([1.0, 6.0, 4.0, 2.0])[:width]
    assert torch.allclose(attention_weights(q, k), torch.tensor([0.25, 0.75]))
    assert torch.allclose(attend(q, k, v), expected)
    assert torch.allclose(attend(q, k, v, Mask(keys=torch.tensor([[True, False]]))), v[0, 0, 0])


def test_both_paths_agree(mask: Mask) -> None:
    """Values with more channels give the same sums without the fused kernel."""
    q, k, v = heads(T, D), heads(S, D), heads(S, D)
    wide = torch.cat([v, heads(S, 2)], dim=-1)
    for rule in (None, mask):
        assert relative_error(attend(q, k, v, rule), attend(q, k, wide, rule)[..., :D]) <= 1e-6


RULES = ["keys", "queries", "pairs"]


@pytest.mark.parametrize("rules", [chosen for n in (1, 2, 3) for chosen in itertools.combinations(RULES, n)])
def test_rules_of_a_mask_combine(mask: Mask, rules: tuple[str, ...], value_channels: int) -> None:
    """A pair is attended to only if all rules allow it."""
    allowed = torch.ones(B, T, S, dtype=torch.bool)
    allowed &= mask.keys[:, None] if "keys" in rules else True
    allowed &= mask.queries[:, :, None] if "queries" in rules else True
    allowed &= mask.pairs if "pairs" in rules else True
    q, k, v = heads(T, D), heads(S, D), heads(S, value_channels)
    combined = Mask(**{rule: getattr(mask, rule) for rule in rules})
    assert torch.equal(
        attention_weights(q, k, *Mask.rules(combined)), attention_weights(q, k, *Mask.rules(Mask(pairs=allowed)))
    )
    assert relative_error(attend(q, k, v, combined), attend(q, k, v, Mask(pairs=allowed))) <= 1e-6
    valid = attention_weights(q, k, *Mask.rules(combined)) > 0
    assert torch.equal(valid, allowed[:, None].expand_as(valid))


def test_weights_sum_to_one_and_are_zero_for_dead_queries(mask: Mask) -> None:
    total = attention_weights(heads(T, D), heads(S, D), *Mask.rules(mask)).sum(dim=-1)
    expected = torch.ones(B, H, T)
    for sample, query in DEAD:
        expected[sample, :, query] = 0
    assert torch.allclose(total, expected)
    assert (total[expected == 0] == 0).all()


def test_masked_keys_do_not_matter(value_channels: int) -> None:
    keys = torch.tensor([[True, True, False, True, False, False, True], [True] * S])
    q, k, v = heads(T, D), heads(S, D), heads(S, value_channels)
    expected = attend(q, k, v, Mask(keys=keys))
    absent = ~keys[:, None, :, None]
    changed = attend(q, k.masked_fill(absent, 1e4), v.masked_fill(absent, -1e4), Mask(keys=keys))
    assert torch.equal(changed, expected)
    kept = keys[0]
    assert relative_error(attend(q[:1], k[:1, :, kept], v[:1, :, kept]), expected[:1]) <= 1e-6


def test_dead_queries_get_zero(mask: Mask, value_channels: int) -> None:
    attended = attend(heads(T, D), heads(S, D), heads(S, value_channels), mask)
    assert all((attended[sample, :, query] == 0).all() for sample, query in DEAD)
    assert attended.isfinite().all()
    assert (attended != 0).any(dim=-1).sum() == H * (B * T - len(DEAD))


def test_dead_queries_get_exactly_the_output_bias(mask: Mask, value_channels: int) -> None:
    attention = randomised(Attention(F, C, BlockConfig(num_heads=H, qk_channels=H * D, v_channels=H * value_channels)))
    out = attention(torch.randn(B, T, F), torch.randn(B, S, C), mask)
    assert all(torch.equal(out[sample, query], attention.output.bias) for sample, query in DEAD)
    assert not torch.equal(out[0, 0], attention.output.bias)


@pytest.mark.parametrize("at_once", [1, T * S, 4 * T * S])
@pytest.mark.parametrize("masked", [False, True])
def test_a_few_heads_at_a_time_give_the_same(
    mask: Mask, masked: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule, inputs = mask if masked else None, (double(B, H, T, D), double(B, H, S, D), double(B, H, S, E))
    expected = attend(*inputs, rule)
    gradients = torch.autograd.grad(expected.square().sum(), inputs)
    monkeypatch.setattr("perceivers.core.fast.fused.SCORES_AT_ONCE", at_once)
    found = attend(*inputs, rule)
    assert relative_error(found, expected) <= 1e-12
    for gradient, wanted in zip(torch.autograd.grad(found.square().sum(), inputs), gradients, strict=True):
        assert relative_error(gradient, wanted) <= 1e-12


def test_scores_of_many_heads_are_not_all_in_memory() -> None:
    q, k, v = torch.randn(1, 8, 512, 16), torch.randn(1, 8, 2048, 16), torch.randn(1, 8, 2048, 24)
    with PeakMemory() as memory:
        attend(q, k, v)
    assert memory.peak < 3 * 512 * 2048 * 4  # scores and weights of one head; all 8 would take 67 MB


def test_nothing_to_attend_to_gives_zero(value_channels: int) -> None:
    for rule in (None, Mask(keys=torch.ones(B, 0, dtype=torch.bool))):
        attended = attend(heads(T, D), heads(0, D), heads(0, value_channels), rule)
        assert torch.equal(attended, torch.zeros(B, H, T, value_channels))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BlockConfig(num_heads=2), "qk_channels = 19 is not a multiple of num_heads = 2"),
        (BlockConfig(num_heads=3, qk_channels=7), "qk_channels = 7 is not a multiple of num_heads = 3"),
        (BlockConfig(num_heads=3, qk_channels=6, v_channels=5), "v_channels = 5 is not a multiple of num_heads = 3"),
    ],
)
def test_widths_must_be_multiples_of_the_heads(config: BlockConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(F, C, config)


@pytest.mark.parametrize(
    ("config", "qk", "v"),
    [
        (BlockConfig(), C, C),
        (BlockConfig(qk_channels=5), 5, 5),
        (BlockConfig(v_channels=5), C, 5),
        (BlockConfig(qk_channels=7, v_channels=5), 7, 5),
    ],
)
def test_widths_of_attention(config: BlockConfig, qk: int, v: int) -> None:
    """By default, queries and keys are as wide as tokens, and values as wide as queries and keys."""
    attention = Attention(F, C, config)
    layers = (attention.query, attention.key, attention.value, attention.output)
    assert [tuple(layer.weight.shape) for layer in layers] == [(qk, F), (qk, C), (v, C), (F, v)]


@pytest.mark.parametrize("query_residual", [True, False])
def test_the_residual_is_the_query_as_it_came(query_residual: bool) -> None:
    """With attention and MLP silenced, only the residual is left; a norm would change its scale."""
    layer = randomised(CrossAttention(F, C, BlockConfig(), query_residual))
    for silenced in (layer.attention.output, layer.mlp.output):
        nn.init.zeros_(silenced.weight)
        nn.init.zeros_(silenced.bias)
    queries = 5 + 3 * torch.randn(B, T, F)
    out = layer(queries, torch.randn(B, S, C))
    assert torch.equal(out, queries if query_residual else torch.zeros(B, T, F))


def test_one_sample_on_either_side_serves_the_whole_batch(mask: Mask) -> None:
    layer = randomised(CrossAttention(F, C, BlockConfig(num_heads=H, qk_channels=H * D), query_residual=True))
    queries, tokens = torch.randn(B, T, F), torch.randn(B, S, C)
    for rule in (None, mask, Mask(keys=mask.keys[:1]), Mask(pairs=mask.pairs[:1])):
        for few, many in ((queries[:1], tokens), (queries, tokens[:1])):
            expected = layer(few.expand(B, -1, -1), many.expand(B, -1, -1), rule)
            assert relative_error(layer(few, many, rule), expected) <= 1e-6


def test_the_attention_map_is_what_the_block_uses(mask: Mask) -> None:
    """The map times the values, through the output map, equals the attention's output."""
    layer = randomised(CrossAttention(F, C, BlockConfig(num_heads=H, qk_channels=H * D), query_residual=True))
    queries, tokens = torch.randn(B, T, F), torch.randn(B, S, C)
    weights = layer.attention_map(queries, tokens, mask, UNTURNED, None)
    values = layer.attention.value(layer.token_norm(tokens)).unflatten(-1, (H, D)).movedim(2, 1)
    by_hand = layer.attention.output((weights @ values).movedim(1, 2).flatten(2))
    attended = layer.attention(layer.query_norm(queries), layer.token_norm(tokens), mask)
    assert weights.shape == (B, H, T, S)
    assert relative_error(attended, by_hand) <= 1e-6


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_attend(mask: Mask, value_channels: int, masked: bool) -> None:
    rule = mask if masked else None
    inputs = double(B, H, T, D), double(B, H, S, D), double(B, H, S, value_channels)
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, rule), inputs, fast_mode=True)
    if masked:
        grad_q = torch.autograd.grad(attend(*inputs, rule).square().sum(), inputs[0])[0]
        assert all((grad_q[sample, :, query] == 0).all() for sample, query in DEAD)


@pytest.mark.parametrize("config", [BlockConfig(num_heads=2, qk_channels=6), BlockConfig(qk_channels=3, v_channels=5)])
def test_gradients_of_cross_attention(mask: Mask, config: BlockConfig) -> None:
    layer = randomised(CrossAttention(F, C, config, query_residual=True)).double()
    check_gradients(layer, lambda x, tokens: layer(x, tokens, mask), double(B, T, F), double(B, S, C))


@pytest.mark.parametrize("config", [BlockConfig(num_heads=F), BlockConfig(v_channels=5, widening_factor=3)])
def test_gradients_of_self_attention(config: BlockConfig) -> None:
    layer = randomised(SelfAttention(F, config)).double()
    check_gradients(layer, layer, double(B, T, F))


def check_gradients(layer: nn.Module, function: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Check the gradients with respect to the inputs and every parameter."""
    parameters = tuple(layer.parameters())

    def of_all(*all_of_them: Tensor) -> Tensor:
        return function(*all_of_them[: len(inputs)])

    assert torch.autograd.gradcheck(of_all, (*inputs, *parameters), fast_mode=True)


def test_tanh_and_erf_differ_by_less_than_5e_4() -> None:
    x = torch.linspace(-6, 6, 2401, dtype=torch.float64)
    difference = (ACTIVATIONS["gelu_tanh"](x) - ACTIVATIONS["gelu_erf"](x)).abs()
    assert difference.max().item() == pytest.approx(4.73e-4, rel=1e-2)
    assert x[difference.argmax()].abs().item() == pytest.approx(2.70, abs=0.01)


def test_the_activation_by_hand() -> None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) is the default; or x times the normal distribution function."""
    x = 1.5
    tanh = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    erf = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    for config, expected in ((BlockConfig(), tanh), (BlockConfig(activation="gelu_erf"), erf)):
        mlp = MLP(1, config)
        for layer in (mlp.hidden, mlp.output):
            nn.init.ones_(layer.weight)
        assert mlp(torch.full((1, 1, 1), x)).item() == pytest.approx(expected, rel=1e-6)


def initial_weights() -> dict[str, tuple[Tensor, float, float]]:
    """Return values, their standard deviation, and their cut (in standard deviations of the uncut normal)."""
    cut = 0.8796256610
    layers = {
        "attention and MLP": (attention_linear(401, 503).weight, 401**-0.5, 2 / cut),
        "other linear": (plain_linear(401, 503).weight, cut * 401**-0.5, 2),
        "convolution": (convolution_(nn.Conv2d(61, 67, 7)).weight, cut * (61 * 49) ** -0.5, 2),
        "transposed convolution": (convolution_(nn.ConvTranspose2d(61, 67, 7)).weight, cut * (61 * 49) ** -0.5, 2),
        "transposed in time too": (convolution_(nn.ConvTranspose3d(23, 29, 7)).weight, cut * (23 * 343) ** -0.5, 2),
        "trained vectors": (trained_vector(401, 503), cut * 0.02, 2),
        "trained vectors of another width": (trained_vector(401, 503, std=1.0), cut * 1.0, 2),
    }
    return {name: (weight.detach(), std, bound) for name, (weight, std, bound) in layers.items()}


def test_initial_weights_are_spread_as_in_the_official_code() -> None:
    for name, (weight, std, _) in initial_weights().items():
        assert weight.std().item() == pytest.approx(std, rel=0.01), name
        assert abs(weight.mean().item()) <= 0.01 * std, name


def test_initial_weights_are_cut_at_two_deviations() -> None:
    """The cut is at two deviations of the uncut normal; samples as large as these come within 1 % of it."""
    for name, (weight, std, bound) in initial_weights().items():
        uncut = std if "attention" in name else std / 0.8796256610
        assert weight.abs().max().item() == pytest.approx(bound * uncut, rel=0.01), name
        assert weight.abs().max().item() <= bound * uncut * (1 + 1e-6), name


def test_initial_biases_and_norms_are_neutral() -> None:
    for block in (CrossAttention(F, C, BlockConfig(), query_residual=True), SelfAttention(F, BlockConfig())):
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear | nn.LayerNorm):
                assert (layer.bias == 0).all(), name
            if isinstance(layer, nn.LayerNorm):
                assert (layer.weight == 1).all(), name
                assert layer.eps == 1e-5, name
    assert (plain_linear(F, C, zero=True).weight == 0).all()
    assert (plain_linear(F, C).bias == 0).all()
    assert (convolution_(nn.ConvTranspose2d(3, 5, 4)).bias == 0).all()


def test_every_linear_of_a_block_starts_from_the_attention_distribution() -> None:
    """Widths of hundreds, so that the standard deviation of each weight is measured to 3 %."""
    blocks = {
        "cross": CrossAttention(211, 307, BlockConfig(qk_channels=101), query_residual=True),
        "self": SelfAttention(211, BlockConfig(widening_factor=2)),
    }
    for kind, block in blocks.items():
        for name, layer in block.named_modules():
            if isinstance(layer, nn.Linear):
                std = layer.weight.std().item()
                assert std == pytest.approx(layer.in_features**-0.5, rel=0.03), (kind, name)


def test_a_mask_of_a_batch_makes_a_batch():
    """Queries and tokens are the same for every sample, and the samples lack different ones."""
    block = CrossAttention(7, 11, BlockConfig(num_heads=1), query_residual=True).eval()
    queries, tokens, keys = torch.randn(1, 3, 7), torch.randn(1, 5, 11), torch.rand(2, 5) < 0.6
    found = block(queries, tokens, Mask(keys=keys))
    for number in range(2):
        torch.testing.assert_close(found[[number]], block(queries, tokens, Mask(keys=keys[[number]])))
    assert block.attention_map(queries, tokens, Mask(keys=keys), UNTURNED, None).shape == (2, 1, 3, 5)


@pytest.mark.parametrize("widths", [(3, 5), (8, 8), (11, 16), (322, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_head_widths_filled_up_for_a_gpu_change_nothing(widths: tuple[int, int], masked: bool) -> None:
    shapes = (5, widths[0]), (7, widths[0]), (7, widths[1])
    q, k, v = (torch.randn(2, 3, *shape).double() for shape in shapes)
    mask = Mask(keys=torch.tensor([[True] * 4 + [False] * 3, [False] + [True] * 6])) if masked else None
    filled = padded_attention(q, k, v, None if mask is None else mask.scores(), 0.0)
    assert filled.shape == (2, 3, 5, widths[1])
    assert torch.allclose(filled, attention_weights(q, k, *Mask.rules(mask)) @ v, rtol=1e-12, atol=1e-12)


@every_device
@pytest.mark.parametrize("widths", [(8, 8), (32, 160), (322, 322), (261, 512)])
def test_attention_on_every_device(device: str, widths: tuple[int, int]) -> None:
    """Fused kernels of a GPU handle absent keys, and a sample without any key."""
    shapes = (5, widths[0]), (7, widths[0]), (7, widths[1])
    q, k, v = (torch.randn(2, 2, *shape, device=device) for shape in shapes)
    mask = Mask(keys=torch.tensor([[True] * 4 + [False] * 3, [False] * 7], device=device))
    expected = attention_weights(q.double(), k.double(), *Mask.rules(mask)) @ v.double()
    assert torch.allclose(attend(q, k, v, mask).double(), expected, rtol=1e-3, atol=1e-4)
    assert not attend(q, k, v, mask)[1].any()
