"""Attention maps of the latents at the first read, drawn over the inputs of some records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from perceivers.core.perceiver import PerceiverIO
from perceivers.core.trunk import Trunk
from perceivers.files.tensor_files import is_finite
from perceivers.media.html_report import Report
from perceivers.modalities.modality import sample_of
from perceivers.modalities.table_cells import Row
from perceivers.runs.prediction import attempt, check_stateless
from perceivers.schema import Record, Schema
from perceivers.training.metrics import inference
from perceivers.training.plots import subplots

PAGE_ROWS = 12
"""Number of records on a page."""


def attention_page(model: PerceiverIO, records: Sequence[Record], path: Path) -> Path:
    """Write an HTML page with the attention to each input of these records; for an unreadable record, its error."""
    check_stateless(model, "attention")
    model, page = model.cpu(), Report("Where the model looks")
    page.text(
        "Attention of the latents at the first read, averaged over latents and heads: the redder, the more. "
        "The share of an input is the sum over its tokens. Attention shows what is read, not what it is used for: "
        "that is what attributions show."
    )
    for number, record in enumerate(records, start=1):
        page.heading(record.place if isinstance(record, Row) else f"Record {number}")
        sample = attempt(model, record, [])
        if isinstance(sample, str):
            page.text(sample)
        else:
            _add(page, model, sample)
    return page.write(path)


def attention(model: PerceiverIO, raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return each token's share of the attention, [B, M] by input; the shares of a sample add up to 1."""
    if not isinstance(model.trunk, Trunk):
        raise ValueError("a transformer does not read into latents: it has no attention of theirs to show")
    with inference(model):
        maps = model.attention_maps(raw)["encoder"]
        return {name: weights.mean(dim=(1, 2)) for name, weights in maps.items()}


def _add(page: Report, model: PerceiverIO, sample: Mapping[str, Mapping[str, Any]]) -> None:
    schema = cast(Schema, model.schema)
    inputs = schema.collate([sample])["inputs"]
    weights = attention(model, inputs)
    if not is_finite(weights.values()):
        page.text("The attention is not finite.")
        return
    figure, (axes,) = subplots(1, [f"{name}: {float(weights[name].sum()):.1%}" for name in inputs], side=3.0)
    for axis, name in zip(axes, inputs, strict=True):
        schema.inputs[name].attention_picture(axis, sample_of(inputs[name], 0), weights[name][0].cpu())
    page.figure(figure, "Each input with its share.")
