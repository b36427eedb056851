"""Structure of the code: imports go one way, a forward pass stays short, the README shows the real tree."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perceivers import Image, Label, PerceiverIO, Schema
from perceivers.systems import PRESETS, SYSTEMS, TASKS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "perceivers"

FLOORS = [
    ["files"],
    ["core", "media"],
    ["modalities"],
    ["schema", "progress"],
    ["data", "pretrained"],
    ["training"],
    ["runs"],
    ["systems"],
    ["cli"],
    ["public"],
    ["__main__", "__init__"],
]
"""Each part may import from itself and from the parts listed before it."""

SYSTEM_FILES = ("model.py", "recipes.py", "baselines.py", "inference.py", "report.py")
"""Allowed names of a system's files."""

FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def floor_of(part):
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name for name in names if name.split(".")[0] == "perceivers")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports_of(path):
        other = part_of(module)
        allowed = other == own or floor_of(other) < floor_of(own)
        assert allowed or own == "__main__", f"{own} imports {module}"


def test_the_floors_are_the_rooms_that_exist():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert sorted(part for parts in FLOORS for part in parts) == sorted(rooms)


def test_a_system_is_a_folder_of_fixed_files_and_an_entry_of_the_table():
    folders = {path.parent for path in FILES if path.parent.parent == PACKAGE / "systems"}
    for folder in folders:
        assert {path.name for path in folder.glob("*.py")} <= {"__init__.py", *SYSTEM_FILES}, folder
    table = (PACKAGE / "systems" / "__init__.py").read_text()
    assert set(re.findall(r"^    (\w+)\.SYSTEM,$", table, re.MULTILINE)) == {folder.name for folder in folders}
    names = [name for system in SYSTEMS for name in (*system.recipes, *system.presets)]
    assert len(names) == len(TASKS) + len(PRESETS), "two systems have a name in common"


@pytest.mark.parametrize("room", ["runs", "cli"])
def test_no_other_room_has_a_file_of_the_same_name(room):
    others = {path.name for path in FILES if path.relative_to(PACKAGE).parts[0] != room}
    own = {path.name for path in FILES if path.relative_to(PACKAGE).parts[0] == room}
    assert own & others <= {"__init__.py", *SYSTEM_FILES}


def test_one_dense_forward_pass_opens_at_most_830_lines():
    """Count the lines of all our functions that run when an image is classified, except argument checks."""
    model = PerceiverIO(Schema({"image": Image(size=8)}, {"label": Label(classes=3)})).eval()
    opened = lines_opened(lambda: model(torch.zeros(2, 8, 8, 3), algorithm="dense"))
    for guard in ("arguments.py", "checks.py", "guard.py", "memory_limits.py", "precision.py", "raw.py"):
        opened.pop(guard, None)
    assert 100 < sum(opened.values()) <= 830, opened


def lines_opened(run):
    """Return the number of lines of the package's functions that `run` calls, by file, each counted once."""
    opened = {}

    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(PACKAGE)):
            last = max(line for *_, line in code.co_lines() if line is not None)
            opened.setdefault(Path(code.co_filename).name, set()).update(range(code.co_firstlineno, last + 1))

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return {name: len(lines) for name, lines in opened.items()}


def test_functions_are_short_and_take_few_arguments():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is long"
                if any("triton" in ast.unparse(decorator) for decorator in node.decorator_list):
                    continue  # a kernel gets arrays and sizes, not objects
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len(arguments) <= 9, f"{path.name}: {node.name} takes {len(arguments)} arguments"


def test_the_readme_shows_the_tree_as_it_is():
    tree = re.search(r"```text\n(src/perceivers.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    shown = set(re.findall(r"(\w+\.py)", tree))
    real = {path.name for path in FILES if path.name != "__init__.py"} | {"__init__.py"}
    assert shown == real
    assert set(re.findall(r"(\w+)/ ", tree)) == {path.parent.name for path in FILES if path.parent != PACKAGE}


def readme_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("block", readme_blocks())
def test_the_readmes_python_runs(block, tmp_path):
    result = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_core_needs_no_extra():
    """`import perceivers` works with the required dependencies alone."""
    extras = ["lightning", "torchmetrics", "matplotlib", "sklearn", "PIL", "av", "transformers", "tokenizers"]
    code = f"import sys; sys.modules.update(dict.fromkeys({extras})); import perceivers; perceivers.PerceiverIO"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_core_names_no_model_of_others():
    """Other libraries' models are configs: their names stand where their weights are read, not in the architecture."""
    for path in (PACKAGE / "core").rglob("*.py"):
        text = path.read_text().lower()
        assert not [name for name in ("poyo", "vecset", "flamingo", "idefics") if name in text], path
