"""The verbs that apply a model to files: `fill-mask`, `classify`, `flow`, `autoencode`."""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import tyro

from perceivers.cli.model_choice import ModelChoice
from perceivers.cli.tables import show
from perceivers.core.arguments import check_positive
from perceivers.files.outputs import check_outputs
from perceivers.media.flow_colours import check_full, flow_colours
from perceivers.media.flow_files import write_flow
from perceivers.media.image_files import read_image, write_image
from perceivers.media.video_files import Clip, read_video, write_video
from perceivers.progress import tracked
from perceivers.runs.run import files_of
from perceivers.systems.imagenet import classify as classify_images
from perceivers.systems.language import fill_mask as fill_text
from perceivers.systems.multimodal import autoencode as autoencode_clip
from perceivers.systems.optical_flow import estimate_flow
from perceivers.training.metrics import check_guesses

T = TypeVar("T")

DEFAULT = ModelChoice()

Choice = Annotated[ModelChoice, tyro.conf.OmitArgPrefixes]
Text = Annotated[str, tyro.conf.Positional]
Paths = Annotated[tuple[Path, ...], tyro.conf.Positional]
OnePath = Annotated[Path, tyro.conf.Positional]


def fill_mask(
    text: Text, /, choice: Choice = DEFAULT, ranges: tuple[str, ...] = (), top: int = 5, json: bool = False
) -> None:
    """Predict the masked bytes or tokens of a text.

    Args:
        text: Text with [MASK] in place of each unknown byte (token).
        choice: Weights and device.
        ranges: Ranges of bytes (tokens) to mask, start:stop, the stop excluded, e.g. 52:61.
        top: Number of candidates for each run of masked bytes.
        json: Print as JSON.
    """
    check_positive("top", top)
    spans = [_range(part) for part in ranges]
    filled = fill_text(choice.load("language"), text, spans, top)
    rows = [(f"{f.start}:{f.stop}", repr(text), f"{p:.3g}") for f in filled for text, p in f.candidates]
    show([asdict(f) for f in filled], json, ["bytes", "candidate", "probability"], rows)


def classify(images: Paths, /, choice: Choice = DEFAULT, top: int = 5, json: bool = False) -> None:
    """Print the most probable classes of pictures.

    Args:
        images: Picture files.
        choice: Weights and device.
        top: Number of classes for each picture.
        json: Print as JSON.
    """
    if not images:
        raise ValueError("name at least one picture file")
    check_positive("top", top)
    pixels = [read_image(path) for path in images]
    model = choice.load("imagenet-fourier")
    rankings = classify_images(model, tracked(pixels, "pictures"), top)
    by_path = dict(zip(map(str, images), rankings, strict=True))
    rows = [(path, name, f"{p:.3f}") for path, ranking in by_path.items() for name, p in ranking]
    show(by_path, json, ["picture", "class", "probability"], rows)


def flow(
    files: Paths,
    /,
    out: Path,
    choice: Choice = DEFAULT,
    full: float | None = None,
    levels: int = 1,
    json: bool = False,
) -> None:
    """Estimate the optical flow between two pictures, or between successive frames of a film.

    Args:
        files: Two pictures of one size, or one film.
        out: File to write: .flo or KITTI .png (16 bits), with a colour picture next to it; .mp4 for a film.
        choice: Weights and device.
        full: Distance in pixels that is drawn in full colour; by default the largest (24 for a film).
        levels: Number of frame sizes, each twice the previous one, for motions larger than those trained on.
        json: Print the names of the written files and the distances as JSON.
    """
    check_positive("levels", levels)
    check_full(full)
    if len(files) == 1:
        summary = _flow_film(files[0], out, choice, 24.0 if full is None else full, levels)
    elif len(files) == 2:
        summary = _flow_pair(*files, out, choice, full, levels)
    else:
        raise ValueError(f"{len(files)} files: give two pictures, or one film")
    rows = [(name, f"{v:.3g}" if isinstance(v, float) else str(v)) for name, v in summary.items()]
    show(summary, json, ["", ""], rows)


def autoencode(film: OnePath, /, out: Path, choice: Choice = DEFAULT, top: int = 5, json: bool = False) -> None:
    """Reconstruct a film with sound from the latents, and classify it.

    Args:
        film: Film file.
        out: Film to write (.mp4).
        choice: Weights and device.
        top: Number of classes to print.
        json: Print the classes as JSON.
    """
    if out.suffix != ".mp4":
        raise ValueError(f"{out}: a film is written as .mp4")
    check_positive("top", top)
    _check_outputs([out], [film], choice)
    clip = read_video(film)
    rebuilt = autoencode_clip(choice.load("multimodal"), clip, top, _tracker("parts"))
    write_video(out, rebuilt.clip)
    print(f"Written: {out}", file=sys.stderr)
    show(rebuilt.classes, json, ["class", "probability"], [(name, f"{p:.3f}") for name, p in rebuilt.classes])


def _flow_pair(
    first: Path, second: Path, out: Path, choice: ModelChoice, full: float | None, levels: int
) -> dict[str, str | float]:
    if out.suffix not in (".flo", ".png"):
        raise ValueError(f"{out}: the flow of two pictures is written as .flo or .png")
    picture = out.with_name(f"{out.stem}.colours.png")
    _check_outputs([out, picture], [first, second], choice)
    frames = read_image(first), read_image(second)
    field = estimate_flow(choice.load("optical-flow"), *frames, track=_tracker("tiles"), levels=levels)
    check_guesses("flow", torch.from_numpy(field)[None], what="pair")
    write_flow(out, field)
    write_image(picture, flow_colours(field, full))
    distance = np.linalg.norm(field, axis=-1)
    distances = {"mean distance": float(distance.mean()), "largest distance": float(distance.max())}
    return {"flow": str(out), "colours": str(picture), **distances}


def _flow_film(film: Path, out: Path, choice: ModelChoice, full: float, levels: int) -> dict[str, str | float]:
    if out.suffix != ".mp4":
        raise ValueError(f"{out}: the flow of a film is written as .mp4")
    _check_outputs([out], [film], choice)
    clip = read_video(film)
    if len(clip.frames) < 2:
        raise ValueError(f"{film}: a film of one frame has no flow, at least two frames are needed")
    model = choice.load("optical-flow")
    pairs = list(pairwise(clip.frames))
    colours = []
    for number, pair in enumerate(tracked(pairs, "frames")):
        field = estimate_flow(model, *pair, levels=levels)
        check_guesses("flow", torch.from_numpy(field)[None], number, "pair")
        colours.append(flow_colours(field, full))
    write_video(out, Clip((np.stack(colours) * 255).round().astype(np.uint8), clip.fps))
    return {"film": str(out), "frames": len(colours)}


def _check_outputs(outputs: Iterable[Path], files: Iterable[Path], choice: ModelChoice) -> None:
    """Raise a ValueError if an output is one of these files or one of the model's files."""
    check_outputs(outputs, [*files, *(files_of(Path(choice.model)) if choice.model else [])])


def _range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise ValueError(f"range {text!r} must be start:stop, e.g. 52:61")
    return int(match[1]), int(match[2])


def _tracker(what: str) -> Callable[[Iterable[T]], Iterable[T]]:
    return lambda items: tracked(list(items), what)
