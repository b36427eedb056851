"""The verb `schema`: what a schema file says, what editors should know of it."""

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
from perceivers.runs.schema_file import declaration_schema, read_declaration
from perceivers.runs.summary import Wiring, describe, write_picture
from perceivers.schema import kind_name
from perceivers.schema.plain_values import to_plain


@dataclass(frozen=True)
class Check:
    """Show how the model of a schema file is wired, and what it costs."""

    file: tyro.conf.Positional[Path]
    """Schema or recipe file in YAML or JSON."""
    data: str | None = None
    """Data in place of the file's, to which the schema is fitted."""
    picture: Path | None = None
    """Also draw the dataflow into this file (.png, .svg or .pdf)."""
    json: bool = False
    """Print as JSON."""

    def run(self) -> None:
        """Print a table."""
        recipe = read_declaration(self.file, self.data)
        check_outputs([self.picture], [self.file, *recipe.data.source_files()] if self.picture else [])
        if recipe.data != Table():
            recipe = replace(recipe, schema=read_parts(recipe.data, recipe.schema).schema)
        found = describe(preset_of(recipe), recipe.training.batch_size)
        if self.picture is not None:
            write_picture(found, self.picture)
        show(_plain(found), self.json, ["part", "kind", "tokens, latents, queries", "channels"], _rows(found))
        if not self.json:
            print(
                f"Parameters: {found.cost.parameters:,}. FLOPs of a sample: {in_units(found.cost.flops)}. "
                f"Memory, float32 on a CPU: {in_units(found.cost.peak_bytes, MEMORY)} for a sample, "
                f"{in_units(found.training_bytes, MEMORY)} for a training step of {found.batch_size}."
            )


@dataclass(frozen=True)
class Json:
    """Print the JSON schema of schema files, for editors that check what you write."""

    def run(self) -> None:
        """Print it."""
        print(json.dumps(declaration_schema(), indent=2))


@dataclass(frozen=True)
class Propose:
    """Look at data and print a commented recipe for it, which `perceivers train` takes as it is."""

    data: tyro.conf.Positional[str]
    """Table (.csv, .tsv, .parquet, .jsonl), folder of files with classes as sub-folders, arrays, or shards."""
    predict: tuple[str, ...] = ()
    """Columns that are to be predicted; else one called label, target, class or y, or the last."""

    def run(self) -> None:
        """Print it."""
        recipe = proposed_recipe(self.data, self.predict)
        encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
        if encoding != "utf-8" and not recipe.isascii():
            raise ValueError(f"a recipe of other letters than ASCII's is in UTF-8, not {encoding}: set PYTHONUTF8=1")
        print(recipe, end="")


Action = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Propose, tyro.conf.subcommand("propose")]
    | Annotated[Json, tyro.conf.subcommand("json")]
)


def schema(action: Annotated[Action, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes]) -> None:
    """Check a schema file, propose one for data, or print the JSON schema of such files.

    Args:
        action: What to do.
    """
    action.run()


def _rows(found: Wiring) -> list[tuple[str, str, str, str]]:
    schema = found.preset.schema
    sides = [("input", schema.inputs, found.inputs), ("output", schema.outputs, found.outputs)]
    rows = [
        (f"{side} {name}", kind_name(specs[name]), f"{row.size:,}", f"{row.channels:,}")
        for side, specs, counted in sides
        for name, row in counted.items()
    ]
    layers = found.preset.config.processor.num_layers * found.preset.config.processor.num_blocks
    latents = ("latents", f"{layers} layers", f"{found.latents.size:,}", f"{found.latents.channels:,}")
    return [*rows[: len(found.inputs)], latents, *rows[len(found.inputs) :]]


def _plain(found: Wiring) -> dict[str, object]:
    return {
        "inputs": {name: {"tokens": row.size, "channels": row.channels} for name, row in found.inputs.items()},
        "latents": {"count": found.latents.size, "channels": found.latents.channels},
        "outputs": {name: {"queries": row.size, "channels": row.channels} for name, row in found.outputs.items()},
        **{name: value for name, value in asdict(found.cost).items() if name != "stages"},
        "batch_size": found.batch_size,
        "training_bytes": found.training_bytes,
        "config": to_plain(found.preset.config),
    }
