"""Models of optical flow: one token for each pixel; the same tokens are the queries (paper section 4.2, H)."""

from functools import partial
from typing import Literal

from perceivers.modalities import Flow, FramePair
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.presets import Published, published
from perceivers.schema import Schema
from perceivers.schema.preset import Preset

Variant = Literal["3x3", "3x3-separate", "1x1", "1x1-separate", "conv", "conv-separate"]
"""Tokenisation of the frames (paper, Table 16): patches of 3 x 3 or 1 x 1 around each pixel, or a convolutional stem
with convex upsampling of the output. A token holds both frames, or with `separate` one of them."""


def optical_flow(latents: tuple[int, int] = (2048, 512), layers: int = 24, variant: Variant = "3x3") -> Preset:
    """Return the released model by default; with 1024 latents and 16 layers the paper's light model."""
    return Preset(
        schema=flow_schema(variant, (368, 496)),
        config=published(latents, layers, heads=16),
    )


def flow_schema(variant: Variant, size: tuple[int, int], num_bands: int = 64) -> Schema:
    """Return a schema with two frames of this size as input and displacements as output."""
    frames = FramePair(
        size=size,
        stem="conv" if variant.startswith("conv") else "patches",
        patch=1 if variant.startswith("1x1") else 3,
        separate=variant.endswith("separate"),
        positions=Fourier(num_bands=num_bands),
    )
    return Schema(inputs={"frames": frames}, outputs={"flow": Flow(of="frames")})


PRESETS = {
    # The paper prints 27.9M and 987B for the large model; its other numbers show that they belong to the light one.
    "optical-flow": Published(optical_flow, 41_057_134, "27.9M", "987B", released=True),
    "optical-flow-light": Published(partial(optical_flow, (1024, 512), 16), 27_908_974, "27.9M", "987B"),
}
"""Published models by name, with the parameters and FLOPs that the paper states."""
