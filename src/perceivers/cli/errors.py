"""Errors as one line and an exit code: 2 for wrong input or a machine fault, 1 for a bug. No other module does this."""

import builtins
import os
import platform
import re
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version

from perceivers.files.messages import printable
from perceivers.training.signals import EndSignals, Stopped

OWN_BUG, USER_ERROR, READER_GONE = 1, 2, 141
"""Exit codes; the last is what a shell reports for a command whose output pipe was closed."""

LONGEST_LINE = 1000
"""Maximum length of a message in bytes; a longer one keeps its beginning and its end."""

USER_ERRORS = frozenset(
    {
        *("ValueError", "OSError", "EOFError", "OverflowError"),
        *("csv.Error", "struct.error", "zlib.error", "lzma.LZMAError", "zipfile.BadZipFile", "tarfile.TarError"),
        *("pickle.UnpicklingError", "yaml.YAMLError", "pyarrow.ArrowException"),
        *("safetensors.SafetensorError", "safetensors_rust.SafetensorError"),
        *("av.FFmpegError", "PIL.DecompressionBombError", "soundfile.SoundFileError"),
        *("lightning.MisconfigurationException", "ray.RayError"),
        *("httpx.HTTPError", "httpx2.HTTPError", "aiohttp.ClientError"),
    }
)
"""Errors of input, files and machines, by package and name, with their subclasses; all other errors are bugs."""

MACHINE = re.compile(
    r"no space left on device|too many open files|unable to (open|mmap|write|resize)|can't start new thread|"
    r"DataLoader worker .*(killed|exited)|no NVIDIA driver|can not run on your system|"
    r"no CUDA GPUs|not compiled with CUDA|MPS backend",
    re.IGNORECASE,
)
"""Texts by which torch reports machine faults that have no exception class."""

OUT_OF_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator|cannot allocate memory|can't allocate", re.IGNORECASE)

PARTNER = re.compile(r"connection (closed|reset) by peer|gloo/transport|remote process exited|NCCL", re.IGNORECASE)
"""Texts of the errors that the remaining processes of a run get after one process has ended."""

LEFT_ALONE = "another process of this run has ended"

STARTER = os.getppid()
"""Id of the process that started this one."""

PATIENCE = 10.0
"""Seconds that a process waits for the first process, which reports the reason, to end too."""

OTHER_NAMES = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
"""Distribution names of packages that are imported under another name."""


def exit_code(command: Callable[[], None], signals: EndSignals) -> int:
    """Run a command and return its exit code; if the command fails, print one line to the error stream."""
    try:
        command()
        sys.stdout.flush()
    except SystemExit as stop:
        if not signals.number:
            raise
        return stop.code if isinstance(stop.code, int) else signals.exit_code
    except BaseException as error:
        return signals.exit_code if signals.number else _ended_by(error)
    return 0


def _ended_by(error: BaseException) -> int:
    """Report an error in one line, with a traceback if it is a bug, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        _write_nowhere()
        return READER_GONE
    if isinstance(error, Stopped):
        say(str(error))
        return error.exit_code
    line = complaint(error)
    if line is None:
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
        say(f"a bug in perceivers: please report the lines above with the command and its input ({_versions()})")
        return OWN_BUG
    if line.startswith(LEFT_ALONE):
        _wait_for_a_child()  # while this process lives, the failed one has time to report the cause
    if not _first_process_reports():
        say(line)
    if isinstance(error, OSError):
        _write_nowhere()  # flushing the standard output at exit could fail with the same error, e.g. a full disk
    return USER_ERROR


def say(line: str) -> None:
    """Print a message to the error stream: one line of at most a kilobyte, without control characters."""
    with suppress(OSError, ValueError):  # the error stream may be closed
        print(f"perceivers: {message(line)}", file=sys.stderr, flush=True)


def message(text: str) -> str:
    """Return a text as one printable line of at most a kilobyte; a longer text keeps its beginning and its end."""
    # Cut first, and escape only what remains: a text of gigabytes costs no more than a short one.
    ends = text if len(text) <= 4 * LONGEST_LINE else f"{text[: 2 * LONGEST_LINE]} ... {text[-LONGEST_LINE:]}"
    line = printable(" ".join(ends.split())).encode("utf-8", "backslashreplace")
    if len(line) > LONGEST_LINE:
        line = line[: LONGEST_LINE * 2 // 3] + b" ... " + line[-LONGEST_LINE // 4 :]
    return line.decode("utf-8", "ignore")


def complaint(error: BaseException) -> str | None:
    """Return the line that explains an error to the user, or None if the error is a bug in perceivers."""
    kinds, text = original(error)
    if "torch.OutOfMemoryError" in kinds or "MemoryError" in kinds or OUT_OF_MEMORY.search(text):
        return f"out of memory ({_first_line(text)}): a smaller batch size or a memory limit needs less"
    if "RecursionError" in kinds:
        return f"nested too deeply to be read ({_first_line(text)})"
    if isinstance(error, ImportError):
        return _missing(error, text)
    if isinstance(error, OSError):
        return _file_error(error, text)
    if "RuntimeError" in kinds and PARTNER.search(text):
        return f"{LEFT_ALONE}, see what it says ({_first_line(text)})"
    machine = kinds & {"RuntimeError", "AssertionError"} and MACHINE.search(text)
    return (text or type(error).__name__) if machine or kinds & USER_ERRORS else None


def original(error: BaseException) -> tuple[frozenset[str], str]:
    """Return the class names (package and name) and the text of an error, or of the error in a worker that caused it.

    Worker processes of data loaders, clusters and runs pass on their errors as text that contains a traceback.
    """
    cause = getattr(error, "cause", None)  # set by Ray
    if isinstance(cause, BaseException):
        return original(cause)
    kinds, text = kinds_of(type(error)), str(error)
    if "Traceback (most recent call last):" not in text:
        return kinds, text
    # The last unindented line of a traceback is "package.module.Name: text".
    last = re.split(r"\n(?=\S)", text.strip())[-1]
    name, _, detail = last.partition(":")
    builtin = getattr(builtins, name, None)
    if isinstance(builtin, type) and issubclass(builtin, BaseException):
        return kinds_of(builtin), detail.strip()
    if not re.fullmatch(r"[\w.]+", name):
        return kinds, last
    package, *_, name = f"builtins.{name}".split(".")[-2:] if "." not in name else name.split(".")
    kind = "ValueError" if package == "perceivers" else f"{package}.{name}"
    return frozenset({kind}), detail.strip()


def kinds_of(kind: type[BaseException]) -> frozenset[str]:
    """Return "package.Name" of an error class and of its base classes; for built-in classes the name alone."""
    names = ((c.__module__.split(".")[0].lstrip("_"), c.__qualname__) for c in kind.__mro__)
    return frozenset(name if package == "builtins" else f"{package}.{name}" for package, name in names)


def _first_line(text: str) -> str:
    return " ".join(text.strip().split("\n", 1)[0].split())[:200] or "no more is known"


def _file_error(error: OSError, text: str) -> str:
    if error.strerror is None:
        return text or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return f"{' to '.join(names)}: {error.strerror}" if names else error.strerror


def _missing(error: ImportError, text: str) -> str | None:
    """Return the command that installs the missing package; None if the import error is a bug in perceivers."""
    package = (error.name or "").split(".")[0]
    if package == "perceivers":
        return None
    if not package:
        return text
    extra = extras().get(OTHER_NAMES.get(package, package).replace("_", "-").lower())
    what = f"perceivers[{extra}]" if extra else "perceivers"
    why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({_first_line(text)})"
    return f'{package} {why}: pip install "{what}"'


def extras() -> dict[str, str]:
    """Return, for each optional package, the extra of perceivers that installs it."""
    try:
        lines = requires("perceivers") or []
    except PackageNotFoundError:
        return {}
    matches = [re.match(r"([\w.-]+).*extra == ['\"](\w+)", line) for line in lines]
    # "dev" repeats packages of the other extras: it comes first, so that they overwrite its entries.
    pairs = sorted(((match[1], match[2]) for match in matches if match), key=lambda pair: pair[1] != "dev")
    return {name.replace("_", "-").lower(): extra for name, extra in pairs}


def _first_process_reports() -> bool:
    """Return whether the first process of the run, which started this one, ends too; it then reports the error."""
    if os.environ.get("LOCAL_RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" in os.environ:
        return False
    end = time.monotonic() + PATIENCE
    while os.getppid() == STARTER and time.monotonic() < end:
        time.sleep(0.1)
    return os.getppid() != STARTER


def _wait_for_a_child() -> None:
    """Wait until one of the child processes has ended."""
    end = time.monotonic() + PATIENCE + 5
    with suppress(ChildProcessError):  # this process may have no children
        while time.monotonic() < end and not os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.1)


def _write_nowhere() -> None:
    """Redirect the standard output to the null device, so that flushing it at exit cannot fail."""
    with suppress(OSError, ValueError, AttributeError):  # the standard output may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _versions() -> str:
    versions = []
    for name in ("perceivers", "torch"):
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    return ", ".join([*versions, f"Python {platform.python_version()}", platform.platform()])
