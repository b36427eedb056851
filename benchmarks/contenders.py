"""The contenders: this library, and each peer that is installed, with our weights where its functions take them."""

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import kept_for_backward, without_memory
from benchmarks.models import Work, build, inputs_of, moved, preset_of
from benchmarks.processes import Outputs, Program, Setting
from perceivers import PerceiverIO
from perceivers.core.fast.algorithms import Algorithm
from perceivers.modalities.patches import surrounding_patches
from perceivers.pretrained.conversion import to_huggingface
from perceivers.pretrained.huggingface import CLASSES
from perceivers.pretrained.matching import to_theirs
from perceivers.pretrained.names import DERIVED
from perceivers.pretrained.sizes import INPUT, OUTPUT, value_at, widths
from perceivers.schema.preset import Preset
from perceivers.systems.imagenet.model import MEAN, STD
from perceivers.training.activation_checkpointing import recomputed

DROPOUT = 0.1
"""Dropout of attention weights: the default of PerceiverConfig."""


def own(work: Work, setting: Setting, checkpointed: bool = False) -> Program:
    """Return the program of this library."""
    preset = preset_of(work, setting.quick)
    model, raw = build(preset), inputs_of(preset, setting.batch or work.batch)
    return own_program(work, setting, model, raw, checkpointed)


def own_program(
    work: Work, setting: Setting, model: PerceiverIO, raw: Any, checkpointed: bool = False, plain: bool = False
) -> Program:
    """Return the program of a model of this library; `plain`: with the `projected` algorithm."""
    model, raw = model.to(setting.device, setting.dtype), moved(raw, setting)
    if work.part == "reading":
        _only_read(model)
    algorithm: Algorithm | None = "projected" if plain else None
    limit = work.limit(setting.device)

    def forward() -> Any:
        with recomputed(model, checkpointed):
            encoded = model.encode(raw, limit, algorithm)
            if work.part == "reading":
                return encoded.latents
            return model.decode(encoded, memory_limit=limit, algorithm=algorithm)

    return program_of(work, model, forward)


def _only_read(model: PerceiverIO) -> None:
    """Remove the layers that process the latents."""
    for block in model.trunk.processor:
        block.layers = nn.ModuleList()


def huggingface(work: Work, setting: Setting) -> Program:
    """Return the program of transformers' class, run as in its documentation."""
    model, arguments = _huggingface(work, setting)
    if work.part == "reading":
        model.perceiver.encoder.self_attends, model.perceiver.decoder = nn.ModuleList(), None

    def forward() -> Any:
        if work.part == "reading":
            return model.perceiver(inputs=arguments["inputs"]).last_hidden_state
        return model(**arguments).logits

    return program_of(work, model, forward)


def huggingface_in_chunks(work: Work, setting: Setting, chunks: int) -> Program:
    """Return the program of transformers' video model as documented: in chunks of outputs, encoding again for each."""
    model, arguments = _huggingface(work, setting)
    outputs, chunks = preset_of(work, setting.quick).schema.outputs, 3 if setting.quick else chunks
    grids: list[Any] = [outputs[name] for name in ("image", "audio")]
    points = [torch.arange(math.prod(spec.grid), device=setting.device).tensor_split(chunks) for spec in grids]

    def decode(image: Tensor, audio: Tensor) -> Outputs:
        chunk = {"image": image, "audio": audio, "label": None}
        with torch.no_grad():
            return model(**arguments, subsampled_output_points=chunk).logits

    def together(results: Sequence[Outputs]) -> Outputs:
        return {name: torch.cat([result[name] for result in results], dim=1).flatten(1) for name in ("image", "audio")}

    return Program([partial(decode, *part) for part in zip(*points, strict=True)], together)


def huggingface_kept(work: Work, setting: Setting) -> Program:
    """Return a program with the bytes that transformers saves for the backward pass, counted without a run."""
    kept = []
    for dropout in (0.0, DROPOUT):
        with without_memory():
            model, arguments = _huggingface(work, replace(setting, device="cpu"), weights=False, dropout=dropout)
            forward = partial(model.train(), **arguments)
            kept.append(kept_for_backward(forward, [*model.parameters(), *model.buffers()]))
    with_dropout = f"{kept[1] / 2**30:.1f} GiB with its default dropout of attention weights"
    return Program(kept_bytes=kept[0], note=f"kept for backward, counted, not run; {with_dropout}")


def _huggingface(
    work: Work, setting: Setting, weights: bool = True, dropout: float = 0.0
) -> tuple[Any, dict[str, Any]]:
    import transformers

    # Convert config and, unless only sizes are counted, weights.
    preset = preset_of(work, setting.quick)
    raw = inputs_of(preset, setting.batch or work.batch)
    model = build(preset) if weights else preset.build("meta")
    theirs, config = to_huggingface(preset, model.state_dict())
    config["attention_probs_dropout_prob"] = dropout
    model = getattr(transformers, CLASSES[work.family])(transformers.PerceiverConfig.from_dict(config)).eval()
    if weights:
        model.load_state_dict(theirs)
        model.to(setting.device, setting.dtype)
    return model, moved(HUGGINGFACE_INPUTS[work.family](preset, raw), setting)


def _ids(preset: Preset, raw: Any) -> dict[str, Any]:
    return {"inputs": raw["text"]["ids"]}


def _pixels(preset: Preset, raw: Any) -> dict[str, Any]:
    return {"inputs": ((raw["image"] - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, 1)}


def _frame_patches(preset: Preset, raw: Any) -> dict[str, Any]:
    return {"inputs": surrounding_patches(raw["frames"], 3).movedim(-1, 2)}


def _clip(preset: Preset, raw: Any) -> dict[str, Any]:
    label = torch.zeros(len(raw["label"]), value_at(preset, f"{OUTPUT}label.num_classes"))
    return {"inputs": {"image": raw["image"].movedim(-1, 2), "audio": raw["audio"], "label": label}}


HUGGINGFACE_INPUTS: Mapping[str, Callable[[Preset, Any], dict[str, Any]]] = {
    "language": _ids,
    "imagenet-fourier": _pixels,
    "imagenet-learned": _pixels,
    "imagenet-conv": _pixels,
    "optical-flow": _frame_patches,
    "multimodal": _clip,
}
"""Conversions of our raw inputs to the arguments of transformers' classes, by family."""


def krasserm(work: Work, setting: Setting) -> Program:
    """Return the program of krasserm's perceiver-io 0.11."""
    preset = preset_of(work, setting.quick)
    weights, raw = build(preset).state_dict(), inputs_of(preset, setting.batch or work.batch)
    model = KRASSERM[work.family](preset, weights).eval()
    # Load our weights under his names; only derived buffers may be missing.
    names = to_theirs(work.family, "krasserm", weights)
    if not preset.config.decoder.query_residual:  # without a residual, the attention has no wrapper
        names = {name.replace("1.cross_attn.0.module.", "1.cross_attn.0."): x for name, x in names.items()}
    report = model.load_state_dict(names, strict=False)
    unmatched = [name for name in report.missing_keys if not name.endswith(DERIVED["krasserm"])]
    assert not unmatched + report.unexpected_keys
    model = model.to(setting.device, setting.dtype)
    (inputs,) = moved(HUGGINGFACE_INPUTS[work.family](preset, raw), setting).values()
    if work.family != "imagenet-fourier":
        return program_of(work, model, lambda: model(inputs))
    pixels = inputs.movedim(1, -1)
    program = program_of(work, model, lambda: model(pixels))
    # His highest frequency depends on the size of the picture, that of the released model does not: nothing to compare.
    return replace(program, outputs=lambda results: {}) if setting.quick else program


def _krasserm_package(name: str) -> ModuleType:
    """Import the file with the classes of a model, without its package, which imports data sets and Lightning."""
    package = f"perceiver.model.{name}"
    if package not in sys.modules:
        import perceiver

        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(Path(perceiver.__path__[0], "model", *name.split(".")))]
    return importlib.import_module(f"{package}.backend")


def _stages(preset: Preset, weights: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that his encoder configs share, and those that his decoder configs share."""
    config = preset.config
    read, process, write = (widths(weights, stage) for stage in ("encoder", "processor", "decoder"))
    encoder = {
        "num_cross_attention_heads": config.encoder.num_heads,
        "num_cross_attention_qk_channels": read["qk"],
        "num_cross_attention_v_channels": read["v"],
        "num_self_attention_heads": config.processor.num_heads,
        "num_self_attention_qk_channels": process["qk"],
        "num_self_attention_v_channels": process["v"],
        "num_self_attention_layers_per_block": config.processor.num_layers,
        "num_self_attention_blocks": config.processor.num_blocks,
    }
    decoder = {
        "num_cross_attention_heads": config.decoder.num_heads,
        "num_cross_attention_qk_channels": write["qk"],
        "num_cross_attention_v_channels": write["v"],
        "cross_attention_residual": config.decoder.query_residual,
    }
    return encoder, decoder


def _latents(preset: Preset) -> dict[str, int]:
    latents = preset.config.latents
    return {"num_latents": latents.num_latents, "num_latent_channels": latents.channels}


def _krasserm_language(preset: Preset, weights: Mapping[str, Tensor]) -> nn.Module:
    package = _krasserm_package("text.mlm")
    text, (encoder, decoder) = value_at(preset, f"{INPUT}text"), _stages(preset, weights)
    size = {"vocab_size": text.num_ids, "max_seq_len": text.length}
    config = package.MaskedLanguageModelConfig(
        package.TextEncoderConfig(num_input_channels=text.channels, **size, **encoder),
        package.TextDecoderConfig(**size, **decoder),
        **_latents(preset),
    )
    return package.MaskedLanguageModel(config)


def _krasserm_imagenet(preset: Preset, weights: Mapping[str, Tensor]) -> nn.Module:
    package = _krasserm_package("vision.image_classifier")
    label, (encoder, decoder) = value_at(preset, f"{OUTPUT}label"), _stages(preset, weights)
    side = value_at(preset, f"{INPUT}image.size")
    config = package.ImageClassifierConfig(
        package.ImageEncoderConfig(image_shape=(side, side, 3), num_frequency_bands=64, **encoder),
        package.ClassificationDecoderConfig(
            num_classes=label.num_classes, num_output_query_channels=label.query_channels, **decoder
        ),
        **_latents(preset),
    )
    return package.ImageClassifier(config)


def _krasserm_flow(preset: Preset, weights: Mapping[str, Tensor]) -> nn.Module:
    package = _krasserm_package("vision.optical_flow")
    size, (encoder, decoder) = value_at(preset, f"{INPUT}frames.size"), _stages(preset, weights)
    config = package.OpticalFlowConfig(
        package.OpticalFlowEncoderConfig(image_shape=size, **encoder),
        package.OpticalFlowDecoderConfig(image_shape=size, **decoder),
        **_latents(preset),
    )
    return package.OpticalFlow(config)


KRASSERM: Mapping[str, Callable[[Preset, Mapping[str, Tensor]], nn.Module]] = {
    "language": _krasserm_language,
    "imagenet-fourier": _krasserm_imagenet,
    "optical-flow": _krasserm_flow,
}
"""Constructors of the released models that his package has, by family."""


def lucidrains(work: Work, setting: Setting) -> Program:
    """Return the program of lucidrains' perceiver-pytorch on our tokens: same sizes, other blocks (gated MLPs)."""
    from perceiver_pytorch import PerceiverIO as Theirs

    # Our tokens and queries: his model has no adapters.
    preset, batch = preset_of(work, setting.quick), setting.batch or work.batch
    model, config = build(preset), preset.config
    weights = model.state_dict()
    with torch.no_grad():
        tokens, queries = (x.expand(batch, -1, -1) for x in _tokens_and_queries(model, inputs_of(preset, batch)))
    # His model of the same sizes.
    theirs = Theirs(
        depth=config.processor.num_layers * config.processor.num_blocks,
        dim=tokens.shape[-1],
        queries_dim=queries.shape[-1],
        logits_dim=_width(model),
        num_latents=config.latents.num_latents,
        latent_dim=config.latents.channels,
        cross_heads=config.encoder.num_heads,
        latent_heads=config.processor.num_heads,
        cross_dim_head=widths(weights, "encoder")["v"] // config.encoder.num_heads,
        latent_dim_head=widths(weights, "processor")["v"] // config.processor.num_heads,
        weight_tie_layers=config.processor.num_blocks > 1,
        decoder_ff=True,
    )
    theirs = theirs.eval().to(setting.device, setting.dtype)
    tokens, queries = moved([tokens, queries], setting)
    program = program_of(work, theirs, lambda: theirs(tokens, queries=queries))
    return replace(program, outputs=lambda results: {}, note="another function of the same sizes")


def _width(model: PerceiverIO) -> int:
    """Return the channels of the only output."""
    (adapter,) = model.output_adapter.adapters.values()
    weight = adapter.get_submodule("head").weight
    assert isinstance(weight, Tensor)
    return len(weight)


def _tokens_and_queries(model: PerceiverIO, raw: Any) -> tuple[Tensor, Tensor]:
    """Return our tokens [B, M, C] and queries [B, O, F]."""
    tokens, _ = model.tokens(raw)
    queries = model.output_query(model.encode(raw), {}, None)
    return tokens.dense(torch.float32), queries.dense(torch.float32)


def program_of(work: Work, model: nn.Module, forward: Callable[[], Any]) -> Program:
    """Return the program of a forward pass or of a training step: zero gradients, forward, loss, backward."""
    if work.part != "training":
        return Program([torch.no_grad()(forward)], lambda results: comparable(results[0]))
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # gradients are not to count as memory of a step

    def step() -> Tensor:
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()
        loss = sum(x.float().square().mean() for x in comparable(forward()).values())
        assert isinstance(loss, Tensor)
        loss.backward()
        return loss.detach()

    def outputs(results: Sequence[Tensor]) -> Outputs:
        squares = [p.grad.double().square().sum() for p in model.parameters() if p.grad is not None]
        return {"loss": results[-1][None], "gradient": torch.stack(squares).sum().sqrt()[None]}

    return Program([step], outputs)


def comparable(outputs: Any) -> Outputs:
    """Return flattened outputs [B, n] by name; a single output is called "output"."""
    if isinstance(outputs, Tensor):
        return {"output": outputs.flatten(1)}
    if len(outputs) == 1:
        return comparable(next(iter(outputs.values())))
    return {name: x.flatten(1) for name, x in outputs.items()}
