"""Properties of whole models: irrelevant changes have no effect, and every configuration behaves as documented."""

import copy
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import (
    BottleneckConfig,
    Config,
    DecoderConfig,
    EncoderConfig,
    LatentAxis,
    LatentsConfig,
    ProcessorConfig,
)
from perceivers.core.fast import epilogue
from perceivers.core.fast.algorithms import Algorithm
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.reading import Encoded
from perceivers.core.resampler import Resampler
from perceivers.modalities.flow import Flow, FramePair
from perceivers.modalities.image import Image, Video
from perceivers.modalities.label import Label, Labels
from perceivers.modalities.modality import Modality
from perceivers.modalities.numbers import Numbers
from perceivers.modalities.patches import space_to_depth
from perceivers.modalities.points import Coordinates, Indices, Queries
from perceivers.modalities.pointset import PointSet
from perceivers.modalities.position_encodings import Fourier, Learned
from perceivers.modalities.series import Series
from perceivers.modalities.text import Text
from perceivers.modalities.vectors import Vectors
from perceivers.schema import Schema
from perceivers.training.activation_checkpointing import recomputed
from perceivers.training.losses import Objective
from perceivers.training.masking import Masking
from reference_files import relative_error

B = 3
TOLERANCE = 1e-5

SMALL = Config(
    latents=LatentsConfig(num_latents=5, channels=14),
    encoder=EncoderConfig(num_heads=2, input_channels=22),
    processor=ProcessorConfig(num_heads=7, num_layers=2),
    decoder=DecoderConfig(num_heads=2, query_channels=26),
)
PADDED = dataclasses.replace(
    SMALL, encoder=EncoderConfig(channel_alignment="pad"), decoder=DecoderConfig(channel_alignment="pad")
)

IMAGE = Image(size=(5, 7), positions=Fourier(num_bands=3))
LABEL = Label(classes=11, query_channels=13)
POINTS = PointSet(axes=2, channels=3, positions=Fourier(num_bands=3, max_resolution=7))
SERIES = Series(size=11, channels=2, positions=Fourier(num_bands=3))
VECTORS = Vectors(channels=5, query_channels=3)
NUMBERS = Numbers(count=3, query_channels=7)
FRAMES = FramePair(size=(5, 7), embed=11, positions=Fourier(num_bands=3))

both_alignments = pytest.mark.parametrize("config", [SMALL, PADDED], ids=["project", "pad"])


def build(inputs: dict[str, Modality], outputs: dict[str, Modality], config: Config = SMALL) -> PerceiverIO:
    """Return a model in evaluation mode with every parameter random: zeros and ones would conceal a forgotten term."""
    model = PerceiverIO(Schema(inputs, outputs), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def image(batch: int = B) -> Tensor:
    return torch.randn(batch, 5, 7, 3)


def series(length: int = 11, batch: int = B) -> Tensor:
    return torch.randn(batch, length, 2)


def point_set(count: int = 7, batch: int = B) -> dict[str, Tensor]:
    mask = torch.ones(batch, count, dtype=torch.bool)
    return {"coordinates": 2 * torch.rand(batch, count, 2) - 1, "values": torch.randn(batch, count, 3), "mask": mask}


def prefixed(sets: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: array[:, :count] for name, array in sets.items()}


def sample(raw: Any, index: int) -> Any:
    """Return a batch of one sample."""
    return {k: sample(v, index) for k, v in raw.items()} if isinstance(raw, dict) else raw[index : index + 1]


# One model with everything: inputs with and without masks, outputs with positions, trained queries and input tokens.


@pytest.fixture(params=[SMALL, PADDED], ids=["project", "pad"])
def everything(request: pytest.FixtureRequest) -> PerceiverIO:
    inputs = {"image": IMAGE, "points": POINTS, "frames": FRAMES, "numbers": NUMBERS, "vectors": VECTORS}
    outputs = {"image": IMAGE, "label": LABEL, "flow": Flow(of="frames"), "series": SERIES}
    return build(inputs, outputs, request.param)


@pytest.fixture
def raw() -> dict[str, Any]:
    points = point_set()
    points["mask"] = torch.arange(7) < torch.tensor([[7], [2], [5]])
    numbers = torch.tensor([[1.0, -2.0, 3.0], [0.5, float("nan"), 1.0], [float("nan")] * 3])
    return {
        "image": image(),
        "points": points,
        "frames": torch.randn(B, 2, 5, 7, 3),
        "numbers": numbers,
        "vectors": torch.randn(B, 2, 5),
    }


def test_shapes_of_all_outputs(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    shapes = {name: tuple(output.shape) for name, output in everything(raw).items()}
    assert shapes == {"image": (B, 5, 7, 3), "label": (B, 11), "flow": (B, 5, 7, 2), "series": (B, 11, 2)}


def test_encode_then_decode_is_forward(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    points = {"image": Indices(torch.tensor([3, 34]))}
    for asked in (None, points):
        expected = everything(raw, asked)
        encoded = everything.encode(raw)
        for _ in range(2):  # decoding twice gives the same
            outputs = everything.decode(encoded, asked)
            assert all(torch.equal(outputs[name], expected[name]) for name in expected)


def test_a_batch_of_one_is_a_row_of_the_batch(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    expected = everything(raw)
    for index in range(B):
        for name, output in everything(sample(raw, index)).items():
            assert relative_error(output, expected[name][index : index + 1]) <= TOLERANCE


def test_outputs_do_not_depend_on_which_are_asked_for(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    encoded = everything.encode(raw)
    expected = everything.decode(encoded)
    for name in expected:
        alone = everything.decode(encoded, outputs=[name])
        assert list(alone) == [name]
        assert relative_error(alone[name], expected[name]) <= TOLERANCE


def test_a_saved_state_computes_the_same_bitwise(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    file = io.BytesIO()
    torch.save(everything.state_dict(), file)
    file.seek(0)
    torch.manual_seed(2)
    other = PerceiverIO(everything.schema, everything.config).eval()
    assert not torch.equal(other(raw)["label"], everything(raw)["label"])
    other.load_state_dict(torch.load(file, weights_only=True))
    expected = everything(raw)
    assert all(torch.equal(output, expected[name]) for name, output in other(raw).items())


def test_models_are_made_on_the_meta_device(everything: PerceiverIO) -> None:
    with torch.device("meta"):
        model = PerceiverIO(everything.schema, everything.config)
    shapes, meta = ({name: x.shape for name, x in m.state_dict().items()} for m in (everything, model))
    assert meta == shapes
    assert all(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(everything.state_dict(), assign=True)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_gradients_reach_every_parameter(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    sum(output.square().sum() for output in everything(raw).values()).backward()
    for name, parameter in everything.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_copy_computes_the_same(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    expected = everything(raw)
    assert all(torch.equal(output, expected[name]) for name, output in copy.deepcopy(everything)(raw).items())


def halved(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: halved(value) for name, value in x.items()}
    return x.bfloat16() if x.is_floating_point() else x


def test_a_bfloat16_model_is_near(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    expected = everything(raw)
    for name, output in everything.bfloat16()(halved(raw)).items():
        assert output.dtype == torch.bfloat16
        assert relative_error(output.float(), expected[name]) <= 0.1


# Sequence and number of tokens.


@both_alignments
def test_the_order_of_points_does_not_matter(config: Config) -> None:
    model = build({"points": POINTS}, {"label": LABEL}, config)
    raw = point_set()
    raw["mask"][1, 3:] = False
    expected = model({"points": raw})["label"]
    order = torch.randperm(7)
    permuted = {name: array[:, order] for name, array in raw.items()}
    assert relative_error(model({"points": permuted})["label"], expected) <= TOLERANCE
    other = raw | {"coordinates": permuted["coordinates"]}  # coordinates permuted without their values: another set
    assert relative_error(model({"points": other})["label"], expected) > 100 * TOLERANCE


def padded_point_set(raw: dict[str, Tensor], filling: float = 100.0) -> dict[str, Tensor]:
    longer = {name: functional.pad(raw[name], (0, 0, 0, 4), value=filling) for name in ("coordinates", "values")}
    return longer | {"mask": functional.pad(raw["mask"], (0, 4))}


def padded_array(raw: Tensor, filling: float = 100.0) -> dict[str, Tensor]:
    values = functional.pad(raw, (0, 0, 0, 4), value=filling)
    return {"values": values, "mask": (torch.arange(values.shape[1]) < raw.shape[1]).expand(values.shape[:2])}


@both_alignments
@pytest.mark.parametrize(
    ("spec", "given", "pad"),
    [
        (POINTS, point_set(), padded_point_set),
        (POINTS, point_set(), partial(padded_point_set, filling=float("nan"))),
        (SERIES, series(), padded_array),
        (SERIES, series(), partial(padded_array, filling=float("nan"))),
        (dataclasses.replace(SERIES, patch=2, size=10), series(10), padded_array),
        (dataclasses.replace(SERIES, stem="strided", patch=2), series(12), padded_array),
        (VECTORS, torch.randn(B, 7, 5), padded_array),
        (VECTORS, torch.randn(B, 7, 5), partial(padded_array, filling=float("nan"))),
    ],
    ids=["points", "nan points", "series", "nan series", "patches", "strided", "vectors", "nan vectors"],
)
def test_padding_does_not_matter(config: Config, spec: Modality, given: Any, pad: Callable[[Any], Any]) -> None:
    model = build({"given": spec}, {"label": LABEL}, config)
    expected = model({"given": given})["label"]
    assert relative_error(model({"given": pad(given)})["label"], expected) <= TOLERANCE


@both_alignments
def test_ragged_batches_are_their_samples(config: Config) -> None:
    """Several inputs of different length in each sample; one sample has no points, another no series."""
    model = build({"points": POINTS, "series": SERIES}, {"label": LABEL}, config)
    points, long = point_set(), series()
    lengths = {"points": [7, 2, 0], "series": [5, 0, 11]}
    points["mask"] = torch.arange(7) < torch.tensor(lengths["points"])[:, None]
    batch = {"values": long, "mask": torch.arange(11) < torch.tensor(lengths["series"])[:, None]}
    together = model({"points": points, "series": batch})["label"]
    for index in range(B):
        num_points, length = lengths["points"][index], lengths["series"][index]
        alone = {
            "points": prefixed(sample(points, index), num_points) if num_points else None,
            "series": long[index : index + 1, :length] if length else None,
        }
        assert relative_error(model(alone)["label"], together[index : index + 1]) <= TOLERANCE


def test_a_set_without_points_is_like_one_whose_points_are_all_masked() -> None:
    model = build({"points": POINTS}, {"label": LABEL})
    masked = point_set()
    masked["mask"][:] = False
    empty = model({"points": prefixed(masked, 0)})["label"]
    assert empty.isfinite().all()
    assert relative_error(model({"points": masked})["label"], empty) <= TOLERANCE


def test_series_of_any_length_are_read_with_steps_of_one_length() -> None:
    """The same step has the same features in a longer series, so cutting a series equals masking its end."""
    model = build({"series": SERIES}, {"label": LABEL})
    long = series(17)
    masked = {"values": long, "mask": (torch.arange(17) < 7).expand(B, -1)}
    assert relative_error(model({"series": long[:, :7]})["label"], model({"series": masked})["label"]) <= TOLERANCE


@pytest.mark.parametrize("size", [(11, 13), (3, 2), (5, 7)], ids=str)
def test_images_of_any_size_are_read_with_positions_from_end_to_end(size: tuple[int, int]) -> None:
    """Learned positions are resized as a picture is; an image output made of such tokens shows it."""
    spec = dataclasses.replace(IMAGE, positions=Learned(channels=11))
    adapter = build({"image": spec}, {"label": LABEL}).input_adapter.adapters["image"]
    pixels = torch.randn(B, *size, 3)
    segment = adapter(pixels)
    picture = adapter.positions.source.table.T.unflatten(1, (5, 7))[None]
    stretched = functional.interpolate(picture, size, mode="bilinear", align_corners=True)[0].movedim(0, -1)
    expected = torch.cat([pixels, stretched.expand(B, *stretched.shape)], dim=-1).flatten(1, 2)
    assert segment.grid == size
    assert relative_error(segment.dense(torch.float32), expected) <= TOLERANCE


@pytest.mark.parametrize("positions", [Fourier(num_bands=3), Learned(channels=11)])
def test_models_take_images_of_any_size(positions: Fourier | Learned) -> None:
    model = build({"image": dataclasses.replace(IMAGE, positions=positions)}, {"label": LABEL})
    for size in ((11, 13), (3, 2), (1, 1)):
        pixels = torch.randn(B, *size, 3, requires_grad=True)
        model(pixels)["label"].square().sum().backward()
        assert pixels.grad.isfinite().all()
        assert pixels.grad.any(dim=-1).all()  # every pixel has an effect


# Queries.


def chunks(count: int) -> list[Tensor]:
    """Return random subsets of the positions that cover all of them."""
    return list(torch.randperm(count).split(11))


@both_alignments
@pytest.mark.parametrize(
    "spec",
    [
        IMAGE,
        dataclasses.replace(IMAGE, coordinate_rule="exclusive"),
        dataclasses.replace(IMAGE, positions=Learned(channels=11)),
        dataclasses.replace(IMAGE, size=(10, 21), patch=(2, 3)),
        dataclasses.replace(IMAGE, mean=(1.0, 2.0, 3.0), std=(5.0, 7.0, 11.0)),
        Video(size=(2, 3, 5), positions=Fourier(num_bands=2)),
    ],
    ids=["inclusive", "exclusive", "learned", "patches", "units", "video"],
)
def test_decoding_in_chunks_is_decoding_whole(config: Config, spec: Image | Video) -> None:
    model = build({"vectors": VECTORS}, {"out": spec, "label": LABEL}, config)
    encoded = model.encode({"vectors": torch.randn(B, 2, 5)})
    whole = model.decode(encoded)
    rows = space_to_depth(whole["out"], spec.steps).flatten(1, -2)
    for index in chunks(rows.shape[1]):
        part = model.decode(encoded, {"out": Indices(index)})
        assert relative_error(part["out"], rows[:, index]) <= TOLERANCE
        assert relative_error(part["label"], whole["label"]) <= TOLERANCE


@both_alignments
def test_flow_in_chunks_is_flow_whole(config: Config) -> None:
    model = build({"frames": FRAMES}, {"flow": Flow(of="frames")}, config)
    encoded = model.encode(torch.randn(B, 2, 3, 11, 3))
    whole = model.decode(encoded)["flow"]
    assert whole.shape == (B, 3, 11, 2)
    for index in chunks(33):
        part = model.decode(encoded, {"flow": Indices(index)})["flow"]
        assert relative_error(part, whole.flatten(1, 2)[:, index]) <= TOLERANCE


@pytest.mark.parametrize("output", ["image", "flow"])
def test_each_sample_may_be_asked_at_its_own_places(everything: PerceiverIO, raw: dict[str, Any], output: str) -> None:
    encoded = everything.encode(raw)
    rows = everything.decode(encoded)[output].flatten(1, 2)
    index = torch.randint(35, (B, 4))
    part = everything.decode(encoded, {output: Indices(index)})[output]
    assert relative_error(part, rows[torch.arange(B)[:, None], index]) <= TOLERANCE


def test_places_that_are_not_asked_for_do_not_matter(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    encoded = everything.encode(raw)
    index, mask = torch.randint(35, (B, 4)), torch.tensor([[True] * 4, [True, False, True, True], [False] * 4])
    masked, expected = (everything.decode(encoded, {"image": Indices(index, m)})["image"] for m in (mask, None))
    assert relative_error(masked[mask], expected[mask]) <= TOLERANCE
    nothing = masked[~mask]  # outputs of masked queries
    assert relative_error(nothing, nothing[:1].expand_as(nothing)) <= TOLERANCE


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "spec",
    [
        IMAGE,
        dataclasses.replace(IMAGE, coordinate_rule="exclusive"),
        dataclasses.replace(IMAGE, positions=Learned(channels=11)),
        dataclasses.replace(IMAGE, size=(10, 21), patch=(2, 3)),
        dataclasses.replace(SERIES, size=35),
    ],
    ids=["inclusive", "exclusive", "learned", "patches", "series"],
)
def test_coordinates_of_places_are_the_places(spec: Image | Series, shared: bool) -> None:
    model = build({"vectors": VECTORS}, {"out": spec})
    encoded = model.encode({"vectors": torch.randn(B, 2, 5)})
    index = torch.randint(35, (11,) if shared else (B, 11))
    places = torch.stack(torch.unravel_index(index, spec.grid), dim=-1).float()
    at_index, at_places = (model.decode(encoded, {"out": p})["out"] for p in (Indices(index), Coordinates(places)))
    assert relative_error(at_places, at_index) <= TOLERANCE
    between = model.decode(encoded, {"out": Coordinates(places + 0.5)})["out"]
    assert relative_error(between, at_index) > 100 * TOLERANCE


def test_points_may_be_asked_at_any_coordinates_of_each_sample() -> None:
    spec = dataclasses.replace(POINTS, bounds=((-2.0, 2.0), (3.0, 7.0)), mean=(1.0, 2.0, 3.0), std=(5.0, 7.0, 11.0))
    model = build({"points": spec}, {"points": spec})
    encoded = model.encode({"points": point_set()})
    coordinates = torch.rand(B, 7, 2)
    whole = model.decode(encoded, {"points": Coordinates(coordinates)})["points"]
    assert whole.shape == (B, 7, 3)
    mask = torch.arange(7) < torch.tensor([[7], [2], [5]])
    ragged = model.decode(encoded, {"points": Coordinates(coordinates, mask)})["points"]
    assert relative_error(ragged[mask], whole[mask]) <= TOLERANCE
    shared = model.decode(encoded, {"points": Coordinates(coordinates[0])})["points"]
    assert relative_error(shared[0], whole[0]) <= TOLERANCE


def test_queries_of_the_callers_own() -> None:
    model = build({"vectors": VECTORS}, {"vectors": VECTORS})
    encoded = model.encode(torch.randn(B, 2, 5))
    queries = torch.randn(B, 7, 3)
    whole = model.decode(encoded, {"vectors": Queries(queries)})["vectors"]
    assert whole.shape == (B, 7, 5)
    for part in (slice(0, 2), slice(2, 7)):
        chunk = model.decode(encoded, {"vectors": Queries(queries[:, part])})["vectors"]
        assert relative_error(chunk, whole[:, part]) <= TOLERANCE
    shared = model.decode(encoded, {"vectors": Queries(queries[0])})["vectors"]
    assert relative_error(shared[0], whole[0]) <= TOLERANCE


def test_upsampling_by_convolution_is_decoded_whole_or_not_at_all() -> None:
    spec = Image(size=(20, 28), patch=4, stem="conv", positions=Fourier(num_bands=3))
    model = build({"image": spec}, {"image": spec})
    encoded = model.encode(torch.randn(B, 20, 28, 3))
    assert model.decode(encoded)["image"].shape == (B, 20, 28, 3)
    with pytest.raises(ValueError, match="mixes neighbouring pixels by convolution"):
        model.decode(encoded, {"image": Indices(torch.tensor([0]))})


@pytest.mark.parametrize("patch", [(1, 4, 4), (2, 4, 4), (4, 4, 4)], ids=str)
def test_video_is_upsampled_to_its_size(patch: tuple[int, int, int]) -> None:
    spec = Video(size=(4, 8, 12), patch=patch, stem="conv", positions=Fourier(num_bands=2))
    model = build({"vectors": VECTORS}, {"video": spec})
    assert model(torch.randn(B, 2, 5))["video"].shape == (B, 4, 8, 12, 3)


@pytest.mark.parametrize(
    "spec",
    [
        Image(size=(5, 7), patch=2, positions=Fourier(num_bands=3)),
        Image(size=(5, 7), patch=4, stem="conv", positions=Fourier(num_bands=3)),
        Image(size=(9, 12), patch=3, stem="conv", positions=Fourier(num_bands=3)),
        Image(size=(5, 7), patch=2, stem="strided", positions=Fourier(num_bands=3)),
    ],
    ids=["patches", "conv", "conv by three", "strided"],
)
def test_outputs_have_their_declared_size_or_are_refused(spec: Image) -> None:
    """A prediction whose size differs from its target's would fail only at the first loss."""
    model = made_or_refused(lambda: build({"vectors": VECTORS}, {"image": spec}), "patch")
    assert model is None or model(torch.randn(B, 2, 5))["image"].shape == (B, *spec.size, 3)


@pytest.mark.parametrize(
    "spec",
    [
        Image(size=(16, 32), patch=(4, 16), stem="conv"),
        Video(size=(4, 16, 16), patch=(2, 4, 4), stem="conv"),
        Image(size=(16, 32), patch=4, stem="conv"),
        Video(size=(4, 16, 16), patch=(1, 4, 4), stem="conv"),
        Image(size=(16, 32), patch=(2, 4)),
        Image(size=(5, 7), patch=(2, 3), stem="strided"),
    ],
    ids=["conv 4 x 16", "conv 2 x 4 x 4", "conv", "conv video", "patches", "strided"],
)
def test_tokens_are_as_many_as_the_patches_or_are_refused(spec: Image | Video) -> None:
    """A convolutional stem reduces both axes of a picture equally, and leaves time as it is."""
    adapter = made_or_refused(spec.build_input, "patch")
    assert adapter is None or adapter(torch.randn(B, *spec.size, 3)).grid == spec.grid


def made_or_refused(make: Callable[[], Any], word: str) -> Any:
    """Return the result, or None if it is refused by a ValueError that contains the word."""
    try:
        return make()
    except ValueError as error:
        if word in str(error):
            return None
        raise


@pytest.mark.parametrize("index", [35, -1, -36])
@pytest.mark.parametrize("output", ["image", "flow"])
def test_places_outside_an_output_are_errors(
    everything: PerceiverIO, raw: dict[str, Any], output: str, index: int
) -> None:
    with pytest.raises(ValueError, match=f"index {index} is outside the 35 queries"):
        everything(raw, {output: Indices(torch.tensor([0, index]))})


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"label": Coordinates(torch.zeros(1, 2))}, "at Indices only, not at Coordinates"),
        ({"image": Queries(torch.zeros(1, 2))}, "at Indices only, not at Queries"),
        ({"points": Indices(torch.tensor([0]))}, "Coordinates"),
        ({"vectors": Indices(torch.tensor([0]))}, "Queries"),
        ({"vectors": Queries(torch.zeros(1, 2))}, "queries have 2 channels, expected 3"),
    ],
)
def test_points_of_the_wrong_kind_are_errors(points: dict[str, Any], message: str) -> None:
    model = build({"vectors": VECTORS}, {"image": IMAGE, "label": LABEL, "points": POINTS, "vectors": VECTORS})
    encoded = model.encode(torch.randn(B, 2, 5))
    with pytest.raises(ValueError, match=message):
        model.decode(encoded, points, outputs=list(points))


# Names.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m({"imgae": image()}), "unknown input 'imgae'; there are image, numbers; did you mean 'image'?"),
        (
            lambda m: m({"image": image()}, {"lable": Indices(torch.tensor([0]))}),
            "unknown output 'lable'; there are label, series; did you mean 'label'?",
        ),
        (
            lambda m: m.decode(m.encode({"image": image()}), outputs=["seris"]),
            "unknown output 'seris'; there are label, series; did you mean 'series'?",
        ),
        (lambda m: m({"xyz": image()}), "unknown input 'xyz'; there are image, numbers"),
        (lambda m: m(image()), "several inputs: give a dictionary of image, numbers"),
        (lambda m: m({"image": None}), "no input given: the model reads image, numbers"),
        (lambda m: m({}), "no input given: the model reads image, numbers"),
    ],
)
def test_unknown_names_are_errors_with_the_nearest_one(call: Callable[[PerceiverIO], Any], message: str) -> None:
    model = build({"image": IMAGE, "numbers": NUMBERS}, {"label": LABEL, "series": SERIES})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(model)


def test_an_output_that_asks_with_a_missing_input_is_left_out_or_says_which() -> None:
    model = build({"frames": FRAMES, "image": IMAGE}, {"flow": Flow(of="frames"), "label": LABEL})
    encoded = model.encode({"image": image()})
    assert list(model.decode(encoded)) == ["label"]
    with pytest.raises(ValueError, match="tokens of input 'frames', which was not given"):
        model.decode(encoded, outputs=["flow"])


@pytest.mark.parametrize("name", ["image_2", "values", "type", "keys", "training", "copy", "get", "ä"])
@both_alignments
def test_every_name_works_or_is_refused(name: str, config: Config) -> None:
    """Names of fields are arbitrary, but torch keeps submodules by name among a module's attributes."""
    inputs = {name: dataclasses.replace(IMAGE, mask_prob=0.5), "numbers": NUMBERS}
    schema = made_or_refused(lambda: Schema(inputs, {name: IMAGE, "label": LABEL}), f"name '{name}'")
    if schema is not None:
        out = PerceiverIO(schema, config)({name: image(), "numbers": torch.randn(B, 3)})
        assert out[name].shape == (B, 5, 7, 3)


def test_the_only_input_needs_no_name() -> None:
    model = build({"image": IMAGE}, {"label": LABEL})
    pixels = image()
    assert torch.equal(model(pixels)["label"], model({"image": pixels})["label"])


# Missing and masked inputs.


@both_alignments
def test_missing_inputs_are_left_out(config: Config) -> None:
    """None equals a missing input, and a sample whose tokens are all masked equals one without the input."""
    model = build({"image": IMAGE, "series": SERIES}, {"label": LABEL}, config)
    pixels, values = image(), series()
    without = model({"image": pixels})["label"]
    assert torch.equal(model({"image": pixels, "series": None})["label"], without)
    mask = torch.tensor([[True] * 11, [False] * 11, [True] * 11])
    mixed = model({"image": pixels, "series": {"values": values, "mask": mask}})["label"]
    given = model({"image": pixels, "series": values})["label"]
    assert relative_error(mixed[1], without[1]) <= TOLERANCE
    assert relative_error(mixed[[0, 2]], given[[0, 2]]) <= TOLERANCE
    assert relative_error(given, without) > 100 * TOLERANCE


MASKABLE = {
    "image": (dataclasses.replace(IMAGE, mask_prob=1.0, mask_at_eval=True), image()),
    "series": (dataclasses.replace(SERIES, mask_prob=1.0, mask_at_eval=True), series()),
    "label": (Label(classes=11, mask_prob=1.0, mask_at_eval=True), torch.tensor([3, 5, 7])),
    "labels": (Labels(classes=11, mask_prob=1.0, mask_at_eval=True), torch.ones(B, 11)),
    "numbers": (dataclasses.replace(NUMBERS, mask_prob=1.0, mask_at_eval=True), torch.randn(B, 3)),
}


@both_alignments
@pytest.mark.parametrize("kind", MASKABLE)
def test_a_missing_input_is_its_mask_token(config: Config, kind: str) -> None:
    """A missing maskable input has its usual number of tokens, all of them mask tokens."""
    spec, given = MASKABLE[kind]
    model = build({"vectors": VECTORS, "other": spec}, {"label": LABEL}, config)
    vectors = torch.randn(B, 2, 5)
    tokens, _ = model.tokens({"vectors": vectors})
    dense = tokens.segments["other"].dense(torch.float32)
    token = model.input_adapter.mask_tokens["other"]
    assert torch.equal(dense, token.expand_as(dense))
    missing = model({"vectors": vectors})["label"]
    missing.square().sum().backward()
    assert token.grad.any()
    masked = model({"vectors": vectors, "other": given})["label"]
    assert relative_error(masked, missing) <= TOLERANCE
    nn.init.normal_(token)
    assert relative_error(model({"vectors": vectors})["label"], missing) > 100 * TOLERANCE


PARTLY_MISSING = {
    "image": {"values": image(), "mask": torch.tensor([True, False, True])[:, None, None].expand(B, 5, 7)},
    "label": torch.tensor([3, -1, 7]),
    "labels": torch.tensor([[1.0], [float("nan")], [0.0]]).expand(B, 11),
    "numbers": torch.tensor([[1.0], [float("nan")], [0.0]]).expand(B, 3),
}


@pytest.mark.parametrize("kind", PARTLY_MISSING)
def test_an_input_missing_from_one_sample_is_its_mask_token_there(kind: str) -> None:
    """The result does not depend on whether other samples of the batch have the input."""
    spec = dataclasses.replace(MASKABLE[kind][0], mask_prob=0.0)
    model = build({"vectors": VECTORS, "other": spec}, {"label": LABEL})
    vectors = torch.randn(B, 2, 5)
    together = model({"vectors": vectors, "other": PARTLY_MISSING[kind]})["label"]
    alone = model({"vectors": vectors[1:2]})["label"]
    assert relative_error(together[1:2], alone) <= TOLERANCE


OTHER_SIZES = {
    "short series": (SERIES, (7, 2)),
    "long series": (SERIES, (17, 2)),
    "series, learned": (dataclasses.replace(SERIES, positions=Learned(channels=5)), (7, 2)),
    "patches": (dataclasses.replace(SERIES, size=33, patch=3), (15, 2)),
    "small image": (IMAGE, (5, 2, 3)),
    "small image, learned": (dataclasses.replace(IMAGE, positions=Learned(channels=5)), (3, 7, 3)),
    "large image": (IMAGE, (11, 7, 3)),
    "convolutions": (dataclasses.replace(IMAGE, size=(12, 12), stem="conv", patch=4, embed=6), (8, 12, 3)),
}


@both_alignments
@pytest.mark.parametrize("kind", OTHER_SIZES)
def test_an_input_missing_from_a_batch_of_another_size_has_as_many_mask_tokens_as_alone(
    config: Config, kind: str
) -> None:
    spec, shape = OTHER_SIZES[kind]
    model = build({"vectors": VECTORS, "other": dataclasses.replace(spec, mask_prob=0.0)}, {"label": LABEL}, config)
    vectors, values = torch.randn(B, 2, 5), torch.randn(B, *shape)
    mask = torch.ones(B, *shape[:-1], dtype=torch.bool)
    mask[1] = False
    alone = model({"vectors": vectors[1:2]})["label"]
    given = model({"vectors": vectors[::2], "other": values[::2]})["label"]
    raw = {"vectors": vectors, "other": {"values": values, "mask": mask}}
    for algorithm in (None, *get_args(Algorithm)):
        together = model(raw, algorithm=algorithm)["label"]
        assert relative_error(together[1:2], alone) <= TOLERANCE
        assert relative_error(together[::2], given) <= TOLERANCE
    own = model.read({"other": raw["other"]}) + model.read({"vectors": vectors})
    assert relative_error(model.decode(model.process(own))["label"], together) <= TOLERANCE


def test_mask_tokens_have_room_in_compiled_programs_too() -> None:
    model = build({"vectors": VECTORS, "series": dataclasses.replace(SERIES, mask_prob=0.0)}, {"label": LABEL})
    with torch.device("meta"):
        raw = {"values": torch.ones(B, 7, 2), "mask": torch.ones(B, 7, dtype=torch.bool)}
    assert model.input_adapter.adapters["series"](raw).num_tokens == 11


def test_an_input_of_no_fixed_size_is_left_out_though_it_has_a_mask_token() -> None:
    spec = dataclasses.replace(POINTS, mask_prob=0.5)
    model = build({"vectors": VECTORS, "points": spec}, {"label": LABEL})
    tokens, _ = model.tokens({"vectors": torch.randn(B, 2, 5)})
    assert list(tokens.segments) == ["vectors"]


@pytest.mark.parametrize("kind", MASKABLE)
def test_the_tokens_of_a_missing_input_are_where_the_model_is(kind: str) -> None:
    spec, _ = MASKABLE[kind]
    with torch.device("meta"):
        model = build({"vectors": VECTORS, "other": spec}, {"label": LABEL})
        vectors = torch.randn(B, 2, 5)
    tokens, _ = model.tokens({"vectors": vectors})
    segment = tokens.segments["other"]
    assert {x.device.type for x in (segment.content, segment.masked, segment.mask_token)} == {"meta"}


@pytest.mark.parametrize(
    ("prob", "at_eval", "training", "expected"),
    [
        (0.3, False, True, 0.3),
        (0.3, True, True, 0.3),
        (0.3, False, False, 0),
        (0.3, True, False, 0),
        (1.0, True, False, 1),
        (0.0, True, True, 0),
        (1.0, False, True, 1),
    ],
)
def test_tokens_are_masked_with_their_probability(prob: float, at_eval: bool, training: bool, expected: float) -> None:
    spec = dataclasses.replace(VECTORS, mask_prob=prob, mask_at_eval=at_eval)
    model = build({"vectors": spec}, {"label": LABEL}).train(training)
    count = 5000
    tokens, own = model.tokens(torch.randn(B, count, 5))
    token = model.input_adapter.mask_tokens["vectors"]
    hidden = (tokens.dense(torch.float32) == token).all(dim=-1).float()
    assert hidden.mean().item() == pytest.approx(expected, abs=0.02)
    if 0 < expected < 1:  # each sample is drawn separately
        assert not torch.equal(hidden[0], hidden[1])
    assert own["vectors"].masked is None


def test_an_evaluation_masks_tokens_by_record_and_place() -> None:
    model = build({"vectors": dataclasses.replace(VECTORS, mask_prob=0.5)}, {"label": LABEL})
    token = model.input_adapter.mask_tokens["vectors"]

    def masked(vectors: Tensor, first: int) -> Tensor:
        tokens, _ = model.tokens(vectors, masking=Masking({"vectors": 0.3}, seed=5, first=first))
        return (tokens.dense(torch.float32) == token).all(dim=-1)

    vectors = torch.randn(B, 5000, 5)
    whole = masked(vectors, 7)
    assert whole.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(masked(vectors[1:, :11], 8), whole[1:, :11])
    with pytest.raises(ValueError, match="masking and noise are for whole inputs"):
        model.encode(iter([vectors]), masking=Masking({}))


def test_an_output_asks_with_what_its_input_held_before_masking() -> None:
    spec = dataclasses.replace(FRAMES, mask_prob=1.0, mask_at_eval=True)
    model = build({"frames": spec, "image": IMAGE}, {"flow": Flow(of="frames")})
    frames = torch.randn(B, 2, 5, 7, 3)
    source = model.encode({"frames": frames}).sources["frames"]
    expected = model.input_adapter.adapters["frames"](frames)
    assert torch.equal(source.dense(torch.float32), expected.dense(torch.float32))


# Extending a schema.


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in model.state_dict().items()}


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"series": SERIES}, {}),
        ({"wide": Vectors(channels=101)}, {}),
        ({"frames": FRAMES}, {"flow": Flow(of="frames")}),
        ({}, {"series": SERIES}),
        ({}, {"wide": Vectors(channels=101, query_channels=103)}),
    ],
)
def test_projection_lets_inputs_and_outputs_be_added(inputs: dict[str, Modality], outputs: dict[str, Modality]) -> None:
    before = shapes_of(build({"image": IMAGE}, {"label": LABEL}))
    after = shapes_of(build({"image": IMAGE} | inputs, {"label": LABEL} | outputs))
    assert before.items() <= after.items()
    assert len(after) > len(before)
    added = [*inputs, *outputs]
    assert all(any(name in key.split(".") for name in added) for key in after.keys() - before.keys())


def test_padding_takes_the_widest() -> None:
    config = dataclasses.replace(
        PADDED,
        encoder=EncoderConfig(channel_alignment="pad", min_padding=3),
        decoder=DecoderConfig(channel_alignment="pad", min_padding=2),
    )
    model = build({"vectors": VECTORS, "image": IMAGE}, {"label": LABEL, "vectors": VECTORS}, config)
    assert model.input_adapter.channels == 17 + 3
    assert {name: len(x) for name, x in model.input_adapter.alignment.paddings.items()} == {"vectors": 15, "image": 3}
    assert model.output_query.channels == 13 + 2
    assert {name: len(x) for name, x in model.output_query.alignment.paddings.items()} == {"label": 2, "vectors": 12}


def test_a_schema_that_is_replaced_checks_the_calls() -> None:
    model = build({"vectors": VECTORS, "image": IMAGE}, {"label": LABEL})
    model.schema = Schema({"vectors": VECTORS}, {"label": LABEL})
    with pytest.raises(ValueError, match="unknown input 'image'; there are vectors"):
        model({"image": torch.zeros(1, *IMAGE.size, 3)})


# Read, process and write.


def trunk(num_reads: int, share_reads: str, num_blocks: int, share_blocks: str) -> Resampler:
    config = dataclasses.replace(
        SMALL,
        encoder=dataclasses.replace(SMALL.encoder, num_reads=num_reads, share_reads=share_reads, input_channels=None),
        processor=dataclasses.replace(SMALL.processor, num_blocks=num_blocks, share_blocks=share_blocks),
        decoder=DecoderConfig(),
    )
    return Resampler(config, 22).eval()


@pytest.mark.parametrize(
    ("num_reads", "share_reads", "num_blocks", "share_blocks", "expected"),
    [
        (1, "all_but_first", 1, "all", "r0 p0"),
        (1, "all_but_first", 3, "all", "r0 p0 p0 p0"),
        (1, "none", 3, "none", "r0 p0 p1 p2"),
        (3, "all_but_first", 4, "all", "r0 p0 r1 p0 r1 p0 p0"),
        (3, "all", 3, "all_but_first", "r0 p0 r0 p1 r0 p1"),
        (3, "none", 3, "none", "r0 p0 r1 p1 r2 p2"),
    ],
)
def test_order_and_sharing_of_stages(
    num_reads: int, share_reads: str, num_blocks: int, share_blocks: str, expected: str
) -> None:
    resampler = trunk(num_reads, share_reads, num_blocks, share_blocks)
    names = {stage: f"r{i}" for i, stage in enumerate(resampler.encoder)}
    names |= {stage: f"p{i}" for i, stage in enumerate(resampler.processor)}
    assert " ".join(names[stage] for stage in resampler.stages) == expected
    assert len(names) == len(set(expected.split()))


@pytest.mark.parametrize(("share", "different"), [("all", 1), ("all_but_first", 2), ("none", 5)])
def test_shared_blocks_are_counted_once(share: str, different: int) -> None:
    def count(resampler: Resampler) -> int:
        return sum(parameter.numel() for parameter in resampler.parameters())

    block = count(trunk(1, "none", 1, "all").processor)
    assert count(trunk(1, "none", 5, share)) == count(trunk(1, "none", 1, "all")) + (different - 1) * block


def test_the_stages_are_what_runs() -> None:
    resampler = trunk(3, "all_but_first", 4, "all_but_first")
    tokens = torch.randn(B, 7, 22)
    latents = resampler.latents[None].expand(B, -1, -1)
    for read, block in ((0, 0), (1, 1), (1, 1), (None, 1)):
        if read is not None:
            latents = resampler.encoder[read].cross_attention(latents, tokens)
        for layer in resampler.processor[block].layers:
            latents = layer(latents)
    assert relative_error(resampler(tokens), latents) <= TOLERANCE


def original_perceiver(outputs: dict[str, Modality]) -> PerceiverIO:
    config = Config(
        latents=SMALL.latents,
        encoder=dataclasses.replace(SMALL.encoder, num_reads=2),
        processor=dataclasses.replace(SMALL.processor, num_blocks=3),
        decoder=DecoderConfig(kind="average"),
    )
    return build({"image": IMAGE}, outputs, config)


def test_the_original_perceiver_asks_nothing() -> None:
    model = original_perceiver({"label": LABEL, "numbers": NUMBERS})
    assert list(model.output_query.parameters()) == list(model.decoder.parameters()) == []
    pixels = image()
    mean = model.encode(pixels).latents.mean(dim=1)
    for name, output in model(pixels).items():
        assert relative_error(output, model.output_adapter.adapters[name].head(mean)) <= TOLERANCE
    assert list(model.attention_maps(pixels)) == ["encoder"]


def test_the_original_perceiver_has_no_answer_of_several_rows() -> None:
    with pytest.raises(
        ValueError,
        match=r"output 'series': decoder.kind gives one query, the mean of the latents, but this output has 11",
    ):
        original_perceiver({"label": LABEL, "series": SERIES})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Config(encoder=EncoderConfig(num_reads=3), processor=ProcessorConfig(num_blocks=2)),
            "encoder.num_reads = 3 must be from 1 to processor.num_blocks = 2",
        ),
        (
            lambda: Config(encoder=EncoderConfig(channel_alignment="pad", input_channels=7)),
            "encoder.input_channels has no effect",
        ),
        (
            lambda: Config(decoder=DecoderConfig(channel_alignment="pad", query_channels=7)),
            "decoder.query_channels has no effect",
        ),
    ],
)
def test_settings_that_contradict_one_another_are_errors(make: Callable[[], Config], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# The trunk on plain tensors.


def test_a_resampler_takes_plain_tensors_with_a_mask() -> None:
    resampler = trunk(2, "none", 2, "none")
    tokens = torch.randn(B, 7, 22)
    mask = torch.arange(7) < torch.tensor([[7], [2], [5]])
    latents = resampler(tokens, mask)
    assert latents.shape == (B, 5, 14)
    for index, count in enumerate((7, 2, 5)):
        alone = resampler(tokens[index : index + 1, :count])
        assert relative_error(latents[index : index + 1], alone) <= TOLERANCE
    assert relative_error(resampler(tokens), latents) > 100 * TOLERANCE


def test_a_resampler_trains_in_a_plain_loop() -> None:
    resampler = trunk(1, "none", 1, "all").train()
    tokens, target = torch.randn(B, 7, 22), torch.randn(B, 5, 14)
    optimiser = torch.optim.SGD(resampler.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        loss = (resampler(tokens) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


# Attention maps.


def test_attention_maps(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    """The encoder's weights over all tokens of all inputs together; absent tokens have none."""
    maps = everything.attention_maps(raw)
    num_heads = everything.config.encoder.num_heads
    sizes = {"image": 35, "points": 7, "frames": 35, "numbers": 1, "vectors": 2}
    assert {name: tuple(x.shape) for name, x in maps["encoder"].items()} == {
        name: (B, num_heads, 5, size) for name, size in sizes.items()
    }
    assert torch.allclose(sum(x.sum(dim=-1) for x in maps["encoder"].values()), torch.ones(B, num_heads, 5))
    absent = ~raw["points"]["mask"][:, None, None].expand(B, num_heads, 5, 7)
    assert (maps["encoder"]["points"][absent] == 0).all()
    assert (maps["encoder"]["points"][~absent] > 0).all()
    for name, queries in {"image": 35, "label": 1, "flow": 35, "series": 11}.items():
        assert maps["decoder"][name].shape == (B, num_heads, queries, 5)
        assert torch.allclose(maps["decoder"][name].sum(dim=-1), torch.ones(B, num_heads, queries))


def test_attention_maps_at_points(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    index = torch.tensor([34, 3])
    some = everything.attention_maps(raw, {"image": Indices(index)})["decoder"]["image"]
    assert relative_error(some, everything.attention_maps(raw)["decoder"]["image"][:, :, index]) <= TOLERANCE


# Every setting has an effect.

BASE = Config(
    latents=LatentsConfig(num_latents=5, channels=14),
    encoder=EncoderConfig(input_channels=22, num_reads=3),
    processor=ProcessorConfig(num_heads=2, num_layers=1, num_blocks=4),
    decoder=DecoderConfig(query_channels=26),
)
STAGES = ("encoder", "processor", "decoder")
ROTARY = Rotary((Axis("y", 2.0, 9.0),))
PLACES = {"latents.places": (LatentAxis("y", 0.0, 5.0, 5),)}
TAKEN = {"latents.taken_from": "image", "encoder.input_channels": 14}
BOTTLENECK = {"bottleneck": BottleneckConfig(channels=3)}
# The value, and further settings without which it would have no effect or be refused.
Change = tuple[Any, dict[str, Any]]


def block_changes(stage: str) -> dict[str, Change]:
    """Return changes of the settings that all stages have."""
    rotary = {f"{stage}.rotary": ROTARY, f"{stage}.num_heads": 1, **PLACES}
    return {
        f"{stage}.num_heads": (1 if stage == "processor" else 2, {}),
        f"{stage}.num_kv_heads": (1, {f"{stage}.num_heads": 2}),
        f"{stage}.qk_channels": (6, {}),
        f"{stage}.v_channels": (6, {}),
        f"{stage}.qk_norm": (True, {}),
        f"{stage}.qk_init_gain": (3.0, {}),
        f"{stage}.rotary": (ROTARY, PLACES),
        f"{stage}.rotary.axes": ((Axis("y", 2.0, 9.0), Axis("x")), rotary),
        f"{stage}.rotary.axes.0.name": ("x", rotary),
        f"{stage}.rotary.axes.0.min_wavelength": (3.0, rotary),
        f"{stage}.rotary.axes.0.max_wavelength": (8.0, rotary),
        f"{stage}.rotary.share": (1.0, rotary),
        f"{stage}.rotary.values": (True, rotary),
        f"{stage}.widening_factor": (3, {}),
        f"{stage}.activation": ("gelu_erf", {}),
        f"{stage}.gated": (True, {}),
        f"{stage}.norm": ("rms", {}),
        f"{stage}.norm_epsilon": (0.1, {}),
        f"{stage}.qkv_bias": (False, {}),
        f"{stage}.output_bias": (False, {}),
        f"{stage}.mlp_bias": (False, {}),
        f"{stage}.conditioned": (True, {}),
        f"{stage}.layer_scale": (0.5, {}),
        f"{stage}.stochastic_depth": (0.5, {}),
        f"{stage}.dropout": (0.5, {}),
        f"{stage}.attention_dropout": (0.5, {}),
    }


CHANGES: dict[str, Change] = {
    "latents.num_latents": (7, {}),
    "latents.channels": (22, {}),
    "latents.init_std": (0.5, {}),
    "latents.sinusoidal_length": (11, {}),
    "latents.places": (PLACES["latents.places"], {"encoder.rotary": ROTARY}),
    "latents.places.0.name": ("x", {"encoder.rotary": ROTARY, **PLACES}),
    "latents.places.0.start": (-1.0, {"encoder.rotary": ROTARY, **PLACES}),
    "latents.places.0.stop": (7.0, {"encoder.rotary": ROTARY, **PLACES}),
    "latents.places.0.count": (1, {"encoder.rotary": ROTARY, **PLACES}),
    "latents.per_place": (1, PLACES),
    "latents.taken_from": ("image", {"encoder.input_channels": 14}),
    "latents.rule": ("strided", TAKEN),
    "latents.token_map": (True, TAKEN),
    **{name: change for stage in STAGES for name, change in block_changes(stage).items()},
    "encoder.qk_init_gain": (3.0, {"encoder.input_channels": 14}),
    "decoder.qk_init_gain": (3.0, {"decoder.query_channels": 14}),
    "encoder.query_residual": (False, {}),
    "encoder.channel_alignment": ("pad", {"encoder.input_channels": None}),
    "encoder.input_channels": (10, {}),
    "encoder.min_padding": (3, {"encoder.channel_alignment": "pad", "encoder.input_channels": None}),
    "encoder.num_reads": (2, {}),
    "encoder.share_reads": ("none", {}),
    "encoder.attend_latents": (True, {"encoder.input_channels": 14}),
    "processor.num_layers": (2, {}),
    "processor.num_blocks": (3, {}),
    "processor.share_blocks": ("none", {}),
    "processor.final_norm": (True, {}),
    "decoder.kind": ("average", {}),
    "decoder.num_layers": (2, {}),
    "decoder.self_attention": (True, {}),
    "decoder.final_norm": (True, {}),
    "decoder.query_residual": (True, {}),
    "decoder.channel_alignment": ("pad", {"decoder.query_channels": None}),
    "decoder.query_channels": (10, {}),
    "decoder.min_padding": (3, {"decoder.channel_alignment": "pad", "decoder.query_channels": None}),
    "decoder.output_channels": (17, {}),
    "bottleneck": (BOTTLENECK["bottleneck"], {}),
    "bottleneck.channels": (5, BOTTLENECK),
    "bottleneck.weight": (0.5, BOTTLENECK),
    "bottleneck.free_bits": (7.0, BOTTLENECK),
    "bottleneck.warmup_steps": (3, BOTTLENECK),
    "bottleneck.sample": (False, BOTTLENECK),
    "trunk": ("transformer", {}),
}


def changed(settings: Any, changes: dict[str, Any]) -> Any:
    """Return settings with these values, each given by its path, such as "encoder.rotary.axes.0.name"."""
    direct: dict[str, Any] = {}
    inside: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            inside.setdefault(name, {})[rest] = value
        else:
            direct[name] = value
    if isinstance(settings, tuple):
        return tuple(changed(item, inside.get(str(number), {})) for number, item in enumerate(settings))
    direct |= {name: changed(getattr(settings, name), part) for name, part in inside.items()}
    return dataclasses.replace(settings, **direct)


def settings_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """Yield the paths of all settings of a config, with those of optional parts and of the first of several parts."""
    for name, hint in get_type_hints(kind).items():
        inner = [part for part in (hint, *get_args(hint)) if dataclasses.is_dataclass(part)]
        if inner[:1] != [hint]:
            yield prefix + name
        if inner:
            yield from settings_of(inner[0], f"{prefix}{name}.{'0.' if get_origin(hint) is tuple else ''}")


def run_training(config: Config) -> tuple[dict[str, torch.Size], Tensor]:
    """Return the shapes of the parameters, and outputs and losses in training mode, under one seed."""
    torch.manual_seed(3)
    picture = dataclasses.replace(IMAGE, axis_names=("y", "x"))
    role: Any = "condition" if any(getattr(config, stage).conditioned for stage in STAGES) else "read"
    inputs = {"image": picture, "numbers": dataclasses.replace(NUMBERS, role=role)}
    outputs = {"label": LABEL, "numbers": NUMBERS} | ({"image": picture} if config.decoder.kind == "query" else {})
    objective = Objective(PerceiverIO(Schema(inputs, outputs), config).train())
    torch.manual_seed(4)
    raw = {"image": image(), "numbers": torch.randn(B, 3)}
    out = objective.model(raw)
    losses = objective({"inputs": raw, "targets": {"label": torch.tensor([0, 3, 1])}})
    in_step = [loss * objective.warmup(2).get(name, 1.0) for name, loss in losses.items()]
    return shapes_of(objective.model), torch.cat([x.flatten() for x in (*out.values(), *in_step)])


def test_every_setting_is_tried() -> None:
    assert {*settings_of(Config)} == CHANGES.keys()


@pytest.mark.filterwarnings("ignore:trunk. transformer reads no latents")
@pytest.mark.filterwarnings("ignore:.*rotary. axis .* has no effect")
@pytest.mark.parametrize("setting", CHANGES)
def test_every_setting_has_an_effect(setting: str) -> None:
    value, others = CHANGES[setting]
    base = changed(BASE, others)
    shapes, outputs = run_training(base)
    other_shapes, other_outputs = run_training(changed(base, {setting: value}))
    assert shapes != other_shapes or not torch.equal(outputs, other_outputs)


def test_the_same_settings_have_the_same_effect() -> None:
    """Without this, the test before would show nothing."""
    (shapes, outputs), (same_shapes, same_outputs) = (run_training(changed(BASE, {})) for _ in range(2))
    assert shapes == same_shapes
    assert torch.equal(outputs, same_outputs)


@pytest.mark.parametrize("section", STAGES)
@pytest.mark.parametrize("field", ["dropout", "attention_dropout", "stochastic_depth"])
def test_dropout_is_of_training_only(section: str, field: str) -> None:
    model = build({"image": IMAGE}, {"label": LABEL}, changed(BASE, {f"{section}.{field}": 0.5}))
    plain = build({"image": IMAGE}, {"label": LABEL}, BASE)
    plain.load_state_dict(model.state_dict())
    pixels = image()
    assert torch.equal(model(pixels)["label"], plain(pixels)["label"])
    assert not torch.equal(model.train()(pixels)["label"], model(pixels)["label"])


def test_encoded_keeps_what_outputs_ask_with(everything: PerceiverIO, raw: dict[str, Any]) -> None:
    """The latents, and the tokens of only those inputs that serve as queries."""
    encoded = everything.encode(raw)
    assert isinstance(encoded, Encoded)
    assert encoded.latents.shape[0] == B
    assert list(encoded.sources) == ["frames"]


TIED = Schema(
    inputs={"text": Text(length=9, channels=26)},
    outputs={"restored": Text(length=9, key="text", of="text", query_channels=26)},
)


def tied_texts() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return TIED.collate([TIED.preprocess({"text": text}, rng, training=True) for text in ("abcdef", "xyz")])["inputs"]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("algorithm", ["projected", "absorbed"])
def test_every_algorithm_gives_a_tied_head_its_gradient(algorithm: Algorithm, recompute: bool) -> None:
    """Latents depend on the same embeddings: gradients flow through both, in each block."""
    torch.manual_seed(0)
    model = PerceiverIO(TIED, SMALL).double().train()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    texts = tied_texts()

    def gradients(algorithm: Algorithm) -> dict[str, Tensor]:
        model.zero_grad()
        with recomputed(model, recompute):
            model.decode(model.encode(texts, algorithm=algorithm), algorithm=algorithm)[
                "restored"
            ].square().sum().backward()
        return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}

    expected, found = gradients("dense"), gradients(algorithm)
    assert found.keys() == expected.keys()
    largest = max(x.abs().max() for x in expected.values())
    assert all(torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-12 * largest) for name in expected)


def test_a_head_that_does_not_name_what_it_borrows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = epilogue.modules_of
    monkeypatch.setattr(epilogue, "modules_of", lambda maps: own([getattr(one, "head", one) for one in maps]))
    model, texts = PerceiverIO(TIED, SMALL), tied_texts()
    loss = model.decode(model.encode(texts), algorithm="projected")["restored"].square().sum()
    with pytest.raises(RuntimeError, match=r"a parameter \[262, 26\] of another module is used in blocks"):
        loss.backward()
