"""Pictures of any size in one folder per class: ImageNet as unpacked, or any such folder."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.splits import check_held_out_fraction, is_held_out_by_name
from perceivers.media.guarded_pillow import TooManyPixelsError
from perceivers.media.image_files import image_size
from perceivers.schema import Record

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif")
"""Suffixes of pictures; other files are ignored."""

TRAINING, HELD_OUT = "train", "val"
"""Names of ImageNet's folders."""


@dataclass(frozen=True)
class ImageFolder(DataSet):
    """Records of "image", the path of a picture that is loaded when needed, and "label", the name of its folder."""

    folder: str = "imagenet"
    """Folder with train/CLASS/... and val/CLASS/..., or with CLASS/... alone."""
    held_out_fraction: float = 0.2
    """Fraction of CLASS/... held out, by a hash of each file's name, so that new files move no others between parts."""
    largest: int | None = None
    """Number of classes to keep, those with the most pictures; None: all."""
    max_pixels: int | None = None
    """Pictures with more pixels (in the header) are skipped; None: none is, and more than 50 million are an error."""
    kind: Literal["image_folder"] = "image_folder"
    """Name in files."""

    def __post_init__(self) -> None:
        check_held_out_fraction(self.held_out_fraction)

    def training(self) -> Sequence[Record]:
        """Return the training pictures."""
        return _records(*self._parts[0])

    def held_out(self) -> Sequence[Record]:
        """Return the held-out pictures."""
        return _records(*self._parts[1])

    def record_files(self) -> Iterable[Path]:
        """Return all pictures of both parts."""
        return [root / name for root, names in self._parts for name in names]

    @cached_property
    def _parts(self) -> tuple[tuple[Path, Sequence[str]], tuple[Path, Sequence[str]]]:
        """Return the folder of classes and the names of the pictures in it, for the training and the held-out part."""
        root = Path(self.folder)
        if (root / TRAINING).is_dir():
            kept = self._chosen(self._names(root / TRAINING))
            classes = {_class_of(name) for name in kept}
            others = [name for name in self._names(root / HELD_OUT) if _class_of(name) in classes]
            return (root / TRAINING, kept), (root / HELD_OUT, others)
        names = self._chosen(self._names(root))
        held_out = {name for name in names if is_held_out_by_name(name, self.held_out_fraction)}
        return (root, [name for name in names if name not in held_out]), (root, sorted(held_out))

    def _names(self, root: Path) -> Sequence[str]:
        """Return the names of all pictures below a folder of classes, except those that are too large."""
        names, most = picture_names(root), self.max_pixels
        return names if most is None else [name for name in names if _fits(root / name, most)]

    def _chosen(self, names: Sequence[str]) -> Sequence[str]:
        """Return the names of the pictures of the largest classes."""
        counts = Counter(map(_class_of, names))
        chosen = dict(counts.most_common(self.largest))
        return [name for name in names if _class_of(name) in chosen]


def picture_names(root: Path) -> list[str]:
    """Return the sorted paths of all pictures in class folders, relative to `root`; ValueError if there are none.

    A link to a file below the same root is a duplicate and is skipped.
    """
    inside = root.resolve()
    names = []
    for path in root.glob("*/**/*"):
        again = path.is_symlink() and path.resolve().is_relative_to(inside)
        if path.suffix.lower() in SUFFIXES and not again:
            names.append(path.relative_to(root).as_posix())
    if not names:
        raise ValueError(f"{root}: holds no folders of pictures ({', '.join(SUFFIXES)})")
    return sorted(names)


def _records(root: Path, names: Sequence[str]) -> Sequence[Record]:
    return LazyRecords(len(names), lambda number: {"image": root / names[number], "label": _class_of(names[number])})


def _fits(path: Path, max_pixels: int) -> bool:
    """Return whether a picture is small enough; an unreadable one counts as small, and is an error where it is used."""
    try:
        height, width = image_size(path)
    except TooManyPixelsError:
        return False
    except ValueError:
        return True
    return height * width <= max_pixels


def _class_of(name: str) -> str:
    return name.split("/", 1)[0]
