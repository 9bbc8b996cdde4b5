"""The training script's `--task`: one label a clip or several, as asked for, whatever the data look like."""

import pytest
import train_classification
from runs import arguments
from sounds import LABELS, save_ast, write_tones
from train_classification import main

from peft_audio import AutoPeftModelForAudioClassification
from peft_audio.data import Clip, ClipTable, DataError
from peft_audio.trainer import UsageError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_tones(folder / "data", clips=6)
    write_tones(folder / "several", clips=6)
    path = folder / "several" / "metadata.csv"
    path.write_text(path.read_text().replace(",low,", ",low;tonal,"))
    save_ast(folder / "ast")
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train_classification, "plot_curves", lambda *args: None)


def run(workspace, out, *more, data="data"):
    options = ("--fold", "1", "--save_strategy", "no", "--num_train_epochs", "1", "--no_compare_with_probe", *more)
    return main(arguments(workspace, out, *options, method="linear_probe", data=data))


def test_one_label_a_clip_can_be_trained_as_several(workspace, tmp_path):
    results = run(workspace, tmp_path, "--task", "multi_label")
    assert "eval_map" in results and "eval_accuracy" not in results
    config = AutoPeftModelForAudioClassification.from_pretrained(tmp_path).config
    assert (config.problem_type, list(config.id2label.values())) == ("multi_label_classification", list(LABELS))


def test_without_several_labels_classification_is_what_auto_is(workspace, tmp_path):
    asked, auto = (run(workspace, tmp_path, *more) for more in (("--task", "classification"), ()))
    assert "eval_accuracy" in asked and asked["eval_loss"] == auto["eval_loss"]


def test_lists_of_one_label_each_are_one_label_a_clip():
    clips = [Clip(name, b"", (name,)) for name in "ab"]
    assert not train_classification.for_task(ClipTable(clips, "hub", multi_label=True), "classification").multi_label


@pytest.mark.parametrize(
    ("data", "more", "error", "expected"),
    [
        (
            "several",
            ("--task", "classification"),
            DataError,
            "--task classification is for one label a clip, '01.wav' has 2: low; tonal. Give --task multi_label",
        ),
        ("data", ("--task", "tags"), SystemExit, ""),
        (
            "data",
            ("--task", "multi_label", "--label_smoothing_factor", "0.1"),
            UsageError,
            "leave it out with --task multi",
        ),
        (
            "several",
            ("--label_smoothing_factor", "0.1"),
            UsageError,
            "is for one label a clip, and clips have several",
        ),
        (
            "data",
            ("--task", "multi_label", "--metric_for_best_model", "accuracy"),
            UsageError,
            "one of loss, map, micro_f1",
        ),
    ],
)
def test_tasks_that_do_not_fit_the_data_are_told(data, more, error, expected, workspace, tmp_path):
    with pytest.raises(error, match=expected):
        run(workspace, tmp_path / "out", *more, data=data)
    assert not (tmp_path / "out").exists()


def test_frames_are_not_read_from_the_hub(workspace, tmp_path):
    words = arguments(workspace, tmp_path, "--task", "frames", "--dataset_name", "some/data")
    place = words.index("--data_dir")
    with pytest.raises(UsageError, match="--task frames reads events from a metadata.csv: give --data_dir"):
        main(words[:place] + words[place + 2 :])
