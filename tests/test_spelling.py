"""Text as an output without a text input: its end, training, scores, predictions and proposals."""

import numpy as np
import pytest
import torch

from perceivers.core.config import Config, DecoderConfig, LatentsConfig, ProcessorConfig
from perceivers.core.perceiver import PerceiverIO
from perceivers.data.formats.readers import read_rows
from perceivers.data.formats.writers import write_rows
from perceivers.modalities import Label, Text
from perceivers.modalities.tokenizers import FIRST_BYTE, PAD
from perceivers.runs.prediction import predict_rows
from perceivers.schema import Schema
from perceivers.schema.preset import auto_config
from perceivers.training.metrics import evaluate

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECIPE = """\
inputs:
  digit: {kind: label}
outputs:
  word: {kind: text, length: 7, query_channels: 16}
config:
  latents: {num_latents: 5, channels: 16}
  processor: {num_layers: 1, num_heads: 2}
  decoder: {query_residual: true}
training: {num_steps: 3, batch_size: 8, log_every: 1, schedule: {kind: constant}}
"""


def target_of(spec, text):
    return spec.target(text, np.random.default_rng(0), {}, training=True)


def test_a_text_has_an_end_if_there_is_room():
    spec = Text(length=4)
    assert target_of(spec, "one")["ids"].tolist() == [FIRST_BYTE + byte for byte in b"one"] + [PAD]
    assert target_of(spec, "five")["ids"].tolist() == [FIRST_BYTE + byte for byte in b"five"]
    assert target_of(spec, "")["ids"].tolist() == [PAD]
    batch = spec.collate([target_of(spec, "one"), target_of(spec, ""), None])
    assert batch["mask"].sum(dim=1).tolist() == [4, 1, 0]
    assert spec.num_terms(batch) == 5
    with pytest.raises(ValueError, match="longer than length = 4"):
        target_of(spec, "three")
    assert target_of(Text(length=4, overflow="truncate"), "three")["ids"].tolist() == [
        FIRST_BYTE + byte for byte in b"thre"
    ]


@pytest.mark.slow
def test_numbers_are_learned_to_be_spelled():
    """From a class, all letters are predicted at once, and so is the end."""
    schema = Schema(
        {"digit": Label(classes=10)}, {"word": Text(length=7, vocab_size=262, query_channels=32, tied=False)}
    )
    config = Config(
        LatentsConfig(num_latents=5, channels=32),
        processor=ProcessorConfig(num_layers=1, num_heads=2),
        decoder=DecoderConfig(query_residual=True),
    )
    model, records = PerceiverIO(schema, config), [{"digit": n, "word": word} for n, word in enumerate(WORDS)]
    batch = schema.collate([schema.preprocess(record, np.random.default_rng(0), training=True) for record in records])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        optimiser.zero_grad()
        sum(
            schema.losses(model(batch["inputs"], schema.points(batch["targets"])), batch["targets"]).values()
        ).backward()
        optimiser.step()
    assert evaluate(model, records)["word"]["accuracy"] == 1
    assert [row["word"] for row in predict_rows(model.eval(), records, 7)] == list(WORDS)


def test_a_table_with_text_to_write(command, tmp_path):
    write_rows(tmp_path / "mine.csv", [{"digit": n % 10, "word": WORDS[n % 10]} for n in range(40)])
    (tmp_path / "mine.yaml").write_text(RECIPE)
    data = tmp_path / "mine.csv"
    code, _, err = command("train", tmp_path / "mine.yaml", "--data", data, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert (tmp_path / "run" / "report.html").exists()
    code, _, err = command("predict", tmp_path / "run", data, "-o", tmp_path / "out.csv", "--attribution")
    assert code == 0, err
    rows = list(read_rows(tmp_path / "out.csv"))
    assert list(rows[0]) == ["word"]  # the attribution to the only input is empty
    assert len(rows) == 40


def test_sentences_are_proposed_as_text_to_write(command, tmp_path):
    rows = [{"n": n / 7, "caption": f"picture {n} of {n * n} things"} for n in range(80)]
    write_rows(tmp_path / "mine.csv", rows)
    code, out, _ = command("schema", "propose", tmp_path / "mine.csv", "--predict", "caption")
    assert code == 0
    assert "caption: {kind: text, length: 32, overflow: truncate}" in out


def test_places_of_a_text_that_is_written_differ_by_their_queries():
    own = Schema({"digit": Label(classes=10)}, {"word": Text(length=7)})
    assert auto_config(own).decoder.query_residual
    assert not auto_config(Schema(own.inputs, {"kind": Label(classes=3)})).decoder.query_residual
