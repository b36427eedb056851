"""Checkpoints of krasserm's perceiver-io against his equations, written out here, with heads other than the preset's.

The equations were compared with his package (0.11.0): equal within rounding for all three models.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from perceivers.modalities.patches import surrounding_patches
from perceivers.pretrained.checkpoint_files import read_checkpoint
from perceivers.pretrained.conversion import from_krasserm
from perceivers.pretrained.matching import to_theirs
from perceivers.pretrained.sizes import changed
from perceivers.systems import PRESETS
from perceivers.systems.imagenet.model import MEAN, STD
from reference_files import relative_error

SIZE, BANDS, RESCALE = (5, 7), 4, 13.0

HEADS = {"encoder": 3, "processor": 5, "decoder": 2}

WIDTHS = {"encoder": (15, 21), "processor": (25, 35), "decoder": (14, 26)}
"""Widths of queries and keys, and of values."""

READS, BLOCKS, LAYERS = 2, 3, 2

SIZES: dict[str, Any] = {
    "config.latents.num_latents": 7,
    "config.latents.channels": 30,
    "config.processor.num_layers": LAYERS,
    **{f"config.{stage}.num_heads": heads for stage, heads in HEADS.items()},
    **{f"config.{stage}.qk_channels": width for stage, (width, _) in WIDTHS.items()},
    **{f"config.{stage}.v_channels": width for stage, (_, width) in WIDTHS.items()},
    **{f"config.{stage}.widening_factor": factor for stage, factor in zip(HEADS, (3, 2, 2), strict=True)},
}

TEXT = {"vocab_size": 131, "channels": 22, "length": 23}

OWN: dict[str, dict[str, Any]] = {
    "language": {f"schema.{side}.{name}": x for side in ("inputs.text", "outputs.restored") for name, x in TEXT.items()}
    | {"schema.outputs.restored.query_channels": 22},
    "imagenet-fourier": {
        "schema.inputs.image.positions.num_bands": BANDS,
        "schema.outputs.label.query_channels": 26,
        "schema.outputs.label.classes": 11,
    },
    "optical-flow": {"schema.inputs.frames.positions.num_bands": BANDS, "schema.inputs.frames.embed": 12},
}

MODEL_TYPE = {
    "language": "perceiver-io-masked-language-model",
    "imagenet-fourier": "perceiver-io-image-classifier",
    "optical-flow": "perceiver-io-optical-flow",
}


def config_of(family: str) -> dict[str, Any]:
    """Return his config.json with every setting of his model."""
    encoder: dict[str, Any] = {
        "num_cross_attention_heads": HEADS["encoder"],
        "num_cross_attention_layers": READS,
        "first_cross_attention_layer_shared": True,
        "cross_attention_widening_factor": 3,
        "num_self_attention_heads": HEADS["processor"],
        "num_self_attention_blocks": BLOCKS,
        "num_self_attention_layers_per_block": LAYERS,
        "self_attention_widening_factor": 2,
        "first_self_attention_block_shared": True,
        "dropout": 0.25,
        "residual_dropout": 0.375,
        "init_scale": 0.02,
        "freeze": False,
        "num_cross_attention_qk_channels": WIDTHS["encoder"][0],
        "num_cross_attention_v_channels": WIDTHS["encoder"][1],
        "num_self_attention_qk_channels": WIDTHS["processor"][0],
        "num_self_attention_v_channels": WIDTHS["processor"][1],
    }
    decoder: dict[str, Any] = {
        "num_cross_attention_heads": HEADS["decoder"],
        "cross_attention_widening_factor": 2,
        "cross_attention_residual": family == "imagenet-fourier",
        "dropout": 0.125,
        "init_scale": 0.02,
        "freeze": False,
        "num_cross_attention_qk_channels": WIDTHS["decoder"][0],
        "num_cross_attention_v_channels": WIDTHS["decoder"][1],
    }
    if family == "language":
        encoder |= {"vocab_size": 131, "max_seq_len": 23, "num_input_channels": 22, "params": None}
        decoder |= {"vocab_size": 131, "max_seq_len": 23, "num_output_query_channels": None}
    if family == "imagenet-fourier":
        encoder |= {"image_shape": [*SIZE, 3], "num_frequency_bands": BANDS}
        decoder |= {"num_classes": 11, "num_output_query_channels": 26, "num_output_queries": 1}
    if family == "optical-flow":
        encoder |= {"num_patch_input_channels": 27, "num_patch_hidden_channels": 12, "num_frequency_bands": BANDS}
        encoder["image_shape"] = decoder["image_shape"] = list(SIZE)
        decoder["rescale_factor"] = RESCALE
    model = {"encoder": encoder, "decoder": decoder, "num_latents": 7, "num_latent_channels": 30}
    model |= {"activation_checkpointing": False, "activation_offloading": False, "params": None}
    return {"model_type": MODEL_TYPE[family], "model_config": model}


def weights_of(family: str) -> dict[str, Tensor]:
    """Return random arrays under his names."""
    state = changed(PRESETS[family].preset(), SIZES | OWN[family]).build("meta").state_dict()
    torch.manual_seed(3)
    arrays = {
        name: 1 + 0.2 * torch.randn(x.shape)
        if "norm" in name and name.endswith("weight")
        else torch.randn(x.shape) * (0.5 if x.ndim < 2 else x.shape[1] ** -0.5)
        for name, x in state.items()
    }
    theirs = to_theirs(family, "krasserm", arrays)
    if family != "imagenet-fourier":  # without a residual, the decoder's attention has no wrapper
        theirs = {name.replace("1.cross_attn.0.module.", "1.cross_attn.0."): x for name, x in theirs.items()}
    return theirs


@dataclass
class His:
    """His model as arrays, with the forward pass of each family."""

    family: str
    arrays: dict[str, Tensor]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.arrays[f"{name}.weight"].T + self.arrays[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.arrays[f"{name}.weight"], self.arrays[f"{name}.bias"], 1e-5)

    def attend(self, name: str, queries: Tensor, tokens: Tensor, heads: int, mask: Tensor | None) -> Tensor:
        q, k, v = (
            self.linear(f"{name}.attention.{x}_proj", y).unflatten(-1, (heads, -1)).movedim(-2, -3)
            for x, y in (("q", queries), ("k", tokens), ("v", tokens))
        )
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        found = scores.softmax(-1) @ v
        return self.linear(f"{name}.attention.o_proj", found.movedim(-3, -2).flatten(-2))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        name = f"{name}.1.module"
        hidden = self.linear(f"{name}.1", self.norm(f"{name}.0", x))
        return x + self.linear(f"{name}.3", 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))

    def cross(self, name: str, x: Tensor, tokens: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
        residual = f"{name}.0.module.q_norm.weight" in self.arrays
        part = f"{name}.0.module" if residual else f"{name}.0"
        found = self.attend(part, self.norm(f"{part}.q_norm", x), self.norm(f"{part}.kv_norm", tokens), heads, mask)
        return self.mlp(name, found + x if residual else found)

    def latents(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        x = self.arrays["0.latent_provider._query"]
        for block in range(BLOCKS):
            if block < READS:
                x = self.cross("0.cross_attn_1", x, tokens, HEADS["encoder"], mask)
            for layer in range(LAYERS):
                name = f"0.self_attn_1.{layer}"
                normed = self.norm(f"{name}.0.module.norm", x)
                x = self.mlp(name, x + self.attend(f"{name}.0.module", normed, normed, HEADS["processor"], None))
        return x

    def logits(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        queries = tokens if self.family == "optical-flow" else self.arrays["1.output_query_provider._query"]
        x = self.cross("1.cross_attn", queries, self.latents(tokens, mask), HEADS["decoder"])
        if self.family == "language":
            return x @ self.arrays["0.input_adapter.txt_embedding.weight"].T + self.arrays["1.output_adapter.bias"]
        return self.linear("1.output_adapter.linear", x)


def places() -> Tensor:
    """Return his Fourier features of a picture, whose highest frequency follows from its size."""
    axes = [torch.linspace(-1, 1, n) for n in SIZE]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1)
    waves = [at[:, i : i + 1] * torch.linspace(1, n / 2, BANDS) * math.pi for i, n in enumerate(SIZE)]
    return torch.cat([at, *(x.sin() for x in waves), *(x.cos() for x in waves)], -1)


def ask(model: His) -> tuple[dict[str, Any], Tensor]:
    """Return inputs for our model, and his outputs for them."""
    torch.manual_seed(5)
    if model.family == "language":
        ids = torch.randint(0, 131, (3, 19))
        mask = torch.arange(19) < torch.tensor([[19], [11], [1]])
        embedding, positions = (model.arrays[f"0.input_adapter.{name}_embedding.weight"] for name in ("txt", "pos"))
        return {"text": {"ids": ids, "mask": mask}}, model.logits(embedding[ids] + positions[:19], mask)[:, :19]
    if model.family == "imagenet-fourier":
        images = 255 * torch.rand(2, *SIZE, 3)
        pixels = ((images - torch.tensor(MEAN)) / torch.tensor(STD)).flatten(1, 2)
        tokens = torch.cat([pixels, places().expand(2, -1, -1)], -1)
        return {"image": images}, model.logits(tokens)[:, 0]
    frames = 2 * torch.rand(1, 2, *SIZE, 3) - 1
    patches = surrounding_patches(frames, 3).movedim(1, -2).flatten(-2).flatten(1, 2)
    tokens = torch.cat([model.linear("0.input_adapter.linear", patches), places()[None]], -1)
    return {"frames": frames}, model.logits(tokens).unflatten(1, SIZE) / RESCALE


def saved(folder: Any, family: str, config: Any, prefix: str = "backend_model.") -> Any:
    folder.mkdir()
    save_file({prefix + name: x.contiguous() for name, x in weights_of(family).items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", MODEL_TYPE)
def test_his_numbers_come_with_nothing_but_the_files(family: str, tmp_path: Any) -> None:
    given, expected = ask(His(family, weights_of(family)))
    model = read_checkpoint(saved(tmp_path / "his", family, config_of(family)), PRESETS[family].preset())
    with torch.no_grad():
        (output,) = model(given).values()
    assert relative_error(output, expected) <= 1e-5
    assert [getattr(model.config, stage).attention_dropout for stage in HEADS] == [0.25, 0.25, 0.125]
    assert [getattr(model.config, stage).dropout for stage in HEADS] == [0.375, 0.375, 0.0]


def test_without_config_json_heads_are_asked_for(tmp_path: Any) -> None:
    folder = saved(tmp_path / "his", "language", None, "model.")
    settings = {f"config.{stage}.num_heads": heads for stage, heads in HEADS.items()}
    settings |= {"config.processor.num_blocks": BLOCKS, "config.encoder.num_reads": READS}
    settings |= {"config.encoder.share_reads": "all"}
    said = [f"{path}={x}" for path, x in settings.items()]
    for path in [*settings][:-1]:
        rest = [setting for setting in said if not setting.startswith(path)]
        rest += ["config.encoder.num_reads=1"] if path.endswith("blocks") else []  # each read precedes a block
        with pytest.raises(ValueError, match=f"nothing in the files says {path}: give it with --set {path}=NUMBER"):
            read_checkpoint(folder, PRESETS["language"].preset(), rest)
    model = read_checkpoint(folder, PRESETS["language"].preset(), said)
    given, expected = ask(His("language", weights_of("language")))
    with torch.no_grad():
        assert relative_error(model(given)["restored"], expected) <= 1e-5


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("encoder.num_self_attention_heads", None, "num_self_attention_heads = None is not a whole number"),
        ("encoder.num_self_attention_blocks", 10**6, "num_self_attention_blocks is more than 1000"),
        ("encoder.num_cross_attention_layers", 4, "num_reads = 4 must be from 1 to processor.num_blocks = 3"),
        ("encoder.num_self_attention_layers_per_block", 3, "num_self_attention_layers_per_block = 3, but the arrays"),
        ("decoder.cross_attention_residual", True, "cross_attention_residual is not False"),
        ("decoder.image_shape", [7, 5], "image_shape of the decoder is not"),
        ("decoder.rescale_factor", 0, "rescale_factor = 0 is not a number above 0"),
        ("decoder.dropout", 1.5, "dropout = 1.5 is not a number from 0 to below 1"),
        ("decoder", 3, "model_config.decoder is missing"),
        ("encoder.residual_dropout", "0.1", "residual_dropout = '0.1' is not a number from 0 to below 1"),
        ("encoder.num_frequency_bands", 5, "num_frequency_bands = 5, but the arrays are those of a model with 4"),
        ("encoder.num_patch_hidden_channels", 13, "num_patch_hidden_channels = 13, but the arrays .* with 12"),
        ("encoder.num_patch_input_channels", 9, "num_patch_input_channels = 9, but the arrays need 27"),
        ("encoder.num_cross_attention_qk_channels", None, "encoder: num_cross_attention_qk_channels comes to 30, but"),
        ("encoder.num_cross_attention_v_channels", 15, "num_cross_attention_v_channels comes to 15, .* have 21"),
        ("encoder.num_self_attention_qk_channels", 5, "num_self_attention_qk_channels comes to 5, .* have 25"),
        ("decoder.num_cross_attention_v_channels", 0, "num_cross_attention_v_channels = 0 is not a whole number"),
        ("encoder.first_cross_attention_layer_shared", False, "first_cross_attention_layer_shared = False, but there"),
        ("encoder.first_self_attention_block_shared", False, "first_self_attention_block_shared = False, but there"),
    ],
)
def test_lies_are_named(place: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_krasserm(PRESETS["optical-flow"].preset(), weights_of("optical-flow"), lying("optical-flow", place, value))


@pytest.mark.parametrize(
    ("family", "place", "value"),
    [
        *(
            ("language", f"{part}.{key}", 24)
            for part in ("encoder", "decoder")
            for key in ("vocab_size", "max_seq_len")
        ),
        ("language", "encoder.num_input_channels", 24),
        ("language", "decoder.num_output_query_channels", 24),
        *(("imagenet-fourier", f"decoder.{key}", 5) for key in ("num_classes", "num_output_query_channels")),
        ("imagenet-fourier", "decoder.num_output_queries", 2),
        ("imagenet-fourier", "encoder.num_frequency_bands", 5),
    ],
)
def test_lies_of_one_model_are_named(family: str, place: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{place.partition('.')[2]} = {value}, but the arrays"):
        from_krasserm(PRESETS[family].preset(), weights_of(family), lying(family, place, value))


@pytest.mark.parametrize("place", ["output_bias", "encoder.max_heads_parallel", "decoder.vocab_size"])
def test_a_key_without_effect_warns(place: str) -> None:
    with pytest.warns(UserWarning, match=f"model_config.{place} is no setting of perceiver-io-optical-flow"):
        from_krasserm(PRESETS["optical-flow"].preset(), weights_of("optical-flow"), lying("optical-flow", place, 1))


def lying(family: str, place: str, value: Any) -> dict[str, Any]:
    """Return his config.json with another value at one position."""
    config = config_of(family)
    *parents, name = place.split(".")
    node = config["model_config"]
    for parent in parents:
        node = node[parent]
    node[name] = value
    return config


def test_his_other_models_are_named() -> None:
    config = config_of("language") | {"model_type": "perceiver-io-text-classifier"}
    with pytest.raises(ValueError, match="model_type = 'perceiver-io-text-classifier'; the model language is"):
        from_krasserm(PRESETS["language"].preset(), weights_of("language"), config)


def test_blocks_of_their_own_have_no_place() -> None:
    weights = weights_of("language")
    weights |= {name.replace("self_attn_1", "self_attn_n"): x for name, x in weights.items() if "self_attn_1" in name}
    with pytest.raises(ValueError, match=r"^0\.self_attn_n\..* is left over"):
        from_krasserm(PRESETS["language"].preset(), weights, config_of("language"))
