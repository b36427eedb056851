"""The Perceivers of transformers: reading and writing config.json, and checking that a class can express a model."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, replace
from itertools import product
from typing import Any

from perceivers.modalities.grid import Grid
from perceivers.modalities.patches import as_sizes
from perceivers.modalities.position_encodings import Fourier
from perceivers.pretrained.class_shapes import WIDTH_RULE, attention_widths, class_shapes
from perceivers.pretrained.sizes import INPUT, OUTPUT, STAGES, Values, Weights, axes_of, value_at, widths
from perceivers.schema.preset import Preset

CLASSES = {
    "language": "PerceiverForMaskedLM",
    "imagenet-fourier": "PerceiverForImageClassificationFourier",
    "imagenet-learned": "PerceiverForImageClassificationLearned",
    "imagenet-conv": "PerceiverForImageClassificationConvProcessing",
    "optical-flow": "PerceiverForOpticalFlow",
    "multimodal": "PerceiverForMultimodalAutoencoding",
}
"""Class of transformers, by released model."""

CONFIG_KEYS = {
    "num_blocks": "config.processor.num_blocks",
    "num_self_attention_heads": "config.processor.num_heads",
    "num_cross_attention_heads": "config.encoder.num_heads",
    "use_query_residual": "config.encoder.query_residual",
}
"""Keys of config.json with values that shapes do not determine, apart from sizes of images and clips."""

DEFAULTS: dict[str, Any] = {
    "num_latents": 256,
    "d_latents": 1280,
    "d_model": 768,
    "num_self_attends_per_block": 26,
    "self_attention_widening_factor": 1,
    "cross_attention_widening_factor": 1,
    "qk_channels": None,
    "v_channels": None,
    WIDTH_RULE: "kv",
    "vocab_size": 262,
    "max_position_embeddings": 2048,
    "samples_per_patch": 16,
    "output_num_channels": 512,
    "_label_trainable_num_channels": 1024,
    "num_labels": 2,
    "num_blocks": 1,
    "num_self_attention_heads": 8,
    "num_cross_attention_heads": 8,
    "use_query_residual": True,
    "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.1,
    "train_size": [368, 496],
    "num_frames": 16,
    "audio_samples_per_frame": 1920,
    "image_size": 56,
    "output_shape": [1, 16, 224, 224],
}
"""Defaults of transformers for all keys of config.json that its classes use."""

SHAPE_KEYS = {
    "num_latents": "config.latents.num_latents",
    "d_latents": "config.latents.channels",
    "num_self_attends_per_block": "config.processor.num_layers",
    "self_attention_widening_factor": "config.processor.widening_factor",
    "cross_attention_widening_factor": "config.encoder.widening_factor",
}
"""Keys that must agree with the shapes of the arrays, in all models."""

CLASSES_KEY = {"num_labels": f"{OUTPUT}label.num_classes"}

SHAPE_KEYS_OF_MODEL = {
    "language": {
        "vocab_size": f"{INPUT}text.vocab_size",
        "max_position_embeddings": f"{INPUT}text.length",
        "d_model": f"{INPUT}text.channels",
    },
    "imagenet-fourier": CLASSES_KEY,
    "imagenet-learned": CLASSES_KEY | {"image_size": f"{INPUT}image.size"},
    "imagenet-conv": CLASSES_KEY,
    "multimodal": CLASSES_KEY
    | {
        "output_num_channels": "config.decoder.output_channels",
        "_label_trainable_num_channels": f"{OUTPUT}label.query_channels",
        "samples_per_patch": f"{INPUT}audio.patch",
    },
}
"""Keys that must agree with the shapes of the arrays, by model."""

CLIP_KEYS = ("num_frames", "audio_samples_per_frame", "image_size", "output_shape")
"""Keys that give the sizes of a clip together."""

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
    "imagenet-conv": {
        f"{INPUT}image.channels": 3,
        f"{INPUT}image.steps": (4, 4),
        f"{INPUT}image.embed": 64,
        f"{INPUT}image.stem": "conv",
    },
    "optical-flow": {f"{INPUT}frames.channels": 3, f"{INPUT}frames.patch": 3, f"{INPUT}frames.embed": 64},
    "multimodal": {
        "config.encoder.min_padding": 4,
        "config.decoder.min_padding": 2,
        f"{INPUT}audio.channels": 1,
        f"{INPUT}image.channels": 3,
        f"{INPUT}image.steps": (1, 4, 4),
        f"{OUTPUT}audio.channels": 1,
        f"{OUTPUT}image.channels": 3,
        f"{OUTPUT}image.steps": (1, 1, 1),
    },
}
"""Values that the classes hard-code, apart from positions and the decoder's widths."""

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
"""Options with which the classes compute, apart from the activation, which config.json gives."""

HIDDEN_ACTS = {
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "swish": "silu",
}
"""Our activation for each value of hidden_act; of several values for one activation, the first is written."""

EXPRESSIBLE = {
    *("num_latents", "channels", "num_heads", "qk_channels", "v_channels", "widening_factor", "activation"),
    *("attention_dropout", "query_residual", "num_layers", "num_blocks", "share_blocks", "num_reads"),
    *("share_reads", "output_channels", "channel_alignment", "min_padding", "length", "vocab_size"),
    *("query_channels", "classes", "size", "patch", "embed", "positions"),
}
"""Fields that are determined by names and shapes of arrays, by config.json, or checked in `_demands`."""

WITHOUT_EFFECT = {
    *("key", "of", "kind", "weight", "tokenizer", "value_range", "rate", "crop", "overflow", "further_metrics"),
    *("init_std", "sinusoidal_length", "qk_init_gain", "sines", "drop_at_eval"),
    *(
        "dropout",
        "drop_prob",
        "noise",
        "num_points",
        "loss_kind",
        "augmentation",
        "mask_words",
        "unmasked_loss_weight",
        "smoothing",
    ),
}
"""Fields that do not change a trained model's predictions: for loading data, initial weights, training."""

MOST_BLOCKS, LARGEST, LONGEST_NAME = 1000, 2**31, 500
"""Limits of the values in config.json."""


def read_config(family: str, config: Mapping[str, Any], as_huggingface: bool) -> Values:
    """Return the values that config.json gives, by path; ValueError if they are absurd, or of another class.

    `as_huggingface` adds the options with which the class computes, and transformers' defaults. Otherwise both are left
    out, since DeepMind's differ: the hub's files name the erf GELU, but DeepMind trained with the tanh approximation.
    """
    _check_architecture(family, config)
    if config.get("quantization_config"):
        raise ValueError("config.json: quantization_config: quantised weights cannot be read, only plain ones")
    activation, key = _read_activation(config), "attention_probs_dropout_prob"
    dropout = part_dropped(config, key, DEFAULTS[key])
    values: Values = {"config.decoder.num_heads": DECODER_HEADS[family]}
    # Options of the class, with defaults for missing keys.
    if as_huggingface:
        config = DEFAULTS | dict(config)
        values |= OPTIONS[family]
        values |= {f"config.{stage}.activation": activation for stage in STAGES}
        values |= {f"config.{stage}.attention_dropout": dropout for stage in STAGES}
    elif not activation.startswith("gelu"):
        raise ValueError(f"config.json: hidden_act = {config['hidden_act']!r:.99}: DeepMind's models have gelu")
    # Numbers of blocks and heads, and sizes.
    for key, path in CONFIG_KEYS.items():
        if key in config:
            values[path] = _flag(config, key) if key == "use_query_residual" else whole_number(config, key)
    if values.get("config.processor.num_blocks", 1) > MOST_BLOCKS:
        raise ValueError(f"config.json: num_blocks = {config['num_blocks']} is more than {MOST_BLOCKS}")
    if family == "optical-flow" and "train_size" in config:
        values[f"{INPUT}frames.size"] = whole_numbers(config, "train_size", 2)
    if family == "multimodal" and config.keys() >= set(CLIP_KEYS):
        values |= _read_clip(config)
    return values


def check_config(
    preset: Preset, family: str, weights: Weights, config: Mapping[str, Any], as_huggingface: bool
) -> dict[str, Any]:
    """Return config.json with the sizes that it lacks; ValueError for the first size that contradicts the arrays.

    `as_huggingface`: a missing size means transformers' default, otherwise the size of the arrays.
    """
    # Sizes that are given, or default to those of the arrays.
    sizes, given = _told_by_shapes(preset, family), dict(config) | _num_labels(config)
    settings = DEFAULTS | sizes | given
    for key, value in sizes.items():
        if whole_number(settings, key) != value:
            source = "" if key in config else " (id2label)"
            raise ValueError(
                f"config.json: {key} = {settings[key]}{source}, but the arrays are those of a model with {value}"
            )
    # Widths of attention, which several keys determine together.
    if settings[WIDTH_RULE] not in ("kv", "q"):
        raise ValueError(f"config.json: {WIDTH_RULE} = {settings[WIDTH_RULE]!r:.99} is neither 'kv' nor 'q'")
    for key in ("qk_channels", "v_channels"):
        if settings[key] is not None:
            whole_number(settings, key)
    expected = attention_widths(family, settings, *_outer_widths(weights))
    for stage, seen in _attention_widths(weights).items():
        if seen != expected[stage]:
            rule = f"qk_channels and v_channels of the {stage} come to {expected[stage]}"
            raise ValueError(f"config.json: {rule}, its arrays have {seen}")
    # Sizes that are missing and so have transformers' default.
    for key, value in sizes.items():
        if as_huggingface and key not in given and DEFAULTS[key] != value:
            rule = f"is missing, which means {DEFAULTS[key]} to transformers"
            raise ValueError(f"config.json: {key} {rule}, but the arrays are those of a model with {value}")
    return settings


def check_shapes(family: str, config: Mapping[str, Any], arrays: Weights) -> None:
    """Raise a ValueError naming the first array whose shape is not that of the class with this config.json."""
    for name, shape in class_shapes(family, config).items():
        if name in arrays and (seen := tuple(arrays[name].shape)) != shape:
            raise ValueError(
                f"{CLASSES[family]} of this config.json has {name} of shape {list(shape)}, the array has {list(seen)}"
            )


def check_class(preset: Preset, family: str, weights: Weights) -> None:
    """Raise a ValueError naming the first value that the class of transformers cannot have, or option it lacks."""
    demands = (*_demands(preset, family, weights), *_inexpressible(preset, family))
    for path, seen, needed in demands:
        if seen != needed:
            raise ValueError(
                f"transformers has no {CLASSES[family]} with {path} = {seen!r:.99}, only with {needed!r:.99}"
            )
    for path, value in OPTIONS[family].items():
        if value_at(preset, path) != value:
            rule = f"{path} = {value}, not {value_at(preset, path)}"
            raise ValueError(f"transformers computes with {rule}: --numbers huggingface (huggingface_options) does so")


def class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the labels, in order; none if config.json has only numbers."""
    table = config.get("id2label") or {}  # label2id is its inverse
    names = [table.get(str(number)) for number in range(len(table))] if isinstance(table, Mapping) else [None]
    if not all(isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable() for name in names):
        raise ValueError("config.json: id2label is not a table of the numbers and names of classes")
    return () if all(name == _label(number) for number, name in enumerate(names)) else tuple(map(str, names))


def written_config(preset: Preset, family: str, weights: Weights) -> dict[str, Any]:
    """Return the content of config.json; ValueError for a model that it cannot express (`check_class`)."""
    check_class(preset, family, weights)
    config: dict[str, Any] = {
        "architectures": [CLASSES[family]],
        "model_type": "perceiver",
        "dtype": str(weights["trunk.latents"].dtype).removeprefix("torch."),
        "hidden_act": next(act for act, ours in HIDDEN_ACTS.items() if ours == preset.config.encoder.activation),
        "attention_probs_dropout_prob": preset.config.encoder.attention_dropout,
        "d_model": widths(weights, "encoder")["token"],
        **_told_by_shapes(preset, family),
        **{key: value_at(preset, path) for key, path in CONFIG_KEYS.items()},
    }
    # Widths, sizes of images and clips, names of labels.
    config |= _written_widths(family, weights, config)
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


def _num_labels(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number of labels if config.json gives one; ValueError if it gives two."""
    table, number = config.get("id2label"), config.get("num_labels")
    if table is None:
        return {} if number is None else {"num_labels": number}
    if number not in (None, len(table)):
        raise ValueError(f"config.json: num_labels = {number!r:.99}, but id2label has {len(table)} classes")
    return {"num_labels": len(table)}


def _flag(config: Mapping[str, Any], key: str) -> bool:
    if not isinstance(config[key], bool):
        raise ValueError(f"config.json: {key} = {config[key]!r:.99} is not true or false")
    return config[key]


def whole_number(config: Mapping[str, Any], key: str) -> int:
    """Return the whole number at a key; ValueError if there is none, or an absurd one."""
    value = config.get(key)
    if type(value) is not int or not 0 < value < LARGEST:
        raise ValueError(f"config.json: {key} = {value!r:.99} is not a whole number from 1 to {LARGEST - 1}")
    return value


def whole_numbers(config: Mapping[str, Any], key: str, count: int) -> tuple[int, ...]:
    """Return the numbers at a key, which holds a list of `count` whole numbers."""
    values = config.get(key)
    if not isinstance(values, list | tuple) or len(values) != count:
        raise ValueError(f"config.json: {key} = {values!r:.99} is not a list of {count} numbers")
    return tuple(whole_number({key: value}, key) for value in values)


def _read_clip(config: Mapping[str, Any]) -> Values:
    frames, samples, side = (whole_number(config, key) for key in CLIP_KEYS[:3])
    _, *size = whole_numbers(config, "output_shape", 4)
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
    }


def _check_architecture(family: str, config: Mapping[str, Any]) -> None:
    kind, names = config.get("model_type", "perceiver"), config.get("architectures") or [CLASSES[family]]
    if kind != "perceiver":
        raise ValueError(f"config.json: model_type = {kind!r:.99}, those of transformers' Perceivers say 'perceiver'")
    if names != [CLASSES[family]]:
        known = {name: model for model, name in CLASSES.items()}
        name = names[0] if isinstance(names, list) and isinstance(names[0], str) else names
        model = f"the model {known[name]}" if isinstance(name, str) and name in known else "none that can be converted"
        raise ValueError(f"config.json: architectures = {names!r:.99} is {model}; {family} is {CLASSES[family]}")


def _read_activation(config: Mapping[str, Any]) -> str:
    name = config.get("hidden_act", DEFAULTS["hidden_act"])
    if not isinstance(name, str) or name not in HIDDEN_ACTS:
        raise ValueError(f"config.json: hidden_act = {name!r:.99} is none of {', '.join(HIDDEN_ACTS)}")
    return HIDDEN_ACTS[name]


def part_dropped(config: Mapping[str, Any], key: str, default: float) -> float:
    """Return the dropout rate at a key; ValueError if there is none."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ValueError(f"config.json: {key} = {value!r:.99} is not a number from 0 to below 1")
    return float(value)


def _told_by_shapes(preset: Preset, family: str) -> dict[str, int]:
    paths = SHAPE_KEYS | SHAPE_KEYS_OF_MODEL.get(family, {})
    values = {key: value_at(preset, path) for key, path in paths.items()}
    return {key: value[0] if isinstance(value, tuple) else value for key, value in values.items()}


def _attention_widths(weights: Weights) -> dict[str, tuple[int, int]]:
    """Return (width of projected queries and keys, width of values) by stage."""
    by_stage = {stage: widths(weights, stage) for stage in STAGES}
    return {stage: (width["qk"], width["v"]) for stage, width in by_stage.items()}


def _outer_widths(weights: Weights) -> tuple[int, int]:
    """Return the widths of the encoder's tokens and of the decoder's queries."""
    return widths(weights, "encoder")["token"], widths(weights, "decoder")["query"]


def _written_widths(family: str, weights: Weights, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the three keys of widths; ValueError if no choice of them results in the widths of the arrays."""
    seen = _attention_widths(weights)
    qk_channels, v_channels = seen["processor"]
    for shape, qk, v in product(("kv", "q"), (None, qk_channels), (None, v_channels)):
        chosen = {"qk_channels": qk, "v_channels": v, WIDTH_RULE: shape}
        if attention_widths(family, {**config, **chosen}, *_outer_widths(weights)) == seen:
            return chosen
    raise ValueError(
        f"transformers has one qk_channels and one v_channels for reading and processing, and its own for writing; "
        f"these are {', '.join(f'{stage} {width}' for stage, width in seen.items())}"
    )


def _inexpressible(preset: Preset, family: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, value, default) of each field that nothing determines: the class can only have its default."""
    settled = FIXED[family].keys() | OPTIONS[family].keys()
    preprocessed = {"mean", "std"} if family.startswith("imagenet") else set()  # transformers has an image processor
    parts: dict[str, Any] = {"config": preset.config}
    parts |= {f"config.{name}": getattr(preset.config, name) for name in ("latents", *STAGES)}
    for end, side in ((INPUT, preset.schema.inputs), (OUTPUT, preset.schema.outputs)):
        parts |= {f"{end}{name}": spec for name, spec in side.items()}
    for path, part in parts.items():
        for field in fields(part):
            name, value = f"{path}.{field.name}", getattr(part, field.name)
            known = field.name in EXPRESSIBLE | WITHOUT_EFFECT | preprocessed
            if not (known or name in settled or name in parts):
                yield name, value, _default(field)


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _demands(preset: Preset, family: str, weights: Weights) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, value of the model, value of the class) for everything that must agree."""
    # Config of all models.
    config, decoder = preset.config, widths(weights, "decoder")
    yield "config.encoder.num_reads", config.encoder.num_reads, 1
    if config.processor.num_blocks > 1:
        yield "config.processor.share_blocks", config.processor.share_blocks, "all"
    for name in ("encoder", "processor"):
        rest = config.latents.channels % getattr(config, name).num_heads
        yield f"config.latents.channels modulo config.{name}.num_heads", rest, 0
    for stage in (config.processor, config.decoder):
        yield "an activation of its own for each stage", stage.activation, config.encoder.activation
        dropout = stage.attention_dropout
        yield "an attention_dropout of its own for each stage", dropout, config.encoder.attention_dropout
    yield "config.processor.v_channels", widths(weights, "processor")["v"], config.latents.channels
    yield "config.decoder.widening_factor", config.decoder.widening_factor, 1
    yield "config.decoder.num_heads", config.decoder.num_heads, DECODER_HEADS[family]
    # Inputs and outputs of each model.
    if family == "language":
        yield "decoder queries and keys of width", decoder["qk"], 256
        given, restored = preset.schema.inputs["text"], preset.schema.outputs["restored"]
        for name, same in (("length", "length"), ("vocab_size", "vocab_size"), ("query_channels", "channels")):
            yield f"{OUTPUT}restored.{name}", getattr(restored, name), getattr(given, same)
    for path, needed in FIXED[family].items():
        yield path, value_at(preset, path), needed
    for path, positions in _needed_positions(preset, family).items():
        current = value_at(preset, f"{path}.positions")
        if isinstance(current, Fourier) and current.spacing == "linear":
            current = replace(current, max_resolution=_resolution(preset, path))
        yield f"{path}.positions", current, positions
    if family.startswith("imagenet"):
        yield f"{OUTPUT}label.query_channels", decoder["query"], config.latents.channels
    if family == "imagenet-learned":
        height, width = _sizes(preset, f"{INPUT}image")
        yield f"{INPUT}image.size", (height, width), (height, height)
    if family == "multimodal":
        labels = [value_at(preset, f"{end}label") for end in (INPUT, OUTPUT)]
        named = all(isinstance(label.classes, tuple) for label in labels)
        yield f"{INPUT}label.classes", *((label.classes if named else label.num_classes) for label in labels)
        frames = _resolution(preset, f"{INPUT}image")[0]
        (samples,) = _sizes(preset, f"{INPUT}audio")
        yield f"{INPUT}audio.size modulo frames", samples % frames, 0
        for name in ("audio", "image"):
            yield f"{OUTPUT}{name}.size", _sizes(preset, f"{OUTPUT}{name}"), _sizes(preset, f"{INPUT}{name}")
        steps = f"{OUTPUT}audio.steps", f"{INPUT}audio.steps"
        yield steps[0], value_at(preset, steps[0]), value_at(preset, steps[1])


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
    """Return the resolution of the highest Fourier frequency of a modality's positions, along each axis."""
    spec = value_at(preset, path)
    if not isinstance(spec.positions, Fourier) or spec.positions.max_resolution is None:
        return spec.grid if isinstance(spec, Grid) else _sizes(preset, path)
    return as_sizes(spec.positions.max_resolution, axes_of(spec), f"{path}.positions.max_resolution")


def _sizes(preset: Preset, path: str) -> tuple[int, ...]:
    spec = value_at(preset, path)
    return as_sizes(spec.size, axes_of(spec), f"{path}.size")
