"""The checks of `conftest.py` find warnings wherever they are printed, and nothing else."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from conftest import pytest_runtest_makereport, unwanted

WARN = [sys.executable, "-c", "import warnings; warnings.warn('look out')"]


@pytest.mark.parametrize(
    "line",
    [
        "/lib/numpy/core.py:3: RuntimeWarning: overflow encountered in exp",
        "<string>:1: UserWarning: look out",
        "[W1129 23:13:21.952196851 reducer.cpp:1529] Warning: find_unused_parameters=True",
        "[rank0]:[W1129 23:13:21.952196851 TCPStore.cpp:1] failed",
        "[mov,mp4,m4a,3gp,3g2,mj2 @ 0x55e1c0] moov atom not found",
        "OMP: Warning #96: Cannot form a team",
        "libpng warning: iCCP: known incorrect sRGB profile",
    ],
)
def test_it_sees(line):
    assert unwanted(f"first\n{line}\nlast") == unwanted(f"{line}\n".encode()) == [line]


@pytest.mark.parametrize("line", ["perceivers: a.csv: No such file", "training ━━ 3/3 label 0.5", "[2, 8, 8, 1]", ""])
def test_it_lets_pass(line):
    assert unwanted(line) == []


def test_it_reads_what_children_print():
    for options in ({"capture_output": True}, {"stderr": subprocess.PIPE, "text": True}):
        with pytest.raises(AssertionError, match="look out"):
            subprocess.run(WARN, check=True, **options)


@pytest.mark.prints_warnings
def test_it_can_be_told_that_warnings_are_meant():
    assert b"look out" in subprocess.run(WARN, check=True, stderr=subprocess.PIPE).stderr


def test_it_reads_what_a_test_itself_prints():
    """Libraries in C++ and forks print without Python's knowledge."""
    for line, outcome in (("[W1129 10:00:00.1 a.cpp:1] look out", "failed"), ("step 1", "passed")):
        report = SimpleNamespace(when="call", passed=True, outcome="passed", sections=[("Captured stderr call", line)])
        hook = pytest_runtest_makereport(SimpleNamespace(get_closest_marker=lambda name: None), None)
        next(hook)
        with pytest.raises(StopIteration):
            hook.send(report)
        assert report.outcome == outcome
