"""Optical flow: a token for each pixel, asked for with the same tokens (paper section 4.2, H)."""

from perceivers.modalities import Flow, FramePair
from perceivers.preset import Preset
from perceivers.schema import Schema
from perceivers.tasks.published import published


def optical_flow(latents: tuple[int, int] = (2048, 512), layers: int = 24) -> Preset:
    """The released model, by default; 1024 latents and 16 layers are the paper's light one."""
    return Preset(
        schema=Schema(inputs={"frames": FramePair(size=(368, 496))}, outputs={"flow": Flow(of="frames")}),
        config=published(latents, layers, heads=16),
    )
