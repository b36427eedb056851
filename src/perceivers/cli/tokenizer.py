"""The verb `tokenizer`."""

from pathlib import Path
from typing import Annotated

import tyro

from perceivers.cli.training import chosen_recipe
from perceivers.files.outputs import check_outputs
from perceivers.schema.schema_files import with_settings
from perceivers.systems import TASKS
from perceivers.systems.language import fit_tokenizer


def tokenizer(
    recipe: Annotated[str, tyro.conf.Positional],
    /,
    out: Path,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUE")] = (),  # noqa: A002
) -> None:
    """Train a SentencePiece (unigram) vocabulary on the training part of a recipe's texts, and write it as JSON.

    Args:
        recipe: Name of a task (language-tokens), or a recipe file, whose data are texts.
        out: JSON file to write, for the field `tokenizer` of the recipe's text input.
        set: Settings that replace the recipe's, e.g. schema.inputs.text.vocab_size=4000.
    """
    chosen = with_settings(chosen_recipe(recipe), set)
    check_outputs([out], [*([] if recipe in TASKS else [recipe]), *chosen.data.source_files()])
    fit_tokenizer(chosen, out)
