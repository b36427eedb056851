"""Checks that rotary positions find coordinates: the axes of a config beside those of inputs, outputs and latents."""

import warnings
from collections.abc import Mapping

from perceivers.core.config import Config
from perceivers.modalities.events import Events
from perceivers.modalities.grid import Grid
from perceivers.modalities.modality import Modality
from perceivers.modalities.pointset import PointSet


def check_axes(inputs: Mapping[str, Modality], outputs: Mapping[str, Modality], config: Config) -> None:
    """Warn of an axis of a stage's rotary positions that acts on nothing.

    ValueError for an output whose queries neither position features nor rotary positions tell apart.
    """
    read = {name: axes_of(spec) for name, spec in inputs.items() if spec.role == "read"}
    asked = {name: axes_of(spec) or read.get(spec.of or "", set()) for name, spec in outputs.items()}
    given = set[str]().union(*read.values())
    latents = {axis.name for axis in config.latents.places} | read.get(config.latents.taken_from or "", set())
    latents = given if config.trunk == "transformer" else latents
    written = set[str]().union(*asked.values())
    for stage, who, other in (
        ("encoder", "inputs", given),
        ("processor", "", latents),
        ("decoder", "outputs", written),
    ):
        for axis in sorted(_rotated(config, stage) - (latents & other)):
            lacking = who if axis in latents else "latents"
            warnings.warn(f"{stage}.rotary: axis {axis!r} has no effect: the {lacking} lack it", stacklevel=5)
    turned = _rotated(config, "decoder") & latents
    for name, spec in outputs.items():
        if isinstance(spec, Grid | PointSet | Events) and spec.positions is None and not asked[name] & turned:
            raise ValueError(
                f"output {name!r} without positions: its queries are all alike; give it positions, or decoder.rotary "
                "along an axis of which it and the latents have coordinates"
            )


def axes_of(spec: Modality) -> set[str]:
    """Return the names of the axes along which an input's tokens, or an output's queries, have coordinates."""
    return {*getattr(spec, "axis_names", ()), *getattr(spec, "coordinate_fields", ())}


def _rotated(config: Config, stage: str) -> set[str]:
    rotary = getattr(config, stage).rotary
    return set() if rotary is None else {axis.name for axis in rotary.axes}
