"""State from window to window: in training, validation, evaluation, prediction; bounded, and at a constant cost."""

import gc
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceivers import (
    Config,
    EncoderConfig,
    LatentsConfig,
    Numbers,
    PerceiverIO,
    ProcessorConfig,
    Schema,
    Series,
    from_pretrained,
    save_pretrained,
)
from perceivers.core.config import BottleneckConfig
from perceivers.data import Arrays, Digits, Table
from perceivers.data.formats.writers import write_rows
from perceivers.modalities import Text
from perceivers.modalities.table_cells import Files, Row
from perceivers.runs.attention_report import attention_page
from perceivers.runs.prediction import check_groups, predict_rows
from perceivers.runs.ray_predict import predict_over_cluster
from perceivers.runs.recipe import Recipe, changed_schema
from perceivers.runs.report import predict
from perceivers.runs.schema_file import read_schema_file
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.training.checkpoints import checkpoints
from perceivers.training.logging import read_log
from perceivers.training.loop import split
from perceivers.training.losses import Objective
from perceivers.training.metrics import evaluate, validation_loss
from perceivers.training.optimisers import OptimiserConfig
from perceivers.training.sampler import BatchOrder, PreparedRecords
from perceivers.training.streams import StreamStates, Unrolled, last_of_each, turns, windows
from perceivers.training.training_config import TrainingConfig
from small_run import trained, weights_of
from test_processes import together

SCHEMA = Schema(
    {"past": Series(size=3, channels=2, drop_prob=0.1)}, {"later": Numbers(count=2, query_channels=5)}, stream="sensor"
)
CONFIG = Config(
    LatentsConfig(num_latents=5, channels=14),
    EncoderConfig(),
    ProcessorConfig(num_layers=1, num_heads=2, final_norm=True),
)
DOUBLE = {"precision": "64-true", "batch_size": 4, "unroll": 3, "schema": SCHEMA, "config": CONFIG}


FAST = OptimiserConfig(kind="adamw", learning_rate=1e-2)


@pytest.fixture(scope="module")
def records():
    """Return 31 windows of three sensors, mixed: 13 of a, 11 of b, 7 of c; what follows depends on all before."""
    rng = np.random.default_rng(0)
    names = rng.permutation(list("a" * 13 + "b" * 11 + "c" * 7))
    sums, found = dict.fromkeys("abc", 0.0), []
    for name in names:
        past = rng.normal(size=(3, 2)).astype(np.float32)
        sums[name] = 0.8 * sums[name] + past.mean(0)
        found.append({"sensor": str(name), "past": past, "later": sums[name]})
    return found


def built(schema=SCHEMA, config=CONFIG, records=()):
    torch.manual_seed(0)
    model = PerceiverIO(schema.fit(records), config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def by_hand(model, records):
    """Return the predictions [R, 2] of records in order, by a loop with a state for each sensor."""
    states, found = {}, []
    with torch.no_grad():
        for record in records:
            before = states.get(record["sensor"])
            states[record["sensor"]] = model.encode(record["past"][None], latents=before)
            found.append(model.decode(states[record["sensor"]])["later"][0])
    return torch.stack(found)


# The order of records.


def test_turns_by_hand():
    """Each record comes after its predecessor; a batch has a sensor once; all of its sensors begin, or carry on."""
    names = list("abacabd")
    assert list(turns(names, 2)) == [[0, 1], [2, 5], [4], [3, 6]]
    assert list(turns(names, 9)) == [[0, 1, 3, 6], [2, 5], [4]]
    assert list(turns(names, 9, known={"a", "d"})) == [[1, 3], [5], [0, 6], [2], [4]]
    assert list(turns([], 3)) == []


def test_examples_by_hand():
    """Three consecutive records of one sensor each."""
    examples = Unrolled.of(list("abaabbab"), 3)
    assert [*map(list, examples)] == [[0, 2, 3], [2, 3, 6], [1, 4, 5], [4, 5, 7]]
    with pytest.warns(UserWarning, match=r"1 of 2 streams have fewer records than training.unroll = 3"):
        assert [*Unrolled.of(list("abaa"), 3)] == [[0, 2, 3]]
    with pytest.raises(ValueError, match=r"training.unroll = 5 is more than the 4 records of the longest stream"):
        Unrolled.of(list("abaabba"), 5)


def test_a_batch_has_whole_examples_and_is_a_function_of_the_step():
    examples = Unrolled.of(list("abaabbab"), 3)
    whole = [*BatchOrder(7, len(examples), 4, 0, 5, examples=examples)]
    assert [*BatchOrder(7, len(examples), 4, 3, 5, examples=examples)] == whole[3:]
    shares = [[*BatchOrder(7, len(examples), 4, 0, 5, rank, 2, examples=examples)] for rank in range(2)]
    for number, batch in enumerate(whole):
        triples = [batch[first : first + 3] for first in range(0, 12, 3)]
        assert all([record for _, record in triple] in [*map(list, examples)] for triple in triples)
        assert sorted(shares[0][number] + shares[1][number]) == sorted(batch)
    assert sorted(record for batch in whole[:1] for _, record in batch) == sorted(np.concatenate([*examples]))


def test_validation_takes_the_last_records_of_each_stream(records):
    first, last = last_of_each(list("abaabbab"), 0.5)
    assert (first.tolist(), last.tolist()) == ([0, 1, 2, 4], [3, 5, 6, 7])
    names = [record["sensor"] for record in records]
    training, validation = split(records, TrainingConfig(validation_fraction=0.3, unroll=2), names)
    assert len(validation) == round(3.9) + round(3.3) + round(2.1)
    for name in "abc":
        together = [record for part in (training, validation) for record in part if record["sensor"] == name]
        assert together == [record for record in records if record["sensor"] == name]


# Training.


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, bottleneck=BottleneckConfig(channels=3))])
def test_loss_and_gradients_are_those_of_a_loop(config, records):
    """The mean over all windows, with gradients through all of them."""
    model = built(config=config, records=records).double()
    model.schema = replace(model.schema, inputs={"past": replace(model.schema.inputs["past"], drop_prob=0.0)})
    objective = Objective(model, unroll=3).eval()
    examples = [*Unrolled.of([record["sensor"] for record in records], 3)][:4]
    prepared = PreparedRecords(model.schema, records, 0, training=False)
    batch = prepared.collate([prepared[record] for example in examples for record in example])
    batch = {side: {name: x.double() for name, x in values.items()} for side, values in batch.items()}
    losses = objective(batch)
    sum(losses.values()).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}

    # By hand, example by example.
    model.zero_grad(set_to_none=True)
    squares, divergences = [], []
    for example in examples:
        encoded = None
        for number in example:
            past, later = (torch.tensor(records[number][name]).double()[None] for name in ("past", "later"))
            encoded = model.encode(past, latents=encoded)
            std = torch.tensor(model.schema.outputs["later"].std, dtype=torch.double)
            squares.append(((model.decode(encoded)["later"] - later.float().double()) / std) ** 2)
            divergences.append(0.0 if encoded.posterior is None else 1e-3 * encoded.posterior.kl(0.0).mean())
    total = torch.stack(squares).mean() + sum(divergences) / len(divergences)
    total.backward()
    assert math.isclose(sum(losses.values()).item(), total.item(), rel_tol=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-7, atol=1e-10)
    assert len(windows(batch, 3)) == 3


@pytest.mark.slow
def test_training_with_a_state_learns_what_a_window_does_not_tell(records, tmp_path):
    """A target depends on all windows before, which a model without a state never sees."""
    settings = {"unroll": 5, "batch_size": 8, "schema": SCHEMA, "config": CONFIG, "optimiser": FAST}
    trained(records, tmp_path / "carried", 40, **settings)
    plain = settings | {"unroll": 1, "batch_size": 40, "schema": replace(SCHEMA, stream=None)}
    trained(records, tmp_path / "plain", 40, **plain)
    carried, alone = (
        np.mean([line["losses"]["later"] for line in read_log(tmp_path / name)[-8:]]) for name in ("carried", "plain")
    )
    assert carried < 0.9 * alone


def test_parts_of_a_batch_change_nothing(records, tmp_path):
    whole = trained(records, tmp_path / "whole", 3, **DOUBLE)
    parts = trained(records, tmp_path / "parts", 3, **DOUBLE, accumulate=2)
    for (name, one), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10, msg=name)


def test_a_resumed_run_makes_the_same_steps(records, tmp_path):
    settings = DOUBLE | {"validation_fraction": 0.3, "average_decay": 0.9}
    straight = trained(records, tmp_path / "straight", 4, **settings)
    trained(records, tmp_path / "stopped", 4, **settings, checkpoint_every=2)
    for folder in checkpoints(tmp_path / "stopped"):
        if folder.name.endswith("4"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    assert weights_of(trained(records, tmp_path / "stopped", 4, **settings, checkpoint_every=2)) == weights_of(straight)


@pytest.mark.slow
def test_two_processes_make_the_steps_of_one(records, tmp_path):
    alone = trained(records, tmp_path / "alone", 3, **DOUBLE, validation_fraction=0.3)
    together(2, lambda rank: trained(records, tmp_path / "pair", 3, **DOUBLE, validation_fraction=0.3))
    both = from_pretrained(checkpoints(tmp_path / "pair")[0])
    for (name, one), other in zip(alone.state_dict().items(), both.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=name)


def test_a_run_without_a_final_norm_is_warned_of(records, tmp_path):
    config = replace(CONFIG, processor=replace(CONFIG.processor, final_norm=False))
    with pytest.warns(UserWarning, match=r"without processor.final_norm: true: the latents that it carries may grow"):
        trained(records, tmp_path, 1, **(DOUBLE | {"config": config}))


# Validation, evaluation, prediction.


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_evaluation_and_validation_carry_the_state(records, batch_size):
    model = built(records=records)
    guess, truth = by_hand(model, records), torch.tensor(np.stack([record["later"] for record in records]))
    mae = float((guess - truth).abs().mean())
    scores = evaluate(model, records, batch_size=batch_size)
    assert math.isclose(scores["later"]["mae"], mae, rel_tol=1e-5)
    std = torch.tensor(model.schema.outputs["later"].std)
    loss = validation_loss(Objective(model, unroll=3), records, batch_size)
    assert math.isclose(loss, float((((guess - truth) / std) ** 2).mean()), rel_tol=1e-5)
    alone = evaluate(built(replace(SCHEMA, stream=None), records=records), records)
    assert abs(alone["later"]["mae"] - mae) > 1e-3


@pytest.mark.parametrize("batch_size", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 100)), 4])
def test_predictions_carry_the_state_in_the_order_of_the_rows(records, batch_size):
    model = built(records=records)
    rows = [*predict_rows(model, iter(records), batch_size)]
    found = torch.tensor([row["later"] for row in rows])
    torch.testing.assert_close(found, by_hand(model, records), rtol=1e-4, atol=1e-4)
    _, whole = predict(model, model.schema, records)
    torch.testing.assert_close(whole["later"], by_hand(model, records), rtol=1e-5, atol=1e-6)


def test_a_stream_carries_on_from_the_last_window_that_could_be_read(records):
    model = built(records=records)
    broken = [*records]
    broken[7] = broken[7] | {"past": "unreadable"}
    nameless = {name: value for name, value in records[3].items() if name != "sensor"}
    broken[3] = nameless
    rows = [*predict_rows(model, broken, 5, max_bad_rows=2)]
    assert "not a number" in rows[7]["unreadable"] or "past" in rows[7]["unreadable"]
    assert rows[3]["unreadable"].endswith("has no 'sensor', the field that names its stream")
    good = [number for number in range(31) if number not in (3, 7)]
    expected = by_hand(model, [records[number] for number in good])
    found = torch.tensor([rows[number]["later"] for number in good])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_state_that_is_not_finite_is_not_kept():
    states = StreamStates()
    states.keep(["a", "b"], torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    states.keep(["b", "a"], torch.tensor([[[math.nan, 2.0]], [[5.0, 6.0]]]))
    assert states.before(["a", "b"]).tolist() == [[[5.0, 6.0]], [[3.0, 4.0]]]
    assert states.before(["c"]) is None


@pytest.mark.parametrize("batch_size", [1, 100])
def test_a_first_window_that_is_not_finite_leaves_the_other_streams_alone(records, batch_size):
    """A stream without a state begins anew with its second window, and the others of the batch carry on."""
    model = built(records=records)
    first = next(number for number, record in enumerate(records) if record["sensor"] == "a")
    broken = [*records]
    broken[first] = broken[first] | {"past": np.full((3, 2), 3e38)}
    rows = [*predict_rows(model, broken, batch_size, max_bad_rows=1)]
    assert rows[first]["unreadable"].endswith("the prediction is not finite")
    good = [number for number in range(31) if number != first]
    expected = by_hand(model, [records[number] for number in good])
    found = torch.tensor([rows[number]["later"] for number in good])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    states = StreamStates()
    states.keep(["a"], torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match="stream 'b' has no state to carry on"):
        states.before(["b", "a"])


def test_masks_of_an_evaluation_are_those_of_the_records(records):
    """Each record is masked alike in any batch and in any order."""
    text = Text(length=11, channels=7, mask_prob=0.5, mask_at_eval=True)
    schema = Schema({"text": text}, {"later": Numbers(count=2)}, stream="sensor")
    texts = [{**record, "text": f"words {number}"} for number, record in enumerate(records)]
    model = built(schema, records=texts)
    scores = [evaluate(model, texts, batch_size=size) for size in (2, 31)]
    assert math.isclose(scores[0]["later"]["mae"], scores[1]["later"]["mae"], rel_tol=1e-5)


# The field `stream` in schemas and files.


def test_a_schema_keeps_its_stream(records, tmp_path):
    schema = SCHEMA.fit(records)
    assert from_plain(Schema, to_plain(schema)) == schema
    assert "stream" not in to_plain(replace(schema, stream=None))
    for other in (schema.uncorrupted, schema.changed("past", drop_prob=0.5), changed_schema(schema, {})):
        assert other.stream == "sensor"
    model = built(records=records)
    save_pretrained(model, tmp_path / "model")
    assert from_pretrained(tmp_path / "model").schema == model.schema


def test_a_schema_file_names_a_stream_at_the_top(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "inputs: {past: {kind: series, size: 3, channels: 2}}\noutputs: {later: {kind: numbers, count: 2}}\n"
        "stream: sensor\ntraining: {unroll: 4}\ndata: {kind: table, group: sensor}\n"
    )
    recipe = read_schema_file(tmp_path / "mine.yaml")
    assert (recipe.schema.stream, recipe.training.unroll) == ("sensor", 4)
    assert read_schema_file(tmp_path / "mine.yaml", "other.csv").schema.stream == "sensor"


def test_what_does_not_go_with_a_stream_is_one_line(records, tmp_path):
    model = built(records=records)
    for call in (
        lambda: [*predict_rows(model, records, 3, attribution=True)],
        lambda: [*predict_over_cluster(model, records, 2, 3)],
        lambda: attention_page(model, records, tmp_path / "page.html"),
    ):
        with pytest.raises(ValueError, match=r"the model carries a state on within a stream \(sensor\)"):
            call()
    with pytest.raises(ValueError, match="record 2 has no 'sensor'"):
        evaluate(model, [records[0], {}])
    with pytest.raises(ValueError, match="record 2 has no 'sensor'"):
        evaluate(model, [records[0], {**records[1], "sensor": math.nan}])
    with pytest.raises(ValueError, match="stream: sensor carries learned latents on: leave trunk: transformer out"):
        PerceiverIO(SCHEMA, Config(trunk="transformer"))
    with pytest.raises(ValueError, match="leave taken_from out of the config"):
        PerceiverIO(SCHEMA, replace(CONFIG, latents=LatentsConfig(5, 14, taken_from="past", token_map=True)))


def test_recipes_follow_streams():
    unrolled = TrainingConfig(unroll=3)
    table = Table(file="x.csv", group="sensor")
    Recipe(table, SCHEMA, training=unrolled)
    Recipe(replace(table, group=None, order="time"), SCHEMA, training=unrolled)
    Recipe(Arrays("x.npz", "y.npz"), SCHEMA, training=unrolled)
    for data, schema, training, message in (
        (table, SCHEMA, TrainingConfig(), r"training.unroll = 1 must be 2 or more with a stream"),
        (table, replace(SCHEMA, stream=None), unrolled, r"training.unroll = 3 must be 1 without a stream"),
        (Table(file="x.csv"), SCHEMA, unrolled, r"rows are held out at random, within streams: set data.order"),
        (Table(file="x.csv", group="day"), SCHEMA, unrolled, r"rows are held out at random, within streams"),
        (Arrays("x.npz"), SCHEMA, unrolled, r"set data.held_out_file"),
        (Digits(), SCHEMA, unrolled, r"data of kind digits are not split by streams"),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(data, schema, training=training)


def test_rows_of_a_stream_that_are_not_in_order_are_one_line(command, tmp_path):
    """A table whose `order` says that a stream runs backwards would be read from its end, and cut within windows."""
    rng, path = np.random.default_rng(0), tmp_path / "windows.jsonl"
    lines = [
        {"sensor": name, "time": time, "past": rng.normal(size=(3, 2)).tolist(), "later": rng.normal(size=2).tolist()}
        for time in range(20)
        for name in "ab"
    ]
    (tmp_path / "mine.yaml").write_text(
        "inputs: {past: {kind: series, size: 3, channels: 2}}\noutputs: {later: {kind: numbers, count: 2}}\n"
        "stream: sensor\ntraining: {unroll: 2, batch_size: 3, num_steps: 1, schedule: {warmup_steps: 0}}\n"
        "config: {latents: {num_latents: 3, channels: 8}, processor: {num_layers: 1, final_norm: true, num_heads: 2}}\n"
        f"data: {{kind: table, file: {path}, order: time}}\n"
    )
    write_rows(path, lines)
    assert command("train", tmp_path / "mine.yaml", "--out", tmp_path / "run")[0] == 0
    write_rows(path, lines[::-1])
    for verb in (("train", tmp_path / "mine.yaml", "--out", tmp_path / "other"), ("predict", tmp_path / "run", path)):
        code, _, errors = command(*verb, *(["-o", tmp_path / "out.csv"] if verb[0] == "predict" else []))
        assert code == 2
        assert re.search(r"windows.jsonl:\d+: time = \d+ stands behind \d+ of sensor .: sort the table", errors)


def test_times_of_a_stream_are_moments():
    """An hour comes twice where summer time ends."""
    times = ["2026-10-25T02:30+02:00", "2026-10-25T02:10+01:00", "2026-10-25T03:10+01:00"]
    rows = [Row(f"mine.csv:{n}", {"sensor": "a", "time": time}, Files(Path())) for n, time in enumerate(times)]
    table = Table(file="mine.csv", order="time")
    assert [*table.in_order(rows, "sensor")] == rows
    with pytest.raises(ValueError, match=r"mine.csv:1: time = 2026-10-25T02:10\+01:00 stands behind 2026-10-25T03"):
        [*table.in_order(rows[::-1], "sensor")]


def test_groups_of_scores_may_not_cut_a_stream(records):
    cells = [record | {"half": n > 15, "kind": record["sensor"] == "a"} for n, record in enumerate(records)]
    rows = [Row(f"mine.csv:{number}", each, Files(Path())) for number, each in enumerate(cells)]
    check_groups(rows, "kind", SCHEMA)
    check_groups(rows, "half", replace(SCHEMA, stream=None))
    with pytest.raises(ValueError, match=r"half: stream '.' is in groups 'False' and 'True', but its state is carried"):
        check_groups(rows, "half", SCHEMA)


# Over many windows.


def stream_norms(config, count, seed=1):
    """Return the largest magnitude of a latent's channel after each of `count` windows."""
    model = built(config=config)
    generator, encoded, found = torch.Generator().manual_seed(seed), None, []
    with torch.no_grad():
        for _ in range(count):
            encoded = model.encode(3 * torch.randn(1, 3, 2, generator=generator), latents=encoded)
            found.append(encoded.latents.abs().max())
    return model, torch.stack(found)


@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_carried_latents_stay_bounded_with_a_final_norm(count):
    """A normed vector of D channels has none above sqrt(D - 1); the norm's scale and shift come on top."""
    model, norms = stream_norms(CONFIG, count)
    norm = model.trunk.final_norm
    bound = norm.weight.abs().max() * math.sqrt(13) + norm.bias.abs().max()
    assert norms.isfinite().all()
    assert norms.max() <= bound
    without = replace(CONFIG, processor=replace(CONFIG.processor, final_norm=False))
    _, grown = stream_norms(without, 40)
    assert grown[-1] > bound
    assert grown[-1] > 2 * grown[12]


def test_the_cost_of_a_window_does_not_grow(records):
    """Floating-point operations, and bytes of all tensors that are alive, after 2 windows and after 30."""
    model, encoded, work, alive = built(records=records).requires_grad_(False), None, [], []
    window = torch.tensor(records[0]["past"])[None]
    for _ in range(30):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            encoded = model.encode(window, latents=encoded)
            model.decode(encoded)
        work.append(counter.get_total_flops())
        if len(work) in (2, 30):
            gc.collect()
            tensors = (x for x in gc.get_objects() if issubclass(type(x), torch.Tensor))  # keeps none of them
            alive.append(sum(x.nbytes for x in tensors if x.layout == torch.strided))
    assert work[0] > 0
    assert len({*work[1:]}) == 1
    assert alive[0] == alive[1]
