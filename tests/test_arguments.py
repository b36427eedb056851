"""Arguments of callers are either used as meant, or refused in one line that names them: tables of calls and results.

The model has an input and an output of every kind; each call gives one of them as nobody should, or may.
"""

import math
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import perceivers.public
from perceivers import (
    CategoryField,
    Config,
    Coordinates,
    Events,
    Image,
    Indices,
    Label,
    Labels,
    NumberField,
    Numbers,
    Part,
    PerceiverIO,
    PointSet,
    Queries,
    Records,
    Resampler,
    Schema,
    Series,
    Text,
    Vectors,
)
from perceivers.core.config import DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.modalities.position_encodings import Fourier, Learned

B = 2
SMALL = Config(
    LatentsConfig(num_latents=7, channels=12),
    EncoderConfig(num_heads=3, channel_alignment="project"),
    ProcessorConfig(num_heads=2, num_layers=1),
    DecoderConfig(num_heads=1, channel_alignment="project"),
)
BANDS = Fourier(num_bands=3, max_resolution=11)
POINTS = PointSet(axes=3, channels=2, positions=BANDS)
FIELDS = {"type": CategoryField(classes=5, channels=3), "health": NumberField()}
SPECS = {
    "image": Image(size=(5, 7), positions=Fourier(num_bands=3), mean=(127.0,), std=(63.0,)),
    "series": Series(size=11, channels=2, positions=Learned(channels=3)),
    "text": Text(length=13, channels=5, tied=False),
    "points": POINTS,
    "records": Records(FIELDS, max_records=3),
    "events": Events(classes=5, channels=3, positions=Fourier(num_bands=3, spacing="octaves")),
    "label": Label(classes=3),
    "labels": Labels(classes=5),
    "numbers": Numbers(count=3),
    "vectors": Vectors(channels=5, query_channels=3),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PerceiverIO(Schema(SPECS, SPECS), SMALL).eval()


def whole():
    """Return a valid batch of every input."""
    torch.manual_seed(1)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    return {
        "image": torch.randint(256, (B, 5, 7, 3), dtype=torch.uint8),
        "series": torch.randn(B, 11, 2),
        "text": {"ids": torch.randint(256, (B, 3)), "mask": mask},
        "points": {"coordinates": torch.randn(B, 3, 3), "values": torch.randn(B, 3, 2), "mask": mask},
        "records": {"type": torch.randint(5, (B, 3)), "health": torch.randn(B, 3), "mask": mask},
        "events": {
            "time": torch.randn(B, 3),
            "type": torch.randint(5, (B, 3)),
            "value": torch.randn(B, 3),
            "mask": mask,
        },
        "label": torch.tensor([2, -1]),
        "labels": torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]).float(),
        "numbers": torch.randn(B, 3),
        "vectors": {"values": torch.randn(B, 3, 5), "mask": mask},
    }


def quantised(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)


def given(name, change):
    """Return a valid batch of one input, changed."""
    value = whole()[name]
    return {name: change(value) if not isinstance(value, dict) else {**value, **change(value)}}


def latents(model, raw):
    with torch.no_grad():
        return model.encode(raw).latents


def picture(mode="RGB"):
    pillow = pytest.importorskip("PIL.Image")
    return pillow.fromarray(whole()["image"][0].numpy()).convert(mode)


SAME = {
    "image": [
        lambda x: x.numpy(),
        lambda x: x.float(),
        lambda x: x.double(),
        lambda x: x.long(),
        lambda x: x.numpy().astype(">i4"),
        lambda x: x.numpy().astype(np.uint32),
        lambda x: x.numpy()[::-1][::-1],
        lambda x: x.tolist(),
        lambda x: list(x.numpy()),
        lambda x: {"values": x, "mask": torch.ones(x.shape[:3], dtype=torch.int64)},
    ],
    "series": [lambda x: x.numpy(), lambda x: x.double()],
    "text": [
        lambda x: {"mask": x["mask"].long()},
        lambda x: {"mask": x["mask"].to(torch.uint8)},
        lambda x: {"ids": x["ids"].numpy()},
        lambda x: {"ids": x["ids"].int()},
        *(lambda x, t=kind: {"ids": x["ids"].to(t)} for kind in (torch.uint16, torch.uint32, torch.uint64)),
        lambda x: {"ids": torch.where(x["mask"], x["ids"], -100)},
        lambda x: {"ids": torch.where(x["mask"], x["ids"], 10**6)},
    ],
    "points": [
        lambda x: {"coordinates": x["coordinates"].masked_fill(~x["mask"][..., None], torch.nan)},
        lambda x: {"values": x["values"].masked_fill(~x["mask"][..., None], torch.inf)},
        lambda x: {"mask": x["mask"].int().numpy()},
    ],
    "records": [
        lambda x: {"type": torch.where(x["mask"], x["type"], 77)},
        lambda x: {"health": x["health"].masked_fill(~x["mask"], torch.nan)},
        lambda x: {"type": x["type"].int(), "mask": x["mask"].long()},
    ],
    "events": [
        lambda x: {"type": torch.where(x["mask"], x["type"], 77)},
        lambda x: {"time": x["time"].masked_fill(~x["mask"], torch.nan)},
        lambda x: {"value": x["value"].masked_fill(~x["mask"], torch.inf)},
        lambda x: {"type": x["type"].int(), "mask": x["mask"].long(), "time": x["time"].double()},
    ],
    "label": [lambda x: x.int(), lambda x: torch.tensor([2, -100]), lambda x: x.numpy(), lambda x: [2, -1]],
    "labels": [lambda x: x.bool(), lambda x: x.long(), lambda x: x.numpy(), lambda x: x.double()],
    "numbers": [lambda x: x.numpy(), lambda x: x.double().requires_grad_()],
    "vectors": [lambda x: {"values": x["values"].masked_fill(~x["mask"][..., None], torch.nan)}],
}


@pytest.mark.parametrize(("name", "change"), [(name, change) for name, changes in SAME.items() for change in changes])
def test_what_means_the_same_is_taken_as_the_same(model, name, change):
    expected = latents(model, {name: whole()[name]})
    torch.testing.assert_close(latents(model, given(name, change)), expected, rtol=1e-5, atol=1e-6)


def test_a_picture_of_pillow_is_a_batch_of_one_and_several_come_in_a_list(model):
    expected = latents(model, {"image": whole()["image"][:1]})
    torch.testing.assert_close(latents(model, {"image": picture()}), expected)
    torch.testing.assert_close(latents(model, {"image": [picture()]}), expected)


REFUSED = {
    "image": [
        (lambda x: x[:0], "a batch of at least one sample"),
        (lambda x: x[0], "input of shape (5, 7, 3), expected [B, n1, n2, 3]"),
        (lambda x: x.movedim(-1, 1), "input of shape (2, 3, 5, 7), expected [B, n1, n2, 3]; channels come last"),
        (lambda x: x + 1j, "complex64"),
        (lambda x: x.numpy() + 1j, "complex128"),
        (lambda x: x.to_sparse(), "sparse"),
        (lambda x: quantised(x.float()), "quint8"),
        (lambda x: x.float().to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda x: x.view(torch.bits8), "bits8"),
        (lambda x: torch.nested.nested_tensor(list(x.float()), layout=torch.jagged), "a nested tensor"),
        (lambda x: x.to("meta"), "on the device meta has no values"),
        (lambda x: {"values": x, "mask": torch.ones(x.shape[:3], device="meta").bool()}, "meta has no values"),
        (lambda x: torch.full(x.shape, 2**63, dtype=torch.uint64), "9223372036854775808 is beyond"),
        (lambda x: x.numpy().astype(str), "expected real numbers"),
        (lambda x: "a.png", "expected real numbers"),
        (lambda x: np.zeros(B, [("r", "f4")]), "expected real numbers"),
        (lambda x: np.array([object()] * 2), "of type object"),
        (lambda x: [[1], [1, 2]], "lists of equal length"),
        (lambda x: {"values": x, "mask": torch.full(x.shape[:3], 2)}, "a mask holds 2"),
        (lambda x: {"values": x, "mask": torch.ones(x.shape[:3])}, "a mask of type torch.float32"),
        (lambda x: {"values": x, "mask": torch.ones(x.shape).bool()}, "mask without C"),
        (lambda x: {"values": x, "mask": torch.ones(B, 5, 5).bool()}, "mask of shape (2, 5, 5)"),
        (lambda x: {"values": x, "mask": torch.ones(3, 5, 7).bool()}, "mask has 3 samples"),
        (lambda x: {"pixels": x}, "unknown 'pixels': give values, mask"),
        (lambda x: {}, "the input has no values"),
        (lambda x: Part(x, (5,)), "a part begins at (5,)"),
        (lambda x: Part(x, (0.0, 0.0)), "a part begins at (0.0, 0.0)"),
        (lambda x: Part(x, 0), "a part begins at 0"),
        (lambda x: Part(x, (10**18, 0), (10**19, 7)), "at most 2^53 positions"),
        (lambda x: Part(x, (1, 0)), "reaches beyond the whole"),
    ],
    "series": [
        (lambda x: x.mT, "channels come last"),
        (lambda x: x[..., 0], "expected [B, n1, 2]"),
    ],
    "text": [
        (lambda x: {"ids": x["ids"].float()}, "expected whole numbers [B, M]"),
        (lambda x: {"ids": x["ids"].bool()}, "expected whole numbers [B, M]"),
        (lambda x: {"ids": torch.full((B, 3), -1)}, "id -1 is outside the 262"),
        (lambda x: {"ids": torch.full((B, 3), 262)}, "id 262 is outside the 262"),
        (lambda x: {"mask": 3 * x["mask"]}, "a mask holds 3"),
        (lambda x: {"mask": x["mask"][:, :2]}, "mask of shape (2, 2), but ids of shape (2, 3)"),
        (lambda x: {"attention_mask": x["mask"]}, "unknown 'attention_mask'"),
    ],
    "points": [
        (lambda x: {"coordinates": torch.full((B, 3, 3), torch.nan)}, "coordinates of point 0 of sample 0"),
        (lambda x: {"coordinates": torch.full((B, 3, 3), torch.inf)}, "are not finite numbers"),
        (lambda x: {"coordinates": x["coordinates"][..., :2]}, "expected 3 of them at the end"),
        (lambda x: {"coordinates": x["coordinates"] + 1j}, "complex64"),
        (lambda x: {"values": x["values"][:, :2], "mask": None}, "values of shape (2, 2, 2)"),
        (lambda x: {"values": x["values"][..., :1]}, "values of shape (2, 3, 1)"),
        (lambda x: {"values": None}, "the input has no values"),
    ],
    "records": [
        (lambda x: {"type": torch.full((B, 3), 5)}, "field 'type': class 5 is not one of 0 to 4"),
        (lambda x: {"type": torch.full((B, 3), -2)}, "field 'type': class -2 is not one of 0 to 4"),
        (lambda x: {"type": x["type"].float()}, "field 'type': class numbers of type torch.float32"),
        (lambda x: {"type": x["type"][:, :2], "mask": None}, "columns of shapes"),
        (lambda x: {"age": x["type"]}, "unknown 'age'"),
    ],
    "events": [
        (lambda x: {"type": torch.full((B, 3), 5)}, "class 5 is not one of 0 to 4"),
        (lambda x: {"type": x["type"].float()}, "class numbers of type torch.float32"),
        (lambda x: {"time": torch.full((B, 3), torch.nan)}, "time of event 0 of sample 0"),
        (lambda x: {"time": x["time"][:, :2], "mask": None}, "columns of shapes"),
        (lambda x: {"value": None}, "the input has no value"),
        (lambda x: {"unit": x["type"]}, "unknown 'unit'"),
    ],
    "label": [
        (lambda x: torch.tensor([3, 0]), "class 3 is not one of 0 to 2"),
        (lambda x: torch.tensor([-2, 0]), "class -2 is not one of 0 to 2"),
        (lambda x: torch.tensor([0.5, 1.0]), "class numbers of type torch.float32"),
        (lambda x: torch.tensor(1), "a batch of at least one sample"),
        (lambda x: {"class": x}, "a dictionary of class, expected class numbers [B]"),
    ],
    "labels": [
        (lambda x: x[:, :3], "labels of shape (2, 3), expected 5"),
        (lambda x: 2 * x, "2 is not between 0 and 1"),
    ],
    "numbers": [
        (lambda x: x[:, :2], "input of shape (2, 2), expected [B, 3]"),
        (lambda x: x[:, 0], "input of shape (2,), expected [B, 3]"),
        (lambda x: x + 1j, "complex64"),
    ],
    "vectors": [(lambda x: {"values": x["values"][..., :3]}, "expected [B, M, 5]")],
}


@pytest.mark.parametrize(
    ("name", "change", "message"), [(name, *case) for name, cases in REFUSED.items() for case in cases]
)
def test_what_does_not_fit_is_refused_with_the_name_of_the_input(model, name, change, message):
    with pytest.raises(ValueError, match=f"^input '{name}': .*{re.escape(message)}") as caught:
        latents(model, given(name, change))
    assert "\n" not in str(caught.value)


WRONG_TYPES = [
    (lambda m: m({"numbers": torch.randn(B, 3)}, Indices(torch.tensor([0]))), "points of type Indices"),
    (lambda m: m({"numbers": torch.randn(B, 3)}, memory_limit="200 parsecs"), "memory_limit = '200 parsecs'"),
    (lambda m: m({"numbers": torch.randn(B, 3)}, memory_limit=1e9), "memory_limit = 1000000000.0"),
    (lambda m: m({"numbers": torch.randn(B, 3)}, algorithm="denser"), "unknown algorithm 'denser'; there are dense"),
    (lambda m: m({"image": Part(whole()["image"], (0, 0), "ab")}), "size of the whole = 'ab' must"),
    (lambda m: m({"image": Part(whole()["image"], (0, 0), (5.0, 7))}), "size of the whole = (5.0, 7) must"),
    (lambda m: m.decode(whole()), "decoding takes an Encoded"),
    (lambda m: m.process(whole()), "processing takes a Reading"),
    (lambda m: decoded(m, outputs=3), "names must come in a list"),
    (lambda m: decoded(m, points={"label": torch.tensor([0])}, outputs=["label"]), "of type Tensor: give Indices"),
    (lambda m: decoded(m, outputs=["label"], share=(0.0, 2)), "share = (0.0, 2)"),
]
"""Calls that jaxtyping's checks in the tests would refuse first."""

CALLS = [
    (lambda m: m.encode(None), "several inputs: give a dictionary"),
    (lambda m: m.encode({}), "no input given"),
    (lambda m: m.encode([]), "nothing was read"),
    (lambda m: m.encode({"image": whole()["image"], "numbers": torch.randn(3, 3)}), "numbers has 3 samples"),
    (lambda m: m({"numbers": torch.randn(B, 3)}, {"labell": None}), "did you mean 'label'?"),
    (lambda m: m({"numbers": torch.randn(B, 3)}, memory_limit=True), "memory_limit = True"),
    (lambda m: m({"numbers": torch.randn(B, 3)}, memory_limit=-1), "memory_limit = -1"),
    (lambda m: m.decode(other().encode(torch.randn(B, 3))), "of another model"),
    (lambda m: decoded(m, outputs="label"), "names must come in a list"),
    (lambda m: decoded(m, outputs=["lable"]), "did you mean 'label'?"),
    *(
        (lambda m, s=share: decoded(m, outputs=["label"], share=s), f"share = {share}")
        for share in [(2, 2), (-1, 2), (0, 0), (True, 2)]
    ),
    (lambda m: m.read({"image": whole()["image"]}) + m.read({"image": whole()["image"]}), "'image' is read twice"),
    (lambda m: m.encode([{"image": part(0, 3)}, {"image": part(2, 3)}]), "(0, 0) to (3, 7) and (2, 0) to (5, 7)"),
    (lambda m: m.encode([{"image": part(0, 3)}, {"image": whole()["image"]}]), "'image' is read twice"),
    (lambda m: m.encode([{"image": part(0, 3)}, {"image": part(3, 2, (6, 7))}]), "of wholes of two sizes"),
    (lambda m: m.encode([{"label": whole()["label"]}] * 2), "'label' is read twice"),
    (lambda m: twice(m.read({"vectors": whole()["vectors"]})), "'vectors' is read twice"),
]


def other():
    return PerceiverIO(Schema({"numbers": Numbers(count=3)}, {"label": Label(classes=3)}))


def decoded(model, **options):
    return model.decode(model.encode({"numbers": whole()["numbers"]}), **options)


def part(start, height, size=None):
    return Part(whole()["image"][:, start : start + height], (start, 0), size)


def twice(reading):
    return reading + reading


@pytest.mark.parametrize(("call", "message"), CALLS)
def test_a_call_that_cannot_be_meant_is_refused(model, call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught, torch.no_grad():
        call(model)
    assert "\n" not in str(caught.value)


def test_arguments_of_wrong_types_are_refused_where_nothing_checks_types():
    code = "import test_arguments as t; t.check_wrong_types(); t.check_wrong_declarations()"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


def check_wrong_types():
    model = PerceiverIO(Schema(SPECS, SPECS), SMALL).eval()
    for call, message in WRONG_TYPES:
        with pytest.raises(ValueError, match=re.escape(message)):
            call(model)


def test_parts_and_sets_are_read_in_chunks(model):
    raw = whole()
    expected = latents(model, {name: raw[name] for name in ("image", "vectors")})
    sets = [{"vectors": {key: x[:, at] for key, x in raw["vectors"].items()}} for at in (slice(0, 1), slice(1, 3))]
    found = latents(model, [{"image": part(3, 2)}, *sets, {"image": part(0, 3)}])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


ASKED = [
    ("image", Coordinates(torch.zeros(1, 2, device="meta")), "meta has no values"),
    ("image", Indices(torch.zeros(1, device="meta").long()), "meta has no values"),
    ("image", Indices(torch.tensor([0, 35])), "index 35 is outside the 35 queries"),
    ("image", Indices(torch.tensor([[-1, 3]])), "index -1 is outside the 35 queries"),
    ("image", Indices(torch.tensor([0.0])), "index of type torch.float32"),
    ("image", Indices(torch.tensor([True])), "index of type torch.bool"),
    ("image", Indices(torch.zeros(3, 4).long()), "image has 3 samples"),
    ("image", Indices(torch.zeros(1, 1, 4).long()), "index of shape (1, 1, 4)"),
    ("image", Indices(torch.tensor([0, 1]), torch.ones(B, 3).bool()), "mask of shape (2, 3), but index of shape (2,)"),
    ("image", Coordinates(torch.zeros(4, 3)), "expected 2 of them at the end"),
    ("image", Coordinates(torch.zeros(2)), "coordinates of shape (2,)"),
    ("image", Coordinates(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]])), "coordinates of point 1 are not finite"),
    ("image", Coordinates(torch.zeros(4, 2) + 1j), "complex64"),
    ("points", Coordinates(torch.full((B, 1, 3), torch.inf)), "coordinates of point 0 of sample 0 are not finite"),
    ("points", Coordinates(torch.zeros(4, 2)), "expected 3 of them at the end"),
    ("label", Indices(torch.zeros(2, 0).long()), "no indices, but this output has one query"),
    ("points", None, "values at free coordinates have no whole"),
    ("vectors", Queries(torch.zeros(3)), "queries of shape (3,)"),
    ("vectors", Queries(torch.zeros(3, 4)), "queries have 4 channels, expected 3"),
]


@pytest.mark.parametrize(("name", "points", "message"), ASKED)
def test_points_that_do_not_fit_are_refused_with_the_name_of_the_output(model, name, points, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught, torch.no_grad():
        decoded(model, points={name: points}, outputs=[name])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_points_of_other_types_are_taken(model):
    places = Indices(torch.tensor([3, 5]))
    with torch.no_grad():
        expected = decoded(model, points={"image": places}, outputs=["image"])["image"]
        for index in (np.array([3, 5]), [3, 5], torch.tensor([3, 5], dtype=torch.uint8)):
            found = decoded(model, points={"image": Indices(index)}, outputs=["image"])["image"]
            torch.testing.assert_close(found, expected)
        grid = Coordinates(torch.tensor([[0, 3], [0, 5]]))
        found = decoded(model, points={"image": grid}, outputs=["image"])["image"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


ALGORITHMS = ["dense", "projected", "absorbed"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("positions", [BANDS, Learned(channels=3)], ids=["fourier", "learned"])
def test_a_place_that_is_no_place_is_nan_where_it_cannot_be_refused(monkeypatch, algorithm, value, positions):
    """Compiled programs do not inspect values: there, every algorithm gives NaN, never a plausible number."""
    monkeypatch.setattr("perceivers.modalities.position_encodings.require", lambda holds, message: None)
    torch.manual_seed(0)
    image = Image(size=(5, 7), positions=positions)
    model = PerceiverIO(Schema({"points": POINTS}, {"image": image}), SMALL).eval()
    raw = {name: whole()["points"][name] for name in ("coordinates", "values")}
    raw["coordinates"][0, 1, 2] = value
    asked = {"image": Coordinates(torch.tensor([[0.0, 1.0], [value, 1.0]]))}
    with torch.no_grad():
        found = model.encode({"points": raw}, algorithm=algorithm).latents
        written = model({"points": whole()["points"]}, asked, algorithm=algorithm)["image"]
    assert found[0].isnan().all()
    assert found[1].isfinite().all()
    assert written[:, 0].isfinite().all()
    assert written[:, 1].isnan().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_query_of_the_caller_is_of_finite_numbers(monkeypatch, algorithm, value):
    """The error names the query. Compiled programs cannot raise it and give NaN; masked queries may hold anything."""
    torch.manual_seed(0)
    small = replace(SMALL, decoder=replace(SMALL.decoder, query_residual=False))
    model = PerceiverIO(Schema({"vectors": SPECS["vectors"]}, {"vectors": SPECS["vectors"]}), small).eval()
    raw, queries, mask = {"vectors": whole()["vectors"]}, torch.randn(2, 3, 3), torch.ones(2, 3, dtype=torch.bool)
    queries[1, 2, 0], mask[1, 2] = value, False
    with pytest.raises(ValueError, match="output 'vectors': numbers of query 2 of sample 1 are not finite numbers"):
        model(raw, {"vectors": Queries(queries)}, algorithm=algorithm)
    assert model(raw, {"vectors": Queries(queries, mask)}, algorithm=algorithm)["vectors"].isfinite().all()
    monkeypatch.setattr("perceivers.modalities.position_encodings.require", lambda holds, message: None)
    with torch.no_grad():
        found = model(raw, {"vectors": Queries(queries)}, algorithm=algorithm)["vectors"]
    assert found[1, 2].isnan().all()
    assert found.isnan().sum() == found.shape[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coordinates_in_half_precision_mean_the_same_places(dtype):
    """Integers that half precision represents, between bounds and within a grid that it does not represent."""
    points = replace(POINTS, bounds=((-1e5, 1e5),) * 3)
    model = PerceiverIO(Schema({"points": points}, {"points": points, "image": Image(size=(61, 67))}), SMALL).eval()
    places = torch.randint(256, (2, 7, 3))
    values = torch.ones(2, 7, 2)
    found = [
        decoded_at(model, {"coordinates": given, "values": values}, {"points": given, "image": given[..., :2] / 8})
        for given in (places.float(), places.to(dtype))
    ]
    for name, exact in found[0].items():
        assert torch.equal(found[1][name], exact), name


def decoded_at(model, raw, places):
    with torch.no_grad():
        return model({"points": raw}, {name: Coordinates(place) for name, place in places.items()})


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_padding_holds_matters_neither_to_values_nor_to_gradients(algorithm):
    torch.manual_seed(0)
    model = PerceiverIO(Schema({"points": POINTS}, {"points": POINTS}), SMALL)
    sound, mask = whole()["points"], whole()["points"]["mask"]
    hole = {n: x.masked_fill(~mask[..., None], torch.nan) for n, x in sound.items() if n != "mask"} | {"mask": mask}
    gradients = []
    for raw in (sound, hole):
        model.zero_grad()
        leaf = raw["values"].clone().requires_grad_()
        asked = {"points": Coordinates(raw["coordinates"], mask)}
        written = model({"points": {**raw, "values": leaf}}, asked, algorithm=algorithm)["points"]
        written[mask].square().sum().backward()
        gradients.append([leaf.grad.masked_fill(~mask[..., None], 0.0), *(p.grad for p in model.parameters())])
        assert leaf.grad.isfinite().all()
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


WRONG_DECLARATIONS = """
LatentsConfig(num_latents=0); LatentsConfig(num_latents=True); LatentsConfig(channels=8.0); LatentsConfig(init_std=0)
EncoderConfig(channel_alignment="padded"); EncoderConfig(min_padding=-1); EncoderConfig(activation="tanh")
EncoderConfig(dropout="a"); EncoderConfig(qk_init_gain=math.nan)
ProcessorConfig(num_layers=-1); ProcessorConfig(num_blocks=0); ProcessorConfig(share_blocks="some")
DecoderConfig(kind="mean"); DecoderConfig(output_channels=0); Config(trunk="lstm"); Config(latents=5)
output("numbers"); output(Numbers); output({"kind": "numbers"}); Schema([Numbers()], {"y": Numbers()})
Schema({3: Numbers()}, {"y": Numbers()}); output(Label(classes=-1)); output(Label(classes="abc"))
output(Label(classes=("a", "b", "a"))); output(Label(classes=2.5)); output(Label(classes=2, weight=-1))
output(Label(classes=2, weight=math.nan)); output(Label(classes=2, smoothing=2))
output(Label(classes=2, query_channels=0)); output(Label(classes=2, hidden_channels=-1))
output(Numbers(mask_prob=-1)); output(Numbers(drop_prob=3)); output(Numbers(count=0))
output(Image(size=(8, 8), channels=-1)); output(Image(size=(8, 8), positions="fourier"))
output(Audio(size=64, rate=-1)); model.decode(encoded, share=1); model.decode(encoded, share=(0, 1, 2))
model.decode(encoded, share="01"); attention_plan(model, [[1.0]], memory_limit="1 parsec"); resampler(tokens[:0])
resampler(tokens[0]); resampler(tokens[..., :4]); resampler(tokens.cfloat()); resampler(None)
resampler(tokens, torch.full((2, 7), 2)); resampler(tokens, torch.ones(2)); resampler(tokens, torch.ones(2, 6).bool())
"""
"""Declarations and arguments without a meaning."""


def check_wrong_declarations():
    config = Config(LatentsConfig(3, 8), processor=ProcessorConfig(num_layers=1))
    model = PerceiverIO(Schema({"x": Numbers()}, {"y": Label(classes=2)}), config)
    known = {
        **vars(perceivers.public),
        "math": math,
        "torch": torch,
        "output": lambda spec: Schema({"x": Numbers()}, {"it": spec}),
        "model": model,
        "encoded": model.encode([[1.0], [2.0]]),
        "resampler": Resampler(config, 5).eval(),
        "tokens": torch.randn(2, 7, 5),
    }
    for call in re.split("[;\n] *", WRONG_DECLARATIONS.strip()):
        with pytest.raises(ValueError, match=r"^.{1,300}$"):
            assert eval(call, known) is None, call


@pytest.mark.parametrize("mask", [[[1] * 7] * 2, torch.ones(2, 7, dtype=torch.long), None])
def test_a_resampler_takes_arrays_and_masks_of_tokenizers(mask: Any) -> None:
    resampler = Resampler(Config(LatentsConfig(3, 8), processor=ProcessorConfig(num_layers=1)), 5).eval()
    tokens = torch.randn(2, 7, 5)
    torch.testing.assert_close(resampler(tokens.numpy(), mask), resampler(tokens))


def test_readings_that_do_not_belong_together_are_refused(model):
    numbers = whole()["numbers"]
    reading = model.read({"numbers": numbers})
    with pytest.raises(ValueError, match="readings of 2 and 3 samples"):
        reading + model.read({"vectors": torch.randn(3, 4, 5)})


def test_a_limit_holds_for_attention_that_has_to_be_dense(model):
    raw = whole()
    for how in ("algorithm", "hook on reading", "hook on writing"):
        blocks = {"hook on reading": model.trunk.encoder[0], "hook on writing": model.decoder}
        hooks = [
            block.cross_attention.register_forward_hook(lambda module, given, output: output)
            for name, block in blocks.items()
            if name == how
        ]
        try:
            algorithm = "dense" if how == "algorithm" else None
            with pytest.raises(ValueError, match=r"memory limit of 0\.001 MB: this needs at least"):
                model.encode(raw, 1000, algorithm) if "writing" not in how else model.decode(
                    model.encode(raw), outputs=["numbers"], memory_limit=1000
                )
            assert model.encode(raw, 10**8, algorithm).latents.isfinite().all()
        finally:
            for hook in hooks:
                hook.remove()


@pytest.mark.parametrize("name", ["", "x" * 5000])
def test_a_name_of_a_model_that_cannot_be_one_is_refused(name):
    with pytest.raises(ValueError, match="must be a folder, or a hub repository owner/name"):
        perceivers.public.from_pretrained(name)
