"""Recipes that cannot be right: refused by `--dry_run` and before any data are read, in one line."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from experiments.recipe import load_recipe, recipe_names
from experiments.recipe_checks import check_recipe
from experiments.runs import finished
from run_recipe import RecipeError, main

from peft_audio.utils.ranges import COUNT, SEED, Range


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_in_order(name):
    check_recipe(load_recipe(name))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("backbone=nope", "'backbone' must be one of ast, .*, got 'nope'"),
        ("data_set=nope", "'data_set' must be one of .*esc50, .*, got 'nope'"),
        ("method=nope", "'method' cannot be 'nope': .*choose one of"),
        ("options={nope: 1}", "'options' cannot be .*does not take --nope"),
        ("options={num_virtual_tokens: -1}", "'options' cannot be .*got -1"),
        ("options={layers_to_transform: [99]}", "'options' cannot be .*99"),
        ("learning_rate=.nan", "'learning_rate' must be a number above 0, got nan"),
        ("epochs=1000000000000", "'epochs' must be a whole number from 1 to 1,000,000"),
        ("optimizer={name: nope}", "'optimizer' cannot be .*one of adam, adamw"),
        ("optimizer={betas: [0.9, 0.9]}", "'optimizer' cannot be .*missing.*'name'"),
        ("optimizer={name: adam, weight_decay: .nan}", "'optimizer' cannot be .*nan"),
        ("schedule={nope: 1}", "'schedule' cannot be .*'nope'"),
        ("schedule={start: a, stop: b}", "start must be a whole number of at least 1, got 'a'"),
        ("schedule={start: 5, stop: 26, factor: .nan}", "factor must be a number above 0, got nan"),
        ("data_options={nope: 1}", "'data_options' cannot be .*'nope'"),
        ("weight_average=[5, 2]", "'weight_average' cannot be .*in order"),
        ("weight_average=[1, 99]", "'weight_average' cannot be .*the training has 30 epochs"),
        ("spec_augment=[9999, 24]", "'spec_augment' cannot be .*the input has 512 frames"),
        ("epochs=[", "--set: a value is no YAML"),
    ],
)
@pytest.mark.parametrize("more", [("--dry_run",), ("--data_dir", "absent")])
def test_settings_of_no_use_are_named(change, expected, more):
    if "layers_to_transform" in change and more != ("--dry_run",):
        pytest.skip("seen by the model alone")
    with pytest.raises(RecipeError, match=expected) as error:
        main(["ipet/ast-esc50", "--set", change, *more])
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="--output_dir must be a folder for new files"):
        main(["ipet/ast-esc50", "--data_dir", "absent", "--output_dir", str(tmp_path / "file")])


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", "null"])
def test_a_damaged_result_is_named(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=r"result\.json: is no result of a run .*Remove it"):
        finished(path, {})
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("wanted", "inside", "outside"),
    [
        (COUNT, ["1", "1000000"], ["0", "-1", "1.5", "1e3", "nan", "x", "", str(10**12)]),
        (SEED, ["0", "4294967295"], ["-1", "4294967296"]),
        (Range(0, 1, above=True, below=True), ["0.5", "1e-300"], ["0", "1", "nan", "inf"]),
        (Range(), ["0", "1e300"], ["-1e-300", "nan", "inf", "-inf"]),
    ],
)
def test_ranges_are_types_of_the_command_line(wanted, inside, outside):
    assert [str(float(wanted(text))) for text in inside] == [str(float(text)) for text in inside]
    for text in outside:
        with pytest.raises(argparse.ArgumentTypeError, match="must be "):
            wanted(text)


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        ("examples/demo.py", "--epochs", "0"),
        ("examples/demo_small.py", "--clips_per_class", "-1"),
        ("method_comparison/pretrain_backbone.py", "--output_dir", "absent", "--learning_rate", "nan"),
    ],
)
def test_other_scripts_name_the_argument(command):
    script, *words = command
    run = subprocess.run([sys.executable, ROOT / script, *words], capture_output=True, text=True, cwd=ROOT)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode in (1, 2) and "Traceback" not in run.stderr
    assert "error: " in last and words[-2].removeprefix("--") in last and words[-1] in last
