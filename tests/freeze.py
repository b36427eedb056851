"""Write a model folder, its inputs and its outputs; tests/reference keeps one of each format, and all must load."""

import sys
from pathlib import Path

import torch

from perceivers import (
    Config,
    DecoderConfig,
    EncoderConfig,
    Fourier,
    Image,
    Label,
    LatentsConfig,
    PerceiverIO,
    PointSet,
    ProcessorConfig,
    Schema,
    save_pretrained,
)
from perceivers.files.tensor_files import save_tensors


def main(folder: Path) -> None:
    torch.manual_seed(0)
    positions = Fourier(num_bands=3, max_resolution=7)
    schema = Schema(
        inputs={"points": PointSet(axes=2, channels=1, bounds=((0.0, 4.0), (0.0, 6.0)), positions=positions)},
        outputs={
            "label": Label(classes=("ant", "bee", "cat"), query_channels=7),
            "image": Image(size=(5, 7), channels=1, positions=positions, mean=(0.5,), std=(2.0,)),
        },
    )
    config = Config(
        LatentsConfig(num_latents=5, channels=12),
        EncoderConfig(),
        ProcessorConfig(num_heads=3, num_layers=2),
        DecoderConfig(),
    )
    model = PerceiverIO(schema, config).eval()
    points = {"coordinates": torch.rand(2, 11, 2) * 4, "values": torch.randn(2, 11, 1), "mask": torch.rand(2, 11) < 0.8}
    with torch.no_grad():
        outputs = model({"points": points})
    save_pretrained(model, folder)
    given = {f"in:{name}": tensor for name, tensor in points.items()}
    save_tensors(
        folder.with_suffix(".safetensors"), given | {f"out:{name}": tensor for name, tensor in outputs.items()}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
