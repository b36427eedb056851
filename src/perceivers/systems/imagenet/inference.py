"""Classification of pictures."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import UInt8

from perceivers.core.arguments import check_positive
from perceivers.core.perceiver import PerceiverIO
from perceivers.media.resampling import imagenet_crop
from perceivers.modalities import Image, Label
from perceivers.modalities.patches import as_sizes
from perceivers.schema import find_modality
from perceivers.training.metrics import check_guesses, inference


def classify(
    model: PerceiverIO, images: Iterable[UInt8[np.ndarray, "h w 3"]], num_classes: int = 5
) -> Iterator[list[tuple[str, float]]]:
    """Yield the most probable classes of each picture, cropped and resized as the paper does for evaluation."""
    check_positive("num_classes", num_classes)
    name, picture = find_modality(model.schema.inputs, Image)
    output, label = find_modality(model.schema.outputs, Label)
    height, width = as_sizes(picture.size, 2, "size")
    if height != width or picture.channels != 3:
        size = f"{height} x {width} x {picture.channels}"
        raise ValueError(f"pictures can be cropped for models of square pictures with 3 channels, not for {size}")
    parameter = next(model.parameters())
    for number, image in enumerate(images):
        raw = torch.from_numpy(imagenet_crop(image, height))[None].to(parameter)
        with inference(model):
            logits = model({name: raw})[output]
        check_guesses(output, logits, number, "picture")
        yield label.ranking(logits[0].double().softmax(dim=-1), num_classes)
