"""Classes by name or number."""

import numpy as np
import pytest

from perceivers import Label
from perceivers.modalities.label import class_number


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"], ("a", "b")),
        ([0, 2, 1, 2], 3),
        ([0, 9], 10),
        (np.array([3, 1]), 4),
        ([1990, 2020, 1991], ("1990", "1991", "2020")),
        ([10**9, 7], ("7", "1000000000")),
        ([0, "1"], ("0", "1")),
        ([1, "1", "a", True, "True"], ("1", "True", "a")),
        ([], 0),
    ],
)
def test_classes_are_those_that_occur(values, classes):
    assert Label().fit(values).classes == classes
    assert Label(classes=5).fit(values).classes == 5


def test_numbers_are_places_unless_names_are_numbers():
    assert class_number(1, ("cat", "dog")) == 1
    assert class_number("dog", ("cat", "dog")) == 1
    assert class_number(np.int64(2020), ("1990", "1991", "2020")) == 2
    for wrong, classes in ((1, ("1990", "1991")), (2, ("cat", "dog")), (-1, 3), (3, 3)):
        with pytest.raises(ValueError, match="is not one of"):
            class_number(wrong, classes)


@pytest.mark.parametrize(
    ("value", "classes", "number"),
    [
        ("true", ("a", "True", "False"), 1),
        ("false", ("a", "True", "False"), 2),  # the vocabulary has grown at its begin
        (False, ("true", "false"), 1),
        ("true", ("TRUE", "FALSE"), 0),
        ("true", ("True",), 0),  # it has shrunk
        (False, ("True",), None),
        ("false", ("True",), None),
        (True, ("no", "yes"), 1),
    ],
)
def test_truth_values_are_found_by_name_in_any_vocabulary(value, classes, number):
    if number is None:
        with pytest.raises(ValueError, match="is not one of True"):
            class_number(value, classes)
    else:
        assert class_number(value, classes) == number


def test_a_class_of_years_is_learned_and_asked_by_year():
    label = Label().fit([1990, 2020, 1991])
    targets = [label.target(year, np.random.default_rng(0), {}, True) for year in (2020, 1990)]
    assert targets == [2, 0]
    assert label.preprocess(1, np.random.default_rng(0), False) is None
