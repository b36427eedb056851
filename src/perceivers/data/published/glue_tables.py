"""GLUE in the files that it publishes, some of its tasks in those of their own, and VADER's rated sentences.

The folder holds a folder for each task, as they are unpacked: CoLA, MNLI, MRPC, QNLI, QQP, RTE, SST-2, STS-B of GLUE;
CoLA's, Stanford's (SST-2) and SemEval's (STS) own; hutto_ICWSM_2014 of VADER (Hutto and Gilbert 2014).
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
"""Names of classes; files name them so, or by number. STS has a score from 0 to 5 instead."""

RATING = "vader_rating"
"""Field of VADER's mean rating, from -4 to 4; its class is the rating's sign, and there is none at 0."""

BETWEEN = "\t"
"""Separator of two sentences (ours; the paper does not say): the files' own separator, so that no sentence holds it."""

LARGEST_FILE = 2**30
"""Bytes of a task's file."""

UNLABELLED = ("", "-")
"""Cells that stand for a target that is not published."""


@dataclass(frozen=True)
class Layout:
    """Files and columns of a task's texts and targets."""

    folder: str
    """Folder of the task."""
    sentences: tuple[str, ...]
    """Columns of the sentences."""
    target: str
    """Column of the target."""
    columns: tuple[str, ...] = ()
    """All columns, where the files' first lines do not name them."""
    training: tuple[str, ...] = ("train.tsv",)
    """Files to learn from."""
    held_out: tuple[str, ...] = ("dev.tsv",)
    """Files that training never sees."""
    held_out_every: int | None = None
    """Documents whose number is a multiple of this are held out: for files without a split (ours)."""


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
"""Layouts that each task may have; the first one that is there counts."""


class Example(NamedTuple):
    """Content of a line."""

    text: str
    """Sentences."""
    targets: dict[str, Any]
    """Targets by name."""
    file: str
    """Name of its file."""


@dataclass(frozen=True)
class Glue(DataSet):
    """Records of several tasks: "text", "task", "file", and the target of its own task alone, under the task's name."""

    folder: str = "glue"
    """Holds the tasks' folders."""
    tasks: tuple[Task, ...] = ("cola", "sst_2", "sts")
    """Tasks that are used."""
    shares: tuple[float, ...] | None = None
    """Share of each task in the training records: small tasks come again. None: each record once."""
    kind: Literal["glue"] = "glue"
    """Name in files."""

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks = {self.tasks} must name at least one task, each once")
        if self.shares is not None and (len(self.shares) != len(self.tasks) or min(self.shares) <= 0):
            raise ValueError(f"shares = {self.shares} must be {len(self.tasks)} numbers above 0, one a task")

    def each_once(self) -> "Glue":
        """Return the same tasks without shares."""
        return replace(self, shares=None)

    def record_files(self) -> Iterable[Path]:
        """Files of all tasks, as they were unpacked."""
        folders = {layout.folder for task in self.tasks for layout in LAYOUTS[task]}
        return [path for name in folders for path in Path(self.folder, name).rglob("*") if path.is_file()]

    def training(self) -> Sequence[Record]:
        """Records of all tasks, one task after the other; with shares every record comes at least once."""
        parts = [examples(self.folder, task, False) for task in self.tasks]
        if self.shares is None:
            return mixed(self.tasks, parts, [len(part) for part in parts])
        whole = max(len(part) / share for part, share in zip(parts, self.shares, strict=True))
        return mixed(self.tasks, parts, [round(share * whole) for share in self.shares])

    def held_out(self) -> Sequence[Record]:
        """Development sets (test sets have no targets), one behind the other."""
        parts = [examples(self.folder, task, True) for task in self.tasks]
        return mixed(self.tasks, parts, [len(part) for part in parts])


def mixed(tasks: Sequence[Task], parts: Sequence[Sequence[Example]], counts: Sequence[int]) -> LazyRecords:
    """So many records of each task, one task behind the other, from the beginning again where there are fewer."""
    ends = list(accumulate(counts))

    def make(number: int) -> Record:
        which = bisect_right(ends, number)
        own = parts[which]
        text, targets, file = own[(number - ends[which] + counts[which]) % len(own)]
        return {"text": text, "task": tasks[which], "file": file, **targets}

    return LazyRecords(ends[-1], make)


@lru_cache(maxsize=2 * len(LAYOUTS))
def examples(folder: str, task: Task, held_out: bool) -> tuple[Example, ...]:
    """A task's examples to learn from, or held out; ValueError if there are none."""
    for layout in LAYOUTS[task]:
        home, names = Path(folder) / layout.folder, layout.held_out if held_out else layout.training
        if all((home / name).is_file() for name in names):
            found = tuple(example for name in names for example in read_examples(home / name, task, layout, held_out))
            if not found:
                raise ValueError(f"{home}: no line of {', '.join(names)} has a target")
            return found
    wanted = " or ".join(f"{own.folder}/{{{','.join(own.training + own.held_out)}}}" for own in LAYOUTS[task])
    raise ValueError(f"{folder}: lacks the files of {task}: {wanted}")


def read_examples(path: Path, task: Task, layout: Layout, held_out: bool) -> Iterator[Example]:
    """Lines that have a target; ValueError for a file of other columns or no UTF-8.

    Lines without all of their cells are left out, as in GLUE's own readers (QQP has some).
    """
    try:
        # `splitlines` would cut within sentences.
        lines = regular_file(path, LARGEST_FILE).read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {one_line(error)}") from None
    first = cells_of(lines[0])
    named = {*layout.sentences, layout.target} <= set(first)
    columns = first if named else layout.columns
    if not columns:
        raise ValueError(f"{path}: its first line names no columns {', '.join((*layout.sentences, layout.target))}")
    for number, line in enumerate(lines[named:], start=1 + named):
        row = dict(zip(columns, cells_of(line), strict=False))
        if len(row) < len(columns) or row[layout.target] in UNLABELLED:
            continue
        place = f"{path}:{number}"
        every = layout.held_out_every
        if every is None or is_held_out_document(row["document"], every, place) == held_out:
            text = BETWEEN.join(row[name] for name in layout.sentences)
            yield Example(text, targets(task, row[layout.target], place), path.name)


def targets(task: Task, cell: str, place: str) -> dict[str, Any]:
    """Return targets by name, from a cell of the target's column; ValueError naming the place if it holds none."""
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
    """Return the cells of a line, between tabs; quotation marks mean nothing."""
    return line.rstrip("\r").split("\t")


def is_held_out_document(document: str, every: int, place: str) -> bool:
    """Return whether a document is held out, by its number: 12_3 is sentence 3 of document 12; ValueError if none."""
    number = document.partition("_")[0]
    if not (number.isascii() and number.isdecimal() and len(number) <= 18):
        raise ValueError(f"{place}: {one_line(repr(document))} must begin with the number of a document")
    return bool(is_held_out(int(number), every))
