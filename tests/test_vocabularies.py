"""Vocabularies that grow and shrink: rows of classes go by name, in models, under --from and in runs that go on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers import extend_vocabulary, from_pretrained, reduce_vocabulary, save_pretrained
from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.files.tensor_files import load_shards, save_tensors, shard_name
from perceivers.modalities import Label, Labels, Numbers, PointSet, Records
from perceivers.modalities.class_rows import ClassRows, RowGroup, class_names, resized
from perceivers.modalities.fields import CategoryField, NumberField
from perceivers.modalities.points import Coordinates
from perceivers.pretrained.model_folder import load_model
from perceivers.pretrained.transfer import transfer
from perceivers.pretrained.vocabulary import vocabulary_lines, with_classes
from perceivers.runs.changed_run import write_changed_run
from perceivers.runs.run import Run, read_recipe
from perceivers.runs.schema_file import read_schema_file
from perceivers.runs.train import run_recipe
from perceivers.schema import Schema
from perceivers.schema.schema_files import with_settings
from perceivers.schema.vocabularies import class_rows, merged, taken_over, vocabularies, with_vocabularies
from perceivers.training.checkpoints import latest_checkpoint
from small_run import weights_of

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
        "field": PointSet(
            axes=2, channels=1, of="place", bounds=((0.0, 1.0), (0.0, 1.0)), mean=(0.0,), std=(1.0,)
        ),
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


def test_new_classes_change_no_prediction_for_known_ones():
    """In every place at once: fields of records, a condition, queries, several labels, heads of each kind."""
    model = random_model()
    new = {name: [f"new {number}" for number in range(2 + place % 3)] for place, name in enumerate(vocabularies(SCHEMA))}
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
    assert all(name in before for name in ("label", "several", "tag", "table.unit", "guess.unit", "table.speed", "field"))


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
        (reduce_vocabulary, {"outputs.label": ["dig"]}, "unknown class of outputs.label 'dig'.*did you mean 'dog'"),
        (reduce_vocabulary, {"outputs.label": ["cat", "dog", "eel"]}, "no class would be left of 3"),
    ],
)
def test_what_cannot_be_changed_is_one_line(change, names, message):
    with pytest.raises(ValueError, match=message) as error:
        change(random_model(), names)
    assert "\n" not in str(error.value)


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


def test_names_move_without_rows_under_pad_and_that_is_said():
    config = replace(CONFIG, encoder=EncoderConfig(channel_alignment="pad", conditioned=True))
    source = random_model(config=config)
    schema = with_vocabularies(SCHEMA, {"inputs.state": ("down", "up", "left")})
    assert "inputs.state: classes keep their numbers, not their names (channel_alignment: pad)" in vocabulary_lines(
        PerceiverIO(schema, config), source
    )


def test_merged_by_hand():
    assert merged(("b", "a"), ("a", "c")) == ("b", "a", "c")
    assert merged(("b", "a"), ("c", "d")) == ("c", "d")  # another vocabulary
    assert merged(5, 3) == merged(3, 5) == 5
    assert merged(5, ("0", "1")) == ("0", "1")  # numbers are no names
    assert merged(("a",), 3) == 3
    assert merged(("a", "b"), ()) == ("a", "b")


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
