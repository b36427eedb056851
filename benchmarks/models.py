"""Which model a row measures, its random weights and its inputs: the same for every contender."""

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
"""Bytes that ours may take there where it has a limit on a CPU."""


@dataclass(frozen=True)
class Work:
    """What is measured, whoever does it."""

    family: str
    """A released model."""
    batch: int = 1
    """Samples at once."""
    part: Part = "forward"
    """forward; only what reads the inputs into latents; or forward and backward."""
    memory_limit: int | None = None
    """Bytes that ours is asked to stay within, on a CPU."""

    def limit(self, device: str) -> int | None:
        """The same on a GPU, which has more."""
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
"""Sizes at which everything runs in no time, and which transformers' classes can still express."""


def preset_of(work: Work, quick: bool) -> Preset:
    """The released model, computing as transformers does, so that outputs can be compared."""
    preset = huggingface_options(PRESETS[work.family].preset())
    return changed(preset, TINY[work.family]) if quick else preset


def build(preset: Preset) -> PerceiverIO:
    """A model with random weights, the same in every process; what starts at zero too, for it would hide the rest."""
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
    """Random raw inputs of the trained size, in the data's units, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    return {name: _random(spec, batch, generator) for name, spec in preset.schema.inputs.items()}


def _random(spec: Modality, batch: int, generator: torch.Generator) -> Any:
    if isinstance(spec, Text):
        return {"ids": torch.randint(0, spec.num_ids, (batch, spec.length), generator=generator)}
    blank = spec.dummy_input(batch, torch.device("cpu"))
    if not blank.is_floating_point():  # the label of a clip, which the released model never sees
        return blank
    values = torch.rand(blank.shape, generator=generator)
    if isinstance(spec, FramePair):
        return 2 * values - 1
    low, high = getattr(spec, "value_range", None) or (0.0, 1.0)
    return low + (high - low) * values


def moved(x: Any, setting: Setting) -> Any:
    """Tensors where they are measured, numbers in its precision."""
    if isinstance(x, dict):
        return {name: moved(value, setting) for name, value in x.items()}
    if isinstance(x, list):
        return [moved(value, setting) for value in x]
    if isinstance(x, Tensor):
        return x.to(setting.device, setting.dtype if x.is_floating_point() else None)
    return x


def picture(inputs: int, outputs: int, latents: tuple[int, int]) -> Preset:
    """A picture of so many pixels to one of so many, with Fourier features, and one layer between."""
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
    """The sides nearest to each other whose product it is."""
    height = next(n for n in range(math.isqrt(pixels), 0, -1) if pixels % n == 0)
    return height, pixels // height
