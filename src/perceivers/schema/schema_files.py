"""Loading and writing of schemas, configs and recipes as YAML and JSON."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from perceivers.files.budgets import Lines, from_yaml, read_json
from perceivers.files.messages import printable
from perceivers.files.opening import read_text
from perceivers.schema.plain_values import checked, from_plain, to_plain

T = TypeVar("T")


def with_settings(value: T, settings: Iterable[str]) -> T:
    """Return a dataclass changed by settings such as "training.num_steps=200"; ValueError naming an invalid setting.

    The text after "=" is YAML.
    """
    plain = to_plain(value)
    for setting in settings:
        field, separator, text = setting.partition("=")
        if not separator:
            raise ValueError(f"setting {setting!r} must be field=value, e.g. training.num_steps=200")
        *parents, name = field.split(".")
        node, is_null = plain, False
        for parent in parents:
            is_null = isinstance(node, dict) and parent in node and node[parent] is None
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            whole = ".".join(parents)
            known = f"{whole} is null, set all of it: {whole}={{{name}: {text}}}" if is_null else f"there is no {whole}"
            raise ValueError(f"setting {setting!r}: {known}")
        node[name], _ = from_yaml(text, f"setting {setting[:99]!r}")
    return from_plain(type(value), plain)


def to_yaml(value: Any) -> str:
    """Return a dataclass as YAML."""
    return yaml_text(to_plain(value))


def yaml_text(plain: Any, **style: Any) -> str:
    """Return plain values as YAML that is safe to print: control characters are escaped, in quotes."""
    return printable(yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **style))


class _Dumper(yaml.SafeDumper):
    """YAML dumper that puts texts with unprintable characters in quotes."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if printable(text) == text else '"'
    ),
)


def from_file(target_type: type[T], path: str | Path) -> T:
    """Load a dataclass from a YAML or JSON file; errors name the file, the line and the field."""
    path = Path(path)
    plain, lines = read_plain(path)
    return from_plain(target_type, plain, str(path), lines)


def read_plain(path: Path) -> tuple[Any, Lines]:
    """Load a YAML or JSON file; return its content, and the line of each field."""
    return from_yaml(read_text(path), str(path))  # JSON is a subset of YAML


def read_checked(path: Path, target_type: Any) -> Any:
    """Load a JSON file as a value of a type; ValueError naming the file and the field that does not fit."""
    return checked(target_type, read_json(path), str(path), strict=True)
