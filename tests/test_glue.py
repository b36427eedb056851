"""GLUE: its files as published, the three kinds of task queries, scores by hand, runs from end to end."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from perceivers.core.config import Config, DecoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data import Glue
from perceivers.data.published.glue_tables import CLASSES, examples
from perceivers.modalities import ProbabilisticRegression, Text
from perceivers.pretrained.model_folder import save_model
from perceivers.pretrained.transfer import transfer
from perceivers.runs.evaluate import evaluate_run
from perceivers.runs.prediction import predict_rows
from perceivers.runs.results import keep_scores, read_scores
from perceivers.runs.run import Run
from perceivers.runs.train import run_recipe
from perceivers.schema import Schema
from perceivers.schema.preset import Preset
from perceivers.systems import TASKS
from perceivers.systems.glue.baselines import bag_of_bytes, baselines, file_scores, glue_scores, labelled_texts
from perceivers.systems.glue.model import glue_schema
from perceivers.systems.glue.recipes import EXAMPLES, paper, small
from perceivers.systems.glue.report import report
from perceivers.training.loop import TrainingConfig
from perceivers.training.losses import Objective
from perceivers.training.metrics import answers, gathered
from perceivers.training.optimisers import build_optimiser

TEXT = Text(length=31, channels=8, overflow="truncate")
TINY = Config(
    LatentsConfig(num_latents=5, channels=8),
    processor=ProcessorConfig(num_heads=2, num_layers=1),
    decoder=DecoderConfig(channel_alignment="pad"),
)

OFFICIAL = {
    "CoLA/train.tsv": ["gj04\t1\t\tThe dog ran.", "gj04\t0\t*\tRan dog the."],
    "CoLA/dev.tsv": ['gj04\t1\t\t"Who?" she said.'],
    "MNLI/train.tsv": [
        "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t31\t31n\tfiction\tIt rains.\tIt is wet.\tneutral\tentailment",
        "1\t32\t32n\tfiction\tIt rains.\tIt is dry.\tcontradiction\t-",
        "2\t33\t33n\tfiction\tIt rains.\tIt is May.\tneutral\tneutral",
    ],
    "MNLI/dev_matched.tsv": ["sentence1\tsentence2\tgold_label", "A.\tB.\tneutral", "C.\tD.\tcontradiction"],
    "MNLI/dev_mismatched.tsv": ["sentence1\tsentence2\tgold_label", "E.\tF.\tneutral"],
    "MRPC/train.tsv": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "1\t7\t8\tHe said so.\tSo he said."],
    "MRPC/dev.tsv": ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\tHe said so.\tShe did not."],
    "QNLI/train.tsv": ["index\tquestion\tsentence\tlabel", "0\tWho?\tHe did.\tentailment"],
    "QNLI/dev.tsv": ["index\tquestion\tsentence\tlabel", "0\tWhen?\tHe did.\tnot_entailment"],
    "QQP/train.tsv": [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "0\t1\t2\tHow?\tIn what way?\t1",
        "1\t3\t4\tbroken line",
    ],
    "QQP/dev.tsv": ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tHow?\tWhy?\t0"],
    "RTE/train.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tA dog ran.\tA dog moved.\tentailment"],
    "RTE/dev.tsv": ["index\tsentence1\tsentence2\tlabel", "0\tA dog ran.\tA cat ran.\tnot_entailment"],
    "SST-2/train.tsv": ["sentence\tlabel", "a fine film \t1", "a dull film\x85\t0"],
    "SST-2/dev.tsv": ["sentence\tlabel", "a grüner film\t1"],
    "STS-B/train.tsv": [
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tnews\tMSRvid\t2012\t1\tnone\tnone\tA plane.\tAn aeroplane.\t5.000",
        "1\tnews\tMSRvid\t2012\t2\tnone\tnone\tA plane.\tA flute.\t0.500",
    ],
    "STS-B/dev.tsv": ["sentence1\tsentence2\tscore", "A man.\tA woman.\t1.250", "A man.\tA man.\t5"],
}

BEFORE = {
    "CoLA/in_domain_train.tsv": ["gj04\t1\t\tThe dog ran."],
    "CoLA/in_domain_dev.tsv": ["gj04\t0\t*\tRan dog the."],
    "CoLA/out_of_domain_dev.tsv": ["clc95\t1\t\tLeft, guess who."],
    "SST-2/train.tsv": ["a fine film\t1"],
    "SST-2/dev.tsv": ["a dull film\t0"],
    "STS/2014.headlines.tsv": ["3\tOne.\tTwo."],
    "STS/2014.images.tsv": ["0.4\tThree.\tFour."],
    "STS/2015.headlines.tsv": ["\tNo score.\tNone.", "1.30\tFive.\tSix."],
    "STS/2015.images.tsv": ["5.00\tSeven.\tSeven."],
    "hutto_ICWSM_2014/tweets_GroundTruth.txt": ["4\t2.5\tYay!", "5\t-0.5\tMeh."],
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": ["1\t-3.25\tAwful."],
    "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt": ["5_1\t0\tIt is blue.", "5_2\t1.5\tI like it."],
    "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt": ["1_1\t0.0\tOn Monday.", "10_5\t0.1\tOn Tuesday."],
}


def written(folder, files, end="\n"):
    for name, lines in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes("".join(line + end for line in lines).encode())
    return str(folder)


@pytest.fixture
def official(tmp_path):
    return written(tmp_path / "glue", OFFICIAL)


@pytest.fixture
def before(tmp_path):
    return written(tmp_path / "before", BEFORE, "\r\n")


def of(records, task):
    return [(record["text"], record.get(task)) for record in records]


@pytest.mark.parametrize(
    ("task", "training", "held_out"),
    [
        ("cola", [("The dog ran.", "acceptable"), ("Ran dog the.", "unacceptable")], '"Who?" she said.'),
        ("mnli", [("It rains.\tIt is wet.", "entailment"), ("It rains.\tIt is May.", "neutral")], "A.\tB."),
        ("mrpc", [("He said so.\tSo he said.", "paraphrase")], "He said so.\tShe did not."),
        ("qnli", [("Who?\tHe did.", "entailment")], "When?\tHe did."),
        ("qqp", [("How?\tIn what way?", "duplicate")], "How?\tWhy?"),
        ("rte", [("A dog ran.\tA dog moved.", "entailment")], "A dog ran.\tA cat ran."),
        ("sst_2", [("a fine film ", "positive"), ("a dull film\x85", "negative")], "a grüner film"),
        ("sts", [("A plane.\tAn aeroplane.", 5.0), ("A plane.\tA flute.", 0.5)], "A man.\tA woman."),
    ],
)
def test_files_that_glue_publishes(official, task, training, held_out):
    """Lines without a target or with missing cells are left out; quotation marks are text."""
    data = Glue(official, (task,))
    assert of(data.training(), task) == training
    assert data.held_out()[0]["text"] == held_out
    assert all(record.keys() == {"text", "task", "file", task} for record in data.held_out())


def test_files_from_before_glue(before):
    cola, sst, sts = (Glue(before, (task,)) for task in ("cola", "sst_2", "sts"))
    assert of(cola.training(), "cola") == [("The dog ran.", "acceptable")]
    assert [record["file"] for record in cola.held_out()] == ["in_domain_dev.tsv", "out_of_domain_dev.tsv"]
    assert of(sst.held_out(), "sst_2") == [("a dull film", "negative")]
    assert of(sts.training(), "sts") == [("One.\tTwo.", 3.0), ("Three.\tFour.", 0.4)]
    assert of(sts.held_out(), "sts") == [("Five.\tSix.", 1.3), ("Seven.\tSeven.", 5.0)]


def test_vaders_ratings_and_their_signs(before):
    """Documents 5 and 10 are held out with all of their sentences; a rating of 0 belongs to no class."""
    data = Glue(before, ("vader",))
    training = [(record["text"], record.get("vader"), record["vader_rating"]) for record in data.training()]
    assert training == [("Yay!", "positive", 2.5), ("Awful.", "negative", -3.25), ("On Monday.", None, 0.0)]
    held_out = [(record["text"], record.get("vader")) for record in data.held_out()]
    assert held_out == [
        ("Meh.", "negative"),
        ("It is blue.", None),
        ("I like it.", "positive"),
        ("On Tuesday.", "positive"),
    ]


def test_tasks_come_one_behind_the_other_and_by_their_shares(official):
    """Two of CoLA, one of RTE, two of STS; with shares of 1 : 2 : 1, RTE comes four times, the others once."""
    tasks = ("cola", "rte", "sts")
    data = Glue(official, tasks)
    assert [record["task"] for record in data.training()] == ["cola", "cola", "rte", "sts", "sts"]
    assert [record["task"] for record in data.held_out()] == ["cola", "rte", "sts", "sts"]
    shared = replace(data, shares=(1.0, 2.0, 1.0)).training()
    assert [record["task"] for record in shared] == ["cola"] * 2 + ["rte"] * 4 + ["sts"] * 2
    assert len({record["text"] for record in shared}) == 5
    assert shared[-1] == shared[7] == list(shared)[7] == data.training()[-1]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"lacks the files of rte: RTE/{train.tsv,dev.tsv}"),
        ({"RTE/train.tsv": ["sentence\tlabel", "a\tentailment"]}, "names no columns sentence1, sentence2, label"),
        ({"RTE/train.tsv": ["sentence1\tsentence2\tlabel"]}, "no line of train.tsv has a target"),
        (
            {"RTE/train.tsv": ["sentence1\tsentence2\tlabel", "a\tb\tperhaps"]},
            r"train.tsv:2: 'perhaps' is no target of rte: expected entailment or not_entailment",
        ),
        ({"RTE/train.tsv": ["sentence1\tsentence2\tlabel", "a\tb\t2"]}, "'2' is no target of rte"),
    ],
)
def test_other_files_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        list(Glue(written(tmp_path, files), ("rte",)).training())


def test_other_encodings_and_wrong_settings_are_refused(tmp_path):
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "train.tsv").write_bytes("sch\xf6n\t1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train.tsv: not UTF-8"):
        Glue(str(tmp_path), ("sst_2",)).training()
    files = {name: lines for name, lines in BEFORE.items() if "hutto" in name}
    files["hutto_ICWSM_2014/tweets_GroundTruth.txt"] = ["first\t2.5\tYay!"]
    with pytest.raises(ValueError, match=r"tweets_GroundTruth.txt:1: 'first' must begin with the number"):
        Glue(written(tmp_path, files), ("vader",)).training()
    with pytest.raises(ValueError, match="each once"):
        Glue(tasks=("rte", "rte"))
    with pytest.raises(ValueError, match="2 numbers above 0"):
        Glue(tasks=("rte", "cola"), shares=(1.0,))


def model_of(variant, tasks=("cola", "rte", "sts")):
    torch.manual_seed(0)
    schema = glue_schema(tasks, TEXT, variant)
    return schema, PerceiverIO(schema, TINY).eval()


def test_what_asks_for_a_task():
    """One token for all tasks, one token each, or one query each; the tokens precede the text."""
    queries = {}
    for variant, tokens in (("shared-token", 1), ("task-tokens", 3), ("task-queries", 0)):
        _, model = model_of(variant)
        raw = {"text": torch.tensor([[70, 71, 72, 73, 74]])}
        assert model.tokens(raw)[0].dense(torch.float32).shape == (1, tokens + 5, 8)
        asked = model.output_query(model.encode(raw), {}, None).dense(torch.float32)[0]
        assert asked.shape == (3, 8)
        queries[variant] = asked
        if tokens:
            prefix = model.input_adapter.adapters["text"].prefix
            torch.testing.assert_close(asked, prefix.expand(3, -1))
    assert torch.equal(queries["shared-token"][0], queries["shared-token"][2])
    assert not torch.equal(queries["task-tokens"][0], queries["task-tokens"][2])
    assert not torch.equal(queries["task-queries"][0], queries["task-queries"][2])


@pytest.mark.parametrize("variant", ["shared-token", "task-tokens", "task-queries"])
def test_other_texts_of_a_batch_change_nothing(variant):
    """Padding after a short text, and a record without a text, are not read; the tokens get gradients."""
    schema, model = model_of(variant)
    records = [{"text": "Ö!"}, {"text": "a longer one"}, {"text": None}]
    samples = [schema.preprocess(record, np.random.default_rng(0), False) for record in records]
    together = model(schema.collate(samples)["inputs"])
    alone = model(schema.collate(samples[:1])["inputs"])
    for name in schema.outputs:
        torch.testing.assert_close(together[name][:1], alone[name])
    others = model(schema.collate(samples[1:])["inputs"])
    for name in schema.outputs:
        torch.testing.assert_close(together[name][1:], others[name])
        assert not torch.allclose(together[name][2], together[name][0])
    sum(output[:2].sum() for output in together.values()).backward()
    prefix = model.input_adapter.adapters["text"].prefix
    assert prefix is None or prefix.grad.abs().min() > 0


def test_a_text_of_one_byte_is_told_all_classes():
    """The number of classes of an output that uses a token as its query does not depend on the number of tokens."""
    _, model = model_of("shared-token", ("mnli",))
    row = next(predict_rows(model, [{"text": "a"}], 1))
    assert row["mnli"] in CLASSES["mnli"]
    assert 1 / 3 <= row["mnli.probability"] <= 1


def test_tokens_that_are_not_there_and_what_they_exclude():
    schema = glue_schema(("rte",), TEXT).changed("rte", of="text", token=3)
    with pytest.raises(ValueError, match=r"token 3 is outside the 2 of input 'text'"):
        PerceiverIO(schema, TINY)(torch.tensor([[7, 8]]))
    prefixed = replace(TEXT, prefix=2)
    restored = replace(TEXT, key="text", of="text", query_channels=8)
    with pytest.raises(ValueError, match="only a text alone can be restored"):
        PerceiverIO(Schema({"text": prefixed}, {"restored": restored}), TINY)
    with pytest.raises(ValueError, match="prefix = -1"):
        replace(TEXT, prefix=-1)


def test_the_head_is_two_layers_with_tanh():
    """By hand; tanh saturates, so that a huge input gives a finite output."""
    _, model = model_of("task-queries")
    head = model.output_adapter.adapters["cola"].head
    first, last = head[0], head[2]
    rows = torch.randn(1, 1, 8) * 1e30
    assert head(rows).isfinite().all()
    by_hand = last.weight @ torch.tanh(first.weight @ torch.ones(8) + first.bias) + last.bias
    torch.testing.assert_close(head(torch.ones(8)), by_hand)


def test_other_tasks_take_no_part_in_the_loss(official):
    """A record of CoLA gives no gradient to RTE's query and head."""
    schema, model = model_of("task-queries")
    record = Glue(official, ("cola",)).training()[0]
    batch = schema.collate([schema.preprocess(record, np.random.default_rng(0), True)])
    losses = Objective(model.train())(batch)
    assert losses.keys() == {"cola"}
    losses["cola"].backward()
    learnt = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "output_adapter.adapters.cola.head.2.weight" in learnt
    assert not any(".rte." in name or ".sts." in name for name in learnt)


def test_scores_by_hand():
    """MNLI: 1 of 2 and 1 of 1 right, 75 and not 67 percent; CoLA: Matthews 1 / 3, with 4 : 2 records and 2 wrong."""
    schema = glue_schema(("mnli", "cola"), TEXT)
    hot = torch.eye(3)
    compared = {
        "mnli": (hot[[0, 1, 2]], torch.tensor([0, 2, 2])),
        "cola": (torch.eye(2)[[1, 1, 1, 0, 0, 1]], torch.tensor([1, 1, 1, 1, 0, 0])),
    }
    files = {"mnli": ["matched", "matched", "mismatched"], "cola": ["dev"] * 6}
    records = [{name: "known", "file": file} for name, own in files.items() for file in own]
    by_file = file_scores(schema, compared, records)
    assert by_file["matched"]["mnli"]["accuracy"] == 0.5
    assert by_file["mismatched"]["mnli"]["accuracy"] == 1
    assert by_file.keys() == {"matched", "mismatched"}
    scores = glue_scores(schema, compared, by_file)
    # Six records: 3 true positives, 1 true negative, 1 wrong of each: (3 * 1 - 1 * 1) / sqrt(4 * 4 * 2 * 2) = 1 / 4.
    assert scores["cola"] == {"matthews": pytest.approx(1 / 4)}
    assert scores["mnli"] == {"accuracy": 0.75}
    assert scores["average"] == {"score": pytest.approx(0.5)}


def test_one_answer_for_all_has_no_correlation():
    metric = glue_schema(("cola",), TEXT).outputs["cola"].metrics()["matthews"]
    metric.update(torch.eye(2)[[1, 1, 1, 1, 1]], torch.tensor([1, 1, 0, 1, 0]))
    assert float(metric.compute()) == 0


def test_f1_and_correlation_by_hand():
    schema = glue_schema(("mrpc", "sts"), TEXT)
    f1 = schema.outputs["mrpc"].metrics()["f1"]
    f1.update(torch.eye(2)[[1, 1, 0, 0]], torch.tensor([1, 0, 1, 0]))
    assert float(f1.compute()) == pytest.approx(0.5)
    metrics = schema.outputs["sts"].metrics()
    for metric in metrics.values():
        metric.update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 1.0, 2.0]))
    # The deviations are (-4, -1, 5) / 3 and (1, -1, 0).
    assert float(metrics["pearson"].compute()) == pytest.approx(-3 / (42 * 2) ** 0.5)
    sure = ProbabilisticRegression(further_metrics=("pearson",))
    means = torch.tensor([[1.0], [2.0], [4.0]])[..., None]
    metric = sure.metrics()["pearson"]
    metric.update(
        *sure.metric_inputs(torch.cat([means, torch.ones_like(means)], -1), torch.tensor([[3.0], [1.0], [2.0]]))
    )
    assert float(metric.compute()) == pytest.approx(-3 / (42 * 2) ** 0.5)


def test_baselines_by_hand(tmp_path):
    """Letters determine the class, so that the byte baseline is right; the most frequent class is right at its rate."""
    files = {
        "SST-2/train.tsv": [f"{'good' if n % 3 else 'bad'} film {n}\t{int(n % 3 > 0)}" for n in range(30)],
        "SST-2/dev.tsv": ["good\t1", "bad\t0", "good one\t1", "bad one\t0", "so bad\t0"],
        "STS/2014.headlines.tsv": [f"{n % 5}\t{'ab' * (n % 5)}\tabababab" for n in range(40)],
        "STS/2014.images.tsv": ["2\tababx\tabababab"],
        "STS/2015.headlines.tsv": ["0\tx\tabababab", "4\tabababab\tabababab"],
        "STS/2015.images.tsv": ["2\tabab\tabababab"],
    }
    data = Glue(written(tmp_path, files), ("sst_2", "sts"))
    schema = glue_schema(data.tasks, TEXT).fit(data.training())
    scores = baselines(schema, data, data.held_out())
    assert scores["most frequent"]["sst_2"]["accuracy"] == pytest.approx(2 / 5)
    assert scores["bag of bytes"]["sst_2"]["accuracy"] == 1
    assert scores["most frequent"]["sts"] == {"mae": pytest.approx(4 / 3), "r2": pytest.approx(0)}
    assert scores["bag of bytes"]["sts"]["pearson"] > 0.5


def test_classes_that_are_never_seen_have_no_probability():
    spec = glue_schema(("mnli",), TEXT).outputs["mnli"]
    texts, targets = labelled_texts(
        spec, "mnli", [{"text": t, "mnli": n} for t, n in (("a", "neutral"), ("b", "entailment"))]
    )
    assert targets.tolist() == [1, 0]
    probabilities = bag_of_bytes(spec, texts, targets, [b"a", b"b"])
    assert probabilities.argmax(dim=1).tolist() == [1, 0]
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(2))
    assert not probabilities[:, 2].any()


def test_the_papers_recipes_are_the_papers():
    """F.4: 10 epochs of the byte model, LAMB, 200 steps of warm-up; F.3's sizes with a query and head of width 768."""
    recipe = paper(("cola",))
    assert (recipe.training.num_steps, recipe.training.batch_size) == (2672, 32)
    assert recipe.training.optimiser.kind == "lamb"
    assert recipe.training.optimiser.weight_decay == 0.01
    assert recipe.training.schedule.warmup_steps == 200
    model = Preset(recipe.schema, recipe.config).build("meta")
    head = 768 * 768 + 768 + 768 * 2 + 2
    encoder = 201_108_230 - 2048 * 768 - 262  # the released model without its queries and the biases of its bytes
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + 768 + head
    several = {variant: paper(tuple(EXAMPLES), variant) for variant in ("shared-token", "task-tokens", "task-queries")}
    assert several["shared-token"].schema.inputs["text"].prefix == 1
    assert several["task-tokens"].schema.inputs["text"].prefix == 8
    assert len(several["task-queries"].schema.outputs) == 8


@pytest.mark.slow
def test_the_paper_takes_a_step(official):
    """One record through the full model, and a step of LAMB on its loss."""
    recipe = paper(tuple(EXAMPLES), "task-tokens")
    data = replace(recipe.data, folder=official)
    schema = recipe.schema.fit(data.training())
    sample = schema.preprocess(data.training()[0], np.random.default_rng(0), True)
    model = Preset(schema, recipe.config).build()
    optimiser, latents = build_optimiser(model, recipe.training.optimiser), model.trunk.latents.detach().clone()
    losses = Objective(model)(schema.collate([sample]))
    losses["cola"].backward()
    optimiser.step()
    assert math.log(2) / 4 < losses["cola"] < 4 * math.log(2)  # two classes, guessed
    assert not torch.equal(model.trunk.latents, latents)


@pytest.mark.parametrize("variant", ["shared-token", "task-tokens", "task-queries"])
def test_a_run_from_end_to_end(official, tmp_path, variant):
    """Several tasks at once, from a tiny byte model: scores by task, and a report."""
    torch.manual_seed(0)
    schema = Schema({"text": TEXT}, {"restored": replace(TEXT, key="text", of="text", query_channels=8)})
    (tmp_path / "bytes").mkdir()
    save_model(PerceiverIO(schema, TINY), tmp_path / "bytes")
    # Train from the byte model.
    tasks = ("cola", "mnli", "sts")
    recipe = replace(
        small(tasks, variant),
        data=Glue(official, tasks),
        schema=glue_schema(tasks, TEXT, variant),
        config=TINY,
        training=TrainingConfig(num_steps=2, batch_size=5, accelerator="cpu"),
        start_from=str(tmp_path / "bytes"),
    )
    lines = []
    run_recipe(recipe, tmp_path / "run", lines.append)
    assert "trunk" in lines[0]
    assert "decoder" in lines[0]
    assert "text.embedding" in lines[0] or "input_adapter" in lines[0]
    assert "output_adapter" in lines[1]
    # Compare scores and report.
    task = TASKS["glue-cola"]
    keep_scores(tmp_path / "run", evaluate_run(Run(tmp_path / "run")) | task.baseline_scores(Run(tmp_path / "run")))
    scores = read_scores(tmp_path / "run")
    assert scores["dev_matched.tsv"]["mnli"].keys() == {"accuracy", "ece"}
    assert scores["GLUE"].keys() == {"cola", "mnli", "sts", "average"}
    assert scores["most frequent"]["mnli"]["accuracy"] == 0
    assert scores["bag of bytes"]["sts"]["mae"] > 0
    page = report(Run(tmp_path / "run")).read_text()
    assert "&quot;Who?&quot; she said." in page
    assert "most frequent" in page
    examples.cache_clear()


def test_what_a_byte_model_lends():
    """The text's embedding, the trunk and the decoder are loaded; queries and heads start fresh."""
    torch.manual_seed(0)
    source = PerceiverIO(Schema({"text": TEXT}, {"restored": replace(TEXT, of="text", query_channels=8)}), TINY)
    _, model = model_of("task-tokens")
    loaded, fresh = transfer(model, source)
    assert set(loaded) >= {"input_adapter.adapters.text.embedding", "input_adapter.adapters.text.positions"}
    assert {"trunk", "decoder"} <= set(loaded)
    assert set(fresh) == {"input_adapter.adapters.text.prefix", "output_adapter"}


def test_answers_stand_beside_their_records(official):
    """Each output has as many answers as its task has records, in the same order."""
    schema, model = model_of("task-queries")
    records = Glue(official, ("cola", "rte", "sts")).held_out()
    found = gathered(answers(model, schema, records))
    assert found["cola"][1].tolist() == [1]
    assert found["rte"][1].tolist() == [1]
    assert found["sts"][1].tolist() == [1.25, 5.0]
    assert found["cola"][0].shape == (1, 2)
