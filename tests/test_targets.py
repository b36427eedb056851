"""Targets: a class is the same whichever library its value comes from; other numbers are unknown or refused."""

import enum
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
import torch

from perceivers import CategoryField, Image, Label, Labels, NumberField, Numbers, Records, Schema, Text, from_example
from perceivers.modalities import MODALITIES
from perceivers.modalities.label import class_number
from perceivers.modalities.raw import as_float32, is_missing
from perceivers.schema.infer import propose
from perceivers.training.mixup import Mixup, mixed
from test_modalities import can_be_output


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Size(enum.IntEnum):
    SMALL = 0
    LARGE = 1


SAME = [
    ([torch.tensor(2), torch.tensor(0), torch.tensor(2)], 3, 2),
    (torch.tensor([2, 0, 2]), 3, 2),
    (torch.tensor([2.0, 0.0], dtype=torch.bfloat16), 3, 2),
    (np.array([2, 0], np.uint64), 3, 2),
    ([np.array(2), np.int8(0)], 3, 2),
    ([2.0, 0.0, float("nan"), None], 3, 2),
    ([2, 0, -100], 3, 2),
    ([Size.LARGE, Size.SMALL], 2, 1),
    (torch.tensor([True, False, True]), ("False", "True"), 1),
    (np.array([True, True]), ("False", "True"), 1),
    ([True, None], ("False", "True"), 1),
    ([Colour.RED, Colour.BLUE, Colour.RED], ("BLUE", "RED"), 1),
    ([b"dog", b"cat"], ("cat", "dog"), 1),
    (np.array(["dog", "cat"]), ("cat", "dog"), 1),
    ([date(2026, 1, 3), date(2026, 1, 2)], ("2026-01-02", "2026-01-03"), 1),
    ([Decimal("1.5"), Decimal("0.5")], ("0.5", "1.5"), 1),
]


@pytest.mark.parametrize(("values", "classes", "first"), SAME)
def test_equal_values_are_one_class(values, classes, first):
    label = Label().fit(values)
    assert label.classes == classes
    assert label.target(next(iter(values)), np.random.default_rng(0), {}, True) == first
    assert CategoryField().fit(list(values)).classes == classes
    assert CategoryField().fit(list(values)).preprocess(list(values))[0] == first


def test_values_of_pandas_are_those_of_python():
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(["dog", None, "cat"], dtype="category")
    assert Label().fit(column).classes == ("cat", "dog")
    assert Label().fit(pandas.Series([2, None, 0], dtype="Int64")).classes == 3
    assert all(map(is_missing, (pandas.NA, pandas.NaT, np.datetime64("NaT"), np.ma.masked)))
    assert NumberField().fit(list(pandas.Series([2.0, pandas.NA], dtype="Float64"))).mean == pytest.approx(2.0)


@pytest.mark.parametrize("values", [[-1, 1], [0, 1, -5], torch.tensor([-1, 0])])
def test_a_class_below_0_is_an_error_where_classes_are_found(values):
    with pytest.raises(ValueError, match=r"class -\d: classes are counted from 0"):
        Label().fit(values)


@pytest.mark.parametrize(
    ("value", "classes"), [(1.5, 3), (True, 3), (-2, 3), ([1], 3), (np.array([1, 0]), 3), ("2x", 3), (1j, 3)]
)
def test_what_is_no_class_is_an_error(value, classes):
    with pytest.raises(ValueError, match="class"):
        class_number(value, classes)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.bool, torch.float32])
def test_a_model_from_an_example_has_a_class_for_each_value(dtype):
    target = torch.tensor([0, 1, 1, 0, 1, 0]).to(dtype)
    model = from_example({"x": torch.randn(6, 3)}, {"y": target})
    label = model.schema.outputs["y"]
    assert isinstance(label, Label)
    assert label.num_classes == 2
    assert model(torch.randn(2, 3))["y"].shape == (2, 2)


def test_an_example_may_come_from_pillow_and_numpy():
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    values = {"p": [pillow.fromarray(one) for one in pixels]}
    image = from_example(values, {"y": np.array([True, False, True, False])}).schema.inputs["p"]
    assert isinstance(image, Image)
    assert image == from_example({"p": pixels}, {"y": [1, 0, 1, 0]}).schema.inputs["p"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(4, 3, 32, 32), "channels seem to come first"),
        (np.zeros((4, 1, 28, 28)), "channels seem to come first"),
        (torch.zeros(4, 8, 3, 32, 32), "channels seem to come first"),
        (torch.zeros(4, 3, 8, 32, 32), "channels seem to come first"),
        (torch.zeros(4, 1, 16000), "channels seem to come first"),
        (torch.zeros(4, 5, 32, 32), "channels seem to come first"),
        (torch.zeros(4, 16, 32, 32), "channels seem to come first"),
        (torch.zeros(4, 8, 16, 32, 32), "channels seem to come first"),
        (torch.full((4, 8, 8, 3), torch.nan), "without a finite number"),
        (np.full((4, 3), np.inf), "without a finite number"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.complex64), "complex64"),
        (np.zeros((4, 8, 8, 3), complex), "complex128"),
        (np.full((4, 3), 1e300), "beyond the numbers of float32"),
        (torch.zeros(4, 3).to_sparse(), "sparse"),
        (torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged), "a nested tensor"),
        (torch.zeros(4, 3, device="meta"), "meta has no values"),
        (torch.zeros(()), "a batch of values is needed"),
        ("text", "a batch of values is needed"),
        ([], "empty"),
    ],
)
def test_an_example_that_would_be_misread_is_refused(values, message):
    targets = {"y": np.arange(len(values)) % 2 if np.ndim(values) else [0]}
    with pytest.raises(ValueError, match=message):
        from_example({"x": values}, targets)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4, 4), "read as images of 3 x 4 with 4 channels, which come last"),
        ((5, 32, 48), "read as images of 5 x 32 with 48 channels, which come last"),
        ((8, 5, 16, 24), "read as videos of 8 x 5 x 16 with 24 channels, which come last"),
        ((28, 28), "read as series of up to 28 steps of 28 channels; grey pictures need one more axis"),
        ((28, 20), "read as series of up to 28 steps of 20 channels; grey pictures need one more axis"),
    ],
)
def test_a_shape_that_may_mean_something_else_is_told(shape, message):
    with pytest.warns(UserWarning, match=f"^x: {message}"):
        from_example({"x": torch.randn(4, *shape)}, {"y": [0, 1, 0, 1]})


@pytest.mark.parametrize(
    "shape", [(8, 8, 3), (5, 8, 3), (8, 8, 16), (11, 2), (30, 7), (4, 8, 8, 3), (16,), (28, 28, 1)]
)
def test_usual_shapes_are_read_without_a_word(shape):
    from_example({"x": torch.randn(4, *shape)}, {"y": [0, 1, 0, 1]})


def test_a_picture_of_three_by_three_by_three_has_its_channels_last():
    assert propose([np.zeros((3, 3, 3))]).spec == {"kind": "image", "size": [3, 3], "channels": 3, "patch": 1}
    assert propose([np.zeros((3, 5, 3))]).spec["size"] == [3, 5]


def test_arrays_are_real_numbers_or_refused():
    masked = np.ma.masked_array([1.0, 2.0], [False, True])
    np.testing.assert_array_equal(as_float32(masked), np.array([1.0, np.nan], np.float32))
    np.testing.assert_array_equal(as_float32([1, None, Decimal("0.5")]), np.array([1, np.nan, 0.5], np.float32))
    np.testing.assert_array_equal(as_float32(np.uint64(2**63)), np.float32(2**63))
    np.testing.assert_array_equal(as_float32(torch.ones(2, requires_grad=True)), np.ones(2, np.float32))
    wrong = [[1e39], 1j, "1", ["1"], [[1], [1, 2]], object(), {"a": 1}, b"1", np.zeros(2, "M8[s]"), [1, [2]]]
    for value in wrong:
        with pytest.raises(ValueError, match="numbers"):
            as_float32(value)


NAMED = Label(classes=("cat", "dog", "eel"))


@pytest.mark.parametrize("unknown", [-1, -100])
def test_unknown_classes_count_nowhere(unknown):
    logits = torch.randn(3, 3, requires_grad=True)
    loss = NAMED.loss(logits, torch.tensor([1, unknown, 2]))
    torch.testing.assert_close(loss, NAMED.loss(logits[[0, 2]], torch.tensor([1, 2])))
    loss.backward()
    assert (logits.grad[1] == 0).all()
    assert len(NAMED.metric_inputs(logits, torch.tensor([1, unknown, 2]))[1]) == 2
    assert NAMED.num_terms(torch.tensor([1, unknown, 2])) == 2
    assert NAMED.probabilities(torch.tensor([unknown])).isnan().all()
    text = Text(length=3)
    target = {"ids": torch.tensor([[5, unknown]]), "mask": torch.ones(1, 2).bool(), "masked": torch.zeros(1, 2).bool()}
    short = {name: x[:, :1] for name, x in target.items()}
    rows = torch.randn(1, 2, 262)
    torch.testing.assert_close(text.loss(rows, target), text.loss(rows[:, :1], short))
    field = CategoryField(classes=3)
    assert field.known(torch.tensor([1, unknown, 2])).tolist() == [True, False, True]


@pytest.mark.parametrize("number", [-2, -101, 3, 1000])
@pytest.mark.parametrize("use", ["loss", "metric_inputs", "probabilities", "input", "mixing", "field", "text"])
def test_a_number_that_is_no_class_is_an_error_everywhere(number, use):
    target, logits = torch.tensor([0, number]), torch.randn(2, 3)
    picture = Schema({"p": Image(size=4)}, {"y": NAMED})
    text = Text(length=2, vocab_size=3)
    ids = {"ids": target[None], "mask": torch.ones(1, 2).bool(), "masked": torch.zeros(1, 2).bool()}
    calls = {
        "loss": lambda: NAMED.loss(logits, target),
        "metric_inputs": lambda: NAMED.metric_inputs(logits, target),
        "probabilities": lambda: NAMED.probabilities(target),
        "input": lambda: NAMED.build_input()(target),
        "mixing": lambda: mixed(picture, {"inputs": {"p": torch.zeros(2, 4, 4, 3)}, "targets": {"y": target}}, Mixup()),
        "field": lambda: CategoryField(classes=3).loss(logits[None], target[None]),
        "text": lambda: text.loss(logits[None], ids),
    }
    with pytest.raises(ValueError, match=f"class {number} is not one of 0 to 2"):
        calls[use]()


@pytest.mark.parametrize(
    ("spec", "prediction", "target"),
    [
        (NAMED, torch.zeros(2, 3), torch.tensor([0.0, 1.0])),
        (NAMED, torch.zeros(2, 3), torch.zeros(2, 4)),
        (NAMED, torch.zeros(2, 3), torch.full((2, 3), 2.0)),
        (NAMED, torch.zeros(2, 3), torch.zeros(2, 3, 1)),
        (Labels(classes=3), torch.zeros(2, 3), torch.full((2, 3), -1)),
        (Labels(classes=3), torch.zeros(2, 3), torch.zeros(2, 1)),
        (Numbers(count=3), torch.zeros(2, 3), torch.zeros(2)),
        (Numbers(count=1), torch.zeros(2, 1), torch.zeros(2)),
        (Numbers(count=3), torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.complex64)),
        (Image(size=2), torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 1)),
    ],
)
def test_a_target_of_another_shape_or_type_is_an_error(spec, prediction, target):
    with pytest.raises(ValueError, match=r"shape|between 0 and 1|class numbers of type"):
        spec.loss(prediction, target)


def test_one_hot_targets_of_whole_numbers_are_probabilities():
    logits = torch.randn(2, 3)
    expected = NAMED.loss(logits, torch.tensor([2, 0]))
    torch.testing.assert_close(NAMED.loss(logits, torch.tensor([[0, 0, 1], [1, 0, 0]])), expected)
    torch.testing.assert_close(NAMED.loss(logits, torch.tensor([2, 0], dtype=torch.uint8)), expected)


@pytest.mark.parametrize("spec", [Numbers(count=1), Numbers(count=1, mean=(0.0,), std=(1e-30,))])
def test_an_infinite_target_is_unknown_and_leaves_gradients_finite(spec):
    prediction = torch.ones(2, 1, requires_grad=True)
    spec.loss(prediction, torch.tensor([[1.0], [torch.inf]])).backward()
    assert prediction.grad.isfinite().all()
    tokens = Numbers(count=2).build_input()(torch.tensor([[1.0, torch.inf]]))
    assert tokens.content.tolist() == [[[1.0, 0.0, 1.0, 0.0]]]


def test_records_take_numbers_of_any_library():
    spec = Records({"n": NumberField(), "c": CategoryField()})
    columns = {"n": [torch.tensor(1.0), "2", None], "c": [np.str_("a"), torch.tensor(1), float("nan")]}
    prepared = spec.fit([columns]).preprocess(columns, np.random.default_rng(0), False)
    np.testing.assert_array_equal(prepared["n"], np.array([1, 2, np.nan], np.float32))
    assert prepared["c"].tolist() == [1, 0, -1]


WRONG = {
    "complex": torch.zeros(2, 3) + 1j,
    "sparse": torch.zeros(2, 3).to_sparse(),
    "no batch": torch.tensor(1.0),
    "batch of 0": torch.zeros(0, 3),
    "many axes": torch.zeros(1, 1, 1, 1, 1, 1),
    "text": "x",
    "nothing": {},
    "another dictionary": {"classes": torch.zeros(2, 3)},
    "one in another": {"values": {"values": torch.zeros(2, 3)}},
    "mask alone": {"mask": torch.ones(2, 3).bool()},
    "object": object(),
    "set": {1},
}


@pytest.mark.parametrize("target", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize(
    "kind", [kind for kind in MODALITIES if can_be_output(kind.example(np.random.default_rng(0))[0])]
)
def test_a_target_of_another_structure_is_an_error_that_names_the_output(kind, target):
    spec, _ = kind.example(np.random.default_rng(0))
    schema = Schema({"it": Numbers(), "frames": Numbers()}, {"it": spec})
    with pytest.raises(ValueError, match=r"^target 'it': .+$"):
        schema.losses({"it": torch.zeros(2, 3)}, {"it": target})


def test_targets_may_be_arrays_and_lists():
    schema = Schema({"x": Numbers()}, {"y": NAMED, "n": Numbers(count=2), "p": Image(size=2, channels=1)})
    written = {"y": torch.randn(2, 3), "n": torch.randn(2, 2), "p": torch.randn(2, 2, 2, 1)}
    targets = {"y": [2, -100], "n": np.array([[1, 0], [0, 1]]), "p": np.ones((2, 2, 2, 1), bool)}
    tensors = {name: torch.as_tensor(np.asarray(value)) for name, value in targets.items()}
    found = schema.losses(written, targets)
    for name, loss in schema.losses(written, {**tensors, "n": tensors["n"].float()}).items():
        torch.testing.assert_close(found[name], loss)
