"""Errors end the command with one line and an exit code; text from a file never acts on the terminal."""

import ast
import csv
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from torch._utils import ExceptionWrapper

import perceivers.cli.errors
import perceivers.cli.verbs
from perceivers.cli.errors import LEFT_ALONE, LONGEST_LINE, USER_ERRORS, complaint, extras, kinds_of, message
from perceivers.cli.tables import show
from perceivers.files.messages import printable
from perceivers.modalities.table_cells import array_file
from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain
from perceivers.schema.schema_files import yaml_text
from perceivers.training.signals import EndSignals, end_signals
from tiers import few

ROOT = Path(__file__).parent.parent
HOSTILE = "c\x1b[31m\x07\x08\u202e\x9b[/]"
"""Colour, bell, backspace, right-to-left mark, an 8-bit control character, and markup of rich."""

SIZES = """
config:
  latents: {num_latents: 3, channels: 8}
  encoder: {num_heads: 1}
  processor: {num_layers: 1, num_heads: 1}
  decoder: {num_heads: 1}
training: {num_steps: 2, batch_size: 4, checkpoint_every: 1, log_every: 1, accelerator: cpu}
"""


@pytest.fixture
def failing(command, monkeypatch):
    """Return a function that runs the command with a verb `info` that raises an error."""

    def call(error):
        def raises(*arguments, **options):
            raise error

        monkeypatch.setitem(perceivers.cli.verbs.VERBS, "info", raises)
        monkeypatch.setattr(perceivers.cli.errors, "PATIENCE", -5.0)  # no other process ends here
        return command("info")

    return call


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Write a table of a number and a class with hostile names, and a recipe for it."""
    monkeypatch.chdir(tmp_path)
    with open("t.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([f"a{HOSTILE}", f"y{HOSTILE}"])
        rows.writerows([i * 7 % 13 + 0.5, "xy"[i % 2] + HOSTILE] for i in range(20))
    recipe = {
        "data": {"kind": "table", "file": "t.csv"},
        "inputs": {"a": {"kind": "numbers", "count": 1, "key": f"a{HOSTILE}"}},
        "outputs": {"y": {"kind": "label", "key": f"y{HOSTILE}"}},
    }
    Path("r.yaml").write_text(yaml_text(recipe) + SIZES)
    return tmp_path


def one_line(text, message=""):
    assert message in text
    assert text.startswith("perceivers: ")
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    assert len(text.encode()) <= 1024
    assert text[:-1].isprintable()
    return text


def named(package, name, base=Exception):
    return type(name, (base,), {"__module__": package})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/log"), "run/log: No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", b"a", None, "b"), "a to b: Read-only file system"),
        (OSError(errno.EMFILE, "Too many open files"), "perceivers: Too many open files"),
        (OSError("a text alone"), "a text alone"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x\x1b"), "x\\u001b: Is a directory"),
        (named("safetensors_rust", "SafetensorError")("HeaderTooLarge"), "HeaderTooLarge"),
        (named("pyarrow.lib", "ArrowNotImplementedError", named("pyarrow.lib", "ArrowException"))("x"), "x"),
        (named("zipfile", "BadZipFile")(), "perceivers: BadZipFile"),
        (OverflowError("date value out of range"), "date value out of range"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (MemoryError(), "out of memory"),
        (named("torch", "OutOfMemoryError", RuntimeError)("CUDA out of memory. Tried\nmore"), "smaller batch size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "is killed by signal"),
        (RuntimeError("[gloo/transport/tcp] Connection closed by peer"), "another process of this run has ended"),
        (
            ModuleNotFoundError("No module named 'PIL'", name="PIL.Image"),
            'not installed: pip install "perceivers[media]"',
        ),
        (
            ModuleNotFoundError("", name="lightning.fabric"),
            'lightning is not installed: pip install "perceivers[train]"',
        ),
        (ModuleNotFoundError("", name="torch"), 'torch is not installed: pip install "perceivers"'),
        (ImportError("cannot open libx.so", name="sklearn"), "sklearn cannot be imported (cannot open libx.so): pip"),
        (ValueError("two\nlines \x1b[2J\x00"), "two lines \\u001b[2J\\u0000"),
        (ValueError("first " + "\x9b" * 10**6 + " last"), "first"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_users_and_machines_are_one_line(failing, error, message):
    code, out, err = failing(error)
    assert (code, out) == (2, "")
    one_line(err, message)


@pytest.mark.parametrize(
    "error", [KeyError("a"), TypeError("b"), RuntimeError("c"), AssertionError(), AttributeError()]
)
def test_a_bug_of_ours_keeps_its_traceback(failing, error):
    code, out, err = failing(error)
    assert (code, out) == (1, "")
    assert "Traceback (most recent call last):" in err
    assert "in raises" in err
    assert "a bug in perceivers: please report the lines above" in err.splitlines()[-1]
    assert f"torch {version('torch')}" in err.splitlines()[-1]


def test_a_message_keeps_its_beginning_and_its_end():
    long = message(f"first {'é' * 10**7} last")
    assert long.startswith("first ")
    assert long.endswith(" last")
    assert LONGEST_LINE * 0.9 < len(long.encode()) <= LONGEST_LINE


def test_the_errors_of_libraries_exist():
    """The errors named in errors.py exist in the installed libraries; otherwise tracebacks would get through."""
    found = set()
    for module in ("csv", "struct", "zlib", "lzma", "zipfile", "tarfile", "pickle", "yaml", "safetensors", "PIL.Image"):
        found |= set(filter(callable, vars(__import__(module, fromlist=["x"])).values()))
    for module in ("pyarrow", "av.error", "soundfile", "lightning.fabric.utilities.exceptions"):
        found |= set(filter(callable, vars(pytest.importorskip(module)).values()))
    types = [kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception)]
    kinds = set().union(*map(kinds_of, types))
    assert {name for name in USER_ERRORS if "." in name} - kinds <= {
        *(
            "safetensors_rust.SafetensorError",
            "ray.RayError",
            "httpx.HTTPError",
            "httpx2.HTTPError",
            "aiohttp.ClientError",
        )
    }


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("f.npy: broken"), "f.npy: broken"),
        (OSError(errno.EIO, "Input/output error", "f.npy"), "Input/output error: 'f.npy'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "can't decode byte 0xff"),
        (KeyError("a bug"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_worker_finds_wrong_is_what_it_would_be_here(error, message):
    try:
        raise error
    except Exception:
        passed_on = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(Exception, match="Original Traceback") as raised:
        passed_on.reraise()
    line = complaint(raised.value)
    assert (line is None) if message is None else message in line
    assert line is None or "\n" not in line


@pytest.mark.parametrize(
    "header",
    [
        *(
            "{'descr': '<f4',",
            "{'descr': '<,4'",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
            "{}",
            "",
        ),
        "{'descr': '<f4', 'fortran_order': False, 'shape': (999999999999999,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999999,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
    ],
)
def test_a_damaged_array_is_one_line(tmp_path, header):
    text = header.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(24))
    with pytest.raises(ValueError, match=r"a\.npy: ") as raised:
        array_file(tmp_path / "a.npy")
    assert "\n" not in str(raised.value)


def test_the_cause_in_another_process_is_told():
    spawned = named("torch.multiprocessing.spawn", "ProcessRaisedException")
    trace = (
        "\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  File x\n    y\n"
    )
    assert complaint(spawned(f"{trace}ValueError: t.csv:3: no number\n")) == "t.csv:3: no number"
    assert complaint(spawned(f"{trace}perceivers.training.sampler.RecordError: r 3\n")) == "r 3"
    assert complaint(spawned(f"{trace}zipfile.BadZipFile: not a zip\n")) == "not a zip"
    assert complaint(spawned(f"{trace}KeyError: 'a'\n")) is None
    ray = RuntimeError("ray::worker")
    ray.cause = ValueError("t.csv:5: no number")
    assert complaint(ray) == "t.csv:5: no number"


@pytest.mark.parametrize("alike", [True, False])
def test_of_several_processes_one_says_what_is_wrong(alike):
    """The first process reports the error if it has it; otherwise the process that met it does, in its place."""
    code = "import os, subprocess, sys, time\nfrom perceivers.cli import errors\nerrors.PATIENCE = 2.0\n"
    code += "def first():\n    if len(sys.argv) == 2:\n"
    code += "        me = [sys.executable, '-c', sys.argv[1], sys.argv[1], 'child']\n"
    code += "        subprocess.Popen(me, env={**os.environ, 'LOCAL_RANK': '1'})\n"
    code += "        time.sleep(1)\n"
    code += f"    if len(sys.argv) == 3 or {alike}: raise ValueError('t.csv:7: damaged')\n"
    code += "    raise RuntimeError('gloo/transport/tcp: Connection reset by peer')\n"
    code += "sys.exit(errors.exit_code(first, errors.EndSignals()))"
    done = subprocess.run([sys.executable, "-c", code, code], capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert done.returncode == 2
    assert lines[0] == "perceivers: t.csv:7: damaged"
    assert [line[: len(LEFT_ALONE) + 12] for line in lines[1:]] == [f"perceivers: {LEFT_ALONE}"] * (not alike)


def test_every_package_that_is_imported_has_its_extra():
    """An imported package must be required or in an extra of pyproject.toml, so that the message can name the extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plain = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    known = extras()
    for extra, lines in project["optional-dependencies"].items():
        if extra != "dev":
            assert all(known[re.match(r"[\w-]+", line)[0].lower()] == extra for line in lines), extra
    used = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            used |= {a.name for a in node.names} if isinstance(node, ast.Import) else set()
            used |= {node.module} if isinstance(node, ast.ImportFrom) else set()
    for name in {name.split(".")[0] for name in used} - {"perceivers", *sys.stdlib_module_names}:
        own = {"yaml": "pyyaml", "typing_extensions": "torch", "pydantic_core": "pydantic"}.get(name, name)
        known = own in {*plain, "triton", "mpl_toolkits"}
        assert known or "[" in complaint(ModuleNotFoundError("", name=name)), name


@pytest.mark.parametrize(
    "value",
    [
        *("[", "2001-99-99", "!!bool maybe", "!!int abc", "!!timestamp q", "!!int ''", "*a", "[" * 2000, "9" * 5000),
        *("\x1b", ".nan", "9" * 30, "!!python/object:os.system x"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "tokenizer"])
def test_a_broken_setting_is_one_line(command, tmp_path, verb, value):
    code, out, err = command(verb, "digits", "--out", tmp_path / "run", "--set", f"training.num_steps={value}")
    assert (code, out) == (2, "")
    one_line(err)


@pytest.mark.parametrize("value", ["2001-99-99", "!!bool maybe", "!!int ''", "9" * 5000])
def test_a_broken_scalar_of_a_file_is_one_line(command, tmp_path, value):
    (tmp_path / "r.yaml").write_text(f"inputs: {value}")
    code, _, err = command("schema", "check", tmp_path / "r.yaml")
    assert code == 2
    one_line(err, str(tmp_path / "r.yaml"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.accelerator=mps", "accelerator = mps cannot be used here: auto, cpu"),
        ("training.optimiser.learning_rate=1e300", "learning rate 1e+300"),
        ("training.seed=" + "9" * 30, "training.seed: a number of 100 bits must fit into 64"),
        ("schema.inputs.a.mean=.nan", "schema.inputs.a.mean: nan must be a number"),
        ("config.processor.dropout=7", "dropout = 7"),
        ("training.seed=-1", "seed = -1 must be at least 0"),
        ("data.seed=-1", "seed = -1 must be 0 or more"),
        ("schema.outputs.y.weight=-1", "weight = -1.0 must be at least 0"),
        ("schema.inputs.a.drop_prob=2", "inputs.a: drop_prob = 2.0 must be from 0 to 1"),
        ("schema.inputs.a.mask_prob=-1", "inputs.a: mask_prob = -1.0 must be from 0 to 1"),
        ("data.max_bad_rows=-1", "max_bad_rows = -1"),
        ("task=digits", "the recipe lacks the"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_numbers_and_names_out_of_range_are_told_before_the_work(command, table, setting, message):
    code, out, err = command("train", "r.yaml", "--out", "run", "--set", setting)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_what_a_file_says_never_acts_on_the_terminal(command, table):
    """Every verb that prints names of a table or of files, to both streams; the data themselves are unchanged."""
    calls = [
        ("schema", "propose", "t.csv"),
        ("schema", "check", "r.yaml"),
        ("train", "r.yaml", "--out", f"o{HOSTILE.replace('/', '')}"),
        ("evaluate", "run"),
        ("evaluate", "run", "--by", f"y{HOSTILE}"),
        ("report", "run"),
        ("predict", "run", "t.csv", "-o", "p.csv", "--keep", f"y{HOSTILE}"),
        ("convert", "run", f"m{HOSTILE.replace('/', '')}"),
        ("evaluate", HOSTILE),
        ("classify", f"{HOSTILE}.png"),
        (HOSTILE,),
    ]
    printed = {}
    for call in calls:
        code, out, err = command(*call)
        wrong = call[0] in (HOSTILE, "classify") or call[1:] == (HOSTILE,)
        assert code == (2 if wrong else 0), err
        assert (out + err).replace("\n", "").isprintable(), call
        printed[call[:2]] = out
        if call[0] == "train":
            os.rename(call[-1], "run")
    assert "[/]" in printed["schema", "propose"]
    Path("proposed.yaml").write_text(printed["schema", "propose"])
    assert command("schema", "check", "proposed.yaml")[0] == 0  # unescaped again, the recipe holds the original names
    assert HOSTILE in Path("p.csv").read_text()
    assert "\x1b" not in Path("run/report.html").read_text()


def test_a_warning_is_one_line(command, monkeypatch):
    def warns():
        warnings.warn(f"{HOSTILE}\n{'x' * 5000}", stacklevel=1)

    monkeypatch.setitem(perceivers.cli.verbs.VERBS, "info", warns)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = command("info")
    assert code == 0
    one_line(err, "warning: c\\u001b[31m")


def test_what_is_spelled_out_is_the_same_in_json():
    text = "".join(map(chr, [*range(0x20, 0xD800), 0xDC80, *range(0xE000, 0x10000), 0xE0001]))
    quoted = printable(json.dumps(text, ensure_ascii=False))
    assert "".join(letter for letter in quoted if not letter.isprintable()) == "\xa0\u200c\u200d\u202f\u3000"
    assert json.loads(quoted) == text


def test_only_two_modules_print_through_rich():
    """Rich writes to the terminal itself, so its text must be printable; tables.py and progress.py ensure that."""
    using = {path.name for path in (ROOT / "src").rglob("*.py") if "import Console" in path.read_text()}
    assert using == {"tables.py", "progress.py"}


ARGUMENTS = [
    "train X --out run",
    "evaluate X",
    "report X",
    "predict X t.csv",
    "schema check X",
    "schema propose X",
    "info X",
    "plan X",
    "convert X out",
    "convert X out --model language",
    "tokenizer X -o vocabulary.json",
    "fill-mask X [MASK]",
    "fill-mask [MASK] --model X",
    "classify X",
    "classify a.png --model X",
    "flow X X",
    "flow X",
    "autoencode X",
    "autoencode a.mp4 --model X",
]


@pytest.mark.parametrize("line", ARGUMENTS)
@pytest.mark.parametrize("name", ["pipe", "pipe.csv", "pipe.png", "folder.csv", "/dev/zero", "/dev/null", "missing"])
def test_no_argument_of_a_verb_may_be_a_pipe_a_device_or_a_folder(command, table, line, name):
    """A pipe without a writer would be waited for, and /dev/zero read, without end."""
    if name.startswith("pipe"):
        os.mkfifo(name)
    elif name.startswith("folder"):
        os.mkdir(name)
    code, _, errors = command(*line.replace("X", name).split())
    assert code == 2
    one_line(errors)


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/null"])
def test_no_run_lies_in_a_pipe_or_a_device(command, table, name):
    os.mkfifo("pipe")
    code, _, errors = command("train", "r.yaml", "--out", name)
    assert code == 2
    one_line(errors)


@pytest.mark.parametrize("verb", ["convert", "predict", "report", "train"])
def test_a_disk_that_fills_leaves_no_half_written_output(command, table, verb):
    """Files may not grow beyond a few bytes, so writes fail at any point."""
    assert command("train", "r.yaml", "--out", "run")[0] == 0
    outputs = {
        "convert": ("convert", "run", "model"),
        "predict": ("predict", "run", "t.csv", "-o", "p.csv"),
        "report": ("report", "run"),
        "train": ("train", "r.yaml", "--out", "run", "--set", "training.num_steps=3"),
    }
    before = {path: path.read_bytes() for path in table.rglob("*") if path.is_file()}
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        code, _, err = command(*outputs[verb])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, held)
    assert code == 2
    one_line(err.splitlines()[-1] + "\n")
    assert {path: path.read_bytes() for path in table.rglob("*") if path.is_file()} == before


def test_output_that_nobody_takes(tmp_path):
    """A full disk behind the standard output is an error; a reader that has closed the pipe is not."""
    code = "import sys, types\nverbs = types.ModuleType('verbs')\n"
    code += "verbs.VERBS = dict.fromkeys('ab', lambda: print('x' * 10**6))\n"
    code += "sys.modules['perceivers.cli.verbs'] = verbs\nsys.argv = ['perceivers', 'a']\n"
    code += "from perceivers.__main__ import main\nmain()"
    call = [sys.executable, "-c", code]
    with open("/dev/full", "w") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    one_line(done.stderr, "No space left on device")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(call, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.fixture
def heeded_signals():
    """Restore the default signal handlers: a job in the background, or under nohup, starts with some ignored."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_verb_quietly(command, monkeypatch, name):
    """The verb ends even if a library wraps the exception, and if the signal comes twice."""
    number, left = getattr(signal, name), []

    def works():
        try:
            for _ in range(2):
                os.kill(os.getpid(), number)
        except BaseException as error:
            left.append(1)
            raise ImportError("failed to import") from error

    before = signal.getsignal(number)
    monkeypatch.setitem(perceivers.cli.verbs.VERBS, "info", works)
    assert command("info") == (128 + number, "", "")
    assert left
    assert signal.getsignal(number) == before


@pytest.mark.usefixtures("heeded_signals")  # a child inherits ignored signals only
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_modules_load_ends_quietly(name):
    code = "import os, signal, sys\nfrom perceivers.__main__ import main\nassert 'torch' not in sys.modules\n"
    code += f"class Finder:\n    def find_spec(self, *_): os.kill(os.getpid(), signal.{name})\n"
    code += "sys.meta_path.insert(0, Finder())\nsys.argv = ['perceivers', 'info']\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (128 + getattr(signal, name), "", "")


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with end_signals():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert EndSignals().number == 0


def test_texts_in_yaml_say_the_same_after_they_were_printed():
    plain = {HOSTILE: [HOSTILE, "a\u2028b\x85c", "\U000e0001", "plain", "é\n"]}
    text = yaml_text(plain)
    assert yaml.safe_load(text) == plain
    assert printable(text) == text
    with pytest.raises(ValueError, match="inputs"):
        from_plain(Schema, plain)


@pytest.mark.parametrize("encoding", few(["ascii", "latin-1", "utf-8"], ["ascii"]))
def test_wrong_arguments_are_told_in_any_encoding(encoding):
    """An encoding other than UTF-8 gets no box around the message."""
    call = [sys.executable, "-m", "perceivers", "plan", "x", "--batch-size", "many"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(call, capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, b"")
    one_line(done.stderr.decode(encoding), "perceivers: invalid literal for int() with base 10: 'many'; Argument")


IN_A_SHELL = """
import sys, types
verbs = types.ModuleType("verbs")
def works():
    with open("out", "w") as file:
        print("printed"), print("told", file=sys.stderr), file.write(f"{file.fileno() > 2}")
def fails():
    raise ValueError("wrong")
verbs.VERBS = {"works": works, "fails": fails}
sys.modules["perceivers.cli.verbs"] = verbs
from perceivers.__main__ import main
main()
"""


@pytest.mark.parametrize("closed", ["", "<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nobody_who_listens(tmp_path, closed):
    """The verb works and its exit code is unchanged; no other file is opened in place of a closed stream."""
    for verb, code in (("works", 0), ("fails", 2), ("neither", 2)):
        call = ["bash", "-c", f'"$0" -c "$1" {verb} {closed}', sys.executable, IN_A_SHELL]
        done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == code
        assert done.stdout == ("printed\n" if verb == "works" and ">&-" not in closed.replace("2>&-", "") else "")
        assert bool(done.stderr) == ("2>&-" not in closed)
    assert (tmp_path / "out").read_text() == "True"


@pytest.mark.parametrize("columns", ["0", "1", "-3", "x"])
def test_no_width_of_a_terminal_loses_a_score(command, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    rows = [("held out", "y", "a metric of a long name " * 3, "0.1234")]
    monkeypatch.setitem(perceivers.cli.verbs.VERBS, "info", lambda: show(None, False, ["a", "b", "c", "score"], rows))
    code, out, _ = command("info")
    assert code == 0
    assert all(word in out for word in ("held out", "y", "0.1234", "score"))
    assert out.count("metric") == 3


@pytest.mark.parametrize("encoding", few(["ascii", "latin-1", "utf-8"], ["ascii"]))
def test_what_an_encoding_lacks_is_spelled_out(tmp_path, encoding):
    (tmp_path / "t.csv").write_text("größe,y\n" + "1,ü\n2,ß\n" * 5)
    code = "import sys\nfrom perceivers.cli.output import printable_output\n"
    code += "with printable_output(): print(chr(34) + chr(252) + chr(0x1f600) + chr(0xd800) + chr(34))"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    options = {"capture_output": True, "check": False, "env": environment, "cwd": tmp_path}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert json.loads(done.stdout.decode(encoding)) == "ü\U0001f600\ud800", done.stderr
    done = subprocess.run([sys.executable, "-m", "perceivers", "schema", "propose", "t.csv"], **options)
    if encoding == "utf-8":
        assert "größe: {kind: number}" in done.stdout.decode()
    else:  # read as YAML, the text would name another column
        assert (done.returncode, done.stdout) == (2, b"")
        one_line(done.stderr.decode(encoding), "set PYTHONUTF8=1")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("t.csv", ("--keep", "nothing"), "unknown column (keep) 'nothing'; there are "),
        ("t.jsonl", ("--keep", "nothing", "late"), "unknown column (keep) 'nothing'; there are "),
        ("t.csv", ("--max-bad-rows", "-1"), "max_bad_rows = -1 must be 0 or more"),
    ],
)
def test_predictions_without_what_was_asked_for_are_refused(command, table, data, options, message):
    assert command("train", "r.yaml", "--out", "run")[0] == 0
    lines = [{f"a{HOSTILE}": 1.5} for _ in range(3)] + [{f"a{HOSTILE}": 2.5, "late": "x"}]
    Path("t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, err = command("predict", "run", data, "-o", "p.csv", *options)
    assert (code, out) == (2, "")
    one_line(err, message)
    assert not Path("p.csv").exists()
    assert command("predict", "run", "t.jsonl", "-o", "p.csv", "--keep", "late")[0] == 0
    assert Path("p.csv").read_text().splitlines()[-1].startswith("x,")


def test_a_name_that_is_not_utf8_is_refused_before_the_work(command, table):
    name = os.fsdecode(b"t\xff.csv")
    os.rename("t.csv", name)
    code, _, err = command("train", "r.yaml", "--out", "run", "--data", name)
    assert code == 2
    one_line(err, "'t\\udcff': not UTF-8")
    assert not Path("run").exists()


def test_a_folder_under_a_file_names_the_file(command, table):
    Path("file").write_text("x")
    for call in (("train", "r.yaml", "--out", "file/run/x"), ("train", "r.yaml", "--out", "file")):
        code, _, err = command(*call)
        assert code == 2
        one_line(err, "perceivers: file: is a file, not a folder")


OVERWRITING = [
    "predict run t.csv -o t.csv",
    "predict run t.csv -o link.csv",
    "predict run t.csv -o q.csv --attention t.csv",
    "predict run t.csv -o q.csv --attention ./q.csv",
    "predict run t.csv -o run/log.jsonl",
    "predict run t.csv -o q.csv --attention run/checkpoints/page.html",
    "predict run ./*.parquet -o shard.parquet",
    "predict model t.csv -o q.csv --attention model/model.json",
    "predict run pictures -o pictures/q.csv",
    "report run --out run/metrics.json",
    "report run --out t.csv",
    "schema check r.yaml --picture pictures/a.png --data pictures",
    "train r.yaml --data pictures --out pictures/run",
    "tokenizer texts.yaml --out texts.yaml",
    "tokenizer texts.yaml --out texts/a.txt",
    "convert run run/tensorboard",
    "flow a.png a.colours.png --out a.flo --model model",
    "flow link.png a.png --out a.png --model model",
    "autoencode a.mp4 --out ./a.mp4 --model model",
]


def test_no_verb_writes_over_what_it_reads(command, table):
    """Outputs also never overwrite each other or a model's files, nor lie in a folder whose files are all rows."""
    assert command("train", "r.yaml", "--out", "run")[0] == 0
    assert command("convert", "run", "model")[0] == 0
    for folder in ("pictures", "texts"):
        Path(folder).mkdir()
    for name in ("a.png", "a.colours.png", "a.mp4", "pictures/a.png", "shard.parquet", "texts/a.txt"):
        Path(name).write_text("some content")
    Path("link.csv").symlink_to("t.csv")
    Path("link.png").symlink_to("a.png")
    text = "{kind: text, length: 8}"
    Path("texts.yaml").write_text(
        f"data: {{kind: texts, folder: texts}}\ninputs: {{text: {text}}}\noutputs: {{y: {text}}}\n"
    )
    before = {path: path.read_bytes() for path in table.rglob("*") if path.is_file()}
    for line in OVERWRITING:
        code, _, err = command(*line.split())
        assert code == 2, line
        one_line(err, "would")
        assert {path: path.read_bytes() for path in table.rglob("*") if path.is_file()} == before, line
    for _ in range(2):  # other files may lie in a run's folder, and be replaced
        assert command("predict", "run", "t.csv", "-o", "run/q.csv")[0] == 0
