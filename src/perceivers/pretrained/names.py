"""Names and layouts of the released models' arrays in other libraries: tables for `matching`.

Columns: ours; haiku (DeepMind's pickles); huggingface (transformers); krasserm (krasserm's perceiver-io 0.11, which has
three of the models). A row is an array, a layer or a block; all models share the tables of layers and blocks.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

Column = Literal["ours", "haiku", "huggingface", "krasserm"]

Move = Callable[[Tensor], Tensor]


class Row(NamedTuple):
    """A block, a layer or an array, by its names; placeholders such as {layer} and {modality} stand for several."""

    kind: str
    """A key of `BLOCKS`, `LAYERS` or `LAYOUTS`."""
    ours: str
    """Name in this library."""
    haiku: str
    """Name in DeepMind's pickles."""
    huggingface: str
    """Name in transformers."""
    krasserm: str = ""
    """Name in krasserm's library; "" if it does not have the model."""


class Rule(NamedTuple):
    """Conversion of an array between another library's layout and ours."""

    axes: int
    """Number of axes of the other library's array."""
    to_ours: Move
    """Converts to our layout."""
    to_theirs: Move
    """Converts to the other layout."""


def _same(x: Tensor) -> Tensor:
    return x


def _layout(axes: int, **others: Rule) -> dict[str, Rule]:
    return {"ours": Rule(axes, _same, _same), **others}


TRANSPOSED = Rule(2, lambda x: x.T, lambda x: x.T)
ROW = Rule(2, lambda x: x[0], lambda x: x[None])

LAYOUTS = {
    "count": _layout(0),
    "vector": _layout(1),
    "table": _layout(2),
    "matrix": _layout(2, haiku=TRANSPOSED),  # [out, in] here, [in, out] in haiku
    "kernel": _layout(4, haiku=Rule(4, lambda x: x.permute(3, 2, 0, 1), lambda x: x.permute(2, 3, 1, 0))),
    "pixelwise": _layout(
        2,  # a 1x1 convolution is a linear map
        haiku=Rule(4, lambda x: x[0, 0].T, lambda x: x.T[None, None]),
        huggingface=Rule(4, lambda x: x[:, :, 0, 0], lambda x: x[:, :, None, None]),
    ),
    "row": _layout(1, haiku=ROW, huggingface=ROW),
    "channels": _layout(1, haiku=Rule(4, lambda x: x[0, 0, 0], lambda x: x[None, None, None])),
}
"""Layouts of arrays by column; a column that is not named has our layout."""

LAYERS = {
    "linear": [Row("matrix", "weight", "w", "weight", "weight"), Row("vector", "bias", "b", "bias", "bias")],
    "norm": [Row("vector", "weight", "scale", "weight", "weight"), Row("vector", "bias", "offset", "bias", "bias")],
    "convolution": [Row("kernel", "weight", "w", "weight")],
    "convolution_1x1": [Row("pixelwise", "weight", "w", "weight"), Row("vector", "bias", "b", "bias")],
    "batch_norm": [
        Row("channels", "weight", "scale", "weight"),
        Row("channels", "bias", "offset", "bias"),
        Row("channels", "running_mean", "~/mean_ema/average", "running_mean"),
        Row("channels", "running_var", "~/var_ema/average", "running_var"),
        Row("count", "num_batches_tracked", "~/mean_ema/counter", "num_batches_tracked"),
    ],
}
"""Arrays of a layer."""

ATTENTION = [
    Row("linear", "attention.query", "attention/linear", "attention.self.query", "0.module.attention.q_proj"),
    Row("linear", "attention.key", "attention/linear_1", "attention.self.key", "0.module.attention.k_proj"),
    Row("linear", "attention.value", "attention/linear_2", "attention.self.value", "0.module.attention.v_proj"),
    Row("linear", "attention.output", "attention/linear_3", "attention.output.dense", "0.module.attention.o_proj"),
    Row("linear", "mlp.hidden", "mlp/linear", "mlp.dense1", "1.module.1"),
    Row("linear", "mlp.output", "mlp/linear_1", "mlp.dense2", "1.module.3"),
]

BLOCKS = {
    "cross_attention": [
        Row("norm", "query_norm", "layer_norm", "attention.self.layernorm1", "0.module.q_norm"),
        Row("norm", "token_norm", "layer_norm_1", "attention.self.layernorm2", "0.module.kv_norm"),
        Row("norm", "mlp_norm", "layer_norm_2", "layernorm", "1.module.0"),
        *ATTENTION,
    ],
    "self_attention": [
        Row("norm", "norm", "layer_norm", "attention.self.layernorm1", "0.module.norm"),
        Row("norm", "mlp_norm", "layer_norm_1", "layernorm", "1.module.0"),
        *ATTENTION,
    ],
}
"""Layers of a block."""

TRUNK = [
    Row(
        "table",
        "trunk.latents",
        "{encoder}/~/trainable_position_encoding/pos_embs",
        "perceiver.embeddings.latents",
        "0.latent_provider._query",
    ),
    Row(
        "cross_attention",
        "trunk.encoder.0.cross_attention",
        "{encoder}/~/cross_attention",
        "perceiver.encoder.cross_attention",
        "0.cross_attn_1",
    ),
    Row(
        "self_attention",
        "trunk.processor.0.layers.{layer}",
        "{encoder}/~/self_attention{_layer}",
        "perceiver.encoder.self_attends.{layer}",
        "0.self_attn_1.{layer}",
    ),
]

IMAGENET = [
    *TRUNK,
    Row(
        "table",
        "output_query.queries.label.table",
        "classification_decoder/~/basic_decoder/~/trainable_position_encoding/pos_embs",
        "perceiver.decoder.decoder.output_position_encodings.position_embeddings",
        "1.output_query_provider._query",
    ),
    Row(
        "cross_attention",
        "decoder.cross_attention",
        "classification_decoder/~/basic_decoder/cross_attention",
        "perceiver.decoder.decoder.decoding_cross_attention",
        "1.cross_attn",
    ),
    Row(
        "linear",
        "output_adapter.adapters.label.head",
        "classification_decoder/~/basic_decoder/output",
        "perceiver.decoder.decoder.final_layer",
        "1.output_adapter.linear",
    ),
]

FAMILIES = {
    "language": [
        *TRUNK,
        Row(
            "table",
            "input_adapter.adapters.text.embedding.weight",
            "embed/embeddings",
            "perceiver.input_preprocessor.embeddings.weight",
            "0.input_adapter.txt_embedding.weight",
        ),
        Row(
            "table",
            "input_adapter.adapters.text.positions.table",
            "trainable_position_encoding/pos_embs",
            "perceiver.input_preprocessor.position_embeddings.weight",
            "0.input_adapter.pos_embedding.weight",
        ),
        Row(
            "table",
            "output_query.queries.restored.table",
            "basic_decoder/~/trainable_position_encoding/pos_embs",
            "perceiver.decoder.output_position_encodings.position_embeddings",
            "1.output_query_provider._query",
        ),
        Row(
            "cross_attention",
            "decoder.cross_attention",
            "basic_decoder/cross_attention",
            "perceiver.decoder.decoding_cross_attention",
            "1.cross_attn",
        ),
        Row(
            "vector",
            "output_adapter.adapters.restored.head.bias",
            "embedding_decoder/bias",
            "embedding_decoder.bias",
            "1.output_adapter.bias",
        ),
    ],
    "imagenet-fourier": IMAGENET,
    "imagenet-learned": [
        *(row._replace(krasserm="") for row in IMAGENET),
        Row(
            "convolution_1x1",
            "input_adapter.adapters.image.stem",
            "image_preprocessor/~/conv2_d",
            "perceiver.input_preprocessor.convnet_1x1",
        ),
        Row(
            "table",
            "input_adapter.adapters.image.positions.source.table",
            "image_preprocessor/~_build_network_inputs/trainable_position_encoding/pos_embs",
            "perceiver.input_preprocessor.position_embeddings.position_embeddings",
        ),
        Row(
            "linear",
            "input_adapter.adapters.image.positions.projection",
            "image_preprocessor/~_build_network_inputs/position_encoding_projector/linear",
            "perceiver.input_preprocessor.positions_projection",
        ),
    ],
    "imagenet-conv": [
        *(row._replace(krasserm="") for row in IMAGENET),
        Row(
            "convolution",
            "input_adapter.adapters.image.stem.convolutions.0",
            "image_preprocessor/~/conv2_d_downsample/~/conv",
            "perceiver.input_preprocessor.convnet.conv",
        ),
        Row(
            "batch_norm",
            "input_adapter.adapters.image.stem.norms.0",
            "image_preprocessor/~/conv2_d_downsample/~/batchnorm",
            "perceiver.input_preprocessor.convnet.batchnorm",
        ),
    ],
    "optical-flow": [
        *TRUNK,
        Row(
            "linear",
            "input_adapter.adapters.frames.embed",
            "image_preprocessor/patches_linear",
            "perceiver.input_preprocessor.conv_after_patches",
            "0.input_adapter.linear",
        ),
        Row(
            "cross_attention",
            "decoder.cross_attention",
            "flow_decoder/~/basic_decoder/cross_attention",
            "perceiver.decoder.decoder.decoding_cross_attention",
            "1.cross_attn",
        ),
        Row(
            "linear",
            "output_adapter.adapters.flow.head",
            "flow_decoder/~/basic_decoder/output",
            "perceiver.decoder.decoder.final_layer",
            "1.output_adapter.linear",
        ),
    ],
    "multimodal": [
        *(row._replace(krasserm="") for row in TRUNK),
        Row(
            "row",
            "input_adapter.alignment.paddings.{modality}",
            "multimodal_preprocessor/{modality}_padding/pos_embs",
            "perceiver.input_preprocessor.padding.{modality}",
        ),
        Row(
            "row",
            "input_adapter.mask_tokens.{modality}",
            "multimodal_preprocessor/{modality}_mask_token/pos_embs",
            "perceiver.input_preprocessor.mask.{modality}",
        ),
        Row(
            "row",
            "output_query.alignment.paddings.{modality}",
            "multimodal_decoder/~decoder_query/{modality}_padding/pos_embs",
            "perceiver.decoder.padding.{modality}",
        ),
        Row(
            "table",
            "output_query.queries.label.table",
            "classification_decoder/~/basic_decoder/~/trainable_position_encoding/pos_embs",
            "perceiver.decoder.modalities.label.decoder.output_position_encodings.position_embeddings",
        ),
        Row(
            "cross_attention",
            "decoder.cross_attention",
            "multimodal_decoder/~/basic_decoder/cross_attention",
            "perceiver.decoder.decoder.decoding_cross_attention",
        ),
        Row(
            "linear",
            "decoder.output",
            "multimodal_decoder/~/basic_decoder/output",
            "perceiver.decoder.decoder.final_layer",
        ),
        Row(
            "linear",
            "output_adapter.adapters.{modality}.head",
            "{postprocessor}/linear",
            "perceiver.output_postprocessor.modalities.{modality}.classifier",
        ),
    ],
}
"""Every array of every released model, each once."""

MODALITIES = {
    "audio": "audio_postprocessor",
    "image": "projection_postprocessor",
    "label": "classification_postprocessor",
}
"""Values of {modality}, each with its {postprocessor}."""

ENCODERS = dict.fromkeys(FAMILIES, "perceiver_encoder") | {"multimodal": "encoder"}
"""Value of {encoder}, by model."""

DERIVED = {
    "haiku": ("/~/mean_ema/hidden", "/~/var_ema/hidden", "/~/var_ema/counter"),
    "krasserm": ("input_adapter.position_encoding.position_encoding",),
}
"""Suffixes of arrays that can be derived from others, by column: they are ignored."""
