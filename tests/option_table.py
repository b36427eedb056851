"""The table of docs/beyond.md: options beyond the paper, and the algorithms that compute each.

`python tests/option_table.py` prints the table; `--write` puts it into the page. The algorithms are those of
core/fast/options.py.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from perceivers.core.fast.options import OPTIONS, READING, WRITING, Option

PAGE = Path(__file__).parent.parent / "docs" / "beyond.md"


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    option: str
    """The option in a few words."""
    fields: str
    """Fields that set it; without a section they belong to encoder, processor and decoder alike."""
    what: str
    """Description of the option."""
    name: str | None = None
    """Name in OPTIONS; None: it makes no difference to an algorithm."""


ROWS = (
    Row("coordinates", "`axis_names`, `coordinate_fields`, `step` of inputs and outputs", "places on named axes"),
    Row("octaves", "`positions.spacing`", "Fourier features at frequencies 1, 2, 4, ..."),
    Row(
        "rotary positions",
        "`rotary`, its `axes`, `share`, `values`",
        "turns queries and keys, perhaps values, by their coordinates, where both sides have an axis",
        "rotary",
    ),
    Row("", "", "the same, with gradients to the coordinates", "rotary, gradients of coordinates"),
    Row(
        "latents at places", "`latents.places`, `latents.per_place`", "the same learned vectors at each place of a grid"
    ),
    Row(
        "latents from tokens",
        "`latents.taken_from`, `latents.rule`, `latents.token_map`",
        "tokens of an input are the latents at the start: the last, strided, random or farthest ones",
    ),
    Row(
        "latents given",
        "`encode(..., latents=)`",
        "vectors, an `Encoded`, or numbers of tokens are the latents at the start",
    ),
    Row(
        "keys over latents",
        "`encoder.attend_latents`",
        "latents attend to tokens and to one another at once",
        "attend_latents",
    ),
    Row("reads without layers", "`processor.num_layers: 0`", "one read follows the other"),
    Row(
        "condition",
        "`role: condition` of an input, `conditioned`",
        "scales, shifts and gates each block",
        "conditioned",
    ),
    Row("RMS norm", "`norm`, `norm_epsilon`", "norms without mean and shift", "norm: rms"),
    Row("q-k norm", "`qk_norm`", "norms the queries and keys of each head", "qk_norm"),
    Row("final norms", "`processor.final_norm`, `decoder.final_norm`", "norms the latents, and the decoded queries"),
    Row("grouped keys", "`num_kv_heads`", "fewer heads of keys and values than of queries", "num_kv_heads"),
    Row("gated MLP", "`gated`, `activation`", "GEGLU, SwiGLU and others", "gated"),
    Row("no MLP", "`widening_factor: 0`", "attention alone", "widening_factor: 0"),
    Row("no biases", "`qkv_bias`, `output_bias`, `mlp_bias`", "linear maps without biases"),
    Row("LayerScale", "`layer_scale`", "a trained scale of each channel of a branch", "layer_scale"),
    Row(
        "stochastic depth",
        "`stochastic_depth`",
        "in training, samples skip a branch at random",
        "stochastic_depth, in training",
    ),
    Row("dropout", "`dropout`", "in training, behind attention and MLP", "dropout, in training"),
    Row("", "`attention_dropout`", "in training, of attention weights", "attention_dropout, in training"),
    Row("bottleneck", "`bottleneck`", "each latent becomes a distribution, and a sample of it"),
    Row("residual of queries", "`decoder.query_residual`", "adds the queries to what they attend to", "query_residual"),
    Row("deep decoder", "`decoder.num_layers`", "several cross-attentions; the algorithm is that of the last"),
    Row(
        "self-attention of queries",
        "`decoder.self_attention`",
        "queries of an output attend to one another: it takes no memory limit and no share",
    ),
    Row("outputs from latents", "`decoder.kind: latents`", "a head on each latent, without queries"),
)


def algorithms(option: Option | None) -> str:
    """Return the algorithms that compute an option, as text."""
    if option is None:
        return "all"
    reading = "all" if option.reading == READING else ", ".join(option.reading)
    writing = "all" if option.writing == WRITING else ", ".join(option.writing)
    return reading if reading == writing else f"reading: {reading}; writing: {writing}"


def table() -> str:
    """Return the table in Markdown."""
    options = {option.name: option for option in OPTIONS}
    lines = ["| option | field | what it does | algorithms |", "| --- | --- | --- | --- |"]
    for row in ROWS:
        option = None if row.name is None else options[row.name]
        lines.append(f"| {row.option} | {row.fields} | {row.what} | {algorithms(option)} |")
    return "\n".join(lines) + "\n"


def shown() -> str:
    """Return the table that the page shows."""
    found = re.search(r"^\| option .*?\n(?=\n)", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(0)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(PAGE.read_text().replace(shown(), table()))
    print(table(), end="")
