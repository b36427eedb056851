"""Equality with transformers' classes, with random weights, in both directions, under the numerics `huggingface`."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from perceivers.files.tensor_files import save_tensors
from perceivers.modalities.patches import as_sizes, surrounding_patches
from perceivers.modalities.points import Indices
from perceivers.pretrained.checkpoint_files import read_checkpoint, write_huggingface
from perceivers.pretrained.class_shapes import class_shapes
from perceivers.pretrained.conversion import from_huggingface, huggingface_options, to_huggingface
from perceivers.pretrained.foreign import read_torch
from perceivers.pretrained.huggingface import CLASSES, DEFAULTS, HIDDEN_ACTS
from perceivers.pretrained.model_folder import load_weights
from perceivers.pretrained.normalisation import with_normalisation
from perceivers.pretrained.sizes import STAGES, changed
from perceivers.schema.preset import Preset
from perceivers.systems import PRESETS
from perceivers.systems.imagenet.model import MEAN, STD
from reference_files import relative_error

TOLERANCE = 1e-5

SMALL = {"num_latents": 7, "num_self_attends_per_block": 2, "num_blocks": 3, "use_query_residual": False} | {
    "self_attention_widening_factor": 2,
    "cross_attention_widening_factor": 3,
}

BY_QUERIES = {"cross_attention_shape_for_attention": "q"}

TINY = {
    "language": SMALL
    | {"d_latents": 30, "d_model": 40, "num_self_attention_heads": 5, "num_cross_attention_heads": 3}
    | {"qk_channels": 15, "v_channels": 30, "vocab_size": 131, "max_position_embeddings": 23, "hidden_act": "relu"},
    "imagenet-fourier": SMALL
    | {"d_latents": 30, "num_self_attention_heads": 5, "num_cross_attention_heads": 3, "num_labels": 11},
    "imagenet-learned": SMALL
    | {"d_latents": 28, "num_self_attention_heads": 7, "num_cross_attention_heads": 4, "num_labels": 11}
    | {"image_size": 13, "hidden_act": "gelu_new"},
    "imagenet-conv": SMALL
    | {"d_latents": 21, "num_self_attention_heads": 3, "num_cross_attention_heads": 7, "num_labels": 11}
    | {"hidden_act": "quick_gelu"}
    | BY_QUERIES,
    "optical-flow": SMALL
    | {"d_latents": 21, "num_self_attention_heads": 3, "num_cross_attention_heads": 7, "train_size": [10, 14]}
    | {"hidden_act": "silu"}
    | BY_QUERIES,
    "multimodal": SMALL
    | {"d_latents": 35, "num_self_attention_heads": 7, "num_cross_attention_heads": 5, "num_labels": 13}
    | {"num_frames": 3, "image_size": 5, "audio_samples_per_frame": 54, "samples_per_patch": 6}
    | {"output_shape": [1, 2, 12, 20], "output_num_channels": 29, "_label_trainable_num_channels": 37}
    | {"hidden_act": "gelu_pytorch_tanh"},
}
"""The smallest sizes that the classes allow, different from the released models in every key that changes the numbers.

They hard-code bands, most widths and the decoder's heads.
"""

OTHER_NAMES = {"hidden_act", "num_labels", "qk_channels", "v_channels", "cross_attention_shape_for_attention"}
"""Keys that can express the same in several ways."""

IMAGENET = {
    "num_latents": 512,
    "d_latents": 1024,
    "num_blocks": 8,
    "num_self_attends_per_block": 6,
    "num_cross_attention_heads": 1,
    "num_labels": 1000,
}

FULL = {
    "language": {"qk_channels": 256, "v_channels": 1280},
    "imagenet-fourier": IMAGENET,
    "imagenet-learned": IMAGENET | {"image_size": 224},
    "imagenet-conv": IMAGENET,
    "optical-flow": {"num_latents": 2048, "d_latents": 512, "num_self_attends_per_block": 24}
    | {"num_self_attention_heads": 16, "num_cross_attention_heads": 1},
    "multimodal": {"num_latents": 784, "d_latents": 512, "num_self_attends_per_block": 8}
    | {"num_cross_attention_heads": 1, "num_labels": 700},
}
"""Sizes of the released models."""

Outputs = dict[str, Tensor]


@dataclass
class Question:
    """Inputs for both models, and points for models that decode at some positions."""

    theirs: dict[str, Any]
    ours: dict[str, Any]
    points: dict[str, Indices] | None = None


def ask_language(config: Any) -> Question:
    length = min(config.max_position_embeddings, 200) - 3
    ids = torch.randint(0, config.vocab_size, (3, length))
    mask = torch.arange(length) < torch.tensor([[length], [length // 2], [1]])
    return Question({"inputs": ids, "attention_mask": mask.long()}, {"text": {"ids": ids, "mask": mask}})


def ask_imagenet(height: int, width: int) -> Question:
    images = 255 * torch.rand(1 if height > 100 else 2, height, width, 3)
    pixels = (images - torch.tensor(MEAN)) / torch.tensor(STD)
    return Question({"inputs": pixels.movedim(-1, 1)}, {"image": images})


def ask_optical_flow(config: Any) -> Question:
    frames = 2 * torch.rand(1, 2, *config.train_size, 3) - 1
    return Question({"inputs": surrounding_patches(frames, 3).movedim(-1, 2)}, {"frames": frames})


def ask_multimodal(config: Any) -> Question:
    _, *size = config.output_shape
    samples = config.num_frames * config.audio_samples_per_frame
    image, audio = torch.rand(2, *size, 3), 2 * torch.rand(2, samples, 1) - 1
    label = torch.zeros(2, config.num_labels)
    index = {
        "image": torch.randperm(math.prod(size))[:97],
        "audio": torch.randperm(samples // config.samples_per_patch)[:5],
    }
    return Question(
        {
            "inputs": {"image": image.movedim(-1, 2), "audio": audio, "label": label},
            "subsampled_output_points": {**index, "label": None},
        },
        {"image": image, "audio": audio, "label": label},
        {name: Indices(places) for name, places in index.items()},
    )


def question_for(family: str, config: Any, size: tuple[int, int]) -> Question:
    if family.startswith("imagenet"):
        return ask_imagenet(*size)
    return {"language": ask_language, "optical-flow": ask_optical_flow, "multimodal": ask_multimodal}[family](config)


def their_model(family: str, sizes: dict[str, Any]) -> Any:
    """Return one of transformers' models, with every parameter and statistic random."""
    config = transformers.PerceiverConfig(**sizes)
    model = getattr(transformers, CLASSES[family])(config).eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                x.uniform_(0.5, 2)
            elif name.endswith("num_batches_tracked"):
                x.fill_(5)
            elif "norm" in name and name.endswith("weight"):
                x.normal_(1, 0.2)
            else:
                x.normal_(0, 0.5 if x.ndim < 2 or min(x.shape) == 1 else x[0].numel() ** -0.5)
    return model


def their_outputs(model: Any, family: str, question: Question) -> Outputs:
    with torch.no_grad():
        logits = model(**question.theirs).logits
    return logits if family == "multimodal" else {"y": logits}


def our_outputs(preset: Preset, weights: dict[str, Tensor], family: str, question: Question) -> Outputs:
    model = preset.build()
    load_weights(model, weights, "converted")
    with torch.no_grad():
        outputs = model.eval()(question.ours, question.points)
    if family == "multimodal":
        return outputs | {"audio": outputs["audio"].flatten(1)}
    return {"y": next(iter(outputs.values()))}


def assert_equal(ours: Outputs, theirs: Outputs) -> None:
    assert ours.keys() == theirs.keys()
    for name, output in ours.items():
        # Their class decodes all positions of a text of the maximum length.
        expected = theirs[name][:, : output.shape[1]] if output.ndim == 3 else theirs[name]
        assert relative_error(output, expected) <= TOLERANCE, name


def saved(model: Any, folder: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Save a model with transformers and load its files with our reader."""
    model.save_pretrained(folder)
    return read_torch(folder), json.loads((folder / "config.json").read_text())


def loaded(family: str, weights: dict[str, Tensor], config: dict[str, Any], folder: Any) -> Any:
    """Save weights with our code and load them with transformers, which must find all of its arrays and no others."""
    save_tensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config))
    model, report = getattr(transformers, CLASSES[family]).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def size_of(family: str) -> tuple[int, int]:
    """Return height and width; transformers' learned positions need a square."""
    return {"imagenet-learned": (13, 13), "imagenet-conv": (37, 43)}.get(family, (12, 17))


def read_as_theirs(family: str, folder: Any) -> tuple[Preset, dict[str, Tensor]]:
    """Convert a folder as `convert` does without options."""
    model = read_checkpoint(folder, PRESETS[family].preset())
    return Preset(model.schema, model.config), model.state_dict()


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.prints_warnings  # torchao, which transformers imports, warns of deprecations
def test_theirs_as_ours_compute_the_same(family: str, tmp_path: Any) -> None:
    """A folder saved by transformers needs only the model's name; written back, it is the same."""
    model = their_model(family, TINY[family])
    model.save_pretrained(tmp_path / "theirs")
    preset, ours = read_as_theirs(family, tmp_path / "theirs")
    question = question_for(family, model.config, size_of(family))
    expected = their_outputs(model, family, question)
    assert_equal(our_outputs(preset, ours, family, question), expected)

    write_huggingface(read_checkpoint(tmp_path / "theirs", PRESETS[family].preset()), tmp_path / "again")
    again, report = type(model).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(report.values()), report
    for key in TINY[family].keys() - OTHER_NAMES:
        assert getattr(again.config, key) == getattr(model.config, key), key
    for name, output in their_outputs(again.eval(), family, question).items():
        assert relative_error(output, expected[name]) <= 1e-6  # names of the same activation differ by rounding


@pytest.mark.parametrize("activation", HIDDEN_ACTS)
def test_every_activation_is_theirs(activation: str) -> None:
    model = their_model("optical-flow", TINY["optical-flow"] | {"hidden_act": activation})
    config = plain(model.config.to_dict())
    preset, ours = from_huggingface(PRESETS["optical-flow"].preset(), model.state_dict(), config)
    question = ask_optical_flow(model.config)
    expected = their_outputs(model, "optical-flow", question)
    assert_equal(our_outputs(preset, ours, "optical-flow", question), expected)
    other = changed(preset, {f"config.{stage}.activation": "relu" for stage in STAGES})
    if activation != "relu":
        assert relative_error(our_outputs(other, ours, "optical-flow", question)["y"], expected["y"]) > 1e-3


@pytest.mark.parametrize("family", CLASSES)
def test_ours_as_theirs_compute_the_same(family: str, tmp_path: Any) -> None:
    """With sizes and an activation that transformers' defaults lack."""
    weights, config = saved(their_model(family, TINY[family]), tmp_path)
    preset, ours = from_huggingface(PRESETS[family].preset(), weights, config)
    preset = changed(preset, {f"config.{stage}.activation": "gelu_tanh" for stage in STAGES})
    ours = {name: torch.randn_like(x) * 0.1 + x if x.is_floating_point() else x for name, x in ours.items()}
    ours = {name: x.abs() if name.endswith("running_var") else x for name, x in ours.items()}
    theirs, config = to_huggingface(preset, ours)
    model = loaded(family, theirs, config, tmp_path)
    question = question_for(family, model.config, size_of(family))
    assert_equal(our_outputs(preset, ours, family, question), their_outputs(model, family, question))

    again, same = from_huggingface(preset, theirs, config)
    assert again == preset
    assert all(torch.equal(same[name], ours[name]) for name in ours)


@pytest.mark.parametrize("family", CLASSES)
def test_every_array_of_theirs_is_used(family: str) -> None:
    """At full size, on the meta device; the preset after the round trip is the released one."""
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[family])(transformers.PerceiverConfig(**FULL[family]))
    preset = PRESETS[family].preset()
    config = {key: x for key, x in model.config.to_dict().items() if x is not None}
    again, weights = from_huggingface(preset, model.state_dict(), plain(config), as_huggingface=False)
    assert again == preset
    theirs, written = to_huggingface(huggingface_options(preset), weights)
    assert theirs.keys() == model.state_dict().keys()
    known = model.config.to_dict()
    assert {key: x for key, x in written.items() if key in known and x != plain(known[key])}.keys() <= {
        *("architectures", "hidden_act", "dtype", "d_model", "attention_probs_dropout_prob")
    }


@pytest.mark.parametrize("sizes", [TINY, FULL])
@pytest.mark.parametrize("family", CLASSES)
def test_shapes_of_their_classes_follow_from_config_json(family: str, sizes: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = getattr(transformers, CLASSES[family])(transformers.PerceiverConfig(**sizes[family]))
    shapes = class_shapes(family, model.config.to_dict() | {"num_labels": model.config.num_labels})
    assert shapes == {name: tuple(array.shape) for name, array in model.state_dict().items()}


def test_defaults_are_theirs_for_every_key_of_their_class() -> None:
    """All keys except two, which do not affect the outputs."""
    config, general = transformers.PerceiverConfig(), transformers.PreTrainedConfig().to_dict()
    own = {key: value for key, value in plain(config.to_dict()).items() if key not in general}
    assert own | {"num_labels": config.num_labels} == DEFAULTS | {
        "initializer_range": config.initializer_range,
        "layer_norm_eps": config.layer_norm_eps,
    }


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("language", {"config.processor.v_channels": 15, "config.encoder.v_channels": 15}, "processor.v_channels = 15"),
        ("optical-flow", {"config.processor.v_channels": 15}, "processor.v_channels = 15, only with 21"),
        ("multimodal", {"schema.inputs.label.classes": 14}, "inputs.label.classes = 14, only with 13"),
        ("multimodal", {"schema.outputs.label.classes": 14}, "inputs.label.classes = 13, only with 14"),
    ],
)
def test_what_their_class_could_not_load_is_not_written(
    family: str, changes: dict[str, Any], message: str, tmp_path: Any
) -> None:
    preset, _ = from_huggingface(PRESETS[family].preset(), *saved(their_model(family, TINY[family]), tmp_path))
    with pytest.raises(ValueError, match=f"^transformers has no .*{message}"):
        write_huggingface(changed(preset, changes).build(), tmp_path / "written")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("family", "lie", "message"),
    [
        ("imagenet-fourier", {"id2label": list("abcdefghijk")}, "id2label is not a table"),
        ("imagenet-fourier", {"num_labels": 5}, "num_labels = 5, but id2label has 11"),
        ("imagenet-fourier", {"id2label": None, "num_labels": 5}, "num_labels = 5, but the arrays .* with 11"),
        (
            "imagenet-fourier",
            {"id2label": None},
            "num_labels is missing, which means 2 to transformers, but .* with 11",
        ),
        (
            "imagenet-fourier",
            {"num_latents": ...},
            "num_latents is missing, which means 256 to transformers, .* with 7",
        ),
        ("imagenet-fourier", {"self_attention_widening_factor": ...}, "self_attention_widening_factor is missing"),
        ("imagenet-fourier", {"qk_channels": 0}, "qk_channels = 0 is not a whole number"),
        ("imagenet-fourier", {"v_channels": 0}, "v_channels = 0 is not a whole number"),
        ("imagenet-fourier", {"cross_attention_shape_for_attention": None}, "= None is neither 'kv' nor 'q'"),
        ("imagenet-fourier", {"quantization_config": {"quant_method": "x"}}, "quantization_config: quantised weights"),
        ("imagenet-learned", {"image_size": ...}, "image_size is missing, which means 56 .* with 13"),
        ("language", {"vocab_size": ...}, "vocab_size is missing, which means 262 to transformers"),
        ("language", {"qk_channels": ...}, "qk_channels and v_channels of the encoder come to"),
        ("multimodal", {"samples_per_patch": ...}, "samples_per_patch is missing, which means 16 to transformers"),
    ],
)
def test_what_config_json_says_or_lacks_must_be_that_of_the_arrays(
    family: str, lie: dict[str, Any], message: str, tmp_path: Any
) -> None:
    """transformers' class would not load such folders either; `...` stands for a missing key."""
    weights, config = saved(their_model(family, TINY[family]), tmp_path)
    config = {key: value for key, value in (config | lie).items() if value is not ...}
    with pytest.raises(ValueError, match=f"^config.json: .*{message}"):
        from_huggingface(PRESETS[family].preset(), weights, config)


def plain(value: Any) -> Any:
    """Return a value as JSON represents it."""
    return json.loads(json.dumps(value))


def test_names_of_classes_come_and_go(tmp_path: Any) -> None:
    weights, config = saved(their_model("imagenet-fourier", TINY["imagenet-fourier"]), tmp_path)
    config["id2label"]["3"] = 4
    with pytest.raises(ValueError, match="id2label is not a table"):
        from_huggingface(PRESETS["imagenet-fourier"].preset(), weights, config)
    names = tuple(f"a thing, number {number}" for number in range(11))
    config["id2label"] = {str(number): name for number, name in enumerate(names)}
    preset, ours = from_huggingface(huggingface_options(PRESETS["imagenet-fourier"].preset()), weights, config)
    assert preset.schema.outputs["label"].classes == names
    model = loaded("imagenet-fourier", *to_huggingface(preset, ours), tmp_path)
    assert model.config.id2label == dict(enumerate(names))


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_full_size(family: str) -> None:
    """Both directions; the second is checked by equal weights and sizes."""
    model = their_model(family, FULL[family])
    config = plain(model.config.to_dict()) | {"attention_probs_dropout_prob": 0.0}
    preset, ours = from_huggingface(PRESETS[family].preset(), model.state_dict(), config)
    assert preset == huggingface_options(PRESETS[family].preset())
    question = question_for(family, model.config, (224, 224))
    assert_equal(our_outputs(preset, ours, family, question), their_outputs(model, family, question))
    theirs, config = to_huggingface(preset, ours)
    again = type(model)(transformers.PerceiverConfig.from_dict(config))
    again.load_state_dict(theirs)
    assert all(torch.equal(x, y) for x, y in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert {key: x for key, x in again.config.to_dict().items() if key in FULL[family]} == {
        key: x for key, x in model.config.to_dict().items() if key in FULL[family]
    }


def test_convert_says_whose_numbers_it_took(command: Any, tmp_path: Any) -> None:
    their_model("imagenet-conv", TINY["imagenet-conv"]).save_pretrained(tmp_path / "theirs")
    code, out, err = command("convert", tmp_path / "theirs", tmp_path / "ours", "--model", "imagenet-conv")
    assert code == 0, err
    assert "computing as transformers does (--numbers)" in " ".join(out.split())
    code, _, err = command("convert", tmp_path / "ours", tmp_path / "again", "--to", "huggingface")
    assert code == 0, err
    for option in (("--model", "imagenet-conv"), ("--numbers", "deepmind"), ("--set", "config.trunk=perceiver")):
        code, _, err = command("convert", tmp_path / "ours", tmp_path / "third", *option)
        assert (code, len(err.strip().splitlines())) == (2, 1)
        assert "is a model of ours: model, set and numbers have no effect on it; leave them out" in err


def test_a_model_of_ours_is_written_otherwise_only_on_demand(command: Any, tmp_path: Any) -> None:
    """The padding of our model differs from theirs; the activation and everything else agrees."""
    their_model("imagenet-conv", TINY["imagenet-conv"]).save_pretrained(tmp_path / "theirs")
    numbers = ["--numbers", "deepmind", "--set", "config.encoder.attention_dropout=0.1"]
    numbers += ["config.processor.attention_dropout=0.1", "config.decoder.attention_dropout=0.1"]
    plainly = json.loads((tmp_path / "theirs" / "config.json").read_text()) | {"hidden_act": "gelu"}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(plainly))
    code, _, err = command("convert", tmp_path / "theirs", tmp_path / "ours", "--model", "imagenet-conv", *numbers)
    assert code == 0, err
    code, _, err = command("convert", tmp_path / "ours", tmp_path / "again", "--to", "huggingface")
    assert code == 2
    assert "transformers computes with schema.inputs.image.conv_padding = symmetric, not same" in err
    arguments = ("--to", "huggingface", "--numbers", "huggingface")
    code, _, err = command("convert", tmp_path / "ours", tmp_path / "again", *arguments)
    assert code == 0, err
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (written["hidden_act"], written["attention_probs_dropout_prob"]) == ("gelu_pytorch_tanh", 0.1)
    again = read_checkpoint(tmp_path / "again", PRESETS["imagenet-conv"].preset(), (), False).state_dict()
    ours = read_checkpoint(tmp_path / "theirs", PRESETS["imagenet-conv"].preset(), (), False).state_dict()
    assert all(torch.equal(again[name], x) for name, x in ours.items())


def test_their_other_classes_are_named(tmp_path: Any) -> None:
    sizes = TINY["language"] | {"num_labels": 5}
    transformers.PerceiverForSequenceClassification(transformers.PerceiverConfig(**sizes)).save_pretrained(tmp_path)
    message = "architectures = .'PerceiverForSequenceClassification'. is none that can be converted; language is"
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path, PRESETS["language"].preset())


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.7]},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 70.0, 30.0]},
        {"rescale_factor": 0.01, "size": {"height": 131, "width": 127}},
    ],
)
def test_pixels_are_scaled_as_their_processor_scales_them(processor: dict[str, Any], tmp_path: Any) -> None:
    """Both directions, without cropping and resizing."""
    theirs, family = their_model("imagenet-conv", TINY["imagenet-conv"]), "imagenet-conv"
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.PerceiverImageProcessorPil(**processor).save_pretrained(tmp_path / "theirs")
    ours = read_checkpoint(tmp_path / "theirs", PRESETS[family].preset())
    image = ours.schema.inputs["image"]
    assert as_sizes(image.size, 2, "size") == tuple(processor.get("size", {"height": 224, "width": 224}).values())
    if not processor:
        assert (image.mean, image.std) == (MEAN, STD)
    write_huggingface(ours, tmp_path / "again")
    pixels = torch.randint(0, 256, (37, 43, 3), dtype=torch.uint8)
    with torch.no_grad():
        (output,) = ours({"image": pixels[None].float()}).values()
        for folder in ("theirs", "again"):
            prepare = transformers.PerceiverImageProcessorPil.from_pretrained(tmp_path / folder)
            given = prepare(pixels.numpy(), do_resize=False, do_center_crop=False, return_tensors="pt")
            assert relative_error(output, theirs(given["pixel_values"]).logits) <= TOLERANCE, folder
    assert read_checkpoint(tmp_path / "again", PRESETS[family].preset()).schema == ours.schema


@pytest.mark.parametrize(
    "said",
    [
        *({"size": 131, "crop_size": 150, "feature_extractor_type": "PerceiverFeatureExtractor"}, {"size": [131, 127]}),
        *({"do_normalize": None}, {"do_rescale": None, "size": 96}, {}),
    ],
)
def test_older_forms_of_a_processor_are_read_as_theirs_reads_them(said: dict[str, Any], tmp_path: Any) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    theirs = transformers.PerceiverImageProcessorPil.from_pretrained(tmp_path)
    image = with_normalisation(PRESETS["imagenet-conv"].preset(), said).schema.inputs["image"]
    assert as_sizes(image.size, 2, "size") == (theirs.size.height, theirs.size.width)
    mean, std = (theirs.image_mean, theirs.image_std) if theirs.do_normalize else (0, 1)
    scale = theirs.rescale_factor if theirs.do_rescale else 1
    assert np.allclose(image.mean, np.divide(mean, scale))
    assert np.allclose(image.std, np.divide(std, scale))


@pytest.mark.parametrize(
    "lie",
    [
        *({"image_mean": [1, 2]}, {"image_mean": None}, {"image_std": "1"}, {"image_std": 0.0}),
        *({"image_std": 1e-40}, {"image_mean": [0.5, 1e308, 0.5]}, {"image_mean": 1e29, "image_std": 1e-29}),
        *({"rescale_factor": float("nan")}, {"rescale_factor": 1e-300}, {"rescale_factor": 1e300}),
        *({"rescale_factor": 1e300, "image_std": 1e-29}, {"rescale_factor": -1.0}),
        *({"size": 3.0}, {"size": True}, {"size": 0}, {"size": [3]}, {"size": {"shortest_edge": 3}}, {"size": None}),
        *({"do_rescale": "no"}, {"do_normalize": 1}, {"image_processor_type": "MobileViTImageProcessor"}),
    ],
)
def test_lies_of_a_processor_are_named(lie: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^preprocessor_config.json: .*{next(iter(lie))} = "):
        with_normalisation(PRESETS["imagenet-conv"].preset(), lie)
