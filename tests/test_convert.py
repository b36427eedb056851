"""Converted weights: the recorded models give the recorded outputs, and no array is missing or left over."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.files.tensor_files import save_tensors
from perceivers.modalities import Image, Label
from perceivers.pretrained.checkpoint_files import is_theirs, read_checkpoint
from perceivers.pretrained.conversion import (
    from_haiku,
    from_huggingface,
    from_krasserm,
    huggingface_options,
    to_huggingface,
)
from perceivers.pretrained.huggingface import written_config
from perceivers.pretrained.matching import count_layers, pairs, to_theirs
from perceivers.pretrained.model_folder import load_weights
from perceivers.pretrained.names import FAMILIES
from perceivers.pretrained.sizes import changed, value_at
from perceivers.pretrained.unpickle import read_haiku
from perceivers.systems import PRESETS
from reference_files import REFERENCE, read, relative_error, under
from test_models import ask_flow, ask_imagenet, ask_video

TOLERANCE = 1e-5

IMAGE = {"schema.inputs.image.mean": None, "schema.inputs.image.std": None}
"""The recorded pictures are already normalised."""

BLOCKS = {"config.processor.num_heads": 4, "config.processor.num_blocks": 2}

CLIP = {
    f"schema.{side}.{name}": value
    for side in ("inputs", "outputs")
    for name, value in {
        "image.size": (2, 8, 8),
        "image.positions.max_resolution": (2, 2, 2),
        "audio.size": 64,
        "audio.positions.max_resolution": 64,
    }.items()
}

RECORDED = {
    "mlm": ("language", {f"config.{stage}.num_heads": 4 for stage in ("encoder", "processor", "decoder")}),
    "imagenet_fourier": (
        "imagenet-fourier",
        IMAGE | BLOCKS | {"schema.inputs.image.size": 12, "schema.inputs.image.positions.max_resolution": 12},
    ),
    "imagenet_learned": ("imagenet-learned", IMAGE | BLOCKS),
    "imagenet_conv": (
        "imagenet-conv",
        IMAGE | BLOCKS | {"schema.inputs.image.size": 32, "schema.inputs.image.positions.max_resolution": 8},
    ),
    "flow": ("optical-flow", {"schema.inputs.frames.size": (12, 16), "config.processor.num_heads": 4}),
    "video": ("multimodal", CLIP | {"config.processor.num_heads": 4}),
}
"""The preset of each recorded model, and the settings that shapes do not determine."""

RELEASED = [name for name, published in PRESETS.items() if published.released]

WITH_KRASSERM = ["mlm", "imagenet_fourier", "flow"]


def ask_mlm(model, given):
    return {"y": model({"text": {"ids": given["inputs"], "mask": given["input_mask"].bool()}})["restored"]}


ASK = {"mlm": ask_mlm, "flow": ask_flow, "video": ask_video}


def preset_of(name):
    """Return the released preset with the settings of a recorded model that shapes do not determine."""
    preset, values = RECORDED[name]
    return changed(PRESETS[preset].preset(), values)


@functools.cache
def converted(name):
    """Return a recorded model's preset and weights in our format; they must not be changed."""
    recorded = read(name)
    return from_haiku(preset_of(name), under("param:", recorded), under("state:", recorded))


def theirs(name, column):
    """Return a recorded model's preset, and its weights under another library's names."""
    preset, weights = converted(name)
    return preset, to_theirs(RECORDED[name][0], column, weights)


def built(preset, weights):
    model = preset.build()
    load_weights(model, weights, "converted")
    return model.eval()


def assert_as_recorded(name, model):
    recorded = read(name)
    with torch.no_grad():
        outputs = ASK.get(name, ask_imagenet)(model, under("in:", recorded))
    expected = under("out:", recorded)
    assert outputs.keys() == expected.keys()
    for key, output in outputs.items():
        assert relative_error(output, expected[key]) <= TOLERANCE, key


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_models_compute_what_was_recorded(name):
    assert_as_recorded(name, built(*converted(name)))


@pytest.mark.parametrize("name", ["mlm", "imagenet_conv", "flow"])
def test_pickles_too(name):
    preset, weights = from_haiku(preset_of(name), *read_haiku(REFERENCE / "pickles" / f"{name}.pystate"))
    assert_same_weights(weights, converted(name)[1])
    assert_as_recorded(name, built(preset, weights))


@pytest.mark.parametrize("name", RECORDED)
def test_sizes_are_those_that_were_recorded(name):
    """Only settings that shapes do not determine were given."""
    preset, weights = converted(name)
    assert preset.config.processor.num_layers == 2
    assert preset.config.latents.num_latents == weights["trunk.latents"].shape[0] < 10
    if name == "video":
        assert [preset.schema.inputs[i].positions.num_bands for i in ("audio", "image")] == [6, 3]
        assert [preset.schema.outputs[i].positions.num_bands for i in ("audio", "image")] == [6, 3]
        assert (preset.config.encoder.min_padding, preset.config.decoder.min_padding) == (4, 2)
        assert preset.schema.outputs["label"] == Label(classes=7, query_channels=40, weight=0.0001)
    if name == "imagenet_learned":
        assert preset.schema.inputs["image"].size == 12


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("column", ["haiku", "huggingface"])
def test_tables_name_every_array_of_the_released_models_once(name, column):
    """At full size, on the meta device; and the sizes inferred from the shapes are the preset's."""
    preset = PRESETS[name].preset()
    weights = preset.build("meta").state_dict()
    arrays = to_theirs(name, column, weights)
    assert len(arrays) == len(weights)
    again, same = from_haiku(preset, arrays, {}) if column == "haiku" else from_huggingface(preset, arrays)
    assert again == preset
    assert {name: x.shape for name, x in same.items()} == {name: x.shape for name, x in weights.items()}


@pytest.mark.parametrize("name", RECORDED)
def test_haiku_names_and_layouts_are_the_official_ones(name):
    """Converted back, every array that DeepMind's code uses is as it was."""
    recorded = read(name)
    needed = under("param:", recorded)
    for key, array in under("state:", recorded).items():
        if key.endswith(("/average", "mean_ema/counter")):
            needed[key] = array.long() if key.endswith("counter") else array
    assert_same_weights(theirs(name, "haiku")[1], needed)


@pytest.mark.parametrize("name", RECORDED)
def test_to_huggingface_names_and_back_is_exact(name):
    preset, arrays = theirs(name, "huggingface")
    again, weights = from_huggingface(preset, arrays, conv_kernel_transposed=False)
    assert again == preset
    assert_same_weights(weights, converted(name)[1])


def test_only_the_kernel_of_deepminds_weights_in_the_hub_is_transposed():
    """transformers applies the kernel as saved; `test_huggingface` compares the numbers."""
    preset, arrays = theirs("imagenet_conv", "huggingface")
    kernel = arrays["perceiver.input_preprocessor.convnet.conv.weight"]

    def read_with(hf_config=None, **options):
        converted = from_huggingface(preset, arrays, hf_config, **options)[1]
        return converted["input_adapter.adapters.image.stem.convolutions.0.weight"]

    assert torch.equal(read_with(), kernel)
    assert torch.equal(read_with(as_huggingface=False), kernel.transpose(2, 3))
    assert torch.equal(read_with(conv_kernel_transposed=True), kernel.transpose(2, 3))
    assert torch.equal(read_with({"conv_kernel_transposed": False}, as_huggingface=False), kernel)
    assert torch.equal(read_with(conv_kernel_transposed=False, as_huggingface=False), kernel)


def test_deepminds_weights_in_the_hub_compute_what_deepmind_computes(tmp_path):
    """config.json names the erf GELU, with which the weights were not trained."""
    preset, arrays = theirs("imagenet_conv", "huggingface")
    name = "perceiver.input_preprocessor.convnet.conv.weight"
    arrays[name] = arrays[name].mT.contiguous()
    settings = {"num_self_attention_heads": 4, "num_cross_attention_heads": 1, "num_blocks": 2, "hidden_act": "gelu"}
    assert_as_recorded(
        "imagenet_conv", built(*from_huggingface(preset_of("imagenet_conv"), arrays, settings, as_huggingface=False))
    )
    with pytest.raises(ValueError, match=r"^config.json: hidden_act = 'relu': DeepMind's models have gelu$"):
        from_huggingface(preset, arrays, settings | {"hidden_act": "relu"}, as_huggingface=False)


@pytest.mark.parametrize(
    ("source", "theirs"),
    [("a.pystate", False), ("deepmind/vision-perceiver-conv", False), ("someone/vision-perceiver-conv", True)],
)
def test_who_trained_what(source, theirs):
    assert is_theirs(Path(source)) == theirs


def test_a_folder_is_theirs_whatever_its_name(tmp_path, monkeypatch):
    (tmp_path / "deepmind" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert is_theirs(Path("deepmind/mine"))


def test_what_files_leave_open_is_asked_for():
    """A pickle of other sizes than the released model's needs settings; a setting that contradicts it is refused."""
    pickle, image = REFERENCE / "pickles" / "imagenet_conv.pystate", "schema.inputs.image"
    settings = [f"{image}.size=32", f"{image}.positions.max_resolution=8", f"{image}.mean=null", f"{image}.std=null"]
    settings += ["config.processor.num_heads=4"]
    for numbers in (None, False, True):
        with pytest.raises(ValueError, match=r"^nothing in the files says config.processor.num_blocks: give it with "):
            read_checkpoint(pickle, PRESETS["imagenet-conv"].preset(), settings, numbers)
    settings += ["config.processor.num_blocks=2"]
    assert_as_recorded("imagenet_conv", read_checkpoint(pickle, PRESETS["imagenet-conv"].preset(), settings))
    with pytest.raises(ValueError, match=r"^set: config.latents.num_latents = 13, but the files say "):
        read_checkpoint(pickle, PRESETS["imagenet-conv"].preset(), [*settings, "config.latents.num_latents=13"])


def test_a_folder_of_theirs_needs_its_config_json(tmp_path):
    save_tensors(tmp_path / "model.safetensors", theirs("imagenet_fourier", "huggingface")[1])
    with pytest.raises(ValueError, match=r"config.json is missing: it says how many heads and blocks there are$"):
        read_checkpoint(tmp_path, PRESETS["imagenet-fourier"].preset())


KRASSERM = {
    "mlm": {
        "0.input_adapter.txt_embedding.weight",
        "0.input_adapter.pos_embedding.weight",
        "1.output_query_provider._query",
        "1.output_adapter.bias",
    },
    "imagenet_fourier": {
        "1.output_query_provider._query",
        "1.output_adapter.linear.weight",
        "1.output_adapter.linear.bias",
    },
    "flow": {
        "0.input_adapter.linear.weight",
        "0.input_adapter.linear.bias",
        "1.output_adapter.linear.weight",
        "1.output_adapter.linear.bias",
    },
}
"""krasserm's names, as his modules' state lists them (perceiver-io 0.11.0); see `krasserm_names` for the rest."""


def krasserm_names(name):
    """Return the names of all arrays of one of krasserm's models with two layers."""

    def block(prefix, attention, norms):
        linears = [f"{attention}attention.{x}_proj" for x in "qkvo"] + ["1.module.0", "1.module.1", "1.module.3"]
        return {
            f"{prefix}.{module}.{x}"
            for module in [f"{attention}{norm}" for norm in norms] + linears
            for x in ("weight", "bias")
        }

    cross = ["q_norm", "kv_norm"]
    names = {"0.latent_provider._query", *KRASSERM[name]} | block("0.cross_attn_1", "0.module.", cross)
    names |= block("0.self_attn_1.0", "0.module.", ["norm"]) | block("0.self_attn_1.1", "0.module.", ["norm"])
    return names | block("1.cross_attn", "0.module." if name == "imagenet_fourier" else "0.", cross)


@pytest.mark.parametrize("prefix", ["", "model.", "backend_model."])
@pytest.mark.parametrize("name", WITH_KRASSERM)
def test_krasserms_models_convert(name, prefix):
    preset, arrays = theirs(name, "krasserm")
    residual = name == "imagenet_fourier"
    if not residual:
        arrays = {key.replace("1.cross_attn.0.module.", "1.cross_attn.0."): array for key, array in arrays.items()}
    assert arrays.keys() == krasserm_names(name)
    arrays["0.input_adapter.position_encoding.position_encoding"] = torch.zeros(144, 22)
    again, weights = from_krasserm(preset_of(name), {prefix + key: array for key, array in arrays.items()})
    assert again == preset
    assert again.config.decoder.query_residual == residual
    assert_same_weights(weights, converted(name)[1])


def test_krasserm_has_no_other_models():
    with pytest.raises(ValueError, match="the model language, the preset is one of multimodal"):
        from_krasserm(preset_of("video"), theirs("mlm", "krasserm")[1])


def test_weights_are_copies():
    """Readers may return views of a file."""
    preset, arrays = theirs("mlm", "huggingface")
    _, weights = from_huggingface(preset, arrays)
    for array in arrays.values():
        array.zero_()
    assert all(weight.any() for weight in weights.values())
    assert all(weight.is_contiguous() for weight in weights.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_no_two_rows_name_the_same_array(name):
    columns = ["ours", "haiku", "huggingface"] + ["krasserm"] * bool(FAMILIES[name][0].krasserm)
    for column in columns:
        names = [pair.theirs for pair in pairs(name, column, 12)]
        assert len(set(names)) == len(names)
        assert count_layers(name, column, names) == 12


FROM = {
    "haiku": lambda preset, arrays: from_haiku(preset, arrays, {}),
    "huggingface": from_huggingface,
    "krasserm": from_krasserm,
}


@pytest.fixture(params=[(name, c) for name in RECORDED for c in FROM if c != "krasserm" or name in WITH_KRASSERM])
def case(request):
    """Return a foreign model and its reader."""
    name, column = request.param
    preset, arrays = theirs(name, column)
    return preset, arrays, FROM[column]


def test_a_missing_array_is_named(case):
    preset, arrays, convert = case
    for name in [*arrays][:: len(arrays) // 3]:
        rest = {key: array for key, array in arrays.items() if key != name}
        if not name.endswith(("counter", "num_batches_tracked")):
            with pytest.raises(ValueError, match=f"^{name} is missing: the model"):
                convert(preset, rest)


def test_an_array_that_is_left_over_is_named(case):
    preset, arrays, convert = case
    with pytest.raises(ValueError, match=r"^other\.name is left over: the model"):
        convert(preset, arrays | {"other.name": torch.zeros(3)})


def test_an_array_with_an_axis_too_many_or_without_elements_is_named(case):
    preset, arrays, convert = case
    for name in [*arrays][1 :: len(arrays) // 2]:
        for wrong in (arrays[name][None], arrays[name].new_zeros((0,) * arrays[name].ndim)):
            with pytest.raises(ValueError, match=f"^{name} has shape .* it should have . axes, none empty$"):
                convert(preset, arrays | {name: wrong})


def test_an_array_of_a_wrong_size_is_one_line(case):
    """One more entry along the last axis may change the inferred size, so that other arrays are reported."""
    preset, arrays, convert = case
    for name in [*arrays][:: len(arrays) // 5]:
        wrong = torch.zeros(*arrays[name].shape[:-1], (arrays[name].shape or (0,))[-1] + 1)
        with pytest.raises(ValueError, match=r"^[^\n]*$"):
            convert(preset, arrays | {name: wrong})


@pytest.mark.parametrize(
    ("column", "name", "wrong", "right"),
    [
        ("haiku", "perceiver_encoder/~/self_attention_1/mlp/linear/w", [48, 49], [48, 48]),
        ("huggingface", "perceiver.encoder.self_attends.1.mlp.dense1.weight", [49, 48], [48, 48]),
        ("haiku", "embedding_decoder/bias", [263], [262]),
    ],
)
def test_the_array_that_does_not_fit_the_others_is_named(column, name, wrong, right):
    preset, arrays = theirs("mlm", column)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        FROM[column](preset, arrays | {name: torch.zeros(wrong)})
    assert str(raised.value).startswith(f"{name} has shape {wrong}; ")
    assert str(raised.value).endswith(f" should be {right}")


@pytest.mark.parametrize(
    ("name", "array", "shape"),
    [
        ("video", "multimodal_preprocessor/label_padding/pos_embs", (2, 66)),
        ("imagenet_learned", "image_preprocessor/~/conv2_d/w", (7, 7, 3, 16)),
        ("imagenet_conv", "image_preprocessor/~/conv2_d_downsample/~/batchnorm/scale", (2, 2, 2, 64)),
    ],
)
def test_axes_that_we_leave_out_must_be_of_size_1(name, array, shape):
    preset, arrays = theirs(name, "haiku")
    with pytest.raises(ValueError, match=f"^{array} has shape"):
        from_haiku(preset, arrays | {array: torch.zeros(shape)}, {})


def test_whole_numbers_are_no_weights():
    preset, arrays = theirs("mlm", "haiku")
    with pytest.raises(ValueError, match=r"^embed/embeddings holds torch.int32, not floating-point numbers$"):
        from_haiku(preset, arrays | {"embed/embeddings": np.zeros((262, 32), np.int32)}, {})


def test_an_array_cannot_be_parameter_and_state():
    arrays = theirs("mlm", "haiku")[1]
    with pytest.raises(ValueError, match="both a parameter and a state"):
        from_haiku(preset_of("mlm"), arrays, {"embed/embeddings": arrays["embed/embeddings"]})


@pytest.mark.parametrize("column", ["haiku", "huggingface"])
@pytest.mark.parametrize("name", RECORDED)
def test_a_preset_of_another_model_is_refused(name, column):
    for other in RECORDED:
        if other != name:
            with pytest.raises(ValueError, match=f"the model {RECORDED[name][0]}, the preset is one of"):
                FROM[column](preset_of(other), theirs(name, column)[1])


def test_other_arrays_are_refused():
    for column, convert in FROM.items():
        with pytest.raises(ValueError, match=f"^not the arrays of one of the models .* as {column} names them$"):
            convert(PRESETS["language"].preset(), {"a": torch.zeros(3), "b/c": torch.zeros(2, 2)})


def test_a_preset_without_released_weights_is_refused():
    for name in ("perceiver-fourier", "audioset-512"):
        with pytest.raises(ValueError, match=r"^a preset of which no weights were released: "):
            from_haiku(PRESETS[name].preset(), theirs("imagenet_fourier", "haiku")[1], {})


def test_heads_that_do_not_divide_are_named():
    preset = changed(preset_of("mlm"), {"config.encoder.num_heads": 7})
    with pytest.raises(ValueError, match="qk_channels = 16 is not a multiple of num_heads = 7"):
        from_haiku(preset, theirs("mlm", "haiku")[1], {})


def test_values_have_paths():
    preset = PRESETS["multimodal"].preset()
    other = changed(preset, {"schema.inputs.image.positions.num_bands": 5, "config.decoder.num_heads": 3})
    assert value_at(other, "schema.inputs.image.positions.num_bands") == 5
    assert value_at(other, "config.decoder.num_heads") == 3
    assert value_at(other, "schema.outputs.image") == value_at(preset, "schema.outputs.image")


CONFIG = {"num_blocks": 3, "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "use_query_residual": False}


def test_config_json_tells_what_shapes_do_not():
    preset, arrays = theirs("imagenet_fourier", "huggingface")
    names = {str(number): name for number, name in enumerate("abcdefghij")}
    preset = changed(preset, {"schema.outputs.label.classes": 11})
    settings = {**CONFIG, "num_cross_attention_heads": 1, "id2label": names}
    again, _ = from_huggingface(preset, arrays, settings, as_huggingface=False)
    assert again.config.processor.num_blocks == 3
    assert again.config.processor.num_heads == 2
    assert not again.config.encoder.query_residual
    assert again.schema.outputs["label"].classes == tuple("abcdefghij")
    settings |= {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2}
    with pytest.raises(
        ValueError, match=r"^transformers has no .* with schema.inputs.image.positions = Fourier\(num_ba"
    ):
        from_huggingface(preset, arrays, settings)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        ({"num_blocks": 10**7}, "num_blocks = 10000000 is more than 1000"),
        ({"num_blocks": "2"}, "num_blocks = '2' is not a whole number"),
        ({"num_blocks": True}, "num_blocks = True is not"),
        ({"num_self_attention_heads": 0}, "num_self_attention_heads = 0 is not"),
        ({"num_self_attention_heads": [2]}, r"num_self_attention_heads = \[2\] is not"),
        ({"num_cross_attention_heads": 1.5}, "num_cross_attention_heads = 1.5 is not"),
        ({"use_query_residual": "no"}, "use_query_residual = 'no' is not true or false"),
        ({"id2label": {"0": 3}}, "id2label is not a table"),
        ({"id2label": {"zero": "a"}}, "id2label is not a table"),
        ({"id2label": {"0": "a\nb"}}, "id2label is not a table"),
        (
            {"id2label": {"0": "a", "1": "b"}},
            r"num_labels = 2 \(id2label\), but the arrays are those of a model with 10",
        ),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is none of gelu, "),
        ({"hidden_act": 3}, "hidden_act = 3 is none of"),
        ({"attention_probs_dropout_prob": 1}, "attention_probs_dropout_prob = 1 is not a number from 0 to below 1"),
        ({"d_latents": 49}, "d_latents = 49, but the arrays are those of a model with"),
        ({"num_self_attends_per_block": 3}, "num_self_attends_per_block = 3, but the arrays"),
        ({"self_attention_widening_factor": 2}, "self_attention_widening_factor = 2, but the arrays"),
        ({"qk_channels": 8}, "qk_channels and v_channels of the encoder come to .*, its arrays have"),
        ({"v_channels": 8}, "qk_channels and v_channels of the encoder come to"),
        ({"qk_channels": "8"}, "qk_channels = '8' is not a whole number"),
        ({"cross_attention_shape_for_attention": "q"}, "qk_channels and v_channels of the encoder come to"),
        ({"cross_attention_shape_for_attention": "k"}, "cross_attention_shape_for_attention = 'k' is neither"),
        ({"model_type": "bert"}, "model_type = 'bert', those of transformers' Perceivers say 'perceiver'"),
        ({"architectures": ["PerceiverForMaskedLM"]}, r"architectures = .* is the model language; imagenet-fourier is"),
        ({"architectures": ["PerceiverForSequenceClassification"]}, "architectures = .* is none that can be converted"),
        ({"architectures": 3}, "architectures = 3 is none that can be converted"),
    ],
)
def test_lies_in_config_json_are_named(lie, message):
    heads = {"num_self_attention_heads": 4, "num_cross_attention_heads": 1}
    with pytest.raises(ValueError, match=f"^config.json: {message}"):
        from_huggingface(*theirs("imagenet_fourier", "huggingface"), heads | lie)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mlm", {}, "config.decoder.num_heads = 4, only with 8"),
        ("mlm", {"config.decoder.num_heads": 8}, "decoder queries and keys of width = 16, only with 256"),
        ("imagenet_fourier", {}, "inputs.image.positions = Fourier.num_bands=5"),
        ("imagenet_learned", {}, "image.embed = 16, only with 256"),
        ("imagenet_conv", {}, "inputs.image.positions = Fourier.num_bands=5"),
        ("flow", {}, "inputs.frames.positions = Fourier.num_bands=4"),
        ("flow", {"config.decoder.activation": "gelu_erf"}, "an activation of its own for each stage"),
        ("video", {"config.encoder.num_heads": 73}, "channels modulo config.encoder.num_heads = 32, only with 0"),
        ("imagenet_fourier", {"config.encoder.query_residual": False, "config.encoder.num_heads": 25}, "modulo"),
        ("video", {}, "inputs.audio.positions = Fourier.num_bands=6"),
    ],
)
def test_what_transformers_cannot_say_is_named(name, values, message):
    preset, weights = converted(name)
    with pytest.raises(ValueError, match=f"^transformers has no .*{message}"):
        to_huggingface(changed(preset, values), weights)


def test_to_huggingface_wants_the_presets_weights():
    preset, weights = converted("mlm")
    with pytest.raises(ValueError, match=r"trunk\.latents is missing"):
        to_huggingface(preset, {name: x for name, x in weights.items() if name != "trunk.latents"})
    with pytest.raises(ValueError, match=r"trunk.latents has shape \[9, 48\]"):
        to_huggingface(preset, weights | {"trunk.latents": torch.zeros(9, 48)})


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("language", "schema.outputs.restored.mask_queries = False, not True"),
        ("imagenet-learned", "config.decoder.query_residual = True, not False"),
        ("imagenet-conv", "schema.inputs.image.conv_padding = symmetric, not same"),
        ("optical-flow", "schema.outputs.flow.scale = 1.0, not 20.0"),
    ],
)
def test_what_transformers_computes_otherwise_is_refused_unless_it_is_wanted(name, differs, tmp_path):
    preset = PRESETS[name].preset()
    weights = preset.build("meta").state_dict()
    with pytest.raises(ValueError, match=f"^transformers computes with {differs}: --numbers huggingface "):
        to_huggingface(preset, weights)
    config = to_huggingface(huggingface_options(preset, activation=None), weights)[1]
    assert config["hidden_act"] == "gelu_pytorch_tanh"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("language", {"config.decoder.attention_dropout": 0.3}, "an attention_dropout of its own for each stage = 0.3"),
        (
            "language",
            {"schema.outputs.restored.tokenizer": "other.json", "config.trunk": "transformer"},
            "config.trunk",
        ),
        ("imagenet-fourier", {"schema.inputs.image.mask_at_eval": True}, "schema.inputs.image.mask_at_eval = True"),
        ("imagenet-fourier", {"schema.inputs.image.stem": "strided"}, "schema.inputs.image.stem = 'strided'"),
        ("optical-flow", {"schema.inputs.frames.separate": True}, "schema.inputs.frames.separate = True"),
        ("multimodal", {"schema.outputs.audio.mean": (0.5,)}, r"schema.outputs.audio.mean = \(0.5,\)"),
        ("multimodal", {"schema.inputs.image.std": (2.0,)}, r"schema.inputs.image.std = \(2.0,\)"),
        ("multimodal", {"schema.inputs.image.size": (16, 112, 112)}, "schema.outputs.image.size = "),
    ],
)
@pytest.mark.filterwarnings("ignore:trunk. transformer reads no latents")
def test_a_field_that_config_json_has_no_key_for_is_as_by_default(name, values, message):
    preset = huggingface_options(PRESETS[name].preset())
    weights = preset.build("meta").state_dict()
    with pytest.raises(ValueError, match=f"^transformers has no .* with {message}"):
        written_config(changed(preset, values), name, weights)
    assert written_config(preset, name, weights)


def test_a_field_that_is_new_is_refused():
    @dataclass(frozen=True)
    class Turned(Label):
        turned: bool = False

    preset = huggingface_options(PRESETS["imagenet-fourier"].preset())
    weights = preset.build("meta").state_dict()
    for turned in (False, True):
        label = Turned(classes=1000, query_channels=1024, turned=turned)
        other = replace(preset, schema=replace(preset.schema, outputs={"label": label}))
        if not turned:
            assert written_config(other, "imagenet-fourier", weights)
    with pytest.raises(ValueError, match=r"with schema.outputs.label.turned = True, only with False$"):
        written_config(other, "imagenet-fourier", weights)


def test_training_that_transformers_does_not_do_is_a_warning():
    preset = changed(huggingface_options(PRESETS["imagenet-fourier"].preset()), {"config.processor.dropout": 0.1})
    with pytest.warns(UserWarning, match=r"^transformers trains without config.processor.dropout = 0.1$"):
        to_huggingface(preset, preset.build("meta").state_dict())


def test_the_options_of_transformers_are_few():
    for name in RELEASED:
        preset = PRESETS[name].preset()
        options = huggingface_options(preset)
        assert huggingface_options(options) == options
        assert [x.shape for x in options.build("meta").parameters()] == [
            x.shape for x in preset.build("meta").parameters()
        ]


def test_symmetric_padding_is_for_convolutions_on_inputs():
    image = Image(size=224, stem="conv", patch=4, conv_padding="symmetric")
    assert image.grid == (55, 55)
    with pytest.raises(ValueError, match="conv_padding: symmetric has no effect without stem: conv"):
        Image(conv_padding="symmetric")
    with pytest.raises(ValueError, match="conv_padding: symmetric is for inputs"):
        image.build_output(8, {})
    assert image.build_input()(torch.zeros(1, 224, 224, 3)).grid == (55, 55)
