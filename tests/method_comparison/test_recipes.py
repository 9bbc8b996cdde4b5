"""The recipes: that all of them can be read and set up, and that what they say is what runs."""

import re

import pytest
import run_recipe
from data_sets import DATA_SETS
from experiments.backbones import published_size
from experiments.recipe import RecipeError, load_recipe, matching, recipe_names
from methods import make_config


NAMES = recipe_names()
each_recipe = pytest.mark.parametrize("name", NAMES)


@each_recipe
def test_every_recipe_names_things_that_exist(name):
    recipe = load_recipe(name)
    assert recipe.data_set in DATA_SETS
    make_config(recipe.method, **recipe.options)
    assert set(recipe.reported) <= {"accuracy", "map", "equal_error_rate"}
    assert all(0 < value < 1 for value in recipe.reported.values())
    assert recipe.metric in recipe.reported or recipe.source.startswith("Parameter-Efficient")
    is_vector = DATA_SETS[recipe.data_set].multi_label
    assert not is_vector or (recipe.loss, recipe.metric) == ("binary_cross_entropy", "map")


@each_recipe
def test_every_recipe_passes_a_dry_run(name, capsys):
    counts = run_recipe.main([name, "--dry_run"])[name]
    shown = capsys.readouterr().out
    assert f"{counts['trainable_parameters']:,} of {counts['total_parameters']:,}" in shown
    trains_everything = load_recipe(name).method == "full"
    assert (counts["trainable_parameters"] == counts["total_parameters"]) == trains_everything


def test_the_tables_are_complete():
    papers = {name.split("/")[0]: 0 for name in NAMES}
    for name in NAMES:
        papers[name.split("/")[0]] += 1
    # IPET: 2 models x 5 data sets x 6 methods. AAT: 2 x 6 x 7. LoAA: 3 x 7, 2 sites x 3 sizes x 4 kernels less 2 that
    # are rows of the first, and 5 combinations x 2 sizes less 3.
    assert papers["ipet"] == 60 and papers["aat"] == 84 and papers["loaa"] == 21 + 22 + 7


# From the papers where they give them, else worked out from their equations.
SIZES = {
    "aat/ast-openmic-m": 3_567_380,
    "aat/ast-openmic": 7_117_844,
    "aat/ast-openmic-prompt": 127_508,
    "ipet/ast-esc50": 676_274,
    "ipet/wav2vec2-esc50": 3_629_618,
    "loaa/image-epic-sounds-attn-t-2": 2_026_028,
    "loaa/image-epic-sounds-ffn-l-2": 2_026_028,
    "loaa/image-epic-sounds-ffn-tf-5": 4_016_684,
    "loaa/image-epic-sounds-5": 4_016_684,
    "aat/ast-esc50-head": 768 * 2 + 769 * 50,
    # Codes of 128 numbers of 1,211 speakers, from the mean and standard deviation of 768 features.
    "ipet/wav2vec2-voxceleb1-linear-probe": (2 * 768 + 1) * 128 + 2 * 128 + 129 * 1211,
}


@pytest.mark.parametrize("name", SIZES)
def test_trainable_parameters_are_those_of_the_papers(name):
    recipe = load_recipe(name)
    num_labels = 1211 if recipe.data_set == "voxceleb1" else DATA_SETS[recipe.data_set].num_labels
    assert published_size(recipe, num_labels)["trainable_parameters"] == SIZES[name]


def test_settings_go_from_the_general_to_the_particular(tmp_path):
    (tmp_path / "shared").mkdir()
    needed = "source: here\ndata_set: esc50\nbackbone: ast\nmethod: ipet\nlearning_rate: 1.0e-3\n"
    (tmp_path / "shared" / "a.yaml").write_text(f"{needed}epochs: 3\nbatch_size: 4\nnotes: [one]\n")
    (tmp_path / "shared" / "b.yaml").write_text("extends: shared/a\nepochs: 5\nnotes: [two]\n")
    (tmp_path / "row.yaml").write_text("extends: [shared/b]\nbatch_size: 8\nspec_augment: [4, 2]\nnotes: [three]\n")
    recipe = load_recipe("row", {"learning_rate": 2}, tmp_path)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (5, 8, 2.0)
    assert recipe.notes == ("one", "two", "three") and recipe.spec_augment == (4, 2)
    assert recipe_names(tmp_path) == ["row"]


ROW = "source: here\ndata_set: esc50\nbackbone: ast\nmethod: ipet\nepochs: 1\nbatch_size: 2\nlearning_rate: 0.1\n"
WRONG = {
    "an unknown field": (f"{ROW}epoch: 3\n", "'epoch' is no field of a recipe. Did you mean 'epochs'"),
    "a missing field": (ROW.replace("epochs: 1\n", ""), "epochs"),
    "a text for a number": (f"{ROW}frames: long\n", "'frames' must be int or null, got 'long'"),
    "a word for a fraction": (ROW.replace("0.1", "slow"), "'learning_rate' must be float, got 'slow'"),
    "a truth value for a number": (ROW.replace("epochs: 1", "epochs: yes"), "'epochs' must be int, got True"),
    "nothing for epochs": (ROW.replace("epochs: 1", "epochs: 0"), "'epochs' must be above 0, got 0"),
    "one mask": (f"{ROW}spec_augment: [4]\n", r"'spec_augment' must be two numbers from 0 up, got \[4\]"),
    "too much mixup": (f"{ROW}mixup: 1.5\n", "'mixup' must lie between 0 and 1, got 1.5"),
    "an unknown loss": (f"{ROW}loss: hinge\n", "'loss' must be one of cross_entropy, .*got 'hinge'"),
    "itself": (f"{ROW}extends: row\n", "extends itself, through row"),
    "a missing file": (f"{ROW}extends: shared/gone\n", "cannot be read"),
    "a list": ("- 1\n", "must hold fields and values, got list"),
    "no YAML": ("a: [\n", "no YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes_are_refused(case, tmp_path):
    text, message = WRONG[case]
    (tmp_path / "row.yaml").write_text(text)
    with pytest.raises(RecipeError, match=rf"\.yaml: .*{message}"):
        load_recipe("row", folder=tmp_path)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    (tmp_path / "row.yaml").write_text(ROW.replace("0.1", "1e-3"))
    assert load_recipe("row", folder=tmp_path).learning_rate == 1e-3


def test_names_may_have_stars():
    found = matching(["ipet/ast-esc50*", "ipet/ast-esc50"])
    assert (
        len(found) == 6 and found[0] == "ipet/ast-esc50" and all(name.startswith("ipet/ast-esc50") for name in found)
    )
    with pytest.raises(RecipeError, match=re.escape("no recipe 'ipet/ast-esc5'. Did you mean ipet/ast-esc50")):
        matching(["ipet/ast-esc5"])
