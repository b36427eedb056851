"""Shapes of the arrays that a class of transformers builds from its config.json, by transformers' names."""

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]

WIDTH_RULE = "cross_attention_shape_for_attention"
"""Key that selects the width of cross-attention where qk_channels is null: of the queries ("q") or tokens ("kv")."""

TOKENS = {"imagenet-fourier": 261, "imagenet-learned": 512, "imagenet-conv": 322, "optical-flow": 322}
"""Widths of tokens (content and positions) that the classes hard-code."""

POSITIONS, PATCHED = {"audio": 385, "image": 195}, {"audio": 385, "image": 243}
"""Widths of the multimodal class: of positions; of positions and content, without the samples of a patch of audio."""

MIN_PADDING = {"tokens": 4, "queries": 2}
"""Trained channels that pad even the widest token or query of the multimodal class."""


def class_shapes(family: str, config: Mapping[str, Any]) -> Shapes:
    """Return the shape of every array that the class of a model builds; `config` must have every key that is used."""
    # Encoder and processor, which all classes have alike.
    latents, tokens, queries = config["d_latents"], token_width(family, config), query_width(family, config)
    widths = attention_widths(family, config, tokens, queries)
    reads, processes = (config[f"{stage}_attention_widening_factor"] for stage in ("cross", "self"))
    shapes: Shapes = {"perceiver.embeddings.latents": (config["num_latents"], latents)}
    shapes |= _block("perceiver.encoder.cross_attention", latents, tokens, widths["encoder"], reads)
    for layer in range(config["num_self_attends_per_block"]):
        shapes |= _block(f"perceiver.encoder.self_attends.{layer}", latents, None, widths["processor"], processes)
    # Decoder, then adapters, which differ.
    decoder = "perceiver.decoder" if family == "language" else "perceiver.decoder.decoder"
    shapes |= _block(f"{decoder}.decoding_cross_attention", queries, latents, widths["decoder"], 1)
    if family == "language":
        return shapes | _language(config)
    if family == "multimodal":
        return shapes | _multimodal(config, tokens, queries)
    return shapes | _pictures(family, config, queries)


def attention_widths(family: str, config: Mapping[str, Any], tokens: int, queries: int) -> dict[str, tuple[int, int]]:
    """Return (width of projected queries and keys, width of values) by stage; decoders have their own rules.

    `tokens`, `queries`: widths of the encoder's tokens and of the decoder's queries.
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
    """Return the width of the encoder's tokens."""
    if family == "multimodal":
        return max(_token_widths(config).values()) + MIN_PADDING["tokens"]
    return config["d_model"] if family == "language" else TOKENS[family]


def query_width(family: str, config: Mapping[str, Any]) -> int:
    """Return the width of the decoder's queries."""
    if family == "multimodal":
        return max(_query_widths(config).values()) + MIN_PADDING["queries"]
    return {"language": config["d_model"], "optical-flow": TOKENS["optical-flow"]}.get(family, config["d_latents"])


def _token_widths(config: Mapping[str, Any]) -> dict[str, int]:
    audio = PATCHED["audio"] + config["samples_per_patch"]
    return {"audio": audio, "image": PATCHED["image"], "label": config["num_labels"]}


def _query_widths(config: Mapping[str, Any]) -> dict[str, int]:
    return {**POSITIONS, "label": config["_label_trainable_num_channels"]}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _block(name: str, query: int, token: int | None, widths: tuple[int, int], widening: int) -> Shapes:
    """Return the shapes of an attention block; cross-attention to tokens of width `token`, self-attention for None."""
    (qk, v), attention = widths, f"{name}.attention.self"
    norms = _norm(f"{attention}.layernorm1", query) | _norm(f"{name}.layernorm", query)
    return {
        **norms,
        **(_norm(f"{attention}.layernorm2", token) if token else {}),
        **_linear(f"{attention}.query", query, qk),
        **_linear(f"{attention}.key", token or query, qk),
        **_linear(f"{attention}.value", token or query, v),
        **_linear(f"{name}.attention.output.dense", v, query if token else v),
        **_linear(f"{name}.mlp.dense1", query, widening * query),
        **_linear(f"{name}.mlp.dense2", widening * query, query),
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
    source, decoder = "perceiver.input_preprocessor", "perceiver.decoder"
    channels = config["output_num_channels"]
    trained, shapes = config["_label_trainable_num_channels"], Shapes()
    shapes[f"{decoder}.modalities.label.decoder.output_position_encodings.position_embeddings"] = (1, trained)
    shapes |= _linear(f"{decoder}.decoder.final_layer", queries, channels)
    outputs = {"audio": config["samples_per_patch"], "image": 3, "label": config["num_labels"]}
    for name, width in _token_widths(config).items():
        shapes |= {f"{source}.padding.{name}": (1, tokens - width), f"{source}.mask.{name}": (1, tokens)}
        shapes |= {f"{decoder}.padding.{name}": (1, queries - _query_widths(config)[name])}
        shapes |= _linear(f"perceiver.output_postprocessor.modalities.{name}.classifier", channels, outputs[name])
    return shapes
