"""Fixtures of all tests."""

import os
import re
import subprocess
import sys

import pytest
import torch

from perceivers.__main__ import main

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton reads this variable when they are imported


UNWANTED = re.compile(
    r"\b\w+Warning: |"  # Python's
    r"\[W\d{3,4}|^W\d{4} |"  # torch's, written in C++
    r"^\[[\w,]+ @ 0x|"  # FFmpeg's
    r"^(?:OMP|libpng|libjpeg|objc)\b.*: |^WARNING\b",
)
"""Pattern of lines that no command should print, whichever library writes them."""


def unwanted(text):
    """Return the lines of printed text that are warnings."""
    lines = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return [line for line in lines.splitlines() if UNWANTED.search(line)]


def watched(communicate):
    """Wrap `Popen.communicate` so that warnings in a child's output are an error."""

    def watch(self, *arguments, **options):
        out, err = communicate(self, *arguments, **options)
        assert not (found := unwanted(out) + unwanted(err)), f"{self.args} printed a warning: {found}"
        return out, err

    return watch


@pytest.fixture(autouse=True)
def _children_print_no_warnings(request, monkeypatch) -> None:
    """Fail a test whose child processes print warnings: pytest does not see them, and nobody would read them."""
    if request.node.get_closest_marker("prints_warnings") is None:
        monkeypatch.setattr(subprocess.Popen, "communicate", watched(subprocess.Popen.communicate))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Fail a test whose process or forks print warnings from outside Python, e.g. from a C library."""
    report = yield
    if report.when == "call" and report.passed and item.get_closest_marker("prints_warnings") is None:
        printed = [text for name, text in report.sections if name.startswith("Captured std")]
        if found := [line for text in printed for line in unwanted(text)]:
            report.outcome, report.longrepr = "failed", "a warning was printed:\n" + "\n".join(found)
    return report


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state, whichever test ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def command(monkeypatch, capsys):
    """Return a function that runs the command in this process and returns its exit code, output and errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["perceivers", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        assert not (found := unwanted(out.out) + unwanted(out.err)), f"a warning was printed: {found}"
        return code, out.out, out.err

    return call
