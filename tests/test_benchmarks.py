"""The benchmarks measure correctly: ratios, memory, operations; every row runs at a tiny size. Nothing is timed."""

import json
import sys
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import jobs, main, run_row
from benchmarks.contenders import huggingface_kept
from benchmarks.measuring import (
    Machine,
    MemoryMeter,
    Ratio,
    gemm_rate,
    kept_for_backward,
    log_slope,
    machine,
    paired_ratio,
    relative_difference,
    seconds_of,
    without_memory,
)
from benchmarks.models import Work, preset_of
from benchmarks.processes import Failed, Program, Report, Setting, Worker, measured, reason_of
from benchmarks.results import Measured, RowResult, differences, judge, section, write
from benchmarks.stream import stream
from benchmarks.workloads import CHECKPOINTED, FORWARD, GPU_BATCHES, HF, OURS, ROWS, Count, Target
from failing_contenders import asks_for_too_much, is_killed, sleeps
from tiers import few

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
    # The product keeps x; the exponential keeps its result, once although two operations use it.
    assert kept_for_backward(lambda: (lambda y: y * y)((x @ w).exp()), [w]) == 4 * (3 * 5 + 3 * 7)


@pytest.mark.prints_warnings  # torchao, which transformers imports, warns of PyTorch's deprecations
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
    """12.7 GiB for one pair of frames, 30 with the class's dropout."""
    program = huggingface_kept(Work("optical-flow", part="training"), Setting())
    assert round(program.kept_bytes / 2**30, 1) == 12.7
    assert "30.3 GiB" in program.note


@pytest.mark.prints_warnings  # torchao's, as above
@pytest.mark.parametrize("name", few(ROWS, ["imagenet-conv", "language"]))
def test_every_row_runs_and_outputs_agree(name):
    """Contenders that are not installed are left out."""
    row, reports = ROWS[name], {}
    for contender, build in row.contenders.items():
        torch.manual_seed(len(reports))  # the results may not depend on it
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


# On a GPU.

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Clock:
    """A GPU that takes 3 milliseconds for everything, and 5 MB."""

    now, most, total_memory, name = 0.0, 2_000_000, 80 * 10**9, "A GPU"

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)

    def take(self):
        self.now += 3.0
        self.most = 7_000_000


class Event:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.at = self.clock.now

    def elapsed_time(self, other):
        return other.at - self.at


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    fakes = {
        "Event": clock.event,
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda: setattr(clock, "most", 2_000_000),
        "memory_allocated": lambda: 2_000_000,
        "max_memory_allocated": lambda: clock.most,
        "get_device_properties": lambda _: clock,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return clock


def test_a_gpu_is_measured_between_events_with_the_memory_of_torch(clock):
    assert seconds_of(clock.take, "cuda") == (0.003, None)
    _, report = measured(Program([clock.take, clock.take]), Setting("cuda"))
    assert (report.seconds, report.memory_bytes) == (0.006, 5_000_000)
    here = machine("cuda")
    assert (here.processor, here.memory_bytes, here.device) == ("A GPU", 80 * 10**9, "cuda")


def test_rows_of_a_gpu_are_measured_at_several_batch_sizes_without_the_targets_of_a_cpu(clock, tmp_path):
    found = jobs([*GPU_BATCHES], Setting("cuda", torch.bfloat16))
    assert len(found) == sum(map(len, GPU_BATCHES.values())) == len({job.name for job in found})
    assert {"optical-flow-batch-32", "train-optical-flow-batch-8", "language-batch-1"} <= {job.name for job in found}
    assert not any(job.row.targets for job in found)
    assert all(f"batch {job.setting.batch}" in job.title for job in found)
    assert [job.setting.batch for job in jobs(["video"], Setting("cuda", batch=5))] == [5]
    assert [job.name for job in jobs(["video", "language"], Setting())] == ["video", "language"]
    first, *_ = found
    result = RowResult(first.name, 4e9, {OURS: Measured([0.5, 0.5], 5_000_000, flops=10**9)})
    assert "| ours | 1 | 0.5 | 1.00 | 50% | 5 MB |" in section(first.title, result)
    written = write(tmp_path, "cuda", machine("cuda"), {first.name: result}, {job.name: job.title for job in found})
    assert "between two events on the GPU" in written.read_text()


@pytest.mark.parametrize("name", few(GPU_BATCHES, ["imagenet-conv"]))
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_rows_of_a_gpu_run_in_its_precision_with_several_samples(name, device):
    setting = Setting(device, torch.bfloat16, batch=3, quick=True)
    _, report = measured(ROWS[name].contenders[OURS](setting), setting)
    assert report.outputs
    assert all(np.isfinite(x).all() and x.std() > 0 for x in report.outputs.values() if x.size > 1)


def test_limits_of_a_cpu_are_no_limits_of_a_gpu():
    assert Work("multimodal", memory_limit=7).limit("cpu") == 7
    assert Work("multimodal", memory_limit=7).limit("cuda") == 16 * 10**9
    assert Work("multimodal").limit("cuda") is None


@pytest.mark.slow
def test_rates_and_algorithms_of_reading_are_measured(capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.measuring.GEMM", {"cpu": 64, "cuda": 8192})
    found = gpu.measure(device="cpu", batches=(2,), quick=True, repeats=1)
    orders = ["dense", "separable", "absorbed", "projected"]
    assert [one.name for one in found] == [f"{family}, batch 2, {order}" for family in gpu.FAMILIES for order in orders]
    assert "Rates(element=" in capsys.readouterr().out
    kernels = pytest.importorskip("perceivers.core.fast.kernels", reason="Triton is not installed")
    assert list(gpu.with_tiles()) == list(gpu.TILES)
    assert gpu.TILES[0] == (kernels.ROWS, kernels.COLUMNS, kernels.QUERY_COLUMNS, kernels.WARPS)


@needs_gpu
def test_matrix_products_of_a_gpu_are_faster_in_half_precision():
    assert gemm_rate("cuda", torch.bfloat16) > gemm_rate("cuda", torch.float32) > 1e12


def test_the_machine_is_named(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    assert "preloaded" not in machine("cpu").versions
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libjemalloc.so.2")
    here = machine("cpu")
    assert here.versions["preloaded"] == "libjemalloc.so.2"
    assert here.processor
    assert here.cores >= 1
    assert here.versions["torch"] == version("torch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "vidoe"], "did you mean 'video'"),
        (["--repeats", "0"], "repeats = 0"),
        pytest.param(
            ["--device", "cuda"],
            "torch finds no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.prints_warnings
def test_the_command_measures_a_row(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--rows", "imagenet-conv", "--out", str(tmp_path)])
    main()
    assert "ImageNet, convolutional" in capfd.readouterr().out
    (numbers,) = tmp_path.glob("*.json")
    contenders = json.loads(numbers.read_text())["rows"]["imagenet-conv"]["contenders"]
    assert all(len(measured["seconds"]) == 1 and measured["memory_bytes"] > 0 for measured in contenders.values())
    assert contenders[HF]["difference"] < 1e-5
    assert run_row("video", ROWS["video"], TINY, 2, 60.0).contenders[OURS].seconds


@pytest.mark.slow
def test_a_stream_takes_the_memory_of_its_parts(tmp_path):
    """Far less than the whole, which has 256 MB."""
    assert stream(inputs=4 * 10**6, part=1 << 16, folder=tmp_path)["bytes"] < 100e6
    assert not list(tmp_path.iterdir())
