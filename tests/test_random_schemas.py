"""Properties of any schema: it builds, learns, is saved, and predicts whatever is missing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from perceivers import (
    Audio,
    CategoryField,
    Config,
    DateField,
    DecoderConfig,
    EncoderConfig,
    Events,
    FramePair,
    Image,
    Label,
    Labels,
    LatentsConfig,
    NumberField,
    Numbers,
    PerceiverIO,
    PointSet,
    ProbabilisticRegression,
    ProcessorConfig,
    Records,
    Schema,
    Series,
    Text,
    Vectors,
    Video,
)
from perceivers.modalities.position_encodings import Fourier
from perceivers.pretrained.model_folder import load_model, save_model
from perceivers.schema.plain_values import from_plain
from perceivers.schema.schema_files import to_yaml

CONFIG = Config(
    LatentsConfig(num_latents=3, channels=8),
    EncoderConfig(),
    ProcessorConfig(num_layers=1, num_heads=2),
    DecoderConfig(),
)
POSITIONS = Fourier(num_bands=2, max_resolution=5)
OCTAVES = Fourier(num_bands=2, spacing="octaves")
QUERY = {"query_channels": 5}

small = st.integers(1, 3)


def grid(kind, axes, output):
    """Return grids whose size is divisible by their patch; one-dimensional ones vary in length as inputs."""

    @st.composite
    def strategy(draw):
        patch = tuple(draw(st.integers(1, 2)) for _ in range(axes))
        size = tuple(p * draw(small) for p in patch)
        channels = draw(small)
        spec = kind(size=size, patch=patch, channels=channels, positions=POSITIONS)

        def value(rng):
            lengths = size if output or axes > 1 else (patch[0] * rng.integers(1, 4),)
            return rng.normal(size=(*lengths, channels))

        return spec, value

    return strategy()


@st.composite
def pointset(draw):
    axes, channels, values = draw(small), draw(small), draw(st.sampled_from(["numbers", "binary"]))

    def value(rng):
        count = rng.integers(0, 4)
        numbers = rng.normal(size=(count, channels)) if values == "numbers" else rng.integers(2, size=(count, channels))
        return {"coordinates": rng.normal(size=(count, axes)), "values": numbers}

    return PointSet(axes=axes, channels=channels, values=values, positions=POSITIONS), value


def records(output):
    @st.composite
    def strategy(draw):
        types = draw(st.lists(st.sampled_from(["number", "category", "date"]), min_size=1, max_size=3))
        made = {"number": NumberField(), "category": CategoryField(classes=("a", "b"), channels=3), "date": DateField()}
        fields = {f"f{number}": made[name] for number, name in enumerate(types)}
        tokens = draw(st.sampled_from(["record", "field"]))
        spec = Records(fields, tokens=tokens, channels=4, max_records=3 if output else None, **QUERY)
        make = {
            "number": lambda rng: float(rng.normal()),
            "category": lambda rng: str(rng.choice(["a", "b"])),
            "date": lambda rng: f"2026-0{rng.integers(1, 10)}-11",
        }

        def value(rng):
            names = dict(zip(fields, types, strict=True))
            whole = {name: make[what](rng) for name, what in names.items()}
            others = [{n: make[w](rng) for n, w in names.items() if rng.random() < 0.7} for _ in range(rng.integers(3))]
            return [whole, *others]

        return spec, value

    return strategy()


@st.composite
def events(draw):
    classes, positions = draw(st.sampled_from([(), ("a", "b", "c")])), draw(st.sampled_from([(), ("hours",)]))
    spec = Events(classes=classes, channels=draw(small), axis_names=positions, positions=OCTAVES)

    def value(rng):
        kinds = rng.choice(["a", "b"], rng.integers(1, 4))
        return [[float(rng.normal()), str(kind), None if rng.random() < 0.2 else float(rng.normal())] for kind in kinds]

    return spec, value


def simple(output):
    """Return modalities whose options do not matter here."""
    count = 2
    texts = ["a", "Grüße", "", "two words"]
    pairs = [
        (Text(length=13, channels=4, **QUERY), lambda rng: str(rng.choice(texts))),
        (Label(classes=("x", "y"), **QUERY), lambda rng: str(rng.choice(["x", "y"]))),
        (Label(classes=4, **QUERY), lambda rng: int(rng.integers(4))),
        (Labels(classes=3, **QUERY), lambda rng: [n for n in range(3) if rng.random() < 0.5]),
        (Numbers(count=count, **QUERY), lambda rng: np.where(rng.random(count) < 0.3, np.nan, rng.normal(size=count))),
        (ProbabilisticRegression(**QUERY), lambda rng: float(rng.normal())),
        (ProbabilisticRegression(quantiles=(0.2, 0.7), **QUERY), lambda rng: float(rng.normal())),
    ]
    if not output:
        pairs += [
            (Vectors(channels=3), lambda rng: rng.normal(size=(rng.integers(0, 4), 3))),
            (FramePair(size=(2, 3), patch=1, embed=4), lambda rng: rng.uniform(-1, 1, (2, 2, 3, 3))),
        ]
    return st.sampled_from(pairs)


def kinds(output):
    grids = [grid(kind, axes, output) for kind, axes in ((Image, 2), (Video, 3), (Series, 1), (Audio, 1))]
    return st.one_of(simple(output), pointset(), events(), records(output), *grids)


tasks = st.fixed_dictionaries(
    {
        "inputs": st.lists(kinds(output=False), min_size=1, max_size=3),
        "outputs": st.lists(kinds(output=True), min_size=1, max_size=2),
        "mask": st.sampled_from([None, 0.0, 0.5]),
        "seed": st.integers(0, 1000),
    }
)


def schema_and_rows(inputs, outputs, mask, seed):
    """Return a fitted schema and records; the first record lacks nothing."""
    rng = np.random.default_rng(seed)
    parts = {f"in{n}": part for n, part in enumerate(inputs)} | {f"out{n}": part for n, part in enumerate(outputs)}
    rows = [
        {name: None if number and rng.random() < 0.3 else value(rng) for name, (_, value) in parts.items()}
        for number in range(3)
    ]
    specs = {name: replace(spec, mask_prob=mask) for name, (spec, _) in parts.items()}
    schema = Schema(
        {name: spec for name, spec in specs.items() if name.startswith("in")},
        {name: spec for name, spec in specs.items() if name.startswith("out")},
    )
    return schema.fit(rows), rows


def batch_of(schema, rows, training):
    return schema.collate([schema.preprocess(row, np.random.default_rng(0), training) for row in rows])


def leaves(value):
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    return [value]


def assert_equal(one, other, **tolerance):
    for a, b in zip(leaves(one), leaves(other), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


RELAXED = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": True,
    "phases": [Phase.generate],
}


@pytest.mark.filterwarnings("ignore:Do not use the .random. module")  # beartype draws the items that it checks
@given(task=tasks)
@settings(max_examples=20, **RELAXED)
def test_any_schema_is_built_learns_is_kept_and_answers(tmp_path_factory, task):
    check(tmp_path_factory.mktemp("model"), task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Do not use the .random. module")
@given(task=tasks)
@settings(max_examples=200, **RELAXED)
def test_many_schemas_are_built_learn_are_kept_and_answer(tmp_path_factory, task):
    check(tmp_path_factory.mktemp("model"), task)


def check(folder, task):
    schema, rows = schema_and_rows(**task)
    assert from_plain(Schema, yaml.safe_load(to_yaml(schema))) == schema
    torch.manual_seed(0)
    model = PerceiverIO(schema, CONFIG)
    learn(model, schema, batch_of(schema, rows, training=True))
    model.eval()
    batch = batch_of(schema, rows, training=False)
    points = schema.points(batch["targets"])
    _, asking = schema.dummy_input(1, torch.device("cpu"))
    names = [name for name in schema.outputs if name in points or name not in asking]
    encoded = model.encode(batch["inputs"])
    whole = model.decode(encoded, points, outputs=names)
    assert all(leaf.isfinite().all() for leaf in leaves(whole))
    for algorithm in ("projected", "separable-folded"):
        assert_equal(model.decode(encoded, points, outputs=names, algorithm=algorithm), whole, rtol=1e-4, atol=1e-5)

    save_model(model, folder)
    again = load_model(folder)
    assert_equal(again.decode(again.encode(batch["inputs"]), points, outputs=names), whole, rtol=0, atol=0)

    # One input at a time suffices, and the result of a sample does not depend on the others of its batch.
    for name in batch["inputs"]:
        assert model.encode({name: batch["inputs"][name]}).latents.isfinite().all()
    alone = batch_of(schema, rows[:1], training=False)
    assert_equal(model.encode(alone["inputs"]).latents, encoded.latents[:1], rtol=1e-3, atol=1e-4)


def learn(model, schema, batch):
    """Take one step: whatever is missing, gradients are finite and some parameter changes."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = schema.losses(model(batch["inputs"], schema.points(batch["targets"])), batch["targets"])
    assert losses.keys() == batch["targets"].keys()
    total = torch.stack(list(losses.values())).sum()
    assert total.isfinite()
    total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    optimiser.step()
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
