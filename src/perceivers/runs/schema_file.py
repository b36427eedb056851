"""Schema files: inputs and outputs at the top level, and any other part of a recipe. Loads recipe files too."""

from pathlib import Path
from typing import Any

from perceivers.data import Table
from perceivers.data.arrays import ARRAY_FILES
from perceivers.data.shards import is_shards
from perceivers.runs.recipe import Recipe
from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain, json_schema, to_plain
from perceivers.schema.schema_files import read_plain

SIDES = ("inputs", "outputs")
TOP = (*SIDES, "stream")


def read_schema_file(path: str | Path, data: str | None = None) -> Recipe:
    """Return the recipe that a schema file or recipe file declares, on `data` if given; errors name file and line."""
    plain, lines = read_plain(Path(path))
    if not isinstance(plain, dict):
        plain = {}
    if "schema" not in plain and any(side in plain for side in SIDES):
        schema = from_plain(Schema, {name: plain.pop(name) for name in TOP if name in plain}, str(path), lines)
        plain["schema"] = to_plain(schema)
    declared = plain.get("data", to_plain(Table()))
    return from_plain(Recipe, {**plain, "data": _data_at(data, declared) if data else declared}, str(path), lines)


def _data_at(path: str, declared: Any) -> dict[str, Any]:
    """Return the data set at a path (table, arrays or shards), with the declared options if they are of that kind."""
    kind, fields = "table", ("file", "held_out_file")
    if path.endswith(ARRAY_FILES):
        kind, fields = "arrays", ("training_file", "held_out_file")
    elif is_shards(path):
        kind, fields = "shards", ("files", "held_out_files")
    kept = declared if isinstance(declared, dict) and declared.get("kind") == kind else {"kind": kind}
    return {**kept, **dict(zip(fields, (path, ""), strict=True))}


def schema_file_format() -> dict[str, Any]:
    """Return the JSON schema of schema files and recipe files, for validation in editors."""
    definitions = json_schema(Recipe)["$defs"]
    recipe, sides = definitions.pop("Recipe"), definitions.pop("SchemaInFile")
    rest = {name: value for name, value in recipe["properties"].items() if name != "schema"}
    flat = {**recipe, "properties": {**sides["properties"], **rest}, "required": list(SIDES), "title": "Schema file"}
    nested = {**recipe, "properties": {"schema": sides, **rest}, "required": ["schema"], "title": "Recipe file"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": [flat, nested], "$defs": definitions}
