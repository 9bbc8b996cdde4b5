"""Arguments of scripts that cannot be right: status 2 and one line, before anything is read or written."""

import importlib
import re
import sys

import pytest

from peft_audio.utils.arguments import (
    UsageError,
    check_distinct,
    check_each,
    check_file,
    check_folder,
    check_writable,
    run_command,
)
from peft_audio.utils.ranges import SEED


OUTPUT, BLOCKED = ("--output_dir", "out"), ("--output_dir", "file/out")
PICTURE = ("--output", "new.png")
CASES = {
    "pictures": [
        (("tradeoff", "absent", *PICTURE), "FOLDER must be a folder, got 'absent': there is none"),
        (("tradeoff", "IPET=folder", *PICTURE), "FOLDER must be a folder with summary.json, got 'folder'"),
        (("tradeoff", "folder", "--rule", "best", *PICTURE), "--rule: invalid choice: 'best'"),
        (("epochs", "absent", *PICTURE), "FOLDER must be a folder, got 'absent'"),
        (("epochs", "folder", "--metric", "f1", *PICTURE), "--metric: invalid choice: 'f1'"),
        (("confusion", "absent.csv", *PICTURE), "predictions must be a file, got 'absent.csv': there is none"),
        (("confusion", "file", "--output", "file/new.png"), "--output must be a folder for new files, got 'file'"),
        (("confusion", "file", "--output", "new.nope"), "--output new.nope: the file name must end in one of"),
        (("verification", "folder", *PICTURE), "trials must be a file, got 'folder': it is something else"),
        *(
            (("verification", "file", "--p_target", value, *PICTURE), f"--p_target: must be .*, got '{value}'")
            for value in ("0", "1", "nan", "x")
        ),
        (("attention", "folder", "file", *PICTURE), "adapter must be a folder with adapter_config.json, got 'folder'"),
        (("attention", "./absent", "file", *PICTURE), "adapter must be a folder, got './absent'"),
        (("attention", "me/adapter", "absent.wav", *PICTURE), "clip must be a file, got 'absent.wav'"),
        (("attention", "me/adapter", "file", "--frames", "9", "3", *PICTURE), r"--frames must be .*, got \[9, 3\]"),
        (("attention", "me/adapter", "file", "--layer", "10000", *PICTURE), "--layer: must be .*, got '10000'"),
        (("attention", "me/adapter", "file", "--head", "-1", *PICTURE), "--head: must be .*, got '-1'"),
    ],
    "esc10": [
        *(
            ((*OUTPUT, "--data_dir", "data", f"--{name}", value), f"{name} must be .*, got {shown}")
            for name, value, shown in (
                ("epochs", "0", "0"),
                ("batch_size", "1000000000000", "1000000000000"),
                ("jobs", "-1", "-1"),
                ("learning_rates", "nan", "nan"),
                ("learning_rates", "-0.1", "-0.1"),
                ("seeds", "-1", "-1"),
                ("plot", "file/a.png", "'file'"),
            )
        ),
        ((*OUTPUT, "--data_dir", "data", "--seeds", "1", "1"), "seeds must name each value once, got 1 1"),
        ((*OUTPUT, "--data_dir", "data", "--epochs", "x"), "--epochs: invalid int value: 'x'"),
        ((*OUTPUT, "--data_dir", "data", "--methods", "nope"), "--methods: invalid choice: 'nope'"),
        ((*OUTPUT, "--data_dir", "folder"), "data_dir must be a folder with metadata.csv, got 'folder'"),
        ((*BLOCKED, "--data_dir", "data"), "output_dir must be a folder for new files, got 'file/out'"),
        ((*OUTPUT, "--data_dir", "data", "--model_name_or_path", "folder"), "model_name_or_path must be a pretrained"),
        (("--output_dir", "damaged", "--table"), "results.json: is no file of results"),
    ],
    "real_model": [
        *(
            ((*OUTPUT, "--data_dir", "data", f"--{name}", value), f"{name} must be .*, got {value}")
            for name, value in (("jobs", "0"), ("seeds", "-1"), ("shots", "0"))
        ),
        ((*OUTPUT, "--data_dir", "data", "--folds", "7"), "--folds: invalid choice: '7'"),
        ((*OUTPUT, "--data_dir", "data", "--plot", "a.nope"), "--plot a.nope: the file name must end in one of"),
        ((*BLOCKED, "--data_dir", "data"), "output_dir must be a folder for new files"),
        (OUTPUT, "--data_dir is missing"),
    ],
    "real_model_rates": [((*OUTPUT, "--data_dir", "folder"), "data_dir must be a folder with metadata.csv")],
    "recognition": [((*OUTPUT, "--data_dir", "data", "--model_name_or_path", "folder"), "must be a pretrained model")],
    "recognition_corpus": [(("data",), "folder must be a new folder, got .*data'")],
    "generated_voices": [
        (("new", "--sentences", "2"), "--sentences: must be a whole number from 3 to 8, got '2'"),
        (("data",), "folder must be a new folder, got .*data', which is there already. Remove what is in it"),
        (("file/new",), "folder must be a folder for new files"),
    ],
    "pretrain_backbone": [
        (("--output_dir", "out", "--probe", "data"), "output_dir must be a folder, got 'out'"),
        (("--output_dir", "out", "--features_file", "file/a.npz"), "features_file must be a folder for new files"),
        (("--output_dir", "out", "--learning_rate", "nan"), "learning_rate must be a number from 0 up, got nan"),
    ],
    "speaker_verification": [
        (
            ("absent", "--data_dir", "data", "--trials", "metadata.csv", *OUTPUT),
            "absent/result.json: cannot be read .*finished run",
        ),
        (("folder", "--data_dir", "absent"), "--data_dir must be a folder, got 'absent'"),
        (("folder", "--data_dir", "data"), "--data_dir must be a folder with veri_test.txt"),
        (
            ("folder", "--data_dir", "data", "--trials", "metadata.csv", *BLOCKED),
            "--output_dir must be a folder for new",
        ),
        (("folder", "--data_dir", "data", "--num_workers", "-1"), "--num_workers: must be a whole number"),
    ],
    "make_assets": [
        ((), "--model_name_or_path or --data_dir must say what to make"),
        (("--data_dir", "absent"), "--data_dir must be a folder, got 'absent'"),
        (("--data_dir", "data"), "metadata.csv must have the columns file_name, label, fold, freesound_id, lacks"),
    ],
    "benchmark": [
        *(
            ((*OUTPUT, f"--{name}", value), f"--{name}: must be .*, got '{value}'")
            for name, value in (
                ("device", "nope"),
                ("batch_size", "0"),
                ("repeats", "0"),
                ("repeats", "1000000000"),
                ("peak_tflops", "nan"),
            )
        ),
        (BLOCKED, "--output_dir must be a folder for new files, got 'file/out'"),
        ((*OUTPUT, "--inputs", "nope"), "--inputs: invalid choice: 'nope'"),
    ],
    "gpu": [
        (("steps", *OUTPUT, "--until", "nan"), "--until: must be .*, got 'nan'"),
        (("steps", *OUTPUT, "--inputs", "nope"), "--inputs: invalid choice: 'nope'"),
        (("compile", *OUTPUT, "--backend", "nope"), "--backend: invalid choice: 'nope'"),
        (("compile", *OUTPUT, "--repeats", "0"), "--repeats: must be .*, got '0'"),
        (("steps", *BLOCKED), "--output_dir must be a folder for new files"),
    ],
    "memory": [
        (BLOCKED, "--output_dir must be a folder for new files, got 'file/out'"),
        ((*OUTPUT, "--inputs", "nope"), "--inputs: invalid choice: 'nope'"),
        ((*OUTPUT, "--batch_sizes", "0", "4"), "--batch_sizes: must be .*, got '0'"),
        ((*OUTPUT, "--batch_sizes", "4", "4"), r"--batch_sizes: the first must be below the second, got \[4, 4\]"),
    ],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file, an empty folder, data without the columns that scripts need, and damaged results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("folder", "data", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "data" / "metadata.csv").write_text("file_name,label,fold\n")
    (tmp_path / "damaged" / "results.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("script", CASES)
def test_arguments_of_no_use_end_in_one_line(script, place, monkeypatch, capsys):
    module = importlib.import_module(script)
    before = sorted(place.rglob("*"))
    for words, expected in CASES[script]:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
        with pytest.raises(SystemExit) as stop:
            run_command(module.main)
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 2 and re.search(f"error: .*{expected}", told), (words, told)
    assert sorted(place.rglob("*")) == before


def test_checks_name_the_argument_the_rule_and_the_value(place):
    for check, expected in (
        (lambda: check_file("--clip", "folder"), "--clip must be a file, got 'folder': it is something else."),
        (lambda: check_folder("--data", "file"), "--data must be a folder, got 'file': it is something else."),
        (lambda: check_folder("--data", "data", "a.csv"), "--data must be a folder with a.csv, got 'data': no such"),
        (
            lambda: check_writable("--out", "file"),
            "--out must be a folder for new files, got 'file': .*file is a file.",
        ),
        (lambda: check_distinct("--folds", ["1", "2", "1"]), "--folds must name each value once, got 1 2 1."),
        (lambda: check_each("--seeds", [0, -1], SEED), "--seeds must be a whole number from 0 to .*, got -1."),
    ):
        with pytest.raises(ValueError, match=expected):
            check()
    check_folder("--data", "data", "metadata.csv")
    check_writable("--out", "new/folder")
    assert not (place / "new").exists()


def test_the_status_says_whose_fault_it_is(capsys):
    def fail(error):
        raise error

    assert run_command(lambda: 3) == 3
    for error, status in ((UsageError("wrong"), 2), (OSError("wrong"), 1), (ValueError("wrong"), 1)):
        with pytest.raises(SystemExit) as stop:
            run_command(lambda error=error: fail(error))
        assert (stop.value.code, capsys.readouterr().err) == (status, "error: wrong\n")
    with pytest.raises(ValueError, match="ours"):
        run_command(lambda: fail(ValueError("ours")), (OSError,))
