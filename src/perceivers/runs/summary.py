"""Summary of a schema's model: tokens, latents, queries, costs, and a diagram of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perceivers.files.durable import whole_file
from perceivers.runs.flops import Costs, costs, training_bytes
from perceivers.schema import kind_name
from perceivers.schema.preset import Preset, TokenShape, token_shapes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
"""Formats of the diagram."""


@dataclass(frozen=True)
class Summary:
    """The output of `perceivers schema check`."""

    preset: Preset
    """The model."""
    inputs: dict[str, TokenShape]
    """Tokens of each input."""
    outputs: dict[str, TokenShape]
    """Queries of each output."""
    cost: Costs
    """Costs of one sample."""
    batch_size: int
    """Samples of a training step."""
    training_bytes: int
    """Memory of a training step."""

    @property
    def latents(self) -> TokenShape:
        """Number and width of the latents."""
        config = self.preset.config
        tokens = sum(shape.size for shape in self.inputs.values())
        return TokenShape(
            tokens if config.trunk == "transformer" else config.latents.num_latents, config.latents.channels
        )


def describe(preset: Preset, batch_size: int) -> Summary:
    """Summarise a model, counted on tensors that have shapes but no content."""
    inputs, outputs = token_shapes(preset.schema)
    return Summary(preset, inputs, outputs, costs(preset), batch_size, training_bytes(preset, batch_size))


def write_picture(summary: Summary, path: Path) -> None:
    """Draw the dataflow into a file; ValueError for a format that is not supported."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a picture is written as {', '.join(FORMATS)}")
    figure = draw(summary)
    with whole_file(path) as fresh:
        figure.savefig(fresh, format=path.suffix[1:].lower())


def draw(summary: Summary) -> "Figure":
    """Draw inputs on the left, latents in the middle and outputs on the right, with arrows between them."""
    from matplotlib.figure import Figure

    schema, tallest = summary.preset.schema, max(len(summary.inputs), len(summary.outputs))
    figure = Figure(figsize=(10, 1.2 + 0.9 * tallest), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 1.05))
    axes.set_axis_off()
    # Latents, in the middle.
    layers = summary.preset.config.processor.num_layers * summary.preset.config.processor.num_blocks
    _box(axes, 5.0, 0.5, f"latents\n{summary.latents.size} x {summary.latents.channels}\n{layers} layers", "#ffe3b3")
    axes.text(1.5, 1.02, "tokens", ha="center")
    axes.text(8.5, 1.02, "queries", ha="center")
    # A box for each input and output, with an arrow to or from the latents.
    for specs, sizes, x, colour in (
        (schema.inputs, summary.inputs, 1.5, "#cfe3f7"),
        (schema.outputs, summary.outputs, 8.5, "#d6efd0"),
    ):
        for number, (name, size) in enumerate(sizes.items()):
            y = 1 - (number + 0.5) / len(sizes)
            _box(axes, x, y, f"{name}: {kind_name(specs[name])}\n{size.size} x {size.channels}", colour)
            start, end = ((x + 1.2, y), (4.3, 0.5)) if x < 5 else ((5.7, 0.5), (x - 1.2, y))
            axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "color": "0.4"})
    return figure


def _box(axes: "Axes", x: float, y: float, text: str, colour: str) -> None:
    style = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "0.5"}
    axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=style, parse_math=False)
