"""Every recipe of every system is a valid recipe file."""

import json

import pytest

from perceivers.runs.recipe import Recipe
from perceivers.schema.plain_values import to_plain
from perceivers.schema.schema_files import from_file, to_yaml
from perceivers.systems import SYSTEMS, TASKS, audioset, multimodal


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("write", [to_yaml, lambda recipe: json.dumps(to_plain(recipe))], ids=["yaml", "json"])
def test_a_recipe_that_is_written_and_read_is_the_same(name, write, tmp_path):
    recipe = TASKS[name].recipe()
    file = tmp_path / "recipe.yaml"
    file.write_text(write(recipe))
    assert from_file(Recipe, file) == recipe


def test_every_system_has_recipes_and_no_two_share_a_name():
    assert all(system.recipes for system in SYSTEMS)
    assert len(TASKS) == sum(len(system.recipes) for system in SYSTEMS)
    assert all(TASKS[name].recipe is recipe for system in SYSTEMS for name, recipe in system.recipes.items())


@pytest.mark.parametrize("name", [*multimodal.RECIPES, *audioset.RECIPES])
def test_a_recipe_of_films_reads_none_to_be_fitted(name):
    schema = TASKS[name].recipe().schema
    assert schema.fit([]) == schema
