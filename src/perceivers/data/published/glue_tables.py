"""GLUE in its published files, some of its tasks in their original files, and the rated sentences of VADER.

The folder has one sub-folder per task, as unpacked: CoLA, MNLI, MRPC, QNLI, QQP, RTE, SST-2 and STS-B of GLUE; or the
originals of CoLA, of Stanford (SST-2) and of SemEval (STS); hutto_ICWSM_2014 of VADER (Hutto and Gilbert 2014).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.splits import is_held_out
from perceivers.files.messages import one_line
from perceivers.files.opening import regular_file
from perceivers.schema import Record

Task = Literal["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst_2", "sts", "vader"]

CLASSES: dict[Task, tuple[str, ...]] = {
    "cola": ("unacceptable", "acceptable"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "mrpc": ("different", "paraphrase"),
    "qnli": ("entailment", "not_entailment"),
    "qqp": ("different", "duplicate"),
    "rte": ("entailment", "not_entailment"),
    "sst_2": ("negative", "positive"),
    "vader": ("negative", "positive"),
}
"""Names of the classes; files have either the name or its number. STS has a score from 0 to 5 instead."""

RATING = "vader_rating"
"""Field of VADER's mean rating, from -4 to 4; the class is the sign of the rating, and there is none at 0."""

BETWEEN = "\t"
"""Separator of two sentences (ours; the paper gives none): it separates cells, so no sentence contains it."""

LARGEST_FILE = 2**30
"""Largest file of a task, in bytes."""

UNLABELLED = ("", "-")
"""Cells for targets that are not published."""


@dataclass(frozen=True)
class Layout:
    """The files of a task, and their columns of texts and targets."""

    folder: str
    """Folder of the task."""
    sentences: tuple[str, ...]
    """Columns of the sentences, one or two."""
    target: str
    """Column of the target."""
    columns: tuple[str, ...] = ()
    """All columns, if the first line of a file does not name them."""
    training: tuple[str, ...] = ("train.tsv",)
    """Training files."""
    held_out: tuple[str, ...] = ("dev.tsv",)
    """Held-out files."""
    held_out_every: int | None = None
    """Documents whose number is a multiple of this one are held out, for files without a published split (ours)."""


PAIR = ("sentence1", "sentence2")
COLA = Layout("CoLA", ("sentence",), "label", columns=("source", "label", "mark", "sentence"))
SNIPPETS = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
RATED = tuple(f"{name}_GroundTruth.txt" for name in SNIPPETS)

LAYOUTS: dict[Task, tuple[Layout, ...]] = {
    "cola": (
        COLA,
        replace(COLA, training=("in_domain_train.tsv",), held_out=("in_domain_dev.tsv", "out_of_domain_dev.tsv")),
    ),
    "mnli": (Layout("MNLI", PAIR, "gold_label", held_out=("dev_matched.tsv", "dev_mismatched.tsv")),),
    "mrpc": (Layout("MRPC", ("#1 String", "#2 String"), "Quality"),),
    "qnli": (Layout("QNLI", ("question", "sentence"), "label"),),
    "qqp": (Layout("QQP", ("question1", "question2"), "is_duplicate"),),
    "rte": (Layout("RTE", PAIR, "label"),),
    "sst_2": (Layout("SST-2", ("sentence",), "label", columns=("sentence", "label")),),
    "sts": (
        Layout("STS-B", PAIR, "score"),
        Layout(
            folder="STS",
            sentences=PAIR,
            target="score",
            columns=("score", *PAIR),
            training=("2014.headlines.tsv", "2014.images.tsv"),
            held_out=("2015.headlines.tsv", "2015.images.tsv"),
        ),
    ),
    "vader": (
        Layout(
            folder="hutto_ICWSM_2014",
            sentences=("text",),
            target="rating",
            columns=("document", "rating", "text"),
            training=RATED,
            held_out=RATED,
            held_out_every=5,
        ),
    ),
}
"""The possible layouts of each task; the first one whose files exist is used."""


class Example(NamedTuple):
    """An example: the content of a line."""

    text: str
    """The sentences, separated by `BETWEEN`."""
    targets: dict[str, Any]
    """Targets by name."""
    file: str
    """Name of the file."""


@dataclass(frozen=True)
class Glue(DataSet):
    """Records of several tasks: "text", "task", "file", and the target of the record's task under the task's name."""

    folder: str = "glue"
    """Folder of the tasks' folders."""
    tasks: tuple[Task, ...] = ("cola", "sst_2", "sts")
    """Tasks that are used."""
    shares: tuple[float, ...] | None = None
    """Share of each task in the training records: small tasks are repeated. None: each record once."""
    kind: Literal["glue"] = "glue"
    """Name in files."""

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {self.tasks} must name at least one task, each once")
        if self.shares is not None and (len(self.shares) != len(self.tasks) or min(self.shares) <= 0):
            raise ValueError(f"shares = {self.shares} must be {len(self.tasks)} numbers above 0, one a task")

    def each_once(self) -> "Glue":
        """Return the same tasks without shares, so that no record repeats."""
        return replace(self, shares=None)

    def record_files(self) -> Iterable[Path]:
        """Return the files of all tasks, as unpacked."""
        folders = {layout.folder for task in self.tasks for layout in LAYOUTS[task]}
        return [path for name in folders for path in Path(self.folder, name).rglob("*") if path.is_file()]

    def training(self) -> Sequence[Record]:
        """Return the records of all tasks, one task after the other; with shares, each record at least once."""
        parts = [examples(self.folder, task, False) for task in self.tasks]
        if self.shares is None:
            return mixed(self.tasks, parts, [len(part) for part in parts])
        whole = max(len(part) / share for part, share in zip(parts, self.shares, strict=True))
        return mixed(self.tasks, parts, [round(share * whole) for share in self.shares])

    def held_out(self) -> Sequence[Record]:
        """Return the development sets (test sets have no targets), one after the other."""
        parts = [examples(self.folder, task, True) for task in self.tasks]
        return mixed(self.tasks, parts, [len(part) for part in parts])


def mixed(tasks: Sequence[Task], parts: Sequence[Sequence[Example]], counts: Sequence[int]) -> LazyRecords:
    """Return `counts` records of each task, one task after the other; a part with fewer examples is repeated."""
    ends = list(accumulate(counts))

    def make(number: int) -> Record:
        which = bisect_right(ends, number)
        part = parts[which]
        text, targets, file = part[(number - ends[which] + counts[which]) % len(part)]
        return {"text": text, "task": tasks[which], "file": file, **targets}

    return LazyRecords(ends[-1], make)


@lru_cache(maxsize=2 * len(LAYOUTS))
def examples(folder: str, task: Task, held_out: bool) -> tuple[Example, ...]:
    """Return the training or the held-out examples of a task; ValueError if there are none."""
    for layout in LAYOUTS[task]:
        home, names = Path(folder) / layout.folder, layout.held_out if held_out else layout.training
        if all((home / name).is_file() for name in names):
            part = tuple(example for name in names for example in read_examples(home / name, task, layout, held_out))
            if not part:
                raise ValueError(f"{home}: no line of {', '.join(names)} has a target")
            return part
    files = (f"{layout.folder}/{{{','.join(layout.training + layout.held_out)}}}" for layout in LAYOUTS[task])
    raise ValueError(f"{folder}: lacks the files of {task}: {' or '.join(files)}")


def read_examples(path: Path, task: Task, layout: Layout, held_out: bool) -> Iterator[Example]:
    """Yield the lines that have a target; ValueError for a file with other columns, or not in UTF-8.

    Lines with too few cells are skipped, as in GLUE's own readers (QQP has some).
    """
    try:
        # `splitlines` would also split at other separators, within sentences.
        lines = regular_file(path, LARGEST_FILE).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {one_line(error)}") from None
    # Find the columns: those that the first line names, else those of the layout.
    first = cells_of(lines[0])
    has_header = {*layout.sentences, layout.target} <= set(first)
    columns = first if has_header else layout.columns
    if not columns:
        raise ValueError(f"{path}: its first line names no columns {', '.join((*layout.sentences, layout.target))}")
    # Yield the lines that have all cells and a target, and belong to this part.
    for number, line in enumerate(lines[has_header:], start=1 + has_header):
        row = dict(zip(columns, cells_of(line), strict=False))
        if len(row) < len(columns) or row[layout.target] in UNLABELLED:
            continue
        place = f"{path}:{number}"
        every = layout.held_out_every
        if every is None or is_held_out_document(row["document"], every, place) == held_out:
            text = BETWEEN.join(row[name] for name in layout.sentences)
            yield Example(text, targets(task, row[layout.target], place), path.name)


def targets(task: Task, cell: str, place: str) -> dict[str, Any]:
    """Return the targets by name that a cell of the target column holds; ValueError naming file and line for others."""
    classes = CLASSES.get(task, ())
    if task not in ("sts", "vader"):
        numbered = {str(number): name for number, name in enumerate(classes)}
        if numbered.get(cell, cell) in classes:
            return {task: numbered.get(cell, cell)}
        raise ValueError(f"{place}: {one_line(repr(cell))} is no target of {task}: expected {' or '.join(classes)}")
    try:
        score = float(cell)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{place}: {one_line(repr(cell))} is no target of {task}: expected a number")
    if task == "sts":
        return {task: score}
    return {RATING: score} | ({task: classes[score > 0]} if score else {})


def cells_of(line: str) -> list[str]:
    """Return the tab-separated cells of a line; quotation marks have no meaning."""
    return line.rstrip("\r").split("\t")


def is_held_out_document(document: str, every: int, place: str) -> bool:
    """Return whether a document is held out, by its number (12_3: sentence 3 of document 12); ValueError if none."""
    number = document.partition("_")[0]
    if not (number.isascii() and number.isdecimal() and len(number) <= 18):
        raise ValueError(f"{place}: {one_line(repr(document))} must begin with the number of a document")
    return bool(is_held_out(int(number), every))
