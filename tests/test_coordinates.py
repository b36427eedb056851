"""Coordinates that modalities give their tokens and queries, by hand; models that act by them (rotary positions)."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers.core.block_config import Axis, Rotary
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentAxis, LatentsConfig, ProcessorConfig
from perceivers.core.coordinates import dense_coordinates
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.positions import GridCoordinates
from perceivers.core.reading import Encoded
from perceivers.modalities import (
    Audio,
    Flow,
    FramePair,
    Image,
    Label,
    PointSet,
    Records,
    Series,
    Spectrogram,
    Text,
    Vectors,
    Video,
)
from perceivers.modalities.fields import CategoryField, DateField, NumberField
from perceivers.modalities.places import check_axis_names
from perceivers.modalities.points import Coordinates, Indices, Part
from perceivers.modalities.position_encodings import Fourier, FourierPositions, GridPositions, Positions
from perceivers.pretrained.model_folder import load_model, save_model
from perceivers.runs.prediction import predict_rows
from perceivers.runs.schema_file import schema_file_format
from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.schema.preset import token_shapes

NOTHING = Encoded(torch.zeros(1, 1, 1))
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def along(segment):
    """Return the coordinates of the first sample's tokens, by axis."""
    return {name: [round(x, 5) for x in values[0].tolist()] for name, values in segment_coordinates(segment).items()}


pytestmark = pytest.mark.filterwarnings("ignore:.*rotary. axis .* has no effect")


def segment_coordinates(segment):
    return dense_coordinates(segment.coordinates)


def rotary(*names):
    return Rotary(tuple(Axis(name, 2.0, 40.0) for name in names), share=1.0)


def config(*names, places=None):
    """Return a config whose every stage acts by coordinates; the latents lie along the first axis or along `places`."""
    axes = places or (LatentAxis(names[0], 0.0, 10.0, 3),)
    return Config(
        LatentsConfig(num_latents=math.prod(axis.count for axis in axes), channels=14, places=axes),
        EncoderConfig(rotary=rotary(*names)),
        ProcessorConfig(num_layers=1, num_heads=1, rotary=rotary(*names)),
        DecoderConfig(rotary=rotary(*names)),
    )


def built(inputs, outputs, *names, **options):
    """Return a model in evaluation, in float64, whose attention is sharp enough for coordinates to matter."""
    torch.manual_seed(0)
    model = PerceiverIO(Schema(inputs, outputs), config(*names, **options)).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
    return model


# Inputs


def test_coordinates_of_a_picture_are_the_middles_of_its_patches():
    image = Image(size=(4, 9), channels=2, patch=(2, 3), axis_names=("y", "x")).build_input()
    segment = image(torch.zeros(5, 4, 9, 2))
    assert isinstance(segment.coordinates, GridCoordinates)
    assert along(segment) == {"y": [0.5] * 3 + [2.5] * 3, "x": [1, 4, 7] * 2}
    assert segment.batch_size == 5
    larger = image(torch.zeros(5, 2, 15, 2))
    assert along(larger) == {"y": [0.5] * 5, "x": [1, 4, 7, 10, 13]}


def test_a_strided_token_lies_where_its_values_come_from():
    image = Image(size=(4, 9), patch=(2, 3), stem="strided", axis_names=("y", "x")).build_input()
    assert along(image(torch.zeros(1, 4, 9, 3))) == {"y": [0] * 3 + [2] * 3, "x": [0, 3, 6] * 2}
    conv = Image(size=8, patch=4, stem="conv", embed=5, axis_names=("y", "x")).build_input()
    assert along(conv(torch.zeros(1, 8, 8, 3))) == {"y": [1.5, 1.5, 5.5, 5.5], "x": [1.5, 5.5] * 2}


@pytest.mark.parametrize(
    ("spec", "size", "expected"),
    [
        (Series(size=6, patch=3, axis_names=("time",)), (6, 1), {"time": [1, 4]}),
        (Series(size=6, patch=3, step=0.5, axis_names=("time",)), (9, 1), {"time": [0.5, 2, 3.5]}),
        (Audio(size=10, patch=5, axis_names=("time",)), (10, 1), {"time": [2, 7]}),
        (Audio(size=10, patch=5, rate=100, axis_names=("time",)), (10, 1), {"time": [0.02, 0.07]}),
        (Audio(size=10, patch=5, rate=100, step=2.0, axis_names=("time",)), (10, 1), {"time": [4, 14]}),
        (
            Video(size=(2, 3, 2), patch=(2, 3, 1), axis_names=("t", "y", "x")),
            (2, 3, 2, 3),
            {"t": [0.5] * 2, "y": [1] * 2, "x": [0, 1]},
        ),
        (
            Spectrogram(size=(3, 2), rate=100, hop=5, window=7, axis_names=("time", "band")),
            (3, 2, 1),
            {"time": [0.02, 0.02, 0.07, 0.07, 0.12, 0.12], "band": [0, 1] * 3},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_coordinates_on_a_grid_by_hand(spec, size, expected):
    assert along(spec.build_input()(torch.zeros(1, *size))) == expected
    assert along(replace(spec, size=size[:-1]).build_query({})(NOTHING, None)) == expected


def test_coordinates_of_frames():
    frames = torch.zeros(1, 2, 4, 8, 3)
    joined = FramePair(size=(4, 8), embed=5, axis_names=("y", "x")).build_input()(frames)
    assert along(joined) == {"y": [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8, "x": [*range(8)] * 4}
    separate = FramePair(size=(4, 8), stem="conv", embed=5, separate=True, axis_names=("t", "y", "x"), positions=None)
    adapter = separate.build_input()
    tokens = adapter(frames)
    assert adapter.channels == 5
    assert along(tokens) == {"t": [0, 0, 1, 1], "y": [1.5] * 4, "x": [1.5, 5.5] * 2}
    query = Flow().build_query({"frames": adapter})
    assert along(query(Encoded(torch.zeros(1, 1, 1), {"frames": tokens}), None)) == {
        "t": [0, 0],
        "y": [1.5, 1.5],
        "x": [1.5, 5.5],
    }


def test_coordinates_of_text_count_its_tokens():
    text = Text(length=7, channels=5, prefix=2, axis_names=("index",)).build_input()
    assert along(text(torch.zeros(3, 5, dtype=torch.long))) == {"index": [-2, -1, 0, 1, 2, 3, 4]}
    bare = Text(length=7, channels=5, positions=None, axis_names=("index",)).build_input()
    segment = bare(torch.zeros(3, 5, dtype=torch.long))
    assert segment.positions is None
    assert along(segment) == {"index": [0, 1, 2, 3, 4]}
    assert "positions.table" not in bare.state_dict()
    new = Text(length=3, query_channels=5, axis_names=("index",)).build_query({})
    assert along(new(NOTHING, None)) == {"index": [0, 1, 2]}
    assert along(new(NOTHING, Indices(torch.tensor([2, 0])))) == {"index": [2, 0]}
    restored = Text(length=7, query_channels=5, of="it").build_query({"it": bare})
    assert along(restored(Encoded(torch.zeros(1, 1, 1), {"it": segment}), None)) == {"index": [0, 1, 2, 3, 4]}


def test_coordinates_of_vectors_count_them():
    assert Vectors(channels=3).build_input().is_set
    vectors = Vectors(channels=3, axis_names=("index",)).build_input()
    assert not vectors.is_set
    assert along(vectors(torch.zeros(2, 5, 3))) == {"index": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("positions", [Fourier(num_bands=3, spacing="octaves"), None])
def test_coordinates_of_points_are_their_own_and_0_where_there_is_none(positions):
    spec = PointSet(axes=2, channels=3, bounds=((0.0, 7.0), (0.0, 7.0)), positions=positions, axis_names=("y", "x"))
    adapter = spec.build_input()
    coordinates = torch.tensor([[[2.5, 7.0], [-1.0, 0.25]], [[1.0, 3.0], [math.nan, math.inf]]])
    mask = torch.tensor([[True, True], [True, False]])
    segment = adapter({"coordinates": coordinates, "values": torch.ones(2, 2, 3), "mask": mask})
    assert segment.coordinates["y"].tolist() == [[2.5, -1], [1, 0]]
    assert segment.coordinates["x"].tolist() == [[7, 0.25], [3, 0]]
    assert adapter.channels == segment.raw_channels == 3 + (0 if positions is None else 14)
    asked = spec.build_query({})(NOTHING, Coordinates(coordinates, mask))
    assert all(torch.equal(asked.coordinates[axis], segment.coordinates[axis]) for axis in ("y", "x"))
    shared = spec.build_query({})(NOTHING, Coordinates(coordinates[0]))
    assert shared.coordinates["x"].tolist() == [[7, 0.25]]


def events(**options):
    fields = {"unit": CategoryField(classes=3, channels=5), "time": NumberField(), "kind": CategoryField(2, 5)}
    return Records(fields, **{"coordinate_fields": ("time",), **options})


COLUMNS = {
    "unit": torch.tensor([[0, 2], [1, -1]]),
    "time": torch.tensor([[0.5, 13.0], [math.nan, 2.0]]),
    "kind": torch.tensor([[1, 1], [0, 1]]),
}


def test_records_have_coordinates_and_a_sum_of_features():
    adapter = events(combine="sum").build_input()
    assert adapter.channels == 5
    unit, kind = (encoding.embedding.weight for encoding in adapter.encodings.fields)
    segment = adapter(COLUMNS)
    assert segment.mask.tolist() == [[True, True], [False, True]]
    assert segment.coordinates["time"].tolist() == [[0.5, 13], [0, 2]]
    assert torch.equal(segment.content[0, 1], unit[3] + kind[2])
    assert torch.equal(segment.content[1, 1], unit[0] + kind[2])
    beside = events().build_input()
    beside.load_state_dict(adapter.state_dict())
    assert beside.channels == 10
    assert torch.equal(beside(COLUMNS).content[0, 1], torch.cat([unit[3], kind[2]]))
    masked = adapter({**COLUMNS, "mask": torch.tensor([[True, False], [True, True]])})
    assert masked.mask.tolist() == [[True, False], [False, True]]
    assert masked.coordinates["time"].tolist() == [[0.5, 0], [0, 2]]


def test_fields_as_tokens_have_the_coordinates_of_their_record():
    segment = events(tokens="field", channels=7).build_input()(COLUMNS)
    assert segment.num_tokens == 4
    assert segment.coordinates["time"].tolist() == [[0.5, 0.5, 13, 13], [0, 0, 2, 2]]
    assert segment.mask.tolist() == [[True] * 4, [False, False, True, True]]


def test_dates_are_coordinates_in_days():
    spec = Records({"what": CategoryField(2, 3), "day": DateField()}, coordinate_fields=("day",), max_records=2)
    columns = spec.preprocess([{"what": 1, "day": "2000-01-03T12:00"}], np.random.default_rng(0), training=False)
    segment = spec.build_input()(spec.collate([columns]))
    assert segment.coordinates["day"].tolist() == [[2.5]]
    dummy = spec.build_input()(spec.dummy_input(1, torch.device("cpu")))
    assert dummy.mask.all()
    assert dummy.coordinates["day"].tolist() == [[0, 0]]


def test_ragged_and_missing_series_have_finite_coordinates():
    spec = Series(size=12, channels=2, patch=3, step=2.0, axis_names=("time",), mask_prob=0.0, mean=(0.0,), std=(1.0,))
    batch = spec.collate([np.ones((7, 2), np.float32), np.ones((2, 2), np.float32), None])
    adapter = spec.build_input()
    segment = adapter(batch)
    assert segment.mask.sum(1).tolist() == [3, 1, 0]
    absent = adapter.absent(torch.device("cpu"))
    assert along(absent) == along(segment) == {"time": [2, 8, 14, 20]}


@pytest.mark.parametrize(
    ("spec", "shape", "starts"),
    [
        (Series(size=6, channels=2, patch=3, step=0.25, axis_names=("time",)), (15, 2), [(0,), (6,)]),
        (Image(size=(4, 6), patch=(2, 3), axis_names=("y", "x"), channels=2), (8, 15, 2), [(0, 0), (4, 0)]),
    ],
    ids=["series", "image"],
)
def test_parts_have_the_coordinates_of_their_place(spec, shape, starts):
    adapter, x = spec.build_input(), torch.randn(1, *shape)
    cut = starts[1][0]
    parts = [Part(x[:, :cut], starts[0], shape[:-1]), Part(x[:, cut:], starts[1], shape[:-1])]
    whole = segment_coordinates(adapter(x))
    for name, expected in whole.items():
        found = torch.cat([segment_coordinates(adapter(part))[name] for part in parts], 1)
        assert torch.equal(found, expected)


def test_coordinates_far_into_a_long_series():
    spec = Series(size=4, patch=2, step=1 / 48_000, axis_names=("time",))
    part = Part(torch.zeros(1, 2, 1), (2 * 10**9,), (10**10,))
    expected = np.float32((2 * 10**9 + 0.5) / 48_000)
    assert segment_coordinates(spec.build_input()(part))["time"].tolist() == [[expected]]


# Queries


@pytest.mark.parametrize("positions", [Fourier(num_bands=2), None])
def test_queries_on_a_grid_have_the_same_coordinates_everywhere(positions):
    spec = Image(size=(4, 9), patch=(2, 3), axis_names=("y", "x"), positions=positions, query_channels=11)
    query = spec.build_query({})
    whole = query(NOTHING, None)
    assert isinstance(whole.coordinates, GridCoordinates)
    assert query.channels == whole.raw_channels == (10 if positions else 11)
    index = torch.tensor([4, 0])
    at_index, expected = query(NOTHING, Indices(index)), segment_coordinates(whole)
    at_place = query(NOTHING, Coordinates(torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.5, -1.0]])))
    for axis in ("y", "x"):
        assert torch.equal(at_index.coordinates[axis], expected[axis][:, index])
        assert torch.equal(at_place.coordinates[axis][:, :2], expected[axis][:, index])
    assert along(at_place) == {"y": [2.5, 0.5, 1.5], "x": [4, 1, -2]}
    torch.testing.assert_close(at_place.dense(torch.float32)[:, :2], at_index.dense(torch.float32))
    masked = Coordinates(torch.tensor([[1.0, 1.0], [math.nan, 0.0]]), torch.tensor([[True, False]]))
    assert along(query(NOTHING, masked)) == {"y": [2.5, 0], "x": [4, 0]}


def test_queries_without_positions_have_one_vector():
    for spec in (Image(size=(2, 3), positions=None, axis_names=("y", "x"), query_channels=7), points(positions=None)):
        query = spec.build_query({})
        (name,) = query.state_dict()
        assert name == "content.vector"
        queries = query(NOTHING, Coordinates(torch.rand(2, 5, 2)))
        assert torch.equal(queries.dense(torch.float32), query.content.vector.expand(1, 5, 7))


def points(**options):
    """Return points in a plane as an output."""
    bounds = ((0.0, 10.0), (0.0, 10.0))
    given = {"axes": 2, "channels": 3, "bounds": bounds, "axis_names": ("y", "x"), "query_channels": 7, **options}
    return PointSet(**{"positions": Fourier(num_bands=2, max_resolution=5), **given})


SESSIONS = {"session": Label(classes=5, role="query"), "seen": points(key="points")}
PLANE = {"places": (LatentAxis("y", 0.0, 10.0, 3), LatentAxis("x", 0.0, 10.0, 2))}


def seen(batch, count):
    return {"coordinates": 10 * torch.rand(batch, count, 2), "values": torch.randn(batch, count, 3)}


@pytest.mark.parametrize("positions", [Fourier(num_bands=2, max_resolution=5), None])
def test_an_input_is_the_content_of_queries_at_points(positions):
    model = built(SESSIONS, {"asked": points(of="session", positions=positions)}, "y", "x", **PLANE)
    assert model.output_query.queries["asked"].channels == 5 + (10 if positions else 0)
    raw = {"session": torch.tensor([0, 3]), "seen": seen(2, 11)}
    encoded = model.encode(raw)
    asked = 10 * torch.rand(2, 13, 2)
    whole = model.decode(encoded, {"asked": Coordinates(asked)})["asked"]
    chunks = [model.decode(encoded, {"asked": Coordinates(part)})["asked"] for part in asked.split(5, 1)]
    torch.testing.assert_close(torch.cat(chunks, 1), whole, **CLOSE)
    limited = model.decode(encoded, {"asked": Coordinates(asked)}, memory_limit="1MB")["asked"]
    torch.testing.assert_close(limited, whole, **CLOSE)
    # The session is the content of queries alone: it is not read, and another one gives other values.
    other = model.encode({**raw, "session": torch.tensor([1, 1])})
    assert torch.equal(other.latents, encoded.latents)
    assert not torch.allclose(model.decode(other, {"asked": Coordinates(asked)})["asked"], whole, atol=1e-3)
    # Without the session there is no query.
    alone = model.encode({"seen": raw["seen"]})
    with pytest.raises(ValueError, match=r"'asked': the queries .* are the tokens of input 'session', which was not"):
        model.decode(alone, {"asked": Coordinates(asked)}, outputs=["asked"])
    assert model.decode(model.encode(raw), {"asked": Coordinates(asked[:, :0])})["asked"].shape == (2, 0, 3)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_queries_of_one_vector_at_the_places_of_each_sample(share):
    schema = Schema({"seen": points(key="points")}, {"asked": points(positions=None)})
    turned = replace(rotary("y", "x"), share=share)
    sizes = config("y", "x", **PLANE)
    model = PerceiverIO(schema, replace(sizes, decoder=replace(sizes.decoder, rotary=turned))).eval()
    raw, asked = {"seen": {"coordinates": 10 * torch.rand(2, 5, 2), "values": torch.rand(2, 5, 3)}}, torch.rand(2, 7, 2)
    found = model.decode(model.encode(raw), {"asked": Coordinates(asked)})["asked"]
    for sample in range(2):
        one = {"seen": {name: x[[sample]] for name, x in raw["seen"].items()}}
        alone = model.decode(model.encode(one), {"asked": Coordinates(asked[[sample]])})["asked"]
        torch.testing.assert_close(found[[sample]], alone)


def test_an_input_of_queries_is_not_aligned_with_those_that_are_read():
    schema = Schema(SESSIONS, {"asked": points(of="session", positions=None)})
    for rule in ("project", "pad"):
        encoder = EncoderConfig(channel_alignment=rule, rotary=rotary("y", "x"))
        model = PerceiverIO(schema, replace(config("y", "x", **PLANE), encoder=encoder))
        alignment = model.input_adapter.alignment
        assert {*alignment.projections, *alignment.paddings} <= {"seen"}
        assert model.input_adapter.channels == (14 if rule == "project" else model.input_adapter.adapters.seen.channels)


def test_points_within_one_are_not_rounded():
    spec, x = points(bounds=((-1.0, 1.0), (-1.0, 1.0))), torch.rand(7, 2) * 1e-3
    assert torch.equal(spec.to_unit(x), x)
    assert spec.to_unit(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]


def test_a_sample_without_the_input_has_no_query():
    schema = Schema(SESSIONS, {"asked": points(of="session", key="points", positions=None)})
    schema = schema.fit([])
    model = PerceiverIO(schema, config("y", "x", **PLANE))
    value = {"coordinates": np.ones((4, 2)), "values": np.ones((4, 3))}
    rng = np.random.default_rng(0)
    records = [{"session": 2, "points": value}, {"session": None, "points": value}]
    batch = schema.collate([schema.preprocess(record, rng, training=True) for record in records])
    assert batch["targets"]["asked"]["mask"].sum(1).tolist() == [4, 0]
    losses = schema.losses(model(batch["inputs"], schema.points(batch["targets"])), batch["targets"])
    losses["asked"].backward()
    assert losses["asked"].isfinite()
    rows = list(predict_rows(model, records, batch_size=2, attribution=True))
    assert len(rows[0]["asked"]) == 4
    assert rows[0]["asked.from.seen"] is None  # the only input that is read
    assert rows[1] == {"asked": None, "asked.from.seen": None}


def test_an_input_of_several_tokens_is_no_content():
    schema = Schema({"seen": points()}, {"asked": points(of="seen")})
    with pytest.raises(ValueError, match=r"^input 'seen' has 64 tokens, but the content"):
        token_shapes(schema)
    model = PerceiverIO(schema, config("y", "x", **PLANE))
    with pytest.raises(
        ValueError, match=r"output 'asked': input 'seen' has 11 tokens, but the content of queries is a single"
    ):
        model({"seen": seen(2, 11)}, {"asked": Coordinates(torch.zeros(1, 2))})


# Models


def test_parts_read_by_rotary_latents_are_the_whole():
    series = Series(size=12, channels=2, patch=3, positions=None, axis_names=("time",), step=0.5)
    model = built({"it": series}, {"label": Label(classes=3)}, "time")
    x = torch.randn(2, 21, 2)
    parts = [{"it": Part(x[:, :9], (0,), (21,))}, {"it": Part(x[:, 9:], (9,), (21,))}]
    whole = model.encode(x).latents
    torch.testing.assert_close(model.encode(parts).latents, whole, **CLOSE)
    reading = model.read(parts[0]) + model.read(parts[1])
    torch.testing.assert_close(model.process(reading).latents, whole, **CLOSE)
    torch.testing.assert_close(model.encode(x, memory_limit="1MB").latents, whole, **CLOSE)
    moved = [{"it": Part(x[:, :9], (12,), (21,))}, {"it": Part(x[:, 9:], (0,), (21,))}]
    assert not torch.allclose(model.encode(moved).latents, whole, atol=1e-3)


def test_states_of_keys_count_their_bias_alike():
    """The latents, as keys, count it: so must the tokens, though their own softmax cancels it."""
    torch.manual_seed(0)
    inputs, encoder = {"it": Vectors(channels=7)}, EncoderConfig(attend_latents=True)
    sizes = Config(LatentsConfig(num_latents=5, channels=12), encoder, ProcessorConfig(1, num_layers=1))
    model = PerceiverIO(Schema(inputs, {"label": Label(classes=3)}), sizes).eval().double()
    torch.nn.init.normal_(model.trunk.encoder[0].cross_attention.attention.key.bias)
    x = torch.randn(2, 11, 7)
    whole = model.encode(x, algorithm="dense").latents
    for algorithm in ("projected", "absorbed"):
        torch.testing.assert_close(model.encode(x, algorithm=algorithm).latents, whole, **CLOSE)


def test_padding_does_not_change_a_ragged_series():
    series = Series(size=12, patch=3, positions=None, axis_names=("time",), mean=(0.0,), std=(1.0,))
    model = built({"it": series}, {"label": Label(classes=3)}, "time")
    short, long = np.random.default_rng(0).normal(size=(2, 9, 1)).astype(np.float32)
    batch = series.collate([short[:6], long])
    found = model.encode({"it": batch}).latents
    torch.testing.assert_close(found[:1], model.encode(torch.from_numpy(short[None, :6])).latents, **CLOSE)


@pytest.mark.parametrize("positions", [Fourier(num_bands=2), None])
def test_chunks_decoded_by_rotary_queries_are_the_whole(positions):
    image = Image(size=(6, 5), channels=2, patch=(2, 1), axis_names=("y", "x"), positions=positions, query_channels=11)
    model = built({"it": image}, {"out": image}, "y", "x", **PLANE)
    encoded = model.encode(torch.randn(2, 6, 5, 2))
    whole = model.decode(encoded)["out"]
    assert whole.flatten(1).std(1).min() > 1e-2
    patches = whole.unflatten(1, (3, 2)).transpose(2, 3).reshape(2, 15, 4)
    index = torch.randperm(15)
    for chunk in index.split(4):
        found = model.decode(encoded, {"out": Indices(chunk)})["out"]
        torch.testing.assert_close(found, patches[:, chunk], **CLOSE)
    for share in ((0, 2), (1, 2)):
        rows = slice(0, 2) if share[0] == 0 else slice(2, 6)
        torch.testing.assert_close(model.decode(encoded, share=share)["out"], whole[:, rows], **CLOSE)
    torch.testing.assert_close(model.decode(encoded, memory_limit="1MB")["out"], whole, **CLOSE)
    torch.testing.assert_close(model.decode(encoded, algorithm="dense")["out"], whole, **CLOSE)


def test_inputs_with_and_without_coordinates_are_read_together():
    inputs = {
        "image": Image(size=(5, 7), axis_names=("y", "x"), positions=None, mask_prob=0.0),
        "text": Text(length=11, channels=13, positions=None, axis_names=("index",)),
        "label": Label(classes=3),
        "units": events(combine="sum"),
    }
    outputs = {
        "again": Text(length=11, of="text", tied=False, query_channels=13),
        "sound": Audio(size=35, patch=5, rate=7, axis_names=("time",), positions=None, query_channels=5),
        "units": Records({"unit": CategoryField(classes=3)}, of="units"),
    }
    places = (LatentAxis("time", 0.0, 5.0, 2), LatentAxis("index", 0.0, 11.0, 3))
    model = built(inputs, outputs, "time", "index", "y", places=places)
    raw = {
        "image": torch.randn(2, 5, 7, 3),
        "text": torch.randint(0, 200, (2, 7)),
        "label": torch.tensor([0, 2]),
        "units": COLUMNS,
    }
    whole = model(raw)
    assert {name: x.shape for name, x in whole.items() if name != "units"} == {
        "again": (2, 7, 262),
        "sound": (2, 35, 1),
    }
    parts = [{name: value} for name, value in raw.items()]
    read = sum((model.read(part) for part in parts[1:]), model.read(parts[0]))
    again = model.decode(model.process(read))
    torch.testing.assert_close(again["again"], whole["again"], **CLOSE)
    torch.testing.assert_close(again["sound"], whole["sound"], **CLOSE)
    del raw["image"]  # mask tokens in its place have its coordinates
    assert model(raw)["sound"].isfinite().all()


@pytest.mark.parametrize("algorithm", [None, "dense"])
def test_gradients_reach_the_shared_vector_and_the_token(algorithm):
    model = built(SESSIONS, {"own": points(positions=None), "of": points(positions=None, of="session")}, "y", **PLANE)
    asked = Coordinates(10 * torch.rand(2, 13, 2))
    raw = {"session": torch.tensor([0, 3]), "seen": seen(2, 11)}
    found = model(raw, {"own": asked, "of": asked}, algorithm=algorithm)
    sum(x.square().sum() for x in found.values()).backward()
    gradient = model.output_query.queries["own"].content.vector.grad
    assert gradient.isfinite().all()
    assert gradient.any()


# Octaves


def test_octaves_by_hand():
    config = Fourier(num_bands=3, spacing="octaves")
    (features,) = FourierPositions(1, None, config).at(torch.tensor([[0.25]], dtype=torch.float64))
    half = math.sqrt(0.5)
    assert torch.allclose(features, torch.tensor([0.25, half, 1, 0, half, 0, -1], dtype=torch.float64), atol=1e-12)


def test_octaves_on_a_grid_are_those_at_its_coordinates():
    positions, places = Positions(2, (5, 7), Fourier(num_bands=3, spacing="octaves")), GridPositions((5, 7))
    tables = positions.on_grid(places)
    assert torch.equal(tables.dense(torch.float64), positions.at(places.coordinates()))
    other = Positions(2, (11, 13), Fourier(num_bands=3, spacing="octaves"))
    assert torch.equal(other.on_grid(places).dense(torch.float64), tables.dense(torch.float64))


# Files and errors


def test_all_of_it_survives_files(tmp_path):
    inputs = {
        "session": Label(classes=5, role="query"),
        "image": Image(size=(5, 7), axis_names=("y", "x"), positions=Fourier(num_bands=2, spacing="octaves")),
        "sound": Audio(size=35, patch=5, rate=7, axis_names=("time",), positions=None, step=0.5),
        "text": Text(length=11, channels=13, positions=None, axis_names=("index",)),
        "units": events(combine="sum"),
        "seen": points(positions=None),
        "vectors": Vectors(channels=3, axis_names=("index",)),
        "frames": FramePair(size=(5, 7), embed=3, axis_names=("y", "x"), positions=None),
    }
    outputs = {"asked": points(of="session", positions=None), "drawn": replace(inputs["image"], positions=None)}
    schema = Schema(inputs, outputs)
    assert from_plain(Schema, to_plain(schema)) == schema
    assert from_plain(Schema, json.loads(json.dumps(to_plain(schema)))) == schema
    torch.manual_seed(0)
    model = PerceiverIO(schema, config("time", "y", places=(LatentAxis("y", 0.0, 5.0, 3),))).eval()
    save_model(model, tmp_path)
    again = load_model(tmp_path).eval()
    assert again.schema == schema
    raw, asked = schema.dummy_input(1, torch.device("cpu"))
    for name, expected in model(raw, asked).items():
        assert torch.equal(again(raw, asked)[name], expected)


def test_editors_know_the_fields():
    definitions = schema_file_format()["$defs"]
    for kind in ("Image", "Video", "Series", "Audio", "Spectrogram", "FramePair", "PointSet", "Text", "Vectors"):
        assert definitions[kind]["properties"]["axis_names"]["default"] == []
    assert definitions["Records"]["properties"]["combine"]["enum"] == ["concatenate", "sum"]
    assert definitions["Fourier"]["properties"]["spacing"]["enum"] == ["linear", "octaves"]
    assert {"type": "null"} in definitions["PointSet"]["properties"]["positions"]["anyOf"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Image(axis_names=("y",)), r"^axis_names = \('y',\) must be a list of 2 different names, one for each"),
        (lambda: Video(axis_names=("t", "y", "y")), "must be a list of 3 different names"),
        (lambda: check_axis_names(("y", 3), 2), r"^axis_names = \('y', 3\) must be a list of 2 different names"),
        (lambda: Image(axis_names=("y", "")), "must be a list of 2 different names"),
        (lambda: check_axis_names("t", 1), r"^axis_names = 't' must be a list of a name, or empty$"),
        (lambda: Text(axis_names=("a", "b")), "must be a list of a name, or empty"),
        (lambda: Vectors(axis_names=("a", "b")), "must be a list of a name, or empty"),
        (lambda: PointSet(axes=3, axis_names=("x", "y")), "must be a list of 3 different names"),
        (lambda: FramePair(separate=True, axis_names=("y", "x")), "must be a list of 3 different names"),
        (lambda: Series(step=0.5), "^step = 0.5 must be left out: it has no effect without axis_names$"),
        (lambda: Series(step=-1.0, axis_names=("t",)), "^step = -1.0 must be a finite number above 0$"),
        (lambda: Audio(step=math.nan, axis_names=("t",)), "^step = nan must be a finite number above 0$"),
        (lambda: Image(positions=None).build_query({}), "give positions, or axis_names for rotary ones$"),
        (lambda: PointSet(positions=None).build_query({}), "give positions, or axis_names for rotary ones$"),
        (lambda: PointSet(of="x").build_query({"y": Vectors().build_input()}), "unknown input 'x'; there are y"),
        (lambda: Vectors(axis_names=("index",)).build_query({}), "^axis_names is for inputs"),
        (lambda: Text(positions=None, sines=True), "^sines: true has no effect without positions; leave it out$"),
        (lambda: Fourier(spacing="octaves", max_resolution=5), "^max_resolution = 5 has no effect on octaves: leave"),
        (lambda: Fourier(spacing="octaves", num_bands=65), "^num_bands = 65 octaves must be at most 64$"),
        (
            lambda: from_plain(Fourier, {"spacing": "octave"}),
            "^spacing: Input should be 'linear' or 'octaves', not 'oct",
        ),
        (lambda: events(coordinate_fields=("tim",)), "unknown field in coordinate_fields: 'tim'.* did you mean 'time'"),
        (
            lambda: events(coordinate_fields=("unit",)),
            "^coordinate_fields: 'unit' is of kind category: a coordinate is",
        ),
        (lambda: events(coordinate_fields=("time", "time")), "must name each field once"),
        (lambda: Records({"t": NumberField()}, coordinate_fields=("t",)), "leave another for features$"),
        (lambda: events(field_mask_prob={"time": 0.5}), "^field_mask_prob: 'time' is a coordinate: only features"),
        (lambda: events(combine="sum", tokens="field"), "^combine: sum adds the fields of a record: it needs tokens"),
        (
            lambda: events(combine="sum", coordinate_fields=()).build_input(),
            "^combine: sum needs fields of equally many channels: unit has 5, time has 2, kind has 5$",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_restored_text_has_the_axis_of_its_input():
    inputs = {"it": Text(length=5, channels=3, axis_names=("index",)).build_input()}
    with pytest.raises(ValueError, match=r"^axis_names = \('i',\) must be those of input 'it', \('index',\): leave it"):
        Text(length=5, of="it", axis_names=("i",)).build_query(inputs)


def test_vectors_with_places_are_read_in_one_piece():
    model = built({"it": Vectors(channels=3, axis_names=("time",))}, {"label": Label(classes=3)}, "time")
    with pytest.raises(ValueError, match="input 'it' is read twice"):
        model.encode([{"it": torch.zeros(1, 2, 3)}, {"it": torch.zeros(1, 5, 3)}])
