"""Texts as records, 5-grams by hand, a trained vocabulary, and the recipes of masked language modelling."""

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.core.attention import Attention
from perceivers.core.block_config import BlockConfig
from perceivers.core.layers import sines
from perceivers.data import Texts
from perceivers.data.formats.documents import documents_of
from perceivers.files.budgets import read_json
from perceivers.modalities import Text
from perceivers.modalities.tokenizers import ByteTokenizer, tokenizer_of
from perceivers.runs.recipe import Recipe, preset_of
from perceivers.runs.train import run_recipe
from perceivers.schema.plain_values import from_plain, to_plain
from perceivers.systems.language.baselines import (
    NUM_IDS,
    TRUST,
    MaskedText,
    baseline_guesses,
    both_sides,
    bytes_and_words,
    counted,
    masked_scores,
    masked_surroundings,
    masked_texts,
    surroundings,
)
from perceivers.systems.language.recipes import RECIPES, fit_tokenizer, small, small_tokens, with_text
from perceivers.training.sampler import BatchOrder, evaluation_batches, training_batches


def write_corpus(folder, number=23):
    """Write documents, whose words contain their number, in every layout: text and JSON Lines, compressed or not."""
    (folder / "deep").mkdir(parents=True)
    lines = [json.dumps({"url": "u", "text": document(place)}) + "\n" for place in range(number)]
    (folder / "a.txt").write_text(document(number))
    (folder / "deep" / "b.rst.txt").write_text(document(number + 1))
    (folder / "deep" / "c.txt.gz").write_bytes(gzip.compress(document(number + 2).encode()))
    (folder / "c4-train.00000-of-01024.json.gz").write_bytes(gzip.compress("".join(lines[:11]).encode()))
    (folder / "wiki_00").write_text("".join(lines[11:]) + "\n")
    (folder / "picture.png").write_bytes(b"none")
    (folder / "empty.txt").write_text("")
    return str(folder)


def document(number):
    return " ".join([f"döc{number:02d}"] * (5 + number))


def numbers_in(records):
    return {word for record in records for word in record["text"].split() if len(word) == 5 and word.startswith("döc")}


@pytest.fixture
def corpus(tmp_path):
    """Return a data set of 26 documents."""
    return Texts(
        folder=write_corpus(tmp_path / "corpus"), length=61, held_out_every=4, num_training=97, num_held_out=13
    )


def test_every_document_is_in_one_part(corpus):
    """Every fourth document is held out, in the order of file names and lines."""
    parts = [list(corpus.documents(held_out)) for held_out in (False, True)]
    assert sorted(parts[0] + parts[1]) == sorted(map(document, range(26)))
    assert len(parts[1]) == 26 // 4
    order = [23, *range(11), 24, 25, *range(11, 23)]  # a.txt, c4..., deep/..., wiki_00
    assert parts[1] == [document(number) for number in order[3::4]]


def test_records_of_both_parts_share_no_document(corpus):
    training, held_out = numbers_in(corpus.training()), numbers_in(corpus.held_out())
    assert len(training) > 10
    assert len(held_out) > 3
    assert not training & held_out


def test_a_record_depends_on_its_number_alone(corpus):
    first, again = corpus.training(), replace(corpus, num_training=50).training()
    assert [again[number] for number in (49, 3)] == [first[49], first[3]]
    assert len({record["text"] for record in first}) > 80
    assert all(0 < len(record["text"].encode()) <= 61 for record in first)
    assert sum(len(record["text"].encode()) >= 60 for record in first) > 90  # one less where a character is cut


def test_workers_and_processes_share_the_same_batches(corpus):
    recipe = replace(small(), data=corpus)
    records = corpus.training()

    def batches(num_workers, rank=0, world=1):
        order = BatchOrder(0, len(records), 6, 2, 4, rank, world, shuffle=False)
        return [
            batch["inputs"]["text"]["ids"] for batch in training_batches(recipe.schema, records, order, num_workers)
        ]

    alone = batches(0)
    for ours, theirs in zip(alone, batches(2), strict=True):
        assert torch.equal(ours, theirs)
    second = batches(0, rank=1, world=2)
    for whole, share in zip(alone, second, strict=True):
        torch.testing.assert_close(whole[1::2, : share.shape[1]], share)


def test_sources_are_drawn_by_their_shares(tmp_path):
    for name, word in (("c4", "web "), ("wikipedia", "wiki ")):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.txt").write_text(word * 50)
    data = Texts(folder=str(tmp_path), sources={"c4": 0.7, "wikipedia": 0.3}, length=37, num_training=1000)
    data = replace(data, held_out_every=2)
    share = np.mean(["web" in record["text"] for record in data.training()])
    assert abs(share - 0.7) < 4 * math.sqrt(0.7 * 0.3 / 1000)
    assert from_plain(Texts, to_plain(data)) == data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.png", "", "holds no text files"),
        ("x.txt", "only one", "1 documents, of which each 20th is held out"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Texts(folder=str(tmp_path)).held_out()


def test_a_line_without_a_text_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"words": "no text"}\n')
    with pytest.raises(ValueError, match='must be an object with a "text"'):
        documents_of(str(tmp_path))[0]


def test_settings_that_cannot_be_are_refused():
    for field, message in (("held_out_every", "at least 2"), ("length", "at least 1"), ("num_training", "at least 1")):
        with pytest.raises(ValueError, match=message):
            Texts(**{field: 0})
    with pytest.raises(ValueError, match="num_documents = 1000000 must be at most 10000"):
        Texts(num_documents=10**6)
    with pytest.raises(ValueError, match="share above 0"):
        Texts(sources={"c4": 0.0})


def test_words_are_masked_whole_and_as_often_as_the_paper_says(corpus):
    recipe = replace(small(), data=corpus)
    hidden, words = 0, 0
    for number, record in enumerate(corpus.training()):
        sample = recipe.schema.preprocess(record, np.random.default_rng(number), training=True)["inputs"]["text"]
        text = record["text"].encode()
        covered = bytes(ord("#") if masked else byte for byte, masked in zip(text, sample["masked"], strict=True))
        assert (sample["ids"] == 3).tolist() == sample["masked"].tolist()
        for true, shown in zip(text.split(), covered.split(), strict=True):
            assert shown in (true, b"#" * len(true))
            hidden, words = hidden + (shown != true), words + 1
    assert abs(hidden / words - 0.15) < 4 * math.sqrt(0.15 * 0.85 / words)


def test_bytes_that_are_no_text_are_shown_as_such():
    """Broken UTF-8, and ids beyond the bytes, which a model with a larger vocabulary can predict; special ids not."""
    assert ByteTokenizer().decode([*ByteTokenizer().encode("aé"), 0, 3, 6 + 0xC3, 300]) == "aé\ufffd\ufffd"


def test_surroundings_by_hand():
    """In "ab cd e" with "ab" masked: c has a space before it and nothing further; after its word, a space and e."""
    ids, words = bytes_and_words("ab cd e")
    hidden = np.array([True, True, *[False] * 5])
    found = surroundings(ids, words, hidden)
    assert ByteTokenizer().decode(found.ids) == "abcde"
    assert found.word_position.tolist() == [0 * 16 + 1, 1 * 16 + 0, 0 * 16 + 1, 1 * 16 + 0, 0]
    space, nothing = ord(" ") + 6, 3 * NUM_IDS
    assert found.left[2].tolist() == [space, nothing, nothing, nothing]
    assert found.right[2].tolist() == [space, ord("e") + 6, nothing, nothing]
    assert found.left[4].tolist() == [space, ord("d") + 6, ord("c") + 6, space]
    assert found.right[0].tolist()[:3] == [space, ord("c") + 6, ord("d") + 6]
    behind = surroundings(ids, words, ~hidden & (words == 1))  # "cd" masked: e has a gap of two bytes before it
    assert behind.left[4].tolist() == [space, 2 * NUM_IDS + space, ord("b") + 6, ord("a") + 6]


def test_backing_off_by_hand():
    """A context seen 3 times, with bytes 7, 7 and 8, weighs 3 to TRUST x 2; an unseen context changes nothing."""
    ids, guess = np.array([7, 7, 8]), np.full((2, NUM_IDS), 1 / NUM_IDS)
    found = counted(ids, [(np.array([5, 5, 5]), np.array([5, 6]))], guess)
    assert found[0, 7] == pytest.approx((2 + 2 * TRUST / NUM_IDS) / (3 + 2 * TRUST))
    assert found[0, 9] == pytest.approx((2 * TRUST / NUM_IDS) / (3 + 2 * TRUST))
    np.testing.assert_allclose(found[1], 1 / NUM_IDS)


def test_sides_together_by_hand():
    """The odds are (0.8 x 0.5)^0.75 / 0.5^0.5 to (0.2 x 0.5)^0.75 / 0.5^0.5, which is 2.83 to 1."""
    left, right, alone = (np.array([[a, 1 - a]]) for a in (0.8, 0.5, 0.5))
    assert both_sides(left, right, alone)[0, 0] == pytest.approx(4**0.75 / (4**0.75 + 1))


def test_five_grams_know_what_counting_can_tell():
    """The letter "u" always follows "q", "z" always precedes "x"; masked words of one byte stand between them."""
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(["q u x y", "k z x k", "m u m m"], size=200)) for _ in range(5)]
    asked = [MaskedText("q u x", np.array([False, False, True, False, False]))]
    guesses = baseline_guesses(documents, asked, share=0.15)
    right = {name: float(guess[0, ord("u") + 6]) for name, guess in guesses.items()}
    assert right["5-grams, both sides"] > 0.9 > right["unigram"]
    assert right["5-gram, left"] > 0.9
    for guess in guesses.values():
        np.testing.assert_allclose(guess.sum(axis=1), 1)


def test_no_baseline_sees_what_is_masked():
    """Changing the bytes of masked words changes nothing in the surroundings of other words."""
    hidden = np.array([False, False, True, True, False, True, True, True, False, False])
    for one, other in (("a bc def g", "a xy zzz g"), ("a bc def g", "a   def g"[:2] + "pq" + " def g")):
        first, second = (masked_surroundings(MaskedText(text, hidden)) for text in (one, other))
        for name in ("word_position", "left", "right"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_scores_by_hand():
    """Two masked words, "é" (two bytes) right and "ab" half right; the true bytes have probabilities 1/2 and 1/4."""
    text = "é ab c"
    ids = ByteTokenizer().encode(text)
    hidden = np.array([True, True, False, True, True, False, False])
    logs = np.full((4, NUM_IDS), -9.0)
    logs[np.arange(4), ids[hidden]] = np.log([0.5, 0.5, 0.5, 0.25])
    logs[3, 0] = math.log(0.3)
    scores = masked_scores(ByteTokenizer(), [(text, hidden, logs)])
    assert scores == {"bits_per_byte": pytest.approx(5 / 4), "tokens_right": 0.75, "words_right": 0.5}


def test_bits_and_accuracy_by_hand():
    """Two of three tokens are masked; the true ones have probabilities 1/2 and 1/8."""
    spec = Text(vocab_size=4, length=3)
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25, 1e-9], [0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.125, 0.125]]]))
    target = {
        "ids": torch.tensor([[0, 1, 2]]),
        "mask": torch.ones(1, 3, dtype=torch.bool),
        "masked": torch.tensor([[True, False, True]]),
    }
    metrics = spec.metrics()
    for metric in metrics.values():
        metric.update(*spec.metric_inputs(logits, target))
    assert float(metrics["accuracy"].compute()) == 0.5
    assert float(metrics["bits_per_token"].compute()) == pytest.approx((1 + 3) / 2, abs=1e-6)


def test_visible_tokens_count_as_little_as_asked():
    """One masked token of 1 bit and two unmasked ones of 2 bits, with weight 0.25: (1 + 2 x 0.25 x 2) / 1.5 bits."""
    spec = Text(vocab_size=4, length=4, of="text", unmasked_loss_weight=0.25)
    logits = torch.log(torch.tensor([[[0.5, 0.5, 1e-9, 1e-9], [0.25] * 4, [0.25] * 4, [1e-9, 1e-9, 1e-9, 1.0]]]))
    target = {"ids": torch.tensor([[0, 1, 2, 0]]), "mask": torch.tensor([[True, True, True, False]])}
    target["masked"] = torch.tensor([[True, False, False, False]])
    assert float(spec.loss(logits, target)) == pytest.approx(2 / 1.5 * math.log(2), rel=1e-6)
    assert float(spec.num_terms(target)) == 1.5
    assert float(replace(spec, unmasked_loss_weight=0.0).loss(logits, target)) == pytest.approx(math.log(2), rel=1e-6)


def test_sines_by_hand():
    """Two rows for positions 0 and 2 of four; wavelengths of 2 pi and 8 pi positions; their mean square is 1."""
    expected = [[0, 1, 0, 1], [math.sin(2), math.cos(2), math.sin(0.5), math.cos(0.5)]]
    torch.testing.assert_close(sines(2, 4, 4).detach(), math.sqrt(2) * torch.tensor(expected))
    assert sines(7, 13, 5).shape == (7, 5)


def test_small_models_start_with_local_attention():
    """Half of a latent's attention lies within 4 bytes of its position; from the paper's start, a twentieth does."""
    torch.manual_seed(0)
    recipe = small()
    official = replace(recipe, schema=replace_text(recipe, sines=False), config=plain_start(recipe.config))
    near = []
    for own in (recipe, official):
        model = preset_of(own).build()
        ids = torch.randint(6, 262, (2, 256))
        weights = model.attention_maps({"text": ids})["encoder"]["text"]
        distance = (torch.arange(64)[:, None] * 4 - torch.arange(256)).abs()
        near.append((weights * (distance <= 4)).sum(dim=-1).mean().item())
    assert near[0] > 0.5
    assert near[1] < 0.1


def replace_text(recipe, **fields):
    return with_text(preset_of(recipe), **fields).schema


def plain_start(config):
    stages = {name: replace(getattr(config, name), qk_init_gain=None) for name in ("encoder", "decoder")}
    return replace(config, latents=replace(config.latents, sinusoidal_length=None), **stages)


def test_only_what_is_as_wide_can_be_aligned():
    with pytest.raises(ValueError, match="qk_init_gain needs queries like the tokens"):
        Attention(7, 5, BlockConfig(qk_init_gain=1.0))


def test_tokens_and_bytes_hide_the_same_words(corpus, tmp_path):
    """Baselines that predict bytes are evaluated on the same words as the model."""
    path = str(tmp_path / "tokenizer.json")
    recipe = tokens_recipe(corpus, path)
    fit_tokenizer(recipe, Path(path))
    records = corpus.held_out()
    text = recipe.schema.inputs["text"]
    (batch,) = evaluation_batches(recipe.schema, records, len(records))
    for number, asked in enumerate(masked_texts(text, records)):
        ids, characters = tokenizer_of(path).tokens(records[number]["text"])
        masked = batch["targets"]["restored"]["masked"][number, : len(ids)].numpy()
        hidden = "".join(asked.text[first:behind] for first, behind in characters[masked]).split()
        data = asked.text.encode()
        theirs = bytes(byte if h else 32 for byte, h in zip(data, asked.masked, strict=True)).decode()
        assert "".join(theirs.split()) == "".join(hidden)


def tokens_recipe(corpus, path):
    recipe = replace(small_tokens(), data=corpus)
    plain = to_plain(recipe)
    for side, name in (("inputs", "text"), ("outputs", "restored")):
        plain["schema"][side][name] |= {"tokenizer": path, "vocab_size": 53, "length": 41}
    return from_plain(Recipe, plain)


def test_a_vocabulary_is_of_the_training_part(corpus, tmp_path):
    path = str(tmp_path / "tokenizer.json")
    fit_tokenizer(tokens_recipe(corpus, path), Path(path))
    tokenizer = tokenizer_of(path)
    assert tokenizer.vocab_size <= 53
    assert {tokenizer.pad_id, tokenizer.mask_id} == {0, 1}
    text = next(corpus.documents(held_out=False))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    held_out = {word for text in corpus.documents(held_out=True) for word in text.split()}
    assert not held_out & {piece.strip("▁") for piece in tokenizer.loaded.get_vocab()}


@pytest.mark.parametrize("name", ["language", "language-tokens"])
def test_small_recipes_run_on_the_command_line(name, tmp_path, monkeypatch, command):
    """Vocabulary, training, scores of model and baselines on the same bytes, and a report with samples."""
    monkeypatch.chdir(tmp_path)
    folder = f"data.folder={write_corpus(tmp_path / 'corpus')}"
    settings = [folder, "data.held_out_every=4", "data.num_held_out=5", "training.num_steps=3"]
    settings += ["training.schedule.warmup_steps=1", "training.batch_size=5"]
    if name == "language-tokens":
        sizes = [f"schema.{place}.vocab_size=53" for place in ("inputs.text", "outputs.restored")]
        assert command("tokenizer", name, "--out", "tokenizer.json", "--set", folder, *sizes)[0] == 0
        settings += sizes
    assert command("train", name, "--out", "run", "--set", *settings)[0] == 0
    scores = read_json(tmp_path / "run" / "metrics.json")
    assert scores.keys() == {"held out", "masked words", "unigram", "5-gram, left", "5-grams, both sides"}
    assert all(0 < own["restored"]["bits_per_byte"] < 50 for name, own in scores.items() if name != "held out")
    if name == "language":
        assert scores["held out"]["restored"]["bits_per_token"] == pytest.approx(
            scores["masked words"]["restored"]["bits_per_byte"], rel=1e-5
        )
    assert "d\N{LATIN SMALL LETTER O WITH DIAERESIS}c" in (tmp_path / "run" / "report.html").read_text()


def test_a_vocabulary_needs_documents(tmp_path, command):
    code, _, error = command("tokenizer", "digits", "--out", tmp_path / "t.json")
    assert code == 2
    assert "no input 'text'" in error
    assert not (tmp_path / "t.json").exists()


def test_the_papers_hyperparameters():
    """Table 12 and section F.3 of the paper."""
    recipe = RECIPES["language-paper"]()
    training, optimiser = recipe.training, recipe.training.optimiser
    assert (training.num_steps, training.batch_size) == (500_000, 2048)
    assert (optimiser.kind, optimiser.learning_rate, optimiser.weight_decay) == ("lamb", 1.25e-3, 0.01)
    rates = [training.rate(step) for step in (500, 1000, 500_000)]
    assert rates == pytest.approx([0.625e-3, 1.25e-3, 0.0])
    assert recipe.schema.inputs["text"].mask_words == 0.15
    tokens = RECIPES["language-paper-tokens"]()
    assert (tokens.schema.inputs["text"].length, tokens.schema.inputs["text"].vocab_size) == (512, 32_000)


@pytest.mark.slow
def test_a_step_of_the_papers_recipe(corpus, tmp_path):
    """At full size, with a batch of one."""
    recipe = RECIPES["language-paper"]()
    schedule = replace(recipe.training.schedule, warmup_steps=0)
    training = replace(recipe.training, num_steps=1, batch_size=1, num_workers=0, schedule=schedule)
    run_recipe(replace(recipe, data=replace(corpus, length=2048), training=training), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints").is_dir()
