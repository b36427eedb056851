"""Reconstruction of a clip of any size, length, frame rate and sampling rate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from perceivers.core.arguments import check_positive
from perceivers.core.perceiver import PerceiverIO
from perceivers.media.standard_clips import FPS, standard_frames, standard_sound
from perceivers.media.video_files import Clip
from perceivers.modalities import Audio, Label, Video
from perceivers.modalities.patches import as_sizes
from perceivers.schema import find_modality
from perceivers.training.metrics import check_guesses, inference


@dataclass(frozen=True)
class Reconstruction:
    """A clip decoded from its latents."""

    clip: Clip
    """Frames and sound."""
    classes: list[tuple[str, float]]
    """Classes with their probabilities, the mean over the parts of the clip, most probable first."""


def autoencode(
    model: PerceiverIO,
    clip: Clip,
    num_classes: int = 5,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Reconstruction:
    """Reconstruct a clip of any size, length and rates, cropped to a square, in parts of the model's length.

    `model.memory_limit` bounds the memory of reading and writing; `track` may show progress over the parts.
    """
    check_positive("num_classes", num_classes)
    inputs, outputs = model.schema.inputs, model.schema.outputs
    (video, film), (audio, sounds), (label, labels) = (
        find_modality(inputs, Video),
        find_modality(inputs, Audio),
        find_modality(outputs, Label),
    )
    length, side, _ = as_sizes(film.size, 3, "size")
    (samples,) = as_sizes(sounds.size, 1, "size")
    # Resample the clip to the model's size and rates, and pad it to whole parts.
    frames, sound = standard_frames(clip, side), standard_sound(clip, Fraction(samples * FPS, length))
    count = len(frames)
    parts = -(-count // length)
    frames = np.pad(frames, [(0, parts * length - count), (0, 0), (0, 0), (0, 0)], mode="edge")
    sound = np.pad(sound, [(0, max(parts * samples - len(sound), 0)), (0, 0)])[: parts * samples]
    # Encode and decode part by part.
    parameter = next(model.parameters())
    films, waves, logits = [], [], []
    for part in track(range(parts)):
        pixels = torch.from_numpy(frames[part * length : (part + 1) * length])[None].to(parameter) / 255
        wave = torch.from_numpy(sound[part * samples : (part + 1) * samples])[None].to(parameter)
        with inference(model):
            encoded = model.encode({video: pixels, audio: wave})
            raw = model.decode(encoded)
        for output, prediction in raw.items():
            check_guesses(output, prediction, part, "part")
        films.append((raw[video][0].clamp(0, 1) * 255).round().byte().cpu().numpy())
        waves.append(raw[audio][0].clamp(-1, 1).float().cpu().numpy())
        logits.append(raw[label][0].double().cpu())
    # Cut off the padding.
    kept = round(count * samples / length)
    rebuilt = Clip(np.concatenate(films)[:count], float(FPS), np.concatenate(waves)[:kept], samples * FPS // length)
    return Reconstruction(rebuilt, labels.ranking(torch.stack(logits).softmax(-1).mean(0), num_classes))
