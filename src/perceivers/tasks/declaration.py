"""A schema file: inputs and outputs at the top, all else of a recipe if wanted. A recipe file is read as well."""

from pathlib import Path
from typing import Any

from perceivers.data import Arrays, DataSet
from perceivers.schema import Schema, from_plain, json_schema, read_plain, to_plain
from perceivers.tasks.recipe import Recipe

SIDES = ("inputs", "outputs")


def read_declaration(path: str | Path, data: DataSet | None = None) -> Recipe:
    """The recipe that a file declares, with this data in place of its own; errors name file, line and place."""
    plain, lines = read_plain(Path(path))
    if isinstance(plain, dict) and "schema" not in plain and any(side in plain for side in SIDES):
        schema = from_plain(Schema, {side: plain.pop(side) for side in SIDES if side in plain}, str(path), lines)
        plain["schema"] = to_plain(schema)
    if isinstance(plain, dict):
        plain |= {"data": to_plain(data)} if data is not None else {"data": plain.get("data", to_plain(Arrays()))}
    return from_plain(Recipe, plain, str(path), lines)


def declaration_schema() -> dict[str, Any]:
    """JSON schema of schema files and recipe files, for editors that check what they write."""
    definitions = json_schema(Recipe)["$defs"]
    recipe, sides = definitions.pop("Recipe"), definitions.pop("_SchemaInFile")
    rest = {name: value for name, value in recipe["properties"].items() if name != "schema"}
    flat = {**recipe, "properties": {**sides["properties"], **rest}, "required": list(SIDES), "title": "Schema file"}
    nested = {**recipe, "properties": {"schema": sides, **rest}, "required": ["schema"], "title": "Recipe file"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": [flat, nested], "$defs": definitions}
