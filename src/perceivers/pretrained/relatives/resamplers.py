"""Resamplers of language models that see: those of flamingo-pytorch and of Idefics2 (transformers).

In both, the latents attend to the tokens and to one another at once, layer after layer, and are normed at the end. The
arrays may be a part of a larger checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from perceivers.core.config import EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.resampler import ResamplerConfig
from perceivers.pretrained.relatives.arrays import Arrays, Shapes, Weights, attention, linear, norm, num_heads

HEADS = (8, 64)
"""Number and width of heads by default (flamingo-pytorch, `PerceiverResampler`)."""

IDEFICS = "a resampler of Idefics2"

IDEFICS_HEADS = (16, 96)
"""Number and width of heads by default (`Idefics2PerceiverConfig`)."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
}
"""Our activations, by the names of transformers."""


@dataclass(frozen=True)
class FlamingoSettings:
    """What the arrays of a Flamingo resampler do not tell, by the names of its constructor."""

    heads: int | None = None
    """Attention heads; None: 8 if they are 64 wide, the constructor's defaults."""
    dim_head: int | None = None
    """Width of a head, in place of `heads`."""
    prefix: str | None = None
    """What comes before the names of the arrays; None: found."""


@dataclass(frozen=True)
class Idefics2Settings:
    """What the arrays of an Idefics2 resampler do not tell, by the names of its configuration."""

    resampler_n_heads: int | None = None
    """Attention heads; None: 16 if they are 96 wide, the configuration's defaults."""
    resampler_head_dim: int | None = None
    """Width of a head, in place of `resampler_n_heads`."""
    num_key_value_heads: int | None = None
    """Heads of keys and values; None: as the arrays say."""
    hidden_act: str = "silu"
    """Activation of the MLP."""
    rms_norm_eps: float = 1e-6
    """Epsilon of the norms."""
    prefix: str | None = None
    """What comes before the names of the arrays; None: found."""


def from_flamingo(state: Mapping[str, Any], settings: FlamingoSettings) -> tuple[ResamplerConfig, Weights]:
    """Return config and weights of our resampler for a state dict that has a `PerceiverResampler` of flamingo-pytorch.

    ValueError naming an array that is missing, left over or of a wrong shape, or a setting that is missing.
    """
    # Sizes, and the shapes that they give.
    arrays = Arrays.of(state, "a resampler of Flamingo", "media_pos_emb", settings.prefix, alone=False)
    num_latents, d = arrays.shape("latents", 2)
    times, depth = arrays.shape("media_pos_emb", 3)[0], max(arrays.count("layers"), 1)
    inner = arrays.shape("layers.0.0.to_q.weight", 2)[0]
    widening = arrays.multiple("layers.0.1.3.weight", 1, d, "channels of latents")
    shapes: Shapes = {"latents": (num_latents, d), "media_pos_emb": (times, 1, d)} | norm("norm", d)
    for layer in (f"layers.{number}" for number in range(depth)):
        shapes |= attention(f"{layer}.0", d, d, inner, output_bias=False)
        shapes |= norm(f"{layer}.0.norm_media", d) | norm(f"{layer}.0.norm_latents", d) | norm(f"{layer}.1.0", d)
        shapes |= linear(f"{layer}.1.1", d, widening * d, bias=False)
        shapes |= linear(f"{layer}.1.3", widening * d, d, bias=False)
    arrays.check(shapes)
    # Config and weights.
    given = {"heads": settings.heads, "dim_head": settings.dim_head}
    heads = num_heads(inner, given, HEADS, f"{arrays.prefix}layers.0.0.to_q.weight")
    block = {"num_heads": heads, "qk_channels": inner, "activation": "gelu_erf", "widening_factor": widening}
    config = _config((num_latents, d), depth, block, {}, times)
    found = {"latents": arrays["latents"], "times": arrays["media_pos_emb"][:, 0]}
    found |= arrays.renamed({"final_norm": "norm"})
    parts = {
        "query_norm": "0.norm_latents",
        "token_norm": "0.norm_media",
        "mlp_norm": "1.0",
        "mlp.hidden": "1.1",
        "mlp.output": "1.3",
    }
    for number in range(depth):
        ours, theirs = f"encoder.{number}.cross_attention", f"layers.{number}"
        found |= arrays.renamed({f"{ours}.{name}": f"{theirs}.{module}" for name, module in parts.items()})
        found |= arrays.attention(f"{ours}.attention", f"{theirs}.0")
    return config, found


def from_idefics2(state: Mapping[str, Any], settings: Idefics2Settings) -> tuple[ResamplerConfig, Weights]:
    """Return config and weights of our resampler for a state dict that has an `Idefics2PerceiverResampler`.

    ValueError naming an array that is missing, left over or of a wrong shape, or a setting that is missing.
    """
    # Sizes, and the shapes that they give.
    prefix = settings.prefix
    if prefix is None:
        prefix = Arrays.of(state, IDEFICS, "layers.0.input_latents_norm.weight", alone=False).prefix
    arrays = Arrays.of(state, IDEFICS, "latents", prefix, alone=False)
    num_latents, d = arrays.shape("latents", 2)
    depth = max(arrays.count("layers"), 1)
    inner, key_inner = (arrays.shape(f"layers.0.self_attn.{name}.weight", 2)[0] for name in ("q_proj", "k_proj"))
    widening = arrays.multiple("layers.0.mlp.down_proj.weight", 1, d, "channels of latents")
    shapes: Shapes = {"latents": (num_latents, d)} | norm("norm", d, bias=False)
    for layer in (f"layers.{number}" for number in range(depth)):
        shapes |= _idefics2_shapes(layer, d, (inner, key_inner), widening * d)
    arrays.check(shapes)
    # Config and weights.
    heads, kv_heads = _idefics2_heads(inner, key_inner, settings, f"{arrays.prefix}layers.0.self_attn")
    if settings.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act = {settings.hidden_act!r:.99} must be one of {', '.join(ACTIVATIONS)}")
    block = {
        "num_heads": heads,
        "num_kv_heads": None if kv_heads == heads else kv_heads,
        "qk_channels": inner,
        "activation": ACTIVATIONS[settings.hidden_act],
        "gated": True,
        "widening_factor": widening,
    }
    config = _config((num_latents, d), depth, block, {"norm": "rms", "norm_epsilon": settings.rms_norm_eps}, None)
    found = {"latents": arrays["latents"]} | arrays.renamed({"final_norm": "norm"})
    parts = {
        "query_norm": "input_latents_norm",
        "token_norm": "input_context_norm",
        "mlp_norm": "post_attention_layernorm",
        **{f"attention.{ours}": f"self_attn.{theirs}_proj" for ours, theirs in zip(MAPS, "qkvo", strict=True)},
        "mlp.output": "mlp.down_proj",
    }
    for number in range(depth):
        ours, theirs = f"encoder.{number}.cross_attention", f"layers.{number}"
        found |= arrays.renamed({f"{ours}.{name}": f"{theirs}.{module}" for name, module in parts.items()})
        values, gates = (arrays[f"{theirs}.mlp.{name}_proj.weight"] for name in ("up", "gate"))
        found[f"{ours}.mlp.hidden.weight"] = torch.cat([values, gates])
    return config, found


MAPS = ("query", "key", "value", "output")
"""The maps of an attention."""


def _idefics2_shapes(layer: str, d: int, inner: tuple[int, int], hidden: int) -> Shapes:
    norms = ("input_latents_norm", "input_context_norm", "post_attention_layernorm")
    sizes = {
        "self_attn.q_proj": (d, inner[0]),
        "self_attn.k_proj": (d, inner[1]),
        "self_attn.v_proj": (d, inner[1]),
        "self_attn.o_proj": (inner[0], d),
        "mlp.gate_proj": (d, hidden),
        "mlp.up_proj": (d, hidden),
        "mlp.down_proj": (hidden, d),
    }
    shapes: Shapes = {}
    for name in norms:
        shapes |= norm(f"{layer}.{name}", d, bias=False)
    for name, (inputs, outputs) in sizes.items():
        shapes |= linear(f"{layer}.{name}", inputs, outputs, bias=False)
    return shapes


def _idefics2_heads(inner: int, key_inner: int, settings: Idefics2Settings, where: str) -> tuple[int, int]:
    """Return the number of heads of queries, and that of keys and values."""
    given = {"resampler_n_heads": settings.resampler_n_heads, "resampler_head_dim": settings.resampler_head_dim}
    if settings.num_key_value_heads is not None and set(given.values()) == {None}:
        given["resampler_head_dim"] = key_inner // max(settings.num_key_value_heads, 1)
    heads = num_heads(inner, given, IDEFICS_HEADS, f"{where}.q_proj.weight")
    kv_heads, rest = divmod(key_inner, inner // heads)
    if rest or heads % kv_heads or settings.num_key_value_heads not in (None, kv_heads):
        found = f"num_key_value_heads = {settings.num_key_value_heads}, but " * (
            settings.num_key_value_heads is not None
        )
        right = f"{key_inner} channels are {key_inner / (inner // heads):g} heads of {inner // heads}"
        raise ValueError(f"{found}{where}.k_proj.weight: {right}, beside {heads} heads of queries")
    return heads, kv_heads


def _config(
    latents: tuple[int, int], depth: int, block: Mapping[str, Any], norms: Mapping[str, Any], times: int | None
) -> ResamplerConfig:
    """Return the config of a resampler that reads in each of its layers and does nothing else."""
    biases = dict.fromkeys(("qkv_bias", "output_bias", "mlp_bias"), False)
    options = cast(Any, {**block, **norms, **biases})
    encoder = EncoderConfig(num_reads=depth, share_reads="none", attend_latents=True, **options)
    processor = ProcessorConfig(num_layers=0, num_blocks=depth, final_norm=True, **cast(Any, norms))
    return ResamplerConfig(LatentsConfig(*latents), encoder, processor, max_times=times)
