"""What files of format 1 call otherwise: model folders are read with the names of today, recipes are told them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

FIELDS = {
    "visible": "unmasked_loss_weight",
    "hide": "field_mask_prob",
    "hide_at_eval": "field_mask_at_eval",
    "keep": "subsample",
    "keep_at_eval": "subsample_at_eval",
    "join": "channel_alignment",
    "alignment": "qk_init_gain",
    "num_places": "sinusoidal_length",
    "mixing": "mixup",
    "recompute": "activation_checkpointing",
}
"""Fields of modalities, configs and training, and what they are called now."""

MODALITIES = {"estimate": "probabilistic_regression"}
"""Modalities, and what they are called now."""


def renamed_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a model of format 1 with the names of today."""
    schema, config = (description.get(part) for part in ("schema", "config"))
    if isinstance(schema, Mapping):
        schema = {side: _each(specs) for side, specs in schema.items()}
    return {**description, "schema": schema, "config": _each(config)}


def renamed_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the arrays of a model of format 1 by the names of today."""
    pattern = re.compile(r"^(input_adapter|output_query)\.join\.")
    return {pattern.sub(r"\1.alignment.", name): array for name, array in weights.items()}


def _each(sections: Any) -> Any:
    """Rename the fields of each section, not the sections: they may be named by a user."""
    return {name: _fields(own) for name, own in sections.items()} if isinstance(sections, Mapping) else sections


def _fields(plain: Any) -> Any:
    if not isinstance(plain, Mapping):
        return plain
    found = {FIELDS.get(name, name): value for name, value in plain.items()}
    kind = found.get("kind")
    return {**found, "kind": MODALITIES[kind]} if isinstance(kind, str) and kind in MODALITIES else found
