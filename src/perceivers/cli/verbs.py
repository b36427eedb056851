"""The verbs of the command. tyro parses their arguments; their docstrings are the help text."""

from collections.abc import Callable

from perceivers.cli.convert import convert
from perceivers.cli.inference import autoencode, classify, fill_mask, flow
from perceivers.cli.info import info, plan
from perceivers.cli.predict import predict
from perceivers.cli.schema_verb import schema
from perceivers.cli.tokenizer import tokenizer
from perceivers.cli.training import evaluate, report, train
from perceivers.cli.vocabulary import vocabulary

VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "predict": predict,
    "schema": schema,
    "info": info,
    "plan": plan,
    "convert": convert,
    "vocabulary": vocabulary,
    "tokenizer": tokenizer,
    "fill-mask": fill_mask,
    "classify": classify,
    "flow": flow,
    "autoencode": autoencode,
}
"""Every verb by name."""
