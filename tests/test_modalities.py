"""Every kind of structure keeps the same contract: these tests run over the table of kinds."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.core.tokens import Segment
from perceivers.modalities import MODALITIES, FramePair, Label, Records, Text, Vectors
from perceivers.modalities.fields import NumberField
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


def name_of(kind):
    return kind.__name__


def rng():
    return np.random.default_rng(0)


def schema_of(kind):
    """A schema with the kind as an input and as an output, as far as it can be either; and its example values."""
    spec, values = kind.example(rng())
    records = [{"it": value, "frames": np.zeros((2, 5, 7, 3)), "x": np.ones((2, 3))} for value in values]
    other_input = {"frames": FramePair(size=(5, 7))} if hasattr(spec, "of") and spec.of == "frames" else {}
    inputs = dict(other_input)
    if can_be_input(spec):
        inputs["it"] = spec
    outputs = {"it": spec} if can_be_output(spec) else {}
    if kind is Vectors:
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


@pytest.fixture(params=MODALITIES, ids=name_of)
def kind(request):
    return request.param


def test_example_has_several_values_and_a_missing_one(kind):
    _, values = kind.example(rng())
    assert len(values) >= 2
    assert values[-1] is None or any(value is None for value in values)


def test_every_kind_is_an_input_or_an_output(kind):
    schema, _ = schema_of(kind)
    assert "it" in schema.inputs or "it" in schema.outputs


def test_survives_files(kind):
    schema, records = schema_of(kind)
    fitted = schema.fit(records)
    assert from_plain(Schema, to_plain(fitted)) == fitted


def test_forward_loss_and_backward(kind):
    torch.manual_seed(0)
    schema, batch = batch_of(*schema_of(kind))
    model = PerceiverIO(schema, SMALL)
    predictions = model(batch["inputs"], schema.points(batch["targets"]))
    losses = schema.losses(predictions, batch["targets"])
    if not losses:
        assert "it" not in schema.outputs
        return
    total = sum(losses.values())
    assert total.ndim == 0
    assert total.isfinite()
    total.backward()
    gradients = [p.grad for p in model.trunk.parameters()]
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients) or kind.__name__ == "Flow"


def test_missing_sample_takes_part_in_nothing(kind):
    """A batch row that lacks the input gives what a model without the input's tokens gives: finite, and no NaN."""
    schema, records = schema_of(kind)
    if "it" not in schema.inputs:
        return
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    latents = model.encode(batch["inputs"]).latents
    assert latents.isfinite().all()


def test_row_of_a_batch_equals_the_sample_alone(kind):
    schema, records = schema_of(kind)
    if "it" not in schema.inputs:
        return
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    together = model.encode(batch["inputs"]).latents
    known = [number for number, record in enumerate(records) if record["it"] is not None]
    for number in known:
        _, alone = None, schema.collate([schema.preprocess(records[number], np.random.default_rng(number), False)])
        torch.testing.assert_close(together[number : number + 1], model.encode(alone["inputs"]).latents)


def in_other_units(spec, mean=1e5, std=1e4):
    """The spec with statistics that half precision cannot hold; None for a kind without any."""
    if isinstance(spec, Records):
        fields = {name: replace(own, mean=mean, std=std) for name, own in spec.fields.items() if hasattr(own, "mean")}
        return replace(spec, fields={**spec.fields, **fields})
    return replace(spec, mean=(mean,), std=(std,)) if hasattr(spec, "mean") else None


def in_precision(raw, dtype):
    return tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, raw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_in_half_precision_mean_what_they_are(kind, dtype):
    """A known value is neither rounded nor lost on its way to the network's units, whatever the statistics."""
    spec = in_other_units(kind.example(rng())[0])
    if spec is None:
        return
    torch.manual_seed(0)
    schema, batch = batch_of(Schema({"it": spec}, {"out": Label(classes=3)}), schema_of(kind)[1], training=False)
    model = PerceiverIO(schema, SMALL).eval()
    raw = in_precision(batch["inputs"], dtype)
    found, exact = (model.encode(given).latents for given in (raw, in_precision(raw, torch.float32)))
    assert exact.isfinite().all()
    assert torch.equal(found, exact)


def test_outputs_in_half_precision_are_as_exact_as_in_the_networks_units(kind):
    """Near a large mean, bfloat16's numbers are further apart than whatever varies."""
    spec = in_other_units(kind.example(rng())[0], mean=1e5, std=1.0)
    if spec is None or not can_be_output(spec):
        return
    torch.manual_seed(0)
    _, records = schema_of(kind)
    schema, batch = batch_of(Schema({"x": Vectors(channels=3)}, {"it": spec}), records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    points = schema.points(batch["targets"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(batch["inputs"], points)["it"]
    with torch.no_grad():
        exact = model(batch["inputs"], points)["it"]
    for one, other in zip(tree_leaves(found), tree_leaves(exact), strict=True):
        assert (one - other).abs().max() < 0.3


@pytest.mark.parametrize(
    ("mean", "std"), [(0.0, 0.0), (0.0, -1.0), (0.0, 1e-40), (0.0, np.nan), (np.inf, 1.0), (1e39, 1.0)]
)
def test_statistics_that_normalise_nothing_are_refused(kind, mean, std):
    spec = kind.example(rng())[0]
    if in_other_units(spec) is not None:
        with pytest.raises(ValueError, match=r"must be (above 0|finite)"):
            in_other_units(spec, mean, std)


def test_arrays_and_masks_of_whole_numbers_are_taken_in_place_of_tensors(kind):
    schema, records = schema_of(kind)
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


def test_what_is_no_batch_of_the_kind_is_an_error_that_names_the_input(kind):
    schema, records = schema_of(kind)
    if "it" not in schema.inputs:
        return
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


def test_target_is_never_corrupted(kind):
    """Preparing twice with different random numbers gives the same target."""
    schema, records = schema_of(kind)
    if "it" not in schema.outputs:
        return
    first, second = (
        schema.preprocess(records[0], np.random.default_rng(seed), False)["targets"]["it"] for seed in (1, 2)
    )
    np.testing.assert_equal(first, second)


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_metrics_of_perfect_predictions_are_numbers(kind):
    schema, records = schema_of(kind)
    if "it" not in schema.outputs:
        return
    schema, batch = batch_of(schema, records, training=False)
    spec, target = schema.outputs["it"], batch["targets"]["it"]
    prediction = PerceiverIO(schema, SMALL).eval()(batch["inputs"], schema.points(batch["targets"]))["it"]
    for metric in spec.metrics().values():
        metric.update(*spec.metric_inputs(prediction, target))
        assert torch.as_tensor(metric.compute()).isfinite()


def test_chunks_equal_the_whole(kind):
    schema, records = schema_of(kind)
    if "it" not in schema.outputs:
        return
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    model = PerceiverIO(schema, SMALL).eval()
    if schema.points(batch["targets"]):
        return  # it has no whole
    encoded = model.encode(batch["inputs"])
    queries = model.output_query(encoded, {}, ["it"])
    heads = model.output_adapter.heads(model.input_adapter.adapters)
    rows = model.decoder(queries, encoded.latents, heads)["it"]
    pieces = []
    for index in torch.arange(rows.shape[1]).split(3):
        part = model.output_query(encoded, {"it": Indices(index)}, ["it"])
        pieces.append(model.decoder(part, encoded.latents, heads)["it"])
    torch.testing.assert_close(torch.cat(pieces, dim=1), rows)


def test_a_row_of_many_fields_is_drawn_in_part():
    """Downwards and without a warning, however many there are."""
    row = Records({f"a_field_of_number_{n}": NumberField() for n in range(40)}, max_records=1, key="*")
    schema = Schema({"row": row}, {"label": Label(classes=3)})
    values = {name: torch.rand(2, 1) for name in row.fields} | {"mask": torch.ones(2, 1).bool()}
    batch = {"inputs": {"row": values}, "targets": {"label": torch.tensor([0, 2])}}
    figure = draw_samples(schema, batch, {"label": torch.rand(2, 3)})
    figure.savefig(io.BytesIO())
    shown = figure.axes[0].texts[0].get_text().splitlines()
    assert shown[0].startswith("a_field_of_number_0  ")
    assert shown[-1] == "and 28 more"


def test_picture_draws(kind):
    from matplotlib.figure import Figure

    schema, records = schema_of(kind)
    _, batch = batch_of(schema, records, training=False)
    for side, specs in (("inputs", schema.inputs), ("targets", schema.outputs)):
        if "it" in specs and "it" in batch[side]:
            axes = Figure().subplots()
            specs["it"].picture(axes, sample_of(batch[side]["it"], 0))
            assert axes.has_data() or axes.texts or axes.images


def test_gradients_are_right_in_float64(kind):
    """gradcheck from the content of tokens through adapter, trunk, query, decoder and head to the output."""
    schema, records = schema_of(kind)
    if "it" not in schema.inputs:
        return
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    adapter = schema.inputs["it"].build_input().double()
    raw = _double(batch["inputs"]["it"])
    leaf = _first_float(raw)
    if leaf is None:
        for leaf in list(adapter.parameters())[:1]:  # a one-hot label has neither numbers nor parameters
            assert torch.autograd.gradcheck(lambda _: _dense(adapter(raw)), (leaf,), fast_mode=True)
        return
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


@pytest.mark.parametrize("join", ["pad", "project"])
def test_decoding_in_chunks_changes_nothing(kind, join):
    schema, records = schema_of(kind)
    torch.manual_seed(0)
    schema, batch = batch_of(schema, records, training=False)
    encoder = replace(SMALL.encoder, channel_alignment=join, num_heads=1)
    config = replace(SMALL, encoder=encoder, decoder=DecoderConfig(channel_alignment=join))
    model = PerceiverIO(schema, config).eval()
    encoded, points = model.encode(batch["inputs"]), schema.points(batch["targets"])
    whole, chunked = (
        model.decode(encoded, points),
        model.decode(encoded, points, memory_limit=1 << 20, algorithm="projected"),
    )
    torch.testing.assert_close(chunked, whole)


@pytest.mark.parametrize("kind", [kind for kind in MODALITIES if "it" in schema_of(kind)[0].outputs], ids=name_of)
def test_terms_of_rows_add_up_to_those_of_the_batch(kind):
    """So that parts of a batch can be weighed; a sample without a target has none."""
    schema, records = schema_of(kind)
    schema, batch = batch_of(schema, records)
    spec, target = schema.outputs["it"], batch["targets"]["it"]
    rows = [
        spec.num_terms({k: v[n : n + 1] for k, v in target.items()} if isinstance(target, dict) else target[n : n + 1])
        for n in range(len(records))
    ]
    assert spec.num_terms(target) == sum(rows) > 0
    assert [int(row) for row, record in zip(rows, records, strict=True) if record["it"] is None] == [0]
