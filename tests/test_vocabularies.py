"""Vocabularies that grow and shrink: rows of classes go by name, in models, under --from and in runs that go on."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers import extend_vocabulary, from_pretrained, reduce_vocabulary, save_pretrained
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.files.tensor_files import load_shards, save_tensors, shard_name
from perceivers.modalities import MODALITIES, Events, Label, Labels, Numbers, PointSet, Records
from perceivers.modalities.class_rows import ClassRows, RowGroup, class_names, resized
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.points import Coordinates
from perceivers.pretrained.model_folder import load_model
from perceivers.pretrained.new_classes import vocabulary_lines
from perceivers.pretrained.transfer import transfer
from perceivers.runs.changed_run import write_changed_run
from perceivers.runs.run import Run, read_recipe
from perceivers.runs.schema_file import read_schema_file
from perceivers.runs.train import run_recipe
from perceivers.schema import Schema
from perceivers.schema.schema_files import with_settings
from perceivers.schema.vocabularies import class_rows, extended, merged, taken_over, vocabularies, with_vocabularies
from perceivers.training.checkpoints import latest_checkpoint
from small_run import weights_of
from tiers import few

CONFIG = Config(
    LatentsConfig(num_latents=3, channels=8),
    EncoderConfig(conditioned=True),
    ProcessorConfig(num_layers=1, num_heads=1),
    DecoderConfig(),
)
UNITS = ("a", "b", "c", "d", "e")
FIELDS = {
    "unit": CategoryField(classes=UNITS, channels=7),
    "kind": CategoryField(classes=3, channels=2),
    "time": NumberField(mean=0.0, std=1.0),
}
SCHEMA = Schema(
    inputs={
        "events": Records(FIELDS, coordinate_fields=("time",)),
        "parts": Records({"size": NumberField(mean=1.0, std=2.0), "part": FIELDS["unit"]}, tokens="field", channels=5),
        "state": Label(classes=("up", "down", "left"), role="condition"),
        "place": Label(classes=7, role="query"),
        "tags": Labels(classes=("x", "y", "z", "w", "v")),
    },
    outputs={
        "label": Label(classes=("cat", "dog", "eel"), query_channels=5, hidden_channels=13),
        "several": Labels(classes=5, query_channels=3),
        "table": Records({"speed": FIELDS["time"], "unit": FIELDS["unit"], "kind": FIELDS["kind"]}, query_channels=5),
        "guess": Records({"unit": FIELDS["unit"], "age": FIELDS["time"]}, of="events"),
        "field": PointSet(axes=2, channels=1, of="place", bounds=((0.0, 1.0), (0.0, 1.0)), mean=(0.0,), std=(1.0,)),
        "tag": Label(classes=("one", "two"), of="tags", query_channels=3),
    },
)
NEW = {"inputs.events.unit": ["f", "g"], "outputs.label": ["fox"], "outputs.table.unit": ["f"]}


def random_model(schema=SCHEMA, config=CONFIG):
    """Return a model whose weights are all random: no head starts at 0, no norm at 1."""
    model = PerceiverIO(schema, config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def raw_inputs():
    """Return a batch of two samples that names known classes only, and unknown ones."""
    return {
        "events": {
            "unit": torch.tensor([[0, 4, -1], [2, 1, 3]]),
            "kind": torch.tensor([[1, -1, 2], [0, 0, 1]]),
            "time": torch.tensor([[0.5, 1.5, 2.0], [-1.0, 0.0, 3.0]]),
        },
        "parts": {"size": torch.tensor([[1.0], [2.0]]), "part": torch.tensor([[4], [0]])},
        "state": torch.tensor([2, 0]),
        "place": torch.tensor([6, 3]),
        "tags": torch.tensor([[1.0, 0, 0, 1, 0], [0, 1, 0, 0, 1]]),
    }


POINTS = {"field": Coordinates(torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(1)))}


def answers(model):
    """Return all predictions of a model for `raw_inputs`, by output, and by field of an output of records."""
    raw = raw_inputs()
    for name, spec in (("place", model.schema.inputs["place"]), ("tags", model.schema.inputs["tags"])):
        if name == "tags":
            raw[name] = torch.nn.functional.pad(raw[name], (0, len(class_names(spec.classes)) - 5))
    with torch.no_grad():
        found = model(raw, points=POINTS)
    flat = {}
    for name, values in found.items():
        flat |= {f"{name}.{f}": x for f, x in values.items()} if isinstance(values, dict) else {name: values}
    return flat


def close(one, other):
    return torch.allclose(one, other, rtol=0, atol=1e-6)


def test_rows_by_hand():
    old = ClassRows(0, (RowGroup("n", others=1), RowGroup("u", ("a", "b"), others=1), RowGroup("k", 2)))
    new = ClassRows(0, (RowGroup("n", others=1), RowGroup("u", ("c", "b"), others=1), RowGroup("k", 3)))
    array = torch.tensor([5.0, 7, 1, 2, 10, 20])
    assert resized(array, old, new).tolist() == [5, 7, 1.5, 2, 10, 20, 15]
    assert resized(array, old, new, "zero").tolist() == [5, 7, 0, 2, 10, 20, 0]
    columns = ClassRows(1, (RowGroup("", ("a", "b")), RowGroup(others=1)))
    wider = ClassRows(1, (RowGroup("", ("b", "c", "a")), RowGroup(others=1)))
    assert resized(torch.tensor([[1.0, 3, 9]]), columns, wider).tolist() == [[3, 2, 1, 9]]
    assert class_names(3) == ("0", "1", "2")


@pytest.mark.parametrize("name", vocabularies(SCHEMA))
def test_the_parameters_that_have_a_row_for_each_class_are_all_described(name):
    """With three classes more, exactly these parameters have other sizes, along the described axis."""
    before = PerceiverIO(SCHEMA, CONFIG)
    classes = (*class_names(vocabularies(SCHEMA)[name]), "new", "newer", "newest")
    after = PerceiverIO(with_vocabularies(SCHEMA, {name: classes}), CONFIG).state_dict()
    grown = {key: x.shape for key, x in before.state_dict().items() if x.shape != after[key].shape}
    rows = class_rows(before)
    assert grown.keys() == {key for key, each in rows.items() if name in {group.vocabulary for group in each.groups}}
    assert grown
    for key, shape in grown.items():
        assert after[key].shape[rows[key].axis] == shape[rows[key].axis] + 3
        assert sum(len(g.names) + g.others for g in rows[key].groups) == shape[rows[key].axis]


@pytest.mark.parametrize("modality", [each for each in MODALITIES if "classes" in each.__dataclass_fields__])
def test_every_modality_with_classes_says_so(modality):
    spec, _ = modality.example(np.random.default_rng(0))
    assert spec.vocabularies == {"": spec.classes}
    assert spec.with_vocabulary("", ("p", "q")).vocabularies == {"": ("p", "q")}


def test_new_classes_change_no_prediction_for_known_ones():
    """In every place at once: fields of records, a condition, queries, several labels, heads of each kind."""
    model = random_model()
    new = {
        name: [f"new {number}" for number in range(2 + place % 3)] for place, name in enumerate(vocabularies(SCHEMA))
    }
    grown = extend_vocabulary(model, new)
    for name, classes in vocabularies(grown.schema).items():
        assert class_names(classes) == (*class_names(vocabularies(SCHEMA)[name]), *new[name])
    before, after = answers(model), answers(grown)
    assert before.keys() == after.keys()
    for name, values in before.items():
        width = values.shape[-1]
        assert close(after[name][..., :width], values), name
        if f"outputs.{name}" in new:  # a new class starts at the mean of the logits, since heads are linear
            assert close(after[name][..., width:], values.mean(-1, keepdim=True).expand_as(after[name][..., width:]))
    assert all(
        name in before for name in ("label", "several", "tag", "table.unit", "guess.unit", "table.speed", "field")
    )


def test_new_embeddings_start_at_the_mean_and_the_unknown_one_stays():
    model = random_model()
    grown = extend_vocabulary(model, {"inputs.events.unit": ["f"], "inputs.state": ["right"]})
    old, new = (each.input_adapter.adapters["events"].encodings.fields[0].embedding.weight for each in (model, grown))
    assert torch.equal(new[:6], old)
    assert close(new[6], old[1:].mean(0))
    old, new = (each.input_adapter.alignment.projections["state"].weight for each in (model, grown))
    assert torch.equal(new[:, :3], old)
    assert close(new[:, 3], old.mean(1))


def test_classes_go_and_come_by_name():
    model = random_model()
    smaller = reduce_vocabulary(model, {"outputs.label": ["cat"], "outputs.table.unit": ["a", "d"]})
    before, after = answers(model), answers(smaller)
    assert close(after["label"], before["label"][:, 1:])
    assert close(after["table.unit"], before["table.unit"][..., [1, 2, 4]])
    assert close(after["table.speed"], before["table.speed"])
    smaller = reduce_vocabulary(model, {"inputs.events.unit": ["b"]})
    assert vocabularies(smaller.schema)["inputs.events.unit"] == ("a", "c", "d", "e")
    old, new = (each.input_adapter.adapters["events"].encodings.fields[0].embedding.weight for each in (model, smaller))
    assert torch.equal(new, old[[0, 1, 3, 4, 5]])


MEASURED = Events(classes=("b", "a"), channels=5, mean=(2.0, 20.0), std=(1.0, 10.0), bounds=(0.0, 4.0))


def test_types_of_events_keep_their_rows_and_their_units():
    """As an input and as the queries of an output; a new type starts at the mean, of statistics too."""
    torch.manual_seed(0)
    model = PerceiverIO(Schema({"past": MEASURED}, {"future": MEASURED}), Config(LatentsConfig(3, 8))).eval()
    grown = extend_vocabulary(model, {"inputs.past": ["c"], "outputs.future": ["c", "d"]})
    assert grown.schema.outputs["future"].mean == (2.0, 20.0, 11.0, 11.0)
    assert grown.schema.inputs["past"].std == (1.0, 10.0, 5.5)
    smaller = reduce_vocabulary(grown, {"inputs.past": ["c"], "outputs.future": ["b", "d"]})
    past = {"time": torch.rand(1, 3), "type": torch.tensor([[0, 1, -1]]), "value": torch.rand(1, 3)}
    known = [model.schema.outputs["future"].at([1.0, 2.0], "a")]
    with torch.no_grad():
        expected = model({"past": past}, {"future": known[0]})["future"]["value"]
        for other in (grown, smaller):
            found = other({"past": past}, {"future": other.schema.outputs["future"].at([1.0, 2.0], "a")})
            assert close(found["future"]["value"], expected)


def schema_of(events):
    """Return a schema that reads these events."""
    return Schema({"past": events}, {"y": Numbers(count=1, mean=(0.0,), std=(1.0,))})


def test_types_of_events_under_from():
    """Known types have the source's statistics, new ones those of the data, in the source's order."""
    fitted = replace(MEASURED, classes=("a", "c"), mean=(7.0, 70.0), std=(3.0, 30.0), bounds=(1.0, 9.0))
    declared, fitted, source = (schema_of(x) for x in (Events(channels=5), fitted, MEASURED))
    found, places = taken_over(declared, fitted, source)
    assert places == ["inputs.past"]
    assert found.inputs["past"] == replace(
        MEASURED, classes=("b", "a", "c"), mean=(2.0, 20.0, 70.0), std=(1.0, 10.0, 30.0)
    )
    fitted = replace(MEASURED, classes=("c", "a"), mean=(70.0, 7.0), std=(30.0, 3.0))
    found, _ = taken_over(schema_of(Events(channels=5, classes=("c", "a"))), schema_of(fitted), source)
    assert found.inputs["past"].classes == ("c", "a")
    assert found.inputs["past"].mean == (70.0, 20.0)


def test_numbers_stay_numbers_while_they_count_from_0():
    model = random_model()
    assert extend_vocabulary(model, {"inputs.place": [7, 8]}).schema.inputs["place"].classes == 9
    assert extend_vocabulary(model, {"inputs.place": ["19"]}).schema.inputs["place"].classes == (*"0123456", "19")
    assert reduce_vocabulary(model, {"inputs.place": ["6"]}).schema.inputs["place"].classes == 6
    assert reduce_vocabulary(model, {"inputs.place": ["2"]}).schema.inputs["place"].classes == tuple("013456")


@pytest.mark.parametrize(
    ("change", "names", "message"),
    [
        (extend_vocabulary, {"inputs.event.unit": ["f"]}, "did you mean 'inputs.events.unit'"),
        (extend_vocabulary, {"outputs.label": ["cat", "fox"]}, "outputs.label: 'cat' is one of its classes already"),
        (extend_vocabulary, {"outputs.label": ["fox", "ant", "fox"]}, "'fox' stands there twice"),
        (extend_vocabulary, {"outputs.label": "fox"}, "names must come in a list"),
        (extend_vocabulary, {"outputs.label": []}, "no name is given"),
        (extend_vocabulary, {"outputs.label": [""]}, "is no name of a class"),
        (extend_vocabulary, {"outputs.label": ["\udc80"]}, r"'\\udc80' is not UTF-8, so no recipe can name it"),
        (reduce_vocabulary, {"outputs.label": ["dig"]}, "unknown class of outputs.label 'dig'.*did you mean 'dog'"),
        (reduce_vocabulary, {"outputs.label": ["cat", "dog", "eel"]}, "no class would be left of 3"),
    ],
)
def test_what_cannot_be_changed_is_one_line(change, names, message):
    with pytest.raises(ValueError, match=message) as error:
        change(random_model(), names)
    assert "\n" not in str(error.value)


def test_a_model_without_vocabularies_says_so():
    model = PerceiverIO(Schema({"x": Numbers(2)}, {"y": Numbers(2)}), Config(LatentsConfig(3, 8)))
    with pytest.raises(ValueError, match=r"unknown vocabulary 'outputs\.y'; there are none$"):
        extend_vocabulary(model, {"outputs.y": ["a"]})


def test_frozen_parameters_stay_frozen_and_the_model_as_it_was():
    model = random_model()
    model.output_adapter.requires_grad_(False)
    before = weights_of(model)
    grown = extend_vocabulary(model, NEW)
    frozen = {name for name, parameter in grown.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"output_adapter.{name}" for name, _ in model.output_adapter.named_parameters()}
    assert weights_of(model) == before
    assert not grown.training
    with torch.no_grad():
        grown.trunk.latents.add_(1)
    assert weights_of(model) == before  # no tensor is shared


class CountedName(str):
    """A name that counts how often it is compared with another one."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedName.comparisons += 1
        return str.__eq__(self, other)


def test_many_names_take_no_comparison_of_each_with_each():
    CountedName.comparisons = 0
    names = [CountedName(number) for number in range(1009)]
    found = extended(SCHEMA, {"inputs.events.unit": names})["inputs.events.unit"]
    events = Events(classes=tuple(names), mean=(1.0,) * 1009, std=(1.0,) * 1009, bounds=(0.0, 1.0))
    assert found == (*UNITS, *names)
    fitted, _ = taken_over(schema_of(Events()), schema_of(events), schema_of(events))
    assert fitted == schema_of(events)
    assert CountedName.comparisons < 100 * 1009


@pytest.mark.slow
@pytest.mark.prints_warnings  # torchao, which PEFT imports, warns of PyTorch's deprecations
def test_adapters_and_tied_weights_are_refused_by_name():
    from peft import LoraConfig, inject_adapter_in_model

    adapted = inject_adapter_in_model(LoraConfig(r=2, target_modules=["embedding"]), random_model())
    with pytest.raises(ValueError, match=r"embedding\.base_layer.*is none of the arrays.*merge adapters"):
        extend_vocabulary(adapted, NEW)
    tied = random_model()
    tied.output_adapter.adapters["several"].head.weight = tied.output_adapter.adapters["tag"].head.weight
    with pytest.raises(ValueError, match=r"several\.head\.weight is \[2, 8\]"):
        extend_vocabulary(tied, NEW)


def test_padded_classes_cannot_change_alone():
    config = replace(CONFIG, encoder=EncoderConfig(channel_alignment="pad", conditioned=True))
    model = random_model(config=config)
    with pytest.raises(ValueError, match=r"inputs\.state: under channel_alignment: pad"):
        extend_vocabulary(model, {"inputs.state": ["right"]})
    assert close(answers(extend_vocabulary(model, NEW))["label"][:, :3], answers(model)["label"])


def test_f1_would_be_of_another_class():
    schema = Schema({"x": Numbers(2)}, {"y": Label(classes=("no", "yes"), further_metrics=("f1",))})
    model = PerceiverIO(schema, replace(CONFIG, encoder=EncoderConfig()))
    with pytest.raises(ValueError, match=r"outputs\.y: f1 is that of the last class, 'yes', which would be 'maybe'"):
        extend_vocabulary(model, {"outputs.y": ["maybe"]})


def test_a_changed_model_is_saved_and_loaded(tmp_path):
    grown = extend_vocabulary(random_model(), NEW)
    save_pretrained(grown, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert again.schema == grown.schema
    assert weights_of(again) == weights_of(grown)


def permuted(names, *numbers):
    return tuple(names[number] for number in numbers)


def test_another_model_gives_its_rows_by_name_whatever_their_order():
    """Known names are found, new ones start at the mean, others are dropped; the rest of each layer is copied."""
    source = random_model()
    order = {
        "inputs.events.unit": ("e", "new", "a", "c", "b"),
        "inputs.events.kind": 5,
        "inputs.state": ("left", "up", "right", "down"),
        "outputs.label": ("eel", "fox", "cat"),
        "outputs.guess.unit": ("d", "a"),
    }
    model = PerceiverIO(with_vocabularies(SCHEMA, order), CONFIG).eval()
    loaded, fresh = transfer(model, source)
    assert set(loaded) == {"input_adapter", "trunk", "conditioning", "output_query", "decoder", "output_adapter"}
    assert not fresh
    # The same samples, in the numbers of the new model.
    theirs, ours = raw_inputs(), raw_inputs()
    theirs["events"]["unit"] = torch.tensor([[0, 4, -1], [2, 1, 0]])
    ours["events"]["unit"] = torch.tensor([[2, 0, -1], [3, 4, 2]])
    ours["state"] = torch.tensor([0, 1])  # left, up
    with torch.no_grad():
        before, after = source(theirs, points=POINTS), model(ours, points=POINTS)
    assert close(after["label"][:, [2, 0]], before["label"][:, [0, 2]])
    assert close(after["label"][:, 1], before["label"].mean(1))
    assert close(after["guess"]["unit"], before["guess"]["unit"][..., [3, 0]])
    assert close(after["guess"]["age"], before["guess"]["age"])
    assert close(after["field"], before["field"])
    lines = vocabulary_lines(model, source)
    assert "inputs.events.unit: 4 known, 1 new, 1 dropped" in lines
    assert "inputs.events.kind: 3 known, 2 new, 0 dropped" in lines
    assert "inputs.place: 7 known, 0 new, 0 dropped" in lines
    assert len(lines) == len(vocabularies(SCHEMA))


def test_other_vocabularies_start_fresh_and_say_so():
    """Other names, fewer numbers than before, and layers of other sizes have no rows to give."""
    source = random_model()
    others = {"outputs.label": ("ant", "bee", "fly"), "inputs.place": 5, "outputs.tag": 2}
    schema = with_vocabularies(SCHEMA, others)
    wider = {**FIELDS, "unit": CategoryField(classes=UNITS, channels=11)}
    schema = schema.changed("events", fields=wider)
    model = PerceiverIO(schema, CONFIG)
    before = {key: x.clone() for key, x in model.state_dict().items()}
    _, fresh = transfer(model, source)
    for key in ("output_adapter.adapters.label.head.2", "output_query.alignment.projections.field"):
        assert key in fresh
        assert torch.equal(model.state_dict()[f"{key}.weight"], before[f"{key}.weight"])
    assert torch.equal(  # numbered here, named there: by position, as any array
        model.state_dict()["output_adapter.adapters.tag.head.weight"],
        source.state_dict()["output_adapter.adapters.tag.head.weight"],
    )
    lines = vocabulary_lines(model, source)
    for name in ("outputs.label", "inputs.place", "inputs.events.unit"):
        assert f"{name}: starts fresh, its classes or its layer are others" in lines
    assert "outputs.tag: classes keep their numbers, since only one of the models names them" in lines


def test_records_that_are_named_in_one_model_only_are_copied_if_all_else_is_equal():
    """The head of several fields is one array: it must not be copied by position if the names of a field moved."""
    fields = {"unit": CategoryField(("a", "b")), "kind": CategoryField(3)}
    shuffled = {"unit": CategoryField(("b", "a")), "kind": CategoryField(("x", "y", "z"))}
    named = {"unit": CategoryField(("a", "b")), "kind": CategoryField(("x", "y", "z"))}
    config = replace(CONFIG, encoder=EncoderConfig())
    source, *models = (
        random_model(Schema({"x": Numbers(2)}, {"y": Records(each)}), config) for each in (fields, shuffled, named)
    )
    assert [transfer(model, source)[1] for model in models] == [["output_adapter"], []]
    assert "outputs.y.unit: starts fresh, its classes or its layer are others" in vocabulary_lines(models[0], source)


def test_names_move_without_rows_under_pad_and_that_is_said():
    config = replace(CONFIG, encoder=EncoderConfig(channel_alignment="pad", conditioned=True))
    source = random_model(config=config)
    schema = with_vocabularies(SCHEMA, {"inputs.state": ("down", "up", "left")})
    assert "inputs.state: classes keep their numbers, not their names (channel_alignment: pad)" in vocabulary_lines(
        PerceiverIO(schema, config), source
    )


def test_merged_by_hand():
    for of_input in (False, True):
        assert merged(("b", "a"), ("a", "c"), of_input) == ("b", "a", "c")
        assert merged(5, 3, of_input) == merged(3, 5, of_input) == 5
        assert merged(5, ("0", "1"), of_input) == ("0", "1")  # numbers are no names
        assert merged(("a",), 3, of_input) == 3
        assert merged(("a", "b"), (), of_input) == ("a", "b")
    assert merged(("b", "a"), ("c", "d"), of_input=False) == ("c", "d")  # another question
    assert merged(("b", "a"), ("c", "d"), of_input=True) == ("b", "a", "c", "d")


def test_an_input_keeps_its_rows_though_all_names_are_new():
    """New sessions have new units: known rows stay, new ones start at the mean; a list of new ones alone does too."""
    source = random_model()
    classes = {"inputs.events.unit": (*UNITS, "f", "g")}
    model = PerceiverIO(with_vocabularies(SCHEMA, classes), CONFIG)
    listed = PerceiverIO(with_vocabularies(SCHEMA, {"inputs.events.unit": ("f", "g")}), CONFIG)
    for each in (model, listed):
        transfer(each, source)
    rows = [
        each.input_adapter.adapters["events"].encodings.fields[0].embedding.weight for each in (source, model, listed)
    ]
    assert torch.equal(rows[1][:6], rows[0])
    assert torch.equal(rows[2][0], rows[0][0])
    for new in (*rows[1][6:], *rows[2][1:]):
        assert close(new, rows[0][1:].mean(0))
    assert "inputs.events.unit: 0 known, 2 new, 5 dropped" in vocabulary_lines(listed, source)


def test_what_a_source_knows_takes_the_place_of_what_data_say():
    """Statistics and classes that the recipe leaves to the data are the source's; what it gives stands."""
    numbers = Numbers(count=2)
    fields = {"n": NumberField(), "m": NumberField(mean=3.0, std=1.0), "k": CategoryField(), "l": CategoryField(("z",))}
    declared = Schema({"a": numbers, "r": Records(fields), "b": Numbers(3)}, {"y": Label(), "a": Numbers(1)})
    full = {
        "n": NumberField(1.0, 2.0),
        "m": NumberField(3.0, 1.0),
        "k": CategoryField(("q", "p")),
        "l": CategoryField(("z",)),
    }
    fitted = Schema(
        {"a": Numbers(2, mean=(1.0, 2.0), std=(3.0, 4.0)), "r": Records(full), "b": Numbers(3, (1.0,), (1.0,))},
        {"y": Label(("u", "w")), "a": Numbers(1, mean=(9.0,), std=(8.0,))},
    )
    theirs = {"n": NumberField(5.0, 6.0), "m": NumberField(7.0, 7.0), "k": CategoryField(("p",)), "l": CategoryField(4)}
    source = Schema(
        {"a": Numbers(2), "r": Records(theirs), "b": Label(3)},
        {"y": Label(("v", "u")), "a": Numbers(2, mean=(1.0, 1.0), std=(1.0, 1.0))},
    )
    schema, places = taken_over(declared, fitted, source)
    assert schema.inputs["a"] == Numbers(2, mean=(0.0,), std=(1.0,))  # the source had none: values as they are
    assert schema.inputs["r"].fields == {
        "n": NumberField(5.0, 6.0),
        "m": NumberField(3.0, 1.0),
        "k": CategoryField(("p", "q")),
        "l": CategoryField(("z",)),
    }
    assert schema.inputs["b"] == fitted.inputs["b"]  # another modality
    assert schema.outputs["y"].classes == ("v", "u", "w")
    assert schema.outputs["a"] == fitted.outputs["a"]  # two numbers there, one here
    assert places == ["inputs.a", "inputs.r.n"]
    assert taken_over(fitted, fitted, source) == (fitted, [])


RECIPE = """
data: {{kind: table, file: {data}, held_out_file: {data}}}
inputs:
  spikes: {{kind: records, fields: {{unit: {{kind: category, channels: 7}}, time: {{kind: number}}}}}}
  session: {{kind: label, role: condition}}
  speed: {{kind: numbers}}
outputs:
  label: {{kind: label, query_channels: 5}}
  next: {{kind: numbers, query_channels: 3}}
config:
  latents: {{num_latents: 3, channels: 8}}
  encoder: {{conditioned: true}}
  processor: {{num_layers: 1, num_heads: 1}}
training:
  num_steps: 6
  batch_size: 4
  checkpoint_every: 3
  log_every: 1
  accelerator: cpu
  average_decay: 0.9
  optimiser: {{kind: adamw, learning_rate: 0.01}}
  schedule: {{kind: constant}}
"""


def rows(units, sessions, labels, scale=1.0, count=13):
    """Return samples: each unit occurs, and each session and label."""
    rng = np.random.default_rng(3)
    return [
        {
            "spikes": [
                {"unit": units[(number + k) % len(units)], "time": round(float(rng.normal(scale)), 3)} for k in range(3)
            ],
            "session": sessions[number % len(sessions)],
            "speed": round(float(scale * rng.normal(1 + scale)), 3),
            "label": labels[number % len(labels)],
            "next": round(float(scale * rng.normal()), 3),
        }
        for number in range(count)
    ]


OLD = rows(UNITS, ("monday", "tuesday"), ("go", "stop"))
OTHER = rows(("f", "d", "b"), ("tuesday", "friday"), ("stop", "wait"), scale=3.0, count=11)


def write_rows(path, samples):
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of 3 steps of 6 on the old data, and both data sets."""
    folder = tmp_path_factory.mktemp("vocabularies")
    write_rows(folder / "old.jsonl", OLD)
    write_rows(folder / "other.jsonl", OTHER)
    for name in ("old", "other"):
        (folder / f"{name}.yaml").write_text(RECIPE.format(data=folder / f"{name}.jsonl"))
    start(folder, folder / "run")
    stopped_at(folder / "run", 3, folder / "half")
    return folder


def start(folder, run, *settings, file="old", lines=None, accept=False):
    recipe = with_settings(read_schema_file(folder / f"{file}.yaml"), settings)
    return run_recipe(recipe, run, lambda line: None if lines is None else lines.append(line), accept)


def stopped_at(run, step, target):
    """Copy a run as it was after a step: without the checkpoints after it."""
    shutil.copytree(run, target)
    for folder in (target / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    return target


def table_answers(run, samples):
    """Return the predictions of a run's model for samples."""
    model, schema = run.model.cpu().eval(), run.recipe.schema
    rng = np.random.default_rng(0)
    prepared = [schema.preprocess({**one, "label": None, "next": None}, rng, training=False) for one in samples]
    with torch.no_grad():
        return model(schema.collate(prepared)["inputs"])


def test_a_run_from_a_model_of_other_names_predicts_as_that_model(trained, tmp_path):
    """Statistics and known names are the source's, so that its predictions are unchanged before training."""
    lines = []
    still = ("training.num_steps=1", "training.optimiser.learning_rate=0.0", f"start_from={trained / 'run'}")
    new = start(trained, tmp_path / "new", *still, file="other", lines=lines)
    source = Run(trained / "run")
    assert vocabularies(new.recipe.schema) == {
        "inputs.spikes.unit": (*UNITS, "f"),
        "inputs.session": ("monday", "tuesday", "friday"),
        "outputs.label": ("go", "stop", "wait"),
    }
    before, after = table_answers(source, OLD), table_answers(new, OLD)
    assert close(after["label"][:, :2], before["label"])
    assert close(after["next"], before["next"])
    source_name = trained / "run"
    assert f"statistics of {source_name}, not of the data: inputs.spikes.time, inputs.speed, outputs.next" in lines
    assert "fresh: nothing" in lines
    assert lines[-3:] == [
        "inputs.session: 2 known, 1 new, 0 dropped",
        "inputs.spikes.unit: 5 known, 1 new, 0 dropped",
        "outputs.label: 2 known, 1 new, 0 dropped",
    ]
    # Known inputs and outputs of the new data: the same values as well.
    known = [
        {**one, "spikes": one["spikes"][:1], "session": "tuesday"} for one in OTHER if one["spikes"][0]["unit"] in "db"
    ]
    assert known
    assert close(table_answers(new, known)["next"], table_answers(source, known)["next"])


def test_fields_in_another_order_keep_their_weights(trained, tmp_path):
    """Under --from, and where a run goes on with the same recipe: the order of the fields in a file says nothing."""
    fields = "{{{}: {{kind: number}}, {}: {{kind: number}}, unit: {{kind: category, channels: 7}}}}"
    samples = [{**one, "spikes": [{**spike, "late": spike["time"] ** 2 - 3} for spike in one["spikes"]]} for one in OLD]
    write_rows(tmp_path / "one.jsonl", samples)
    data = f"data={{kind: table, file: {tmp_path / 'one.jsonl'}, held_out_file: {tmp_path / 'one.jsonl'}}}"
    one, swapped = (
        (data, f"schema.inputs.spikes={{kind: records, fields: {fields.format(*names)}}}")
        for names in (("time", "late"), ("late", "time"))
    )
    run = start(trained, tmp_path / "run", *one)
    before = table_answers(run, samples)
    still = (f"start_from={tmp_path / 'run'}", "training.num_steps=1", "training.optimiser.learning_rate=0.0")
    after = table_answers(start(trained, tmp_path / "new", *swapped, *still), samples)
    assert all(close(after[name], expected) for name, expected in before.items())
    stopped_at(tmp_path / "run", 3, tmp_path / "half")
    again = start(trained, tmp_path / "half", *swapped)
    assert weights_of(again.model) == weights_of(run.model)


def test_a_list_of_classes_in_the_recipe_stands(trained, tmp_path):
    lines = []
    settings = (
        f"start_from={trained / 'run'}",
        "training.num_steps=1",
        "schema.outputs.label.classes=[stop, wait]",
        "schema.inputs.speed={kind: numbers, mean: [7.0], std: [2.0]}",
    )
    run = start(trained, tmp_path / "new", *settings, file="other", lines=lines)
    assert run.recipe.schema.outputs["label"].classes == ("stop", "wait")
    assert run.recipe.schema.inputs["speed"].mean == (7.0,)
    assert "outputs.label: 1 known, 1 new, 1 dropped" in lines


def test_further_inputs_and_outputs_change_no_known_output_before_training(trained, tmp_path):
    """Also with sizes left open (`config: auto`), which are then those of the source."""
    lines = []
    settings = (
        f"start_from={trained / 'run'}",
        "training.num_steps=1",
        "training.optimiser.learning_rate=0.0",
        "config=auto",
        "schema.inputs.further={kind: numbers, key: speed}",
        "schema.inputs.mood={kind: label, key: session, role: condition}",
        "schema.outputs.more={kind: numbers, key: speed}",
    )
    new = start(trained, tmp_path / "new", *settings, lines=lines)
    source = Run(trained / "run")
    assert new.recipe.config == source.recipe.config
    assert [name for name, spec in new.recipe.schema.inputs.items() if spec.gate] == ["further"]
    assert "further inputs, behind gates that training opens: further" in lines
    before, after = table_answers(source, OLD), table_answers(new, OLD)
    assert after["more"].shape == (len(OLD), 1)
    for name, expected in before.items():
        assert close(after[name], expected)
    # The run continues when the source is gone: the gates are in its recipe.
    again = start(trained, tmp_path / "new", *settings)
    assert again.recipe == new.recipe


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (
            "encoder.attention_dropout=0.1",
            "further inputs, which change known outputs at once (encoder.attention_dropout): age",
        ),
        (
            "encoder.channel_alignment=pad",
            "further inputs, which change known outputs at once (channel_alignment: pad): mood",
        ),
    ],
)
def test_further_inputs_that_nothing_holds_back_are_named(trained, tmp_path, setting, line):
    lines = []
    settings = (
        f"start_from={trained / 'run'}",
        "training.num_steps=1",
        f"config.{setting}",
        "schema.inputs.age={kind: numbers, key: speed}",
        "schema.inputs.mood={kind: label, key: session, role: condition}",
    )
    start(trained, tmp_path / "new", *settings, lines=lines)
    assert line in lines


def test_an_input_that_only_served_queries_is_a_further_one(trained, tmp_path):
    queries = "schema.inputs.asked={kind: label, key: label, role: query}"
    asks = "schema.outputs.answer={kind: numbers, key: next, of: asked}"
    source = start(trained, tmp_path / "source", queries, asks, "training.num_steps=1")
    lines = []
    read = (queries.replace(", role: query", ""), asks, "training.num_steps=1", f"start_from={source.folder}")
    start(trained, tmp_path / "new", *read, "training.optimiser.learning_rate=0.0", lines=lines)
    assert "further inputs, behind gates that training opens: asked" in lines


@pytest.mark.slow
def test_a_run_goes_on_when_the_model_that_it_started_from_is_gone(trained, tmp_path):
    """It has the statistics and vocabularies in its recipe; the steps are those of a run that was never stopped."""
    shutil.copytree(trained / "run", tmp_path / "source")
    settings = (f"start_from={tmp_path / 'source'}",)
    whole = start(trained, tmp_path / "whole", *settings, file="other")
    stopped_at(tmp_path / "whole", 3, tmp_path / "parts")
    shutil.rmtree(tmp_path / "source")
    again = start(trained, tmp_path / "parts", *settings, file="other")
    assert again.recipe == whole.recipe
    assert weights_of(again.model) == weights_of(whole.model)


CLASSES = {
    "inputs.spikes.unit": ("e", "a", "f", "b", "c", "g"),
    "inputs.session": ("monday", "tuesday", "friday"),
    "outputs.label": ("stop", "wait", "go"),
}
"""Other vocabularies: in another order, with new names, without "d"."""


def arrays_of(checkpoint):
    return {**load_shards(checkpoint / "model.safetensors"), **load_shards(checkpoint / "training.safetensors")}


def test_weights_averages_and_moments_of_a_run_go_by_name(trained, tmp_path):
    write_changed_run(trained / "half", tmp_path / "new", CLASSES)
    old, new = (arrays_of(latest_checkpoint(run)) for run in (trained / "half", tmp_path / "new"))
    assert old.keys() == new.keys()
    embedding = "input_adapter.adapters.spikes.encodings.fields.0.embedding.weight"
    assert not torch.equal(old[embedding], old[f"weight/{embedding}"])  # averages, weights
    place = [0, 5, 1, None, 2, 3, None]
    for name, start in (
        (embedding, "mean"),
        (f"weight/{embedding}", "mean"),
        (f"moment/{embedding}/exp_avg", "zero"),
        (f"moment/{embedding}/exp_avg_sq", "mean"),
    ):
        fresh = old[name][1:].mean(0) * (start == "mean")
        expected = torch.stack([fresh if number is None else old[name][number] for number in place])
        assert old[name].abs().sum() > 0
        assert torch.equal(new[name], expected), name
    bias = "moment/output_adapter.adapters.label.head.bias/exp_avg"
    assert torch.equal(new[bias], torch.stack([old[bias][1], torch.zeros(()), old[bias][0]]))
    columns = "input_adapter.alignment.projections.session.weight"
    assert torch.equal(new[columns], torch.cat([old[columns], old[columns].mean(1, keepdim=True)], 1))
    # All other arrays are as they were.
    touched = {name for name, x in new.items() if x.shape != old[name].shape or not torch.equal(x, old[name])}
    grown = {embedding, columns, "output_adapter.adapters.label.head.weight", "output_adapter.adapters.label.head.bias"}
    assert touched == {name for name in old if any(one in name for one in grown) and not name.endswith("/step")}
    assert load_model(latest_checkpoint(tmp_path / "new")).schema == read_recipe(tmp_path / "new").schema
    assert json.loads((latest_checkpoint(tmp_path / "new") / "state.json").read_text())["score"] is None


def test_a_run_that_has_logged_nothing_yet_can_change(trained, tmp_path):
    shutil.copytree(trained / "half", tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").write_text("")  # as with fewer steps than log_every
    assert write_changed_run(tmp_path / "run", tmp_path / "new", CLASSES) == "step-00000003"
    assert latest_checkpoint(tmp_path / "new").name == "step-00000003"


@pytest.mark.slow
def test_a_changed_run_goes_on_exactly_on_new_data(trained, tmp_path):
    """The steps after the change are bitwise the same, stopped in between or not, with new names in the data."""
    write_changed_run(
        trained / "half", tmp_path / "new", CLASSES, [f"data={{kind: table, file: {trained / 'other.jsonl'}}}"]
    )
    recipe = read_recipe(tmp_path / "new")
    with pytest.raises(ValueError, match=r"the data of .*new have changed since it began"):
        run_recipe(recipe, tmp_path / "new")
    stopped = replace(recipe, training=replace(recipe.training, checkpoint_every=1))
    shutil.copytree(tmp_path / "new", tmp_path / "parts")
    whole = run_recipe(recipe, tmp_path / "new", accept_changed_data=True)
    for run in ("parts", "more"):
        if run == "more":
            stopped_at(tmp_path / "parts", 5, tmp_path / "more")
        text = (tmp_path / run / "recipe.yaml").read_text().replace("checkpoint_every: 3", "checkpoint_every: 1")
        (tmp_path / run / "recipe.yaml").write_text(text)
        again = run_recipe(stopped, tmp_path / run, accept_changed_data=True)
        assert weights_of(again.model) == weights_of(whole.model)
    accepted = json.loads((tmp_path / "new" / "data.json").read_text())["accepted"]
    assert accepted[0]["step"] == 3


@pytest.mark.parametrize("kind", few(["adamw", "lamb", "muon"], ["adamw"]))
def test_classes_that_do_not_occur_change_no_step(trained, tmp_path, kind):
    """With new units that no sample has, the steps of a run are the old ones.

    LAMB scales the step of a tensor by its norm, which has more rows now: its first step differs there by a factor.
    """
    settings = (f"training.optimiser.kind={kind}", "training.optimiser.weight_decay=0.0")
    settings += ("training.num_steps=4",) if kind == "lamb" else ()
    run = start(trained, tmp_path / "run", *settings)
    half = stopped_at(tmp_path / "run", 3, tmp_path / "half")
    write_changed_run(half, tmp_path / "new", {"inputs.spikes.unit": (*UNITS, "f", "g")})
    new = run_recipe(read_recipe(tmp_path / "new"), tmp_path / "new")
    assert latest_checkpoint(tmp_path / "new").name == latest_checkpoint(tmp_path / "run").name != "step-00000003"
    before, after, start_of = (arrays_of(latest_checkpoint(each)) for each in (run.folder, new.folder, half))
    embedding = "weight/input_adapter.adapters.spikes.encodings.fields.0.embedding.weight"
    for name in (name for name in before if name.startswith("weight/")):
        if name != embedding:
            assert torch.allclose(after[name], before[name], rtol=0, atol=1e-5), name
    steps = [each[embedding][:6] - start_of[embedding] for each in (before, after)]
    factor = (steps[1] * steps[0]).sum() / steps[0].square().sum()
    assert torch.allclose(steps[1], factor * steps[0], rtol=0, atol=1e-5)
    assert (abs(factor - 1) < 1e-3) == (kind != "lamb")
    assert torch.equal(after[embedding][6], after[embedding][7])  # no gradient


@pytest.mark.slow
def test_a_sharded_checkpoint_becomes_a_whole_one(trained, tmp_path):
    """Pieces along the first axis, as `training.shard_model` writes them."""
    shutil.copytree(trained / "half", tmp_path / "run")
    folder = latest_checkpoint(tmp_path / "run")
    for file in ("model.safetensors", "training.safetensors"):
        arrays = load_shards(folder / file)
        parts = [{}, {}]
        for name, x in arrays.items():
            pieces = [x] if x.ndim == 0 or len(x) < 2 else x.split(-(-len(x) // 2))
            for part, piece in zip(parts, pieces, strict=False):
                part[name] = piece.clone()
        (folder / file).unlink()
        for number, part in enumerate(parts):
            save_tensors(shard_name(folder / file, number, 2), part)
    (folder / "manifest.json").write_text(manifest_of(folder))
    for run in ("run", "half"):
        source = tmp_path / "run" if run == "run" else trained / "half"
        write_changed_run(source, tmp_path / f"new {run}", CLASSES)
    one, other = (arrays_of(latest_checkpoint(tmp_path / f"new {run}")) for run in ("run", "half"))
    assert one.keys() == other.keys()
    assert all(torch.equal(x, other[name]) for name, x in one.items())


def manifest_of(folder):
    files = [path for path in folder.iterdir() if path.name != "manifest.json"]
    return json.dumps(
        {path.name: {"size": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()} for path in files}
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.optimiser.kind=lamb", "a run that goes on may change data, training.num_steps"),
        ("config.latents.channels=16", "a run that goes on may change data"),
        ("schema.outputs.label.classes=3", "a run that goes on may change data"),
    ],
)
def test_settings_that_a_checkpoint_might_not_fit(trained, tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        write_changed_run(trained / "half", tmp_path / "new", CLASSES, [setting])
    assert not list(tmp_path.iterdir())


def test_the_verb_shows_and_changes(trained, tmp_path, command):
    code, out, _ = command("vocabulary", trained / "run", "--json")
    assert code == 0
    assert json.loads(out)["inputs.spikes.unit"] == list(UNITS)
    code, out, _ = command("vocabulary", trained / "run")
    assert "outputs.label" in out
    assert "go, stop" in out
    # A model.
    (tmp_path / "units.txt").write_text("\ufefff\n\ng, h\n")  # with the byte order mark of some editors
    save_pretrained(Run(trained / "run").model, tmp_path / "model")
    arguments = ("--extend", "inputs.spikes.unit", "outputs.label=wait", "--drop", "inputs.session=monday")
    code, out, err = command(
        "vocabulary", tmp_path / "model", *arguments, "--names", tmp_path / "units.txt", "--out", tmp_path / "new"
    )
    assert code == 0, err
    assert "5 known, 2 new, 0 dropped" in out
    assert "1 known, 0 new, 1 dropped" in out
    assert vocabularies(from_pretrained(tmp_path / "new").schema) == {
        "inputs.spikes.unit": (*UNITS, "f", "g, h"),
        "inputs.session": ("tuesday",),
        "outputs.label": ("go", "stop", "wait"),
    }


def test_spaces_count_where_a_known_class_has_them(tmp_path, command):
    schema = Schema({"x": Numbers(2)}, {"y": Label(classes=("a", " a", "b"))})
    save_pretrained(random_model(schema, replace(CONFIG, encoder=EncoderConfig())), tmp_path / "model")
    (tmp_path / "names.txt").write_text(" a\n")
    for number, changes in enumerate((["outputs.y= a"], ["outputs.y", "--names", tmp_path / "names.txt"])):
        out = tmp_path / str(number)
        code, _, err = command(
            "vocabulary", tmp_path / "model", "--extend", "outputs.y=c, d", "--drop", *changes, "--out", out
        )
        assert code == 0, err
        assert from_pretrained(out).schema.outputs["y"].classes == ("a", "b", "c", "d")


@pytest.mark.slow
def test_the_verb_changes_a_run_which_trains_on(trained, tmp_path, command):
    run = tmp_path / "run"
    code, out, err = command("vocabulary", trained / "half", "--extend", "outputs.label=wait", "--out", run)
    assert code == 0, err
    assert f"perceivers train {run / 'recipe.yaml'} --out {run}" in out
    code, out, err = command("train", run / "recipe.yaml", "--out", run)
    assert code == 0, err
    assert len((run / "log.jsonl").read_text().splitlines()) == 6


REFUSED = [
    (("--extend", "outputs.label=wait"), "a model is never changed in place: give --out FOLDER"),
    (("--out", "new"), "nothing is to change"),
    (("--extend", "outputs.lable=wait", "--out", "new"), "did you mean 'outputs.label'?"),
    (("--extend", "outputs.label=go", "--out", "new"), "'go' is one of its classes already"),
    (("--extend", "outputs.label=a,a", "--out", "new"), "'a' stands there twice"),
    (("--extend", "outputs.label=a,,b", "--out", "new"), "name classes, as in outputs.label=a,b"),
    (("--extend", "outputs.label", "--out", "new"), "or a file with --names"),
    (("--drop", "outputs.label=go,stop", "--out", "new"), "no class would be left of 2"),
    (("--drop", "outputs.label=gone", "--out", "new"), "unknown class of outputs.label 'gone'"),
    (("--drop", "outputs.label=go", "--extend", "outputs.label=go", "--out", "new"), "'go' is to be added and dropped"),
    (("--extend", "outputs.label=x", "--names", "old.jsonl", "--out", "new"), "--names old.jsonl has no effect"),
    (("--extend", "outputs.label=x", "--out", "run"), "run exists: choose another folder"),
    (("--extend", "outputs.label=x", "--out", "run/checkpoints/step-00000009"), "keeps its checkpoints there"),
    (("--extend", "outputs.label=x", "--set", "training.seed=1", "--out", "new"), "a run that goes on may change"),
]


@pytest.mark.parametrize(("arguments", "message"), few(REFUSED, REFUSED[:4]))
def test_the_verb_refuses_in_one_line(trained, command, monkeypatch, arguments, message):
    monkeypatch.chdir(trained)
    code, out, err = command("vocabulary", "run", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (trained / "new").exists()


def test_the_verb_helps(command):
    code, out, _ = command("vocabulary", "--help")
    assert code == 0
    for flag in ("--extend", "--drop", "--names", "--out", "--set", "--json"):
        assert flag in out


PAGE = Path(__file__).parent.parent / "docs" / "vocabularies.md"


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path, command, monkeypatch):
    """Its code, its schema file and its commands in their order; it shows what `--from` prints."""
    monkeypatch.chdir(tmp_path)
    text, printed = PAGE.read_text(), ""
    pattern = r"^```(\w+)\n(.*?)^```|^    (perceivers [^\n]*)$"
    for language, block, line in re.findall(pattern, text, re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(block, {})
        elif language == "yaml":
            Path("spikes.yaml").write_text(block)
        elif language == "text":
            assert block in printed
        else:
            code, _, printed = command(*shlex.split(line)[1:])
            assert code == 0, printed
    assert vocabularies(read_recipe(Path("runs/week")).schema)["inputs.spikes.unit"] == tuple("abcdefgh")
    assert vocabularies(from_pretrained("changed").schema)["outputs.state"] == ("run",)
