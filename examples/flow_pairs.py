"""Photographs with true optical flow, from two Debian packages, in the folder layout of Middlebury.

`prepare SCIKIT OPENCV OUT` reads scikit-image's `data` and OpenCV's `examples/data`. docs/flow.md is the guide.
"""

from pathlib import Path

import numpy as np
import tyro
import yaml

from perceivers.media.flow_files import write_flow
from perceivers.media.image_files import read_image, write_image


def prepare(scikit: Path, opencv: Path, out: Path, /) -> None:
    """Write OUT/NAME/other-data and OUT/NAME/other-gt-flow for three pairs, and OUT/pairs.yaml with the data sets."""
    disparity = np.load(scikit / "motorcycle_disp.npz")["arr_0"]
    aloe = read_image(opencv / "aloeGT.png")[..., 0].astype(np.float32)
    pairs = {
        "motorcycle": (scikit / "motorcycle_left.png", scikit / "motorcycle_right.png", of_disparity(disparity)),
        "aloe": (opencv / "aloeL.jpg", opencv / "aloeR.jpg", of_disparity(np.where(aloe == 0, np.inf, aloe))),
        "wall": (opencv / "graf1.png", opencv / "graf3.png", of_plane(opencv)),
    }
    for name, (first, second, flow) in pairs.items():
        for number, frame in ((10, first), (11, second)):
            write_image(out / name / "other-data" / name / f"frame{number}.png", read_image(frame))
        write_flow(out / name / "other-gt-flow" / name / "flow10.flo", flow)
    sets = {"data": {name: pair_in(out / name) for name in pairs}}
    (out / "pairs.yaml").write_text(yaml.safe_dump(sets), encoding="utf-8")


def pair_in(folder: Path) -> dict[str, str | int]:
    """Return the data set of a pair's folder, as in a recipe."""
    return {"kind": "flow_pairs", "layout": "middlebury", "folder": str(folder), "held_out_every": 1}


def of_disparity(disparity: np.ndarray) -> np.ndarray:
    """Return the flow [H, W, 2] from the left to the right view, from the disparity; NaN where it is not known."""
    flow = np.stack([-disparity, np.zeros_like(disparity)], axis=-1)
    return np.where(np.isfinite(disparity)[..., None], flow, np.nan).astype(np.float32)


def of_plane(opencv: Path) -> np.ndarray:
    """Return the flow [H, W, 2] of a plane between two views, by their homography; NaN outside the second view."""
    height, width = read_image(opencv / "graf1.png").shape[:2]
    text = (opencv / "H1to3p.xml").read_text()
    homography = np.array(text.partition("<data>")[2].partition("</data>")[0].split(), float).reshape(3, 3)
    pixels = np.stack([*np.meshgrid(np.arange(width), np.arange(height)), np.ones((height, width))], axis=-1)
    targets = pixels @ homography.T
    targets = targets[..., :2] / targets[..., 2:]
    inside = ((targets >= 0) & (targets <= (width - 1, height - 1))).all(axis=-1)
    return np.where(inside[..., None], targets - pixels[..., :2], np.nan).astype(np.float32)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"prepare": prepare})
