"""YAML and JSON that somebody else wrote, parsed within a budget that is checked before the work.

A few hundred bytes can stand for gigabytes: aliases of aliases, lists in lists, numbers of a million digits. The text
is counted before any value is made of it, an alias as all that it stands for.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from perceivers.files.messages import one_line
from perceivers.files.opening import read_text

MOST_NODES = 500_000
"""Values that a YAML or JSON file may hold, aliases expanded."""

MOST_DEPTH = 64
"""Lists and dictionaries that may lie in one another."""

LONGEST_NUMBER = 400
"""Characters of a number or a date: some constructors take quadratic time in them."""

Lines = dict[tuple[str, ...], int]
"""The line of each place of a file."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser of libyaml, where there is one, is ten times as fast."""


def from_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """Return what a YAML (or JSON) text says, and the line of each place; ValueError naming `source` and the line."""
    try:
        _check_budget(text)
        loader = Loader(text)
        try:
            node, lines = loader.get_single_node(), dict[tuple[str, ...], int]()
            if node is None:
                return None, lines
            _mark_lines(node, (), lines)
            return loader.construct_document(node), lines
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark else source
        raise ValueError(f"{place}: not YAML: {one_line(getattr(error, 'problem', None) or error)}") from None
    except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        # Of a number or a date that only looks like one, as 2026-99-99 or !!int x.
        raise ValueError(f"{source}: not YAML: {one_line(error)}") from None


def from_json(text: str, most_nodes: int = MOST_NODES) -> Any:
    """Return what a JSON text says.

    ValueError if it is none, too deep, has a key twice, or may have more values than `most_nodes`.
    """
    if len(text) > most_nodes and sum(map(text.count, ",[{")) > most_nodes:
        raise ValueError(f"more than {most_nodes:,} values")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise ValueError(_too_deep())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.99} is there twice")
    return found


def _children(value: Any) -> Iterator[Any]:
    # Numbers and texts have none: most of a large file is not looked at twice.
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in items if isinstance(item, dict | list))


def _check_budget(text: str) -> None:
    """YAMLError for a text whose values, with aliases expanded, are too many or too deep, or that holds itself."""
    size, whole, opened = 0, dict[str | None, tuple[int, int]](), list[list[Any]]()
    for event in yaml.parse(text, Loader):
        height = 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in whole:
                raise _problem(event, f"the alias *{event.anchor} stands before or within what it names")
            added, height = whole[event.anchor]
            size += added
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append([event.anchor, size, 0])
            size += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, within = opened.pop()
            height = within + 1
            whole[anchor] = (size - before, height)  # None names nothing
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            whole[event.anchor] = (1, 0)
        if opened:
            opened[-1][2] = max(opened[-1][2], height)
        if len(opened) + height > MOST_DEPTH:
            raise _problem(event, _too_deep())
        if size > MOST_NODES:
            raise _problem(event, f"more than {MOST_NODES:,} values, with what aliases stand for")


def _mark_lines(node: yaml.Node, place: tuple[str, ...], lines: Lines) -> None:
    """Note the line of each place; YAMLError for a key that is no text or is there twice, and for endless numbers."""
    lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem(key, "a key must be a text")
            if key.value in keys and not key.tag.endswith(":merge"):
                raise _problem(key, f"the key {key.value!r:.99} is there twice")
            keys.add(key.value)
            _mark_lines(value, (*place, key.value), lines)
            lines[*place, key.value] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _mark_lines(value, (*place, str(number)), lines)
    elif len(node.value) > LONGEST_NUMBER and not node.tag.endswith((":str", ":binary")):
        raise _problem(node, f"a number of {len(node.value):,} characters")


def _problem(where: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)


def _too_deep() -> str:
    return f"lists or objects in one another more than {MOST_DEPTH} deep"


def read_json(path: Path) -> Any:
    """Content of a JSON file; ValueError naming the file if it is none."""
    text = read_text(path)
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {one_line(error)}") from None
