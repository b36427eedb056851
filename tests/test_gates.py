"""No source loads or runs what a file names, except in reviewed places; every installed package has hashes."""

import ast
import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for room in ("src", "benchmarks", "examples", "locks") for path in (ROOT / room).rglob("*.py"))

REVIEWED = {
    "torch.load": {"src/perceivers/pretrained/foreign.py"},  # after our check of the archive, and with weights_only
    "import_module": {
        "src/perceivers/media/extra.py",  # libraries of the extra, named by our own sources
        "src/perceivers/core/__init__.py",  # the folder of our fast algorithms
        "src/perceivers/core/fast/algorithms.py",  # our kernels
        "benchmarks/contenders.py",
    },
    "subprocess": {
        "src/perceivers/media/video_files.py",  # the decoder, without a shell
        "locks/__main__.py",
        "benchmarks/pictures.py",
    },
    "MAX_IMAGE_PIXELS": {"benchmarks/pictures.py"},  # for a picture that the benchmark made
}
"""Reviewed uses of functions that are forbidden elsewhere."""

MODULES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pty", "code", "runpy"}
"""Modules that load objects or run code: never imported. `pickletools` only parses a pickle."""

CALLS = re.compile(
    r"(builtins\.)?(eval|exec|compile|__import__)|os\.(system|popen|exec\w+|spawn\w+)|"
    r"yaml\.(load|load_all|full_load\w*|unsafe_load\w*)|torch\.(hub|jit)\.load"
)
"""Functions that are never called."""

ARGUMENTS = {"shell": False, "trust_remote_code": False, "allow_pickle": False, "weights_only": True}
"""Arguments that never have another value, or a value that is known only at run time."""


def dangers(source):
    """Yield (name, line) of everything in a source that could load or run code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((name, node.lineno) for name in names if name.split(".")[0] in MODULES | {"subprocess"})
        elif isinstance(node, ast.Call):
            yield from _calls(node)
        elif isinstance(node, ast.Assign) and any("MAX_IMAGE_PIXELS" in ast.unparse(to) for to in node.targets):
            yield "MAX_IMAGE_PIXELS", node.lineno


def _calls(node):
    name = ast.unparse(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if CALLS.fullmatch(name):
        yield name, node.lineno
    if name in ("torch.load", "import_module", "importlib.import_module"):
        yield name.removeprefix("importlib."), node.lineno
    if name == "torch.load" and "weights_only" not in given:
        yield "torch.load without weights_only", node.lineno
    for argument in ARGUMENTS.keys() & given.keys():
        value = given[argument]
        if not (isinstance(value, ast.Constant) and value.value is ARGUMENTS[argument]):
            yield f"{argument}={ast.unparse(value)}", node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_a_file_names(path):
    place = str(path.relative_to(ROOT))
    found = [(what, line) for what, line in dangers(path.read_text()) if place not in REVIEWED.get(what, ())]
    assert not found, f"{place}: {found}: not reviewed"


def test_nothing_is_reviewed_that_is_not_there():
    for what, places in REVIEWED.items():
        for place in places:
            assert what in [found for found, _ in dangers((ROOT / place).read_text())], f"{place}: no {what}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.numpy_pickle",
        "import subprocess",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=safe)",
        "yaml.load(text, Loader)",
        "yaml.full_load(text)",
        "eval(text)",
        "exec(text)",
        "compile(text, 'x', 'exec')",
        "__import__(name)",
        "importlib.import_module(name)",
        "run(command, shell=True)",
        "from_pretrained(name, trust_remote_code=True)",
        "np.load(path, allow_pickle=True)",
        "Image.MAX_IMAGE_PIXELS = None",
        "os.system(command)",
    ],
)
def test_the_gate_sees(source):
    assert list(dangers(source))


def locked(name):
    """Return (version, number of hashes) of each package of a lock file."""
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+)(.*\n(?:[ \t].*\n)*)", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^\w", text, re.MULTILINE)), "a line without a version"
    return {canonicalize_name(found): (number, hashes.count("--hash=sha256:")) for found, number, hashes in entries}


@pytest.mark.parametrize("name", ["torch-cpu", "torch-cuda", "run", "dev", "tools"])
def test_every_locked_package_has_hashes_and_the_version_of_the_constraints(name):
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    pinned = {canonicalize_name(package): number for package, number in lines}
    packages = locked(name)
    assert packages
    for package, (number, hashes) in packages.items():
        assert hashes, package
        assert pinned.get(package, number) == number.removesuffix("+cpu"), package


@pytest.mark.parametrize(("extra", "files"), [("train", ["run"]), ("dev", ["run", "dev"])])
def test_the_locks_hold_everything_that_an_extra_needs(extra, files):
    """A dependency that was added without `make locks` fails here, and not on a machine that lacks it."""
    known = {package for name in ["torch-cpu", "torch-cuda", *files] for package in locked(name)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) >= {extra}
    waiting, seen = [("perceivers", extra)], set()
    while waiting:
        package, chosen = waiting.pop()
        if (package, chosen) in seen:
            continue
        seen.add((package, chosen))
        for requirement in map(Requirement, needs(package, project)):
            if requirement.marker is None or requirement.marker.evaluate({"extra": chosen}):
                name = canonicalize_name(requirement.name)
                assert name in known | {"perceivers"}, f"{package} needs {name}: make locks"
                waiting += [(name, one) for one in ("", *requirement.extras)]


def needs(package, project):
    """Return the requirements of a package with their markers, for ours those in pyproject.toml."""
    if package != "perceivers":
        return requires(package) or []
    extras = project["optional-dependencies"].items()
    return project["dependencies"] + [f"{one} ; extra == '{extra}'" for extra, ones in extras for one in ones]


@pytest.mark.parametrize("page", ["README.md", "docs/security.md"])
def test_the_tests_that_a_page_names_are_there(page):
    commands = re.findall(r"`pytest (tests/[^`]*)`", (ROOT / page).read_text())
    assert commands
    for command in commands:
        paths, _, words = command.partition(" -k ")
        sources = [(ROOT / path).read_text() for path in paths.split()]
        names = re.findall(r"^def (test_\w+)", "".join(sources), re.MULTILINE)
        assert names, command
        assert not words or any(words in name for name in names), command
