"""The command `python -m benchmarks.ablations FOLDER`: runs what is missing, and writes docs/ablations.md."""

import multiprocessing
import platform
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

import tyro

from benchmarks.ablations.data import prepare
from benchmarks.ablations.options import OPTIONS, TOGETHER
from benchmarks.ablations.page import write_page
from benchmarks.ablations.results import Results
from benchmarks.ablations.running import ALL, Job, pin, run, step_seconds
from benchmarks.ablations.tasks import TASKS
from perceivers.progress import progress

KEPT, PAGE = Path("docs/benchmarks/ablations.json"), Path("docs/ablations.md")


def ablations(
    folder: Path,
    /,
    minutes: float = 4.0,
    every_seed: bool = False,
    runs: Path = Path("runs/ablations"),
    kept: Path = KEPT,
    page: Path = PAGE,
) -> None:
    """Train each task with each option, two runs at once, each on a core of its own; go on where it was stopped.

    Args:
        folder: Folder of the data; what is missing there is told.
        minutes: Minutes of a run, counted in steps that were timed once.
        every_seed: Train all options under every seed, those too that are behind under the first.
        runs: Folder of the unfinished runs.
        kept: File of the results.
        page: File of the page.
    """
    prepare(folder)
    results = Results.read(kept)
    results.machine, results.minutes = results.machine or platform.processor() or platform.machine(), minutes
    cores = [ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), pin, (core,)) for core in (0, 1)]
    # Time a step of each option, on both cores.
    timings = {}
    for number, task in enumerate(TASKS):
        wanted = [*OPTIONS, *([ALL] if TOGETHER else [])]
        if missing := [option for option in wanted if option not in results.step_seconds.get(task, {})]:
            timings[cores[number % 2].submit(step_seconds, folder, task, missing)] = task
    for timing, task in timings.items():
        results.step_seconds[task] = timing.result() | results.step_seconds.get(task, {})
        results.write(kept)
    # Train, a run on each core.
    higher = {name: make(folder).higher for name, make in TASKS.items()}
    running: dict[Future, tuple[Job, int]] = {}
    with progress("ablations", len(list(results.jobs(higher, every_seed)))) as report:
        while True:
            taken = {job for job, _ in running.values()}
            jobs = results.jobs(higher, every_seed)
            waiting = (job for job in jobs if results.score(job) is None and job not in taken)
            for core in {0, 1} - {core for _, core in running.values()}:
                if (job := next(waiting, None)) is not None:
                    steps = results.steps(job.task, job.option)
                    running[cores[core].submit(run, folder, runs, job, steps)] = job, core
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                job, _ = running.pop(done)
                steps = results.steps(job.task, job.option)
                results.runs.append({**vars(job), "steps": steps, **done.result()})
                results.write(kept)
                write_page(results, folder, page)
                report(len(results.runs), f"{job.task} {job.option} {results.runs[-1]['score']:.4g}")


if __name__ == "__main__":
    tyro.cli(ablations)
