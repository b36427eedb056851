"""Names that changed after format 1. Model folders of format 1 still load; errors in recipes give the new name."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

FIELDS = {
    "visible": "unmasked_loss_weight",
    "hide": "field_mask_prob",
    "hide_at_eval": "field_mask_at_eval",
    "hidden_only": "masked_only",
    "keep": "subsample",
    "keep_at_eval": "subsample_at_eval",
    "join": "channel_alignment",
    "alignment": "qk_init_gain",
    "num_places": "sinusoidal_length",
    "mixing": "mixup",
    "recompute": "activation_checkpointing",
}
"""New names of fields of modalities, configs and training, by the old ones."""

MODALITIES = {"estimate": "probabilistic_regression"}
"""New names of modalities, by the old ones."""


def renamed_description(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a model of format 1 with today's names."""
    schema, config = (description.get(part) for part in ("schema", "config"))
    if isinstance(schema, Mapping):
        schema = {side: _each(specs) for side, specs in schema.items()}
    return {**description, "schema": schema, "config": _each(config)}


def renamed_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model of format 1 by today's names."""
    pattern = re.compile(r"^(input_adapter|output_query)\.join\.")
    return {pattern.sub(r"\1.alignment.", name): array for name, array in weights.items()}


def _each(sections: Any) -> Any:
    """Rename the fields of each section, but not the sections themselves: a user may have named them."""
    return {name: _fields(plain) for name, plain in sections.items()} if isinstance(sections, Mapping) else sections


def _fields(plain: Any) -> Any:
    if not isinstance(plain, Mapping):
        return plain
    fields = {FIELDS.get(name, name): value for name, value in plain.items()}
    kind = fields.get("kind")
    return {**fields, "kind": MODALITIES[kind]} if isinstance(kind, str) and kind in MODALITIES else fields
