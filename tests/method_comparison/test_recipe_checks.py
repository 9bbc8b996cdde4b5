"""Recipes that cannot be right: refused by `--dry_run` and before any data are read, in one line."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
from experiments.recipe import load_recipe, recipe_names
from experiments.recipe_checks import check_recipe
from experiments.runs import finished
from run_recipe import RecipeError, UsageError, main

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
        ("schedule={start: true, stop: 3}", "start must be a whole number of at least 1, got True"),
        ("schedule={start: 1, stop: 3, factor: a}", "factor must be a number above 0, got 'a'"),
        ("schedule={start: 1, stop: 3, warmup_steps: 1000000000000}", "warmup_steps must be a whole number from 0 to"),
        ("data_options={nope: 1}", "'data_options' cannot be .*'nope', the options are subset"),
        ("data_options={1: 2}", "'data_options' cannot be .*there is no option 1"),
        ("data_options={subset: []}", "subset must be one of null, esc10, got \\[\\]"),
        ("metric=equal_error_rate", "'data_set' cannot be 'esc50': metric equal_error_rate"),
        ("code_size=8", "'data_set' cannot be 'esc50': code_size is for data with trials"),
        ("rule=validation", "'rule' cannot be 'validation': esc50 has folds"),
        ("weighted_layer_sum=true", "'weighted_layer_sum' cannot be True: ast reads spectrograms"),
        ("reported={nope: 3}", "'reported' must be numbers from 0 to 1 of accuracy, .*, got 'nope': 3"),
        ("reported={accuracy: .nan}", "'reported' must be numbers .*, got 'accuracy': nan"),
        ("notes=[1]", "'notes' must be texts, got \\[1\\]"),
        ("test_segments=1000000", "'test_segments' must be a whole number from 1 to 1,000, got 1000000"),
        ("spec_augment=[8, 1000]", "'spec_augment' cannot be .*the input has 128 mel bins"),
        ("weight_average=[5, 2]", "'weight_average' cannot be .*in order"),
        ("weight_average=[1, 99]", "'weight_average' cannot be .*the training has 30 epochs"),
        ("spec_augment=[9999, 24]", "'spec_augment' cannot be .*the input has 512 frames"),
        ("epochs=[", "--set: a value is no YAML"),
    ],
)
@pytest.mark.parametrize("more", [("--dry_run",), ("--data_dir", ".")])
def test_settings_of_no_use_are_named(change, expected, more):
    if "layers_to_transform" in change and more != ("--dry_run",):
        pytest.skip("seen by the model alone")
    with pytest.raises(RecipeError, match=expected) as error:
        main(["ipet/ast-esc50", "--set", change, *more])
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        *(
            ("aat/ast-gtzan-m", f"{{folds: {value}}}", "folds must be a whole")
            for value in ["0", "1", ".nan", "1e9", "ten", "[2]"]
        ),
        *(("aat/ast-gtzan-m", f"{{folds: {value}}}", "folds must be a whole") for value in ("true", "null", "101")),
        *(("aat/ast-gtzan-m", f"{{seed: {value}}}", "seed must be a whole") for value in ("-1", ".nan", "a", "null")),
        ("aat/ast-gtzan-m", "{split: nope}", "split must be one of null, filtered, got 'nope'"),
        ("aat/ast-gtzan-m", "{split: filtered, folds: 3}", "folds and seed draw folds.*leave one out"),
        ("ipet/ast-voxceleb1", "{split: nope}", "split must be one of identification, verification"),
        ("ipet/ast-voxceleb1", "{split: identification}", "code_size is for data with trials"),
        ("ipet/ast-voxceleb1", "{split: verification, trials: 3}", "trials must be the name of a file, got 3"),
        ("aat/ast-openmic", "{folds: 3}", "there is no option 'folds', the options are none"),
    ],
)
def test_options_of_readers_are_checked_before_they_read(name, change, expected):
    name = next(found for found in recipe_names() if found.startswith(name))
    with pytest.raises(RecipeError, match=f"'data_(options|set)' cannot be .*{expected}") as error:
        main([name, "--dry_run", "--set", f"data_options={change}"])
    assert len(str(error.value).splitlines()) == 1


def test_a_loss_for_one_label_is_not_taken_for_several():
    name = next(found for found in recipe_names() if "openmic" in found)
    with pytest.raises(RecipeError, match="'data_set' cannot be 'openmic2018': a clip can have several labels"):
        main([name, "--dry_run", "--set", "loss=cross_entropy"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--folds", "6"), "--folds: there is no fold 6; the folds: 1, 2, 3, 4, 5."),
        (("--folds", "nan", "-1"), "there is no fold -1, nan;"),
        (("--folds", "1", "1"), "--folds must name each value once, got 1 1"),
        (("--seeds", "3", "3"), "--seeds must name each value once, got 3 3"),
        (("--data_dir", "absent"), "--data_dir must be a folder, got 'absent': there is none"),
        (("--musan_dir", "absent"), "--musan_dir must be a folder"),
        (("--model_name_or_path", "./absent"), "--model_name_or_path must be a pretrained model, got './absent'"),
    ],
)
def test_a_dry_run_looks_at_folds_seeds_and_folders(words, expected):
    with pytest.raises(UsageError, match=re.escape(expected)):
        main(["ipet/ast-esc50", "--dry_run", *words])


def test_a_dry_run_counts_the_folds_there_are(capsys):
    main(["ipet/ast-esc50", "--dry_run", "--folds", "2", "3", "--seeds", "0", "1"])
    assert "4 (2 parts, 2 seeds)" in capsys.readouterr().out


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--output_dir must be a folder for new files"):
        main(["ipet/ast-esc50", "--data_dir", ".", "--output_dir", str(tmp_path / "file")])


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
