"""Where the latents look: the attention of the first reading, drawn over the inputs of some rows."""

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
from perceivers.runs.prediction import attempt
from perceivers.schema import Record, Schema
from perceivers.training.metrics import inference
from perceivers.training.plots import subplots

PAGE_ROWS = 12
"""Rows of a page."""


def attention_page(model: PerceiverIO, records: Sequence[Record], path: Path) -> Path:
    """Write an HTML page of these records; one that cannot be read says why."""
    model, page = model.cpu(), Report("Where the model looks")
    page.text(
        "The mean over latents and heads of the attention of the first reading: the redder, the more. "
        "The share of an input is what all its tokens get together. Attention says what is read, not what it is used "
        "for: that is what contributions say."
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
    """Return [B, M] for each input: each token's part of all attention; the parts of a sample add up to 1."""
    if not isinstance(model.trunk, Trunk):
        raise ValueError("a transformer does not read into latents: it has no attention of theirs to show")
    with inference(model):
        tokens, _ = model.tokens(raw)
        return {name: own.mean(dim=(1, 2)) for name, own in model.trunk.attention_map(tokens).items()}


def _add(page: Report, model: PerceiverIO, sample: Mapping[str, Mapping[str, Any]]) -> None:
    schema = cast(Schema, model.schema)
    inputs = schema.collate([sample])["inputs"]
    weights = attention(model, inputs)
    if not is_finite(weights.values()):
        page.text("The attention is not finite.")
        return
    figure, (axes,) = subplots(1, [f"{name}: {float(weights[name].sum()):.1%}" for name in inputs], side=3.0)
    for place, name in zip(axes, inputs, strict=True):
        schema.inputs[name].attention_picture(place, sample_of(inputs[name], 0), weights[name][0].cpu())
    page.figure(figure, "Each input with its share.")
