"""The training script with labels of frames: whole runs on tiny models, and what their folders give when loaded."""

import json

import numpy as np
import pytest
import torch
import train_classification
from events import FRAME_TYPES, RATE, save_bare, sound, write_events
from runs import arguments, run_card
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, f1_score
from train_classification import main
from transformers import AutoFeatureExtractor

from peft_audio import AutoPeftModelForAudioFrameClassification, load_frame_classifier
from peft_audio.data import DataError
from peft_audio.losses import classification_loss
from peft_audio.trainer import METHODS, UsageError, apply_method


FEW = ("--save_strategy", "no", "--eval_strategy", "no", "--num_train_epochs", "1", "--no_compare_with_probe")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    write_events(folder / "data")
    save_bare(folder / "wav2vec2")
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(train_classification, "plot_curves", lambda *args: None)


@pytest.fixture
def trained(monkeypatch):
    """The Trainers of the runs, in turn."""
    trainers, report = [], train_classification.report

    def keep(trainer, *args):
        trainers.append(trainer)
        report(trainer, *args)

    monkeypatch.setattr(train_classification, "report", keep)
    return trainers


def run(workspace, out, *more, model="wav2vec2", method="ipet", data="data"):
    options = ("--task", "frames", "--per_device_train_batch_size", "2", *more)
    return main(arguments(workspace, out, *options, model=model, method=method, data=data))


@torch.no_grad()
def logits_for(model, folder, events=(("low", (0.1, 0.3)),)):
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    inputs = extractor(sound(events, seed=99), sampling_rate=RATE, return_tensors="pt")
    return model.eval()(**inputs).logits


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_frames(method, workspace):
    model = apply_method(load_frame_classifier(workspace / "wav2vec2", ["a", "b", "c"]), method).train()
    logits = model(torch.randn(2, 4000)).logits
    assert logits.shape[2] == 3
    classification_loss({"logits": logits}, torch.ones_like(logits)).backward()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert parameters and all(parameter.grad is not None for parameter in parameters)


@pytest.mark.parametrize(
    ("model", "method"),
    [("wav2vec2", name) for name in ("lora", "full", "linear_probe")] + [(name, "ipet") for name in FRAME_TYPES],
)
def test_a_run_leaves_a_model_with_the_same_logits(model, method, workspace, tmp_path, trained, monkeypatch, capsys):
    if not (workspace / model).exists():
        save_bare(workspace / model, model)
    results = run(workspace, tmp_path, *FEW, model=model, method=method)
    assert {"eval_map", "eval_micro_f1", "eval_map_standard_error", "train_loss"} <= results.keys()
    assert (results["train_samples"], results["eval_samples"], results["problem"]) == (4, 2, None)
    expected = logits_for(trained[0].model, tmp_path)
    printed, variables = run_card(tmp_path, monkeypatch, capsys)
    assert torch.equal(logits_for(variables["model"], tmp_path), expected)
    assert len(printed.splitlines()) == variables["logits"].shape[1]
    if method not in ("lora", "bitfit", "full"):
        again = AutoPeftModelForAudioFrameClassification.from_pretrained(tmp_path)
        assert torch.equal(logits_for(again, tmp_path), expected)
        assert list(again.config.id2label.values()) == ["high", "low"]


def test_events_are_found_in_clips_that_were_not_trained_on(workspace, tmp_path, trained):
    write_events(tmp_path / "data", clips=18, tested=4)
    more = (*FEW, "--num_train_epochs", "8", "--learning_rate", "3e-3", "--head_learning_rate", "3e-3")
    results = run(workspace, tmp_path / "out", *more, method="full", data=tmp_path / "data")
    (trainer,) = trained
    output = trainer.predict(trainer.eval_dataset)
    known = output.label_ids[..., 0] != -100
    targets, logits = output.label_ids[known], output.predictions[known]
    chance = targets.mean()  # the precision of a model that knows nothing
    assert results["eval_map"] == pytest.approx(average_precision_score(targets, logits, average="macro"), abs=1e-6)
    assert results["eval_micro_f1"] == pytest.approx(f1_score(targets, logits > 0, average="micro"))
    assert results["eval_map"] > 0.9 > chance + 0.3
    assert results["eval_micro_f1"] > 0.7


def test_padding_changes_nothing(workspace, tmp_path, trained):
    """Clips of two lengths: alone, or in one batch, where the shorter ones are padded."""
    run(workspace, tmp_path, *FEW, "--learning_rate", "1e-2")
    (trainer,) = trained
    both = torch.utils.data.ConcatDataset([trainer.train_dataset, trainer.eval_dataset])
    outputs = []
    for size in (1, len(both)):
        trainer.args.per_device_eval_batch_size = size
        outputs.append(trainer.predict(both))
    known = [output.label_ids != -100 for output in outputs]
    assert (~known[1]).sum() > 0 and np.array_equal(*known)
    assert np.array_equal(*(output.label_ids for output in outputs))
    alone, padded = (output.predictions[known[0]] for output in outputs)
    np.testing.assert_allclose(padded, alone, atol=1e-5)
    assert outputs[0].metrics["test_micro_f1"] == pytest.approx(outputs[1].metrics["test_micro_f1"], abs=1e-3)


def test_resuming_ends_where_an_uninterrupted_run_does(workspace, tmp_path):
    more = ("--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "9", "--adapter_dropout", "0")
    whole = run(workspace, tmp_path / "whole", *more)
    checkpoint = ("--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-2"))
    resumed = run(workspace, tmp_path / "resumed", *more, *checkpoint)
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-5)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed")]
    assert all(torch.allclose(value, weights[1][name], atol=1e-6) for name, value in weights[0].items())


def test_a_run_is_compared_with_a_probe_of_frames(workspace, tmp_path):
    results = run(workspace, tmp_path, *FEW[:-1])
    chance = 0.3  # of the frames, about, have a label
    assert chance + 0.2 < results["probe_map"] <= 1


def test_a_linear_probe_trains_from_frozen_states_where_clips_are_equally_long(
    workspace, tmp_path, caplog, monkeypatch
):
    more = ("--max_seconds", "0.15", "--no_compare_with_probe")
    cached = run(workspace, tmp_path / "a", *more, method="linear_probe")
    assert "Every epoch runs" not in caplog.text
    monkeypatch.setattr(train_classification, "with_frozen_states", lambda model, data, *args: data)
    plain = run(workspace, tmp_path / "b", *more, method="linear_probe")
    assert cached["eval_loss"] == pytest.approx(plain["eval_loss"], abs=1e-4)


def test_features_on_disk_give_the_same_run(workspace, tmp_path, monkeypatch):
    more = (*FEW, "--cache_dir", str(tmp_path / "cache"))
    expected = run(workspace, tmp_path / "out", *more)["eval_loss"]
    monkeypatch.setattr("peft_audio.data.feature_cache.load_clip", lambda *_, **__: pytest.fail("decoded again"))
    assert run(workspace, tmp_path / "out", *more)["eval_loss"] == expected
    assert run(workspace, tmp_path / "out", *FEW)["eval_loss"] == expected


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        (
            ("--model_name_or_path", "{}/hubert"),
            UsageError,
            "of type 'hubert', of which there is no model for labels of",
        ),
        (("--dataset_name", "some/data"), UsageError, "either --data_dir"),
        (("--label_smoothing_factor", "0.1"), UsageError, "--label_smoothing_factor is for one label a clip"),
        (("--metric_for_best_model", "accuracy"), UsageError, "one of loss, map, micro_f1, got 'accuracy'"),
        (("--layers_to_transform", "99"), UsageError, "--method ipet: `layers_to_transform` must be"),
        (("--fold", "1"), DataError, "fold 1 needs a column 'fold'"),
        (("--max_seconds", "0.01"), UsageError, "--max_seconds 0.01: this model needs at least"),
        (("--data_dir", "{}/clips"), DataError, "column 'start', 'stop' is missing.*file_name, label, start and stop"),
        (
            ("--data_dir", "{}/late"),
            DataError,
            "late/metadata.csv line 2: the event ends at 0.5 s, but '0.wav' has only 0.400 s",
        ),
    ],
)
def test_what_cannot_be_right_is_told_in_one_line(change, error, expected, workspace, tmp_path):
    if not (workspace / "hubert").exists():
        save_bare(workspace / "hubert", "hubert")
        (workspace / "clips").mkdir()
        (workspace / "clips" / "metadata.csv").write_text("file_name,label\na.wav,x\n")
        write_events(workspace / "late")
        path = workspace / "late" / "metadata.csv"
        header, _, rest = path.read_text().split("\n", 2)
        path.write_text(f"{header}\n0.wav,low,0.1,0.5,train\n{rest}")
        assert json.loads((workspace / "hubert" / "config.json").read_text())["model_type"] == "hubert"
    with pytest.raises(error, match=expected) as raised:
        run(workspace, tmp_path / "out", *[word.format(workspace) for word in change])
    assert len(str(raised.value).splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_new_output_layer_for_as_many_labels(workspace, tmp_path):
    load_frame_classifier(workspace / "wav2vec2", ["a", "b"]).save_pretrained(tmp_path)
    old, same, renewed = (load_frame_classifier(tmp_path, labels) for labels in (["a", "b"], ["a", "b"], ["c", "d"]))
    assert torch.equal(old.classifier.weight, same.classifier.weight)
    assert not torch.equal(old.classifier.weight, renewed.classifier.weight)
