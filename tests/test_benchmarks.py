"""The benchmarks measure what they say: ratios, memory, operations; every row runs at a tiny size. Nothing is timed."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main, run_row
from benchmarks.contenders import huggingface_kept
from benchmarks.measuring import (
    Machine,
    MemoryMeter,
    Ratio,
    kept_for_backward,
    log_slope,
    machine,
    paired_ratio,
    relative_difference,
    without_memory,
)
from benchmarks.models import Work, preset_of
from benchmarks.processes import Failed, Program, Report, Setting, Worker, measured, reason_of
from benchmarks.results import Measured, RowResult, differences, judge, write
from benchmarks.stream import stream
from benchmarks.workloads import CHECKPOINTED, FORWARD, HF, OURS, ROWS, Count, Target
from failing_contenders import asks_for_too_much, is_killed, sleeps

TINY = Setting(quick=True)


def test_ratios_are_of_the_same_turn():
    assert paired_ratio([2, 4, 9], [1, 2, 3]) == Ratio(median=2, low=2, high=2.5)
    assert paired_ratio([3], [2]) == Ratio(1.5, 1.5, 1.5)
    slowed = [1, 1, 10, 1, 1]
    assert paired_ratio([7 * x for x in slowed], slowed) == Ratio(7, 7, 7)
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1, 2], [1])


def test_slope_is_the_power_of_growth():
    assert log_slope([10, 100, 1000], [5, 50, 500]) == pytest.approx(1)
    assert log_slope([1, 4, 16], [3, 3 * 4**1.5, 3 * 16**1.5]) == pytest.approx(1.5)


def test_difference_is_relative_to_the_largest():
    assert relative_difference(np.array([1.0, -4.0]), np.array([2.0, -4.0])) == 0.25


def test_memory_meter_sees_what_is_gone_again():
    size = 64 * 2**20
    with MemoryMeter() as meter:
        kept = torch.ones(size // 4)
        torch.ones(size // 4)
    assert 1.95 * size <= meter.bytes < 2.3 * size
    with MemoryMeter() as meter:
        kept.add_(1)
    assert meter.bytes < size / 4


def test_kept_for_backward_by_hand():
    x, w = torch.ones(3, 5), torch.ones(5, 7, requires_grad=True)
    # The product keeps x; the exponential keeps its result, once though two operations want it.
    assert kept_for_backward(lambda: (lambda y: y * y)((x @ w).exp()), [w]) == 4 * (3 * 5 + 3 * 7)


def test_kept_for_backward_needs_no_memory_to_be_counted():
    def kept():
        layer = torch.nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, dropout=0.0)
        return kept_for_backward(lambda: layer(torch.ones(3, 11, 16)), [*layer.parameters()])

    with without_memory():
        counted = kept()
    assert counted == kept() > 0
    assert huggingface_kept(Work("optical-flow", part="training"), TINY).kept_bytes > 0


@pytest.mark.slow
def test_the_hugging_face_model_keeps_what_performance_says():
    """12.7 GiB for one pair of frames; 30 with its dropout."""
    program = huggingface_kept(Work("optical-flow", part="training"), Setting())
    assert round(program.kept_bytes / 2**30, 1) == 12.7
    assert "30.3 GiB" in program.note


@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs_and_outputs_agree(name):
    """Contenders that are not installed are left out."""
    row, reports = ROWS[name], {}
    for contender, build in row.contenders.items():
        torch.manual_seed(len(reports))  # what they compute may not depend on it
        try:
            program, report = measured(build(TINY), TINY)
        except ImportError:
            assert contender in ("krasserm", "lucidrains")
            continue
        assert program.pieces or report.memory_bytes > 0
        assert all(np.isfinite(x).all() and x.std() > 0 for x in report.outputs.values() if x.size > 1)
        reports[contender] = report
    found = differences(reports)
    assert max(found.values(), default=0) < 1e-5
    compared = reports.keys() - {OURS, FORWARD, "lucidrains"} if reports[next(iter(row.contenders))].outputs else set()
    assert found.keys() == compared - ({HF} if FORWARD in reports else set())
    assert {target.of for target in row.targets if target.measure in ("time", "memory")} <= {OURS, CHECKPOINTED}


def test_operations_are_of_the_whole_work():
    works = [Work("imagenet-conv", part=part) for part in ("forward", "reading", "training")]
    forward, reading, training = (Count(partial(preset_of, work), work).flops(TINY) for work in works)
    assert 0 < reading < forward
    assert training == 3 * forward
    assert Count(partial(preset_of, works[0]), Work("imagenet-conv", batch=7)).flops(TINY) == 7 * forward


def test_outputs_that_differ_are_seen():
    reports = {
        "a": Report(1.0, 1, outputs={"x": np.array([[1.0, 2.0, 4.0]])}),
        "b": Report(1.0, 1, outputs={"x": np.array([[1.0, 2.5]])}),
        "c": Report(1.0, 1),
    }
    assert differences(reports) == {"b": 0.5 / 2}


def test_many_pieces_are_extrapolated_and_said_to_be():
    done = []
    program = Program([partial(done.append, number) for number in range(8)], note="so")
    few, report = measured(program, Setting(longest=-1.0))
    assert done == [0, 1, 2, 3]
    assert few.scale == 2
    assert report.note == "so; extrapolated from 4 of 8 pieces"
    _, report = measured(program, Setting(longest=1e9))
    assert done[4:] == [*range(8)]
    assert report.note == "so"


@pytest.mark.parametrize(
    ("contender", "reason"),
    [
        (asks_for_too_much, r"needs more than \d+\.\d GB of memory"),
        (sleeps, "took longer than 1 s"),
        (is_killed, "ended with code -9"),
    ],
)
def test_a_contender_that_fails_says_why(contender, reason):
    with pytest.raises(Failed, match=reason):
        Worker(contender, Setting(), limit=1.0)


def test_a_missing_package_is_named():
    with pytest.raises(ImportError) as missing:
        import perceiver_of_nobody  # noqa: F401
    assert str(reason_of(missing.value, None)) == "not installed: perceiver_of_nobody"


def result_of(**contenders):
    return RowResult("x", 1e9, {name.replace("_", " "): measured for name, measured in contenders.items()})


@pytest.mark.parametrize(
    ("target", "reached", "seen"),
    [
        (Target("time", 1 / 3, "theirs"), True, "3.00 times as fast (quartiles 3.00 to 3.23)"),
        (Target("time", 1 / 3.1, "theirs"), False, "3.00 times as fast (quartiles 3.00 to 3.23)"),
        (Target("time", 1 / 3.2, "theirs", within_noise=True), True, "3.00 times as fast (quartiles 3.00 to 3.23)"),
        (Target("time", 2, OURS, "theirs"), False, "3.00 times the time (quartiles 3.00 to 3.25)"),
        (Target("time", 2, "missing"), None, "not measured"),
        (Target("memory", 6e6), True, "5 MB"),
        (Target("memory", 4e6), False, "5 MB"),
        (Target("memory", 0.25, "theirs"), True, "0.25: 5 MB of 20 MB"),
        (Target("memory", 0.2, "theirs"), False, "0.25: 5 MB of 20 MB"),
        (Target("memory", 0.2, "missing"), None, "not measured"),
    ],
)
def test_targets_are_judged(target, reached, seen):
    result = result_of(
        ours=Measured([1.0, 2.0, 2.0], 5_000_000),
        theirs=Measured([3.0, 6.0, 7.0], 20_000_000),
        missing=Measured(),
    )
    judged = judge(target, ROWS["optical-flow"], result)
    assert (judged.reached, judged.seen) == (reached, seen)


def test_growth_is_judged():
    row = ROWS["growth-outputs"]
    sizes = [
        Measured([size / 1e5], int(3e6 + 4 * size + size / 2), result_bytes=4 * size) for size in row.sizes.values()
    ]
    result = RowResult("x", 1e9, dict(zip(row.sizes, sizes, strict=True)))
    slope, growth = (judge(target, row, result) for target in row.targets)
    assert (slope.reached, slope.seen) == (True, "1.000")
    assert (growth.reached, growth.seen) == (True, "3 MB, 4 MB, 8 MB")
    sizes[-1].memory_bytes += 1_000_000
    assert not judge(row.targets[1], row, result).reached
    sizes[-1].seconds, sizes[-1].memory_bytes = [], None
    assert [judge(target, row, result).reached for target in row.targets] == [None, None]


def test_files_are_dated_and_rows_of_the_day_stay(tmp_path):
    here, titles = Machine("a processor", 2, 2**34, 0.5, {"torch": "2"}), {"a": "First", "b": "Second"}
    first = result_of(ours=Measured([1.0], 5_000_000, difference=None, flops=10**9))
    first.targets = [judge(Target("memory", 4e6), ROWS["optical-flow"], first)]
    path = write(tmp_path, "cpu", here, {"a": first}, titles)
    assert write(tmp_path, "cpu", here, {"b": result_of(ours=Measured(note="why"))}, titles) == path
    text = path.read_text()
    assert "| ours | 1 | 1 | 1.00 | 100% | 5 MB |  |  |" in text
    assert "ours: memory at most 4 MB: **missed** (5 MB)" in text
    assert text.index("## First") < text.index("## Second") < text.index("why")
    rows = json.loads(path.with_suffix(".json").read_text())["rows"]
    assert rows["a"]["contenders"]["ours"]["seconds"] == [1.0]
    other = Machine("another", 2, 2**34, 0.5, {})
    assert "## First" not in write(tmp_path, "cpu", other, {"b": first}, titles).read_text()


def test_the_machine_is_named():
    here = machine("cpu")
    assert here.processor
    assert here.cores >= 1
    assert here.versions["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "vidoe"], "did you mean 'video'"),
        (["--repeats", "0"], "repeats = 0"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_a_row(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--rows", "imagenet-conv", "--out", str(tmp_path)])
    main()
    assert "ImageNet, convolutional" in capfd.readouterr().out
    (numbers,) = tmp_path.glob("*.json")
    contenders = json.loads(numbers.read_text())["rows"]["imagenet-conv"]["contenders"]
    assert all(len(measured["seconds"]) == 1 and measured["memory_bytes"] > 0 for measured in contenders.values())
    assert contenders[HF]["difference"] < 1e-5
    assert run_row("video", ROWS["video"], TINY, 2, 60.0).contenders[OURS].seconds


def test_a_stream_takes_the_memory_of_its_parts(tmp_path):
    """Far less than the whole, which has 256 MB."""
    assert stream(inputs=4 * 10**6, part=1 << 16, folder=tmp_path)["bytes"] < 100e6
    assert not list(tmp_path.iterdir())
