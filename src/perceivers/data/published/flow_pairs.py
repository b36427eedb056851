"""Optical flow in the published folders of AutoFlow, MPI Sintel, KITTI 2015 and Middlebury."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from perceivers.core.checks import SIZE, check_ranges
from perceivers.data.dataset import DataSet, LazyRecords
from perceivers.data.published.flow_curriculum import FlowCurriculum, learned_pairs
from perceivers.data.splits import is_held_out
from perceivers.media.flow_files import read_flow
from perceivers.media.image_files import read_image
from perceivers.schema import Record

Layout = Literal["autoflow", "sintel-clean", "sintel-final", "kitti", "middlebury"]


@dataclass(frozen=True)
class PairFiles:
    """Files of a pair of frames with flow."""

    first: Path
    second: Path
    flow: Path
    occlusions: Path | None = None
    """Sintel's occlusion mask: white where the second frame does not show a pixel; None: there is none."""


@dataclass(frozen=True)
class FlowPairs(DataSet):
    """Records of "frames" [2, H, W, 3] from -1 to 1, "flow" [H, W, 2], NaN where unknown, and for Sintel "occluded"."""

    folder: str = ""
    """Folder of the unpacked data: static_40k_png_1_of_4 ..., or training, or other-data and other-gt-flow."""
    layout: Layout = "autoflow"
    """Data set whose folders these are."""
    held_out_every: int = 100
    """Every n-th pair is held out; 1: all pairs, for evaluation only."""
    curriculum: FlowCurriculum | None = None
    """Augmentation of the training pairs; None: each pair is one record, unchanged."""
    kind: Literal["flow_pairs"] = "flow_pairs"
    """Name in files."""

    def __post_init__(self) -> None:
        check_ranges(self, {"held_out_every": SIZE})

    @property
    def scorer(self) -> str:
        """The scorer "tiles": pairs have any size, and are processed in tiles."""
        return "tiles"

    def training(self) -> Sequence[Record]:
        """Return the training pairs, or the records that the curriculum makes of them."""
        pairs = _records(self._part(held_out=False))
        return pairs if self.curriculum is None else learned_pairs(pairs, self.curriculum)

    def held_out(self) -> Sequence[Record]:
        """Return the held-out pairs, uncropped."""
        return _records(self._part(held_out=True))

    def record_files(self) -> Iterable[Path]:
        """Return the frames, flows and masks of all pairs."""
        return [path for pair in self._files() for path in vars(pair).values() if path is not None]

    def _part(self, held_out: bool) -> list[PairFiles]:
        pairs = enumerate(self._files(), start=1)
        return [pair for number, pair in pairs if is_held_out(number, self.held_out_every) == held_out]

    def _files(self) -> list[PairFiles]:
        files = list(LAYOUTS[self.layout](Path(self.folder)))
        if not files:
            raise ValueError(f"{self.folder or 'no folder named'}: holds no pairs as {self.layout} publishes them")
        return files


def read_pair(files: PairFiles) -> Record:
    """Load a pair as a record; ValueError if its files differ in size."""
    frames = [read_image(path) for path in (files.first, files.second)]
    flow = read_flow(files.flow)
    sizes = {array.shape[:2] for array in (*frames, flow)}
    if len(sizes) > 1:
        raise ValueError(f"{files.first}: frames and flow differ in size: {sorted(sizes)}")
    record = {"frames": np.stack(frames).astype(np.float32) / 127.5 - 1, "flow": flow}
    return record if files.occlusions is None else {**record, "occluded": read_image(files.occlusions)[..., 0] > 0}


def autoflow(folder: Path) -> Iterator[PairFiles]:
    """Yield pairs of AutoFlow: static_40k_png_*_of_4/NAME/{im0.png, im1.png, forward.flo}."""
    for flow in sorted(folder.glob("static_40k_png_*_of_4/*/forward.flo")):
        yield PairFiles(flow.with_name("im0.png"), flow.with_name("im1.png"), flow)


def sintel(folder: Path, rendering: str) -> Iterator[PairFiles]:
    """Yield pairs of Sintel: training/{RENDERING, flow, occlusions}/SCENE/frame_0001.{png, flo, png}."""
    training = folder / "training"
    for flow in sorted(training.glob("flow/*/frame_*.flo")):
        scene, number = flow.parent.name, int(flow.stem.removeprefix("frame_"))
        first, second = (training / rendering / scene / f"frame_{n:04d}.png" for n in (number, number + 1))
        occlusions = training / "occlusions" / scene / f"{flow.stem}.png"
        yield PairFiles(first, second, flow, occlusions if occlusions.is_file() else None)


def kitti(folder: Path) -> Iterator[PairFiles]:
    """Yield pairs of KITTI: training/{image_2/000000_10.png, image_2/000000_11.png, flow_occ/000000_10.png}."""
    for flow in sorted(folder.glob("training/flow_occ/*_10.png")):
        images = folder / "training" / "image_2"
        yield PairFiles(images / flow.name, images / flow.name.replace("_10.png", "_11.png"), flow)


def middlebury(folder: Path) -> Iterator[PairFiles]:
    """Yield pairs of Middlebury: other-data/NAME/{frame10.png, frame11.png}, other-gt-flow/NAME/flow10.flo."""
    for flow in sorted(folder.glob("other-gt-flow/*/flow10.flo")):
        frames = folder / "other-data" / flow.parent.name
        yield PairFiles(frames / "frame10.png", frames / "frame11.png", flow)


LAYOUTS: dict[Layout, Callable[[Path], Iterator[PairFiles]]] = {
    "autoflow": autoflow,
    "sintel-clean": lambda folder: sintel(folder, "clean"),
    "sintel-final": lambda folder: sintel(folder, "final"),
    "kitti": kitti,
    "middlebury": middlebury,
}
"""Functions that yield the pairs of a folder with known flow, in order, by layout."""


def _records(files: Sequence[PairFiles]) -> Sequence[Record]:
    return LazyRecords(len(files), lambda number: read_pair(files[number]))
