"""Shapes of the arrays that a class of transformers builds from its config.json, by the names that they have there."""

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

WIDTH_RULE = "cross_attention_shape_for_attention"
"""Key that says whether queries ("q") or tokens ("kv") give cross-attention its width, where qk_channels does not."""

TOKENS = {"imagenet-fourier": 261, "imagenet-learned": 512, "imagenet-conv": 322, "optical-flow": 322}
"""Widths of tokens, content and position, that classes hard-code."""

POSITIONS, PATCHED = {"audio": 385, "image": 195}, {"audio": 385, "image": 243}
"""The same of the multimodal class: of positions alone; with content, but for the samples of a patch of sound."""

MIN_PADDING = {"tokens": 4, "queries": 2}
"""Trained channels that its widest token or query has too."""


def class_shapes(family: str, config: Mapping[str, Any]) -> Shapes:
    """Return the shape of every array that the class of a model builds; `config` has every key that it looks at."""
    latents, tokens, queries = config["d_latents"], token_width(family, config), query_width(family, config)
    widths = attention_widths(family, config, tokens, queries)
    reads, processes = (config[f"{stage}_attention_widening_factor"] for stage in ("cross", "self"))
    shapes: Shapes = {"perceiver.embeddings.latents": (config["num_latents"], latents)}
    shapes |= _block("perceiver.encoder.cross_attention", latents, tokens, widths["encoder"], reads)
    for layer in range(config["num_self_attends_per_block"]):
        shapes |= _block(f"perceiver.encoder.self_attends.{layer}", latents, None, widths["processor"], processes)
    decoder = "perceiver.decoder" if family == "language" else "perceiver.decoder.decoder"
    shapes |= _block(f"{decoder}.decoding_cross_attention", queries, latents, widths["decoder"], 1)
    if family == "language":
        return shapes | _language(config)
    if family == "multimodal":
        return shapes | _multimodal(config, tokens, queries)
    return shapes | _pictures(family, config, queries)


def attention_widths(family: str, config: Mapping[str, Any], tokens: int, queries: int) -> dict[str, tuple[int, int]]:
    """Return the widths of queries and keys, and of values, by stage; decoders have rules of their own.

    `tokens`, `queries`: widths of what the encoder reads and of the decoder's queries.
    """
    latents, by_queries = config["d_latents"], config[WIDTH_RULE] == "q"
    qk, v = config["qk_channels"], config["v_channels"]
    read = qk or (latents if by_queries else tokens)
    written = queries if by_queries else latents
    return {
        "encoder": (read, v or read),
        "processor": (qk or latents, v or qk or latents),
        "decoder": (256, queries) if family == "language" else (written, written),
    }


def token_width(family: str, config: Mapping[str, Any]) -> int:
    """Return the width of what the encoder reads."""
    if family == "multimodal":
        return max(_given_widths(config).values()) + MIN_PADDING["tokens"]
    return config["d_model"] if family == "language" else TOKENS[family]


def query_width(family: str, config: Mapping[str, Any]) -> int:
    """Return the width of the decoder's queries."""
    if family == "multimodal":
        return max(_asked_widths(config).values()) + MIN_PADDING["queries"]
    return {"language": config["d_model"], "optical-flow": TOKENS["optical-flow"]}.get(family, config["d_latents"])


def _given_widths(config: Mapping[str, Any]) -> dict[str, int]:
    audio = PATCHED["audio"] + config["samples_per_patch"]
    return {"audio": audio, "image": PATCHED["image"], "label": config["num_labels"]}


def _asked_widths(config: Mapping[str, Any]) -> dict[str, int]:
    return {**POSITIONS, "label": config["_label_trainable_num_channels"]}


def _linear(name: str, given: int, made: int) -> Shapes:
    return {f"{name}.weight": (made, given), f"{name}.bias": (made,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, asking: int, asked: int | None, widths: tuple[int, int], widening: int) -> Shapes:
    """One block of attention: to others of the width `asked`, or (None) to itself, with values as wide as it makes."""
    (qk, v), own = widths, f"{name}.attention.self"
    norms = _norm(f"{own}.layernorm1", asking) | _norm(f"{name}.layernorm", asking)
    return {
        **norms,
        **(_norm(f"{own}.layernorm2", asked) if asked else {}),
        **_linear(f"{own}.query", asking, qk),
        **_linear(f"{own}.key", asked or asking, qk),
        **_linear(f"{own}.value", asked or asking, v),
        **_linear(f"{name}.attention.output.dense", v, asking if asked else v),
        **_linear(f"{name}.mlp.dense1", asking, widening * asking),
        **_linear(f"{name}.mlp.dense2", widening * asking, asking),
    }


def _language(config: Mapping[str, Any]) -> Shapes:
    vocabulary, length, width = (config[key] for key in ("vocab_size", "max_position_embeddings", "d_model"))
    return {
        "perceiver.input_preprocessor.embeddings.weight": (vocabulary, width),
        "perceiver.input_preprocessor.position_embeddings.weight": (length, width),
        "perceiver.decoder.output_position_encodings.position_embeddings": (length, width),
        "embedding_decoder.bias": (vocabulary,),
    }


def _pictures(family: str, config: Mapping[str, Any], queries: int) -> Shapes:
    source, decoder = "perceiver.input_preprocessor", "perceiver.decoder.decoder"
    if family == "optical-flow":
        return _linear(f"{source}.conv_after_patches", 54, 64) | _linear(f"{decoder}.final_layer", queries, 2)
    shapes: Shapes = {f"{decoder}.output_position_encodings.position_embeddings": (1, queries)}
    shapes |= _linear(f"{decoder}.final_layer", queries, config["num_labels"])
    if family == "imagenet-learned":
        shapes |= {f"{source}.convnet_1x1.weight": (256, 3, 1, 1), f"{source}.convnet_1x1.bias": (256,)}
        shapes |= {f"{source}.position_embeddings.position_embeddings": (config["image_size"] ** 2, 256)}
        shapes |= _linear(f"{source}.positions_projection", 256, 256)
    if family == "imagenet-conv":
        norm, statistics = f"{source}.convnet.batchnorm", ("running_mean", "running_var")
        shapes |= {f"{source}.convnet.conv.weight": (64, 3, 7, 7)} | _norm(norm, 64)
        shapes |= {f"{norm}.{name}": (64,) for name in statistics} | {f"{norm}.num_batches_tracked": ()}
    return shapes


def _multimodal(config: Mapping[str, Any], tokens: int, queries: int) -> Shapes:
    source, decoder, made = "perceiver.input_preprocessor", "perceiver.decoder", config["output_num_channels"]
    trained, shapes = config["_label_trainable_num_channels"], Shapes()
    shapes[f"{decoder}.modalities.label.decoder.output_position_encodings.position_embeddings"] = (1, trained)
    shapes |= _linear(f"{decoder}.decoder.final_layer", queries, made)
    outputs = {"audio": config["samples_per_patch"], "image": 3, "label": config["num_labels"]}
    for name, width in _given_widths(config).items():
        shapes |= {f"{source}.padding.{name}": (1, tokens - width), f"{source}.mask.{name}": (1, tokens)}
        shapes |= {f"{decoder}.padding.{name}": (1, queries - _asked_widths(config)[name])}
        shapes |= _linear(f"perceiver.output_postprocessor.modalities.{name}.classifier", made, outputs[name])
    return shapes
