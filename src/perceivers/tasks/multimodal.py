"""Video, sound and label in, the same three out of one set of latents (paper section 4.3, I)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import torch

from perceivers.core.arguments import check_positive
from perceivers.core.config import DecoderConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.positions import Fourier
from perceivers.media.standard_clips import FPS, standard_frames, standard_sound
from perceivers.media.video_files import Clip
from perceivers.modalities import Audio, Label, Video
from perceivers.modalities.patches import as_sizes
from perceivers.schema import Schema, find_kind
from perceivers.schema.preset import Preset
from perceivers.tasks.published import published
from perceivers.training.metrics import check_guesses, inference

FRAMES, SIDE, SAMPLES, CLASSES = 16, 224, 30720, 700
"""Of a clip at 25 frames and 48,000 samples a second."""


def multimodal(num_latents: int = 784) -> Preset:
    """The released model, by default; the paper also has 392 and 196 latents."""
    video = Video(
        size=(FRAMES, SIDE, SIDE),
        patch=(1, 4, 4),
        positions=Fourier(num_bands=32, max_resolution=(FRAMES, SIDE // 4, SIDE // 4)),
        mask_prob=0.0,
        value_range=(0.0, 1.0),
    )
    audio = Audio(
        size=SAMPLES,
        patch=16,
        positions=Fourier(num_bands=192, max_resolution=SAMPLES),
        mask_prob=0.0,
        value_range=(-1.0, 1.0),
    )
    label = Label(classes=CLASSES, query_channels=1024)
    config = published(
        (num_latents, 512), layers=8, decoder=DecoderConfig(join="pad", min_padding=2, output_channels=512)
    )
    return Preset(
        schema=Schema(
            inputs={
                "audio": audio,
                "image": video,
                # The released model never sees the label outside training.
                "label": replace(label, mask_prob=1.0, mask_at_eval=True),
            },
            outputs={
                "audio": replace(audio, mask_prob=None, coordinate_rule="exclusive", weight=1.0, loss_kind="l1"),
                "image": replace(
                    video, mask_prob=None, patch=1, coordinate_rule="exclusive", weight=0.03, loss_kind="l1"
                ),
                "label": replace(label, weight=0.0001),
            },
        ),
        config=replace(config, encoder=replace(config.encoder, min_padding=4)),
    )


@dataclass(frozen=True)
class Reconstruction:
    """What a clip became on its way through the latents."""

    clip: Clip
    """Frames and sound."""
    classes: list[tuple[str, float]]
    """What it shows, most probable first; the mean over its parts."""


def autoencode(
    model: PerceiverIO,
    clip: Clip,
    num_classes: int = 5,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Reconstruction:
    """A clip of any size, length and rates, cut to a square and read in parts of the model's length.

    `model.memory_limit` bounds what reading and writing take; `track` may show progress over the parts.
    """
    check_positive("num_classes", num_classes)
    inputs, outputs = model.schema.inputs, model.schema.outputs
    (video, film), (audio, sounds), (label, labels) = (
        find_kind(inputs, Video),
        find_kind(inputs, Audio),
        find_kind(outputs, Label),
    )
    length, side, _ = as_sizes(film.size, 3, "size")
    (samples,) = as_sizes(sounds.size, 1, "size")
    frames, sound = standard_frames(clip, side), standard_sound(clip, Fraction(samples * FPS, length))
    count = len(frames)
    parts = -(-count // length)
    frames = np.pad(frames, [(0, parts * length - count), (0, 0), (0, 0), (0, 0)], mode="edge")
    sound = np.pad(sound, [(0, max(parts * samples - len(sound), 0)), (0, 0)])[: parts * samples]
    parameter = next(model.parameters())
    written, heard, logits = [], [], []
    for part in track(range(parts)):
        pixels = torch.from_numpy(frames[part * length : (part + 1) * length])[None].to(parameter) / 255
        wave = torch.from_numpy(sound[part * samples : (part + 1) * samples])[None].to(parameter)
        with inference(model):
            encoded = model.encode({video: pixels, audio: wave})
            raw = model.decode(encoded)
        for output, own in raw.items():
            check_guesses(output, own, part, "part")
        written.append((raw[video][0].clamp(0, 1) * 255).round().byte().cpu().numpy())
        heard.append(raw[audio][0].clamp(-1, 1).float().cpu().numpy())
        logits.append(raw[label][0].double().cpu())
    kept = round(count * samples / length)
    rebuilt = Clip(np.concatenate(written)[:count], float(FPS), np.concatenate(heard)[:kept], samples * FPS // length)
    return Reconstruction(rebuilt, labels.ranking(torch.stack(logits).softmax(-1).mean(0), num_classes))
