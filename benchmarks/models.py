"""The model that a row measures, its random weights and its inputs, the same for every contender."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.processes import Setting
from perceivers import (
    Config,
    DecoderConfig,
    EncoderConfig,
    Fourier,
    FramePair,
    Image,
    LatentsConfig,
    PerceiverIO,
    ProcessorConfig,
    Schema,
    Text,
)
from perceivers.modalities.modality import Modality
from perceivers.pretrained.conversion import huggingface_options
from perceivers.pretrained.sizes import INPUT, OUTPUT, Values, changed
from perceivers.schema.preset import Preset
from perceivers.systems import PRESETS

Part = Literal["forward", "reading", "training"]

GPU_MEMORY = 16 * 10**9
"""Memory limit of our attention on a GPU in bytes, where the row has one on a CPU."""


@dataclass(frozen=True)
class Work:
    """Work that is measured, the same for all contenders."""

    family: str
    """Name of a released model."""
    batch: int = 1
    """Batch size."""
    part: Part = "forward"
    """Forward pass; reading of the inputs into latents alone; or training step (forward and backward)."""
    memory_limit: int | None = None
    """Memory limit of our attention on a CPU, in bytes."""

    def limit(self, device: str) -> int | None:
        """Return the memory limit on a device."""
        return GPU_MEMORY if device == "cuda" and self.memory_limit is not None else self.memory_limit


_SMALL: Values = {"config.latents.num_latents": 8, "config.processor.num_layers": 2, "config.processor.num_heads": 4}
_NARROW = _SMALL | {"config.latents.channels": 32}
_CLASSES = {f"{OUTPUT}label.classes": 11, f"{OUTPUT}label.query_channels": 32, "config.processor.num_blocks": 2}

TINY: dict[str, Values] = {
    "language": _SMALL
    | {"config.latents.channels": 48, "config.decoder.v_channels": 32}
    | {f"config.{stage}.qk_channels": 16 for stage in ("encoder", "processor")}
    | {f"config.{stage}.v_channels": 48 for stage in ("encoder", "processor")}
    | {f"{end}.{name}": n for end in (f"{INPUT}text", f"{OUTPUT}restored") for name, n in (("length", 23),)}
    | {f"{INPUT}text.channels": 32, f"{OUTPUT}restored.channels": 32, f"{OUTPUT}restored.query_channels": 32},
    "imagenet-fourier": _NARROW | _CLASSES | {f"{INPUT}image.size": 12},
    "imagenet-learned": _NARROW | _CLASSES | {f"{INPUT}image.size": 13},
    "imagenet-conv": _NARROW | _CLASSES | {f"{INPUT}image.size": 37},
    "optical-flow": _NARROW | {f"{INPUT}frames.size": (10, 14)},
    "multimodal": _NARROW
    | {"config.decoder.output_channels": 24}
    | {f"{end}image.size": (2, 12, 12) for end in (INPUT, OUTPUT)}
    | {f"{end}image.positions.max_resolution": (2, 3, 3) for end in (INPUT, OUTPUT)}
    | {f"{end}audio.{name}": 96 for end in (INPUT, OUTPUT) for name in ("size", "positions.max_resolution")},
}
"""Tiny sizes for --quick, which transformers' classes can still express."""


def preset_of(work: Work, quick: bool) -> Preset:
    """Return the preset of a released model, with the numerics of transformers, so that outputs can be compared."""
    preset = huggingface_options(PRESETS[work.family].preset())
    return changed(preset, TINY[work.family]) if quick else preset


def build(preset: Preset) -> PerceiverIO:
    """Return a model with the same random weights in every process, also where weights start at zero."""
    torch.manual_seed(0)
    model = preset.build().eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if not x.is_floating_point():
                continue
            if name.endswith("running_var"):
                x.uniform_(0.5, 2)
            elif "norm" in name and name.endswith("weight"):
                x.normal_(1, 0.2)
            else:
                x.normal_(0, 0.5 if x.ndim < 2 or min(x.shape) == 1 else x[0].numel() ** -0.5)
    return model


def inputs_of(preset: Preset, batch: int) -> dict[str, Any]:
    """Return random raw inputs of the trained size, in the units of the data, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    return {name: _random(spec, batch, generator) for name, spec in preset.schema.inputs.items()}


def _random(spec: Modality, batch: int, generator: torch.Generator) -> Any:
    if isinstance(spec, Text):
        return {"ids": torch.randint(0, spec.num_ids, (batch, spec.length), generator=generator)}
    dummy = spec.dummy_input(batch, torch.device("cpu"))
    if not dummy.is_floating_point():  # the label of a clip, which the released model always masks
        return dummy
    values = torch.rand(dummy.shape, generator=generator)
    if isinstance(spec, FramePair):
        return 2 * values - 1
    low, high = getattr(spec, "value_range", None) or (0.0, 1.0)
    return low + (high - low) * values


def moved(x: Any, setting: Setting) -> Any:
    """Return tensors on the device of the setting, floating-point ones in its precision."""
    if isinstance(x, dict):
        return {name: moved(value, setting) for name, value in x.items()}
    if isinstance(x, list):
        return [moved(value, setting) for value in x]
    if isinstance(x, Tensor):
        return x.to(setting.device, setting.dtype if x.is_floating_point() else None)
    return x


def picture(inputs: int, outputs: int, latents: tuple[int, int]) -> Preset:
    """Return a model from a picture of `inputs` pixels to one of `outputs`, with Fourier features and one layer."""
    positions = Fourier(num_bands=64)
    return Preset(
        Schema(
            inputs={"picture": Image(size=_sides(inputs), positions=positions)},
            outputs={"drawn": Image(size=_sides(outputs), positions=positions)},
        ),
        Config(
            LatentsConfig(*latents),
            EncoderConfig(channel_alignment="pad"),
            ProcessorConfig(num_layers=1),
            DecoderConfig(channel_alignment="pad"),
        ),
    )


def _sides(pixels: int) -> tuple[int, int]:
    """Return height and width of a picture with this number of pixels, as square as possible."""
    height = next(n for n in range(math.isqrt(pixels), 0, -1) if pixels % n == 0)
    return height, pixels // height
