"""Training on a stream: the same result as on the same clips read first."""

import io

import datasets
import pytest
import soundfile
from sounds import LABELS, save_ast, tone
from train_classification import UsageError, main

from peft_audio.data import stream_splits


FEATURES = datasets.Features(
    {
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "label": datasets.ClassLabel(names=LABELS),
    }
)


def encoded(label, seed):
    file = io.BytesIO()
    soundfile.write(file, tone(label, seed=seed), 16000, format="WAV")
    return {"bytes": file.getvalue(), "path": f"{seed}.wav"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set as the Hub stores them, with 12 clips to train on and 6 to test on, and a model."""
    folder = tmp_path_factory.mktemp("stream")
    for split, seeds in (("train", range(12)), ("test", range(20, 26))):
        rows = {
            "audio": [encoded(LABELS[seed % 3], seed) for seed in seeds],
            "label": [LABELS[seed % 3] for seed in seeds],
        }
        (folder / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, FEATURES).to_parquet(folder / "data" / f"{split}.parquet")
    save_ast(folder / "ast")
    return folder


def arguments(folder, out, *more):
    return [
        *("--method", "ipet", "--model_name_or_path", str(folder / "ast"), "--dataset_name", str(folder / "data")),
        *(
            "--output_dir",
            str(out),
            "--use_cpu",
            "True",
            "--disable_tqdm",
            "True",
            "--per_device_train_batch_size",
            "4",
        ),
        *("--learning_rate", "1e-2", *more),
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_stream_is_trained_and_tested_on(folder, tmp_path):
    steps = ("--max_steps", "12", "--eval_strategy", "no", "--save_strategy", "no")
    results = main(arguments(folder, tmp_path, "--streaming", "True", "--shuffle_buffer", "12", *steps))
    assert results["eval_samples"] == 6 and results["train_samples"] is None
    assert results["eval_accuracy"] > 0.6  # three tones, a third by chance
    assert "as a stream" in (tmp_path / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_without_shuffling_a_stream_is_tested_as_the_same_clips_are(folder, tmp_path):
    steps = ("--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--learning_rate", "0")
    read = main(arguments(folder, tmp_path / "read", *steps))
    streamed = main(arguments(folder, tmp_path / "streamed", "--streaming", "True", *steps))
    for name in ("eval_loss", "eval_accuracy", "eval_samples", "trainable_parameters"):
        assert streamed[name] == pytest.approx(read[name], rel=1e-5)


@pytest.mark.parametrize("change", [(), ("--max_steps", "2", "--fold", "1")])
def test_a_stream_needs_a_number_of_steps_and_no_fold(change, folder, tmp_path):
    with pytest.raises(UsageError, match="--streaming is for .*--max_steps"):
        main(arguments(folder, tmp_path, "--streaming", "True", *change))


def test_splits_of_a_stream(folder, tmp_path):
    assert stream_splits(str(folder / "data"), None) == {"train": "train", "test": "test"}
    (tmp_path / "train.parquet").write_bytes((folder / "data" / "train.parquet").read_bytes())
    with pytest.raises(ValueError, match="one to test on, the splits are train. Without streaming"):
        stream_splits(str(tmp_path), None)
    (tmp_path / "validation.parquet").write_bytes((folder / "data" / "test.parquet").read_bytes())
    assert stream_splits(str(tmp_path), None) == {"train": "train", "test": "validation"}


@pytest.mark.filterwarnings("ignore")
def test_a_streams_column_says_what_its_task_is(folder, tmp_path):
    more = ("--streaming", "True", "--max_steps", "1", "--task", "multi_label")
    with pytest.raises(UsageError, match="--task multi_label: the stream's column has one label a row"):
        main(arguments(folder, tmp_path, *more))
