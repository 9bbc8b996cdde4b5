"""What the training script says of arguments that cannot be right: in one line, and before it reads any audio."""

import json
import re
import runpy
import shutil
import sys

import pytest
import train_classification
from adapters import save_adapter
from runs import arguments
from sounds import save_ast, write_tones
from train_classification import UsageError, main, parse_arguments

import peft_audio
from peft_audio.trainer import AudioTrainingArguments


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a data set, a model, and folders that hold none."""
    folder = tmp_path_factory.mktemp("workspace")
    write_tones(folder / "data")
    save_adapter(folder / "adapter", save_ast(folder / "ast"), ["a", "b"])
    (folder / "empty").mkdir()
    for name, file, content in (
        ("weightless", "model.safetensors", None),
        ("damaged", "model.safetensors", b"no weights"),
        ("extractorless", "preprocessor_config.json", None),
        ("configless", "config.json", b"{"),
    ):
        shutil.copytree(folder / "ast", folder / name)
        (folder / name / file).unlink() if content is None else (folder / name / file).write_bytes(content)
    return folder


def refusal(workspace, out, monkeypatch, *more):
    """What the script says of these arguments; it may not come to reading audio."""
    monkeypatch.setattr(peft_audio.data, "prepare_clips", lambda *args, **kwargs: pytest.fail("read the data"))
    with pytest.raises((UsageError, FileNotFoundError)) as error:
        main(arguments(workspace, out, "--fold", "1", *more))
    text = str(error.value)
    assert len(text.splitlines()) == 1
    assert not out.exists()
    return text


RATES = ("--learning_rate", "--head_learning_rate", "--weight_decay", "--max_grad_norm", "--adam_epsilon")
COUNTS = ("--per_device_train_batch_size", "--per_device_eval_batch_size", "--gradient_accumulation_steps")
WRONG = {
    **{(name, value): "must be a number from 0 up" for name in RATES for value in ("nan", "-1", "inf")},
    **{(name, value): "whole number from 1 to 1,000,000" for name in COUNTS for value in ("0", "-2", str(10**12))},
    **{(name, value): "from 0 to 4,294,967,295" for name in ("--seed", "--data_seed") for value in ("-1", str(2**32))},
    **{("--num_train_epochs", value): "from 0 to 1,000,000" for value in ("nan", "-1", "inf", "1e12")},
    **{("--warmup_steps", value): "must be a number from 0 up" for value in ("nan", "-1")},
    **{("--max_seconds", value): "above 0, at most 86,400" for value in ("nan", "0", "-1", "1e12")},
    **{("--max_length", value): "from 1 to 100,000" for value in ("0", "-5", str(10**12))},
    **{("--test_fraction", value): "above 0 and below 1" for value in ("nan", "0", "1", "2")},
    ("--adam_beta1", "1"): "from 0 and below 1",
    ("--label_smoothing_factor", "7"): "from 0 to 1",
    ("--dataloader_num_workers", "100000"): "from 0 to 1,024",
    ("--shuffle_buffer", "-1"): "from 0 to 1,000,000",
}


@pytest.mark.parametrize("change", WRONG, ids=" ".join)
def test_numbers_out_of_range_are_named(workspace, tmp_path, monkeypatch, change):
    text = refusal(workspace, tmp_path / "out", monkeypatch, *change)
    assert WRONG[change] in text
    assert text.startswith(change[0].removeprefix("--"))
    assert str(float(text.rpartition("got ")[2].removesuffix("."))) == str(float(change[1]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--model_name_or_path", "{}/adapter"), r"got the adapter '.*/adapter'\. Give its base model, '.*/ast'"),
        (("--model_name_or_path", "{}/empty"), "a folder without config.json"),
        (("--model_name_or_path", "{}/weightless"), "weightless: .*no file named model.safetensors"),
        (("--model_name_or_path", "{}/damaged"), "damaged: .*header"),
        (("--model_name_or_path", "{}/extractorless"), "extractorless: .*feature extractor"),
        (("--model_name_or_path", "{}/configless"), "configless: .*valid JSON"),
        (("--layers_to_transform", "99"), "--method ipet: `layers_to_transform` must be between -3 and 2"),
        (("--metric_for_best_model", "nonsense"), "one of loss, accuracy, macro_f1, map, micro_f1, got 'nonsense'"),
        (("--save_strategy", "best"), "metric_for_best_model must be one of .*, got None"),
        (
            ("--load_best_model_at_end", "True", "--eval_strategy", "no"),
            "requires the save and eval strategy to match",
        ),
        (("--lr_scheduler_type", "nonsense"), "nonsense is not a valid SchedulerType"),
        (("--report_to", "nonsense"), "nonsense is not supported, only"),
        (("--resume_from_checkpoint", "nowhere"), "resume_from_checkpoint nowhere: no such checkpoint"),
        (("--resume_from_checkpoint", "True"), "resume_from_checkpoint True: no such checkpoint"),
        (("--output_dir", "{}/data/00.wav"), "output_dir must be a folder for new files, .*00.wav is a file"),
        (("--cache_dir", "{}/data/00.wav/x"), "cache_dir must be a folder for new files, .*00.wav is a file"),
        (("--nonsense", "3"), "not used .*'--nonsense', '3'"),
    ],
)
def test_what_cannot_be_used_is_named(workspace, tmp_path, monkeypatch, change, expected):
    text = refusal(workspace, tmp_path / "out", monkeypatch, *(word.format(workspace) for word in change))
    assert re.search(expected, text), text


def test_the_metric_has_to_be_one_of_the_data(workspace, tmp_path):
    with pytest.raises(UsageError, match="one of loss, accuracy, macro_f1, got 'map'"):
        main(arguments(workspace, tmp_path, "--fold", "1", "--metric_for_best_model", "map"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "a.json: Expecting property name"),
        ("[]", "a.json: must hold arguments and values, got list"),
        ('{"nonsense": 1}', "a.json: "),
        ('{"learning_rate": "fast"}', "learning_rate must be a number from 0 up, got 'fast'"),
        ('{"num_train_epochs": null}', "num_train_epochs must be .*, got None"),
        ('{"per_device_train_batch_size": 2.5}', "whole number .*, got 2.5"),
        ('{"seed": true}', "whole number .*, got True"),
    ],
)
def test_a_file_of_arguments_is_checked_too(workspace, tmp_path, content, expected):
    file = tmp_path / "a.json"
    file.write_text(content)
    if content.startswith('{"') and "nonsense" not in content:
        needed = {"method": "ipet", "model_name_or_path": str(workspace / "ast"), "data_dir": str(workspace / "data")}
        file.write_text(json.dumps({**needed, "output_dir": str(tmp_path / "out"), **json.loads(content)}))
    with pytest.raises(UsageError, match=expected) as error:
        parse_arguments([str(file)])
    assert len(str(error.value).splitlines()) == 1


def test_what_means_nothing_is_no_number_and_what_means_something_is(tmp_path):
    args = AudioTrainingArguments(str(tmp_path), learning_rate=0, save_total_limit=None, max_steps=-1, eval_steps=None)
    assert args.save_total_limit is None and args.learning_rate == 0
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be a whole number from 1"):
        AudioTrainingArguments(str(tmp_path), gradient_accumulation_steps=0)


def test_a_head_that_stays_as_it_is(workspace, tmp_path):
    more = ("--head_learning_rate", "0", "--learning_rate", "1e-3")
    assert parse_arguments(arguments(workspace, tmp_path, *more))[3].head_learning_rate == 0


@pytest.mark.parametrize("several_labels", [False, True])
def test_a_training_that_ends_without_numbers_is_saved_and_fails(workspace, tmp_path, monkeypatch, several_labels):
    shutil.copytree(workspace / "data", tmp_path / "data")
    if several_labels:
        table = tmp_path / "data" / "metadata.csv"
        table.write_text(table.read_text().replace(",low,", ",low;high,"))
    command = arguments(workspace, tmp_path / "out", "--fold", "1", "--learning_rate", "1e30", data=tmp_path / "data")
    monkeypatch.setattr(sys, "argv", ["train_classification.py", *command])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(train_classification.__file__, run_name="__main__")
    assert str(stop.value).startswith("error: The training loss is no number") and "Lower" in str(stop.value)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "README.md", "all_results.json", "curves.png"} <= written


def test_a_training_that_went_well_exits_with_0(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train_classification.py", *arguments(workspace, tmp_path, "--fold", "1")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(train_classification.__file__, run_name="__main__")
    assert not stop.value.code
