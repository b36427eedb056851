"""The released architectures at a tiny size, with the parameters and outputs recorded from the official code."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.modalities.flow import Flow, FramePair
from perceivers.modalities.image import Image, Video
from perceivers.modalities.label import Label
from perceivers.modalities.points import Indices
from perceivers.modalities.position_encodings import Fourier, Learned
from perceivers.modalities.series import Audio
from perceivers.schema import Schema
from reference_files import (
    CROSS_ATTENTION,
    SELF_ATTENTION,
    Arrays,
    block,
    copy_haiku,
    read,
    read_config,
    relative_error,
    under,
)

TOLERANCE = 1e-5

Names = dict[str, str]
Sizes = dict[str, Any]


@dataclass
class Built:
    """A model without weights yet, and the names of its parameters in the recording."""

    model: PerceiverIO
    names: Names


def trunk_config(sizes: Sizes, decoder: DecoderConfig, input_padding: int = 0) -> Config:
    """Return the settings that the released models share."""
    return Config(
        latents=LatentsConfig(num_latents=sizes["n"], channels=sizes["d"]),
        encoder=EncoderConfig(channel_alignment="pad", min_padding=input_padding),
        processor=ProcessorConfig(
            num_heads=sizes["heads"], num_layers=sizes["layers"], num_blocks=sizes.get("blocks", 1)
        ),
        decoder=decoder,
    )


def trunk_names(sizes: Sizes, encoder: str, decoder: str) -> Names:
    names = {f"{encoder}/~/trainable_position_encoding": "trunk.latents"}
    names |= block(CROSS_ATTENTION, f"{encoder}/~/cross_attention", "trunk.encoder.0.cross_attention.")
    for layer in range(sizes["layers"]):
        haiku = f"{encoder}/~/self_attention" + (f"_{layer}" if layer else "")
        names |= block(SELF_ATTENTION, haiku, f"trunk.processor.0.layers.{layer}.")
    return names | block(CROSS_ATTENTION, f"{decoder}/cross_attention", "decoder.cross_attention.")


def imagenet(sizes: Sizes) -> Built:
    decoder = DecoderConfig(channel_alignment="pad", query_residual=sizes["dec_residual"])
    official = "classification_decoder/~/basic_decoder"
    names = trunk_names(sizes, "perceiver_encoder", official) | {
        f"{official}/~/trainable_position_encoding": "output_query.queries.label.table",
        f"{official}/output": "output_adapter.adapters.label.head",
    }
    image, image_names = {"fourier": fourier_image, "conv": conv_image, "learned": learned_image}[sizes["kind"]](sizes)
    schema = Schema(
        inputs={"image": image}, outputs={"label": Label(classes=sizes["classes"], query_channels=sizes["d"])}
    )
    return Built(PerceiverIO(schema, trunk_config(sizes, decoder)), names | image_names)


def fourier_image(sizes: Sizes) -> tuple[Image, Names]:
    positions = Fourier(num_bands=sizes["bands"], max_resolution=tuple(sizes["max_res"]))
    return Image(size=sizes["im"], positions=positions), {}


def conv_image(sizes: Sizes) -> tuple[Image, Names]:
    positions = Fourier(num_bands=sizes["bands"], max_resolution=tuple(sizes["max_res"]))
    official, ours = "image_preprocessor/~/conv2_d_downsample/~", "input_adapter.adapters.image.stem"
    return Image(size=sizes["im"], patch=4, stem="conv", positions=positions), {
        f"{official}/conv": f"{ours}.convolutions.0",
        f"{official}/batchnorm": f"{ours}.norms.0",
    }


def learned_image(sizes: Sizes) -> tuple[Image, Names]:
    positions = Learned(channels=sizes["pos"], project=sizes["pos"])
    inputs, ours = "image_preprocessor/~_build_network_inputs", "input_adapter.adapters.image"
    return Image(size=sizes["im"], embed=sizes["conv"], positions=positions), {
        "image_preprocessor/~/conv2_d": f"{ours}.stem",
        f"{inputs}/trainable_position_encoding": f"{ours}.positions.source.table",
        f"{inputs}/position_encoding_projector/linear": f"{ours}.positions.projection",
    }


def flow(sizes: Sizes) -> Built:
    frames = FramePair(size=tuple(sizes["size"]), embed=64, positions=Fourier(num_bands=sizes["bands"]))
    schema = Schema(inputs={"frames": frames}, outputs={"flow": Flow(of="frames")})
    official = "flow_decoder/~/basic_decoder"
    names = trunk_names(sizes, "perceiver_encoder", official) | {
        "image_preprocessor/patches_linear": "input_adapter.adapters.frames.embed",
        f"{official}/output": "output_adapter.adapters.flow.head",
    }
    return Built(PerceiverIO(schema, trunk_config(sizes, DecoderConfig(channel_alignment="pad"))), names)


def video(sizes: Sizes) -> Built:
    """The Fourier features of the input stop at the resolution of its patches, as do the queries of single pixels."""
    samples = sizes["frames"] * sizes["samples_per_frame"]
    clip = (sizes["frames"], sizes["im"], sizes["im"])
    patch = sizes["im"] // sizes["grid"]
    sound = Fourier(num_bands=sizes["a_bands"], max_resolution=samples)
    sight = Fourier(num_bands=sizes["v_bands"], max_resolution=(sizes["frames"], sizes["grid"], sizes["grid"]))
    schema = Schema(
        inputs={
            "audio": Audio(size=samples, patch=sizes["spp"], positions=sound, mask_prob=0.0),
            "image": Video(size=clip, patch=(1, patch, patch), positions=sight, mask_prob=0.0),
            "label": Label(classes=sizes["classes"], mask_prob=sizes["mask_label"], mask_at_eval=True),
        },
        outputs={
            "audio": Audio(size=samples, patch=sizes["spp"], positions=sound, coordinate_rule="exclusive"),
            "image": Video(size=clip, positions=sight, coordinate_rule="exclusive"),
            "label": Label(classes=sizes["classes"], query_channels=sizes["label_q"]),
        },
    )
    decoder = DecoderConfig(channel_alignment="pad", min_padding=2, output_channels=sizes["out"])
    model = PerceiverIO(schema, trunk_config(sizes, decoder, input_padding=4))
    return Built(model, video_names(sizes))


def video_names(sizes: Sizes) -> Names:
    official = "multimodal_decoder/~/basic_decoder"
    names = trunk_names(sizes, "encoder", official) | {
        f"{official}/output": "decoder.output",
        "classification_decoder/~/basic_decoder/~/trainable_position_encoding": "output_query.queries.label.table",
        "audio_postprocessor/linear": "output_adapter.adapters.audio.head",
        "projection_postprocessor/linear": "output_adapter.adapters.image.head",
        "classification_postprocessor/linear": "output_adapter.adapters.label.head",
    }
    for name in ("audio", "image", "label"):
        names[f"multimodal_preprocessor/{name}_padding"] = f"input_adapter.alignment.paddings.{name}"
        names[f"multimodal_preprocessor/{name}_mask_token"] = f"input_adapter.mask_tokens.{name}"
        names[f"multimodal_decoder/~decoder_query/{name}_padding"] = f"output_query.alignment.paddings.{name}"
    return names


def ask_imagenet(model: PerceiverIO, given: Arrays) -> Arrays:
    return {"y": model(given["images"])["label"]}


def ask_flow(model: PerceiverIO, given: Arrays) -> Arrays:
    return {"y": model(given["images"])["flow"]}


def ask_video(model: PerceiverIO, given: Arrays) -> Arrays:
    raw = {"audio": given["audio"], "image": given["images"], "label": given["label"]}
    points = {"image": Indices(given["sub_image"]), "audio": Indices(given["sub_audio"])}
    outputs = model(raw, points)
    return outputs | {"audio": outputs["audio"].flatten(1)}  # samples of consecutive patches


MODELS = {
    "imagenet_fourier": (imagenet, ask_imagenet),
    "imagenet_conv": (imagenet, ask_imagenet),
    "imagenet_learned": (imagenet, ask_imagenet),
    "flow": (flow, ask_flow),
    "video": (video, ask_video),
}


@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_the_official_ones(name: str) -> None:
    build, ask = MODELS[name]
    recorded, built = read(name), build(read_config(name))
    copy_haiku(built.model, under("param:", recorded), built.names, under("state:", recorded))
    with torch.no_grad():
        outputs = ask(built.model.eval(), under("in:", recorded))
    expected = under("out:", recorded)
    assert outputs.keys() == expected.keys()
    for key, output in outputs.items():
        assert relative_error(output, expected[key]) <= TOLERANCE, key


IMAGENET = {"im": 224, "n": 512, "d": 1024, "layers": 6, "blocks": 8, "heads": 8, "classes": 1000, "bands": 64}
FLOW = {"size": (368, 496), "n": 2048, "d": 512, "layers": 24, "heads": 16, "bands": 64}
VIDEO = {"frames": 16, "im": 224, "grid": 56, "samples_per_frame": 1920, "spp": 16, "classes": 700, "n": 784, "d": 512}
VIDEO |= {"layers": 8, "heads": 8, "a_bands": 192, "v_bands": 32, "out": 512, "label_q": 1024, "mask_label": 1.0}


@pytest.mark.parametrize(
    ("build", "sizes", "count"),
    [
        (imagenet, {"kind": "fourier", "max_res": (224, 224), "dec_residual": True}, 48_440_627),
        (imagenet, {"kind": "conv", "max_res": (56, 56), "dec_residual": True}, 48_646_522),
        (imagenet, {"kind": "learned", "pos": 256, "conv": 256, "dec_residual": False}, 62_255_848),
        (flow, {}, 41_057_134),
        (flow, {"n": 1024, "layers": 16}, 27_908_974),
        (video, {}, 19_858_855),
        (video, {"n": 392}, 19_658_151),
    ],
)
def test_released_sizes_have_the_official_number_of_parameters(build: Any, sizes: Sizes, count: int) -> None:
    """Counted with the official code; the second of flow is the paper's light model, that of video its smaller one."""
    released = {imagenet: IMAGENET, flow: FLOW, video: VIDEO}[build]
    with torch.device("meta"):
        model = build(released | sizes).model
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_original_perceiver_has_the_official_number_of_parameters() -> None:
    """One read, eight times the same block, the mean of the latents to the head (`ProjectionDecoder`)."""
    sizes = IMAGENET | {"max_res": (224, 224)}
    schema = Schema(inputs={"image": fourier_image(sizes)[0]}, outputs={"label": Label(classes=1000)})
    with torch.device("meta"):
        model = PerceiverIO(schema, trunk_config(sizes, DecoderConfig(kind="average", channel_alignment="pad")))
    assert sum(parameter.numel() for parameter in model.parameters()) == 42_135_859
