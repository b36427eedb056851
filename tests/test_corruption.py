"""Corruption is for training; in evaluation where an option says so; a prediction uses all that it is given."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from perceivers import Category, Config, Label, Number, Numbers, PerceiverIO, PointSet, Records, Schema, Text
from perceivers.core.config import DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.positions import Fourier
from perceivers.data import Table
from perceivers.modalities import KINDS
from perceivers.modalities.kind import AT_EVAL, as_evaluated
from perceivers.schema import to_plain
from perceivers.tasks import digits, starcraft
from perceivers.tasks.prediction import predict_rows
from perceivers.tasks.recipe import Recipe, changed_schema, changed_specs, hiding
from perceivers.training.evaluation import evaluate
from perceivers.training.order import evaluation_batches

SMALL = Config(
    LatentsConfig(num_latents=7, channels=12),
    EncoderConfig(num_heads=3, dropout=0.5),
    ProcessorConfig(num_heads=2, num_layers=1),
    DecoderConfig(num_heads=1),
)
CORRUPTED = {
    "points": PointSet(axes=1, channels=1, positions=Fourier(num_bands=3, max_resolution=11), keep=(0.1, 0.6)),
    "units": Records(
        {"type": Category(classes=3, channels=5), "age": Number(0.0, 1.0)}, hide={"type": 0.5, "age": 0.5}
    ),
    "text": Text(length=37, channels=5, mask_words=0.5),
    "numbers": Numbers(count=3, mean=(0.0,), std=(1.0,), drop_prob=0.5, mask_prob=0.5),
}
RECORD = {
    "points": [[n / 17, 1.0] for n in range(17)],
    "units": [{"type": 1, "age": float(n)} for n in range(13)],
    "text": "some words of which a half is masked",
    "numbers": [1.0, 2.0, 3.0],
}
EVERYWHERE = {
    name: dataclasses.replace(
        spec, **{own.name: True for own in dataclasses.fields(spec) if own.name.endswith("_at_eval")}
    )
    for name, spec in CORRUPTED.items()
}


def prepared(spec, seed, training):
    return spec.prepare(RECORD[next(n for n, own in CORRUPTED.items() if type(own) is type(spec))], rng(seed), training)


def rng(seed):
    return np.random.default_rng(seed)


def plain(value):
    return {n: plain(v) for n, v in value.items()} if isinstance(value, dict) else np.asarray(value).tolist()


def kinds_of(specs):
    return [pytest.param(specs[name], id=name) for name in ("points", "units", "text")]


@pytest.mark.parametrize("spec", kinds_of(CORRUPTED))
def test_corruption_is_for_training(spec):
    assert plain(prepared(spec, 1, True)) != plain(prepared(spec, 2, True))
    assert plain(prepared(spec, 1, False)) == plain(prepared(spec, 2, False))


@pytest.mark.parametrize("spec", kinds_of(EVERYWHERE))
def test_it_acts_in_evaluation_where_the_option_says_so(spec):
    assert plain(prepared(spec, 1, False)) != plain(prepared(spec, 2, False))
    assert plain(prepared(spec.uncorrupted(), 1, False)) == plain(prepared(spec.uncorrupted(), 2, False))


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_evaluation_is_off_unless_asked_for(kind):
    spec, values = kind.example(rng(0))
    options = {own.name: own.default for own in dataclasses.fields(kind) if own.name.endswith("_at_eval")}
    assert set(options.values()) == {False}
    assert {own.name for own in dataclasses.fields(kind)} & {"keep", "hide", "mask_words"} <= AT_EVAL.keys()
    if spec.uncorrupted() != spec or kind.__name__ == "Vectors":
        return
    value = next(value for value in values if value is not None)
    np.testing.assert_equal(spec.prepare(value, rng(1), False), spec.prepare(value, rng(2), False))


@pytest.mark.parametrize("inputs", [CORRUPTED, EVERYWHERE], ids=["training", "everywhere"])
def test_a_prediction_is_that_of_a_model_without_corruption(inputs):
    torch.manual_seed(0)
    model = PerceiverIO(Schema(inputs, {"label": Label(classes=3), "sum": Numbers(mean=(0.0,), std=(1.0,))}), SMALL)
    clean = {**CORRUPTED, "points": dataclasses.replace(CORRUPTED["points"], keep=(1.0, 1.0))}
    clean["units"] = dataclasses.replace(CORRUPTED["units"], hide={})
    clean["text"] = dataclasses.replace(CORRUPTED["text"], mask_words=0.0)
    bare = PerceiverIO(Schema(clean, model.schema.outputs), SMALL)
    bare.load_state_dict(model.state_dict())
    rows = list(predict_rows(model.train(), [RECORD, RECORD], 1, explain=True))
    assert rows[0] == rows[1] == next(iter(predict_rows(bare, [RECORD], 1, explain=True)))
    assert model.input_adapter.mask_probs == {"numbers": (0.5, inputs is EVERYWHERE)}


def test_what_is_always_masked_is_masked_in_a_prediction_too():
    torch.manual_seed(0)
    always = dataclasses.replace(CORRUPTED["numbers"], mask_prob=1.0, mask_at_eval=True)
    model = PerceiverIO(Schema({"numbers": always}, {"label": Label(classes=3)}), SMALL).eval()
    one, two = predict_rows(model, [{"numbers": [1.0, 2.0, 3.0]}, {"numbers": [3.0, 2.0, 1.0]}], 1)
    assert one == two


def test_an_evaluation_that_names_a_corruption_has_it():
    schema = Schema({"points": CORRUPTED["points"]}, {"label": Label(classes=3)})
    assert changed_schema(schema, {"points": {"keep": [0.3, 0.3]}}).inputs["points"].keep_at_eval
    assert (
        not changed_schema(schema, {"points": {"keep": [0.3, 0.3], "keep_at_eval": False}})
        .inputs["points"]
        .keep_at_eval
    )
    assert not changed_schema(schema, {"points": {"drop_prob": 0.1}}).inputs["points"].keep_at_eval
    assert as_evaluated({"mask_prob": 0.5}) == {"mask_prob": 0.5, "mask_at_eval": True}


def test_an_evaluation_may_hide_at_random_and_a_model_outside_of_it_does_not():
    torch.manual_seed(0)
    spec = CORRUPTED["numbers"]
    model = PerceiverIO(Schema({"numbers": spec}, {"label": Label(classes=3)}), SMALL).eval()
    raw = {"numbers": torch.ones(64, 3)}
    schema = Schema({"numbers": dataclasses.replace(spec, mask_at_eval=True)}, model.schema.outputs)
    assert torch.equal(model(raw)["label"], model(raw)["label"])
    with hiding(model, schema):
        assert not torch.equal(model(raw)["label"], model(raw)["label"])


def test_recipes_that_are_scored_on_corrupted_records_say_so():
    pixels = digits.recipe().schema.inputs["pixels"]
    assert pixels.keep_at_eval
    assert starcraft.schema().inputs["units"].hide_at_eval
    records = [{"pixels": [[n, n, 1.0] for n in range(64)], "label": 3}]
    schema = Schema({"pixels": dataclasses.replace(pixels, keep=(0.25, 0.25))}, {"label": Label(classes=10)})
    (batch,) = evaluation_batches(schema, records, 1)
    assert batch["inputs"]["pixels"]["mask"].sum() == 16


def test_old_schemas_keep_their_fields_and_are_evaluated_on_everything():
    old = {name: value for name, value in to_plain(CORRUPTED["points"]).items() if name != "keep_at_eval"}
    assert dataclasses.replace(PointSet(axes=1), **{"keep": tuple(old["keep"])}).keep_at_eval is False
    schema = Schema({"numbers": Numbers(count=3)}, {"label": Label(classes=3)})
    model = PerceiverIO(schema, SMALL)
    assert evaluate(model, [{"numbers": [1.0, 2.0, 3.0], "label": -100}, {"numbers": [1.0, 2.0, 3.0], "label": 1}])


def test_what_evaluations_change_is_checked_alone():
    """Not the whole schema anew for each of them."""
    inputs = {f"x{number}": Numbers() for number in range(11)}
    schema = Schema(inputs, {"label": Label(classes=3)})
    changed = changed_specs(schema, {"x7": {"drop_prob": 0.5}})
    assert changed == {"inputs": {"x7": Numbers(drop_prob=0.5)}, "outputs": {}}
    assert changed_schema(schema, {"x7": {"weight": 0.5}, "label": {"weight": 2.0}}) == Schema(
        inputs | {"x7": Numbers(weight=0.5)}, {"label": Label(classes=3, weight=2.0)}
    )
    for changes, said in (
        ({"y": {}}, "unknown input or output 'y'"),
        ({"x7": {"drop_prob": math.nan}}, "inputs.x7.drop_prob: nan"),
        ({"x7": {"count": -1}}, "count"),
        ({"label": {"of": "z"}}, "unknown input in outputs.label.of: 'z'"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            Recipe(Table(), schema, evaluations={"e": changes})
