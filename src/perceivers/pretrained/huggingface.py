"""The models of transformers: what their config.json says, which of our models it can say, and how they compute."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from perceivers.core.positions import Fourier
from perceivers.modalities.grid import Grid
from perceivers.modalities.patches import as_sizes
from perceivers.preset import Preset
from perceivers.pretrained.sizes import INPUT, OUTPUT, Values, Weights, axes_of, value_at, widths

CLASSES = {
    "language": "PerceiverForMaskedLM",
    "imagenet-fourier": "PerceiverForImageClassificationFourier",
    "imagenet-learned": "PerceiverForImageClassificationLearned",
    "imagenet-conv": "PerceiverForImageClassificationConvProcessing",
    "optical-flow": "PerceiverForOpticalFlow",
    "multimodal": "PerceiverForMultimodalAutoencoding",
}
"""The class of each released model."""

TOLD_BY_CONFIG = {
    "num_blocks": "config.processor.num_blocks",
    "num_self_attention_heads": "config.processor.num_heads",
    "num_cross_attention_heads": "config.encoder.num_heads",
    "use_query_residual": "config.encoder.query_residual",
}
"""Keys of config.json that say what shapes do not, beside sizes of pictures and clips."""

TOLD_BY_SHAPES = {
    "num_latents": "config.latents.num_latents",
    "d_latents": "config.latents.channels",
    "num_self_attends_per_block": "config.processor.num_layers",
    "self_attention_widening_factor": "config.processor.widening_factor",
    "cross_attention_widening_factor": "config.encoder.widening_factor",
}
"""Keys that are written and not read."""

TOLD_BY_ITS_SHAPES = {
    "language": {"vocab_size": f"{INPUT}text.vocab_size", "max_position_embeddings": f"{INPUT}text.length"},
    "multimodal": {
        "output_num_channels": "config.decoder.output_channels",
        "_label_trainable_num_channels": f"{OUTPUT}label.query_channels",
    },
}
"""The same of one model."""

CLIP_KEYS = ("num_frames", "audio_samples_per_frame", "image_size", "output_shape")
"""Keys that say the sizes of a clip together."""

DECODER_HEADS = dict.fromkeys(CLASSES, 1) | {"language": 8}

FIXED: dict[str, Values] = {
    "language": {},
    "imagenet-fourier": {f"{INPUT}image.channels": 3, f"{INPUT}image.steps": (1, 1), f"{INPUT}image.embed": None},
    "imagenet-learned": {
        f"{INPUT}image.channels": 3,
        f"{INPUT}image.steps": (1, 1),
        f"{INPUT}image.embed": 256,
        f"{INPUT}image.positions.channels": 256,
        f"{INPUT}image.positions.project": 256,
    },
    "imagenet-conv": {f"{INPUT}image.channels": 3, f"{INPUT}image.steps": (4, 4), f"{INPUT}image.embed": 64},
    "optical-flow": {f"{INPUT}frames.channels": 3, f"{INPUT}frames.patch": 3, f"{INPUT}frames.embed": 64},
    "multimodal": {
        "config.encoder.min_padding": 4,
        "config.decoder.min_padding": 2,
        f"{INPUT}audio.channels": 1,
        f"{INPUT}image.channels": 3,
        f"{INPUT}image.steps": (1, 4, 4),
        f"{OUTPUT}image.steps": (1, 1, 1),
    },
}
"""What the classes hard-code, beside positions and the decoder's widths."""

OPTIONS: dict[str, Values] = {
    "language": {"config.decoder.query_residual": False, f"{OUTPUT}restored.mask_queries": False},
    "imagenet-fourier": {"config.decoder.query_residual": True},
    "imagenet-learned": {"config.decoder.query_residual": True},
    "imagenet-conv": {"config.decoder.query_residual": True, f"{INPUT}image.conv_padding": "symmetric"},
    "optical-flow": {"config.decoder.query_residual": False, f"{OUTPUT}flow.scale": 1.0},
    "multimodal": {
        "config.decoder.query_residual": False,
        f"{INPUT}audio.mask_prob": 0.0,
        f"{INPUT}image.mask_prob": 0.0,
        f"{INPUT}label.mask_prob": 1.0,
        f"{INPUT}label.mask_at_eval": True,
        f"{OUTPUT}audio.coordinate_rule": "exclusive",
        f"{OUTPUT}image.coordinate_rule": "exclusive",
    },
}
"""How the classes compute, apart from their activation, which config.json says."""

ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu_erf": "gelu"}

MOST_BLOCKS, LARGEST, LONGEST_NAME = 1000, 2**31, 500
"""Limits of what config.json may say."""


def read_config(family: str, config: Mapping[str, Any]) -> Values:
    """What config.json tells, if there is one; ValueError if it is absurd.

    Its activation is not read: the hub's files say erf GELU, but DeepMind trained with tanh.
    """
    if not config:
        return {}
    values: Values = {"config.decoder.num_heads": DECODER_HEADS[family]}
    for key, path in TOLD_BY_CONFIG.items():
        if key in config:
            values[path] = _flag(config, key) if key == "use_query_residual" else _number(config, key)
    if values.get("config.processor.num_blocks", 1) > MOST_BLOCKS:
        raise ValueError(f"config.json: num_blocks = {config['num_blocks']} is more than {MOST_BLOCKS}")
    if family == "optical-flow" and "train_size" in config:
        values[f"{INPUT}frames.size"] = _numbers(config, "train_size", 2)
    if family == "multimodal" and config.keys() >= set(CLIP_KEYS):
        values |= _read_clip(config)
    return values


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of classes, in order; none where config.json has only numbers."""
    table = config.get("id2label")
    names = [table.get(str(number)) for number in range(len(table))] if isinstance(table, Mapping) else []
    if not all(isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable() for name in names):
        raise ValueError("config.json: id2label is not a table of the numbers and names of classes")
    return () if all(name == _label(number) for number, name in enumerate(names)) else tuple(map(str, names))


def written_config(preset: Preset, family: str, weights: Weights) -> dict[str, Any]:
    """The content of config.json; ValueError naming the first thing that the classes of transformers cannot say."""
    for path, seen, needed in _demands(preset, family, weights):
        if seen != needed:
            raise ValueError(f"transformers has no {CLASSES[family]} with {path} = {seen!r}, only with {needed!r}")
    config: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": "perceiver",
        "dtype": str(weights["trunk.latents"].dtype).removeprefix("torch."),
        "hidden_act": ACTIVATIONS[preset.config.encoder.activation],
        "attention_probs_dropout_prob": preset.config.encoder.attention_dropout,
        "d_model": widths(weights, "encoder")["asked"],
        **_attention_widths(weights),
    }
    for key, path in (TOLD_BY_CONFIG | TOLD_BY_SHAPES | TOLD_BY_ITS_SHAPES.get(family, {})).items():
        config[key] = value_at(preset, path)
    if family == "imagenet-learned":
        config["image_size"] = _sizes(preset, f"{INPUT}image")[0]
    if family == "optical-flow":
        config["train_size"] = list(_sizes(preset, f"{INPUT}frames"))
    if family == "multimodal":
        config |= _written_clip(preset)
    if "label" in preset.schema.outputs:
        classes = value_at(preset, f"{OUTPUT}label.classes")
        names = [_label(number) for number in range(classes)] if isinstance(classes, int) else classes
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    return config


def _label(number: int) -> str:
    return f"LABEL_{number}"


def _flag(config: Mapping[str, Any], key: str) -> bool:
    if not isinstance(config[key], bool):
        raise ValueError(f"config.json: {key} = {config[key]!r:.99} is not true or false")
    return config[key]


def _number(config: Mapping[str, Any], key: str) -> int:
    if type(config[key]) is not int or not 0 < config[key] < LARGEST:
        raise ValueError(f"config.json: {key} = {config[key]!r:.99} is not a whole number from 1 to {LARGEST - 1}")
    return config[key]


def _numbers(config: Mapping[str, Any], key: str, count: int) -> tuple[int, ...]:
    if not isinstance(config[key], list | tuple) or len(config[key]) != count:
        raise ValueError(f"config.json: {key} = {config[key]!r:.99} is not a list of {count} numbers")
    return tuple(_number({key: number}, key) for number in config[key])


def _read_clip(config: Mapping[str, Any]) -> Values:
    frames, samples, side = (_number(config, key) for key in CLIP_KEYS[:3])
    _, *size = _numbers(config, "output_shape", 4)
    values: Values = {}
    for end in (INPUT, OUTPUT):
        values[f"{end}image.size"] = tuple(size)
        values[f"{end}image.positions.max_resolution"] = (frames, side, side)
        values[f"{end}audio.size"] = values[f"{end}audio.positions.max_resolution"] = frames * samples
    return values


def _written_clip(preset: Preset) -> dict[str, Any]:
    frames, side, _ = _resolution(preset, f"{INPUT}image")
    (samples,) = _sizes(preset, f"{INPUT}audio")
    return {
        "num_frames": frames,
        "image_size": side,
        "audio_samples_per_frame": samples // frames,
        "output_shape": [1, *_sizes(preset, f"{OUTPUT}image")],
        "samples_per_patch": value_at(preset, f"{INPUT}audio").steps[0],
    }


def _attention_widths(weights: Weights) -> dict[str, int | None]:
    """One number for reading and processing together, or None for the rule of each."""
    encoder, processor = widths(weights, "encoder"), widths(weights, "processor")
    found: dict[str, int | None] = {}
    for key, own, rule in (("qk_channels", "qk", "asked"), ("v_channels", "v", "qk")):
        if encoder[own] == encoder[rule] and processor[own] == processor[rule]:
            found[key] = None
        elif encoder[own] == processor[own]:
            found[key] = encoder[own]
        else:
            raise ValueError(
                f"transformers has one {key} for reading and processing, these are {encoder[own]} and {processor[own]}"
            )
    return found


def _demands(preset: Preset, family: str, weights: Weights) -> Iterator[tuple[str, Any, Any]]:
    """(what, how it is, how the class has it)."""
    config, decoder = preset.config, widths(weights, "decoder")
    yield "config.encoder.num_reads", config.encoder.num_reads, 1
    if config.processor.num_blocks > 1:
        yield "config.processor.share_blocks", config.processor.share_blocks, "all"
    for name in ("encoder", "processor"):
        rest = config.latents.channels % getattr(config, name).num_heads
        yield f"config.latents.channels modulo config.{name}.num_heads", rest, 0
    for stage in (config.processor, config.decoder):
        yield "an activation of its own for each stage", stage.activation, config.encoder.activation
    yield "config.decoder.widening_factor", config.decoder.widening_factor, 1
    yield "config.decoder.num_heads", config.decoder.num_heads, DECODER_HEADS[family]
    yield "decoder queries and keys of width", decoder["qk"], 256 if family == "language" else decoder["asked"]
    yield "decoder values of width", decoder["v"], decoder["asking"] if family == "language" else decoder["asked"]
    for path, needed in FIXED[family].items():
        yield path, value_at(preset, path), needed
    for path, positions in _needed_positions(preset, family).items():
        given = replace(value_at(preset, f"{path}.positions"), max_resolution=_resolution(preset, path))
        yield f"{path}.positions", given, positions
    if family.startswith("imagenet"):
        yield f"{OUTPUT}label.query_channels", decoder["asking"], config.latents.channels
    if family == "imagenet-learned":
        height, width = _sizes(preset, f"{INPUT}image")
        yield f"{INPUT}image.size", (height, width), (height, height)
    if family == "multimodal":
        yield f"{OUTPUT}audio.size", _sizes(preset, f"{OUTPUT}audio"), _sizes(preset, f"{INPUT}audio")


def _needed_positions(preset: Preset, family: str) -> dict[str, Fourier]:
    match family:
        case "imagenet-fourier":
            return {f"{INPUT}image": Fourier(64, (224, 224))}
        case "imagenet-conv":
            return {f"{INPUT}image": Fourier(64, (56, 56))}
        case "optical-flow":
            return {f"{INPUT}frames": Fourier(64, _sizes(preset, f"{INPUT}frames"))}
        case "multimodal":
            frames, side, _ = _resolution(preset, f"{INPUT}image")
            samples = _sizes(preset, f"{INPUT}audio")[0] // frames * frames
            sound, sight = Fourier(192, (samples,)), Fourier(32, (frames, side, side))
            return {f"{end}{name}": x for end in (INPUT, OUTPUT) for name, x in (("audio", sound), ("image", sight))}
    return {}


def _resolution(preset: Preset, path: str) -> tuple[int, ...]:
    """What the highest frequency of its Fourier positions can tell apart along each axis."""
    spec = value_at(preset, path)
    if spec.positions.max_resolution is None:
        return spec.grid if isinstance(spec, Grid) else _sizes(preset, path)
    return as_sizes(spec.positions.max_resolution, axes_of(spec), f"{path}.positions.max_resolution")


def _sizes(preset: Preset, path: str) -> tuple[int, ...]:
    spec = value_at(preset, path)
    return as_sizes(spec.size, axes_of(spec), f"{path}.size")
