"""Write the lock files beside this one: what an install brings, in the versions of constraints.txt, with hashes.

`make locks` calls it; it asks the package index, and pip's own sources for the build of torch without CUDA.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CUDA = re.compile("torch$|triton$|cuda-|nvidia-")
"""Names of torch and of the packages that only its build with CUDA needs."""


def main() -> None:
    """Write all lock files; what is in one is not in those that are installed before it."""
    run = resolved(["pyproject.toml", "--extra", "train"], "hatchling")
    cuda = {name: entry for name, entry in run.items() if CUDA.match(name)}
    dev = resolved(["pyproject.toml", "--extra", "dev"])
    write("torch-cpu", "torch without CUDA, for indexes that have it", {"torch": without_cuda(cuda["torch"])})
    write("torch-cuda", "torch as the public index has it, and what it needs on Linux", cuda)
    write("run", "what `make run` needs beside torch", without(run, cuda))
    write("dev", "what `make test` and `make lint` need beside that", without(dev, run))
    write("tools", "what `make audit` and `make locks` run", resolved([], "pip-audit\nuv"))


def resolved(sources: list[str], beside: str = "") -> dict[str, str]:
    """Packages of one resolution for all platforms, within constraints.txt: the lines of each by its name."""
    command = ["uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--constraint", "constraints.txt", *sources, "-"]
    tool = [sys.executable, "-m", *command]
    text = subprocess.run(tool, input=beside, check=True, text=True, stdout=subprocess.PIPE, cwd=HERE.parent).stdout
    entries = re.findall(r"^\S.*\n(?:[ \t].*\n)*", text, re.MULTILINE)
    return {re.split(r"[= ]", entry)[0]: entry for entry in entries}


def without_cuda(entry: str) -> str:
    """The entry of the same torch's build for the CPU, as this machine's pip finds it."""
    requirement = f"{entry.split()[0]}+cpu"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        subprocess.run(command, check=True)
        with next(Path(folder).iterdir()).open("rb") as wheel:
            return f"{requirement} \\\n    --hash=sha256:{hashlib.file_digest(wheel, 'sha256').hexdigest()}\n"


def without(entries: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    """The packages that are not among others."""
    return {name: entry for name, entry in entries.items() if name not in others}


def write(name: str, what: str, entries: dict[str, str]) -> None:
    """Write a lock file."""
    (HERE / f"{name}.txt").write_text(f"# Written by `make locks`: {what}.\n{''.join(entries.values())}")


if __name__ == "__main__":
    main()
