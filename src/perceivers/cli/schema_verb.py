"""The verb `schema`: check schema files, propose recipes, print the JSON schema for editors."""

import codecs
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from perceivers.cli.tables import MEMORY, in_units, show
from perceivers.data import Table
from perceivers.data.validation import read_parts
from perceivers.files.outputs import check_outputs
from perceivers.runs.infer_schema import proposed_recipe
from perceivers.runs.recipe import preset_of
from perceivers.runs.schema_file import read_schema_file, schema_file_format
from perceivers.runs.summary import Summary, describe, write_picture
from perceivers.schema import kind_name
from perceivers.schema.plain_values import to_plain


@dataclass(frozen=True)
class Check:
    """Show the inputs, latents and outputs of the model of a schema file, and what the model costs."""

    file: tyro.conf.Positional[Path]
    """Schema or recipe file in YAML or JSON."""
    data: str | None = None
    """Data to fit the schema to, in place of the file's."""
    picture: Path | None = None
    """Also draw the dataflow into this file (.png, .svg or .pdf)."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> None:
        """Print the model as a table."""
        recipe = read_schema_file(self.file, self.data)
        check_outputs([self.picture], [self.file, *recipe.data.source_files()] if self.picture else [])
        if recipe.data != Table():
            recipe = replace(recipe, schema=read_parts(recipe.data, recipe.schema).schema)
        summary = describe(preset_of(recipe), recipe.training.batch_size)
        if self.picture is not None:
            write_picture(summary, self.picture)
        show(_plain(summary), self.json, ["part", "kind", "tokens, latents, queries", "channels"], _rows(summary))
        if not self.json:
            print(
                f"Parameters: {summary.cost.parameters:,}. FLOPs of a sample: {in_units(summary.cost.flops)}. "
                f"Memory, float32 on a CPU: {in_units(summary.cost.peak_bytes, MEMORY)} for a sample, "
                f"{in_units(summary.training_bytes, MEMORY)} for a training step of {summary.batch_size}."
            )


@dataclass(frozen=True)
class Json:
    """Print the JSON schema of schema files, with which editors check and complete them."""

    def run(self) -> None:
        """Print the JSON schema."""
        print(json.dumps(schema_file_format(), indent=2))


@dataclass(frozen=True)
class Propose:
    """Inspect data and print a commented recipe for it, ready for `perceivers train`."""

    data: tyro.conf.Positional[str]
    """Table (.csv, .tsv, .parquet, .jsonl), folder of files with classes as sub-folders, arrays, or shards."""
    predict: tuple[str, ...] = ()
    """Columns to predict; by default the one called label, target, class or y, else the last."""

    def run(self) -> None:
        """Print the recipe."""
        recipe = proposed_recipe(self.data, self.predict)
        encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
        if encoding != "utf-8" and not recipe.isascii():
            raise ValueError(f"a recipe with characters outside ASCII is in UTF-8, not {encoding}: set PYTHONUTF8=1")
        print(recipe, end="")


Action = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Propose, tyro.conf.subcommand("propose")]
    | Annotated[Json, tyro.conf.subcommand("json")]
)


def schema(action: Annotated[Action, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes]) -> None:
    """Check a schema file, propose one for data, or print the JSON schema of such files.

    Args:
        action: One of check, propose, json.
    """
    action.run()


def _rows(summary: Summary) -> list[tuple[str, str, str, str]]:
    schema = summary.preset.schema
    sides = [("input", schema.inputs, summary.inputs), ("output", schema.outputs, summary.outputs)]
    rows = [
        (f"{side} {name}", kind_name(specs[name]), f"{shape.size:,}", f"{shape.channels:,}")
        for side, specs, shapes in sides
        for name, shape in shapes.items()
    ]
    layers = summary.preset.config.processor.num_layers * summary.preset.config.processor.num_blocks
    latents = ("latents", f"{layers} layers", f"{summary.latents.size:,}", f"{summary.latents.channels:,}")
    return [*rows[: len(summary.inputs)], latents, *rows[len(summary.inputs) :]]


def _plain(summary: Summary) -> dict[str, object]:
    return {
        "inputs": {name: {"tokens": shape.size, "channels": shape.channels} for name, shape in summary.inputs.items()},
        "latents": {"count": summary.latents.size, "channels": summary.latents.channels},
        "outputs": {
            name: {"queries": shape.size, "channels": shape.channels} for name, shape in summary.outputs.items()
        },
        **{name: value for name, value in asdict(summary.cost).items() if name != "stages"},
        "batch_size": summary.batch_size,
        "training_bytes": summary.training_bytes,
        "config": to_plain(summary.preset.config),
    }
