"""Parsing of untrusted YAML and JSON, within limits that are checked before any value is made.

A few hundred bytes can expand to gigabytes: aliases of aliases, deeply nested lists, numbers with a million digits. So
the values of a text are counted first; an alias counts as all the values that it expands to.
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
"""Largest number of values in a YAML or JSON file, with aliases expanded."""

MOST_DEPTH = 64
"""Largest nesting of lists and dictionaries."""

LONGEST_NUMBER = 400
"""Longest number or date, in characters: some constructors take quadratic time."""

Lines = dict[tuple[str, ...], int]
"""Line number of each field of a file, by its path of keys."""

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The YAML parser; libyaml's, where available, is ten times as fast."""


def from_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """Parse YAML (or JSON); return its content and the line of each field. ValueError naming `source` and the line."""
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
        # A value that only looks like a number or a date, such as 2026-99-99 or !!int x.
        raise ValueError(f"{source}: not YAML: {one_line(error)}") from None


def from_json(text: str, most_nodes: int = MOST_NODES) -> Any:
    """Parse JSON.

    ValueError for other texts, for too deep a nesting, a repeated key, or possibly more than `most_nodes` values.
    """
    # Each value follows one of three characters: count these before parsing.
    if len(text) > most_nodes and sum(map(text.count, ",[{")) > most_nodes:
        raise ValueError(f"more than {most_nodes:,} values")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    # Check the depth level by level, as a recursive check could overflow.
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [child for node in level for child in _children(node)]
        if not level:
            return value
    raise ValueError(_too_deep())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON as a dictionary; ValueError for a repeated key."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.99} is there twice")
    return fields


def _children(value: Any) -> Iterator[Any]:
    # Only lists and dictionaries are visited, so most values of a large file are not.
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (item for item in items if isinstance(item, dict | list))


def _check_budget(text: str) -> None:
    """Raise a YAMLError for a text whose values, aliases expanded, are too many, too deep or contain themselves."""
    size = 0  # number of values so far
    anchors = dict[str | None, tuple[int, int]]()  # number of values and height of what each anchor names
    opened = list[list[Any]]()  # open collections: anchor, size before, height of the children so far
    for event in yaml.parse(text, Loader):
        # The size and height that this event adds.
        height = 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _problem(event, f"the alias *{event.anchor} stands before or within what it names")
            added, height = anchors[event.anchor]
            size += added
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append([event.anchor, size, 0])
            size += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before, inner_height = opened.pop()
            height = inner_height + 1
            anchors[anchor] = (size - before, height)  # None: there is no anchor, and no alias has this name
        elif isinstance(event, yaml.ScalarEvent):
            size += 1
            anchors[event.anchor] = (1, 0)
        # The height of the collection around it, then the limits.
        if opened:
            opened[-1][2] = max(opened[-1][2], height)
        if len(opened) + height > MOST_DEPTH:
            raise _problem(event, _too_deep())
        if size > MOST_NODES:
            raise _problem(event, f"more than {MOST_NODES:,} values, with what aliases stand for")


def _mark_lines(node: yaml.Node, place: tuple[str, ...], lines: Lines) -> None:
    """Record the line of each field; YAMLError for a key that is repeated or not a text, and for overlong numbers."""
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
    """Load a JSON file; ValueError naming the file if it is not JSON."""
    text = read_text(path)
    try:
        return from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {one_line(error)}") from None
