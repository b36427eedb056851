"""Every modality fulfils the same contract: these tests run over the table of modalities."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from cross_cases import least_limit, watched_blocks
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.tokens import Segment
from perceivers.modalities import (
    MODALITIES,
    Events,
    Flow,
    FramePair,
    Label,
    Labels,
    ProbabilisticRegression,
    Records,
    Text,
    Vectors,
)
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.modality import Modality, sample_of
from perceivers.modalities.points import Indices
from perceivers.schema import Schema
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.training.plots import draw_samples

SMALL = Config(
    LatentsConfig(num_latents=7, channels=12),
    EncoderConfig(num_heads=3),
    ProcessorConfig(num_heads=2, num_layers=1),
    DecoderConfig(num_heads=1),
)


def name_of(modality):
    return modality.__name__


def rng():
    return np.random.default_rng(0)


def schema_of(modality):
    """Return a schema with the modality as an input and as an output, where possible, and its example values."""
    spec, values = modality.example(rng())
    others = {"frames": np.zeros((2, 5, 7, 3)), "x": np.ones((2, 3)), "out": "abc"}
    records = [{"it": value, **others} for value in values]
    other_input = {"frames": FramePair(size=(5, 7))} if hasattr(spec, "of") and spec.of == "frames" else {}
    inputs = dict(other_input)
    if can_be_input(spec):
        inputs["it"] = spec
    outputs = {"it": spec} if can_be_output(spec) else {}
    if modality is Vectors:
        outputs = {}  # as an output its records hold queries too: see test_perceiver.py
    return Schema(inputs or {"x": Vectors(channels=3)}, outputs or {"out": Text(length=3, tied=False)}), records


def can_be_input(spec):
    return type(spec).build_input is not Modality.build_input


def can_be_output(spec):
    return type(spec).build_output is not Modality.build_output


def batch_of(schema, records, training=True):
    schema = schema.fit(records)
    samples = [
        schema.preprocess(record, np.random.default_rng(number), training) for number, record in enumerate(records)
    ]
    return schema, schema.collate(samples)


INPUTS, OUTPUTS = (
    [modality for modality in MODALITIES if "it" in getattr(schema_of(modality)[0], side)]
    for side in ("inputs", "outputs")
)


@pytest.fixture(params=MODALITIES, ids=name_of)
def modality(request):
    return request.param


@pytest.fixture(params=INPUTS, ids=name_of)
def input_modality(request):
    return request.param


@pytest.fixture(params=OUTPUTS, ids=name_of)
def output_modality(request):
    return request.param


def test_example_has_several_values_and_a_missing_one(modality):
    _, values = modality.example(rng())
    assert len(values) >= 2
    assert values[-1] is None or any(value is None for value in values)


def test_every_modality_is_an_input_or_an_output(modality):
    schema, _ = schema_of(modality)
    assert "it" in schema.inputs or "it" in schema.outputs


def test_survives_files(modality):
    schema, records = schema_of(modality)
    fitted = schema.fit(records)
    assert from_plain(Schema, to_plain(fitted)) == fitted


def test_forward_loss_and_backward(modality):
    torch.manual_seed(0)
    schema, batch = batch_of(*schema_of(modality))
    model = PerceiverIO(schema, SMALL)
    predictions = model(batch["inputs"], schema.points(batch["targets"]))
    losses = schema.losses(predictions, batch["targets"])
    assert losses.keys() == schema.outputs.keys()
    total = sum(losses.values())
    assert total.ndim == 0
    assert total.isfinite()
    total.backward()
    gradients = [p.grad for p in model.trunk.parameters()]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    reached = any(gradient is not None and gradient.any() for gradient in gradients)
    assert reached != (modality is Flow)  # the head of Flow starts at zero


def test_missing_sample_takes_part_in_nothing(input_modality):
    """A sample that lacks the input gives the result of its other inputs; a sample that has it gives another result."""
    schema, records = schema_of(input_modality)
    schema = Schema({**schema.inputs, "x": Vectors(channels=3)}, schema.outputs)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    found = model.encode(batch["inputs"]).latents
    without = model.encode({"x": batch["inputs"]["x"]}).latents
    missing = [record["it"] is None for record in records]
    assert True in missing
    for number, is_missing in enumerate(missing):
        if is_missing:
            torch.testing.assert_close(found[number], without[number])
        else:
            assert (found[number] - without[number]).abs().max() > 1e-3


def test_row_of_a_batch_equals_the_sample_alone(input_modality):
    schema, records = schema_of(input_modality)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    together = model.encode(batch["inputs"]).latents
    known = [number for number, record in enumerate(records) if record["it"] is not None]
    assert known
    for number in known:
        alone = schema.collate([schema.preprocess(records[number], np.random.default_rng(number), False)])
        torch.testing.assert_close(together[number : number + 1], model.encode(alone["inputs"]).latents)


def in_other_units(spec, mean=1e5, std=1e4):
    """Return the spec with statistics beyond half precision; None for a modality without statistics."""
    if isinstance(spec, Records):
        fields = {name: replace(own, mean=mean, std=std) for name, own in spec.fields.items() if hasattr(own, "mean")}
        return replace(spec, fields={**spec.fields, **fields})
    return replace(spec, mean=(mean,), std=(std,)) if hasattr(spec, "mean") else None


def in_precision(raw, dtype):
    return tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, raw)


WITH_STATISTICS = [modality for modality in MODALITIES if in_other_units(modality.example(rng())[0]) is not None]


@pytest.mark.parametrize("modality", WITH_STATISTICS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_in_half_precision_mean_what_they_are(modality, dtype):
    """A known value is neither rounded nor lost before it is normalised, whatever the statistics."""
    spec = in_other_units(modality.example(rng())[0])
    torch.manual_seed(0)
    schema, batch = batch_of(Schema({"it": spec}, {"class": Label(classes=3)}), schema_of(modality)[1], training=False)
    model = PerceiverIO(schema, SMALL).eval()
    raw = in_precision(batch["inputs"], dtype)
    found, exact = (model.encode(given).latents for given in (raw, in_precision(raw, torch.float32)))
    assert exact.isfinite().all()
    assert torch.equal(found, exact)


@pytest.mark.parametrize("modality", [modality for modality in WITH_STATISTICS if modality in OUTPUTS], ids=name_of)
def test_outputs_in_half_precision_are_as_exact_as_in_the_networks_units(modality):
    """Near a large mean, the spacing of bfloat16's numbers exceeds the variation of the data."""
    spec = in_other_units(modality.example(rng())[0], mean=1e5, std=1.0)
    torch.manual_seed(0)
    _, records = schema_of(modality)
    schema, batch = batch_of(Schema({"x": Vectors(channels=3)}, {"it": spec}), records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    points = schema.points(batch["targets"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(batch["inputs"], points)["it"]
    with torch.no_grad():
        exact = model(batch["inputs"], points)["it"]
    for one, other in zip(tree_leaves(found), tree_leaves(exact), strict=True):
        assert (one - other).abs().max() < 0.3


@pytest.mark.parametrize("modality", WITH_STATISTICS, ids=name_of)
@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (0.0, 1e-40), (0.0, np.nan), (np.inf, 1.0), (1e39, 1.0)]
)
def test_statistics_that_normalise_nothing_are_refused(modality, mean, std):
    spec = modality.example(rng())[0]
    with pytest.raises(ValueError, match=r"must be (above 0|finite)"):
        in_other_units(spec, mean, std)


def test_arrays_and_masks_of_whole_numbers_are_taken_in_place_of_tensors(modality):
    schema, records = schema_of(modality)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    arrays = tree_map(lambda x: x.int().numpy() if x.dtype == torch.bool else x.numpy(), batch)
    points = schema.points(batch["targets"])
    torch.testing.assert_close(model(arrays["inputs"], points), model(batch["inputs"], points))
    predictions = model(batch["inputs"], points)
    if "it" in schema.outputs:
        torch.testing.assert_close(
            schema.losses(predictions, arrays["targets"]), schema.losses(predictions, batch["targets"])
        )


def test_what_is_no_batch_of_the_modality_is_an_error_that_names_the_input(input_modality):
    schema, records = schema_of(input_modality)
    schema, batch = batch_of(schema, records, training=False)
    model, raw = PerceiverIO(schema, SMALL).eval(), batch["inputs"]["it"]
    whole = raw if isinstance(raw, dict) else {"it": raw}
    nothing, complex_numbers = ({n: change(x) for n, x in whole.items()} for change in (_nothing, _complex))
    for wrong in (nothing, complex_numbers):
        with pytest.raises(ValueError, match=r"^input 'it': "):
            model.encode({"it": wrong if isinstance(raw, dict) else wrong["it"]})
    for wrong in (torch.zeros(()), "text", object(), {}, {"other": torch.zeros(2, 3)}, torch.zeros((1,) * 7)):
        with pytest.raises(ValueError, match=r"^input 'it': "):
            model.encode({"it": wrong})


def _nothing(x):
    return x[:0]


def _complex(x):
    return x + 1j


def test_target_is_never_corrupted(output_modality):
    """The target does not depend on the random numbers, nor on an input that drops and masks."""
    schema, records = schema_of(output_modality)
    if "it" in schema.inputs:
        corrupted = replace(schema.inputs["it"], drop_prob=1.0)
        schema = Schema({**schema.inputs, "it": corrupted}, schema.outputs)
    first, second = (
        schema.preprocess(records[0], np.random.default_rng(seed), False)["targets"]["it"] for seed in (1, 2)
    )
    np.testing.assert_equal(first, second)


PERFECT = {
    **{"accuracy": 1.0, "ece": 0.0, "mAP": 1.0, "bits_per_token": 0.0},
    **{"mae": 0.0, "r2": 1.0, "rmse": 0.0, "psnr": np.inf, "coverage": 1.0, "epe": 0.0, "fl": 0.0},
}
"""Metrics of a prediction that equals the target."""


def perfect(spec, target):
    """Return the prediction that equals a target; unknown values are arbitrary."""
    match spec:
        case Label():
            return sure_of(target, spec.num_classes)
        case Labels():
            return 100 * target.nan_to_num(0.5) - 50
        case Text():
            return sure_of(target["ids"], spec.num_ids)
        case Records():
            wide = {name: field.num_outputs for name, field in spec.fields.items() if isinstance(field, CategoryField)}
            values = {name: target[name] for name in spec.fields}
            return {name: sure_of(x, wide[name]) if name in wide else x.nan_to_num(0) for name, x in values.items()}
        case Events():
            return {**target, "value": target["value"].nan_to_num(0)}
        case ProbabilisticRegression():
            return torch.stack([target - 1, target, target + 1], dim=-1).nan_to_num(0)
    return (target["values"] if isinstance(target, dict) else target).nan_to_num(0)


def sure_of(classes, count):
    """Return logits [..., count] with a probability of practically 1."""
    return 50.0 * torch.nn.functional.one_hot(classes.clamp(min=0), count)


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_metrics_of_perfect_predictions_are_perfect(output_modality):
    """The metrics of an untrained model are worse."""
    schema, records = schema_of(output_modality)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    spec, target = schema.outputs["it"], batch["targets"]["it"]
    untrained = PerceiverIO(schema, SMALL).eval()(batch["inputs"], schema.points(batch["targets"]))["it"]
    found = {}
    for name, prediction in (("perfect", perfect(spec, target)), ("untrained", untrained)):
        metrics = spec.metrics()
        for metric in metrics.values():
            metric.update(*spec.metric_inputs(prediction, target))
        found[name] = {name: float(metric.compute()) for name, metric in metrics.items()}
    assert found["perfect"]
    assert found["perfect"] == pytest.approx({name: PERFECT[name] for name in found["perfect"]}, abs=1e-6)
    assert all(np.isfinite(value) for value in found["untrained"].values())
    assert found["untrained"] != pytest.approx(found["perfect"], abs=1e-2)


def num_rows(modality):
    """Return the number of queries of a whole output."""
    schema, batch = batch_of(*schema_of(modality), training=False)
    model = PerceiverIO(schema, SMALL).eval()
    encoded = model.encode(batch["inputs"])
    return 0 if schema.points(batch["targets"]) else model.output_query(encoded, {}, ["it"]).segments["it"].num_tokens


@pytest.mark.parametrize("modality", [modality for modality in OUTPUTS if num_rows(modality) > 3], ids=name_of)
def test_chunks_equal_the_whole(modality):
    """Outputs that can be decoded whole and have more queries than a chunk."""
    schema, records = schema_of(modality)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    encoded = model.encode(batch["inputs"])
    queries = model.output_query(encoded, {}, ["it"])
    heads = model.output_adapter.heads(model.input_adapter.adapters)
    whole = model.decoder(queries, encoded.around, heads)["it"]
    chunks = []
    for index in torch.arange(whole.shape[1]).split(3):
        part = model.output_query(encoded, {"it": Indices(index)}, ["it"])
        chunks.append(model.decoder(part, encoded.around, heads)["it"])
    assert len(chunks) > 1
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole)


def test_a_row_of_many_fields_is_drawn_in_part():
    """The list of fields is cut at the bottom and says how many are missing, without a warning."""
    row = Records({f"a_field_of_number_{n}": NumberField() for n in range(40)}, max_records=1, key="*")
    schema = Schema({"row": row}, {"label": Label(classes=3)})
    values = {name: torch.rand(2, 1) for name in row.fields} | {"mask": torch.ones(2, 1).bool()}
    batch = {"inputs": {"row": values}, "targets": {"label": torch.tensor([0, 2])}}
    figure = draw_samples(schema, batch, {"label": torch.rand(2, 3)})
    figure.savefig(io.BytesIO())
    shown = figure.axes[0].texts[0].get_text().splitlines()
    assert shown[0].startswith("a_field_of_number_0  ")
    assert shown[-1] == "and 28 more"


def test_picture_draws(modality):
    from matplotlib.figure import Figure

    schema, records = schema_of(modality)
    _, batch = batch_of(schema, records, training=False)
    sides = [side for side in ("inputs", "targets") if "it" in batch[side]]
    assert sides
    for side in sides:
        axes = Figure().subplots()
        (schema.inputs if side == "inputs" else schema.outputs)["it"].picture(axes, sample_of(batch[side]["it"], 0))
        assert axes.has_data() or axes.texts or axes.images


@pytest.mark.parametrize("modality", [modality for modality in INPUTS if modality is not Label], ids=name_of)
def test_gradients_are_right_in_float64(modality):
    """gradcheck from raw values, or else from the first parameter, to tokens; a one-hot label has neither."""
    schema, records = schema_of(modality)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    adapter = schema.inputs["it"].build_input().double()
    raw = _double(batch["inputs"]["it"])
    leaf = _first_float(raw)
    if leaf is None:
        leaf = next(adapter.parameters())
        assert torch.autograd.gradcheck(lambda _: _dense(adapter(raw)), (leaf,), fast_mode=True)
    else:
        known = leaf.nan_to_num(0.3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: _dense(adapter(_with_float(raw, x))), (known,), fast_mode=True)


def _dense(segment: Segment):
    return segment.dense(torch.float64)


def _double(raw):
    if isinstance(raw, dict):
        return {name: _double(value) for name, value in raw.items()}
    return raw.double() if raw.is_floating_point() else raw


def _first_float(raw):
    if isinstance(raw, dict):
        return next((value for value in raw.values() if value.is_floating_point()), None)
    return raw if raw.is_floating_point() else None


def _with_float(raw, x):
    if not isinstance(raw, dict):
        return x
    name = next(name for name, value in raw.items() if value.is_floating_point())
    return {**raw, name: x}


@pytest.mark.parametrize("alignment", ["pad", "project"])
def test_decoding_in_blocks_changes_nothing(modality, alignment, monkeypatch):
    """With little more memory than the smallest limit that works, a block holds a few queries."""
    schema, records = schema_of(modality)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    encoder = replace(SMALL.encoder, channel_alignment=alignment, num_heads=1)
    config = replace(SMALL, encoder=encoder, decoder=DecoderConfig(channel_alignment=alignment))
    model = PerceiverIO(schema, config).eval()
    encoded, points = model.encode(batch["inputs"]), schema.points(batch["targets"])
    limit = least_limit(lambda limit: model.decode(encoded, points, memory_limit=limit, algorithm="projected"))
    whole = model.decode(encoded, points)
    seen = watched_blocks(monkeypatch)
    found = model.decode(encoded, points, memory_limit=limit, algorithm="projected")
    torch.testing.assert_close(found, whole)
    assert seen
    assert all(num_blocks >= min(num_tokens, 3) for num_tokens, num_blocks in seen)


def test_terms_of_samples_add_up_to_those_of_the_batch(output_modality):
    """This is needed to weigh the parts of a batch; a sample without a target has no terms."""
    schema, records = schema_of(output_modality)
    schema, batch = batch_of(schema, records)
    spec, target = schema.outputs["it"], batch["targets"]["it"]
    terms = [
        spec.num_terms({k: v[n : n + 1] for k, v in target.items()} if isinstance(target, dict) else target[n : n + 1])
        for n in range(len(records))
    ]
    assert spec.num_terms(target) == sum(terms) > 0
    assert [int(own) for own, record in zip(terms, records, strict=True) if record["it"] is None] == [0]
