"""Corruption acts in training; in evaluation only if an option enables it; a prediction uses all of its inputs."""

import dataclasses
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from perceivers import (
    Audio,
    CategoryField,
    Config,
    Flow,
    FramePair,
    Image,
    Label,
    NumberField,
    Numbers,
    PerceiverIO,
    PointSet,
    Records,
    Schema,
    Series,
    Text,
)
from perceivers.core.config import DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.fast.plan_report import attention_plan
from perceivers.data import Table
from perceivers.modalities import MODALITIES
from perceivers.modalities.modality import AT_EVAL, as_evaluated
from perceivers.modalities.position_encodings import Fourier
from perceivers.runs.attention_report import attention, attention_page
from perceivers.runs.prediction import output_columns, predict_rows
from perceivers.runs.recipe import Recipe, changed_schema, changed_specs
from perceivers.runs.report import predict
from perceivers.schema.plain_values import to_plain
from perceivers.systems import digits, starcraft
from perceivers.systems.imagenet.inference import classify
from perceivers.training.losses import Objective
from perceivers.training.metrics import evaluate, masking_of, validation_loss
from perceivers.training.sampler import evaluation_batches

SMALL = Config(
    LatentsConfig(num_latents=7, channels=12),
    EncoderConfig(num_heads=3, dropout=0.5),
    ProcessorConfig(num_heads=2, num_layers=1),
    DecoderConfig(num_heads=1),
)
CORRUPTED = {
    "points": PointSet(axes=1, channels=1, positions=Fourier(num_bands=3, max_resolution=11), subsample=(0.1, 0.6)),
    "units": Records(
        {"type": CategoryField(classes=3, channels=5), "age": NumberField(0.0, 1.0)},
        field_mask_prob={"type": 0.5, "age": 0.5},
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
    return spec.preprocess(
        RECORD[next(n for n, own in CORRUPTED.items() if type(own) is type(spec))], rng(seed), training
    )


def rng(seed):
    return np.random.default_rng(seed)


def plain(value):
    return {n: plain(v) for n, v in value.items()} if isinstance(value, dict) else np.asarray(value).tolist()


def specs_of(specs):
    return [pytest.param(specs[name], id=name) for name in ("points", "units", "text")]


@pytest.mark.parametrize("spec", specs_of(CORRUPTED))
def test_corruption_is_for_training(spec):
    assert plain(prepared(spec, 1, True)) != plain(prepared(spec, 2, True))
    assert plain(prepared(spec, 1, False)) == plain(prepared(spec, 2, False))


@pytest.mark.parametrize("spec", specs_of(EVERYWHERE))
def test_it_acts_in_evaluation_where_the_option_says_so(spec):
    assert plain(prepared(spec, 1, False)) != plain(prepared(spec, 2, False))
    assert plain(prepared(spec.uncorrupted(), 1, False)) == plain(prepared(spec.uncorrupted(), 2, False))


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_option_of_evaluation_is_off_unless_asked_for(modality):
    spec, values = modality.example(rng(0))
    options = {own.name: own.default for own in dataclasses.fields(modality) if own.name.endswith("_at_eval")}
    assert set(options.values()) == {False}
    assert {own.name for own in dataclasses.fields(modality)} & {
        "subsample",
        "field_mask_prob",
        "mask_words",
    } <= AT_EVAL.keys()
    assert spec.uncorrupted() == spec
    value = next(value for value in values if value is not None)
    np.testing.assert_equal(spec.preprocess(value, rng(1), False), spec.preprocess(value, rng(2), False))


@pytest.mark.parametrize("inputs", [CORRUPTED, EVERYWHERE], ids=["training", "everywhere"])
def test_a_prediction_is_that_of_a_model_without_corruption(inputs):
    torch.manual_seed(0)
    model = PerceiverIO(Schema(inputs, {"label": Label(classes=3), "sum": Numbers(mean=(0.0,), std=(1.0,))}), SMALL)
    clean = {**CORRUPTED, "points": dataclasses.replace(CORRUPTED["points"], subsample=(1.0, 1.0))}
    clean["units"] = dataclasses.replace(CORRUPTED["units"], field_mask_prob={})
    clean["text"] = dataclasses.replace(CORRUPTED["text"], mask_words=0.0)
    bare = PerceiverIO(Schema(clean, model.schema.outputs), SMALL)
    bare.load_state_dict(model.state_dict())
    rows = list(predict_rows(model.train(), [RECORD, RECORD], 1, attribution=True))
    assert rows[0] == rows[1] == next(iter(predict_rows(bare, [RECORD], 1, attribution=True)))
    assert model.input_adapter.mask_probs == {"numbers": (0.5, inputs is EVERYWHERE)}


def test_what_is_always_masked_is_masked_in_a_prediction_too():
    torch.manual_seed(0)
    always = dataclasses.replace(CORRUPTED["numbers"], mask_prob=1.0, mask_at_eval=True)
    model = PerceiverIO(Schema({"numbers": always}, {"label": Label(classes=3)}), SMALL).eval()
    one, two = predict_rows(model, [{"numbers": [1.0, 2.0, 3.0]}, {"numbers": [3.0, 2.0, 1.0]}], 1)
    assert one == two


def test_an_evaluation_that_names_a_corruption_has_it():
    schema = Schema({"points": CORRUPTED["points"]}, {"label": Label(classes=3)})
    assert changed_schema(schema, {"points": {"subsample": [0.3, 0.3]}}).inputs["points"].subsample_at_eval
    assert (
        not changed_schema(schema, {"points": {"subsample": [0.3, 0.3], "subsample_at_eval": False}})
        .inputs["points"]
        .subsample_at_eval
    )
    assert not changed_schema(schema, {"points": {"drop_prob": 0.1}}).inputs["points"].subsample_at_eval
    assert as_evaluated({}, {"mask_prob": 0.5}) == {"mask_prob": 0.5, "mask_at_eval": True}


@pytest.mark.parametrize(
    ("at_eval", "changes", "expected"),
    [
        (False, {"mask_prob": 0.0}, (0.0, 0.0, True)),
        (False, {"mask_prob": 0.2}, (0.0, 0.2, True)),
        (False, {"mask_words": 0.2}, (0.2, 0.0, True)),
        (False, {"mask_words": 0.2, "mask_prob": 0.1}, (0.2, 0.1, True)),
        (False, {"mask_at_eval": True}, (0.5, 0.3, True)),
        (False, {"mask_words": 0.2, "mask_at_eval": False}, (0.2, 0.3, False)),
        (False, {"drop_prob": 1.0}, (0.5, 0.3, False)),
        (True, {"mask_prob": 0.0}, (0.5, 0.0, True)),
        (True, {"mask_words": 0.0}, (0.0, 0.3, True)),
    ],
)
def test_an_evaluation_changes_only_the_corruption_that_it_names(at_eval, changes, expected):
    text = dataclasses.replace(CORRUPTED["text"], mask_prob=0.3, mask_at_eval=at_eval)
    schema = Schema({"text": text}, {"label": Label(classes=3)})
    found = changed_schema(schema, {"text": changes}).inputs["text"]
    assert (found.mask_words, found.mask_prob, found.mask_at_eval) == expected
    assert found.drop_at_eval is ("drop_prob" in changes)


def test_an_evaluation_drops_an_input_where_it_says_so_and_a_prediction_never():
    torch.manual_seed(0)
    inputs = {"numbers": CORRUPTED["numbers"], "other": Numbers(mean=(0.0,), std=(1.0,))}
    model = PerceiverIO(Schema(inputs, {"sum": Numbers(mean=(0.0,), std=(1.0,))}), SMALL)
    records = [{"numbers": [1.0, 2.0, float(n)], "other": [1.0], "sum": [float(n)]} for n in range(5)]
    without = [{**record, "numbers": None} for record in records]
    schema = changed_schema(model.schema, {"numbers": {"drop_prob": 1.0}})
    assert evaluate(model, records, schema) == evaluate(model, without) != evaluate(model, records)
    assert schema.uncorrupted.inputs["numbers"].drop_at_eval is False


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("label", "weight", 2.0), ("label", "smoothing", 0.1), ("series", "noise", 0.5), ("series", "num_points", 3)],
)
def test_an_evaluation_refuses_a_field_that_it_does_not_feel(name, field, value):
    schema = Schema({"series": Series(size=11)}, {"label": Label(classes=3)})
    with pytest.raises(ValueError, match=f"{name}: {field} has no effect in an evaluation"):
        changed_schema(schema, {name: {field: value}})


def test_an_evaluation_may_hide_at_random_and_a_model_outside_of_it_does_not():
    torch.manual_seed(0)
    spec = CORRUPTED["numbers"]
    model = PerceiverIO(Schema({"numbers": spec}, {"label": Label(classes=3)}), SMALL).eval()
    raw = {"numbers": torch.ones(64, 3)}
    schema = Schema({"numbers": dataclasses.replace(spec, mask_at_eval=True)}, model.schema.outputs)
    masking = masking_of(model, schema, seed=3)
    assert masking_of(model, model.schema).probs == {"numbers": 0.0}
    masked = model(raw, masking=masking)["label"]
    assert len(masked.unique(dim=0)) == 2  # a sample is either masked or not
    assert torch.equal(masked, model(raw, masking=masking)["label"])
    assert not torch.equal(masked, model(raw, masking=masking._replace(seed=4))["label"])
    later = model({"numbers": raw["numbers"][:60]}, masking=masking._replace(first=4))["label"]
    torch.testing.assert_close(later, masked[4:])
    assert len(model(raw)["label"].unique(dim=0)) == 1


OF = Fourier(num_bands=3)
FRAMES = np.linspace(-1, 1, 2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
IN_BATCHES = {
    "label of a series": (Series(size=11, positions=OF), Label(classes=3, of="own"), [1.0, 2.0, 3.0], None),
    "label of a text": (Text(length=20, channels=6, prefix=1), Label(classes=3, of="own"), "some", None),
    "flow": (FramePair(size=(4, 4), embed=5, positions=OF), Flow(of="own"), FRAMES, None),
    "an empty series": (Series(size=11, positions=OF), Label(classes=3), [1.0, 2.0], []),
    "a series unknown": (Series(size=11, positions=OF, mask_prob=0.0), Label(classes=3), [1.0, 2.0], [np.nan]),
    "a series lacking": (Series(size=11, positions=OF, mask_prob=0.0), Label(classes=3), [1.0, 2.0], None),
    "a sound lacking": (Audio(size=40, patch=5, positions=OF, mask_prob=0.0), Label(classes=3), [1.0] * 13, None),
    "a small picture": (Image(size=(4, 4), positions=OF, mask_prob=0.0), Label(classes=3), FRAMES[0, :2], None),
}


@pytest.mark.parametrize("case", IN_BATCHES)
def test_a_row_is_predicted_alike_in_every_batch(case):
    own, output, value, other = IN_BATCHES[case]
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, decoder=DecoderConfig(num_heads=1, query_residual=False))
    inputs = {"own": own, "numbers": Numbers(mean=(0.0,), std=(1.0,))}
    model = PerceiverIO(Schema(inputs, {"output": output}), config)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    records = [{"own": known, "numbers": [1.0]} for known in (value, other, value)]
    alone, together = (list(predict_rows(model, records, size, attribution=True)) for size in (1, 3))
    for one, two in zip(alone, together, strict=True):
        assert one == pytest.approx(two, abs=1e-5) if "flow" not in case else one.keys() == two.keys()
        assert [name for name in one if one[name] is None] == [name for name in two if two[name] is None]
    assert (alone[1].get("output") is None) == ("of" in case or case == "flow")


def test_an_output_that_asks_with_an_input_has_no_target_without_it():
    schema = Schema({"text": Text(length=20, channels=6, prefix=1)}, {"label": Label(classes=3, of="text")})
    assert schema.preprocess({"text": None, "label": 1}, rng(0), training=True)["targets"] == {"label": None}
    assert schema.preprocess({"text": "some", "label": 1}, rng(0), training=True)["targets"]["label"] is not None


MASKED = {
    "image": Image(size=(3, 5), channels=1, positions=Fourier(num_bands=3), mask_prob=0.5, mask_at_eval=True),
    "series": Series(size=7, positions=Fourier(num_bands=3), mask_prob=0.5, mask_at_eval=True),
}


@pytest.fixture
def masked_model():
    torch.manual_seed(0)
    return PerceiverIO(Schema(MASKED, {"sum": Numbers(mean=(0.0,), std=(1.0,))}), SMALL)


def masked_records(count):
    draw = rng(0).normal
    return [
        {"image": draw(size=(3, 5, 1)), "series": draw(size=(3 + n % 5, 1)) if n % 4 else None, "sum": [float(n)]}
        for n in range(count)
    ]


def test_scores_with_masks_are_those_of_seed_and_record_whatever_the_batch(masked_model):
    records, state = masked_records(11), torch.get_rng_state()
    scores = [evaluate(masked_model, records, batch_size=size)["sum"]["mae"] for size in (1, 3, 11, 11)]
    assert scores[2] == scores[3]
    assert scores == pytest.approx([scores[0]] * 4, rel=1e-5)
    assert evaluate(masked_model, records, seed=1)["sum"]["mae"] != scores[3]
    assert validation_loss(Objective(masked_model), records, 3) == pytest.approx(
        validation_loss(Objective(masked_model), records, 11), rel=1e-5
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_model_is_asked_beside_an_evaluation_is_not_masked(masked_model, tmp_path):
    records = masked_records(3)
    raw = masked_model.eval().schema.collate([masked_model.schema.preprocess(r, rng(0), False) for r in records])[
        "inputs"
    ]
    bare = PerceiverIO(masked_model.schema.changed("image", mask_prob=0.0).changed("series", mask_prob=0.0), SMALL)
    bare.load_state_dict(masked_model.state_dict())
    assert torch.equal(masked_model(raw)["sum"], bare.eval()(raw)["sum"])
    assert torch.equal(attention(masked_model.train(), raw)["image"], attention(bare, raw)["image"])
    pages = [
        attention_page(model.train(), records, tmp_path / "page.html").read_text() for model in (masked_model, bare)
    ]
    assert pages[0] == pages[1]


def test_threads_predict_and_evaluate_with_one_model_at_once(masked_model):
    records, masks = masked_records(8), dict(masked_model.input_adapter.mask_probs)

    def predicted(_):
        return list(predict_rows(masked_model, records, 3))

    def scored(_):
        return evaluate(masked_model, records, batch_size=3)

    expected = predicted(0), scored(0)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(predicted, range(6))), list(threads.map(scored, range(6)))
        mixed = [threads.submit(work, 0) for work in [predicted, scored] * 6]
        found[0].extend(own.result() for own in mixed[::2])
        found[1].extend(own.result() for own in mixed[1::2])
    assert all(own == expected[0] for own in found[0])
    assert all(own == expected[1] for own in found[1])
    assert masked_model.input_adapter.mask_probs == masks


def norms_schema():
    image = Image(size=(8, 8), stem="conv", patch=4, embed=6, positions=Fourier(num_bands=3))
    return Schema({"image": image}, {"label": Label(classes=("a", "b"))})


def test_what_asks_a_model_in_training_mode_leaves_its_weights(tmp_path):
    model, draw = PerceiverIO(norms_schema(), SMALL), rng(0).normal
    records = [{"image": draw(size=(8, 8, 3)), "label": n % 2} for n in range(3)]
    raw = {"image": torch.from_numpy(records[0]["image"])[None].float()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pictures = [np.zeros((9, 9, 3), np.uint8)]
    for ask in (
        lambda: list(predict_rows(model.train(), records, 2, attribution=True)),
        lambda: output_columns(model.train()),
        lambda: attention(model.train(), raw),
        lambda: attention_page(model.train(), records, tmp_path / "page.html"),
        lambda: evaluate(model.train(), records),
        lambda: validation_loss(Objective(model), records, 2),
        lambda: predict(model.train(), model.schema, records),
        lambda: list(classify(model.train(), pictures, 1)),
        lambda: attention_plan(model.train(), raw),
    ):
        ask()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


def test_recipes_that_are_scored_on_corrupted_records_say_so():
    pixels = digits.recipe().schema.inputs["pixels"]
    assert pixels.subsample_at_eval
    assert starcraft.schema().inputs["units"].field_mask_at_eval
    records = [{"pixels": [[n, n, 1.0] for n in range(64)], "label": 3}]
    schema = Schema({"pixels": dataclasses.replace(pixels, subsample=(0.25, 0.25))}, {"label": Label(classes=10)})
    (batch,) = evaluation_batches(schema, records, 1)
    assert batch["inputs"]["pixels"]["mask"].sum() == 16


def test_old_schemas_keep_their_fields_and_are_evaluated_on_everything():
    old = {name: value for name, value in to_plain(CORRUPTED["points"]).items() if name != "subsample_at_eval"}
    assert dataclasses.replace(PointSet(axes=1), **{"subsample": tuple(old["subsample"])}).subsample_at_eval is False
    schema = Schema({"numbers": Numbers(count=3)}, {"label": Label(classes=3)})
    model = PerceiverIO(schema, SMALL)
    assert evaluate(model, [{"numbers": [1.0, 2.0, 3.0], "label": -100}, {"numbers": [1.0, 2.0, 3.0], "label": 1}])


def test_what_evaluations_change_is_checked_alone():
    """Changing one entry validates that entry, not the whole schema."""
    inputs = {f"x{number}": Numbers() for number in range(11)}
    schema = Schema(inputs, {"label": Label(classes=3)})
    changed = changed_specs(schema, {"x7": {"token": 1}})
    assert changed == {"inputs": {"x7": Numbers(token=1)}, "outputs": {}}
    assert changed_schema(schema, {"x7": {"token": 1}, "label": {"token": 2}}) == Schema(
        inputs | {"x7": Numbers(token=1)}, {"label": Label(classes=3, token=2)}
    )
    for changes, message in (
        ({"y": {}}, "unknown input or output 'y'"),
        ({"x7": {"drop_prob": math.nan}}, "inputs.x7.drop_prob: nan"),
        ({"x7": {"count": -1}}, "count"),
        ({"label": {"of": "z"}}, "unknown input in outputs.label.of: 'z'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Recipe(Table(), schema, evaluations={"e": changes})
