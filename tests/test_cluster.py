"""Predictions by workers of a cluster are those of one process, in the same order."""

import json
import os
import subprocess
import sys

import pytest

from perceivers.data.formats.writers import write_rows
from perceivers.files.durable_folder import write_folder
from perceivers.pretrained.model_folder import save_model
from test_attribution import SCHEMA, SUM, model_of, rows_of


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "model", lambda folder: save_model(model_of(SCHEMA, SUM), folder))
    write_rows(tmp_path / "new.jsonl", [{**row, "number": n} for n, row in enumerate(rows_of(23))])
    write_rows(
        tmp_path / "bad.jsonl", [{**row, "height": "high" if n in (3, 17) else 1} for n, row in enumerate(rows_of(23))]
    )
    return tmp_path


def predicted(folder, data, *arguments):
    """Predict in a separate process, as a cluster's threads and files outlive their owner; a worker has one thread."""
    out = folder / "out.jsonl"
    command = ["predict", folder / "model", folder / data, "-o", out, "--batch-size", 3, *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "perceivers", *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return (out.read_text().splitlines() if done.returncode == 0 else None), done.stderr


def test_workers_give_what_one_process_gives(folder):
    pytest.importorskip("ray", reason="Ray is not installed: pip install perceivers[cluster]")
    arguments = ("--keep", "number", "--attribution")
    alone, _ = predicted(folder, "new.jsonl", *arguments)
    shared, error = predicted(folder, "new.jsonl", *arguments, "--workers", 2)
    assert shared is not None, error
    assert [json.loads(line)["number"] for line in shared] == list(range(23))
    assert shared == alone


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bad_rows_are_counted_over_all_workers(folder, allowed):
    pytest.importorskip("ray", reason="Ray is not installed: pip install perceivers[cluster]")
    rows, error = predicted(folder, "bad.jsonl", "--max-bad-rows", allowed, "--workers", 2)
    if allowed == 1:
        assert "bad.jsonl:18" in error
        assert "(row 2 that cannot be read; max_bad_rows = 1)" in error
    else:
        assert [bool(json.loads(line)["unreadable"]) for line in rows].count(True) == 2


def test_without_ray_it_says_what_is_missing(command, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ("-o", folder / "out.csv", "--workers", 2)
    code, _, err = command("predict", folder / "model", folder / "new.jsonl", *arguments)
    assert code == 2
    assert "several workers need Ray: pip install perceivers[cluster]" in err


@pytest.mark.slow
def test_predictions_that_are_not_finite_are_told_by_workers_too(folder):
    pytest.importorskip("ray", reason="Ray is not installed: pip install perceivers[cluster]")
    large = [{**row, "height": 1e38 if n == 17 else row["height"]} for n, row in enumerate(rows_of(23))]
    write_rows(folder / "large.jsonl", large)
    rows, error = predicted(folder, "large.jsonl", "--workers", 2, "--max-bad-rows", 1)
    assert "is not finite" in json.loads(rows[17])["unreadable"], error
    assert [bool(json.loads(line)["unreadable"]) for line in rows].count(True) == 1
    rows, error = predicted(folder, "large.jsonl", "--workers", 2)
    assert rows is None
    assert "large.jsonl:18: kind: the prediction is not finite" in error
