"""Modules that were changed from outside (adapters, hooks, quantised weights, ...) act in every algorithm."""

import copy
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrizations, parametrize, prune

from perceivers import Config, Image, Label, LatentsConfig, PerceiverIO, Schema
from perceivers.core.blocks import CrossAttention, SelfAttention
from perceivers.core.config import DecoderConfig, EncoderConfig, ProcessorConfig
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.fast.linear_maps import is_linear_map, linear_map
from perceivers.core.layers import apply_linear
from perceivers.modalities import Records, Text
from perceivers.modalities.fields import CategoryField
from perceivers.modalities.position_encodings import Fourier, Learned

ALGORITHMS = get_args(Algorithm)

pytestmark = pytest.mark.prints_warnings  # torchao, which PEFT imports, warns of PyTorch's deprecations

PLACES = {
    "read query": "trunk.encoder.0.cross_attention.attention.query",
    "read key": "trunk.encoder.0.cross_attention.attention.key",
    "read value": "trunk.encoder.0.cross_attention.attention.value",
    "read output": "trunk.encoder.0.cross_attention.attention.output",
    "read mlp": "trunk.encoder.0.cross_attention.mlp.hidden",
    "process value": "trunk.processor.0.layers.0.attention.value",
    "write query": "decoder.cross_attention.attention.query",
    "write key": "decoder.cross_attention.attention.key",
    "write value": "decoder.cross_attention.attention.value",
    "write output": "decoder.cross_attention.attention.output",
    "write mlp": "decoder.cross_attention.mlp.output",
    "decoder output": "decoder.output",
    "head": "output_adapter.adapters.map.head",
    "input projection": "input_adapter.alignment.projections.image",
    "query projection": "output_query.alignment.projections.map",
}
"""Linear layers; each is bypassed by some algorithm, which computes with its weights."""

OTHERS = {
    "read query norm": "trunk.encoder.0.cross_attention.query_norm",
    "read token norm": "trunk.encoder.0.cross_attention.token_norm",
    "write query norm": "decoder.cross_attention.query_norm",
    "write mlp norm": "decoder.cross_attention.mlp_norm",
    "read attention": "trunk.encoder.0.cross_attention.attention",
    "write attention": "decoder.cross_attention.attention",
    "read dropout": "trunk.encoder.0.cross_attention.dropout",
    "write mlp": "decoder.cross_attention.mlp",
    "read": "trunk.encoder.0.cross_attention",
    "write": "decoder.cross_attention",
}
"""Other modules of a block, and the blocks themselves."""


def small_model(**decoder: Any) -> PerceiverIO:
    torch.manual_seed(0)
    positions = Fourier(num_bands=2)
    schema = Schema(
        inputs={"image": Image(size=(7, 5), channels=2, positions=positions)},
        outputs={"map": Image(size=(5, 3), channels=2, positions=positions), "label": Label(classes=3)},
    )
    config = Config(
        LatentsConfig(num_latents=11, channels=12, init_std=1.0),
        EncoderConfig(num_heads=2),
        ProcessorConfig(num_layers=1, num_heads=3),
        DecoderConfig(num_heads=2, output_channels=17, **decoder),
    )
    model = PerceiverIO(schema, config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # after a norm, a factor alone would change nothing
            nn.init.normal_(parameter)
    return model


RAW = torch.randn(2, 7, 5, 2, generator=torch.Generator().manual_seed(1))
IDS = torch.arange(26).reshape(2, 13)


def flat(outputs: dict[str, Tensor]) -> Tensor:
    return torch.cat([x.flatten(1) for x in outputs.values()], 1)


def assert_acts_alike(model: nn.Module, before: Tensor) -> None:
    """Check that every algorithm gives the result of calling all modules, and that this differs from `before`."""
    assert isinstance(model, PerceiverIO)
    expected = flat(model(RAW, algorithm="dense")).detach()
    assert (expected - before).abs().max() > 1e-4, "changes nothing"
    for algorithm in (None, *ALGORITHMS):
        torch.testing.assert_close(flat(model(RAW, algorithm=algorithm)), expected, rtol=1e-4, atol=1e-5)


def scaled(x: Tensor) -> Tensor:
    """Scale each channel by another factor: a norm would remove a common one, a softmax a common summand of keys."""
    return x * (1 + torch.arange(x.shape[-1]) % 3)


def change_lora(model: PerceiverIO, place: str) -> PerceiverIO:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a model that is not from the hub
        adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=[place], lora_dropout=0.5), model)
    layer = adapted.get_submodule(place)
    nn.init.normal_(layer.lora_B["default"].weight)
    return adapted.eval()


def change_weight_norm(model: PerceiverIO, place: str) -> PerceiverIO:
    layer = model.get_submodule(place)
    parametrizations.weight_norm(layer)
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(2)
    return model


def change_parametrization(model: PerceiverIO, place: str) -> PerceiverIO:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    parametrize.register_parametrization(model.get_submodule(place), "weight", Doubled())
    return model


def change_bias_parametrization(model: PerceiverIO, place: str) -> PerceiverIO:
    class Raised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(len(x)) % 3

    parametrize.register_parametrization(model.get_submodule(place), "bias", Raised())
    return model


def change_hook(model: PerceiverIO, place: str) -> PerceiverIO:
    model.get_submodule(place).register_forward_hook(lambda module, given, output: scaled(output))
    return model


def change_pre_hook(model: PerceiverIO, place: str) -> PerceiverIO:
    model.get_submodule(place).register_forward_pre_hook(lambda module, given: (scaled(given[0]), *given[1:]))
    return model


def change_forward(model: PerceiverIO, place: str) -> PerceiverIO:
    layer = model.get_submodule(place)
    forward = layer.forward
    layer.forward = lambda *given, **named: scaled(forward(*given, **named))  # type: ignore[method-assign]
    return model


def change_class(model: PerceiverIO, place: str) -> PerceiverIO:
    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return scaled(super().forward(x))

    layer = model.get_submodule(place)
    other = Other(layer.in_features, layer.out_features)
    other.load_state_dict(layer.state_dict())
    model.set_submodule(place, other)
    return model


LINEAR_CHANGES = [
    change_lora,
    change_weight_norm,
    change_parametrization,
    change_bias_parametrization,
    change_hook,
    change_pre_hook,
    change_forward,
    change_class,
]


LINEAR_CASES = [
    (change, place)
    for change in LINEAR_CHANGES
    for place in PLACES
    if change is not change_bias_parametrization or not place.endswith("key")  # the softmax cancels the keys' bias
]


@pytest.mark.parametrize(("change", "place"), LINEAR_CASES)
def test_changed_linear_layers_act_in_every_algorithm(
    change: Callable[[PerceiverIO, str], PerceiverIO], place: str
) -> None:
    model = small_model()
    before = flat(model(RAW)).detach()
    assert_acts_alike(change(model, PLACES[place]), before)


@pytest.mark.parametrize("place", OTHERS)
@pytest.mark.parametrize("change", [change_hook, change_forward])
def test_changed_parts_of_a_block_act_in_every_algorithm(
    change: Callable[[PerceiverIO, str], PerceiverIO], place: str
) -> None:
    model = small_model()
    before = flat(model(RAW)).detach()
    assert_acts_alike(change(model, OTHERS[place]), before)


def test_a_norm_with_another_epsilon_or_class_acts() -> None:
    for change in (
        lambda old: nn.LayerNorm(old.normalized_shape, eps=0.5),
        lambda old: nn.RMSNorm(old.normalized_shape),
    ):
        for place in ("trunk.encoder.0.cross_attention.token_norm", "decoder.cross_attention.mlp_norm"):
            model = small_model()
            before = flat(model(RAW)).detach()
            model.set_submodule(place, change(model.get_submodule(place)))
            assert_acts_alike(model, before)


@pytest.mark.parametrize("change", LINEAR_CHANGES)
def test_gradients_and_readings_in_parts_see_changed_layers(change: Callable[[PerceiverIO, str], PerceiverIO]) -> None:
    model = change(small_model(), PLACES["read value"])
    found = {}
    for algorithm in ("dense", "absorbed", "separable"):
        model.zero_grad()
        flat(model(RAW, algorithm=algorithm)).square().sum().backward()
        found[algorithm] = [p.grad for p in model.parameters() if p.grad is not None]
    for algorithm in ("absorbed", "separable"):
        assert len(found[algorithm]) == len(found["dense"])
        for own, dense in zip(found[algorithm], found["dense"], strict=True):
            torch.testing.assert_close(own, dense, rtol=1e-3, atol=1e-4)
    in_parts = model.process(model.read(RAW)).latents
    torch.testing.assert_close(in_parts, model.encode(RAW, algorithm="dense").latents, rtol=1e-4, atol=1e-5)


def test_lora_with_dropout_is_called_in_training_only() -> None:
    model = change_lora(small_model(), PLACES["read key"])
    layer = model.get_submodule(PLACES["read key"])
    assert is_linear_map(layer)
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(nn.functional.linear(x, *linear_map(layer)), layer(x))
    assert not is_linear_map(layer.train())


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}])
def test_other_kinds_of_lora_act(options: dict[str, bool]) -> None:
    peft = pytest.importorskip("peft")
    model = small_model()
    before = flat(model(RAW)).detach()
    config = peft.LoraConfig(r=2, target_modules=["key", "value", "query"], **options)
    model = peft.inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    assert_acts_alike(model.eval(), before)


def test_adapters_that_are_merged_or_switched_off_act_as_they_are() -> None:
    model = change_lora(small_model(), PLACES["read key"])
    layer, adapted = model.get_submodule(PLACES["read key"]), flat(model(RAW)).detach()
    layer.merge()
    torch.testing.assert_close(flat(model(RAW)), adapted, rtol=1e-4, atol=1e-5)
    layer.enable_adapters(False)
    torch.testing.assert_close(flat(model(RAW)), flat(small_model()(RAW)), rtol=1e-4, atol=1e-5)


def test_dynamic_quantisation_quantises_and_acts() -> None:
    model = small_model()
    before = flat(model(RAW)).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in PyTorch
        model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    kinds = [type(module).__module__ for module in model.modules()]
    assert sum("quantized" in kind for kind in kinds) > 15
    with torch.no_grad():
        assert_acts_alike(model, before)


def test_torchao_quantises_and_acts() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = small_model()
    before = flat(model(RAW)).detach()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert not is_linear_map(model.get_submodule(PLACES["read key"]))
    with torch.no_grad():
        assert_acts_alike(model, before)


def test_a_hook_on_a_block_sees_arrays_and_refuses_states() -> None:
    model, seen = small_model(), []
    handles = [
        model.get_submodule(OTHERS[place]).register_forward_hook(
            lambda module, given, output: seen.append((given[0].shape, given[1].shape, output.shape))
        )
        for place in ("read", "write")
    ]
    model(RAW)
    assert seen == [((1, 11, 12), (2, 35, 12), (2, 11, 12)), ((1, 16, 12), (2, 11, 12), (2, 16, 12))]
    with pytest.raises(ValueError, match="encode"):
        model.read(RAW)
    for handle in handles:
        handle.remove()
    model.read(RAW)


@pytest.mark.parametrize("place", ["trunk", "trunk.encoder.0", OTHERS["read"], OTHERS["read attention"]])
@pytest.mark.parametrize("change", [change_hook, change_pre_hook, change_forward])
def test_reading_in_parts_calls_a_hooked_module_or_refuses(change: Any, place: str) -> None:
    model, reading = small_model(), small_model().read(RAW)
    change(model, place)
    for read in (model.read, lambda raw: model.encode([raw]), lambda raw: model.process(reading)):
        with pytest.raises(ValueError, match="with encode"):
            read(RAW)


POSITIONS = {
    "text": ("input_adapter.adapters.text.positions", Text(length=13, channels=8), IDS),
    "image": ("input_adapter.adapters.image.positions.source", Image((5, 7), 2, positions=Learned(3)), RAW),
    "all of an image": ("input_adapter.adapters.image.positions", Image((7, 5), 2, positions=Fourier(2)), RAW),
}


@pytest.mark.parametrize("name", POSITIONS)
def test_positions_are_called(name: str) -> None:
    """Hooks on positions act, and a pruned table is computed again in each step."""
    place, spec, raw = POSITIONS[name]
    schema = Schema({name.split()[-1]: spec}, {"map": Image(size=(5, 3), positions=Learned(channels=3))})
    model = PerceiverIO(schema, Config(LatentsConfig(num_latents=3, channels=8)))
    for path in (place, "output_query.queries.map.positions.source"):
        module, seen = model.get_submodule(path), []
        handle = module.register_forward_hook(lambda *given, seen=seen: seen.append(given))
        model(raw)
        assert len(seen) == 1
        handle.remove()
        if hasattr(module, "table"):
            prune.random_unstructured(module, "table", 0.5)
            for _ in range(2):
                before = model(raw)["map"]
                before.square().sum().backward()
                with torch.no_grad():
                    module.table_orig += torch.randn_like(module.table_orig)
                assert not torch.equal(model(raw)["map"], before)


def test_a_hook_for_all_modules_sees_the_layers() -> None:
    model, seen = small_model(), set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, output: seen.add(id(module)))
    try:
        model(RAW)
    finally:
        handle.remove()
    assert {id(model.get_submodule(place)) for place in PLACES.values()} - seen == set()


EMBEDDING = "input_adapter.adapters.text.embedding"


def tied_model() -> PerceiverIO:
    text = Text(length=13, channels=12)
    schema = Schema({"text": text}, {"text_out": Text(length=13, of="text", query_channels=12)})
    torch.manual_seed(0)
    config = Config(LatentsConfig(num_latents=3, channels=12), processor=ProcessorConfig(num_layers=1, num_heads=3))
    return PerceiverIO(schema, config).eval()


def adapted_model(model: PerceiverIO, **options: Any) -> PerceiverIO:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peft.get_peft_model(model, peft.LoraConfig(r=2, **options)).base_model.model
    assert isinstance(found, PerceiverIO)
    return found.eval()


TIED_CHANGES: dict[str, Callable[[PerceiverIO], PerceiverIO]] = {
    "another module": lambda model: model.set_submodule(EMBEDDING, nn.Embedding(262, 12)) or model,
    "another input": lambda model: model.set_submodule("input_adapter", tied_model().input_adapter) or model,
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "lora": lambda model: adapted_model(model, target_modules=["embedding"], init_lora_weights=False),
    "tokens": lambda m: adapted_model(m, target_modules=["key"], trainable_token_indices={"embedding": [1, 222]}),
    **{
        name: partial(adapted_model, target_modules=["key"], modules_to_save=[name])
        for name in ("embedding", "text", "input_adapter", "head")
    },
}


@pytest.mark.parametrize("change", TIED_CHANGES)
def test_a_tied_head_takes_the_embedding_that_the_input_has(change: str) -> None:
    """Ids of 200 and more do not occur in the text: a change of their vectors reaches the output by the head alone."""
    model = TIED_CHANGES[change](tied_model())
    embedding = model.get_submodule(EMBEDDING)
    base = [module for module in embedding.modules() if type(module) is nn.Embedding][-1]
    for algorithm in (None, *ALGORITHMS):
        before = model(IDS, algorithm=algorithm)["text_out"]
        with torch.no_grad():
            base.weight[200:] += 1
        after = model(IDS, algorithm=algorithm)["text_out"]
        torch.testing.assert_close(after[..., :200], before[..., :200])
        assert not torch.isclose(after[..., 223:], before[..., 223:]).any()
        model.zero_grad()
        after.square().sum().backward()
    table = embedding(torch.arange(262)).detach()
    encoded = model.encode(IDS)
    rows = model.decoder(model.output_query(encoded, {}, None), encoded.around, {"text_out": nn.Identity()})
    head = model.output_adapter.adapters["text_out"].head
    torch.testing.assert_close(model(IDS)["text_out"], rows["text_out"] @ table.T + head.bias)


def test_a_tied_head_of_the_wrong_size_is_named() -> None:
    model = tied_model()
    assert "output_adapter.adapters.text_out.head.bias" in model.state_dict()
    assert len([name for name in model.state_dict() if "embedding" in name]) == 1
    model.set_submodule(EMBEDDING, nn.Embedding(300, 12))
    with pytest.raises(ValueError, match=r"input 'text' is \(300, 12\), its tied output needs \(262, 12\)"):
        model(IDS)


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["embedding"]}, {"target_modules": ["key"], "trainable_token_indices": {"embedding": [0, 1]}}],
)
def test_adapted_embeddings_are_called(options: dict[str, Any]) -> None:
    records = Records({"t": CategoryField(classes=5, channels=3)}, max_records=3)
    schema = Schema({"text": Text(length=13, channels=12), "r": records}, {"y": Label(classes=2)})
    model = adapted_model(PerceiverIO(schema, Config(LatentsConfig(num_latents=3, channels=8))), **options)
    model({"text": IDS, "r": {"t": torch.zeros(2, 3).long()}})["y"].sum().backward()
    with pytest.raises(ValueError, match="262 of the vocabulary"):
        model({"text": IDS + 262})


def test_a_tied_head_with_parametrised_embeddings_acts() -> None:
    model, ids = tied_model(), IDS
    before = model(ids)["text_out"].detach()

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    parametrize.register_parametrization(model.input_adapter.adapters["text"].embedding, "weight", Doubled())
    expected = model(ids, algorithm="dense")["text_out"]
    assert not torch.allclose(expected, before)
    for algorithm in ALGORITHMS:
        torch.testing.assert_close(model(ids, algorithm=algorithm)["text_out"], expected, rtol=1e-4, atol=1e-5)


def test_applying_a_linear_layer_is_calling_it() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    assert torch.equal(apply_linear(layer, x), layer(x))
    layer.register_forward_hook(lambda module, given, output: output + 1)
    assert torch.equal(apply_linear(layer, x), layer(x))
    copied = copy.deepcopy(layer)
    assert torch.equal(apply_linear(copied, x), layer(x))


@pytest.fixture
def process_group():
    """Start a process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")  # the tests write to no view in place
@pytest.mark.parametrize("kinds", [(CrossAttention,), (CrossAttention, SelfAttention), (nn.Linear,)])
def test_blocks_that_are_sharded_each_compute_the_same(kinds: tuple[type[nn.Module], ...]) -> None:
    whole, sharded = small_model(), small_model()
    for module in sharded.modules():
        if isinstance(module, kinds):
            fully_shard(module)
    fully_shard(sharded)
    expected = flat(whole(RAW, algorithm="dense"))
    expected.square().sum().backward()
    for algorithm in (None, *ALGORITHMS):
        sharded.zero_grad()
        found = flat(sharded(RAW, algorithm=algorithm))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        found.square().sum().backward()
        grads = {name: parameter.grad for name, parameter in sharded.named_parameters()}
        for name, parameter in whole.named_parameters():
            own = grads[name]
            assert isinstance(own, DTensor), (algorithm, name)
            torch.testing.assert_close(own.full_tensor(), parameter.grad, rtol=1e-3, atol=1e-3)


def gradients(model: PerceiverIO, algorithm: Algorithm) -> list[Tensor | None]:
    model.zero_grad()
    torch.manual_seed(0)  # for random layers
    flat(model(RAW, algorithm=algorithm)).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def dropout_in_a_head(model: PerceiverIO) -> None:
    model.set_submodule(PLACES["head"], nn.Sequential(nn.Dropout(0.5), nn.Linear(17, 2)))


def head_that_mixes_places(model: PerceiverIO) -> None:
    model.set_submodule(PLACES["head"], nn.Sequential(nn.Softmax(dim=1), nn.Linear(17, 2)))


def hook_on_a_weight(model: PerceiverIO) -> None:
    for place in ("write mlp", "head"):
        model.get_submodule(PLACES[place]).weight.register_hook(lambda gradient: 3 * gradient)


def other_mlp(model: PerceiverIO) -> None:
    model.set_submodule("decoder.cross_attention.mlp", nn.Identity())


def values_alone_are_trained(model: PerceiverIO) -> None:
    model.requires_grad_(False)
    model.get_submodule(PLACES["read value"]).requires_grad_(True)


@pytest.mark.parametrize(
    "change",
    [dropout_in_a_head, head_that_mixes_places, hook_on_a_weight, other_mlp, values_alone_are_trained],
)
def test_training_a_changed_model_has_the_gradients_of_the_dense_algorithm(
    change: Callable[[PerceiverIO], None],
) -> None:
    model = small_model().train()
    change(model)
    expected = gradients(model, "dense")
    for algorithm in ALGORITHMS:
        torch.testing.assert_close(gradients(model, algorithm), expected, rtol=1e-3, atol=1e-3)


def test_a_parametrisation_that_counts_is_asked_once_in_each_pass() -> None:
    place = PLACES["write value"]
    kept = []
    for algorithm in ("dense", "projected", "absorbed"):
        model = small_model().train()
        torch.manual_seed(0)
        parametrizations.spectral_norm(model.get_submodule(place))
        model(RAW, algorithm=algorithm)
        kept.append(dict(model.get_submodule(place).named_buffers()))
    torch.testing.assert_close(kept[1], kept[0])
    torch.testing.assert_close(kept[2], kept[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_functions_are_given_the_dense_algorithm() -> None:
    model = small_model()
    whole = torch.func.vmap(lambda one: model(one[None], algorithm="absorbed")["label"][0])(RAW)
    torch.testing.assert_close(whole, model(RAW)["label"], rtol=1e-4, atol=1e-5)
