"""The files that a module of the package needs, and their lines: `python tests/closure.py [MODULE]`.

Imports are followed in the syntax tree, those in functions too; files are counted whole.
"""

import ast
import sys
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"


def path_of(module: str) -> Path | None:
    """Return the file of a module or a package; None if there is none (a name in a module)."""
    place = SRC.joinpath(*module.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def imported(path: Path) -> list[str]:
    """Return the modules of the package that a file imports, and `module.name` for each name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [module for module in found if module.split(".")[0] == "perceivers"]


def closure(module: str = "perceivers.core.perceiver") -> dict[str, int]:
    """Return the lines of each file that a module needs, by its path below src."""
    lines: dict[str, int] = {}
    todo = [module]
    while todo:
        path = path_of(todo.pop())
        if path is not None and (name := str(path.relative_to(SRC))) not in lines:
            lines[name] = len(path.read_text().splitlines())
            todo += imported(path)
    return lines


if __name__ == "__main__":
    counted = closure(*sys.argv[1:])
    for name, count in sorted(counted.items(), key=lambda item: -item[1]):
        print(f"{count:5} {name}")
    print(f"{sum(counted.values())} lines in {len(counted)} files")
