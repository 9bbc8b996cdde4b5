"""The recipes: that all of them can be read and set up, and that what they say is what runs."""

import re
from pathlib import Path

import pytest
import run_recipe
from data_sets import DATA_SETS
from experiments.backbones import published_size
from experiments.recipe import RecipeError, load_recipe, matching, recipe_names

from peft_audio.trainer import make_config


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


def load_row(folder, text, **changes):
    (folder / "paper.yaml").write_text(text)
    return load_recipe("paper/row", changes, folder)


def test_settings_go_from_the_general_to_the_particular(tmp_path):
    file = (
        "source: here\ndata_set: esc50\nmethod: ipet\nlearning_rate: 1.0e-3\nepochs: 3\nbatch_size: 4\nnotes: [one]\n"
    )
    table = (
        "tables:\n- {name: 'row{row}', columns: [a], main: b, backbone: ast, epochs: 5, notes: [two], rows: {b: %s}}\n"
    )
    recipe = load_row(
        tmp_path, file + table % "{batch_size: 8, spec_augment: [4, 2], notes: [three]}", learning_rate=2
    )
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (5, 8, 2.0)
    assert recipe.notes == ("one", "two", "three") and recipe.spec_augment == (4, 2)
    assert recipe_names(tmp_path) == ["paper/row"]


def test_recipes_take_their_own_from_what_differs_by_column_and_row(tmp_path):
    (tmp_path / "paper.yaml").write_text(
        """
name: "{column}{row}"
columns: [x, y]
rows: {full: {method: full, learning_rate: 0.5}, ours: {method: ipet}}
main: ours
source: {full: there, others: here}
data_set: esc50
backbone: ast
learning_rate: {x: 0.1, y: 0.2}
batch_size: 2
epochs: {x: 3, others: 4}
frames: {y: 100}
options: {ours: {num_virtual_tokens: {x: 5, y: 6}, scaling: 2.0}}
spec_augment: {x: [4, 2]}
notes: [all, y: only y]
reported: {x: {full: 0.7, ours: 0.8}, y: {ours: {accuracy: 0.9, map: 0.6}}}
"""
    )
    assert recipe_names(tmp_path) == ["paper/x", "paper/x-full", "paper/y", "paper/y-full"]
    x, x_full, y, y_full = (load_recipe(name, folder=tmp_path) for name in recipe_names(tmp_path))
    assert [recipe.source for recipe in (x, x_full, y, y_full)] == ["here", "there", "here", "there"]
    assert [recipe.learning_rate for recipe in (x, x_full, y, y_full)] == [0.1, 0.5, 0.2, 0.5]
    assert [recipe.epochs for recipe in (x, y)] == [3, 4] and [recipe.frames for recipe in (x, y)] == [None, 100]
    assert x.options == {"num_virtual_tokens": 5, "scaling": 2.0} and y.options["num_virtual_tokens"] == 6
    assert x_full.options == {} and (x.spec_augment, y.spec_augment) == ((4, 2), None)
    assert (x.notes, y.notes) == (("all",), ("all", "only y"))
    assert (x.reported, x_full.reported) == ({"accuracy": 0.8}, {"accuracy": 0.7})
    assert (y.reported, y_full.reported) == ({"accuracy": 0.9, "map": 0.6}, {})


def test_the_table_of_the_readme_is_one(tmp_path):
    readme = Path(run_recipe.__file__).with_name("README.md").read_text(encoding="utf-8")
    (tmp_path / "paper.yaml").write_text(readme.split("```yaml\n")[1].split("```")[0])
    assert recipe_names(tmp_path) == [f"paper/ast-{name}" for name in ("esc50", "esc50-full", "gtzan", "gtzan-full")]
    for name in ("ast-esc50", "ast-gtzan"):
        ours, published = load_recipe(f"paper/{name}", folder=tmp_path), load_recipe(f"ipet/{name}")
        for field in ("backbone", "data_set", "batch_size", "epochs", "learning_rate", "reported"):
            assert getattr(ours, field) == getattr(published, field)


TABLE = "name: 'row{row}'\ncolumns: [x]\nrows: {r: {}}\nmain: r\n"
SETTINGS = "source: here\ndata_set: esc50\nbackbone: ast\nmethod: ipet\nepochs: 1\nbatch_size: 2\nlearning_rate: 0.1\n"
ROW = TABLE + SETTINGS
WRONG = {
    "an unknown field": (f"{ROW}epoch: 3\n", "'epoch' is no field of a recipe. Did you mean 'epochs'"),
    "a missing field": (ROW.replace("epochs: 1\n", ""), "epochs"),
    "a text for a number": (f"{ROW}frames: long\n", "'frames' must be int or null, got 'long'"),
    "a word for a fraction": (ROW.replace("0.1", "slow"), "'learning_rate' must be float, got 'slow'"),
    "a truth value for a number": (ROW.replace("epochs: 1", "epochs: yes"), "'epochs' must be int, got True"),
    "nothing for epochs": (
        ROW.replace("epochs: 1", "epochs: 0"),
        "'epochs' must be a whole number from 1 to 1,000,000, got 0",
    ),
    "one mask": (f"{ROW}spec_augment: [4]\n", r"'spec_augment' must be two numbers from 0 up, got \[4\]"),
    "too much mixup": (f"{ROW}mixup: 1.5\n", "'mixup' must lie between 0 and 1, got 1.5"),
    "an unknown loss": (f"{ROW}loss: hinge\n", "'loss' must be one of cross_entropy, .*got 'hinge'"),
    "an unknown column": (f"{ROW}frames: {{z: 5}}\n", "'frames' must be int or null, got {'z': 5}"),
    "two of a name": (ROW.replace("[x]", "[x, y]"), "there are two recipes 'paper/row'"),
    "another name": (ROW.replace("row{row}", "other"), "has no recipe 'paper/row'. Its recipes are paper/other"),
    "an unknown word": (ROW.replace("row{row}", "{rows}"), "'name' must .*got '{rows}'"),
    "no rows": (ROW.replace("rows: {r: {}}\n", ""), "'rows' of a table missing"),
    "rows in a list": (ROW.replace("{r: {}}", "[r]"), "'rows' must hold the settings of each row"),
    "a list": ("- 1\n", "must hold fields and values, got list"),
    "no YAML": ("a: [\n", "no YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_recipes_are_refused(case, tmp_path):
    text, message = WRONG[case]
    with pytest.raises(RecipeError, match=rf"\.yaml: .*{message}"):
        load_row(tmp_path, text)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"paper\.yaml: cannot be read"):
        load_recipe("paper/row", folder=tmp_path)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    assert load_row(tmp_path, ROW.replace("0.1", "1e-3")).learning_rate == 1e-3


def test_names_may_have_stars():
    found = matching(["ipet/ast-esc50*", "ipet/ast-esc50"])
    assert (
        len(found) == 6 and found[0] == "ipet/ast-esc50" and all(name.startswith("ipet/ast-esc50") for name in found)
    )
    with pytest.raises(RecipeError, match=re.escape("no recipe 'ipet/ast-esc5'. Did you mean ipet/ast-esc50")):
        matching(["ipet/ast-esc5"])
