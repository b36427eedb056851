"""The table of rows: work, contenders, and targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from benchmarks.contenders import (
    huggingface,
    huggingface_in_chunks,
    huggingface_kept,
    krasserm,
    lucidrains,
    own,
    own_program,
)
from benchmarks.models import Work, build, inputs_of, picture, preset_of
from benchmarks.processes import Contender, Program, Setting
from perceivers.runs.flops import costs
from perceivers.schema.preset import Preset

MB = 1e6

OURS, HF = "ours", "Hugging Face"

FORWARD, CHECKPOINTED = "ours, forward", "ours, checkpointed"


@dataclass(frozen=True)
class Target:
    """A target of a row."""

    measure: Literal["time", "memory", "slope", "growth"]
    """Seconds; bytes; slope of log time over log size; growth of memory in bytes from smallest to largest size."""
    at_most: float
    """Upper bound of the ratio to `against`; without it, of the measure itself."""
    against: str | None = None
    """Contender to compare with."""
    of: str = OURS
    """Contender that is to reach the target."""
    within_noise: bool = False
    """Accept the better quartile of the turns."""


@dataclass(frozen=True)
class Count:
    """Operations of a work as written, whichever attention algorithm runs."""

    preset: Callable[[bool], Preset]
    """Builds the preset; the argument is True for the tiny size."""
    work: Work
    """Work that is counted."""

    def flops(self, setting: Setting) -> int:
        """Return the FLOPs of matrix products, two a multiply-add; a backward pass counts as two forward passes."""
        cost = costs(self.preset(setting.quick))
        read = sum(cost.stages[stage][1] for stage in ("input_adapter", "trunk.encoder"))
        per_sample = {"forward": cost.flops, "reading": read, "training": 3 * cost.flops}[self.work.part]
        return per_sample * (setting.batch or self.work.batch)


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    title: str
    """Description of the work."""
    contenders: Mapping[str, Contender]
    """Contenders by name; outputs are compared with those of the first."""
    targets: Sequence[Target]
    """Targets of the row."""
    count: Count
    """Operations of the work."""
    counts: Mapping[str, Count] = field(default_factory=dict)
    """Operations of contenders that do other work."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Size of each contender, where growth is measured."""


def faster(times: float, than: str) -> Target:
    """Return the target to be `times` times as fast as another contender."""
    return Target("time", 1 / times, than)


def not_slower(than: str) -> Target:
    """Return the target to be no slower than another contender, within noise."""
    return Target("time", 1.0, than, within_noise=True)


def memory(megabytes: float) -> Target:
    """Return the target to take at most this memory."""
    return Target("memory", megabytes * MB)


def _released(
    title: str, work: Work, peers: Mapping[str, Contender], targets: Sequence[Target], checkpointed: bool = False
) -> Row:
    """Return a row of a released model: ours, with activation checkpointing too if `checkpointed`, then the peers."""
    contenders: dict[str, Contender] = {OURS: partial(own, work)}
    if checkpointed:
        contenders[CHECKPOINTED] = partial(own, work, checkpointed=True)
    return Row(
        title,
        contenders | dict(peers),
        targets,
        _count(work),
        {FORWARD: _count(replace(work, part="forward"))},
    )


def _count(work: Work) -> Count:
    return Count(partial(preset_of, work), work)


def _peers(work: Work, *more: str) -> dict[str, Contender]:
    known: dict[str, Callable[[Work, Setting], Program]] = {"krasserm": krasserm, "lucidrains": lucidrains}
    peers: dict[str, Contender] = {HF: partial(huggingface, work)}
    return peers | {name: partial(known[name], work) for name in more}


def _flow() -> Row:
    work = Work("optical-flow")
    return _released(
        "optical flow 368x496",
        work,
        _peers(work, "krasserm", "lucidrains"),
        [faster(3.5, HF), faster(3, "krasserm"), memory(170)],
    )


def _video() -> Row:
    work = Work("multimodal", memory_limit=int(100 * MB))
    documented, best = f"{HF}, 128 chunks", f"{HF}, 8 chunks"
    peers = {
        documented: partial(huggingface_in_chunks, work, chunks=128),
        best: partial(huggingface_in_chunks, work, chunks=8),
    }
    return _released(
        "video clip, everything decoded", work, peers, [faster(20, documented), faster(5, best), memory(140)]
    )


def _imagenet() -> dict[str, Row]:
    whole, reading = Work("imagenet-fourier"), Work("imagenet-fourier", part="reading")
    conv, learned = Work("imagenet-conv"), Work("imagenet-learned")
    close = [not_slower(HF), Target("memory", 0.7, HF)]
    return {
        "imagenet-fourier": _released(
            "ImageNet, Fourier features",
            whole,
            _peers(whole, "krasserm", "lucidrains"),
            [faster(1.2, HF), memory(45)],
        ),
        "imagenet-reading": _released(
            "ImageNet, Fourier features, reading alone", reading, _peers(reading), [faster(5, HF)]
        ),
        "imagenet-conv": _released("ImageNet, convolutional", conv, _peers(conv), close),
        "imagenet-learned": _released("ImageNet, learned positions", learned, _peers(learned), []),
    }


def _language(batch: int) -> Row:
    work = Work("language", batch)
    peers = _peers(work, "krasserm", "lucidrains")
    targets = [not_slower(HF), not_slower("krasserm"), Target("memory", 0.7, HF)]
    return _released(f"language, 2048 bytes, batch {batch}", work, peers, targets)


def _train_flow() -> Row:
    work = Work("optical-flow", part="training")
    peers: dict[str, Contender] = {
        FORWARD: partial(own, Work("optical-flow")),
        HF: partial(huggingface_kept, work),
    }
    return _released("training step, one flow pair", work, peers, [Target("time", 6, FORWARD), memory(1600)])


def _train(family: str, title: str, *limits: float) -> Row:
    """Return a row of a training step; `limits`: memory limits in megabytes to run with activation checkpointing."""
    work = Work(family, part="training")
    limited: dict[str, Contender] = {
        f"{CHECKPOINTED}, memory_limit {limit:g} MB": partial(
            own, replace(work, memory_limit=int(limit * MB)), checkpointed=True
        )
        for limit in limits
    }
    targets = [Target("time", 1.4, OURS, CHECKPOINTED), Target("memory", 0.25, HF, CHECKPOINTED)]
    return _released(f"training step, {title}", work, limited | _peers(work), targets, checkpointed=True)


def sketch(inputs: int, outputs: int, latents: tuple[int, int], quick: bool) -> Preset:
    """Return a model between pictures of these numbers of pixels; `quick`: of a thousandth."""
    share = 1000 if quick else 1
    return picture(max(inputs // share, 64), max(outputs // share, 64), latents)


def draw(preset: Callable[[bool], Preset], setting: Setting, plain: bool = False, compared: bool = True) -> Program:
    """Return a program that encodes a picture and decodes one."""
    built = preset(setting.quick)
    program = own_program(DRAWING, setting, build(built), inputs_of(built, setting.batch or 1), plain=plain)
    return program if compared else Program(program.pieces)


DRAWING = Work("picture", memory_limit=int(64 * MB))
"""Work of the rows with pictures of any size."""


def _million() -> Row:
    preset = partial(sketch, 10**6, 10**6, (512, 512))
    return Row(
        "10^6 inputs and 10^6 outputs",
        {OURS: partial(draw, preset), "plain": partial(draw, preset, plain=True)},
        [faster(4, "plain"), memory(100)],
        Count(preset, DRAWING),
    )


def _growth(of: Literal["inputs", "outputs"]) -> Row:
    sizes = {f"10^{power}": 10**power for power in (5, 6, 7)}
    presets = {
        name: partial(sketch, *((size, 64) if of == "inputs" else (64, size)), (128, 256))
        for name, size in sizes.items()
    }
    return Row(
        f"growth with the number of {of}",
        {name: partial(draw, preset, compared=False) for name, preset in presets.items()},
        [Target("slope", 1.05), Target("growth", 5 * MB)],
        Count(presets["10^6"], DRAWING),
        {name: Count(preset, DRAWING) for name, preset in presets.items()},
        sizes,
    )


ROWS: dict[str, Row] = {
    "optical-flow": _flow(),
    "video": _video(),
    **_imagenet(),
    "language": _language(1),
    "language-batch-8": _language(8),
    "train-optical-flow": _train_flow(),
    "train-imagenet-fourier": _train("imagenet-fourier", "ImageNet, Fourier features"),
    "train-language": _train("language", "language", 50),
    "million": _million(),
    "growth-inputs": _growth("inputs"),
    "growth-outputs": _growth("outputs"),
}
"""All rows by name."""

GPU_BATCHES: Mapping[str, Sequence[int]] = {
    "language": (1, 8, 32),
    "imagenet-fourier": (1, 8, 32),
    "imagenet-conv": (1, 8, 32),
    "optical-flow": (1, 8, 32),
    "video": (1, 8),
    "train-language": (1, 8, 32),
    "train-imagenet-fourier": (1, 8, 32),
    "train-optical-flow": (1, 8),
    "million": (1,),
}
"""Batch sizes of the rows that are measured on a GPU."""
